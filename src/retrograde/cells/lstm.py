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
from retrograde.cells.base import (
    AbstractLayer,
    CellAdjoint,
    CellStep,
    Edge,
    Elementwise,
    GateAdjoint,
    Product,
    Use,
    affine,
    new_rows,
    plus_product,
)
from retrograde.cells.gates import ACTIVATIONS, LSTM_GATES, SIGMOID, Gate, with_role
from retrograde.cells.generations import SIGMOID_GATES, Generation, generation
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
        candidate = Gate("cell", ACTIVATIONS[self.kind.cell_squashing], "candidate")
        every = (candidate if gate.role == "candidate" else gate for gate in LSTM_GATES)
        return tuple(gate for gate in every if gate.name in self.kind.gates)

    @cached_property
    def activations(self) -> tuple[Gate, ...]:
        forget = Gate("forget", SIGMOID if self.kind.coupled else None, "forget", keeps="c")
        without = () if with_role(self.gates, "forget") else (forget,)  # f = 1 - i, or f = 1
        squashed = Gate("squashed", ACTIVATIONS[self.kind.state_squashing], "state")
        return (*self.gates, *without, squashed)

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return self.kind.shapes(inputs, hidden)

    @cached_property
    def slots(self) -> Mapping[str, slice]:
        names = ("h", "c", "i", "f", "o") if self.kind.gate_recurrence else ("h", "c")
        size = self.hidden_size
        return {name: slice(n * size, (n + 1) * size) for n, name in enumerate(names)}

    @cached_property
    def recurrent_routes(self) -> tuple[str, ...]:
        through_h = tuple(f"recurrent.{gate}" for gate in self.kind.gates)
        through_gates = SIGMOID_GATES if self.kind.gate_recurrence else ()
        return through_h + tuple(f"recurrent.gates.{gate}" for gate in through_gates)

    @cached_property
    def routes(self) -> tuple[str, ...]:
        seen = [f"peephole.{gate}" for gate in self.kind.peephole_gates if gate != "output"]
        return (*self.recurrent_routes, "carousel", *seen)

    @property
    def inner_routes(self) -> tuple[str, ...]:
        sees_new_c = "output" in self.kind.peephole_gates
        return ("readout", "peephole.output") if sees_new_c else ("readout",)

    @property
    def adjoint_order(self) -> tuple[tuple[str, ...], ...]:
        if "output" not in self.kind.peephole_gates:
            return (self.kind.gates,)
        return ("output",), tuple(gate for gate in self.kind.gates if gate != "output")

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        others = {"weight_ch": self.kind.peephole_gates, "weight_gg": SIGMOID_GATES}
        return others.get(parameter, self.kind.gates)

    def project(self, x: Input) -> Projected:
        return affine(x, self.weight_ih, self.both_biases)

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
        g = ACTIVATIONS[kind.cell_squashing].function(into["cell"])
        c = torch.addcmul(i * g, f, c_previous)
        o = gate("output", c)
        y = ACTIVATIONS[kind.state_squashing].function(c)
        new = (o * y, c, i, f, o) if kind.gate_recurrence else (o * y, c)
        activations = {"input": i, "forget": f, "cell": g, "output": o, "squashed": y}
        return CellStep(x, state, torch.cat(new, -1), activations)

    def linearise(self, step: CellStep, cut: frozenset[str] = frozenset()) -> CellStep:
        kind, p = self.kind, self._peepholes
        i, f, g, o, y = step.activations.values()
        c_previous, c = step.previous[..., self.slots["c"]], step.state[..., self.slots["c"]]
        i_by_a, f_by_a = step.slope("input", i * (1 - i)), step.slope("forget", f * (1 - f))
        g_by_a = step.slope("cell", ACTIVATIONS[kind.cell_squashing].derivative(g))
        o_by_a = step.slope("output", o * (1 - o))
        y_by_c = ACTIVATIONS[kind.state_squashing].derivative(y)
        c_by_i = g - c_previous if kind.coupled else g

        # The adjoint of each a is that of its source times a factor. The gates lie inside the step,
        # so that their source is c or h, unless they are part of the state themselves.
        if kind.gate_recurrence:
            a_by = {"input": ("i", i_by_a), "forget": ("f", f_by_a), "output": ("o", o_by_a)}
        else:
            a_by = {"input": ("c", c_by_i * i_by_a), "forget": ("c", c_previous * f_by_a)}
            a_by["output"] = ("h", y * o_by_a)
        a_by["cell"] = ("c", i * g_by_a)
        through = {f"peephole.{gate}": p[gate] * a_by[gate][1] for gate in p}
        into_c = {"h": {"readout": o * y_by_c}}
        if "output" in p:
            seeing = into_c.setdefault(a_by["output"][0], {})
            seeing["peephole.output"] = through.pop("peephole.output")

        derivatives = {"carousel": f, **through}
        if through and not kind.gate_recurrence:  # side by side with the carousel
            derivatives["c by c"] = sum(through.values(), f)
        for source, parts in into_c.items():
            kept = [part for route, part in parts.items() if route not in cut]
            derivatives[f"{source} by c"] = sum(kept[1:], kept[0]) if kept else torch.zeros_like(c)
        for source in ("i", "f", "c", "h", "o"):
            gates = [gate for gate in self.kind.gates if a_by[gate][0] == source]
            if gates:
                derivatives[f"a by {source}"] = torch.stack([a_by[g][1] for g in gates], -2)
            seen = [a_by[g][1] * (c if g == "output" else c_previous) for g in gates if g in p]
            if seen:
                derivatives[f"p by {source}"] = torch.stack(seen, -2)
        if kind.gate_recurrence:
            derivatives |= {"c by i": c_by_i, "c by f": c_previous, "h by o": y}
        return replace(step, derivatives=derivatives)

    def pull_back(self, step: CellStep, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
        """The deltas of Greff et al. (2017), section II-B; ' is the slope of a squashing function.

            da_o = dh h(c) o'       dc <- dc + dh o h'(c) + p_o da_o
            da_i = dc g i'          da_f = dc c_{k-1} f'          da_g = dc i g'
            dh_{k-1} = R^T da       dc_{k-1} = dc f + p_i da_i + p_f da_f

        Where f = 1 - i, da_i = dc (g - c_{k-1}) i'. Where the gates are part of the state, what
        arrives at i, f and o from later steps is added before its slope is multiplied.
        """
        by = step.derivatives
        dh, dc, *to_gates = delta.chunk(len(self.slots), -1)

        dc = torch.addcmul(dc, dh, by["h by c"], out=new_rows(delta, *dh.shape))
        sources = {"c": dc, "h": dh}
        if to_gates:
            di, df, do = to_gates
            do = torch.addcmul(do, dh, by["h by o"])
            dc.addcmul_(do, by["o by c"])
            di, df = torch.addcmul(di, dc, by["c by i"]), torch.addcmul(df, dc, by["c by f"])
            sources = {"i": di, "f": df, "c": dc, "o": do}

        def adjoint(of: str, *among: str) -> GateAdjoint:
            present = [name for name in among or sources if f"{of} by {name}" in by]
            return GateAdjoint(tuple((sources[name], by[f"{of} by {name}"]) for name in present))

        da = adjoint("a")
        edges: list[Edge] = [
            Product(
                self.recurrent_routes[: len(self.kind.gates)], da, self.weight_hh, self.slots["h"]
            )
        ]
        if self.weight_gg is not None:
            before = slice(self.slots["i"].start, self.slots["o"].stop)
            da_gates = adjoint("a", "i", "f", "o")
            routes = self.recurrent_routes[len(self.kind.gates) :]
            edges.append(Product(routes, da_gates, self.weight_gg, before))

        def uses() -> dict[str, tuple[Use, ...]]:
            found = self.uses(step, da, da)
            if self.weight_gg is not None:
                found["weight_gg"] = (Use(da_gates, step.previous[..., before]),)
            if self.weight_ch is not None:
                found["weight_ch"] = (Use(adjoint("p"), None),)
            return found

        kept, slot = self.routes[len(self.recurrent_routes) :], self.slots["c"]
        if "c by c" in by:
            factors = tuple(by[route] for route in kept)
            edges.append(Elementwise(kept, dc, by["c by c"], slot, factors))
        else:
            into = {"peephole.input": sources.get("i", dc), "peephole.forget": sources.get("f", dc)}
            for route in kept:
                edges.append(Elementwise((route,), into.get(route, dc), by[route], slot))
        return CellAdjoint(
            edges=tuple(edges),
            to_input=Product(("input",), da, self.weight_ih, slice(0, self.input_size)),
            find_uses=uses,
            like=delta,
        )

    @property
    def _peepholes(self) -> dict[str, Tensor]:
        """p of each gate that has one."""
        if self.weight_ch is None:
            return {}
        gates = self.kind.peephole_gates
        return dict(zip(gates, self.weight_ch.chunk(len(gates)), strict=True))
