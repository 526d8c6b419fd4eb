"""Recurrences that are linear in their state: gates and inputs depend on x_k alone.

    s_k = A(x_k) s_{k-1} + b(x_k)

A(x_k) multiplies each unit by itself alone, so that no path from step to step crosses from one unit
to another, and all lags cost what one pass costs (`retrograde.engine.unitwise`).
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde.cells.base import AbstractCell
from retrograde.cells.edges import Edge, Weight
from retrograde.cells.graph import PRE_ACTIVATION, Graph
from retrograde.errors import ArgumentError


class AbstractLinear(AbstractCell):
    """A cell of one layer whose gates read x_k and never s_{k-1}.

    A subclass is a frozen dataclass of its weights. It gives `shapes`, `hidden_size`, `gates`,
    `advance` and `linearise`; where its state is more than h, also `slots`.

    Example:
        >>> import torch
        >>> from retrograde.cells import AbstractLinear, MinGRU
        >>> cell = MinGRU(torch.zeros(4, 3))
        >>> isinstance(cell, AbstractLinear), cell.routes, cell.recurrent_routes
        (True, ('carousel',), ())
    """

    @abstractmethod
    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight of such a layer by name, biases included."""

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """H, the number of outputs."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        named = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "AbstractLinear":
        return replace(self, **parameters)  # type: ignore[type-var]

    @property
    def slots(self) -> Mapping[str, slice]:
        """The state is h alone; a cell with more of it says so here."""
        return {"h": slice(0, self.hidden_size)}

    @property
    def output(self) -> slice:
        return self.slots["h"]

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        return self.structure.gates_of(parameter) if len(self.gates) > 1 else ()

    @property
    def gate_nodes(self) -> tuple[str, ...]:
        """The nodes of the gates' pre-activations in the graph of a step."""
        return tuple(PRE_ACTIVATION + gate.name for gate in self.gates)

    def graph(self, *edges: Edge) -> Graph:
        """The graph of these edges: h- and h+ are h before and after the step, and so on."""
        return Graph(
            edges,
            before={name + "-": slot for name, slot in self.slots.items()},
            after={name + "+": slot for name, slot in self.slots.items()},
            reads={"x": slice(0, self.input_size)},
        )

    def in_rows(self, edges: Sequence[Edge], name: str, rows: int) -> Graph:
        """The graph of a cell with a matrix in its state: each row of it a node of its own."""
        graph, slot = self.graph(*edges), self.slots[name]
        width = (slot.stop - slot.start) // rows

        def of(nodes: Mapping[str, slice], end: str) -> dict[str, slice]:
            own = {
                f"{name}{row}{end}": slice(start, start + width)
                for row, start in enumerate(range(slot.start, slot.stop, width))
            }
            return {node: at for node, at in nodes.items() if node != name + end} | own

        return replace(graph, before=of(graph.before, "-"), after=of(graph.after, "+"))

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse weights whose shapes do not belong together.

        Raises:
            ArgumentError: with the shape expected of each weight that does not fit.
        """
        name = type(self).__name__
        given = {}
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if each.default is MISSING or (each.default is None and value is not None):
                given[each.name] = value
        _checks.weights(name, given)
        try:
            expected = self.shapes(self.input_size, self.hidden_size)
        except IndexError:
            found = ", ".join(f"{n} {list(value.shape)}" for n, value in given.items())
            raise ArgumentError(f"a weight of {name} has too few axes; got {found}") from None
        wrong = [
            f"{n} has shape {tuple(value.shape)}, expected {expected[n]}"
            for n, value in given.items()
            if tuple(value.shape) != expected[n]
        ]
        if wrong:
            raise ArgumentError(f"{name} with H={self.hidden_size}: " + "; ".join(wrong))


def in_rows(values: Float[Tensor, "*L _"], rows: int) -> Float[Tensor, "*L R W"]:
    """The entries of a matrix, row by row, as the matrix."""
    return values.view(*values.shape[:-1], rows, -1)


def spread(source: str, targets: Sequence[str], count: int, width: int, like: Tensor) -> list[Edge]:
    """Each entry of a node to all entries of a target of its own: what broadcasting it is.

    Args:
        source: the node, of `count` entries.
        targets: a node of `width` entries for each.
        count, width: these sizes.
        like: a tensor of the data type.
    """
    matrix = torch.eye(count, dtype=like.dtype, device=like.device).repeat_interleave(width, 0)
    return [
        Weight(source, target, matrix, slice(number * width, (number + 1) * width))
        for number, target in enumerate(targets)
    ]
