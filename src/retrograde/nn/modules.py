"""The modules: LSTM (every generation), GRU (both forms) and RNN, as torch.nn has them."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from retrograde import _checks, cells
from retrograde.cells.base import standard_shapes
from retrograde.cells.gates import ACTIVATIONS
from retrograde.cells.generations import TABLE, generation
from retrograde.compiled import passes
from retrograde.errors import ArgumentError
from retrograde.nn.recurrent import AbstractRecurrent, Shapes, nearest
from retrograde.nn.traced_pass import in_graph


class LSTM(AbstractRecurrent):
    """An LSTM of any generation; constructor, call, return values and names of torch.nn.LSTM.

    Its derivative is the one that `retrograde.cells.LSTM` writes out. The generation of 2000 runs
    on torch's own kernel as long as nothing else is asked of it.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in
            torch.nn.LSTM.
        generation: a name in `retrograde.cells.generations`. Peepholes are `weight_ch_l0`, the
            weights between gates `weight_gg_l0`; with those the state is (h, c, i, f, o).
        truncated: train with the truncated backward pass of Hochreiter and Schmidhuber (1997):
            nothing comes back through h_{k-1}.
        device, dtype: of the weights.

    Raises:
        ArgumentError: for an unknown generation (the message lists them) or sizes that are none.

    Example:
        >>> import torch, retrograde
        >>> lstm = retrograde.nn.LSTM(3, 4, generation="peephole")
        >>> output, (h_n, c_n), inside = lstm(torch.zeros(5, 2, 3), return_activations=True)
        >>> inside[0]["c"].shape, inside[0]["forget"].shape
        (torch.Size([5, 2, 4]), torch.Size([5, 2, 4]))
    """

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
        generation: str = "lstm-2000",
        truncated: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        self.generation = generation
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(
            *sizes, bias, batch_first, dropout, bidirectional, truncated, device, dtype
        )

    @classmethod
    def from_torch(cls, module: nn.LSTM) -> "LSTM":
        """The same layer with this package's derivative, weights copied.

        Raises:
            ArgumentError: for anything but an nn.LSTM without projection.
        """
        if not isinstance(module, nn.LSTM) or module.proj_size:
            raise ArgumentError(
                f"expected an nn.LSTM with proj_size=0; got {_checks.shown(module)}"
            )
        return _filled(cls, module)

    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        return generation(self.generation).shapes(inputs, hidden)

    def _layer(self, weights: Mapping[str, Tensor]) -> cells.AbstractLayer:
        return cells.LSTM(**weights, generation=self.generation)

    def _kind(self, inside: bool) -> passes.Kind | None:
        on_torch = not inside and self._is_torchs and self.weight_hh_l0.dtype == torch.float32
        if on_torch and not torch.compiler.is_compiling():  # it does not trace its own kernel
            return None
        return passes.LSTMS.get(self.generation)

    def _kernel(self) -> Callable[..., Any] | None:
        if in_graph() and self.weight_hh_l0.is_cpu:  # torch.compile cannot differentiate it there
            return None
        return torch.lstm if self._is_torchs else None

    def _torch(self) -> Callable[..., nn.RNNBase] | None:
        return nn.LSTM if self._is_torchs else None

    @property
    def _is_torchs(self) -> bool:
        return generation(self.generation).name in ("lstm-2000", "np")

    def _fitting(self, found: Shapes, inputs: int, hidden: int) -> str:
        with_bias = {row.name: row.shapes(inputs, hidden) for row in TABLE}
        return nearest(found, {name: _kept(s, self.bias) for name, s in with_bias.items()})

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, generation={self.generation!r}"


class GRU(AbstractRecurrent):
    """A GRU of either form; constructor, call, return values and names of torch.nn.GRU.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in
            torch.nn.GRU.
        generation: "gru-torch" (r after the product with R_n, as torch has it) or "gru-2014"
            (before it, as in Cho et al. 2014).
        truncated: nothing comes back through recurrent weights, only along z.
        device, dtype: of the weights.

    Raises:
        ArgumentError: for an unknown generation or sizes that are none.

    Example:
        >>> import torch, retrograde
        >>> output, h_n = retrograde.nn.GRU(3, 4, generation="gru-2014")(torch.zeros(5, 2, 3))
        >>> output.shape, h_n.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

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
        generation: str = "gru-torch",
        truncated: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        if not isinstance(generation, str) or generation not in GRUS:
            raise ArgumentError(
                f"there is no GRU generation {_checks.shown(generation)}"
                f"{_checks.closest(generation, GRUS)}; there are: {_checks.listed(GRUS)}. "
                "Peepholes belong to the LSTM family: "
                "retrograde.nn.LSTM(..., generation='lstm-2002')"
            )
        self.generation = generation
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(
            *sizes, bias, batch_first, dropout, bidirectional, truncated, device, dtype
        )

    @classmethod
    def from_torch(cls, module: nn.GRU) -> "GRU":
        """The same layer with this package's derivative, weights copied.

        Raises:
            ArgumentError: for anything but an nn.GRU.
        """
        if not isinstance(module, nn.GRU):
            raise ArgumentError(f"expected an nn.GRU; got {_checks.shown(module)}")
        return _filled(cls, module)

    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        return standard_shapes(3, inputs, hidden)

    def _layer(self, weights: Mapping[str, Tensor]) -> cells.AbstractLayer:
        return GRUS[self.generation](**weights)

    def _kind(self, inside: bool) -> passes.Kind | None:
        return passes.GRUS[self.generation]

    def _kernel(self) -> Callable[..., Any] | None:
        return torch.gru if self.generation == "gru-torch" else None

    def _torch(self) -> Callable[..., nn.RNNBase] | None:
        return nn.GRU if self.generation == "gru-torch" else None

    def _fitting(self, found: Shapes, inputs: int, hidden: int) -> str:
        shapes = _kept(standard_shapes(3, inputs, hidden), self.bias)
        return nearest(found, {name: shapes for name in GRUS})

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, generation={self.generation!r}"


class RNN(AbstractRecurrent):
    """The plain (Elman) RNN; constructor, call, return values and names of torch.nn.RNN.

    Args:
        input_size, hidden_size, num_layers: as in torch.nn.RNN.
        nonlinearity: "tanh" or "relu", as in torch.nn.RNN, or "sigmoid", "identity", ...
        bias, batch_first, dropout, bidirectional: as in torch.nn.RNN.
        truncated: nothing comes back through recurrent weights, and so no step sees another.
        device, dtype: of the weights.

    Raises:
        ArgumentError: for an unknown nonlinearity or sizes that are none.

    Example:
        >>> import torch, retrograde
        >>> output, h_n = retrograde.nn.RNN(3, 4, nonlinearity="sigmoid")(torch.zeros(5, 2, 3))
        >>> torch.equal(output[-1], h_n[0])
        True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        truncated: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        self.nonlinearity = _checks.one_of("nonlinearity", nonlinearity, ACTIVATIONS)
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(
            *sizes, bias, batch_first, dropout, bidirectional, truncated, device, dtype
        )

    @classmethod
    def from_torch(cls, module: nn.RNN) -> "RNN":
        """The same layer with this package's derivative, weights copied.

        Raises:
            ArgumentError: for anything but an nn.RNN.
        """
        if not isinstance(module, nn.RNN):
            raise ArgumentError(f"expected an nn.RNN; got {_checks.shown(module)}")
        return _filled(cls, module, nonlinearity=module.nonlinearity)

    def _shapes(self, inputs: int, hidden: int) -> Shapes:
        return standard_shapes(1, inputs, hidden)

    def _layer(self, weights: Mapping[str, Tensor]) -> cells.AbstractLayer:
        return cells.Elman(**weights, activation=self.nonlinearity)

    def _kind(self, inside: bool) -> passes.Kind:
        return passes.ELMANS[self.nonlinearity]

    def _kernel(self) -> Callable[..., Any] | None:
        return {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}.get(self.nonlinearity)

    def _torch(self) -> Callable[..., nn.RNNBase] | None:
        return nn.RNN if self.nonlinearity in ("tanh", "relu") else None

    def _fitting(self, found: Shapes, inputs: int, hidden: int) -> str:
        return "An RNN has weight_ih [H, I], weight_hh [H, H] and two biases [H] in every layer"

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "nonlinearity": self.nonlinearity}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nonlinearity={self.nonlinearity!r}"


GRUS: Mapping[str, Callable[..., cells.AbstractLayer]] = {
    "gru-torch": cells.GRU,
    "gru-2014": cells.GRU2014,
}


def _kept(shapes: Shapes, bias: bool) -> Shapes:
    return {name: shape for name, shape in shapes.items() if bias or not name.startswith("bias")}


Module = TypeVar("Module", bound=AbstractRecurrent)


def _filled(kind: Callable[..., Module], module: nn.RNNBase, **options: Any) -> Module:
    """A module of this package with the sizes and the weights of one of torch's."""
    sizes = ("input_size", "hidden_size", "num_layers", "dropout")
    flags = ("bias", "batch_first", "bidirectional")  # torch takes 0 and 1 as well
    weight = next(module.parameters())
    given = {name: getattr(module, name) for name in sizes}
    given |= {name: bool(getattr(module, name)) for name in flags}
    # Made on the meta device, where no numbers are drawn.
    filled = kind(**given, **options, device="meta", dtype=weight.dtype).to_empty(
        device=weight.device
    )
    filled.load_state_dict(module.state_dict())
    return filled.train(module.training)
