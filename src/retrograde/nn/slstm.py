"""The sLSTM as a module with torch.nn's layout and return values."""

from collections.abc import Mapping

from torch import Tensor

from retrograde import cells
from retrograde.cells.base import standard_shapes
from retrograde.nn.recurrent import AbstractRecurrent, Shapes


class SLSTM(AbstractRecurrent):
    """The sLSTM (Beck et al. 2024, arXiv 2405.04517) with its stabiliser as a layer.

    Its derivative is the one that `retrograde.cells.SLSTM` writes out; its state is (h, c, n, m).
    It has recurrent weights, unlike the mLSTM of the same paper.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in
            torch.nn.LSTM.
        truncated: nothing comes back through recurrent weights.
        device, dtype: of the weights.

    Raises:
        ArgumentError: for sizes that are none.

    Example:
        >>> import torch, retrograde
        >>> output, state = retrograde.nn.SLSTM(3, 4)(torch.zeros(5, 2, 3))
        >>> output.shape, len(state)
        (torch.Size([5, 2, 4]), 4)
    """

    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        return standard_shapes(4, inputs, hidden)

    def _layer(self, weights: Mapping[str, Tensor]) -> cells.AbstractCell:
        return cells.SLSTM(**weights)
