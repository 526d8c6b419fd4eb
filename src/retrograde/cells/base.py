"""What a recurrence is to the rest of the package: one step, and the pull-back of that step.

A cell knows no time. `step` maps (x_k, s_{k-1}) to s_k; `linearise` adds the derivatives of its
pointwise functions; `pull_back` maps adjoints of s_k to those of the pre-activations, of x_k and of
s_{k-1}. The adjoint of s_{k-1} is never written out twice: a cell names the *edges* that lead from
step k back to step k-1, and both the sum over them and the split by route are read off that list.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde._types import Input, Projected, State
from retrograde.cells.gates import Gate
from retrograde.errors import ArgumentError

FEW_ROWS = 32
"""From so many rows on, a Jacobian formed once for each sample pays for itself."""


@dataclass(frozen=True)
class Factors:
    """What a clipping policy multiplies the adjoints of one step by, or of many along a first axis.

    `here` holds the factor of the adjoint of each pre-activation by gate ([*L, H]), that of the
    whole state as "state" and that of all that goes back through recurrent weights as "recurrent"
    ([*L, 1]), as far as the policy acts there; `layers` those of a stack's layers.
    """

    here: Mapping[str, Float[Tensor, "*L _"]] = field(default_factory=dict)
    layers: "tuple[Factors, ...]" = ()

    @staticmethod
    def stack(steps: "Sequence[Factors]") -> "Factors":
        """Those of many steps as one with a leading axis.

        Raises:
            ArgumentError: if the policy acted at some of the steps only.
        """
        if any(step.here.keys() != steps[0].here.keys() for step in steps):
            raise ArgumentError(
                "a policy gave factors at some steps and None at others; where nothing is to be "
                "clipped the factors are ones"
            )
        here = {name: torch.stack([step.here[name] for step in steps]) for name in steps[0].here}
        layers = zip(*(step.layers for step in steps), strict=True)
        return Factors(here, tuple(map(Factors.stack, layers)))


@dataclass(frozen=True)
class _At(Mapping[str, Tensor]):
    """The activations of many steps at one of them; a pull-back hardly ever asks for any."""

    many: Mapping[str, Tensor]
    step: int

    def __getitem__(self, name: str) -> Tensor:
        return self.many[name][self.step]

    def __iter__(self) -> Iterator[str]:
        return iter(self.many)

    def __len__(self) -> int:
        return len(self.many)


@dataclass(frozen=True)
class CellStep:
    """One step of a cell (or, with a leading axis, many): what the pull-back needs to know.

    `activations` holds the gates and squashed values by name; `derivatives` the pointwise factors
    that `linearise` derives from them ([*L, H], or [*L, G, H] for several gates); `layers` the
    steps of a stack's layers, none for a plain cell; `factors` those of a clipping policy, which
    chooses them from what is left of a step with some edges inside it `cut`.
    """

    x: Float[Tensor, "*L I"]
    previous: Float[Tensor, "*L S"]
    state: Float[Tensor, "*L S"]
    activations: Mapping[str, Float[Tensor, "*L H"]] = field(default_factory=dict)
    derivatives: Mapping[str, Float[Tensor, "..."]] = field(default_factory=dict)
    layers: "tuple[CellStep, ...]" = ()
    factors: Mapping[str, Float[Tensor, "*L _"]] = field(default_factory=dict)
    cut: frozenset[str] = frozenset()

    def unbind(self) -> "list[CellStep]":
        """The single steps along the leading axis."""

        def by_name(named: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
            columns = [value.unbind() for value in named.values()]
            return (dict(zip(named, row, strict=True)) for row in zip(*columns, strict=True))

        count = self.x.shape[0]
        layers = zip(*(layer.unbind() for layer in self.layers), strict=True)
        return [
            CellStep(*parts)
            for parts in zip(
                self.x.unbind(),
                self.previous.unbind(),
                self.state.unbind(),
                [_At(self.activations, step) for step in range(count)],
                by_name(self.derivatives) if self.derivatives else [{}] * count,
                layers if self.layers else [()] * count,
                by_name(self.factors) if self.factors else [{}] * count,
                [self.cut] * count,
                strict=True,
            )
        ]

    def clipped(self, factors: Factors) -> "CellStep":
        """The step with the factors of a clipping policy; to be linearised after."""
        pairs = zip(self.layers, factors.layers, strict=True)
        layers = tuple(layer.clipped(own) for layer, own in pairs)
        return replace(self, factors=factors.here, layers=layers)

    def slope(self, gate: str, by_a: Float[Tensor, "*L H"]) -> Float[Tensor, "*L H"]:
        """The slope of a gate's squashing function, times the factor of its adjoint if clipped."""
        factor = self.factors.get(gate)
        return by_a if factor is None else by_a * factor

    @staticmethod
    def stack(
        steps: "Sequence[CellStep]",
        x: Float[Tensor, "K *L I"],
        previous: Float[Tensor, "K *L S"],
        state: Float[Tensor, "K *L S"],
    ) -> "CellStep":
        """Many steps as one with a further leading axis; inputs and states are there already."""

        def of_layer(layer: "Sequence[CellStep]") -> CellStep:
            columns = ([s.x for s in layer], [s.previous for s in layer], [s.state for s in layer])
            return CellStep.stack(layer, *map(torch.stack, columns))

        activations = {
            name: torch.stack([step.activations[name] for step in steps])
            for name in steps[0].activations
        }
        layers = zip(*(step.layers for step in steps), strict=True)
        return CellStep(x, previous, state, activations, layers=tuple(map(of_layer, layers)))

    def between(self, start: int, stop: int) -> "CellStep":
        """Steps start..stop-1 of many."""
        return self._each(lambda value: value[start:stop])

    def merged(self) -> "CellStep":
        """The first two leading axes as one: many steps as if they were samples of one step."""
        return self._each(lambda value: value.flatten(0, 1))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "CellStep":
        """The same with all tensors changed in the same way."""

        def by_name(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: change(value) for name, value in named.items()}

        return CellStep(
            change(self.x),
            change(self.previous),
            change(self.state),
            by_name(self.activations),
            by_name(self.derivatives),
            tuple(layer._each(change) for layer in self.layers),
            by_name(self.factors),
            self.cut,
        )


@dataclass(frozen=True, eq=False)
class GateAdjoint:
    """Adjoints of the pre-activations of all gates, not multiplied out: da_g = source * factor_g.

    `parts` holds (source [N, B, H], factor [B, G, H]) with the gates in order over all parts.
    Many rows share the factors, so that most questions cost less when they are put this way.
    """

    parts: tuple[tuple[Float[Tensor, "N B H"], Float[Tensor, "B _ H"]], ...]

    @cached_property
    def gates(self) -> int:
        return sum(factor.shape[-2] for _, factor in self.parts)

    @property
    def batch(self) -> int:
        return self.parts[0][0].shape[1]

    @property
    def size(self) -> int:
        """P, the number of pre-activations."""
        return self.gates * self.parts[0][1].shape[-1]

    @cached_property
    def dense(self) -> Float[Tensor, "N B P"]:
        """da itself, the gates side by side."""
        source = self.parts[0][0]
        da = new_rows(source, len(source), self.batch, self.size)
        gates, first = da.view(*da.shape[:-1], self.gates, -1), 0
        for source, factor in self.parts:
            last = first + factor.shape[-2]
            torch.mul(source.unsqueeze(-2), factor, out=gates[..., first:last, :])
            first = last
        return da

    def times(self, each: Float[Tensor, "B 1"]) -> "GateAdjoint":
        """All of it multiplied by a factor for each sample."""
        parts = ((source, factor * each.unsqueeze(-1)) for source, factor in self.parts)
        return GateAdjoint(tuple(parts))

    def gate(self, number: int) -> "GateAdjoint":
        """The adjoint of one gate alone."""
        for source, factor in self.parts:
            if number < factor.shape[-2]:
                return GateAdjoint(((source, factor[:, number : number + 1]),))
            number -= factor.shape[-2]
        raise IndexError(number)

    def inner(self, others: Float[Tensor, "K B P"]) -> Float[Tensor, "N K"]:
        """<da, other> over batch and gates, for K others: <source, sum_g factor_g other_g>."""
        gates = others.unflatten(-1, (self.gates, -1))  # type: ignore[no-untyped-call]
        inner, first = [], 0
        for source, factor in self.parts:
            last = first + factor.shape[-2]
            towards = (factor * gates[..., first:last, :]).sum(-2)
            inner.append(source.flatten(1) @ towards.flatten(1).T)
            first = last
        return torch.stack(inner).sum(0)

    def product(
        self, weight: Float[Tensor, "P M"], out: Float[Tensor, "N B M"], add: bool = False
    ) -> None:
        """da @ weight, written to `out` or added to it.

        Few rows go through the weights one gate after the other. For many, sum_g diag(factor_g) W_g
        is formed once for each sample: it is that sample's Jacobian, and every row is multiplied
        by it alone, in 1/G of the operations.
        """
        if len(out) < FEW_ROWS or self.gates == len(self.parts):
            out.flatten(0, 1).addmm_(self.dense.flatten(0, 1), weight, beta=int(add))
            return
        by_sample, first = new_samples(out), 0
        for source, factor in self.parts:
            blocks = weight.view(self.gates, -1, weight.shape[1])[first : first + factor.shape[-2]]
            factors = factor.unsqueeze(-1)
            jacobian = factors[:, 0] * blocks[0]
            for gate in range(1, len(blocks)):
                jacobian.addcmul_(factors[:, gate], blocks[gate])
            by_sample.baddbmm_(source.transpose(0, 1), jacobian, beta=int(first > 0))
            first += factor.shape[-2]
        write(by_sample.transpose(0, 1), out, add)


@dataclass(frozen=True, eq=False)
class Product:
    """An edge through a weight matrix: `adjoint @ weight`, given to `slot` of the previous state.

    `routes` names one route for each gate, that is for each equal block of rows of the weight.
    """

    routes: tuple[str, ...]
    adjoint: GateAdjoint
    weight: Float[Tensor, "P M"]
    slot: slice

    def give(self, total: Float[Tensor, "N B S"], add: bool) -> None:
        self.adjoint.product(self.weight, total[..., self.slot], add)

    def split(self) -> "dict[str, Product]":
        """The same edge, one gate at a time."""
        weights = self.weight.chunk(len(self.routes), 0)
        return {
            route: Product((route,), self.adjoint.gate(number), weight, self.slot)
            for number, (route, weight) in enumerate(zip(self.routes, weights, strict=True))
        }


@dataclass(frozen=True)
class Elementwise:
    """An edge that crosses no weights: `adjoint * factor`, given to `slot` of s_{k-1}.

    Where several routes lie side by side, `factors` holds that of each and `factor` their sum.
    """

    routes: tuple[str, ...]
    adjoint: Float[Tensor, "N B H"]
    factor: Float[Tensor, "B H"]
    slot: slice
    factors: tuple[Float[Tensor, "B H"], ...] = ()

    def give(self, total: Float[Tensor, "N B S"], add: bool) -> None:
        if add:
            total[..., self.slot].addcmul_(self.adjoint, self.factor)
        else:
            torch.mul(self.adjoint, self.factor, out=total[..., self.slot])

    def split(self) -> "dict[str, Elementwise]":
        if not self.factors:
            return {self.routes[0]: self}
        return {
            route: Elementwise((route,), self.adjoint, factor, self.slot)
            for route, factor in zip(self.routes, self.factors, strict=True)
        }


@dataclass(frozen=True, eq=False)
class Operator:
    """An edge known only by what it does to the adjoint: `pull()`, given to `slot` of s_{k-1}.

    Where several routes lie side by side, `pulls` holds that of each and `pull` their sum.
    """

    routes: tuple[str, ...]
    pull: Callable[[], Float[Tensor, "N B M"]]
    slot: slice
    pulls: tuple[Callable[[], Float[Tensor, "N B M"]], ...] = ()

    def give(self, total: Float[Tensor, "N B S"], add: bool) -> None:
        write(self.pull(), total[..., self.slot], add)

    def split(self) -> "dict[str, Operator]":
        if not self.pulls:
            return {self.routes[0]: self}
        return {
            route: Operator((route,), pull, self.slot)
            for route, pull in zip(self.routes, self.pulls, strict=True)
        }


Edge = Product | Elementwise | Operator


def edges_along(edges: Iterable[Edge], wanted: Callable[[str], bool]) -> tuple[Edge, ...]:
    """The edges with the wanted routes alone; one that has others as well is split."""
    found: list[Edge] = []
    for edge in edges:
        kept = [route for route in edge.routes if wanted(route)]
        if len(kept) == len(edge.routes):
            found.append(edge)
        elif kept:
            parts = edge.split()
            found += [parts[route] for route in kept]
    return tuple(found)


def damped(edge: Edge, factor: Float[Tensor, "B 1"]) -> Edge:
    """The same edge with all that passes along it multiplied by a factor for each sample."""
    if isinstance(edge, Product):
        return replace(edge, adjoint=edge.adjoint.times(factor))
    if isinstance(edge, Elementwise):
        factors = tuple(each * factor for each in edge.factors)
        return replace(edge, factor=edge.factor * factor, factors=factors)

    def times(pull: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: pull() * factor

    return replace(edge, pull=times(edge.pull), pulls=tuple(map(times, edge.pulls)))


@dataclass(frozen=True)
class Use:
    """One use of a parameter in a step: its gradient is `sum_b adjoint_b (x) operand_b`.

    `operand` is None for a bias, whose gradient is the plain sum of the adjoint over the batch (and
    for a peephole, whose operand is already in the adjoint's factors).
    """

    adjoint: GateAdjoint
    operand: Float[Tensor, "B M"] | None


@dataclass(frozen=True, eq=False)
class FormedGradients:
    """Gradients of several parameters that are no outer products: one function gives them formed.

    `pull` maps n adjoint rows [n, B, S] to gradients [n, *shape] by name, `size` counts the numbers
    that one row gives. Nothing is pulled back before it is asked for.
    """

    delta: Float[Tensor, "N B S"]
    pull: Callable[[Float[Tensor, "_ B S"]], Mapping[str, Float[Tensor, "..."]]]
    size: int

    def blocks(self, most: int) -> Iterator[tuple[slice, Mapping[str, Float[Tensor, "..."]]]]:
        """All rows and their gradients, few enough at a time that these are `most` numbers."""
        rows = max(1, most // self.size)
        if rows >= len(self.delta):
            yield slice(0, len(self.delta)), self._at_once
            return
        for first in range(0, len(self.delta), rows):
            some = slice(first, min(first + rows, len(self.delta)))
            yield some, self.pull(self.delta[some])

    @cached_property
    def _at_once(self) -> Mapping[str, Float[Tensor, "..."]]:
        """Kept, as sizes and shares both ask for it."""
        return self.pull(self.delta)

    def suffixed(self, suffix: str) -> "FormedGradients":
        """The same under longer names."""

        def pull(rows: Tensor) -> dict[str, Tensor]:
            return {name + suffix: gradient for name, gradient in self.pull(rows).items()}

        return replace(self, pull=pull)


@dataclass(frozen=True)
class CellAdjoint:
    """The pull-back of N adjoint rows through one step, everything still unsummed over rows.

    `edges` lead to the previous state, each to a slot of it that it has to itself or shares with
    others as a whole; `to_input` leads to x_k, and `uses` say how the gradient of each
    parameter follows from the adjoints of the pre-activations (several uses hold one block of its
    rows each, from the top); `formed` gives those of parameters for which no such rule is known.
    `like` is the adjoint that was pulled back; that of s_{k-1} has its shape. Where s_{k-1} was not
    simply handed on to the step, `to_before` maps the adjoint of what entered to that of s_{k-1}.
    `factors` are those of a clipping policy, where one acts.
    """

    edges: tuple[Edge, ...]
    to_input: Edge
    find_uses: Callable[[], Mapping[str, tuple[Use, ...]]]
    like: Float[Tensor, "N B S"]
    formed: tuple[FormedGradients, ...] = ()
    to_before: Callable[[Float[Tensor, "N B S"]], Float[Tensor, "N B S"]] | None = None
    factors: Factors | None = None

    @cached_property
    def uses(self) -> Mapping[str, tuple[Use, ...]]:
        """The uses of each parameter; found when asked for, which a recursion never does."""
        return self.find_uses()

    def previous(self, spare: int = 0) -> Float[Tensor, "N1 B S"]:
        """Adjoint of s_{k-1}: J_k^T delta, the sum over all routes.

        With `spare` rows at the end, not written yet, for entries that start there.
        """
        return self._back(self.edges, spare)

    def along(self, routes: Container[str]) -> Float[Tensor, "N B S"]:
        """The part of `previous()` that comes along these routes."""
        return self._back(edges_along(self.edges, lambda route: route in routes))

    def by_slot(self, routes: Container[str]) -> list[tuple[slice, Float[Tensor, "N B _"]]]:
        """The same, as far as it is not zero: each part of the state that these routes lead to."""
        edges = edges_along(self.edges, lambda route: route in routes)
        width = self.like.shape[-1]
        if self.to_before is not None or _overlap(edge.slot for edge in self.edges):
            return [(slice(0, width), self._back(edges))] if edges else []
        found: dict[tuple[int, int], list[Edge]] = {}
        for edge in edges:
            found.setdefault((edge.slot.start, edge.slot.stop), []).append(edge)
        parts = []
        for (start, stop), some in found.items():
            slot, moved = slice(start, stop), [shifted(edge, -start, "") for edge in some]
            parts.append((slot, self._sum(moved, stop - start)))
        return parts

    def by_route(self) -> dict[str, Float[Tensor, "N B S"]]:
        """Adjoint of s_{k-1} split by route; the parts sum to `previous()`."""
        return {
            route: self._back((part,))
            for edge in self.edges
            for route, part in edge.split().items()
        }

    def input(self) -> Float[Tensor, "N B I"]:
        """Adjoint of x_k."""
        return self._sum((self.to_input,), self.to_input.slot.stop)

    def _back(self, edges: tuple[Edge, ...], spare: int = 0) -> Float[Tensor, "N1 B S"]:
        """What these edges give to s_{k-1}."""
        total = self._sum(edges, self.like.shape[-1], spare)
        if self.to_before is not None:
            rows = len(self.like)
            total[:rows] = self.to_before(total[:rows])
        return total

    def _sum(self, edges: Sequence[Edge], size: int, spare: int = 0) -> Float[Tensor, "N1 B size"]:
        rows, batch = self.like.shape[:2]
        total = new_rows(self.like, rows + spare, batch, size)
        given = total[:rows]
        slots = [edge.slot for edge in edges]
        if not fill(slots, size):
            given.zero_()
        for number, edge in enumerate(edges):
            edge.give(given, add=any(_meet(edge.slot, slot) for slot in slots[:number]))
        return total


class AbstractCell(ABC):
    """One recurrence; a subclass is a frozen dataclass of its weights.

    The state is one vector `s`. `slots` says which part of it is which (`h`, and `c` where there
    is one), and `output` which part the layer hands on.
    """

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Tensor]:
        """The weights by name, named as torch.nn names them."""

    @property
    @abstractmethod
    def input_size(self) -> int:
        """I, the number of input features."""

    @property
    @abstractmethod
    def slots(self) -> Mapping[str, slice]:
        """The named parts of the state, in order and without gaps."""

    @property
    @abstractmethod
    def output(self) -> slice | list[int]:
        """The part of the state that is the layer's output."""

    @property
    def output_entries(self) -> list[int]:
        """The same part, entry by entry."""
        part = self.output
        return list(range(self.state_size)[part]) if isinstance(part, slice) else part

    @property
    def output_size(self) -> int:
        """H, the number of outputs."""
        return len(self.output_entries)

    @property
    @abstractmethod
    def routes(self) -> tuple[str, ...]:
        """The names of the edges from s_{k-1} to s_k, which partition the one-step Jacobian."""

    @property
    @abstractmethod
    def recurrent_routes(self) -> tuple[str, ...]:
        """Those of the routes that cross recurrent weights; the others are the carousel's."""

    @property
    @abstractmethod
    def inner_routes(self) -> tuple[str, ...]:
        """Edges that lie inside a step, which can be cut too but are no part of the sum."""

    @property
    @abstractmethod
    def gates(self) -> tuple[Gate, ...]:
        """The gates in the order of the weight rows; a cell without any gives its one activation.

        Of a cell known only as a function there is none.
        """

    @property
    def activations(self) -> tuple[Gate, ...]:
        """What `CellStep.activations` holds, as far as it can saturate: gates, and other values."""
        return self.gates

    @abstractmethod
    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "AbstractCell":
        """The same cell with other weights, given under the names of `parameters`."""

    @abstractmethod
    def gates_of(self, parameter: str) -> tuple[str, ...]:
        """The gates whose rows `parameter` holds, in order; empty for a cell without gates."""

    @abstractmethod
    def project(self, x: Input) -> Projected:
        """W x + b: what the input gives to the pre-activations, for many steps at once."""

    @abstractmethod
    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        """s_k from x_k, its projection and s_{k-1}; any leading axes."""

    def step(self, x: Input, state: State) -> CellStep:
        """s_k from x_k and s_{k-1}; any leading axes."""
        return self.advance(x, self.project(x), state)

    @abstractmethod
    def linearise(self, step: CellStep, cut: frozenset[str] = frozenset()) -> CellStep:
        """The step with the derivatives of its pointwise functions, which `pull_back` needs.

        Those of the inner routes in `cut` are taken to be 0.
        """

    @abstractmethod
    def pull_back(self, step: CellStep, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
        """Pull N rows of adjoints dL/ds_k back through a linearised step, without summing them."""

    @property
    def state_size(self) -> int:
        """S, the number of entries of the state."""
        return max(int(slot.stop) for slot in self.slots.values())


class AbstractLayer(AbstractCell):
    """A cell of one layer: weights named as in torch.nn.LSTMCell, gates stacked along the rows."""

    weight_ih: Float[Tensor, "..."]
    weight_hh: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None
    bias_hh: Float[Tensor, "..."] | None

    @property
    def pre_activations(self) -> tuple[str, ...]:
        """The names of the blocks of a_k, in the order of the weight rows."""
        return tuple(gate.name for gate in self.gates)

    @property
    def adjoint_order(self) -> tuple[tuple[str, ...], ...]:
        """The same names in the order in which a pull-back finds their adjoints.

        Those of one group do not depend on each other; those of a later one may on earlier ones.
        """
        return (self.pre_activations,)

    @abstractmethod
    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight of such a layer by name, both biases included."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        named = {name: getattr(self, name) for name in self.shapes(1, 1)}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def both_biases(self) -> Float[Tensor, "P"] | None:
        """b_ih + b_hh, for cells to which only their sum matters."""
        if self.bias_ih is None or self.bias_hh is None:
            return self.bias_ih if self.bias_hh is None else self.bias_hh
        return self.bias_ih + self.bias_hh

    @property
    def input_size(self) -> int:
        return self.weight_ih.shape[1]

    @property
    def hidden_size(self) -> int:
        """H, the number of hidden units."""
        return self.weight_hh.shape[1]

    @property
    def output(self) -> slice:
        return self.slots["h"]

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "AbstractLayer":
        return replace(self, **parameters)  # type: ignore[type-var]

    def uses(
        self,
        step: CellStep,
        input_adjoint: GateAdjoint,
        hidden_adjoint: GateAdjoint,
    ) -> dict[str, tuple[Use, ...]]:
        """dW = sum da (x) x_k, dR = sum da (x) h_{k-1}, db = sum da, for the weights there are."""
        uses: dict[str, tuple[Use, ...]] = {
            "weight_ih": (Use(input_adjoint, step.x),),
            "weight_hh": (Use(hidden_adjoint, step.previous[..., self.slots["h"]]),),
        }
        if self.bias_ih is not None:
            uses["bias_ih"] = (Use(input_adjoint, None),)
        if self.bias_hh is not None:
            uses["bias_hh"] = (Use(hidden_adjoint, None),)
        return uses

    def check(self) -> None:
        """Refuse weights whose shapes do not belong together.

        Raises:
            ArgumentError: with the shape expected of each weight that does not fit.
        """
        named = [gate for gate in self.gates if not isinstance(gate, Gate)]
        if named:
            raise ArgumentError(
                f"{type(self).__name__}.gates must hold Gate values, as in Gate('keep', SIGMOID, "
                f"'forget', keeps='h') of retrograde.cells.gates; got {_checks.shown(named[0])}"
            )
        name, blocks = type(self).__name__, len(self.gates)
        every = {each: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        _checks.weights(
            name,
            {
                each.name: value
                for each, value in every.items()
                if each.name.startswith(("weight", "bias"))
                and (value is not None or each.default is MISSING)
            },
        )
        if self.weight_ih.ndim != 2 or self.weight_hh.ndim != 2:
            raise ArgumentError(
                f"{name} expects weight_ih of shape [{blocks}*H, I] and weight_hh of shape "
                f"[{blocks}*H, H]; got {tuple(self.weight_ih.shape)} and "
                f"{tuple(self.weight_hh.shape)}"
            )
        wrong = []
        for key, shape in self.shapes(self.input_size, self.hidden_size).items():
            value = getattr(self, key)
            if value is None and not key.startswith("bias"):
                wrong.append(f"{key} is missing, expected shape {shape}")
            elif value is not None and tuple(value.shape) != shape:
                wrong.append(f"{key} has shape {tuple(value.shape)}, expected {shape}")
        if wrong:
            raise ArgumentError(f"{name} with H={self.hidden_size}: " + "; ".join(wrong))


def is_cell(cell: object) -> AbstractCell:
    """The cell, as such.

    Raises:
        ArgumentError: with what it is.
    """
    if not isinstance(cell, AbstractCell):
        raise ArgumentError(f"a cell of retrograde.cells is needed; got {_checks.shown(cell)}")
    return cell


def standard_shapes(gates: int, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The weights that every layer of torch.nn has, for so many blocks of rows."""
    rows = gates * hidden
    return {
        "weight_ih": (rows, inputs),
        "weight_hh": (rows, hidden),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
    }


def affine(
    x: Float[Tensor, "*L I"], weight: Float[Tensor, "P I"], bias: Float[Tensor, "P"] | None
) -> Float[Tensor, "*L P"]:
    """W x + b, the pre-activation of every gate at once."""
    return torch.nn.functional.linear(x, weight, bias)


def plus_product(
    a: Float[Tensor, "*L P"], h: Float[Tensor, "*L H"], weight: Float[Tensor, "P H"]
) -> Float[Tensor, "*L P"]:
    """a + R h, in one operation for a single step of a batch."""
    if h.ndim == 2:
        return torch.addmm(a, h, weight.T)
    return a + torch.nn.functional.linear(h, weight)


def new_rows(like: Tensor, rows: int, *shape: int) -> Tensor:
    """An uninitialised tensor [rows, *shape], its memory for 1, 2, 4, ..., 64, 128, 192, ... rows.

    The recursion gains a row at every step. Blocks that keep their size are handed out by the
    allocator again and again; blocks that grew a little would be fresh memory each time.
    """
    room = 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64
    return like.new_empty(room, *shape)[:rows]


def new_samples(like: Float[Tensor, "N B M"]) -> Float[Tensor, "B N M"]:
    """As many uninitialised rows sample by sample; its memory is rounded up in the same way."""
    rows, batch, size = like.shape
    return new_rows(like, rows, batch * size).view(batch, rows, size)


def fill(slots: Iterable[slice], size: int) -> bool:
    """Whether slots that are the same or apart make up a state of this size."""
    apart = {(int(slot.start), int(slot.stop)) for slot in slots}
    return sum(stop - start for start, stop in apart) == size


def _meet(one: slice, other: slice) -> bool:
    """Whether two slots have entries in common."""
    return bool(one.start < other.stop and other.start < one.stop)


def _overlap(slots: Iterable[slice]) -> bool:
    """Whether some slots are neither the same nor apart."""
    return any(one != other and _meet(one, other) for one, other in combinations(slots, 2))


def write(values: Tensor, out: Tensor, add: bool) -> None:
    """Put values in the place of what is in `out`, or add them to it."""
    if add:
        out += values
    else:
        out.copy_(values)


def shifted(edge: Edge, offset: int, suffix: str) -> Edge:
    """The same edge inside a larger state: slots moved by `offset`, routes marked by `suffix`."""
    if not offset and not suffix:
        return edge
    slot = slice(edge.slot.start + offset, edge.slot.stop + offset)
    return replace(edge, slot=slot, routes=tuple(route + suffix for route in edge.routes))
