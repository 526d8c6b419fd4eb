"""The recurrences of Keras: cells of this package with weights named and laid out as Keras does.

Keras keeps a weight as [inputs, gates * units], the transpose of torch's, and orders the gates of a
GRU z, r, h. Parts of a gradient have the shape of what they are parts of, so they are formed in
Keras' layout; the recurrence itself runs in torch's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde.cells.base import AbstractLayer, CellStep
from retrograde.cells.edges import Edge, Opaque, Use
from retrograde.cells.elman import Elman
from retrograde.cells.gates import GRU_GATES, LSTM_GATES, Gate
from retrograde.cells.graph import Graph
from retrograde.cells.gru import GRU, GRU2014
from retrograde.cells.lstm import LSTM
from retrograde.cells.wrapped import AbstractWrapped
from retrograde.errors import ArgumentError

KINDS = ("LSTM", "GRU", "SimpleRNN")
"""The layers of Keras by name."""

CELLS = {
    "keras.src.layers.rnn.lstm.LSTMCell": "LSTM",
    "keras.src.layers.rnn.gru.GRUCell": "GRU",
    "keras.src.layers.rnn.simple_rnn.SimpleRNNCell": "SimpleRNN",
}
"""The layers whose cell it is, by the name of the cell's class."""

GRU_ORDER = (1, 0, 2)
"""Where the gates r, z, n of torch stand in Keras' order z, r, h; and the other way round."""


def kind_of(cell: object) -> str:
    """The layer of Keras whose cell it is; empty for anything else."""
    return CELLS.get(f"{type(cell).__module__}.{type(cell).__qualname__}", "")


def gates_of_keras(cell: Any) -> tuple[Gate, ...]:
    """The gates of a cell of Keras in its own order, with the activation functions of torch's."""
    kind = kind_of(cell)
    if kind == "SimpleRNN":
        return (Gate("hidden", None, "candidate"),)
    return LSTM_GATES if kind == "LSTM" else tuple(GRU_GATES[number] for number in GRU_ORDER)


def weights_of_keras(cell: Any) -> dict[str, Tensor]:
    """The weights of a cell of Keras by torch's names, gates in blocks of rows, in Keras' order.

    They are views of its variables: what is written into them is written there.
    """
    found = {"weight_ih": cell.kernel._value.T, "weight_hh": cell.recurrent_kernel._value.T}
    if cell.use_bias:
        rows = cell.bias._value.view(-1, len(found["weight_ih"]))  # two with reset_after=True
        found |= dict(zip(("bias_ih", "bias_hh"), rows, strict=False))
    return found


@dataclass(frozen=True, eq=False)
class KerasCell(AbstractWrapped):
    """A cell with the weights of a Keras layer; `keras_cell` makes one.

    Attributes:
        cell: the recurrence, with the same numbers in torch's layout.
        kernel: shape [I, G*H], gates i, f, c, o of an LSTM and z, r, h of a GRU.
        recurrent_kernel: shape [H, G*H].
        bias: shape [G*H], or [2, G*H] of a GRU with `reset_after=True`; None for none.

    Example:
        >>> import torch
        >>> from retrograde.cells import KerasCell, keras_cell
        >>> cell = keras_cell("LSTM", torch.zeros(2, 12), torch.zeros(3, 12))
        >>> isinstance(cell, KerasCell), cell.input_size, cell.state_size
        (True, 2, 6)
    """

    kernel: Float[Tensor, "..."]
    recurrent_kernel: Float[Tensor, "..."]
    bias: Float[Tensor, "..."] | None = None

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        named = {"kernel": self.kernel, "recurrent_kernel": self.recurrent_kernel}
        return named if self.bias is None else {**named, "bias": self.bias}

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "KerasCell":
        assert isinstance(self.cell, AbstractLayer)
        return _of(self.cell, **parameters)

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        return self.structure.gates_of(parameter) if len(self.gates) > 1 else ()

    def linearise(self, step: CellStep) -> Graph:
        graph = self.cell.linearise(step)
        return replace(graph, edges=tuple(map(self._relaid, graph.edges)))

    def _relaid(self, edge: Edge) -> Edge:
        """The edge with its weight under Keras' name, and at Keras' place."""
        if isinstance(edge, Opaque) or edge.use is None:
            return edge
        use = edge.use
        height = use.rows.stop - use.rows.start
        block, name = use.rows.start // height, NAMES[use.parameter]
        if len(self.gates) == len(GRU_ORDER):
            block = GRU_ORDER[block]
        if use.parameter == "bias_hh":
            block += len(self.gates)
        rows = slice(block * height, (block + 1) * height)
        matrix = use.operand is not None
        return replace(edge, use=Use(name, rows, use.operand, columns=matrix))


NAMES = {
    "weight_ih": "kernel",
    "weight_hh": "recurrent_kernel",
    "bias_ih": "bias",
    "bias_hh": "bias",
}
"""The weights of torch's layers and what they are called in Keras."""


def keras_cell(
    kind: str,
    kernel: Float[Tensor, "..."],
    recurrent_kernel: Float[Tensor, "..."],
    bias: Float[Tensor, "..."] | None = None,
    *,
    reset_after: bool = True,
    activation: str = "tanh",
) -> KerasCell:
    """The cell of a Keras layer with its usual activation functions, from its weights.

    Args:
        kind: "LSTM", "GRU" or "SimpleRNN".
        kernel: shape [I, G*H], gates i, f, c, o of an LSTM and z, r, h of a GRU.
        recurrent_kernel: shape [H, G*H].
        bias: shape [G*H], or [2, G*H] of a GRU with `reset_after=True`; None for none.
        reset_after: of a GRU: whether the reset gate multiplies the product with the recurrent
            kernel (torch does the same), or h before it.
        activation: of a SimpleRNN: a name in `retrograde.cells.ACTIVATIONS`.

    Raises:
        ArgumentError: for another kind, and for weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import keras_cell
        >>> cell = keras_cell("GRU", torch.zeros(2, 9), torch.zeros(3, 9), torch.zeros(2, 9))
        >>> list(cell.parameters), cell.gates_of("kernel")
        (['kernel', 'recurrent_kernel', 'bias'], ('update', 'reset', 'candidate'))

    Reference: keras.layers.LSTM, GRU and SimpleRNN of Keras 3.
    """
    _checks.one_of("kind", kind, KINDS)
    for name, weight in {"kernel": kernel, "recurrent_kernel": recurrent_kernel}.items():
        _checks.instance(name, weight, Tensor, "a tensor")
        if weight.ndim != 2:
            raise ArgumentError(f"{name} must have two axes; got shape {list(weight.shape)}")
    if bias is not None:
        _checks.instance("bias", bias, Tensor, "a tensor or None")
    _checks.flag("reset_after", reset_after)
    like: AbstractLayer
    gates = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}[kind]
    some = kernel.new_zeros(gates, 1), kernel.new_zeros(gates, 1)
    if kind == "LSTM":
        like = LSTM(*some)
    elif kind == "GRU":
        like = (GRU if reset_after else GRU2014)(*some)
    else:
        like = Elman(*some, activation=activation)
    return _of(like, kernel, recurrent_kernel, bias)


def _of(
    like: AbstractLayer,
    kernel: Tensor,
    recurrent_kernel: Tensor,
    bias: Tensor | None = None,
) -> KerasCell:
    """The cell with other weights."""
    gated = len(like.gates) == len(GRU_ORDER)

    def rows(weight: Tensor) -> Tensor:
        """A weight with the gates in blocks of rows, in torch's order."""
        turned = weight.T.contiguous() if weight.ndim == 2 else weight
        if not gated:
            return turned
        blocks = turned.chunk(len(GRU_ORDER))
        return torch.cat([blocks[number] for number in GRU_ORDER])

    weights = {"weight_ih": rows(kernel), "weight_hh": rows(recurrent_kernel)}
    if bias is not None:
        both = bias.ndim == 2
        weights["bias_ih"] = rows(bias[0] if both else bias)
        if both:
            weights["bias_hh"] = rows(bias[1])
    empty = {name: None for name in ("bias_ih", "bias_hh") if name not in weights}
    inner = replace(like, **weights, **empty)  # type: ignore[type-var]
    return KerasCell(inner, kernel, recurrent_kernel, bias)
