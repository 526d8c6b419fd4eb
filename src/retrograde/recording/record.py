"""The `with` block: hooks go on, passes are told apart, hooks come off."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Lock

from torch import nn

from retrograde import _checks
from retrograde.errors import RecordingError, UnsupportedModelError
from retrograde.recording.assemble import assemble
from retrograde.recording.checkpoints import cut_off
from retrograde.recording.forward import computing
from retrograde.recording.graph import Roots, listening
from retrograde.recording.layers import Layer, recurrent_layers, why_not
from retrograde.recording.links import Surroundings
from retrograde.recording.passes import Pass
from retrograde.recording.recording import Recording
from retrograde.recording.uncompiled import uncompiled
from retrograde.recording.watch import Watch


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record forward and backward passes through every recurrent layer of a model.

    The model is used as it is and left as it was: weights, `.grad`, modes, hooks, random state.

    Args:
        model: any module with recurrent layers inside: nn.LSTM, nn.GRU, nn.RNN (stacked, in both
            directions, packed, called step by step or not), nn.LSTMCell, nn.GRUCell, nn.RNNCell,
            or those of `retrograde.nn` (or one of these itself).

    Yields:
        The `Recording`, filled when the block ends.

    Raises:
        ArgumentError: for anything but a model.
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
    """
    _checks.model("model", model)
    recording, passes = Recording(), _Passes()
    with ExitStack() as hooks:
        watches = []
        layers = recurrent_layers(model)
        shared = _shared(layers)
        for name, module in layers.items():
            problem = why_not(module) or shared.get(name, "")
            if problem:
                recording.refuse(name, UnsupportedModelError(f"{name!r}: {problem}"))
            else:
                assert isinstance(module, Layer)
                watches.append(Watch(name, module, passes.around, passes.current, hooks))
        if not watches:
            raise UnsupportedModelError(_nothing_to_record(model, recording))
        hooks.enter_context(uncompiled(any(watch.traced for watch in watches)))
        for watch in watches:
            watch.attach()
        hooks.enter_context(listening(passes.start))
        try:
            yield recording
        except Exception as error:
            if error is passes.failure:
                for note in filter(None, (watch.changed() for watch in watches)):
                    error.add_note(f"retrograde: {note}")
            raise
    _fill(recording, watches, passes.all())
    if not recording and not any(recording.passes):
        raise RecordingError("; ".join(recording.refused.values()))


class _Passes:
    """The backward passes in the block.

    Attributes:
        around: the graph around all calls.
        failure: what the latest pass that failed did raise.
    """

    def __init__(self) -> None:
        self.around = Surroundings()
        self.failure: BaseException | None = None
        self._ended: list[Pass] = []
        self._running: Pass | None = None
        self._depth = 0
        self._lock = Lock()  # passes of other models in other threads are announced as well

    def current(self) -> Pass | None:
        """The pass that is running, if one is."""
        return self._running

    def all(self) -> list[Pass]:
        """All passes; one that still runs does so in another thread, through another model."""
        with self._lock:
            return [*self._ended, *([self._running] if self._running else [])]

    def start(self, roots: Roots) -> Callable[[], None]:
        """A backward pass begins, or one within it (checkpointing); the result ends it."""
        with self._lock:
            running = self._running = self._running or Pass()
            self._depth += 1
        try:
            looking_on = self.around.watch(roots, running)
        except Exception as error:  # not into the user's backward pass
            looking_on = []
            why = f"looking at the backward pass failed, {type(error).__name__}: {error}"
            running.problems |= dict.fromkeys(self.around.layers, why)

        def end() -> None:
            for handle in looking_on:
                handle.remove()
            self.failure = sys.exc_info()[1] or self.failure
            with self._lock:
                self._depth -= 1
                if not self._depth:
                    self._ended.append(running)
                    self._running = None

        return end


def _fill(recording: Recording, watches: list[Watch], passes: list[Pass]) -> None:
    """Sort what was seen by pass and layer."""
    through: dict[str, list[Recording]] = {watch.name: [] for watch in watches}
    for brought in passes:
        of_pass = Recording()
        for watch in watches:
            name, calls = watch.name, brought.calls(watch.calls)
            if watch.differentiated_before(brought):
                brought.inside.add(name)
            problem = watch.problem or brought.problems.get(name, "") or cut_off(calls)
            if calls and problem:
                of_pass.refuse(name, RecordingError(f"{name!r}: {problem}"))
            elif calls:
                of_pass.fill(name, partial(assemble, name, calls, brought))
            if calls:
                through[name].append(of_pass)
        if of_pass or of_pass.refused:
            recording.passes += (of_pass,)
    for watch in watches:
        _fill_layer(recording, watch, through[watch.name], passes)


def _fill_layer(
    recording: Recording, watch: Watch, through: list[Recording], passes: list[Pass]
) -> None:
    """One layer of the whole recording: that of the only pass through it, or why there is none."""
    name = watch.name
    if len(through) == 1:
        if name in through[0]:
            recording.fill(name, partial(through[0].__getitem__, name))
        else:
            recording.refuse(name, RecordingError(through[0].refused[name]))
        return
    problem = watch.problem or _missing(watch, passes)
    if through:
        problem = (
            f"{len(through)} backward passes went through it; each is in recording.passes, as in "
            f"recording.passes[0][{name!r}]"
        )
    recording.refuse(name, RecordingError(f"{name!r}: {problem}"))


def _missing(watch: Watch, passes: list[Pass]) -> str:
    """Why no backward pass went through a layer."""
    weights_reached = any(key[0] == watch.name for brought in passes for key in brought.weights)
    if not watch.calls and not watch.idle:
        if watch.outer_calls:
            kind, whole = type(watch.module), computing(watch.module)
            package = "torch.nn" if whole.__module__.startswith("torch") else "retrograde.nn"
            return (
                f"it was called, but {kind.__module__}.{kind.__qualname__} has a forward of its "
                f"own, which does not call that of {package}.{whole.__name__}, so that its steps "
                "are not seen; let it call super().forward(), or take its step by "
                "retrograde.cells.from_function"
            )
        if weights_reached:
            return (
                "its weights got a gradient, but it was not called while the pass was recorded: it "
                "was called before, or something else computes with its weights; run the forward "
                "pass of this layer there"
            )
        return "it was not called while the pass was recorded; run the forward pass there"
    if not watch.calls:
        return (
            "it was called without a gradient to come: under torch.no_grad() or inference_mode, "
            "with all weights frozen, or in a checkpoint with use_reentrant=True that no backward "
            "pass went through; run the forward pass with gradients"
        )
    if watch.unannounced:
        return (
            "a gradient came to it that was not started by loss.backward(): torch.autograd.grad, "
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
            "gradient: by a penalty on them, or by a call from before; run the forward pass of the "
            "loss there too"
        )
    return (
        "no backward pass reached it: loss.backward() was called while the pass was recorded, but "
        "the loss does not depend on this layer's calls there, or the gradient ends before them "
        "(detach(), backward(inputs=...))"
    )


def _shared(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers that have a weight in common, and why that stands in the way."""
    owners: dict[nn.Parameter, list[tuple[str, str]]] = {}
    for layer, module in layers.items():
        for name, parameter in module.named_parameters(remove_duplicate=False):
            owners.setdefault(parameter, []).append((layer, name))
    return {
        layer: f"its {name} is also {_in_words(set(users) - {(layer, name)}, layer)}, and autograd "
        "gives only the sum of both; let each have its own for the recorded pass"
        for users in owners.values()
        for layer, name in users
        if len(users) > 1
    }


def _in_words(users: set[tuple[str, str]], layer: str) -> str:
    """Other users of a weight: in other layers, or under other names in the same one."""
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
        f"written by hand is not found, and these lines take its step:\n{BY_HAND}"
    )


BY_HAND = """\
    def step(weights, x, h):  # model.cell maps x and the state to the next state
        return torch.func.functional_call(model.cell, weights, (x, h))

    weights = dict(model.cell.named_parameters())
    cell = retrograde.cells.from_function(step, weights, input_size=I, state=H)
    recorded = retrograde.record_cell(cell, x, lambda h, s: loss_of(h))  # x and h are [T, B, *]
    retrograde.diagnose(recorded)
A state of several tensors is a dict, as in state={"h": H, "c": H}."""
"""How a recurrence of one's own is taken apart; what stands in capitals is to be filled in."""
