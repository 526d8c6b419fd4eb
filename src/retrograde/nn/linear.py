"""Linear recurrences as modules, with torch.nn's constructor, layouts and return values."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from retrograde import _checks, cells
from retrograde.cells.minimal import FORMS
from retrograde.nn.recurrent import AbstractRecurrent, Shapes


class AbstractMinimalLayer(AbstractRecurrent):
    """What the minimal GRU and the minimal LSTM have in common."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        form: str = "linear",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        self.form = _checks.one_of("form", form, FORMS)
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(
            *sizes, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype
        )

    _blocks: int
    """The number of gates."""

    _cell: Callable[..., cells.AbstractCell]
    """The cell of a layer."""

    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        return {"weight_ih": (self._blocks * hidden, inputs), "bias_ih": (self._blocks * hidden,)}

    def _layer(self, weights: Mapping[str, Tensor]) -> cells.AbstractCell:
        return self._cell(**weights, form=self.form)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form={self.form!r}"


class MinGRU(AbstractMinimalLayer):
    """The minimal GRU of Feng et al. (2024), arXiv 2410.01201; used as torch.nn.GRU is.

    There are no recurrent weights. Its derivative is the one that `retrograde.cells.MinGRU` writes
    out.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in
            torch.nn.GRU.
        form: "linear", or "log" for a candidate that is positive.
        device, dtype: of the weights.

    Raises:
        ArgumentError: for an unknown form or sizes that are none.

    Example:
        >>> import torch, retrograde
        >>> output, h_n = retrograde.nn.MinGRU(3, 4, num_layers=2)(torch.zeros(5, 2, 3))
        >>> output.shape, h_n.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """

    _blocks = 2
    _cell = cells.MinGRU


class MinLSTM(AbstractMinimalLayer):
    """The minimal LSTM of Feng et al. (2024), arXiv 2410.01201; its state is h alone.

    There are no recurrent weights. Its derivative is the one that `retrograde.cells.MinLSTM`
    writes out.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in
            torch.nn.LSTM.
        form: "linear", or "log" for a candidate that is positive.
        device, dtype: of the weights.

    Raises:
        ArgumentError: for an unknown form or sizes that are none.

    Example:
        >>> import torch, retrograde
        >>> output, h_n = retrograde.nn.MinLSTM(3, 4)(torch.zeros(5, 2, 3))
        >>> output.shape, h_n.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    _blocks = 3
    _cell = cells.MinLSTM
