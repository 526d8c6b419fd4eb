"""Linear recurrences as modules with torch.nn's layouts and return values."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retrograde import _checks, cells
from retrograde.cells import lru, matrix_memory, selective
from retrograde.cells.minimal import FORMS
from retrograde.errors import ArgumentError
from retrograde.nn.recurrent import AbstractRecurrent, Shapes


class AbstractLinearLayer(AbstractRecurrent):
    """What all of them have in common: options of their own, which they show."""

    _options_shown: tuple[str, ...] = ()
    """The names of these options."""

    def extra_repr(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self._options_shown)
        return ", ".join([super().extra_repr(), *shown])


class AbstractMinimalLayer(AbstractLinearLayer):
    """What the minimal GRU and the minimal LSTM have in common."""

    _options_shown = ("form",)

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


class LRU(AbstractLinearLayer):
    """The linear recurrent unit of Orvieto et al. (2023), arXiv 2303.06349, as a layer.

    Its derivative is the one that `retrograde.cells.LRU` writes out; its state is (h, re, im). A
    layer reads as many features as it hands on, H.

    Args:
        hidden_size: H, also the number of input features.
        state_size: N, the number of complex units.
        num_layers, batch_first, dropout: as in torch.nn.LSTM.
        radius: between which |lambda| is drawn, uniform on the ring.
        device, dtype: of the weights.

    Raises:
        ArgumentError: for sizes that are none, or radii that do not ascend from 0 to 1.

    Example:
        >>> import torch, retrograde
        >>> output, (h_n, re_n, im_n) = retrograde.nn.LRU(3, 8)(torch.zeros(5, 2, 3))
        >>> output.shape, re_n.shape
        (torch.Size([5, 2, 3]), torch.Size([1, 2, 8]))
    """

    _options_shown = ("state_size",)

    def __init__(
        self,
        hidden_size: int,
        state_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        radius: tuple[float, float] = (0.5, 0.99),
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        self.state_size = _checks.whole("state_size", state_size)
        try:
            least, most = map(float, radius)
        except (TypeError, ValueError):
            least = most = math.nan
        if not 0 < least < most < 1:
            raise ArgumentError(
                "radius must be two numbers between 0 and 1, ascending, as in (0.5, 0.99); got "
                f"{_checks.shown(radius)}"
            )
        self.radius = (least, most)
        sizes = (hidden_size, hidden_size, num_layers)
        super().__init__(*sizes, True, batch_first, dropout, device=device, dtype=dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights as appendix A of the paper does."""
        least, most = (bound**2 for bound in self.radius)
        for name, weight in self.named_parameters():
            nn.init.uniform_(weight)
            match name.rpartition("_l")[0]:
                case "nu_log":
                    square = least + (most - least) * weight
                    weight.copy_((-square.log() / 2).log())
                    gamma = (1 - square).log() / 2
                case "theta_log":
                    weight.copy_((2 * torch.pi * weight).log())
                case "gamma_log":
                    weight.copy_(gamma)
                case "B_re" | "B_im":
                    nn.init.normal_(weight, std=(2 * self.hidden_size) ** -0.5)
                case "C_re" | "C_im":
                    nn.init.normal_(weight, std=self.state_size**-0.5)
                case _:
                    nn.init.normal_(weight)

    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        return lru.shapes(inputs, hidden, self.state_size)

    def _layer(self, weights: Mapping[str, Tensor]) -> cells.AbstractCell:
        return cells.LRU(**weights)


class SelectiveScan(AbstractLinearLayer):
    """Mamba's selective scan (Gu and Dao 2023, arXiv 2312.00752) as a layer, without its block.

    Its derivative is the one that `retrograde.cells.SelectiveScan` writes out; its state is (h, S).

    Args:
        hidden_size: the number of channels, of input and output alike.
        state_size: N, the states of each channel.
        rank: of the step size; hidden_size / 16, rounded up, if None.
        num_layers, bias, batch_first, dropout: as in torch.nn.LSTM.
        device, dtype: of the weights.

    Raises:
        ArgumentError: for sizes that are none.

    Example:
        >>> import torch, retrograde
        >>> output, (h_n, S_n) = retrograde.nn.SelectiveScan(3, state_size=4)(torch.zeros(5, 2, 3))
        >>> output.shape, S_n.shape
        (torch.Size([5, 2, 3]), torch.Size([1, 2, 12]))
    """

    _options_shown = ("state_size", "rank")

    def __init__(
        self,
        hidden_size: int,
        state_size: int = 16,
        rank: int | None = None,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        self.state_size = _checks.whole("state_size", state_size)
        hidden_size = _checks.whole("hidden_size", hidden_size)
        self.rank = _checks.optional_whole("rank", rank) or -(-hidden_size // 16)
        sizes = (hidden_size, hidden_size, num_layers)
        super().__init__(*sizes, bias, batch_first, dropout, device=device, dtype=dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights as the code of the paper does.

        A_n = -(n+1), D = 1, and step sizes from 0.001 to 0.1, evenly in their logarithm.
        """
        super().reset_parameters()
        for name, weight in self.named_parameters():
            match name.rpartition("_l")[0]:
                case "A_log":
                    rates = torch.arange(1, self.state_size + 1, dtype=weight.dtype)
                    weight.copy_(rates.log().repeat_interleave(self.hidden_size))
                case "D":
                    nn.init.ones_(weight)
                case "bias_delta":
                    size = (nn.init.uniform_(weight) * math.log(100) + math.log(1e-3)).exp()
                    weight.copy_(size + (-torch.expm1(-size)).log())  # softplus gives the size

    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        return selective.shapes(inputs, self.state_size, self.rank)

    def _layer(self, weights: Mapping[str, Tensor]) -> cells.AbstractCell:
        return cells.SelectiveScan(**weights)


class GatedLinearAttention(AbstractLinearLayer):
    """One head of gated linear attention (Yang et al. 2023, arXiv 2312.06635) as a layer.

    Its derivative is the one that `retrograde.cells.GatedLinearAttention` writes out; its state is
    (h, S).

    Args:
        input_size, num_layers, bias, batch_first, dropout, bidirectional: as in torch.nn.LSTM.
        hidden_size: H, the size of values and output.
        key_size: K, the size of queries and keys.
        rank: of the gate.
        tau: the root of the gate.
        device, dtype: of the weights.

    Raises:
        ArgumentError: for sizes that are none.

    Example:
        >>> import torch, retrograde
        >>> layer = retrograde.nn.GatedLinearAttention(3, 4, key_size=2)
        >>> output, (h_n, S_n) = layer(torch.zeros(5, 2, 3))
        >>> output.shape, S_n.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 8]))
    """

    _options_shown = ("key_size", "rank", "tau")

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
        key_size: int,
        rank: int = 16,
        tau: float = 16.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        self.key_size = _checks.whole("key_size", key_size)
        self.rank = _checks.whole("rank", rank)
        self.tau = _checks.positive("tau", tau)
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(
            *sizes, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype
        )

    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        return matrix_memory.attention_shapes(inputs, hidden, self.key_size, self.rank)

    def _layer(self, weights: Mapping[str, Tensor]) -> cells.AbstractCell:
        scale = self.key_size**-0.5
        return cells.GatedLinearAttention(**weights, tau=self.tau, scale=scale)


class MLSTM(AbstractLinearLayer):
    """One head of the mLSTM (Beck et al. 2024, arXiv 2405.04517) as a layer.

    Its derivative is the one that `retrograde.cells.MLSTM` writes out; its state is (h, n, C).

    Args:
        input_size, num_layers, bias, batch_first, dropout, bidirectional: as in torch.nn.LSTM.
        hidden_size: H, the size of values and output.
        key_size: K, the size of queries and keys.
        device, dtype: of the weights.

    Raises:
        ArgumentError: for sizes that are none.

    Example:
        >>> import torch, retrograde
        >>> output, (h_n, n_n, C_n) = retrograde.nn.MLSTM(3, 4, key_size=2)(torch.zeros(5, 2, 3))
        >>> output.shape, n_n.shape, C_n.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 2]), torch.Size([1, 2, 8]))
    """

    _options_shown = ("key_size",)

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
        key_size: int,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        self.key_size = _checks.whole("key_size", key_size)
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(
            *sizes, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype
        )

    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        return matrix_memory.mlstm_shapes(inputs, hidden, self.key_size)

    def _layer(self, weights: Mapping[str, Tensor]) -> cells.AbstractCell:
        return cells.MLSTM(**weights)
