"""The training of 1997: on line, by the truncated gradient, many independent networks at once.

No error flows back in time but through the carousel, so that all a later error needs of the past is
the derivative of each cell's state by the weights that fed it. Hochreiter and Schmidhuber (1997,
equations 25 to 28) and Gers, Schmidhuber and Cummins (2000) carry it forwards:

    d c_t / d w_cell  =  f d c_{t-1} / d w_cell  +  i  g' m
    d c_t / d w_in    =  f d c_{t-1} / d w_in    +  i' g  m
    d c_t / d w_f     =  f d c_{t-1} / d w_f     +  f' c_{t-1} m

where m is what the hidden units see: the input, what is fed back, and 1 for a bias. With peepholes
(Gers, Schraudolph and Schmidhuber 2002, equations 22 to 24) the gates also see the state of their
cell, the output gate that of the same step. The cost of a step does not grow with the length of the
sequence. The compiled backend has the same in C
(csrc/online.h), a network and a sequence after the other.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retrograde.compiled import online as compiled
from retrograde.compiled.passes import in_use
from retrograde.tasks.blocks import BIASED, BlockNetwork, Blocks, squash
from retrograde.tasks.reber import Strings
from retrograde.tasks.task import Sequences, Symbols, ranked

CLOSED = -1000.0
"""A net input at which a logistic unit is exactly 0."""


class Networks:
    """M networks of one plan, each with weights and sequences of its own.

    Args:
        plan: of all of them.
        drawn: the weights of each network, by name.
        each_step: the weights change after each answer, not after each sequence.
        momentum: what remains of a change of the weights at the next one; for blocks of one cell
            whose weights change at each step.

    Attributes:
        hidden: the weights of the hidden units, [M, U, D]: from the inputs, from what is fed back,
            the biases, and with peepholes from the state of the cell.
        output: those of the outputs, [M, O, H + I + 1]: from cells, inputs, and the biases.
        state: what streams go on from, [M, S]: the states of the cells, what is fed back, and the
            derivatives of the former by the weights, [2 or 3, H, D].

    Example:
        >>> import torch
        >>> from retrograde.studies.online import Networks
        >>> from retrograde.tasks.experiments import EXPERIMENTS
        >>> experiment = EXPERIMENTS["6a"]
        >>> seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
        >>> networks = Networks(experiment.network, [experiment.network.draw(g) for g in seeds])
        >>> networks.learn(experiment.task.draw(3, seeds[0]), rate=0.5).shape[1:]
        torch.Size([3, 4])
    """

    def __init__(
        self,
        plan: Blocks,
        drawn: Sequence[Mapping[str, Tensor]],
        each_step: bool = False,
        momentum: float = 0.0,
    ):
        assert not momentum or (each_step and plan.size == 1)
        self.plan, self.each_step, self.momentum = plan, each_step, momentum
        cells, gates, inputs = plan.cells, plan.blocks * len(plan.gates), plan.inputs
        count, like = len(drawn), drawn[0]["weight_ih"]
        bias = inputs + plan.fed_back
        self.hidden = like.new_zeros(count, cells + gates, bias + 1 + plan.peepholes)
        self.output = like.new_zeros(count, plan.outputs, cells + inputs + 1)
        self._free = {"hidden": self.hidden[0].bool(), "output": self.output[0].bool()}
        self._places: dict[str, tuple[str, slice, slice | int]] = {
            "weight_ih": ("hidden", slice(None), slice(inputs)),
            "weight_hh": ("hidden", slice(None), slice(inputs, bias)),
            "bias_cells": ("hidden", slice(cells), bias),
            "bias_gates": ("hidden", slice(cells, None), bias),
            "weight_ch": ("hidden", slice(cells, None), bias + 1),
            "weight_ho": ("output", slice(None), slice(cells)),
            "weight_io": ("output", slice(None), slice(cells, -1)),
            "bias_o": ("output", slice(None), -1),
        }
        for name in plan.shapes():
            matrix, rows, columns = self._places[name]
            getattr(self, matrix)[:, rows, columns] = torch.stack([each[name] for each in drawn])
            self._free[matrix][rows, columns] = True
        traces = (2 + plan.forget_gates) * cells * self.hidden.shape[2]
        self.state = like.new_zeros(count, cells + plan.fed_back + traces)
        self.by_hidden = torch.zeros_like(self.hidden)
        self.by_output = torch.zeros_like(self.output)
        self._columns = {
            gate: place * plan.blocks + torch.arange(cells) // plan.size
            for place, gate in enumerate(plan.gates)
        }

    def __len__(self) -> int:
        return len(self.hidden)

    def weights(self, which: int) -> dict[str, Tensor]:
        """The weights of one network, by name."""
        return {
            name: getattr(self, matrix)[which, rows, columns].clone()
            for name, (matrix, rows, columns) in self._places.items()
            if name in self.plan.shapes()
        }

    def without_cells(self) -> None:
        """Close all input gates: the networks are those without cells.

        The states of the cells stay 0, and so do all derivatives by weights from and to them.
        Needs inputs of one 1 at each step, and no biases.
        """
        self.hidden[self._input_gates()] = CLOSED

    def add_cells(self, drawn: Sequence[Mapping[str, Tensor]]) -> None:
        """Open the input gates again, with weights as they were drawn."""
        like = Networks(self.plan, drawn)
        self.hidden[self._input_gates()] = like.hidden[self._input_gates()]

    def _input_gates(self) -> tuple[slice, slice, slice]:
        """Their weights from the inputs."""
        cells, blocks = self.plan.cells, self.plan.blocks
        return slice(None), slice(cells, cells + blocks), slice(self.plan.inputs)

    def only(self, which: Sequence[int]) -> None:
        """Keep these networks, and let go of the others."""
        kept = list(which)
        self.hidden, self.output = self.hidden[kept], self.output[kept]
        self.state = self.state[kept]
        self.by_hidden, self.by_output = self.by_hidden[kept], self.by_output[kept]

    def train(
        self, pools: Sequence[Sequences], rate: float, limit: float = 0.0
    ) -> list[Float[Tensor, "T N O"]]:
        """Train each network on sequences of its own, one after the other.

        The loss is half the squared error, summed over outputs and over the steps at which an
        answer is due; each sequence begins with states of zero.

        Args:
            pools: the sequences of each network, as many for each.
            rate: the learning rate; 0 to look without learning.
            limit: a sequence ends with the first answer that errs by as much; 0 for no such end.

        Returns:
            The answers of each network, each before the step of descent that it led to; zero where
            none is due, or the sequence has ended.
        """
        if library := in_use(self.hidden):
            lessons = [
                self._lesson(which, pool, rate, limit=limit) for which, pool in enumerate(pools)
            ]
            answers, _ = compiled.learn(library, self._compiled_plan(), lessons)
            return answers
        answers = [torch.zeros_like(pool.y) for pool in pools]
        if limit or self.momentum:  # steps at which a network ends, or stands still, are its own
            for which, pool in enumerate(pools):
                for n in range(pool.due.shape[1]):
                    state = torch.zeros_like(self.state[which : which + 1])
                    given, _ = self._alone(which, _only(pool, n), rate, state, limit=limit)
                    answers[which][:, n] = given[:, 0]
            return answers
        for n in range(pools[0].due.shape[1]):
            given = self.learn(_side_by_side([_only(pool, n) for pool in pools]), rate)
            for row, answer in enumerate(answers):
                answer[:, n] = given[: len(answer), row]
        return answers

    def follow(
        self,
        streams: Sequence[Strings],
        rates: Sequence[float],
        decay: float = 1.0,
        limit: float = 0.0,
    ) -> list[int]:
        """Train each network on the next symbols of a stream, from the state that it is in.

        It stops learning after the first step at which some answer is wrong.

        Args:
            streams: one for each network; they may differ in length.
            rates: the learning rates, at the first of these symbols.
            decay: what they are multiplied by after each symbol.
            limit: an answer is wrong if some output errs by as much; if 0, if some symbol that may
                come next is not more active than all that may not.

        Returns:
            The steps before that one; all steps where there is none.
        """
        if library := in_use(self.hidden):
            lessons = [
                self._lesson(which, *each, self.state[which], decay, limit)
                for which, each in enumerate(zip(streams, rates, strict=True))
            ]
            _, before = compiled.learn(library, self._compiled_plan(), lessons)
            return [int(steps) for steps in before]
        return [
            self._alone(which, *each, self.state[which : which + 1], decay, limit)[1]
            for which, each in enumerate(zip(streams, rates, strict=True))
        ]

    def begin(self, which: int) -> None:
        """Set the state of a network to zero, as a new stream begins."""
        self.state[which] = 0

    def answers(self, which: int, sequences: Sequences) -> Float[Tensor, "T N O"]:
        """What one network answers, without learning; zero where no answer is due."""
        if in_use(self.hidden):
            alone = Networks(self.plan, [self.weights(which)])
            return alone.train([sequences], 0.0)[0]
        with torch.no_grad():
            x = sequences.x.to(self.hidden.dtype)
            output = BlockNetwork(self.plan, self.weights(which))(x)
        return torch.where(sequences.due.unsqueeze(2), output, 0.0)

    def learn(self, sequences: Sequences, rate: float) -> Float[Tensor, "T M O"]:
        """The same with operations of torch, on one sequence of each network."""
        return self._pass(sequences, rate, torch.zeros_like(self.state))[0]

    def _alone(
        self,
        which: int,
        sequence: Sequences,
        rate: float,
        state: Float[Tensor, "1 S"],
        decay: float = 1.0,
        limit: float = 0.0,
    ) -> tuple[Float[Tensor, "T 1 O"], int]:
        """The same on the sequence of one network, which ends at the first wrong answer."""
        alone, row = copy(self), slice(which, which + 1)
        for part in ("hidden", "output", "by_hidden", "by_output"):
            setattr(alone, part, getattr(self, part)[row])
        return alone._pass(sequence, rate, state, decay, self._wrong(sequence, limit))

    @staticmethod
    def _wrong(sequence: Sequences, limit: float) -> Callable[[int, Tensor], bool]:
        """Whether the answer of a step is wrong."""
        if limit:
            return lambda k, answer: not bool(((answer - sequence.y[k]).abs() < limit).all())
        if isinstance(sequence, Strings):
            possible = sequence.possible
            return lambda k, answer: not bool(ranked(answer, possible[k]).all())
        return lambda k, answer: False

    def _pass(
        self,
        sequences: Sequences,
        rate: float,
        state: Float[Tensor, "M S"],
        decay: float = 1.0,
        wrong: Callable[[int, Tensor], bool] = lambda k, answer: False,
    ) -> tuple[Float[Tensor, "T M O"], int]:
        """The answers, and how many steps came before a wrong one. The state is replaced."""
        plan, count, one = self.plan, len(self), self.hidden.new_ones(len(self), 1)
        parts, cells, seen = 2 + plan.forget_gates, plan.cells, self.hidden.shape[2]
        c, y, into = torch.split(state, [cells, plan.fed_back, parts * cells * seen], 1)
        into = into.reshape(count, parts, cells, seen).clone()
        begins = sequences.begins if isinstance(sequences, Strings) else None
        hidden, output = torch.zeros_like(self.hidden), torch.zeros_like(self.output)
        if self.momentum:
            hidden, output = self.by_hidden, self.by_output
        answers, before = torch.zeros_like(sequences.y), len(sequences.y)
        for k, answering in enumerate(sequences.due.any(1).tolist()):
            x, due = sequences.x[k], sequences.due[k].unsqueeze(1)
            if begins is not None and bool(begins[k]):
                c, y, into = torch.zeros_like(c), torch.zeros_like(y), torch.zeros_like(into)
            m = torch.cat((x, y, one), 1)
            see = m.view(count, 1, 1, -1)
            net = (self.hidden[:, :, : m.shape[1]] @ m.unsqueeze(2)).squeeze(2)
            if plan.peepholes:  # the last number that a gate sees is the state of its cell
                by_c = self.hidden[:, :, -1]
                closed = torch.zeros_like(c)
                net = net + by_c * torch.cat((closed, c, c, closed), 1)
                states = torch.stack((closed, c, c), 1).unsqueeze(3)
                see = torch.cat((see.expand(-1, parts, cells, -1), states), 3)
            z, z_slope = squash(plan.cell_input, net[:, :cells])
            gates, gate_slopes = squash("[0, 1]", net[:, cells:])
            i, i_slope = self._of_cells("input", gates, gate_slopes)
            added = [i * z_slope, i_slope * z]
            if plan.forget_gates:
                f, f_slope = self._of_cells("forget", gates, gate_slopes)
                added.append(f_slope * c)
                into *= f.view(count, 1, -1, 1)
                c = f * c
            into.addcmul_(torch.stack(added, 1).unsqueeze(3), see)
            c = c + i * z
            if plan.peepholes:
                net = net + by_c * torch.cat((closed, closed, closed, c), 1)
                gates, gate_slopes = squash("[0, 1]", net[:, cells:])
            o, o_slope = self._of_cells("output", gates, gate_slopes)
            squashed, slope = squash(plan.cell_output, c)
            h = o * squashed
            y = torch.cat((h, gates), 1)[:, : plan.fed_back]
            if not answering:
                continue
            shown = torch.cat((h, x, one), 1)
            answer_net = (self.output @ shown.unsqueeze(2)).squeeze(2)
            answer, answer_slope = squash(plan.output, answer_net)
            answers[k] = answer * due
            delta = (sequences.y[k] - answer) * due * answer_slope
            if self.each_step:
                hidden *= self.momentum
                output *= self.momentum
            output += delta.unsqueeze(2) * shown.unsqueeze(1)
            back = (delta.unsqueeze(1) @ self.output[:, :, :cells]).squeeze(1)
            came = (back * o * slope).view(count, 1, -1, 1) * into
            self._add(hidden, "cells", came[:, 0])
            self._add(hidden, "input", came[:, 1])
            if plan.forget_gates:
                self._add(hidden, "forget", came[:, 2])
            if plan.output_gates:
                seen_by_o = m.unsqueeze(1)
                if plan.peepholes:
                    seen_by_o = torch.cat((seen_by_o.expand(-1, cells, -1), c.unsqueeze(2)), 2)
                opened = (back * squashed * o_slope).unsqueeze(2) * seen_by_o
                self._add(hidden, "output", opened)
            if self.each_step:
                self._descend(rate * decay**k, hidden, output)
            if wrong(k, answer):
                before = k
                break
        if not self.each_step:
            self._descend(rate, hidden, output)
        state.copy_(torch.cat((c, y, into.flatten(1)), 1))
        return answers, before

    def _descend(self, rate: float, hidden: Tensor, output: Tensor) -> None:
        """A step against the gradients."""
        self.hidden += rate * hidden * self._free["hidden"]
        self.output += rate * output * self._free["output"]

    def _of_cells(self, gate: str, gates: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """A gate's value and slope for each cell of its block; 1 and 0 without that gate."""
        if gate not in self._columns:
            one = gates.new_ones(1, 1)
            return one, 0 * one
        return gates[:, self._columns[gate]], slopes[:, self._columns[gate]]

    def _add(self, hidden: Tensor, units: str, of_cells: Float[Tensor, "M H D"]) -> None:
        """Add what each cell gives to the weights of its cell input, or of a gate of its block."""
        plan = self.plan
        if units == "cells":
            hidden[:, : plan.cells] += of_cells
            return
        first = plan.cells + plan.gates.index(units) * plan.blocks
        of_blocks = of_cells.view(len(self), plan.blocks, plan.size, -1).sum(2)
        hidden[:, first : first + plan.blocks] += of_blocks

    def _compiled_plan(self) -> compiled.Plan:
        plan = self.plan
        return compiled.Plan(
            plan.inputs,
            plan.outputs,
            plan.blocks,
            plan.size,
            plan.gates,
            plan.fed_back,
            plan.skip,
            BIASED[plan.biased],
            plan.cell_input,
            plan.cell_output,
            plan.output,
            self.each_step,
            plan.peepholes,
        )

    def _lesson(
        self,
        which: int,
        sequences: Sequences,
        rate: float,
        state: Tensor | None = None,
        decay: float = 1.0,
        limit: float = 0.0,
    ) -> compiled.Lesson:
        read = sequences.read
        strings = sequences if isinstance(sequences, Strings) and state is not None else None
        return compiled.Lesson(
            self.hidden[which],
            self.output[which],
            read.numbers if isinstance(read, Symbols) else read,
            sequences.y,
            sequences.due,
            sequences.lengths,
            rate,
            strings.possible if strings and not limit else None,
            state,
            decay,
            self.momentum,
            self.by_hidden[which] if self.momentum else None,
            self.by_output[which] if self.momentum else None,
            limit,
            strings.begins if strings else None,
        )


def _only(pool: Sequences, n: int) -> Sequences:
    """One of some sequences."""
    some = slice(n, n + 1)
    return Sequences(pool.x[:, some], pool.y[:, some], pool.due[:, some], pool.lengths[some])


def _side_by_side(some: Sequence[Sequences]) -> Sequences:
    """Single sequences as one pool, padded with zeros."""
    x, y, due = (
        pad_sequence([getattr(each, part)[:, 0] for each in some]) for part in ("x", "y", "due")
    )
    return Sequences(x, y, due, torch.cat([each.lengths for each in some]))
