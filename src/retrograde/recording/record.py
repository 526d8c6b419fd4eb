"""Record a model, hooked while the `with` block runs, or a bare cell, which is run here."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrograde import _checks
from retrograde.cells import AbstractCell
from retrograde.cells.base import is_cell
from retrograde.declarations import Declaration
from retrograde.declarations.keras import one_direction_at_a_time
from retrograde.declarations.matching import Declared
from retrograde.errors import (
    ArgumentError,
    RecordingError,
    RetrogradeError,
    UnsupportedModelError,
)
from retrograde.recording.calls import BackwardPass
from retrograde.recording.hooks import LayerRecorder
from retrograde.recording.interception import Roots, computing, on_backward, uncompiled
from retrograde.recording.layers import layers_of, why_unsupported
from retrograde.recording.readers import reader_of
from retrograde.recording.recorded import Recorded, Recording
from retrograde.recording.sequences import assemble, split_by_checkpoint, together
from retrograde.recording.states import LATEST, StateTracker


@contextmanager
def record(
    model: nn.Module, cells: Declared | None = None, *, keep: int | None = None
) -> Iterator[Recording]:
    """Record forward and backward passes through every recurrent layer of a model.

    The model is used as it is and left as it was: weights, `.grad`, modes, hooks, random state.

    Args:
        model: any module with recurrent layers inside: nn.LSTM, nn.GRU, nn.RNN (stacked, in both
            directions, packed, called step by step or not), nn.LSTMCell, nn.GRUCell, nn.RNNCell,
            or those of `retrograde.nn` (or one of these itself).
        cells: further recurrences inside the model, as `retrograde.Declaration` values by the name
            or the class of modules: `{"encoder.rnn": declaration}`, `{MyLSTM: declaration}`.
        keep: how many backward passes to keep, the last ones, so that a block around training over
            an endless series takes bounded memory. All of them if None, which takes memory for
            each. A pass counts if it goes through a recorded layer; a call that the last `keep`
            passes, and the 8 before them, did not go through is forgotten.

    Yields:
        The `Recording`, filled when the block ends; with `keep` after every backward pass.

    Raises:
        ArgumentError: for anything but a model, for a declaration that matches nothing, and for a
            `keep` that is not a positive integer.
        UnsupportedModelError: if no layer inside can be recorded; the message says why for each.
        RecordingError: when the block ends without a backward pass through any layer.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.Sequential(torch.nn.LSTM(2, 3))
        >>> with retrograde.record(model) as recording:
        ...     output, (h_n, c_n) = model(torch.ones(4, 1, 2))
        ...     output[-1].sum().backward()
        >>> recording["0"].x.shape
        torch.Size([4, 1, 2])
        >>> state = None
        >>> with retrograde.record(model, keep=1) as recording:
        ...     for x in torch.ones(100, 1, 2).split(5):  # a stream, truncated every 5 steps
        ...         output, state = model[0](x, state)
        ...         output.sum().backward()
        ...         state = tuple(part.detach() for part in state)
        ...         flow = retrograde.decompose(recording)  # of these 5 steps
    """
    _checks.model("model", model)
    keep = _checks.optional_whole("keep", keep)
    if torch.is_inference_mode_enabled():
        raise RecordingError(
            "torch.inference_mode() is on, where nothing has a gradient: record outside of it"
        )
    recording, passes = Recording(), _Passes(keep)
    with ExitStack() as hooks:
        recorders = []
        layers = layers_of(model, cells)
        shared = _shared(layers)
        for name, (module, declaration) in layers.items():
            problem = why_unsupported(module, declaration) or shared.get(name, "")
            if problem:
                recording.refuse(name, UnsupportedModelError(f"{name!r}: {problem}"))
            else:
                reader = reader_of(module, declaration)
                recorders.append(LayerRecorder(name, reader, passes.tracker, passes.current, hooks))
        if not recorders:
            raise UnsupportedModelError(_nothing_to_record(model, recording))
        hooks.enter_context(one_direction_at_a_time(model))
        hooks.enter_context(uncompiled(any(recorder.traced for recorder in recorders)))
        unsupported = recording.reasons
        for recorder in recorders:
            recorder.attach()
        if keep is not None:
            passes.after = lambda: _keep(keep, passes, recorders, recording, unsupported)
        hooks.enter_context(on_backward(passes.start))
        try:
            yield recording
        except Exception as error:
            if error is passes.failure:
                for note in filter(None, (recorder.changed() for recorder in recorders)):
                    error.add_note(f"retrograde: {note}")
            raise
    recording.become(_filled(recorders, passes.all(), unsupported))
    if not recording and not any(recording.passes):
        raise RecordingError("; ".join(recording.refused.values()))


class _Passes:
    """The backward passes in the block.

    Attributes:
        tracker: follows states between the calls of all layers.
        failure: what the latest failed pass raised.
        after: called when a pass has ended.
    """

    def __init__(self, keep: int | None) -> None:
        self.tracker = StateTracker()
        self.failure: BaseException | None = None
        self.after: Callable[[], None] | None = None
        self._keep = keep
        self._ended: list[BackwardPass] = []
        self._running: BackwardPass | None = None
        self._depth = 0
        self._lock = self.tracker.lock  # passes in other threads are announced as well

    def current(self) -> BackwardPass | None:
        """The pass that is running, if any."""
        return self._running

    def all(self) -> list[BackwardPass]:
        """All passes, also one that another thread still runs through another model."""
        with self._lock:
            return [*self._ended, *([self._running] if self._running else [])]

    def start(self, roots: Roots) -> Callable[[], None]:
        """A backward pass starts, or one within it (checkpointing); the result ends it."""
        with self._lock:
            running = self._running = self._running or BackwardPass()
            self._depth += 1
            try:
                handles = self.tracker.observe(roots, running)
            except Exception as error:  # not into the user's backward pass
                handles = []
                why = f"observing the backward pass failed, {type(error).__name__}: {error}"
                running.problems |= dict.fromkeys(self.tracker.layers, why)

        def end() -> None:
            for handle in handles:
                handle.remove()
            self.failure = sys.exc_info()[1] or self.failure
            with self._lock:
                self._depth -= 1
                if self._depth:
                    return
                self._running = None
                self._forget(running)
                self._ended.append(running)
                self.tracker.passes += bool(running.arrived)
                if self.after:
                    self.after()

        return end

    def _forget(self, new: BackwardPass) -> None:
        """Let go of the passes that are not kept beside a new one."""
        if self._keep is not None:
            through = [one for one in self._ended if one.arrived]
            self._ended = through[max(0, len(through) - self._keep + bool(new.arrived)) :]


def _keep(
    keep: int,
    passes: _Passes,
    recorders: list[LayerRecorder],
    recording: Recording,
    unsupported: Mapping[str, RetrogradeError],
) -> None:
    """Forget what no pass that is kept went through, and fill the recording with the others."""
    kept = passes.all()
    reached = {call for backward in kept for call in backward.reached}
    since = passes.tracker.passes - keep - LATEST
    try:
        for recorder in recorders:
            gone = [call for call in recorder.calls if call not in reached]
            recorder.forget(
                [call for call in gone if call.was_reached or call.passes_before < since]
            )
        for call in reached:
            call.was_reached = True
        recording.become(_filled(recorders, kept, unsupported))
    except Exception as error:  # not into the user's backward pass
        for recorder in recorders:
            recorder.problem = f"keeping the last passes failed, {type(error).__name__}: {error}"


def _filled(
    recorders: list[LayerRecorder],
    passes: list[BackwardPass],
    unsupported: Mapping[str, RetrogradeError],
) -> Recording:
    """What was recorded, by pass and layer."""
    recording = Recording()
    for name, error in unsupported.items():
        recording.refuse(name, error)
    through: dict[str, list[Recording]] = {recorder.name: [] for recorder in recorders}
    numbered = {each.name: {c: n for n, c in enumerate(each.calls)} for each in recorders}
    found: list[Recording] = []
    for backward in passes:
        of_pass = Recording()
        for recorder in recorders:
            name, calls = recorder.name, backward.calls(numbered[recorder.name])
            if recorder.differentiated_before(backward):
                backward.inside.add(name)
            problem = (
                recorder.problem or backward.problems.get(name, "") or split_by_checkpoint(calls)
            )
            if calls and problem:
                of_pass.refuse(name, RecordingError(f"{name!r}: {problem}"))
            elif calls:
                put_together = partial(assemble, name, calls, backward)
                of_pass.fill(name, put_together, put_together)
            if calls:
                through[name].append(of_pass)
        if of_pass or of_pass.refused:
            found.append(of_pass)
    recording.passes = tuple(found)
    for recorder in recorders:
        _fill_layer(recording, recorder, through[recorder.name], passes)
    return recording


def _fill_layer(
    recording: Recording,
    recorder: LayerRecorder,
    through: list[Recording],
    passes: list[BackwardPass],
) -> None:
    """Fill in one layer: from the only pass through it, or with the reason why there is none."""
    name = recorder.name
    if len(through) == 1:
        if name in through[0]:
            recording.fill(name, partial(through[0].__getitem__, name))
        else:
            recording.refuse(name, RecordingError(through[0].refused[name]))
        return
    problem = recorder.problem or _missing(recorder, passes)
    if through:
        problem = (
            f"{len(through)} backward passes went through it; each is in recording.passes, as in "
            f"recording.passes[0][{name!r}], and recording.joined({name!r}) has them as one"
        )
        own = set(recorder.calls)
        of_layer = [backward for backward in passes if backward.reached & own]
        reached = {call for backward in of_layer for call in backward.reached}
        calls = [call for call in recorder.calls if call in reached]
        problem_of_one = next((one.refused[name] for one in through if name in one.refused), "")
        recording.fill_joined(name, partial(together, name, of_layer, calls, problem_of_one))
    recording.refuse(name, RecordingError(f"{name!r}: {problem}"))


def _missing(recorder: LayerRecorder, passes: list[BackwardPass]) -> str:
    """Why no backward pass went through a layer."""
    weights_reached = any(
        key[0] == recorder.name for backward in passes for key in [*backward.weights]
    )
    if not recorder.calls and not recorder.idle:
        if recorder.outer_calls:
            kind, whole = type(recorder.module), computing(recorder.module)
            package = "torch.nn" if whole.__module__.startswith("torch") else "retrograde.nn"
            return (
                f"it was called, but {kind.__module__}.{kind.__qualname__} has a forward of its "
                f"own, which does not call that of {package}.{whole.__name__}, so its steps cannot "
                f"be seen; it must call super().forward(), or be declared by its step, as in "
                f"cells={{{kind.__qualname__}: retrograde.Declaration(step)}}"
            )
        if weights_reached:
            return (
                "its weights got a gradient, but it was not called while the pass was recorded: it "
                "was called before, or something else computes with its weights; run the forward "
                "pass of this layer there"
            )
        return "it was not called while the pass was recorded; run the forward pass there"
    if not recorder.calls:
        return (
            "it was called where no gradient can arrive: under torch.no_grad() or inference_mode, "
            "with all weights frozen, or in a checkpoint with use_reentrant=True that no backward "
            "pass went through; run the forward pass with gradients"
        )
    if recorder.unannounced:
        return (
            "it received a gradient that loss.backward() did not start: torch.autograd.grad, "
            "or a torch.autograd.backward that was imported by name; call loss.backward()"
        )
    if not passes:
        return (
            "no backward pass reached it: loss.backward() was not called while the pass was "
            "recorded (torch.autograd.grad does not count)"
        )
    if weights_reached:
        return (
            "no backward pass reached its calls while the pass was recorded, but its weights got a "
            "gradient: from a penalty on them, or from an earlier call; run the forward pass of "
            "the "
            "loss there too"
        )
    return (
        "no backward pass reached it: loss.backward() was called while the pass was recorded, but "
        "the loss does not depend on this layer's calls there, or the gradient ends before them "
        "(detach(), backward(inputs=...))"
    )


def _shared(layers: Mapping[str, tuple[nn.Module, Declaration | None]]) -> dict[str, str]:
    """Layers that have a weight in common, and why they cannot be recorded."""
    owners: dict[nn.Parameter, list[tuple[str, str]]] = {}
    for layer, (module, declaration) in layers.items():
        alone = declaration is not None  # a step takes each of its weights by one name
        for name, parameter in module.named_parameters(remove_duplicate=alone):
            owners.setdefault(parameter, []).append((layer, name))
    return {
        layer: f"its {name} is also {_in_words(set(users) - {(layer, name)}, layer)}, and autograd "
        "gives only the sum of both; give each its own for the recorded pass"
        for users in owners.values()
        for layer, name in users
        if len(users) > 1
    }


def _in_words(users: set[tuple[str, str]], layer: str) -> str:
    """Other users of a weight: in other layers, or under other names in the same layer."""
    return ", ".join(
        sorted(f"that of {owner!r}" if owner != layer else f"its {name}" for owner, name in users)
    )


def _nothing_to_record(model: nn.Module, recording: Recording) -> str:
    if recording.refused:
        return "no recurrent layer of this model can be recorded. " + "; ".join(
            recording.refused.values()
        )
    return (
        f"{type(model).__name__} holds no recurrent layer: expected an nn.LSTM, nn.GRU or nn.RNN "
        "(or one of their cells) somewhere inside. Pass the module that owns it; a recurrence "
        "written by hand is not found by itself. Name the module that does it, as in "
        "cells={MyCell: retrograde.Declaration()}, or record its step on its own with these lines:"
        f"\n{BY_HAND}"
    )


BY_HAND = """\
    def step(weights, x, h):  # model.cell maps x and the state to the next state
        return torch.func.functional_call(model.cell, weights, (x, h))

    weights = dict(model.cell.named_parameters())
    cell = retrograde.cells.from_function(step, weights, input_size=I, state=H)
    recorded = retrograde.record_cell(cell, x, lambda h, s: loss_of(h))  # x and h are [T, B, *]
    retrograde.diagnose(recorded)
A state of several tensors is a dict, as in state={"h": H, "c": H}."""
"""How to record a recurrence written by hand; names in capitals are to be filled in."""


OWN_STEP = (
    "the residual compares with autograd's gradient of the cell's own step, but cannot tell "
    "whether that step does what a module of yours does: record_cell(..., gradients=module) can"
)


def record_cell(
    cell: AbstractCell,
    x: Float[Tensor, "..."],
    loss: Callable[[Float[Tensor, "T B H"], Float[Tensor, "B S"]], Tensor],
    initial: Float[Tensor, "..."] | None = None,
    name: str = "cell",
    gradients: Mapping[str, Tensor] | nn.Module | None = None,
) -> Recorded:
    """Record a bare cell: run it over x, and let autograd differentiate the loss.

    Args:
        cell: any cell, also one that torch.nn does not have.
        x: inputs, shape [T, B, I].
        loss: maps (outputs [T, B, H], last state [B, S]) to a scalar.
        initial: the initial state, shape [B, S]; zeros if None.
        name: what to call it in messages and reports.
        gradients: what the residual compares with. By default autograd's gradient of the cell's own
            step, which shows that its pull-back is right and no more. Where the cell stands for a
            module of yours: that module after its backward pass with the same weights, inputs and
            loss, or its gradients by the names of the cell's parameters. The residual then shows
            whether the cell does what the module does.

    Raises:
        ArgumentError: for an input or a state that does not fit the cell, a loss that is not a
            scalar tensor with a gradient, or gradients that are not there, of another shape, or of
            parameters that the cell does not have.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.cells import Elman
        >>> linear = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> recorded = retrograde.record_cell(linear, torch.ones(3, 1, 1), lambda h, s: s.sum())
        >>> retrograde.decompose(recorded).by_time("weight_ih").norm
        tensor([[0.2500, 0.5000, 1.0000]], dtype=torch.float64)
    """
    dtype = next(iter(is_cell(cell).parameters.values())).dtype
    _checks.tensor("x", x, ["T", "B", cell.input_size], dtype)
    if not x.numel():
        raise ArgumentError(f"x must hold a step and a sample; got shape {list(x.shape)}")
    _checks.function("loss", loss, "(outputs, last state) -> loss", takes=2)
    _checks.instance("name", name, str, "a text")
    if initial is None:
        initial = x.new_zeros(x.shape[1], cell.state_size)
    _checks.tensor("initial", initial, [x.shape[1], cell.state_size], dtype)
    with torch.enable_grad():
        weights = {n: w.detach().clone().requires_grad_() for n, w in cell.parameters.items()}
        live = cell.with_parameters(weights)
        state, hidden = initial, []
        for x_k in x:
            state = live.step(x_k, state).state
            hidden.append(state[:, cell.output])
        output = torch.stack(hidden)
        # The loss sees leaves, so that what it gives to each h_t is known without what comes later.
        leaf_output = output.detach().requires_grad_()
        leaf_state = state.detach().requires_grad_()
        value = _checks.loss(
            "loss(outputs, last state)", loss(leaf_output, leaf_state), "its arguments"
        )
        entering_grads = torch.autograd.grad(
            value, (leaf_output, leaf_state), materialize_grads=True
        )
        direct = [g.detach() for g in entering_grads]  # torch 2.6 lets the zeros require grad
        grads = torch.autograd.grad(
            (output, state), list(weights.values()), direct, materialize_grads=True
        )
    entering = torch.zeros(len(x), *state.shape, dtype=x.dtype, device=x.device)
    entering[..., cell.output] = direct[0]
    entering[-1] += direct[1]
    own = dict(zip(weights, grads, strict=True))
    copied = {n: w.detach() for n, w in weights.items()}
    return Recorded(
        name,
        cell.with_parameters(copied),
        x.detach(),
        initial.detach(),
        entering,
        own if gradients is None else _given(gradients, cell),
        notes=(OWN_STEP,) if gradients is None else (),
        final=state.detach(),
        against="autograd's gradient of the cell's own step"
        if gradients is None
        else "the gradients that were given",
    )


def _given(gradients: object, cell: AbstractCell) -> dict[str, Tensor]:
    """The gradients of a module, or by name, as those of the cell's parameters.

    Raises:
        ArgumentError: if they are not.
    """
    names = ", ".join(cell.parameters)
    if isinstance(gradients, nn.Module):
        given = {n: p.grad for n, p in gradients.named_parameters() if n in cell.parameters}
    elif isinstance(gradients, Mapping):
        given = dict(gradients)
        if unknown := [name for name in given if name not in cell.parameters]:
            raise ArgumentError(
                f"gradients holds {', '.join(map(repr, unknown))}; the cell's parameters are "
                + names
            )
    else:
        raise ArgumentError(
            "gradients must be a module after its backward pass, or a mapping from the names of "
            f"the cell's parameters ({names}) to tensors; got {type(gradients).__name__}"
        )
    found: dict[str, Tensor] = {}
    for name, weight in cell.parameters.items():
        gradient = given.get(name)
        if not isinstance(gradient, Tensor):
            raise ArgumentError(
                f"gradients has none of {name!r}: call backward() on the module first, and name "
                f"its parameters as the cell does ({names})"
            )
        if gradient.shape != weight.shape or not gradient.is_floating_point():
            raise ArgumentError(
                f"the gradient of {name!r} must be floating-point numbers of shape "
                f"{tuple(weight.shape)}; got {gradient.dtype} of {tuple(gradient.shape)}"
            )
        found[name] = gradient.detach().clone()
    return found
