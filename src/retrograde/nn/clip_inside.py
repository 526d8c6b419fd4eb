"""Clipping inside the back-propagation of any model's recurrent layers."""

from collections.abc import Mapping
from functools import cache
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn

from retrograde import _checks
from retrograde.cells import Position, clipped
from retrograde.clipping import AbstractInside
from retrograde.clipping.policies import is_inside
from retrograde.errors import ArgumentError
from retrograde.nn.clipping import Clipping
from retrograde.nn.recurrent import AbstractRecurrent
from retrograde.nn.sequence import Sequences, State, sizes_of, through
from retrograde.nn.torch_layers import torch_cells

Layer = nn.RNNBase | AbstractRecurrent
OWN = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)
"""The forwards whose steps are known; a recording that runs wraps them."""


class ClippedInside:
    """The layers of a model in whose back-propagation a policy acts; made by `clip_inside`.

    Attributes:
        policy: what clips.
        layers: the names of the layers.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> inside = retrograde.nn.clip_inside(lstm, retrograde.clipping.StateNorm(1e6))
        >>> lstm(torch.ones(5, 4, 2))[0].sum().backward()
        >>> inside.clip_rate  # the share of steps and samples that were clipped, by layer
        {'LSTM': 0.0}
        >>> inside.remove()
    """

    def __init__(self, policy: AbstractInside, layers: Mapping[str, Layer]):
        self.policy, self.layers = policy, tuple(layers)
        self._modules = layers
        self._by_layer = {name: Clipping(policy) for name in layers}
        for name, module in layers.items():
            if isinstance(module, nn.RNNBase):
                module.__class__ = _clipping_kind(type(module))  # type: ignore[arg-type]
            module.clipping = self._by_layer[name]

    @property
    def clip_rate(self) -> Mapping[str, float]:
        """By layer, the share of what the policy looked at that it made smaller; NaN before any.

        It looks at the elements of the pre-activations' adjoints, or at each sample's state at each
        step, as it is made.
        """
        return {name: clipping.clip_rate for name, clipping in self._by_layer.items()}

    @property
    def bit(self) -> Mapping[str, float]:
        """`clip_rate` under its earlier name, until 0.2."""
        return self.clip_rate

    def remove(self) -> None:
        """Leave the layers as they were, with the weights that they have now.

        Raises:
            ArgumentError: for a layer that was parametrized since, which is of another class now.
        """
        _take_off(self._modules)
        self._modules = {}


def clip_inside(model: nn.Module, policy: AbstractInside) -> ClippedInside:
    """Have a policy act inside the back-propagation of every recurrent layer of a model.

    Weights, their names and the optimiser that holds them stay, and the forward pass gives what it
    gave. Layers of torch.nn run on this package's recurrence as long as gradients are wanted, which
    takes longer than torch's kernel, but not with `PreActivationValue` on the compiled backend;
    without gradients they run as ever. What is recorded of the
    model is the clipped pass, taken apart exactly.

        inside = retrograde.nn.clip_inside(model, retrograde.clipping.PreActivationValue(1.0))
        ...                       # train as ever; a Clipper may clip at the end as well
        inside.clip_rate          # how often it clipped
        inside.remove()

    Under autocast the layers run in the data type of their weights. With a gradient scaler the
    adjoints are scaled, and a threshold means something else.

    Args:
        model: any module with layers of torch.nn (nn.LSTM, nn.GRU, nn.RNN, in all their forms) or
            `retrograde.nn` inside, or one of these.
        policy: `PreActivationValue`, `StateNorm`, `HDetach`, or a `chain` of them.

    Returns:
        A handle with statistics, which can take the policy away again.

    Raises:
        ArgumentError: for a policy that acts at the end, a model without such layers, one that is
            clipped inside already, and layers whose steps are not the package's to take (a subclass
            with a forward of its own, nn.LSTMCell and the like).

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> policy = retrograde.clipping.PreActivationValue(1e-3)
        >>> inside = retrograde.nn.clip_inside(lstm, policy)
        >>> lstm(torch.ones(5, 4, 2))[0].sum().backward()
        >>> inside.clip_rate["LSTM"] > 0.5
        True
        >>> inside.remove()
    """
    is_inside(policy)
    _checks.model("model", model)
    layers: dict[str, Layer] = {}
    for path, module in model.named_modules():
        name = path or type(module).__name__
        if isinstance(module, nn.RNNCellBase):
            raise ArgumentError(
                f"{name!r} is an {type(module).__name__}, stepped in a loop by the model; "
                f"clip_inside takes whole layers. Use an nn.{type(module).__name__[:-4]} there"
            )
        if not isinstance(module, nn.RNNBase | AbstractRecurrent):
            continue
        if getattr(module, "clipping", None):
            raise ArgumentError(
                f"{name!r} is already clipped inside; remove that policy first, by remove() of "
                "what clip_inside returned or by retrograde.nn.unclip(model), or chain "
                "the policies"
            )
        if isinstance(module, nn.RNNBase) and unwrap(type(module).forward) not in OWN:
            raise ArgumentError(
                f"{name!r} is a {type(module).__name__}, which has a forward of its own, so that "
                "its steps cannot be taken one by one; wrap an nn.LSTM, nn.GRU or nn.RNN instead "
                "of deriving from it"
            )
        layers[name] = module
    if not layers:
        raise ArgumentError(
            f"{type(model).__name__} holds no recurrent layer: expected an nn.LSTM, nn.GRU, nn.RNN "
            "or one of retrograde.nn somewhere inside"
        )
    return ClippedInside(policy, layers)


def unclip(model: nn.Module) -> None:
    """Take every policy of `clip_inside` off a model: as `remove()` does, and for a copy of it too.

    Raises:
        ArgumentError: for a layer that was parametrized since, which is of another class now.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> inside = retrograde.nn.clip_inside(lstm, retrograde.clipping.StateNorm(1.0))
        >>> retrograde.nn.unclip(lstm)
        >>> type(lstm)
        <class 'torch.nn.modules.rnn.LSTM'>
    """
    _checks.model("model", model)
    _take_off(
        {
            path or type(module).__name__: module
            for path, module in model.named_modules()
            if isinstance(module, nn.RNNBase | AbstractRecurrent)
            and getattr(module, "clipping", None)
        }
    )


def _take_off(layers: Mapping[str, Layer]) -> None:
    for name, module in layers.items():
        if isinstance(module, _ClippedLayer) and "original" not in vars(type(module)):
            raise ArgumentError(
                f"{name!r} was parametrized after clip_inside: remove its parametrizations, remove "
                "the policy, then parametrize it again"
            )
    for module in layers.values():
        if isinstance(module, _ClippedLayer):
            del module.clipping
            module.__class__ = type(module).original  # type: ignore[assignment]
        else:
            module.clipping = None


class _ClippedLayer(nn.RNNBase):
    """What a layer of torch becomes while a policy acts in its back-propagation."""

    original: type[nn.RNNBase]
    clipping: Clipping

    def forward(self, input: Any, hx: State | None = None) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(input, hx)
        names = [name for of_layer in self._all_weights for name in of_layer]
        weights: dict[str, Tensor] = {name: getattr(self, name) for name in names}
        every = Position.every(self.num_layers, self.bidirectional)
        plain = torch_cells(self.mode, tuple(each.suffix for each in every), weights)
        cells = [clipped(cell, self.clipping.policy) for cell in plain]
        dtype = next(iter(weights.values())).dtype
        sequences = Sequences.of(input, self.input_size, self.batch_first, dtype)
        initial = sequences.initial(hx, len(cells), sizes_of(cells[0]))
        output, last, _ = through(
            cells,
            sequences,
            initial,
            directions=1 + self.bidirectional,
            dropout=self.dropout if self.training else 0.0,
            note=self.clipping.note,
        )
        return sequences.as_given(output), sequences.state(last)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _made_again, (self.original,), self.__getstate__()  # type: ignore[no-untyped-call]


@cache
def _clipping_kind(kind: type[nn.RNNBase]) -> type[_ClippedLayer]:
    """The class of a layer of this class while a policy acts in it."""
    return type(kind.__name__, (_ClippedLayer, kind), {"original": kind})


def _made_again(kind: type[nn.RNNBase]) -> nn.RNNBase:
    """An empty layer, to be filled by copy or pickle."""
    new = _clipping_kind(kind)  # type: ignore[arg-type]
    return new.__new__(new)
