"""The training of 1997: on line, by the truncated gradient, many independent networks at once.

No error flows back in time but through the carousel, so that all a later error needs of the past is
the derivative of each cell's state by the weights that fed it. Hochreiter and Schmidhuber (1997,
equations 25 to 28) and Gers, Schmidhuber and Cummins (2000) carry it forwards:

    d c_t / d w_cell  =  f d c_{t-1} / d w_cell  +  i  g' m
    d c_t / d w_in    =  f d c_{t-1} / d w_in    +  i' g  m
    d c_t / d w_f     =  f d c_{t-1} / d w_f     +  f' c_{t-1} m

where m is what the hidden units see: the input, what is fed back, and 1 for a bias. The cost of a
step does not grow with the length of the sequence.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.tasks.blocks import Blocks, squash
from retrograde.tasks.task import Sequences


class Networks:
    """M networks of one plan, each with weights and sequences of its own.

    Args:
        plan: of all of them.
        drawn: the weights of each network, by name.

    Attributes:
        hidden: the weights of the hidden units, [M, U, D]: from the inputs, from what is fed back,
            and the biases.
        output: those of the outputs, [M, O, H + I + 1]: from cells, inputs, and the biases.

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

    def __init__(self, plan: Blocks, drawn: Sequence[Mapping[str, Tensor]]):
        self.plan = plan
        cells, gates, inputs = plan.cells, plan.blocks * len(plan.gates), plan.inputs
        count, like = len(drawn), drawn[0]["weight_ih"]
        self.hidden = like.new_zeros(count, cells + gates, inputs + plan.fed_back + 1)
        self.output = like.new_zeros(count, plan.outputs, cells + inputs + 1)
        self._free = {"hidden": self.hidden[0].bool(), "output": self.output[0].bool()}
        self._places: dict[str, tuple[str, slice, slice | int]] = {
            "weight_ih": ("hidden", slice(None), slice(inputs)),
            "weight_hh": ("hidden", slice(None), slice(inputs, -1)),
            "bias_cells": ("hidden", slice(cells), -1),
            "bias_gates": ("hidden", slice(cells, None), -1),
            "weight_ho": ("output", slice(None), slice(cells)),
            "weight_io": ("output", slice(None), slice(cells, -1)),
            "bias_o": ("output", slice(None), -1),
        }
        for name in plan.shapes():
            matrix, rows, columns = self._places[name]
            getattr(self, matrix)[:, rows, columns] = torch.stack([each[name] for each in drawn])
            self._free[matrix][rows, columns] = True
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

    def only(self, which: Sequence[int]) -> None:
        """Keep these networks, and let go of the others."""
        self.hidden, self.output = self.hidden[list(which)], self.output[list(which)]

    def learn(self, sequences: Sequences, rate: float) -> Float[Tensor, "T M O"]:
        """One step of gradient descent of each network on a sequence of its own.

        The loss is half the squared error, summed over outputs and over the steps at which an
        answer is due.

        Args:
            sequences: as many as there are networks.
            rate: the learning rate; 0 to look without learning.

        Returns:
            The answers before the step, zero where none is due.
        """
        plan, count, one = self.plan, len(self), self.hidden.new_ones(len(self), 1)
        c, y = one.new_zeros(count, plan.cells), one.new_zeros(count, plan.fed_back)
        into = one.new_zeros(count, 2 + plan.forget_gates, plan.cells, self.hidden.shape[2])
        hidden, output = torch.zeros_like(self.hidden), torch.zeros_like(self.output)
        answers = torch.zeros_like(sequences.y)
        for k, answering in enumerate(sequences.due.any(1).tolist()):
            x, due = sequences.x[k], sequences.due[k].unsqueeze(1)
            m = torch.cat((x, y, one), 1)
            net = (self.hidden @ m.unsqueeze(2)).squeeze(2)
            z, z_slope = squash(plan.cell_input, net[:, : plan.cells])
            gates, gate_slopes = squash("[0, 1]", net[:, plan.cells :])
            i, i_slope = self._of_cells("input", gates, gate_slopes)
            o, o_slope = self._of_cells("output", gates, gate_slopes)
            parts = [i * z_slope, i_slope * z]
            if plan.forget_gates:
                f, f_slope = self._of_cells("forget", gates, gate_slopes)
                parts.append(f_slope * c)
                into *= f.view(count, 1, -1, 1)
                c = f * c
            into.addcmul_(torch.stack(parts, 1).unsqueeze(3), m.view(count, 1, 1, -1))
            c = c + i * z
            squashed, slope = squash(plan.cell_output, c)
            h = o * squashed
            y = torch.cat((h, gates), 1)[:, : plan.fed_back]
            if not answering:
                continue
            shown = torch.cat((h, x, one), 1)
            answer, answer_slope = squash("[0, 1]", (self.output @ shown.unsqueeze(2)).squeeze(2))
            answers[k] = answer * due
            delta = (sequences.y[k] - answer) * due * answer_slope
            output += delta.unsqueeze(2) * shown.unsqueeze(1)
            back = (delta.unsqueeze(1) @ self.output[:, :, : plan.cells]).squeeze(1)
            came = (back * o * slope).view(count, 1, -1, 1) * into
            self._add(hidden, "cells", came[:, 0])
            self._add(hidden, "input", came[:, 1])
            if plan.forget_gates:
                self._add(hidden, "forget", came[:, 2])
            if plan.output_gates:
                opened = (back * squashed * o_slope).unsqueeze(2) * m.unsqueeze(1)
                self._add(hidden, "output", opened)
        self.hidden += rate * hidden * self._free["hidden"]
        self.output += rate * output * self._free["output"]
        return answers

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
