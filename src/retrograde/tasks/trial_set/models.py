"""What the cases are made of: small models, their data and losses. Sizes differ in every axis."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from retrograde.tasks.trial_set.case import LossFunction, Made

B, T, I, H = 7, 11, 3, 5  # noqa: E741
"""Samples, steps, inputs and hidden units where nothing else is said."""

FEATURES, BATCH, HIDDEN = 3, 8, 16
"""Inputs, samples and hidden units of a forecaster."""

Read = Callable[..., Tensor]
Batch = tuple[Tensor, Tensor]


class Forecaster(nn.Module):
    """A recurrent layer and a linear output layer, read at the last step or at every one."""

    recurrent: Any

    def __init__(self, recurrent: nn.Module, size: int = HIDDEN, last: bool = True):
        super().__init__()
        self.recurrent, self.head, self.last = recurrent, nn.Linear(size, 1), last

    def forward(self, x: Tensor) -> Tensor:
        """x [T, B, I] to a forecast [B, 1], or [T, B, 1]."""
        h = self.recurrent(x)[0]
        forecast: Tensor = self.head(h[-1] if self.last else h)
        return forecast


class Model(nn.Module):
    """A model of some modules and a function of them."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._function = function

    def forward(self, *inputs: Any) -> Tensor:
        """Whatever the function makes of the model and its inputs."""
        return self._function(self, *inputs)


def mse(model: nn.Module, batch: Any) -> Tensor:
    """The mean squared error of a model of all but the last part of the batch."""
    *x, y = batch
    return F.mse_loss(model(*x), y)


def squared(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error, written by hand."""
    x, y = batch
    loss: Tensor = (model(x) - y).square().mean()
    return loss


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """The cross-entropy of logits."""
    *x, y = batch
    return F.cross_entropy(model(*x), y)


def each_step(model: nn.Module, batch: Any) -> Tensor:
    """The cross-entropy of logits [B, T, classes] at every step."""
    *x, y = batch
    return F.cross_entropy(model(*x).flatten(0, 1), y.flatten())


def by_hand(reduce: Callable[[Tensor], Tensor]) -> LossFunction:
    """A function of the difference between prediction and target."""
    return lambda model, batch: reduce(model(batch[0]) - batch[1])


def made(
    forward: Callable[..., Tensor],
    batch: Callable[[], Any],
    loss: LossFunction = mse,
    **modules: Callable[[], nn.Module],
) -> Callable[[], Made]:
    """The modules and then the batch are made when they are needed."""

    def make() -> Made:
        model = Model(forward, **{name: module() for name, module in modules.items()})
        return model, batch(), loss

    return make


def regression(
    read: Read,
    layer: Callable[[], nn.Module] = lambda: nn.LSTM(I, H, batch_first=True),
    features: int = 0,
    x: tuple[int, ...] = (B, T, I),
    y: tuple[int, ...] = (B, 1),
    loss: LossFunction = mse,
) -> Callable[[], Made]:
    """A layer that is read in some way, and a linear output layer."""

    def make() -> Made:
        rnn: Any = layer()
        head = nn.Linear(features or rnn.hidden_size, y[-1])
        model = Model(lambda m, *inputs: m.head(read(m.rnn, *inputs)), rnn=rnn, head=head)
        return model, (torch.randn(x), torch.randn(y)), loss

    return make


def compared(
    loss: LossFunction, targets: Callable[[], Tensor], outputs: int = 1
) -> Callable[[], Made]:
    """A GRU read at its last step, and a loss."""
    return made(
        read_last,
        lambda: (torch.randn(B, T, I), targets()),
        loss,
        rnn=gru(),
        head=linear(outputs),
    )


def gru(inputs: int = I, hidden: int = H, **options: Any) -> Callable[[], nn.Module]:
    """Makes a GRU, batch first."""
    return lambda: nn.GRU(inputs, hidden, **{"batch_first": True, **options})


def lstm(inputs: int = I, hidden: int = H, **options: Any) -> Callable[[], nn.Module]:
    """Makes an LSTM, batch first."""
    return lambda: nn.LSTM(inputs, hidden, **{"batch_first": True, **options})


def rnn(inputs: int = I, hidden: int = H, **options: Any) -> Callable[[], nn.Module]:
    """Makes a plain RNN, batch first."""
    return lambda: nn.RNN(inputs, hidden, **{"batch_first": True, **options})


def linear(outputs: int = 1, inputs: int = H) -> Callable[[], nn.Module]:
    """Makes an output layer."""
    return lambda: nn.Linear(inputs, outputs)


def data(*y: int, x: tuple[int, ...] = (B, T, I)) -> Callable[[], Batch]:
    """Random inputs and targets."""
    return lambda: (torch.randn(x), torch.randn(*y or (B, 1)))


def read_last(m: Any, x: Tensor) -> Tensor:
    """The last step of a layer called rnn."""
    read: Tensor = m.head(m.rnn(x)[0][:, -1])
    return read


def every_step(m: Any, x: Tensor) -> Tensor:
    """All steps of a layer called rnn."""
    read: Tensor = m.head(m.rnn(x)[0])
    return read


def last(layer: Any, x: Tensor) -> Tensor:
    """The last output of a layer, batch first."""
    h: Tensor = layer(x)[0][:, -1]
    return h


def last_states(layer: Any, x: Any) -> Tensor:
    """h_n."""
    state = layer(x)[1]
    h: Tensor = state[0] if isinstance(state, tuple) else state
    return h


def lengths_of(samples: int, longest: int, shortest: int = 2) -> Tensor:
    """Lengths of samples, of which the first is the longest."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(shortest, longest, (samples,), generator=generator)
    lengths[0] = longest
    return lengths


def beyond(lengths: Tensor, longest: int) -> Tensor:
    """Which steps are padding, [B, T]."""
    return torch.arange(longest)[None] >= lengths[:, None]


def packed(x: Tensor, lengths: Tensor) -> Any:
    """A packed sequence, in any order of lengths."""
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def packed_out(layer: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """The outputs of a layer that reads packed sequences, padded with 0."""
    return pad_packed_sequence(layer(packed(x, lengths))[0], batch_first=True)[0]


def at_lengths(out: Tensor, lengths: Tensor) -> Tensor:
    """The last output of each sample."""
    return out[torch.arange(len(out)), lengths - 1]


def constant(layer: nn.Module, value: float) -> nn.Module:
    """The layer, all its parameters one number."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)
    return layer


def filled(layer: Callable[[], nn.Module], draw: Callable[[Tensor], object]) -> Callable[[], Any]:
    """Makes the layer, with parameters drawn otherwise."""

    def make() -> nn.Module:
        module = layer()
        with torch.no_grad():
            for parameter in module.parameters():
                draw(parameter)
        return module

    return make


def recurrent_weights(layer: nn.Module) -> list[Tensor]:
    """The matrices from state to state."""
    return [weight for name, weight in layer.named_parameters() if name.startswith("weight_hh")]


def changed(
    layer: Callable[[], nn.Module], *changes: Callable[[Any], object]
) -> Callable[[], nn.Module]:
    """Makes the layer and changes it in place."""

    def make() -> nn.Module:
        module = layer()
        with torch.no_grad():
            for change in changes:
                change(module)
        return module

    return make


def scaled(factor: float) -> Callable[[nn.Module], None]:
    """Multiplies the recurrent weights."""

    def change(layer: nn.Module) -> None:
        for weight in recurrent_weights(layer):
            weight *= factor

    return change


def orthogonal(gain: float = 1.0) -> Callable[[nn.Module], None]:
    """Makes the recurrent weights of each gate orthogonal."""

    def change(layer: nn.Module) -> None:
        for weight in recurrent_weights(layer):
            for gate in weight.chunk(len(weight) // weight.shape[1]):
                nn.init.orthogonal_(gate, gain)

    return change


def keeping_bias(value: float, both: bool = False, suffix: str = "_l0") -> Callable[[Any], None]:
    """Sets the bias of the second gate: an LSTM's forget gate, a GRU's update gate."""

    def change(layer: Any) -> None:
        gate = slice(layer.hidden_size, 2 * layer.hidden_size)
        getattr(layer, f"bias_ih{suffix}")[gate] = value
        getattr(layer, f"bias_hh{suffix}")[gate] = value if both else 0.0

    return change
