"""The long short-term memory, every generation of it: one cell, and a table of what each has.

References: the papers of generations.py. The equations with everything switched on are those of
Klaus Greff et al., "LSTM: A Search Space Odyssey" (2017), sections II-A and II-B.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractLayer, CellStep, affine, plus_product
from retrograde.cells.edges import Diagonal, Edge, Use, weights
from retrograde.cells.gates import ACTIVATIONS, CONSTANT, SIGMOID, Gate, with_role
from retrograde.cells.generations import SIGMOID_GATES, Generation, generation
from retrograde.cells.graph import Graph
from retrograde.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class LSTM(AbstractLayer):
    """An LSTM of any generation, gates in torch's order i, f, g, o and state s = (h, c).

        a_k = W x_k + b_ih + R h_{k-1} + b_hh           (and + R_gg (i, f, o)_{k-1} for i, f, o)
        i = sigma(a_i + p_i * c_{k-1})                  f = sigma(a_f + p_f * c_{k-1})
        c_k = f * c_{k-1} + i * g(a_g)
        o = sigma(a_o + p_o * c_k)                      h_k = o * h(c_k)

    A generation that lacks a gate has 1 in its place (f = 1 - i where they are coupled); one
    without peepholes has p = 0. With gate recurrence the state is s = (h, c, i, f, o).

    Args:
        weight_ih: W, shape [G*H, I] for the G gates of the generation.
        weight_hh: R, shape [G*H, H].
        bias_ih: b_ih, shape [G*H], or None.
        bias_hh: b_hh, shape [G*H], or None.
        weight_ch: the peepholes p_i, p_f, p_o of the gates there are, one after the other.
        weight_gg: R_gg, shape [3H, 3H], gates i, f, o in rows and columns.
        generation: a name in `retrograde.cells.generations`.

    Raises:
        ArgumentError: for an unknown generation, or weights that do not fit it.

    Example:
        >>> import torch
        >>> from retrograde.cells import LSTM
        >>> cell = LSTM(torch.zeros(8, 3), torch.zeros(8, 2))
        >>> cell.step(torch.zeros(3), torch.tensor([0.0, 0.0, 1.0, -2.0])).state[2:]  # c halves
        tensor([ 0.5000, -1.0000])
    """

    weight_ih: Float[Tensor, "..."]
    weight_hh: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None = None
    bias_hh: Float[Tensor, "..."] | None = None
    weight_ch: Float[Tensor, "..."] | None = None
    weight_gg: Float[Tensor, "..."] | None = None
    generation: str = "lstm-2000"

    def __post_init__(self) -> None:
        extra = [
            name
            for name in ("weight_ch", "weight_gg")
            if getattr(self, name) is not None and name not in self.shapes(1, 1)
        ]
        if extra:
            raise ArgumentError(
                f"weights that generation {self.generation!r} does not have: {', '.join(extra)}"
            )
        self.check()

    @cached_property
    def kind(self) -> Generation:
        """The row of the table that this cell is."""
        return generation(self.generation)

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        return self.kind.blocks

    @cached_property
    def activations(self) -> tuple[Gate, ...]:
        forget = Gate("forget", SIGMOID if self.kind.coupled else CONSTANT, "forget", keeps="c")
        without = () if with_role(self.gates, "forget") else (forget,)  # f = 1 - i, or f = 1
        squashed = Gate("squashed", ACTIVATIONS[self.kind.state_activation], "state")
        return (*self.gates, *without, squashed)

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return self.kind.shapes(inputs, hidden)

    @cached_property
    def slots(self) -> Mapping[str, slice]:
        names = ("h", "c", "i", "f", "o") if self.kind.gate_recurrence else ("h", "c")
        size = self.hidden_size
        return {name: slice(n * size, (n + 1) * size) for n, name in enumerate(names)}

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        kind = self.kind
        h, c_previous, *before = state.chunk(len(self.slots), -1)
        a = plus_product(projected, h, self.weight_hh)
        into = dict(zip(self.kind.gates, a.chunk(len(self.kind.gates), -1), strict=True))
        if self.weight_gg is not None:
            seen = affine(torch.cat(before, -1), self.weight_gg, None).chunk(3, -1)
            for name, part in zip(SIGMOID_GATES, seen, strict=True):
                into[name] = into[name] + part
        p = self._peepholes

        def gate(name: str, c: Tensor) -> Tensor:
            if name not in into:
                return torch.ones_like(c)
            if name not in p:
                return into[name].sigmoid()
            return torch.addcmul(into[name], p[name], c).sigmoid_()

        i = gate("input", c_previous)
        f = 1 - i if kind.coupled else gate("forget", c_previous)
        g = ACTIVATIONS[kind.cell_activation].function(into["cell"])
        c = torch.addcmul(i * g, f, c_previous)
        o = gate("output", c)
        y = ACTIVATIONS[kind.state_activation].function(c)
        new = (o * y, c, i, f, o) if kind.gate_recurrence else (o * y, c)
        activations = {"input": i, "forget": f, "cell": g, "output": o, "squashed": y}
        return CellStep(x, state, torch.cat(new, -1), activations)

    def linearise(self, step: CellStep) -> Graph:
        """The deltas of Greff et al. (2017), section II-B; ' is the slope of an activation.

            da_o = dh h(c) o'       dc <- dc + dh o h'(c) + p_o da_o
            da_i = dc g i'          da_f = dc c_{k-1} f'          da_g = dc i g'
            dh_{k-1} = R^T da       dc_{k-1} = dc f + p_i da_i + p_f da_f

        Where f = 1 - i, da_i = dc (g - c_{k-1}) i'. Where the gates are part of the state, what
        arrives at i, f and o from later steps is added before its slope is multiplied.
        """
        kind, slots = self.kind, self.slots
        i, f, g, o, y = step.activations.values()
        c_previous, c = step.previous[..., slots["c"]], step.state[..., slots["c"]]
        c_by = {"input": g - c_previous if kind.coupled else g, "forget": c_previous, "cell": i}
        phi = {g.name: g.activation for g in self.activations if g.activation is not None}
        letter = {"input": "i", "forget": "f", "output": "o"} if kind.gate_recurrence else {}

        def through(gate: str, target: str, by: Tensor) -> list[Edge]:
            """From a pre-activation by way of its gate, which may be part of the state itself."""
            if gate not in kind.gates:
                return []
            gated = step.activations[gate]
            if gate not in letter:
                return [Diagonal(f"a.{gate}", target, phi[gate].times_slope(by, gated))]
            value = letter[gate]
            return [
                Diagonal(f"a.{gate}", value, phi[gate].derivative(gated)),
                Diagonal(value, value + "+"),
                Diagonal(value, target, by),
            ]

        def peephole(gate: str, source: str, seen: Tensor) -> list[Edge]:
            if gate not in kind.peephole_gates:
                return []
            number, size = kind.peephole_gates.index(gate), self.hidden_size
            rows = slice(number * size, (number + 1) * size)
            use = Use("weight_ch", rows, seen, diagonal=True)
            return [Diagonal(source, f"a.{gate}", self._peepholes[gate], f"peephole.{gate}", use)]

        edges = [
            *self.affine_edges(step, [f"recurrent.{gate}" for gate in kind.gates]),
            *self._between_gates(step),
            Diagonal("c-", "c", f, "carousel"),
            *peephole("input", "c-", c_previous),
            *peephole("forget", "c-", c_previous),
            *(edge for gate, by in c_by.items() for edge in through(gate, "c", by)),
            Diagonal("c", "c+"),
            Diagonal("c", "h+", phi["squashed"].times_slope(o, y), "readout"),
            *peephole("output", "c", c),
            *through("output", "h+", y),
        ]
        graph = self.graph(*edges)
        if not kind.gate_recurrence:
            return graph
        before = {"h-": slots["h"], "c-": slots["c"], "gates-": self._gates_before}
        return replace(graph, before=before)

    @property
    def _gates_before(self) -> slice:
        """The part of the state that holds i, f and o."""
        return slice(self.slots["i"].start, self.slots["o"].stop)

    def _between_gates(self, step: CellStep) -> list[Edge]:
        """R_gg (i, f, o)_{k-1}."""
        if self.weight_gg is None:
            return []
        nodes = tuple(f"a.{gate}" for gate in SIGMOID_GATES)
        routes = tuple(f"recurrent.gates.{gate}" for gate in SIGMOID_GATES)
        before = step.previous[..., self._gates_before]
        return weights("weight_gg", self.weight_gg, "gates-", nodes, before, routes)

    @property
    def _peepholes(self) -> dict[str, Tensor]:
        """p of each gate that has one."""
        if self.weight_ch is None:
            return {}
        gates = self.kind.peephole_gates
        return dict(zip(gates, self.weight_ch.chunk(len(gates)), strict=True))
