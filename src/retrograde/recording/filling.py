"""What a block leaves recorded: every layer of every backward pass, or why there is none."""

from collections.abc import Mapping
from functools import partial

from retrograde.errors import RecordingError, RetrogradeError
from retrograde.recording.assembly import assemble, split_by_checkpoint, together
from retrograde.recording.backward_pass import BackwardPass
from retrograde.recording.calls import Call
from retrograde.recording.hooks import LayerRecorder
from retrograde.recording.interception import computing
from retrograde.recording.recording import Recording


def filled(
    recorders: list[LayerRecorder],
    passes: list[BackwardPass],
    unsupported: Mapping[str, RetrogradeError],
) -> Recording:
    """What was recorded, by pass and layer."""
    recording = Recording()
    for name, error in unsupported.items():
        recording.refuse(name, error)
    numbered = {each.name: {c: n for n, c in enumerate(each.calls)} for each in recorders}
    found = [_of_pass(backward, recorders, numbered) for backward in passes]
    recording.passes = tuple(of_pass for of_pass in found if of_pass or of_pass.refused)
    for recorder in recorders:
        _fill_layer(recording, recorder, passes)
    return recording


def _of_pass(
    backward: BackwardPass,
    recorders: list[LayerRecorder],
    numbered: Mapping[str, Mapping[Call, int]],
) -> Recording:
    """The layers that one backward pass went through; each is put together when asked for.

    Args:
        backward: the pass.
        recorders: of all layers.
        numbered: the calls of each layer, with their numbers.
    """
    of_pass = Recording()
    for recorder in recorders:
        name, calls = recorder.name, backward.calls(numbered[recorder.name])
        if recorder.gradients.differentiated_before(backward):
            backward.inside.add(name)
        problem = recorder.problem or backward.problems.get(name, "") or split_by_checkpoint(calls)
        if calls and problem:
            of_pass.refuse(name, RecordingError(f"{name!r}: {problem}"))
        elif calls:
            put_together = partial(assemble, name, calls, backward)
            of_pass.fill(name, put_together, put_together)
    return of_pass


def _fill_layer(recording: Recording, recorder: LayerRecorder, passes: list[BackwardPass]) -> None:
    """Fill in one layer: from the only pass through it, or with the reason why there is none."""
    name = recorder.name
    through = [one for one in recording.passes if name in one or name in one.reasons]
    if len(through) == 1:
        (one,) = through
        if name in one:
            recording.fill(name, partial(one.__getitem__, name))
        else:
            recording.refuse(name, RecordingError(one.refused[name]))
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
        problem_of_one = next((one.refused[name] for one in through if name in one.reasons), "")
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
    if recorder.gradients.unannounced:
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
            "the loss there too"
        )
    return (
        "no backward pass reached it: loss.backward() was called while the pass was recorded, but "
        "the loss does not depend on this layer's calls there, or the gradient ends before them "
        "(detach(), backward(inputs=...))"
    )
