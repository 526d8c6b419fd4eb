"""What the derivative of a step is made of: edges between named nodes.

An edge says how its target changes with its source, everything else held: by a factor for each
unit (`Diagonal`), by a block of rows of a weight matrix (`Weight`), or by a derivative that is
known only as a function (`Opaque`). Its `Use` says how the gradient of a parameter follows from the
adjoint of the target. The source `""` is the constant: a bias is an edge from it, and so is every
edge that was cut, for it still says how a weight acts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

CONSTANT_NODE = ""
"""The source of what does not depend on the state or the input."""

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, slots=True)
class Use:
    """How an edge uses a parameter: `gradient[rows] = sum_b adjoint_b (x) operand_b`.

    Attributes:
        parameter: its name.
        rows: the rows of it that act here.
        operand: what they are multiplied by, shape [*L, M]; None for a bias.
        diagonal: whether unit is multiplied by unit, as a peephole does: the gradient is then
            `sum_b adjoint_b * operand_b`.
        columns: whether the rows of a matrix are the columns of its tensor, as Keras keeps it.
    """

    parameter: str
    rows: slice
    operand: Float[Tensor, "*L M"] | None = None
    diagonal: bool = False
    columns: bool = False

    def block(self, parameter: Tensor) -> Tensor:
        """The rows of the parameter that act here."""
        if self.columns:
            return parameter[:, self.rows].T
        whole = parameter if self.operand is not None and not self.diagonal else parameter.flatten()
        return whole[self.rows]


@dataclass(frozen=True, slots=True)
class Part:
    """Entries start .. stop-1 of a node of this size."""

    start: int
    stop: int
    size: int


@dataclass(frozen=True, eq=False, slots=True)
class Diagonal:
    """target += factor * source, unit by unit.

    Attributes:
        source, target: the nodes that it joins.
        factor: shape [*L, H], or [H] where all samples have the same; None for 1.
        route: its label.
        use: the parameter that the factor is, if it is one.
        at: the part of the target that it leads to; None for all of it.
    """

    source: str
    target: str
    factor: Float[Tensor, "*L H"] | None = None
    route: str = ""
    use: Use | None = None
    at: Part | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Weight:
    """target += matrix[rows] @ source.

    Attributes:
        source, target: the nodes that it joins.
        matrix: the whole weight, shape [P, M].
        rows: its rows that belong to the target.
        route: its label.
        use: the parameter that the matrix is.
        scale: what an adjoint that passes here is multiplied by, shape [*L, 1]; None for 1. The
            gradient of the weight itself is not.
    """

    source: str
    target: str
    matrix: Float[Tensor, "P M"]
    rows: slice
    route: str = ""
    use: Use | None = None
    scale: Float[Tensor, "*L _"] | None = None


class AbstractDerivative(ABC):
    """The derivative of a step that is given as a function s_k = f(parameters, x_k, s_{k-1})."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers the parameters have together."""

    @abstractmethod
    def to_state(self, delta: Float[Tensor, "N *L S"]) -> Float[Tensor, "N *L S"]:
        """Adjoint rows of s_k as those of s_{k-1}."""

    @abstractmethod
    def to_input(self, delta: Float[Tensor, "N *L S"]) -> Float[Tensor, "N *L I"]:
        """Adjoint rows of s_k as those of x_k."""

    @abstractmethod
    def to_parameters(self, delta: Float[Tensor, "N *L S"]) -> Mapping[str, Tensor]:
        """Adjoint rows of s_k as gradients by name, [N, *shape], summed over the samples."""

    @abstractmethod
    def along(
        self, delta: Float[Tensor, "N *L S"], ways: Collection[str]
    ) -> Float[Tensor, "N *L S"]:
        """The part of `to_state` that comes through some gates first ("" for past all)."""

    @abstractmethod
    def each(self, change: Change) -> "AbstractDerivative":
        """The same with all that belongs to samples changed in the same way."""


@dataclass(frozen=True, eq=False, slots=True)
class Opaque:
    """Edges from every part of the state before to every part after, known as one function.

    Attributes:
        sources: the parts before, and where each lies in the function's state.
        targets: the parts after, and where each lies there.
        reads: the node that is its x.
        derivative: the function's derivative.
        routes: the label of the edge from each source to each target; the edges that were cut are
            missing.
        crossing: the labels that count as crossings of recurrent weights.
        suffix: what the names of its parameters end in.
        scales: what an adjoint that passes along a label is multiplied by.
        ways: the gates of the function, and "" for past all of them. `routes` then are labels of
            the ways from each source through a gate first, to whichever target.
        complete: no edge of it was cut.
    """

    sources: Mapping[str, slice]
    targets: Mapping[str, slice]
    reads: str
    derivative: AbstractDerivative
    routes: Mapping[tuple[str, str], str]
    crossing: frozenset[str] = frozenset()
    suffix: str = ""
    scales: Mapping[str, Float[Tensor, "*L _"]] = field(default_factory=dict)
    ways: tuple[str, ...] = ()
    complete: bool = True

    def rows(self, over: tuple[str, ...]) -> tuple[str, ...]:
        """The targets whose adjoints are pulled back together, of some targets or ways."""
        return tuple(self.targets) if self.ways else over

    def to_state(
        self,
        derivative: AbstractDerivative,
        delta: Float[Tensor, "N *L S"],
        over: tuple[str, ...],
    ) -> Float[Tensor, "N *L S"]:
        """Adjoint rows of s_k as those of s_{k-1}, along some ways if there are any."""
        if self.ways and over != self.ways:
            return derivative.along(delta, over)
        return derivative.to_state(delta)

    def groups(
        self, wanted: Callable[[str], bool] | None = None, apart: Container[str] = ()
    ) -> list[tuple[tuple[str, ...], tuple[str, ...], str]]:
        """(targets or ways, sources, label) of the edges that are pulled back together.

        Edges that are scaled, or whose label is to be kept `apart`, come one label at a time; the
        label of all others is "".
        """
        labels = {*self.routes.values()}
        if self.ways and wanted is None and self.complete:
            if not any(label in self.scales or label in apart for label in labels):
                return [(self.ways, tuple(self.sources), "")]
        found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for target in self.ways or self.targets:
            by_label: dict[str, list[str]] = {}
            for source in self.sources:
                route = self.routes.get((source, target))
                if route is not None and (wanted is None or wanted(route)):
                    label = route if route in self.scales or route in apart else ""
                    by_label.setdefault(label, []).append(source)
            for label, sources in by_label.items():
                found.setdefault((label, tuple(sources)), []).append(target)
        return [(tuple(targets), sources, label) for (label, sources), targets in found.items()]


Edge = Diagonal | Weight | Opaque


def ends(edge: Edge) -> tuple[Iterable[str], Iterable[str]]:
    """Sources and targets of an edge."""
    if isinstance(edge, Opaque):
        return (*edge.sources, edge.reads), edge.targets
    return (edge.source,), (edge.target,)


def weights(
    parameter: str,
    matrix: Float[Tensor, "P M"],
    source: str,
    targets: Sequence[str],
    operand: Float[Tensor, "*L M"],
    routes: Sequence[str] = (),
    blocks: range | None = None,
) -> list[Edge]:
    """The edges of a weight matrix: equal blocks of its rows, each to a target.

    Args:
        parameter: its name.
        matrix: all of it.
        source: the node that it multiplies.
        targets: the nodes that it leads to, one for each block.
        operand: the value of the source.
        routes: a label for each target; none if empty.
        blocks: which of how many blocks these are, range(first, count); all of them if None.
    """
    first, count = (0, len(targets)) if blocks is None else (blocks.start, blocks.stop)
    height = matrix.shape[0] // count
    edges: list[Edge] = []
    for number, target in enumerate(targets):
        rows = slice((first + number) * height, (first + number + 1) * height)
        route = routes[number] if routes else ""
        edges.append(Weight(source, target, matrix, rows, route, Use(parameter, rows, operand)))
    return edges


def biases(parameter: str, bias: Float[Tensor, "P"] | None, targets: Sequence[str]) -> list[Edge]:
    """The edges of a bias, a block to each target; none where it is None."""
    if bias is None:
        return []
    height = len(bias) // len(targets)
    blocks = (slice(n * height, (n + 1) * height) for n in range(len(targets)))
    return [
        Diagonal(CONSTANT_NODE, target, use=Use(parameter, rows))
        for target, rows in zip(targets, blocks, strict=True)
    ]
