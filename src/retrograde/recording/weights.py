"""Copies of a layer's weights, and the cells that they make."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from retrograde.cells import AbstractCell, clipped
from retrograde.declarations import Declaration
from retrograde.nn import AbstractRecurrent
from retrograde.nn.torch_layers import torch_cells
from retrograde.recording.form import Form, Layer


@dataclass(eq=False)
class Weights:
    """Copies of a layer's weights at one time, and the cells of every layer and direction.

    The cells are made when they are asked for, which a training step need not wait for. `numbers`
    keeps where the entries of results lie in the state, which is the same in every call of a cell.
    """

    copies: Mapping[str, Tensor]
    make: Callable[[], tuple[AbstractCell, ...]]
    declaration: Declaration | None = None
    numbers: dict[object, Tensor] = field(default_factory=dict)

    @cached_property
    def cells(self) -> tuple[AbstractCell, ...]:
        """In torch's order."""
        return self.make()


def weights_of(module: Layer, form: Form, copies: Mapping[str, Tensor]) -> Weights:
    """Copies of a layer's weights with what makes its cells; the module itself is not held."""
    if isinstance(module, AbstractRecurrent):
        cells = module.cells(copies)
        return Weights(copies, lambda: cells)
    if isinstance(module, nn.RNNBase):
        mode = module.mode
    else:
        kinds = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}
        plain = f"RNN_{getattr(module, 'nonlinearity', '')}".upper()
        mode = next((mode for kind, mode in kinds.items() if isinstance(module, kind)), plain)
    clipping = getattr(module, "clipping", None)

    def make() -> tuple[AbstractCell, ...]:
        cells = torch_cells(mode, form.suffixes, copies)
        return tuple(clipped(cell, clipping.policy) for cell in cells) if clipping else cells

    return Weights(copies, make)
