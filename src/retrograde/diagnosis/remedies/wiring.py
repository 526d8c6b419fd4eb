"""Another way through the layer: in windows, at lengths, in both directions, past it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from retrograde.diagnosis.experiments.padding import padding
from retrograde.diagnosis.remedies.generations import projects
from retrograde.diagnosis.remedies.remedy import Applied, Target, Unfit, remedy
from retrograde.errors import ArgumentError
from retrograde.nn import GRU, LSTM, RNN


class Windows(nn.Module):
    """A recurrent layer that runs in windows and detaches its state between them."""

    def __init__(self, layer: nn.Module, steps: int):
        super().__init__()
        self.layer, self.steps = layer, steps

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """As the layer's own."""
        outputs: list[Tensor] = []
        time = 1 if self.layer.batch_first and x.ndim == 3 else 0
        for part in torch.split(x, self.steps, time):
            if outputs:
                state = _detached(state)
            output, state = self.layer(part, state)
            outputs.append(output)
        return torch.cat(outputs, time), state


def _detached(state: Any) -> Any:
    return state.detach() if isinstance(state, Tensor) else tuple(map(_detached, state))


@remedy(
    "window",
    "Truncated back-propagation through time: the state is detached each time the lag that "
    "matters has passed, so that growth ends there, and so does everything that could be "
    "learned beyond.",
)
def window(target: Target) -> Applied:
    layer, steps = target.layer, target.lag + 1
    if not isinstance(layer, nn.RNNBase | LSTM | GRU | RNN) or layer.bidirectional:
        raise Unfit
    time = 1 if layer.batch_first else 0
    code = (
        "state, outputs = None, []\n"
        f"for part in x.split({steps}, {time}):\n"
        f"    output, state = {target.here}(part, state)\n"
        + (
            "    state = tuple(part.detach() for part in state)\n"
            if isinstance(layer, nn.LSTM | LSTM)
            else "    state = state.detach()\n"
        )
        + "    outputs.append(output)\n"
        f"output = torch.cat(outputs, {time})"
    )
    target.replace(Windows(layer, steps), "layer")
    return Applied(f"truncated back-propagation: the state detached every {steps} steps", code)


class AtLengths(nn.Module):
    """A recurrent layer that stops at the padding; its last step is each sample's own last."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """As the layer's own."""
        first = bool(self.layer.batch_first)
        steps = x.shape[1 if first else 0]
        run = padding(x.transpose(0, 1) if first else x)
        if run is None:
            return self.layer(x, state)
        lengths = (steps - run).clamp(min=1)
        packed = pack_padded_sequence(x, lengths.cpu(), first, enforce_sorted=False)
        packed, state = self.layer(packed, state)
        output, _ = pad_packed_sequence(packed, first, total_length=steps)
        samples = torch.arange(len(lengths), device=x.device)
        output = output.transpose(0, 1) if first else output
        last = output[lengths - 1, samples]
        output = torch.cat((output[:-1], last.unsqueeze(0)))
        return (output.transpose(0, 1) if first else output), state


@remedy(
    "read-at-lengths",
    "The sequences are packed, so that the state stops where a sample ends, and what is read at "
    "the last step is the state there.",
    "Read each sample at its own last step",
    "Or pack them",
)
def read_at_lengths(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.RNNBase):
        raise Unfit
    first = "batch_first=True, " if layer.batch_first else ""
    code = (
        "packed = torch.nn.utils.rnn.pack_padded_sequence(\n"
        f"    x, lengths, {first}enforce_sorted=False\n"
        ")\n"
        f"output, h_n = {target.here}(packed)  # h_n[-1] is the state at each sample's last step"
    )
    target.replace(AtLengths(layer), "layer")
    return Applied("each sample read at its own last step", code, by_training=True)


@remedy(
    "batch-first",
    "The layer takes the other axis for time: samples along the first axis are steps to a layer "
    "without `batch_first`, and its state goes from one sample to the next.",
    "batch_first",
)
def batch_first(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.RNNBase):
        raise Unfit
    layer.batch_first = not layer.batch_first
    words = f"batch_first={layer.batch_first}"
    return Applied(words, f"{target.here}.batch_first = {layer.batch_first}")


class BothDirections(nn.Module):
    """A bidirectional layer whose last step, and last state, hold the ends of both directions."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """As the layer's own, but for the last step and the last state."""
        output, state = self.layer(x, state)
        if not isinstance(output, Tensor):
            raise ArgumentError("the layer reads a packed sequence; take both of h_n")
        time = 1 if self.layer.batch_first else 0
        half = output.shape[-1] // 2
        ahead, back = torch.split(output, half, -1)
        ends = torch.cat((ahead.select(time, -1), back.select(time, 0)), -1).unsqueeze(time)
        output = torch.cat((output.narrow(time, 0, output.shape[time] - 1), ends), time)
        h = state if isinstance(state, Tensor) else state[0]
        h = torch.cat((h[:-1], h[-1:] + h[-2:-1]))
        return output, h if isinstance(state, Tensor) else (h, *state[1:])


@remedy(
    "both-directions",
    "Each direction of a bidirectional layer is read where it has seen the whole sequence: the "
    "forward one at the last step, the reverse one at the first.",
    "h_n[-1] of a bidirectional layer",
    "out[:, -1] of a bidirectional layer",
    "Read both directions",
    "Read the last state of each direction",
)
def both_directions(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.RNNBase) or not layer.bidirectional:
        raise Unfit
    state = "output, (h_n, c_n)" if isinstance(layer, nn.LSTM) else "output, h_n"
    code = (
        f"{state} = {target.here}(x)\n"
        "last = torch.cat((h_n[-2], h_n[-1]), dim=-1)  # 2 * hidden_size features"
    )
    target.replace(BothDirections(layer), "layer")
    return Applied("both directions read where they end", code)


class Residual(nn.Module):
    """The layers of a stack one by one, each adding its output to what it reads."""

    def __init__(self, stack: Any):
        super().__init__()
        self.batch_first, self.dropout = stack.batch_first, stack.dropout
        self.directions = 2 if stack.bidirectional else 1
        self.layers = nn.ModuleList(
            type(stack)(
                stack.input_size if number == 0 else self.directions * stack.hidden_size,
                stack.hidden_size,
                bias=stack.bias,
                batch_first=stack.batch_first,
                bidirectional=stack.bidirectional,
            )
            for number in range(stack.num_layers)
        )
        self.layers.to(next(stack.parameters()))
        with torch.no_grad():
            for number, layer in enumerate(self.layers):
                for name, weight in layer.named_parameters():
                    weight.copy_(stack.get_parameter(name.replace("_l0", f"_l{number}")))

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """As the stack's own."""
        ends = []
        for number, layer in enumerate(self.layers):
            output, end = layer(x, self._part(state, number))
            ends.append(end)
            x = output if number == 0 else x + output
            if number < len(self.layers) - 1:
                x = nn.functional.dropout(x, self.dropout, self.training)
        if isinstance(ends[0], Tensor):
            return x, torch.cat(ends)
        return x, tuple(map(torch.cat, zip(*ends, strict=True)))

    def _part(self, state: Any, number: int) -> Any:
        if state is None:
            return None
        rows = slice(number * self.directions, (number + 1) * self.directions)
        return state[rows] if isinstance(state, Tensor) else tuple(part[rows] for part in state)


@remedy(
    "residual",
    "Every layer of a stack but the first adds its output to what it reads, so that the gradient "
    "has a way down that no layer shrinks.",
    "Each layer passes on a part of what it receives",
    "Add residual connections",
)
def residual(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.RNN | nn.GRU | nn.LSTM) or layer.num_layers < 2:
        raise Unfit
    if projects(layer) or is_parametrized(layer):
        raise Unfit
    kind = f"torch.nn.{type(layer).__name__}"
    code = (
        f"# layers: {layer.num_layers} of {kind} with num_layers=1, in a ModuleList\n"
        "x, _ = layers[0](x)\n"
        "for layer in layers[1:]:\n"
        "    x = x + layer(x)[0]"
    )
    target.replace(Residual(layer), "layers.0")
    return Applied("residual connections between the layers", code)
