"""What a recurrence is to the rest of the package: one step, and the derivative of that step.

A cell knows no time. `step` maps (x_k, s_{k-1}) to s_k; `linearise` gives the derivative as a graph
of named nodes and labelled edges (graph.py). All that follows from a derivative, the routes and the
pull-back of adjoints among it, is read off that graph, and no cell writes it down again.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde._types import Input, Projected, State
from retrograde.cells.edges import Edge, biases, weights
from retrograde.cells.gates import Gate
from retrograde.cells.graph import PRE_ACTIVATION, Graph
from retrograde.errors import ArgumentError


@dataclass(frozen=True)
class CellStep:
    """One step of a cell (or, with leading axes, many): what the derivative needs to know.

    `x` is what it read, `previous` and `state` are s_{k-1} and s_k. `activations` holds the gates
    and other activated values by name; `layers` the steps of a stack's layers, none for a plain
    cell.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU
        >>> step = GRU(torch.zeros(6, 3), torch.zeros(6, 2)).step(torch.zeros(3), torch.ones(2))
        >>> step.previous, step.state
        (tensor([1., 1.]), tensor([0.5000, 0.5000]))
    """

    x: Float[Tensor, "*L I"]
    previous: Float[Tensor, "*L S"]
    state: Float[Tensor, "*L S"]
    activations: Mapping[str, Float[Tensor, "*L H"]] = field(default_factory=dict)
    layers: "tuple[CellStep, ...]" = ()

    def between(self, start: int, stop: int) -> "CellStep":
        """Some of many steps along the first axis."""
        some = slice(start, stop)
        return CellStep(
            self.x[some],
            self.previous[some],
            self.state[some],
            {name: values[some] for name, values in self.activations.items()},
            tuple(layer.between(start, stop) for layer in self.layers),
        )

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
        return CellStep(x, previous, state, activations, tuple(map(of_layer, layers)))


class AbstractCell(ABC):
    """One recurrence; a subclass is a frozen dataclass of its weights.

    The state is one vector `s`. `slots` says which part of it is which (`h`, and `c` where there
    is one), and `output` which part the layer hands on.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU, AbstractCell
        >>> cell = GRU(torch.zeros(6, 3), torch.zeros(6, 2))
        >>> isinstance(cell, AbstractCell), cell.input_size, cell.state_size
        (True, 3, 2)
        >>> sorted(cell.routes)
        ['carousel', 'recurrent.candidate', 'recurrent.reset', 'recurrent.update']
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
        """The gates whose rows `parameter` holds, in order; none where it is all one block."""

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
    def linearise(self, step: CellStep) -> Graph:
        """The derivative of a step, of many along leading axes.

        The routes of the cell are the labels of the edges that leave the state before.
        """

    @cached_property
    def structure(self) -> Graph:
        """The derivative of a step from zeros, of which the nodes and labels are of interest."""
        some = next(iter(self.parameters.values())).detach()
        with torch.no_grad():
            x, state = some.new_zeros(1, self.input_size), some.new_zeros(1, self.state_size)
            return self.linearise(self.step(x, state))

    @property
    def routes(self) -> tuple[str, ...]:
        """The names of the edges from s_{k-1} to s_k, which partition the one-step Jacobian."""
        return self.structure.routes

    @property
    def recurrent_routes(self) -> tuple[str, ...]:
        """Those of the routes that cross recurrent weights; the others are the carousel's."""
        return self.structure.recurrent_routes

    @property
    def inner_routes(self) -> tuple[str, ...]:
        """Edges that lie inside a step, which can be cut too but are no part of the sum."""
        return self.structure.inner_routes

    @property
    def state_size(self) -> int:
        """S, the number of entries of the state."""
        return max(int(slot.stop) for slot in self.slots.values())


class AbstractLayer(AbstractCell):
    """A cell of one layer: weights named as in torch.nn.LSTMCell, gates stacked along the rows.

    A subclass gives its weights, `gates`, `advance` and `linearise`; where it has more weights or
    more of a state than a plain recurrent layer, also `shapes` and `slots`.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU, AbstractLayer
        >>> cell = GRU(torch.zeros(6, 3), torch.zeros(6, 2))
        >>> isinstance(cell, AbstractLayer), cell.hidden_size, list(cell.parameters)
        (True, 2, ['weight_ih', 'weight_hh'])
    """

    weight_ih: Float[Tensor, "..."]
    weight_hh: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None
    bias_hh: Float[Tensor, "..."] | None

    @property
    def pre_activations(self) -> tuple[str, ...]:
        """The names of the blocks of a_k, in the order of the weight rows."""
        return tuple(gate.name for gate in self.gates)

    @property
    def gate_nodes(self) -> tuple[str, ...]:
        """The nodes of these blocks in the graph of a step."""
        return tuple(PRE_ACTIVATION + gate for gate in self.pre_activations)

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        return self.structure.gates_of(parameter) if len(self.gates) > 1 else ()

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight of such a layer by name, both biases included.

        A cell with further weights says so here.
        """
        return standard_shapes(len(self.gates), inputs, hidden)

    @property
    def slots(self) -> Mapping[str, slice]:
        """The state is h alone; a cell with more of it says so here."""
        return {"h": slice(0, self.hidden_size)}

    def project(self, x: Input) -> Projected:
        """W x + b_ih + b_hh; a cell in which the two biases differ leaves b_hh to `advance`."""
        return affine(x, self.weight_ih, self.both_biases)

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

    def graph(self, *edges: Edge) -> Graph:
        """The graph of these edges: h- and h+ are h before and after the step, and so on."""
        return Graph(
            edges,
            before={name + "-": slot for name, slot in self.slots.items()},
            after={name + "+": slot for name, slot in self.slots.items()},
            reads={"x": slice(0, self.input_size)},
        )

    def affine_edges(
        self, step: CellStep, routes: Sequence[str], inner: Sequence[str] | None = None
    ) -> list[Edge]:
        """W x_k + b_ih + R h_{k-1} + b_hh: the edges to the pre-activation of each gate.

        Args:
            step: the step.
            routes: the label of the edge from h_{k-1} for each gate.
            inner: where R h_{k-1} + b_hh leads to instead of the pre-activations.
        """
        nodes = self.gate_nodes
        inner, h = inner or nodes, step.previous[..., self.slots["h"]]
        return [
            *weights("weight_ih", self.weight_ih, "x", nodes, step.x),
            *biases("bias_ih", self.bias_ih, nodes),
            *weights("weight_hh", self.weight_hh, "h-", inner, h, routes),
            *biases("bias_hh", self.bias_hh, inner),
        ]

    def __post_init__(self) -> None:
        self.check()

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
    """The weights that every layer of torch.nn has, for a number of blocks of rows."""
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
