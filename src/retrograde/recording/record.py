"""Record a model: hooks are on its recurrent layers while the `with` block runs."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from retrograde import _checks
from retrograde.declarations import Declaration
from retrograde.declarations.keras import one_direction_at_a_time
from retrograde.declarations.matching import Declared
from retrograde.errors import RecordingError, RetrogradeError, UnsupportedModelError
from retrograde.recording.backward_calls import on_backward
from retrograde.recording.filling import filled
from retrograde.recording.hooks import LayerRecorder
from retrograde.recording.layers import layers_of, why_unsupported
from retrograde.recording.passes import Passes
from retrograde.recording.readers import reader_of
from retrograde.recording.recording import Recording
from retrograde.recording.states import LATEST
from retrograde.recording.uncompiled import uncompiled


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
    recording, passes = Recording(), Passes(keep)
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
                for note in filter(None, (recorder.weights.changed() for recorder in recorders)):
                    error.add_note(f"retrograde: {note}")
            raise
    recording.become(filled(recorders, passes.all(), unsupported))
    if not recording and not any(recording.passes):
        raise RecordingError("; ".join(recording.refused.values()))


def _keep(
    keep: int,
    passes: Passes,
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
        recording.become(filled(recorders, kept, unsupported))
    except Exception as error:  # not into the user's backward pass
        why = f"keeping the last passes failed, {type(error).__name__}: {error}"
        for recorder in recorders:
            recorder.guard.problem = why


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
