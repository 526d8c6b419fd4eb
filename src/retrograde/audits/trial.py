"""One call of one layer: what its implementation gives, beside the reference."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retrograde.audits.bands import allowed, verdict
from retrograde.audits.check import NAMES, Check
from retrograde.audits.reference import INITIAL, OUTPUTS, STATE, Pass, X, inside, reference
from retrograde.audits.rounded import Rounded
from retrograde.declarations import Declaration
from retrograde.declarations.reading import OUTPUT, CallTensors
from retrograde.diagnosis.copies import seeded, within
from retrograde.errors import RecordingError
from retrograde.recording.agreement import declared_cells
from retrograde.recording.calls import Call, data, is_output
from retrograde.recording.readers import reader_of

MOST_COMPILED = 10_000
"""Every trial compiles its copy anew."""


@dataclass(frozen=True, eq=False)
class LayerCall:
    """A layer, and what it was called with.

    Attributes:
        name: its name.
        module: the layer.
        declaration: how its calls are read; None for layers of torch and ours.
        args, kwargs: what it was called with.
        compiled: compiles a module as torch.compile compiled this one; None where it did not.
    """

    name: str
    module: nn.Module
    declaration: Declaration | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    compiled: Callable[[nn.Module], Callable[..., Any]] | None = None

    def changed(self, change: Callable[[Tensor | PackedSequence], Any]) -> "LayerCall":
        """The same with other tensors."""
        args, kwargs = each((self.args, dict(self.kwargs)), change)
        return replace(self, args=args, kwargs=kwargs)

    def run(self, module: nn.Module) -> Any:
        """Call a module as this layer was called, compiled or not."""
        if self.compiled is None:
            return module(*self.args, **self.kwargs)
        limits = {"recompile_limit": MOST_COMPILED, "accumulated_recompile_limit": MOST_COMPILED}
        with torch._dynamo.config.patch(limits):  # beyond them torch would run what is not compiled
            return self.compiled(module)(*self.args, **self.kwargs)


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
class Trial:
    """All quantities of one call, and what is needed to explain a difference.

    Attributes:
        without: names of results that nothing can come back through, as they are detached.
    """

    checks: tuple[Check, ...]
    call: Call
    names: Mapping[str, str]
    adjoints: Mapping[str, Tensor]
    ran: Pass
    true: Pass
    without: tuple[str, ...]

    @property
    def differences(self) -> list[Check]:
        return [one for one in self.checks if one.verdict == "difference"]

    @property
    def size(self) -> tuple[int, int]:
        """T and B."""
        steps, batch = self.call.sequence(self.call.x)[0].shape[:2]
        return steps, batch

    @property
    def widths(self) -> tuple[int, int]:
        """I and H."""
        cells = self.call.cells
        return cells[0].input_size, cells[-1].output_size


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


def attempt(layer: LayerCall, dtype: torch.dtype, seed: int = 0, again: bool = True) -> Trial:
    """Run a copy of the layer in a precision, with random adjoints, and the reference in float64.

    Args:
        layer: the layer and its call.
        dtype: the precision.
        seed: of the adjoints, and of what the layer draws.
        again: where they differ, run the copy once more with other random numbers.

    Raises:
        RecordingError: for a call that cannot be read, a step that cannot be used, or a module
            that draws random numbers.
        Exception: whatever the layer itself raises.
    """
    one = _run(layer, dtype, seed, seed)
    _check_finite(one)
    names = _names(layer, one)
    true = reference(one.call, names, one.wide)
    ran, steps = one.laid_out(true), len(one.call.sequence(one.call.x)[0])
    errors = {what: error(ran.of(what), true.of(what)) for what in true.every if what in ran.every}
    moved: Mapping[str, float] = {}
    if any(verdict(each, allowed(dtype, steps)) != "rounding" for each in errors.values()):
        rounded = reference(one.call, names, one.wide, Rounded(dtype, seed))
        moved = {what: error(rounded.of(what), true.of(what)) for what in errors}
    about = (layer.name, NAMES[dtype], steps)
    checks = [
        _check(
            about, what, ran.of(what), true.of(what), allowed(dtype, steps, moved.get(what, 0.0))
        )
        for what in errors
    ]
    results = one.tensors.results.items()
    without = tuple(n for n, each in results if each.is_floating_point() and n not in one.wide)
    trial = Trial(tuple(checks), one.call, names, one.wide, ran, true, without)
    if again and trial.differences:
        other = _run(layer, dtype, seed, seed ^ 1).laid_out(true)
        if _apart(ran, other, allowed(dtype, steps)):
            raise RecordingError(
                "two runs of it differ: it draws random numbers, so that what it computes is no "
                "function of weights, x and state; switch them off, as model.eval() does for most"
            )
    return trial


def _apart(one: Pass, other: Pass, bound: float) -> bool:
    """Whether two passes of the same module differ by more than rounding."""
    pairs = ((torch.nan_to_num(one.of(w)), torch.nan_to_num(other.of(w))) for w in other.every)
    return any(verdict(error(*pair), bound) == "difference" for pair in pairs)


@dataclass(frozen=True, eq=False)
class Ran:
    """One run of a copy of a layer.

    Attributes:
        call: what went in and came out, in float64.
        tensors: the same in the precision of the run, with gradients.
        live: the parameters of the copy, with gradients.
        wide: the adjoints of the results.
    """

    call: Call
    tensors: CallTensors
    live: Mapping[str, nn.Parameter]
    wide: Mapping[str, Tensor]

    def laid_out(self, true: Pass) -> Pass:
        """What it gave, laid out as the reference, which stands where nothing is promised."""
        call, tensors, values = self.call, self.tensors, dict[str, Tensor]()
        seen = call.state({name: torch.ones_like(part) for name, part in call.last.items()})
        values[STATE] = torch.where(seen > 0, call.state(call.last), true.values[STATE])
        if OUTPUTS in true.values:
            values[OUTPUTS] = call.outputs(tensors.results[OUTPUT].detach())
            there = inside(call, values[OUTPUTS])
            values[OUTPUTS] = torch.where(there, values[OUTPUTS], true.values[OUTPUTS])
        gradients: dict[str, Tensor] = {}
        for name, parameter in self.live.items():
            if name in true.gradients and parameter.requires_grad:
                grad = parameter.grad
                gradients[name] = torch.zeros_like(parameter) if grad is None else grad
        x = data(tensors.x)
        if x.is_leaf and x.requires_grad:
            grad = torch.zeros_like(x) if x.grad is None else x.grad
            packed = isinstance(tensors.x, PackedSequence)
            whole = tensors.x._replace(data=grad) if packed else grad  # type: ignore[union-attr]
            gradients[X] = call.sequence(whole)[0]
        if tensors.given and all(p.is_leaf and p.requires_grad for p in tensors.given.values()):
            state = {n: p.grad for n, p in tensors.given.items() if p.grad is not None}
            gradients[INITIAL] = call.state(state)
        return Pass(values, {what: gradient.double() for what, gradient in gradients.items()})


def _run(layer: LayerCall, dtype: torch.dtype, seed: int, draws: int) -> Ran:
    """One run; `draws` is the seed of what the module itself draws."""
    module = copy.deepcopy(layer.module).to(dtype)
    for _, held in within(module):
        if isinstance(held, torch.Generator):
            held.manual_seed(draws)
    module.requires_grad_(True) if not any(p.requires_grad for p in module.parameters()) else None
    layer = layer.changed(lambda tensor: _cast(tensor, dtype))
    reader = reader_of(module, layer.declaration)
    reader.before()
    with seeded(draws), torch.enable_grad():
        returned = layer.run(module)
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
        results = [tensors.results[name] for name in adjoints]
        torch.autograd.backward(results, list(adjoints.values()))
    wide = {name: adjoint.double() for name, adjoint in adjoints.items()}
    return Ran(call, tensors, live, wide)


def _names(layer: LayerCall, ran: Ran) -> Mapping[str, str]:
    """The module's name of each parameter of its cells."""
    if layer.declaration is not None:
        reached = {name for name, parameter in ran.live.items() if parameter.requires_grad}
        return declared_cells(ran.call.form, ran.call.weights, reached)[1]
    pairs = zip(ran.call.cells, ran.call.form.suffixes, strict=True)
    return {n + suffix: n + suffix for cell, suffix in pairs for n in cell.parameters}


def _check_finite(ran: Ran) -> None:
    """Refuse what has no true gradient.

    Raises:
        RecordingError: with what is not finite, and where.
    """
    x = ran.call.sequence(ran.call.x)[0]
    x = torch.where(inside(ran.call, x), x, 0)
    wrong = torch.nonzero(~x.isfinite().flatten(1).all(1)).flatten()
    if len(wrong):
        raise RecordingError(f"its input is not finite at step {int(wrong[0])}")
    if not ran.call.state(ran.call.given).isfinite().all():
        raise RecordingError("its initial state is not finite")
    for name, weight in ran.live.items():
        if not weight.isfinite().all():
            raise RecordingError(f"{name} is not finite")


def _inside(call: Call, name: str, adjoint: Tensor) -> Tensor:
    """An adjoint without what lies after the end of a sample, where nothing is promised."""
    if call.sequence(call.x)[1] is None or not is_output(name):
        return adjoint
    if isinstance(call.x, PackedSequence):
        return adjoint
    time = 1 if call.form.batch_first else 0
    return adjoint * inside(call, adjoint.transpose(0, time)).transpose(0, time)


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


def error(one: Tensor, other: Tensor) -> float:
    """||one - other|| / ||other||; infinite where it is no number."""
    size = float(torch.linalg.vector_norm(other))
    apart = float(torch.linalg.vector_norm(one.double() - other))
    relative = apart / size if size else (math.inf if apart else 0.0)
    return math.inf if math.isnan(relative) else relative


def _check(
    about: tuple[str, str, int], what: str, ran: Tensor, true: Tensor, bound: float
) -> Check:
    size = float(torch.linalg.vector_norm(true))
    ratio = float(torch.linalg.vector_norm(ran)) / size if size else math.inf
    step = None
    if what in (OUTPUTS, X) and bound < math.inf:
        apart = (ran - true).flatten(1).norm(dim=1)
        most = true.flatten(1).norm(dim=1).max()
        wrong = torch.nonzero(~(apart <= bound * most)).flatten()
        if len(wrong):  # adjoints are computed from the last step on
            step = int(wrong[0] if what == OUTPUTS else wrong[-1])
    return Check(*about, what, error(ran, true), bound, ratio, step)
