"""Is the gradient that an implementation computes the true one?"""

import json
import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retrograde import _checks, _files
from retrograde._json import strict
from retrograde._terminal import as_text
from retrograde._words import counted
from retrograde.audits.check import NAMES, Check
from retrograde.audits.naming import explain
from retrograde.audits.reference import OUTPUTS
from retrograde.audits.smallest import resized, smallest
from retrograde.audits.trial import LayerCall, Trial, attempt, switch_off_dropout
from retrograde.declarations.matching import Declared
from retrograde.diagnosis.copies import copied, copied_model, seeded, untouched
from retrograde.diagnosis.run import LossFunction
from retrograde.errors import RetrogradeError, UnsupportedModelError
from retrograde.recording.calls import data
from retrograde.recording.interception import observed, outermost
from retrograde.recording.layers import COMPILED, layers_of
from retrograde.report.audit_page import AuditPage


@dataclass(frozen=True)
class Difference:
    """Where an implementation parts from its step function.

    Attributes:
        layer, precision, steps: where it was seen first.
        parameters: the parameters whose gradient differs, and other quantities, the worst first.
        step: the first step at which they part, in the order in which they are computed; in the
            smallest case the only one that is left.
        ratio: ||implementation|| / ||reference|| of the worst.
        looks_like: in words, a route that is missing, a window, a dropped adjoint; "" if nothing.
        smallest: T and B of the smallest case that was found to fail.
        widths: how many inputs and units are left in it; the others are set to zero.
        entry: the entry that is worst in it, in words: where it is, what it is, what is right.

    Example:
        >>> from retrograde.audits import Difference
        >>> seen = Difference("rnn", "float32", 20, ("weight_hh_l0",), 7, 0.5, "", (2, 1))
        >>> seen.step, seen.smallest
        (7, (2, 1))
    """

    layer: str
    precision: str
    steps: int
    parameters: tuple[str, ...]
    step: int | None
    ratio: float
    looks_like: str
    smallest: tuple[int, int]
    widths: tuple[int, int] | None = None
    entry: str = ""

    def __str__(self) -> str:
        at = "" if self.step is None else f" from step {self.step} on"
        why = f"; {self.looks_like}" if self.looks_like else ""
        case = [counted(self.smallest[0], "step"), f"batch of {self.smallest[1]}"]
        if self.widths is not None:
            left = (counted(self.widths[0], "input"), counted(self.widths[1], "unit"))
            case.append(f"{left[0]} and {left[1]} not set to zero")
        example = f"; {self.entry}" if self.entry else ""
        return (
            f"{self.layer} in {self.precision}, {counted(self.steps, 'step')}: "
            f"{', '.join(self.parameters)} differ{'s' * (len(self.parameters) == 1)}{at} "
            f"(ratio {self.ratio:.4g}){why}. "
            f"The smallest case found: {', '.join(case)}{example}"
        )


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        checks: every quantity that was compared.
        differences: one for each layer and precision that parts from its step function.
        notes: what could not be audited, and why.

    Example:
        >>> import torch, retrograde
        >>> audit = retrograde.audit(
        ...     torch.nn.LSTM(2, 3), torch.ones(5, 4, 2), lambda model, x: model(x)[0].sum()
        ... )
        >>> audit.ok, audit.differences
        (True, ())
    """

    checks: tuple[Check, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing differs by more than rounding, or what may be rounding."""
        return not self.differences

    @property
    def worst(self) -> list[Check]:
        """The worst quantity of every layer, precision and length, and all that differ."""
        found: dict[tuple[str, str, int], Check] = {}
        for one in self.checks:
            key = one.layer, one.precision, one.steps
            if key not in found or one.excess > found[key].excess:
                found[key] = one
        return [c for c in self.checks if c.verdict == "difference" or c in found.values()]

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Any:
        return self._page.rich()

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write a page that opens offline.

        Raises:
            InputError: if the path cannot be written.
        """
        self._page.to_html(path)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write the numbers.

        Raises:
            InputError: if the path cannot be written.
        """
        _files.check_writable(path)
        checks = [{**asdict(one), "verdict": one.verdict} for one in self.checks]
        content = {"ok": self.ok, "retrograde": version("retrograde"), **asdict(self)}
        text = json.dumps(strict({**content, "checks": checks}), indent=1, allow_nan=False)
        _files.write_text(path, text + "\n")

    @property
    def _page(self) -> AuditPage:
        wrong = len(self.differences)
        found = counted(wrong, "difference") if wrong else "all are those of the step"
        return AuditPage(
            f"{len(self.checks)} quantities compared: {found}",
            tuple(map(str, self.differences)),
            tuple(_row(one) for one in self.worst),
            self.notes,
        )


def _row(one: Check) -> tuple[str, ...]:
    """A check as a row of a table."""
    numbers = (f"{one.error:.1e}", f"{one.allowed:.1e}", f"{one.ratio:.4g}")
    return (one.layer, one.precision, str(one.steps), one.what, *numbers, one.verdict)


ENOUGH = 32
"""Steps from which it can be told what a difference looks like."""


def audit(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    *,
    cells: Declared | None = None,
    lengths: Iterable[int] | None = None,
    seed: int = 0,
) -> Audit:
    """Compare what recurrent layers compute with what their step function says.

    Every layer is taken out of a copy of the model with what it was called with, and run by itself
    with random adjoints at all that it returns: in float64, and in the model's own precision; at
    the length of the batch, at some shorter ones, and at the lengths given. What torch.compile made
    is compiled anew, so that the compiled code is what is audited. The reference is the
    step function (of torch's layers, that of `retrograde.cells`; of others, as declared) in
    float64, differentiated by autograd. Outputs, last state and every gradient are compared. Where
    they part the smallest case that still does is looked for. Dropout inside a layer is switched
    off; a layer that draws other random numbers cannot be audited, and is named in the notes. So is
    one that detaches a result, such as the last state for a truncated pass: that may be meant.

    Args:
        model, batch, loss_fn: as in `diagnose`; the model is copied, and run once.
        cells: declarations of layers, as `record` takes them.
        lengths: numbers of steps to try; what is longer than the batch repeats it.
        seed: of what is random.

    Raises:
        UnsupportedModelError: if no layer can be audited.
        ArgumentError: for lengths that are no positive integers.

    Example:
        >>> import torch, retrograde
        >>> class Truncated(torch.nn.RNN):  # forgets what later steps give to earlier ones
        ...     def forward(self, x, hx=None):
        ...         outputs, h = [], None
        ...         for x_k in x.split(1):
        ...             output, h = super().forward(x_k, None if h is None else h.detach())
        ...             outputs.append(output)
        ...         return torch.cat(outputs), h
        >>> def declared(module, w):
        ...     return retrograde.cells.Elman(*w.values())
        >>> audit = retrograde.audit(
        ...     Truncated(2, 3), torch.ones(5, 4, 2), lambda model, x: model(x)[0].sum(),
        ...     cells={Truncated: retrograde.Declaration(cell=declared, batch_first=False)},
        ... )
        >>> audit.ok, audit.differences[0].looks_like
        (False, 'as if the route recurrent were missing')
    """
    _checks.model("model", model)
    _checks.loss_function(loss_fn)
    given = [] if lengths is None else _checks.whole_numbers("lengths", lengths)
    asked = tuple(_checks.whole("each of lengths", one) for one in given)
    seed = _checks.whole("seed", seed, -(2**63), 2**64 - 1)
    with untouched(model), seeded(seed):
        calls, notes = _calls(model, batch, loss_fn, cells, seed)
        if not calls:
            raise UnsupportedModelError(
                "no recurrent layer of this model was called, so there is nothing to audit"
                + "".join(f"; {note}" for note in notes)
            )
        checks: list[Check] = []
        differences: list[Difference] = []
        detached: dict[str, tuple[str, ...]] = {}
        for layer in calls.values():
            own = next((p.dtype for p in layer.module.parameters()), torch.float32)
            before: Difference | None = None
            for dtype in dict.fromkeys((torch.float64, own)):
                try:
                    found, difference, without = _audit_layer(layer, dtype, asked, seed, before)
                except RetrogradeError as error:
                    notes.append(f"{layer.name} in {NAMES[dtype]}: not audited: {error}")
                    continue
                except Exception as error:  # of the layer itself, as where it has no float64
                    why = f"{type(error).__name__}: {error}"
                    notes.append(
                        f"{layer.name} in {NAMES[dtype]}: it does not run by itself: {why}"
                    )
                    continue
                checks += found
                if without:
                    detached[layer.name] = without
                differences += [difference] if difference else []
                before = difference
        if not checks:
            raise UnsupportedModelError("no layer could be audited: " + "; ".join(notes))
        notes += [
            f"{name}: it detaches what it returns as {', '.join(results)}, so that nothing comes "
            "back from there, and nothing of that is compared"
            for name, results in detached.items()
        ]
        return Audit(tuple(checks), tuple(differences), tuple(notes))


def _calls(
    model: nn.Module, batch: Any, loss_fn: LossFunction, cells: Declared | None, seed: int
) -> tuple[dict[str, LayerCall], list[str]]:
    """The first call of every layer, in a copy of the model."""
    copy = copied_model(model)
    layers = layers_of(copy, cells)
    found: dict[str, LayerCall] = {}
    compiled: dict[int, Any] = {
        id(inner): wrapper.dynamo_ctx
        for wrapper in copy.modules()
        if hasattr(wrapper, COMPILED)
        for inner in getattr(wrapper, COMPILED).modules()
    }

    def keep(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if name not in found:
            declaration, how = layers[name][1], compiled.get(id(module))
            layer = LayerCall(name, module, declaration, args, kwargs, how)
            found[name] = layer.changed(_copy)

    with ExitStack() as hooks, seeded(seed), torch.enable_grad():
        for name, (module, _) in layers.items():

            def after(
                module: nn.Module, args: Any, kwargs: Any, returned: Any, name: str = name
            ) -> None:
                keep(name, module, args, kwargs)

            hooks.enter_context(observed(module, outermost(module), lambda *_: None, after))
        loss_fn(copy, copied(batch))
    notes = [f"{name}: it was not called" for name in layers if name not in found]
    for name in [name for name, each in found.items() if not alone(each)]:
        notes.append(
            f"{name}: it only runs inside its model, and an audit runs layers by themselves"
        )
        del found[name]
    for name, layer in found.items():
        if switch_off_dropout(layer.module):
            notes.append(f"{name}: audited with its dropout switched off (p = 0)")
        named = dict(layer.module.named_parameters())
        frozen = [weight for weight, p in named.items() if not p.requires_grad]
        if frozen and len(frozen) < len(named):
            notes.append(
                f"{name}: {', '.join(frozen)} not compared: requires_grad=False, so that it gets "
                "no gradient"
            )
    return found, notes


def alone(layer: LayerCall) -> bool:
    """Whether a layer can be run by itself, as one whose forward is observed can."""
    return layer.declaration is None or layer.declaration.method == "forward"


def _copy(tensor: Tensor | PackedSequence) -> Tensor | PackedSequence:
    copied = data(tensor).detach().clone()
    return tensor._replace(data=copied) if isinstance(tensor, PackedSequence) else copied


def _audit_layer(
    layer: LayerCall,
    dtype: torch.dtype,
    asked: Iterable[int],
    seed: int,
    before: Difference | None,
) -> tuple[list[Check], Difference | None, tuple[str, ...]]:
    """All lengths of one layer in one precision, and which of its results are detached.

    `before` is what differs in the wider precision.
    """
    trial = attempt(layer, dtype, seed)
    whole, first = trial.size, trial.call.form.batch_first
    trials = {whole[0]: trial}
    if not trial.call.form.stepped:
        for steps in (1, 2, *asked):
            if steps not in trials and (steps < whole[0] or steps in asked):
                to = (steps, whole[1])
                trials[steps] = attempt(resized(layer, whole, to, first), dtype, seed)
    every = dict(sorted(trials.items())).values()
    checks = [check for one in every for check in one.checks]
    failing = [one for one in (trial, *every) if one.differences]
    if not failing:
        return checks, None, trial.without
    shown = failing[0]
    what = {one.what for one in shown.differences}
    if before is not None and set(before.parameters) <= what and before.steps == shown.size[0]:
        return checks, replace(before, precision=NAMES[dtype]), trial.without
    return checks, _difference(layer, dtype, shown, whole, seed), trial.without


def _difference(
    layer: LayerCall, dtype: torch.dtype, trial: Trial, whole: tuple[int, int], seed: int
) -> Difference:
    worst = sorted(trial.differences, key=lambda one: -one.error)
    least, widths = smallest(layer, dtype, trial, whole, seed)
    explained = trial
    if trial.size[0] > ENOUGH and least.size[0] <= ENOUGH:  # what fails in few steps is seen there
        first = trial.call.form.batch_first
        shorter = attempt(
            resized(layer, whole, (ENOUGH, whole[1]), first), dtype, seed, again=False
        )
        explained = shorter if shorter.differences else trial
    forward_first = sorted(worst, key=lambda one: one.what != OUTPUTS)
    step = next((one.step for one in forward_first if one.step is not None), None)
    if step is None:
        step = least.size[0] - 1
    what = tuple(one.what for one in worst)
    told = (step, worst[0].ratio, explain(explained), least.size, widths, _entry(least))
    return Difference(layer.name, NAMES[dtype], trial.size[0], what, *told)


def _entry(trial: Trial) -> str:
    """The entry of the worst quantity that is farthest off."""
    worst = max(trial.differences, key=lambda one: one.error).what
    found, right = trial.ran.of(worst), trial.true.of(worst)
    apart = torch.nan_to_num(found - right, math.inf, math.inf, math.inf).abs()
    at = tuple(int(place) for place in torch.unravel_index(apart.argmax(), apart.shape))
    where = ", ".join(map(str, at))
    for digits in (4, 8, 17):
        one, other = (f"{float(values[at]):.{digits}g}" for values in (found, right))
        if one != other:
            break
    return f"{worst}[{where}] is {one} where {other} is right"
