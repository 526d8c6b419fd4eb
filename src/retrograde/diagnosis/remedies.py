"""What can be done to a layer, and the lines of code that do it to the user's own model.

A remedy is a function that changes a copied model, or raises `Unfit` where it has no place in the
layer, with a name and a description. The description is text that the program prints, so it is data
and no docstring, which `python -OO` removes.
"""

import keyword
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from retrograde.cells.gates import with_role
from retrograde.cells.generations import generation
from retrograde.clipping import StateNorm
from retrograde.diagnosis.activity import keeping_for
from retrograde.diagnosis.experiments.padding import padding
from retrograde.errors import ArgumentError
from retrograde.nn import GRU, LSTM, RNN, initialise
from retrograde.nn import clip_inside as hold

Afterwards = Callable[[nn.Module], None]


class Unfit(Exception):
    """A remedy that has no place in this layer."""


@dataclass(eq=False)
class Target:
    """A copied model with one layer that a remedy changes.

    Attributes:
        model: the copy; a remedy may put another in its place.
        name: the layer's name in a recording.
        path: its place in the model, "" for the model itself.
        lag: the lag that it needs, in steps.
        after: what runs after the recurrent layers and has weights, by place.
        entering: the largest norm with which the loss enters a sample's state at any step.
        targets: mean and standard deviation of what predictions are compared with, if that is
            known of a regression.
    """

    model: nn.Module
    name: str
    path: str
    lag: int
    after: tuple[str, ...]
    entering: float
    targets: tuple[float, float] | None = None

    @property
    def layer(self) -> nn.Module:
        return self.model.get_submodule(self.path)

    @property
    def here(self) -> str:
        """The layer as an expression in the user's code."""
        return expression(self.path)

    def replace(self, layer: nn.Module, inner: str = "") -> None:
        """Put another module in the layer's place; its recurrent layer may lie inside it."""
        layer.train(self.layer.training)
        if self.path:
            self.model.set_submodule(self.path, layer)
        else:
            self.model, self.name = layer, type(layer).__name__
        if inner:
            self.name = f"{self.path}.{inner}" if self.path else inner


def expression(path: str) -> str:
    """A place in a model as Python: "model.encoder.lstm", or get_submodule where that is none."""
    if not path:
        return "model"
    if all(part.isidentifier() and not keyword.iskeyword(part) for part in path.split(".")):
        return f"model.{path}"
    return f"model.get_submodule({path!r})"


def assignment(path: str, value: str) -> str:
    """The line that puts another module in a place: what is no expression cannot be assigned to."""
    here = expression(path)
    if here.startswith("model.get_submodule("):
        return f"model.set_submodule({path!r}, {value})"
    return f"{here} = {value}"


@dataclass(frozen=True)
class Applied:
    """What was done to a layer.

    Attributes:
        title: in a line.
        code: the lines that do it to the user's model.
        afterwards: what is left to do after the backward pass.
        note: what a reader must know about it.
        by_training: whether training tells more of it than one pass does.
        rate: what it multiplies the learning rate by.
        loss_scale: what the loss is multiplied by for the backward pass, and the gradient divided
            by after it.
    """

    title: str
    code: str
    afterwards: Afterwards | None = None
    note: str = ""
    by_training: bool = False
    rate: float = 1.0
    loss_scale: float = 1.0


@dataclass(frozen=True)
class Remedy:
    """Something that can be tried.

    Attributes:
        name: by which rules and reports call it.
        description: what it does to a layer and why, as reports and `retrograde explain` print it.
        apply: does it to a copy, and says what was done.
        claims: how causes and advice begin that say the same, and fall where training refutes it.
    """

    name: str
    description: str
    apply: Callable[[Target], Applied]
    claims: tuple[str, ...] = ()


REMEDIES: dict[str, Remedy] = {}
"""All that can be tried, by name."""


def remedy(
    name: str, description: str, *claims: str
) -> Callable[[Callable[[Target], Applied]], Callable[[Target], Applied]]:
    """Enter the function below it into `REMEDIES`."""

    def enter(apply: Callable[[Target], Applied]) -> Callable[[Target], Applied]:
        REMEDIES[name] = Remedy(name, description, apply, claims)
        return apply

    return enter


def _initialise(target: Target, name: str, title: str, **options: Any) -> Applied:
    try:
        initialise(target.layer, name, **options)  # type: ignore[arg-type]
    except ArgumentError as error:
        raise Unfit from error
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    return Applied(title, f'retrograde.nn.initialise({target.here}, "{name}"{given})')


def bias_for(lag: int) -> float:
    """The forget bias b at which sigma(b)^lag is 1 %, but 1 at least, with two digits."""
    f = keeping_for(lag)
    return round(max(1.0, math.log(f / (1 - f))), 2)


@remedy(
    "forget-bias",
    "The forget gate's bias (a GRU's update gate) is set so high that 1 % of the state is "
    "left after the lag that matters, and to 1 at least; torch draws it around 0, where half "
    "is lost at a step.",
    "The gate's bias is too low",
    "Set the gate's bias",
    "Give the units a longer time constant",
)
def forget_bias(target: Target) -> Applied:
    value = bias_for(target.lag)
    title = f"forget bias {value:g} (keeps 1 % over {target.lag} steps)"
    return _initialise(target, "forget-bias", title, value=value)


@remedy(
    "chrono",
    "The biases of forget (update) and input gates are drawn so that time constants spread "
    "evenly up to the lag that matters: some units keep for long, others forget at once "
    "(Tallec and Ollivier, 2018).",
    "Set the gate's bias",
    "Give the units a longer time constant",
    "Initialise for that horizon",
)
def chrono(target: Target) -> Applied:
    horizon = max(3, target.lag)
    title = f"chrono initialisation for {horizon} steps"
    return _initialise(target, "chrono", title, horizon=horizon)


@remedy(
    "orthogonal",
    "Each gate's recurrent weights become a random orthogonal matrix, which changes no "
    "length: what still shrinks or grows is due to slopes and gates.",
    "Make the recurrent weights smaller, or orthogonal",
    "Start the recurrent weights from an orthogonal matrix",
)
def orthogonal(target: Target) -> Applied:
    return _initialise(target, "orthogonal", "orthogonal recurrent weights")


@remedy(
    "identity",
    "The recurrent weights of a relu RNN become the identity, its biases 0 and its input "
    "weights small: an active unit hands its state and its gradient on as they are (Le, "
    "Jaitly and Hinton, 2015).",
)
def identity(target: Target) -> Applied:
    return _initialise(target, "identity", "identity recurrent weights (relu RNN)")


@remedy(
    "fresh",
    "All weights of the layer are drawn anew as torch draws them, from U(-1/sqrt(H), "
    "1/sqrt(H)): it tells whether the fault lies in the weights or in the input.",
    "The recurrent weights or the biases are large",
    "Start from smaller weights",
    "Draw fresh weights",
    "Draw them as torch does",
)
def fresh(target: Target) -> Applied:
    return _initialise(target, "torch", "fresh weights, torch's default")


@remedy(
    "spectral-radius",
    "Each gate's recurrent weights are divided by their spectral radius: below 1 a linear "
    "recurrence vanishes, above 1 it can explode (Pascanu, Mikolov and Bengio, 2013).",
)
def spectral_radius(target: Target) -> Applied:
    return _scaled(target, "spectral radius", "torch.linalg.eigvals(gate).abs().max()")


@remedy(
    "spectral-norm",
    "Each gate's recurrent weights are divided by their largest singular value, so that they "
    "stretch nothing: a plain RNN explodes only where that value is above 1 (Pascanu, Mikolov "
    "and Bengio, 2013).",
)
def spectral_norm(target: Target) -> Applied:
    return _scaled(target, "largest singular value", "torch.linalg.matrix_norm(gate, 2)")


def _scaled(target: Target, what: str, size: str) -> Applied:
    sizes: dict[str, Callable[[Tensor], Tensor]] = {
        "spectral radius": lambda gate: torch.linalg.eigvals(gate).abs().max(),
        "largest singular value": lambda gate: torch.linalg.matrix_norm(gate, 2),
    }
    half = next(target.layer.parameters()).dtype in (torch.float16, torch.bfloat16)
    named = [w for n, w in target.layer.named_parameters() if n.startswith("weight_hh")]
    if not named or any(len(w) % w.shape[1] or not bool(w.isfinite().all()) for w in named):
        raise Unfit
    with torch.no_grad():
        for weight in named:
            for gate in torch.split(weight, weight.shape[1]):
                gate /= sizes[what](gate.float() if half else gate)
    return Applied(
        f"recurrent weights scaled to {what} 1",
        "with torch.no_grad():\n"
        f"    for name, weight in {target.here}.named_parameters():\n"
        '        if name.startswith("weight_hh"):\n'
        "            for gate in weight.split(weight.shape[1]):\n"
        f"                gate /= {size.replace('(gate', '(gate.float()') if half else size}",
    )


def _sizes(layer: nn.Module) -> dict[str, Any]:
    """The constructor arguments of a recurrent layer, those that are not torch's defaults."""
    defaults = {
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
    }
    given = {name: getattr(layer, name) for name in defaults}
    return {name: value for name, value in given.items() if value != defaults[name]}


def _call(kind: str, layer: Any, **options: Any) -> str:
    named = {**_sizes(layer), **options}
    weight = next(layer.parameters())
    if weight.device.type != "cpu":
        named["device"] = str(weight.device)
    words = [str(layer.input_size), str(layer.hidden_size)]
    words += [f"{name}={value!r}" for name, value in named.items()]
    if weight.dtype != torch.get_default_dtype():
        words.append(f"dtype={weight.dtype}")
    return f"{kind}({', '.join(words)})"


def _made(kind: Callable[..., nn.Module], layer: Any, **options: Any) -> nn.Module:
    """A layer of another kind with the same sizes, on the same device, drawn in the same type."""
    weight = next(layer.parameters())
    options |= {"device": weight.device, "dtype": weight.dtype}
    return kind(layer.input_size, layer.hidden_size, **_sizes(layer), **options)


def _projects(layer: nn.Module) -> bool:
    return isinstance(layer, nn.RNNBase) and layer.proj_size > 0


@remedy(
    "no-forget-gate",
    "The LSTM is replaced by one without a forget gate, as it was in 1997: its carousel keeps "
    "everything (f = 1), and its cell state can drift.",
)
def no_forget_gate(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.LSTM | LSTM) or _projects(layer):
        raise Unfit
    if isinstance(layer, LSTM) and layer.generation == "nfg":
        raise Unfit
    code = assignment(target.path, _call("retrograde.nn.LSTM", layer, generation="nfg"))
    target.replace(_made(LSTM, layer, generation="nfg"))
    return Applied("another generation: no forget gate (f = 1), fresh weights", code)


@remedy(
    "forget-gate",
    "An LSTM that cannot forget is replaced by one that can (Gers, Schmidhuber and Cummins, "
    "2000): a cell state that only adds up drifts into saturation.",
)
def forget_gate(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, LSTM) or with_role(generation(layer.generation).blocks, "forget"):
        raise Unfit
    made = _made(nn.LSTM, layer)
    code = assignment(target.path, _call("torch.nn.LSTM", layer))
    target.replace(made)
    return Applied("another generation: with a forget gate (2000), fresh weights", code)


@remedy(
    "lstm",
    "A plain RNN or a GRU is replaced by an LSTM of the same size, whose forget bias keeps 1 "
    "% of the state over the lag that matters: its carousel crosses no recurrent weights.",
)
def lstm(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.RNN | RNN | nn.GRU | GRU):
        raise Unfit
    value = bias_for(target.lag)
    made = _made(nn.LSTM, layer)
    initialise(made, "forget-bias", value=value)  # type: ignore[arg-type]
    code = (
        assignment(target.path, _call("torch.nn.LSTM", layer))
        + "  # its state is a pair: output, (h_n, c_n)\n"
        f'retrograde.nn.initialise({target.here}, "forget-bias", value={value})'
    )
    target.replace(made)
    return Applied(f"another generation: an LSTM with forget bias {value:g}, fresh weights", code)


@remedy(
    "truncated-1997",
    "Nothing comes back through h, as in the backward pass of 1997: the carousel alone "
    "carries the gradient, and it cannot grow; the forward pass stays as it is.",
)
def truncated(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.LSTM | nn.GRU) or _projects(layer) or is_parametrized(layer):
        raise Unfit
    kind = LSTM if isinstance(layer, nn.LSTM) else GRU
    made = LSTM.from_torch(layer) if isinstance(layer, nn.LSTM) else GRU.from_torch(layer)
    made.truncated = True
    code = (
        assignment(target.path, f"retrograde.nn.{kind.__name__}.from_torch({target.here})")
        + f"\n{target.here}.truncated = True"
    )
    target.replace(made)
    return Applied("the truncated backward pass of 1997: nothing comes back through h", code)


def _standardised(x: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 in every feature; a constant one becomes 0."""
    every = tuple(range(x.ndim - 1))
    mean, spread = x.mean(every, keepdim=True), x.std(every, keepdim=True)
    return (x - mean) / torch.where(spread > 0, spread, 1)


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


@remedy(
    "standardise-input",
    "What the layer reads is shifted and scaled to mean 0 and standard deviation 1 in every "
    "feature: large inputs push gates to the flat ends of their activation functions.",
    "The layer's input is not scaled",
    "Scale the input",
    "Standardise every feature",
)
def standardise_input(target: Target) -> Applied:
    def scale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = args
        if isinstance(x, PackedSequence):
            return (x._replace(data=_standardised(x.data)), *others)
        return (_standardised(x), *others)

    target.layer.register_forward_pre_hook(scale)
    return Applied(
        "input scaled to mean 0 and standard deviation 1",
        f"# what {target.here} reads; better with mean and std of the whole training set\n"
        "spread = x.std((0, 1))\n"
        "x = (x - x.mean((0, 1))) / spread.where(spread > 0, 1)  # a constant feature stays 0",
    )


@remedy(
    "one-bias",
    "The slice of `bias_hh` that belongs to the forget gate (a GRU's update gate) is set to 0: "
    "torch adds it to that of `bias_ih`, and the bias that was meant is the one that is left.",
)
def one_bias(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.LSTM | nn.LSTMCell | nn.GRU | nn.GRUCell):
        raise Unfit
    hidden = layer.hidden_size  # the second gate in both of torch's orders, i, f, g, o and r, z, n
    with torch.no_grad():
        for name, bias in layer.named_parameters():
            if name.startswith("bias_hh"):
                bias[hidden : 2 * hidden] = 0
    return Applied(
        "the gate's bias in bias_ih alone",
        "with torch.no_grad():\n"
        f"    for name, bias in {target.here}.named_parameters():\n"
        '        if name.startswith("bias_hh"):\n'
        f"            bias[{hidden}:{2 * hidden}] = 0",
    )


@remedy(
    "fresh-output",
    "Whatever runs after the recurrent layers draws its weights anew by its own "
    "`reset_parameters`.",
)
def fresh_output(target: Target) -> Applied:
    drawn = []
    for path in target.after:
        module = target.model.get_submodule(path)
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
            drawn.append(f"{expression(path)}.reset_parameters()")
    if not drawn:
        raise Unfit
    return Applied("fresh weights in the output layer", "\n".join(drawn))


CLIP = 1.0
"""The norm that everybody clips to."""


@remedy(
    "clip",
    "`torch.nn.utils.clip_grad_norm_` at 1.0 after the backward pass, as is common practice: it "
    "scales the sum over lags and changes no part of it against another.",
)
def clip(target: Target) -> Applied:
    def afterwards(model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)

    code = f"torch.nn.utils.clip_grad_norm_(model.parameters(), {CLIP})  # after loss.backward()"
    return Applied(
        f"clipping by norm at {CLIP:g}, at the end",
        code,
        afterwards,
        note="clipping at the end scales the sum and leaves what happens in time as it is",
        by_training=True,
    )


@remedy(
    "clip-inside",
    "The norm of the state's adjoint is held inside back-propagation, at every step, to the "
    "largest with which the loss itself enters: growth on the way back ends there.",
)
def clip_inside(target: Target) -> Applied:
    if not isinstance(target.layer, nn.RNNBase | LSTM | GRU | RNN):
        raise Unfit
    limit = float(f"{target.entering:.2g}")
    if not 0 < limit < math.inf:
        raise Unfit
    try:
        hold(target.layer, StateNorm(limit))
    except ArgumentError as error:
        raise Unfit from error
    code = (
        f"policy = retrograde.clipping.StateNorm({limit!r})\n"
        f"retrograde.nn.clip_inside({target.here}, policy)"
    )
    return Applied(f"the adjoint of the state held to norm {limit:g} at every step", code)


@remedy(
    "clip-groups",
    "Recurrent layer and output layer are clipped apart, each to the smaller norm of the two: "
    "with one norm over both, the larger gradient decides how much is left of the other.",
)
def clip_groups(target: Target) -> Applied:
    if not target.after:
        raise Unfit
    groups = [[target.path], list(target.after)]

    def afterwards(model: nn.Module) -> None:
        parts = [
            [p for path in group for p in model.get_submodule(path).parameters()]
            for group in groups
        ]
        sizes = [
            float(nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]))
            for part in parts
        ]
        for part in parts:
            nn.utils.clip_grad_norm_(part, min(sizes))

    lines = [
        f"torch.nn.utils.clip_grad_norm_({expression(path)}.parameters(), max_norm)"
        for group in groups
        for path in group
    ]
    title = "recurrence and output layer clipped apart, to the smaller norm of the two"
    return Applied(title, "\n".join(lines), afterwards)


@remedy(
    "lower-rate",
    "The optimiser that was given runs at a tenth of its learning rate: steps that are too large "
    "throw away what was learned, and drive states into saturation.",
    "A learning rate that was too large",
    "Lower the learning rate",
)
def lower_rate(target: Target) -> Applied:
    code = 'for group in optimizer.param_groups:\n    group["lr"] *= 0.1'
    title = "a tenth of the learning rate"
    return Applied(title, code, by_training=True, rate=0.1)


@remedy(
    "standardise-target",
    "Predictions are made in units of the target: the output is multiplied by its standard "
    "deviation and its mean is added, so that an output layer that starts near 0 starts near it.",
    "The target is in its own units",
    "Standardise the target",
)
def standardise_target(target: Target) -> Applied:
    if target.targets is None or not target.after:
        raise Unfit
    mean, spread = target.targets
    if not math.isfinite(mean) or not 0 < spread < math.inf:
        raise Unfit

    def scale(module: nn.Module, args: Any, output: Any) -> Any:
        return output * spread + mean

    target.model.get_submodule(target.after[-1]).register_forward_hook(scale)
    return Applied(
        f"targets in units of their spread ({spread:.3g}) around their mean ({mean:.3g})",
        f"mean, spread = {mean:.6g}, {spread:.6g}  # better those of the whole training set\n"
        "loss = criterion(prediction, (y - mean) / spread)\n"
        "prediction = prediction * spread + mean  # wherever it is used",
    )


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
    if _projects(layer) or is_parametrized(layer):
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


LOSS_SCALE = 2.0**12
"""A factor for the loss at which gradients of 1e-8 fit into float16."""


@remedy(
    "loss-scale",
    "The loss is multiplied before the backward pass and the gradient divided after it, as "
    "torch.amp.GradScaler does: float16 holds nothing below 6e-8.",
    "The gradient is below what float16 can hold",
    "Scale the loss",
)
def loss_scale(target: Target) -> Applied:
    code = (
        f"scaler = torch.amp.GradScaler(init_scale={LOSS_SCALE:g})  # once\n"
        "scaler.scale(loss).backward()\n"
        "scaler.step(optimizer)\n"
        "scaler.update()"
    )
    title = f"the loss scaled by {LOSS_SCALE:g}"
    return Applied(title, code, by_training=True, loss_scale=LOSS_SCALE)
