"""One call of one layer: what its implementation gives, beside the reference."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from retrograde.audits.bands import Verdict, allowed, verdict
from retrograde.audits.reference import INITIAL, OUTPUTS, STATE, Pass, X, reference
from retrograde.audits.rounded import Rounded
from retrograde.declarations import Declaration
from retrograde.declarations.reading import OUTPUT, CallTensors
from retrograde.diagnosis.copies import seeded, within
from retrograde.errors import RecordingError
from retrograde.recording.agreement import declared_cells
from retrograde.recording.calls import Call, data, is_output
from retrograde.recording.readers import reader_of


@dataclass(frozen=True, eq=False)
class LayerCall:
    """A layer, and what it was called with."""

    name: str
    module: nn.Module
    declaration: Declaration | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def changed(self, change: Callable[[Tensor | PackedSequence], Any]) -> "LayerCall":
        """The same with other tensors."""
        args, kwargs = each((self.args, dict(self.kwargs)), change)
        return LayerCall(self.name, self.module, self.declaration, args, kwargs)


def each(value: Any, change: Callable[[Tensor | PackedSequence], Any]) -> Any:
    """A nested value with its tensors changed."""
    if isinstance(value, Tensor | PackedSequence):
        return change(value)
    if isinstance(value, Mapping):
        return {key: each(part, change) for key, part in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(each(part, change) for part in value)
    return value


@dataclass(frozen=True, eq=False)
class Compared:
    """A quantity of the implementation beside that of the reference.

    Attributes:
        what: the parameter whose gradient it is, or another quantity.
        error: ||implementation - reference|| / ||reference||.
        allowed: how much of it rounding explains.
        ratio: ||implementation|| / ||reference||.
        step: the first step at which they part, in the order in which they are computed; None
            where it has no steps.
    """

    what: str
    error: float
    allowed: float
    ratio: float
    step: int | None = None

    @property
    def verdict(self) -> Verdict:
        return verdict(self.error, self.allowed)


@dataclass(frozen=True, eq=False)
class Trial:
    """All quantities of one call, and what is needed to explain a difference."""

    compared: tuple[Compared, ...]
    call: Call
    names: Mapping[str, str]
    adjoints: Mapping[str, Tensor]
    ran: Pass
    true: Pass

    @property
    def differences(self) -> list[Compared]:
        return [one for one in self.compared if one.verdict == "difference"]

    @property
    def size(self) -> tuple[int, int]:
        """T and B."""
        steps, batch = self.call.sequence(self.call.x)[0].shape[:2]
        return steps, batch


def switch_off_dropout(module: nn.Module) -> bool:
    """Set the probability of every dropout inside to 0; whether any was above."""
    found = False
    for part in module.modules():
        kind = nn.modules.dropout._DropoutNd
        name = "p" if isinstance(part, kind) else "dropout"
        probability = getattr(part, name, None)
        if part.training and isinstance(probability, float | int) and probability > 0:
            setattr(part, name, 0.0)
            found = True
    return found


def attempt(layer: LayerCall, dtype: torch.dtype, seed: int = 0) -> Trial:
    """Run a copy of the layer in a precision, with random adjoints, and the reference in float64.

    Where they differ the copy is run once more with other random numbers.

    Raises:
        RecordingError: for a call that cannot be read, a step that cannot be used, or a module
            that draws random numbers.
        Exception: whatever the layer itself raises.
    """
    trial = _attempt(layer, dtype, seed, seed)
    if trial.differences:
        again = _attempt(layer, dtype, seed, seed ^ 1)
        if _apart(trial.ran, again.ran, allowed(dtype, trial.size[0], 0.0)):
            raise RecordingError(
                "two runs of it differ: it draws random numbers, so that what it computes is no "
                "function of weights, x and state; switch them off, as model.eval() does for most"
            )
    return trial


def _apart(one: Pass, other: Pass, bound: float) -> bool:
    """Whether two passes of the same module differ by more than rounding."""
    pairs = ((one.values, other.values), (one.gradients, other.gradients))
    return any(
        verdict(_error(torch.nan_to_num(first[what]), torch.nan_to_num(value.double())), bound)
        == "difference"
        for first, second in pairs
        for what, value in second.items()
    )


def _attempt(layer: LayerCall, dtype: torch.dtype, seed: int, draws: int) -> Trial:
    """One run; `draws` is the seed of what the module itself draws."""
    with seeded(draws):
        return _run(layer, dtype, seed, draws)


def _run(layer: LayerCall, dtype: torch.dtype, seed: int, draws: int) -> Trial:
    module = copy.deepcopy(layer.module).to(dtype)
    for _, held in within(module):
        if isinstance(held, torch.Generator):
            held.manual_seed(draws)
    module.requires_grad_(True) if not any(p.requires_grad for p in module.parameters()) else None
    layer = layer.changed(lambda tensor: _cast(tensor, dtype))
    reader = reader_of(module, layer.declaration)
    reader.before()
    with torch.enable_grad():
        returned = module(*layer.args, **layer.kwargs)
        tensors = reader.read(layer.args, layer.kwargs, returned)
    live = {n: p for n, p in module.named_parameters() if n in reader.form.weights}
    weights = reader.weights({n: p.detach().double() for n, p in live.items()}, tensors)
    generator = torch.Generator().manual_seed(seed)
    adjoints = {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        for name, tensor in tensors.results.items()
        if tensor.requires_grad
    }
    call = Call.of(layer.name, reader.form, weights, {}, _detached(tensors), None)
    adjoints = {name: _inside(call, name, adjoint) for name, adjoint in adjoints.items()}
    for parameter in module.parameters():
        parameter.grad = None
    torch.autograd.backward([tensors.results[name] for name in adjoints], list(adjoints.values()))
    reached = {name for name, parameter in live.items() if parameter.requires_grad}
    if layer.declaration is not None:
        _, names = declared_cells(call.form, weights, reached)
    else:
        suffixes = call.form.suffixes
        pairs = zip(call.cells, suffixes, strict=True)
        names = {n + suffix: n + suffix for cell, suffix in pairs for n in cell.parameters}
    wide = {name: adjoint.double() for name, adjoint in adjoints.items()}
    _check_finite(call, live)
    true = reference(call, names, wide)
    ran = _ran(call, tensors, live, true)
    steps = call.sequence(call.x)[0].shape[0]
    errors = {what: _error(ran.of(what), true.of(what)) for what in true.every if what in ran.every}
    moved: Mapping[str, float] = {}
    if any(verdict(error, allowed(dtype, steps)) != "rounding" for error in errors.values()):
        moved = _moved(reference(call, names, wide, Rounded(dtype, seed)), true)
    compared = [
        _compare(what, ran.of(what), true.of(what), allowed(dtype, steps, moved.get(what, 0.0)))
        for what in errors
    ]
    return Trial(tuple(compared), call, names, wide, ran, true)


def _check_finite(call: Call, live: Mapping[str, nn.Parameter]) -> None:
    """Refuse what has no true gradient.

    Raises:
        RecordingError: with what is not finite, and where.
    """
    x, lengths = call.sequence(call.x)
    if lengths is not None:
        steps = torch.arange(len(x), device=x.device).unsqueeze(1)
        x = torch.where((steps < lengths).unsqueeze(-1), x, 0)
    wrong = torch.nonzero(~x.isfinite().flatten(1).all(1)).flatten()
    if len(wrong):
        raise RecordingError(f"its input is not finite at step {int(wrong[0])}")
    if not call.state(call.given).isfinite().all():
        raise RecordingError("its initial state is not finite")
    for name, weight in live.items():
        if not weight.isfinite().all():
            raise RecordingError(f"{name} is not finite")


def _inside(call: Call, name: str, adjoint: Tensor) -> Tensor:
    """An adjoint without what lies after the end of a sample, where nothing is promised."""
    lengths = call.sequence(call.x)[1]
    if lengths is None or not is_output(name) or isinstance(call.x, PackedSequence):
        return adjoint
    time = 1 if call.form.batch_first else 0
    steps = torch.arange(adjoint.shape[time], device=adjoint.device).unsqueeze(1)
    there = (steps < lengths).unsqueeze(-1)
    return adjoint * (there.transpose(0, 1) if time else there)


def _cast(tensor: Tensor | PackedSequence, dtype: torch.dtype) -> Any:
    if not data(tensor).is_floating_point():
        return tensor
    leaf = data(tensor).detach().to(dtype).clone().requires_grad_()
    return tensor._replace(data=leaf) if isinstance(tensor, PackedSequence) else leaf


def _detached(tensors: CallTensors) -> CallTensors:
    """What went in and came out in float64, as the reference takes it."""

    def wide(tensor: Any) -> Any:
        return each(tensor, lambda one: one.to(torch.float64))

    results = {name: tensor.detach() for name, tensor in tensors.results.items()}
    given = {name: wide(part.detach()) for name, part in tensors.given.items()}
    return CallTensors(wide(tensors.x), given, results, tensors.lengths, ())


def _ran(call: Call, tensors: CallTensors, live: Mapping[str, nn.Parameter], true: Pass) -> Pass:
    """What the implementation gave, laid out as the reference."""
    values = {}
    seen = call.state({name: torch.ones_like(part) for name, part in call.last.items()})
    values[STATE] = torch.where(seen > 0, call.state(call.last), true.values[STATE])
    if OUTPUTS in true.values:
        values[OUTPUTS] = call.outputs(tensors.results[OUTPUT].detach())
        lengths = call.sequence(call.x)[1]
        if lengths is not None:
            steps = torch.arange(len(values[OUTPUTS]), device=lengths.device).unsqueeze(1)
            inside = (steps < lengths).unsqueeze(-1)
            values[OUTPUTS] = torch.where(inside, values[OUTPUTS], true.values[OUTPUTS])
    gradients: dict[str, Tensor] = {}
    for name, parameter in live.items():
        if name in true.gradients and parameter.requires_grad:
            missing = parameter.grad is None
            gradients[name] = torch.zeros_like(parameter) if missing else parameter.grad.double()  # type: ignore[union-attr]
    x = data(tensors.x)
    if x.is_leaf and x.requires_grad:
        grad = torch.zeros_like(x) if x.grad is None else x.grad
        packed = isinstance(tensors.x, PackedSequence)
        whole = tensors.x._replace(data=grad) if packed else grad  # type: ignore[union-attr]
        gradients[X] = call.sequence(whole)[0]
    if tensors.given and all(p.is_leaf and p.requires_grad for p in tensors.given.values()):
        state = {n: p.grad for n, p in tensors.given.items() if p.grad is not None}
        gradients[INITIAL] = call.state(state)
    return Pass(values, gradients)


def _moved(other: Pass, true: Pass) -> dict[str, float]:
    """By how much of its size rounding moves each quantity."""
    return {what: _error(other.of(what), true.of(what)) for what in true.every}


def _error(one: Tensor, other: Tensor) -> float:
    size = float(torch.linalg.vector_norm(other))
    apart = float(torch.linalg.vector_norm(one.double() - other))
    error = apart / size if size else (math.inf if apart else 0.0)
    return math.inf if math.isnan(error) else error


def _compare(what: str, ran: Tensor, true: Tensor, bound: float) -> Compared:
    ran = ran.double()
    error, size = _error(ran, true), float(torch.linalg.vector_norm(true))
    ratio = float(torch.linalg.vector_norm(ran)) / size if size else math.inf
    step = None
    if what in (OUTPUTS, X):
        apart = (ran - true).flatten(1).norm(dim=1)
        most = true.flatten(1).norm(dim=1).max()
        wrong = torch.nonzero(~(apart <= bound * most)).flatten()
        if len(wrong):  # adjoints are computed from the last step on
            step = int(wrong[0] if what == OUTPUTS else wrong[-1])
    return Compared(what, error, bound, ratio, step)


def resized(layer: LayerCall, size: tuple[int, int], to: tuple[int, int], first: bool) -> LayerCall:
    """The call with other numbers of steps and samples; more steps repeat what there is.

    Args:
        layer: the call.
        size: its T and B.
        to: those wanted.
        first: whether sequences are [B, T, *].
    """
    (steps, batch), (new_steps, new_batch) = size, to
    time, samples = (1, 0) if first else (0, 1)

    def change(value: Tensor | PackedSequence) -> Any:
        if isinstance(value, PackedSequence):
            padded, lengths = pad_packed_sequence(value)
            return pack_padded_sequence(
                padded[:new_steps, :new_batch],
                lengths[:new_batch].clamp(max=new_steps),
                enforce_sorted=False,
            )
        shape = value.shape
        if value.ndim > 2 and shape[time] == steps and shape[samples] == batch:
            order = torch.arange(new_steps, device=value.device) % steps
            return value.index_select(time, order).narrow(samples, 0, new_batch)
        axis = next((axis for axis in (1, 0) if value.ndim > 2 and shape[axis] == batch), None)
        if axis is None and value.ndim and shape[0] == batch:
            axis = 0
        cut = value if axis is None else value.narrow(axis, 0, new_batch)
        counts = not value.is_floating_point() and value.ndim == 1  # of steps
        return cut.clamp(max=new_steps) if counts else cut

    return layer.changed(change)
