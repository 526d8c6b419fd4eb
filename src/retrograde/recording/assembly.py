"""From the calls of a layer and the gradients of a backward pass to one `Recorded`.

Separate sequences of calls lie side by side as samples, since the gradient of the weights is the
sum over both.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells import AbstractCell, policy_of
from retrograde.errors import RecordingError
from retrograde.recording.agreement import check_shapes, declared_cells
from retrograde.recording.backward_pass import BackwardPass
from retrograde.recording.calls import Call
from retrograde.recording.recorded import Recorded, spread
from retrograde.recording.replay import Replayed, replay
from retrograde.recording.segment import Segment
from retrograde.recording.sequences import before_calls, sequences_of


def assemble(
    name: str, calls: list[Call], backward: BackwardPass, samples: int | None = None
) -> Recorded:
    """Put the calls of a layer in one backward pass together.

    Args:
        name: the layer.
        calls: its calls in this pass.
        backward: the pass.
        samples: how many samples are asked for, evenly spread over those that have a loss; None for
            all, with gradients.

    Raises:
        RecordingError: if the calls ran with different weights, if a dropout's masks cannot be
            drawn again, or if the loss used what is not recorded.
    """
    try:
        return _assembled(name, calls, backward, samples)
    except RecordingError as error:
        raise RecordingError(f"{name!r}: {error}") from None


def _assembled(
    name: str, calls: list[Call], backward: BackwardPass, samples: int | None
) -> Recorded:
    """The same; its errors do not name the layer."""
    problem = backward.problems.get(name) or _problem(name, calls, backward)
    if problem:
        raise RecordingError(problem)
    cells, names = _cells_of(calls, backward)
    sequences, notes = sequences_of(calls, backward)
    chosen = None if samples is None else _chosen(calls, sequences, samples)
    some = None if chosen is None else torch.tensor(chosen, device=calls[0].output.device)
    replayed = _replayed(sequences, cells, some)
    notes += _notes_on(sequences, replayed.cell)
    gradients = {
        weight: _through_the_layer(names.get(weight, weight), calls, backward, notes)
        for weight in replayed.cell.parameters
    }
    whole = Recorded(
        name,
        replayed.cell,
        replayed.x,
        replayed.initial,
        replayed.direct,
        gradients if chosen is None else {},
        None if replayed.reads is replayed.x else replayed.reads,
        replayed.boundaries,
        replayed.lengths,
        tuple(notes),
        lags_end=_lags_end(sequences),
        rounding=max(call.rounding for call in calls),
        final=_final([sequence[-1].call for sequence in sequences], replayed.initial, some),
        samples=None if chosen is None else tuple(chosen),
    )
    if samples is None:
        return whole
    return whole.sample(samples) if chosen is None else whole.with_run(replayed.ran)


def _cells_of(
    calls: list[Call], backward: BackwardPass
) -> tuple[Sequence[AbstractCell], Mapping[str, str]]:
    """The cells of a layer, and the layer's names of those weights that its cells call otherwise.

    Raises:
        RecordingError: for a declaration that does not fit the calls or the weights.
    """
    first = calls[0]
    if not first.form.declared:
        return first.cells, {}
    check_shapes(calls)
    return declared_cells(first.form, first.weights, _reached(calls, backward))


def _chosen(calls: list[Call], sequences: list[list[Segment]], count: int) -> list[int] | None:
    """So many samples that have a loss; None where they can be chosen only from the whole."""
    if len(calls) > 1 or calls[0].random is not None or calls[0].ragged:
        return None
    return spread(_given_by_the_loss(sequences[0][0]), count)


def _replayed(
    sequences: list[list[Segment]],
    cells: Sequence[AbstractCell],
    some: Int[Tensor, "B"] | None,
) -> Replayed:
    """All sequences side by side, of some samples or of all."""
    segments = [segment for sequence in sequences for segment in sequence]
    masked = any(segment.call.random is not None for segment in segments)
    held = any(
        bool(segment.by_entered.any())
        or any(read.entered and bool(read.factor.any()) for read in segment.reads or ())
        for segment in segments
    )
    return Replayed.side_by_side(
        [replay(sequence, cells, masked, held, some) for sequence in sequences]
    )


def _notes_on(sequences: list[list[Segment]], cell: AbstractCell) -> list[str]:
    """What a reader must know about sequences that are one `Recorded`."""
    notes = []
    if len(sequences) > 1:
        notes.append(
            f"{len(sequences)} separate runs of the layer lie side by side as samples: lags do "
            "not cross from one to another"
        )
    policy = policy_of(cell)
    if policy is not None:
        notes.append(
            f"{policy!r} clips inside its back-propagation: what is taken apart is the clipped "
            "gradient, flow.unclipped is the true one"
        )
    return notes


def _given_by_the_loss(segment: Segment) -> list[Float[Tensor, "_ B M"]]:
    """What the loss gives to the samples of a call."""
    outputs = [segment.call.given_to_outputs(gradient) for gradient in segment.by_output.values()]
    return [*outputs, segment.by_state.unsqueeze(0)]


def _lags_end(sequences: list[list[Segment]]) -> tuple[int, ...]:
    """The steps before which lags end in any sequence."""
    found = {k for sequence in sequences for k, _, ends in before_calls(sequence) if ends}
    return tuple(sorted(found))


def _final(last: list[Call], like: Tensor, samples: Tensor | None) -> Tensor | None:
    """The state in which the last calls ended; None where other samples began than ended."""
    if any(set(call.last) < set(call.cells[0].slots) for call in last if call.form.declared):
        return None
    state = torch.cat([call.state(call.last) for call in last])
    state = state if samples is None else state[samples]
    return state if state.shape == like.shape else None


def _reached(calls: list[Call], backward: BackwardPass) -> set[str]:
    """The weights that got a gradient."""
    return {name for call in calls for name, key in call.keys.items() if key in backward.weights}


def _through_the_layer(
    weight: str, calls: list[Call], backward: BackwardPass, notes: list[str]
) -> Tensor:
    """Autograd's gradient of a weight, without what did not come through the layer."""
    used = {call.keys[weight] for call in calls if weight in call.keys}
    gradients = [backward.weights[key] for key in used if key in backward.weights]
    if not gradients:
        raise RecordingError(
            f"autograd gave no gradient of its {weight} in this pass: it was frozen, the loss does "
            "not depend on it, or backward(inputs=...) left it out; call backward() without inputs"
        )
    beside = [backward.beside[key] for key in used if key in backward.beside]
    if beside:
        notes.append(
            f"a part of the gradient of {weight} does not come through the layer (a penalty on the "
            "weights?) and is left out"
        )
    total = gradients[0] if len(gradients) == 1 else torch.stack(gradients).sum(0)
    return total - sum(beside) if beside else total


def _problem(name: str, calls: list[Call], backward: BackwardPass) -> str:
    """Why these calls cannot be put together; empty if they can."""
    if any((call, "activation") in backward.arrived for call in calls):
        return (
            "the loss uses what return_activations=True returned, and a gradient that enters there "
            "is not followed; use output and state for the recorded pass"
        )
    if name in backward.inside:
        return (
            "the loss depends on it other than through its output and state, as a penalty on "
            "gradients (create_graph=True) does; leave such terms out of the recorded pass"
        )
    if len(calls) == 1:
        return ""
    weights = [[w for cell in call.cells for w in cell.parameters.values()] for call in calls]
    for others in weights[1:]:
        same = others[0] is weights[0][0] or all(map(torch.equal, weights[0], others))
        if not same:
            return (
                "its weights were not the same in all calls of this backward pass, so there is no "
                "single gradient to take apart; record passes with one set of weights"
            )
    return ""


def together(
    name: str, passes: Sequence[BackwardPass], calls: list[Call], problem: str
) -> Recorded:
    """The calls of a layer in several backward passes as one sequence, or several.

    Raises:
        RecordingError: as `assemble`, if the weights changed between the passes, and for a problem
            that one of them has.
    """
    if problem:
        raise RecordingError(problem)
    first, *others = (call.weights.copies for call in calls)
    for other in others:
        if other is not first and not all(torch.equal(first[n], other[n]) for n in first):
            raise RecordingError(
                f"{name!r}: its weights changed between these passes, so that there is no single "
                "gradient to take apart: each of recording.passes is exact by itself. To see "
                "several as one sequence, let the optimiser step after the last of them only"
            )
    return assemble(name, calls, BackwardPass.together(passes))


def split_by_checkpoint(calls: Sequence[Call]) -> str:
    """Why calls that a checkpoint ran again cannot be put together; empty if they can.

    With use_reentrant=False the graph is that of the forward pass. With use_reentrant=True each
    checkpointed part runs again from copies of its inputs and goes back by a backward pass of its
    own; what lies between two such parts is in the graph of neither.
    """
    for call in (call for call in calls if call.rerun and not call.origin):
        state = call.state(call.given)
        for before in calls:
            if before is call or before.batch != call.batch:
                continue
            same = (state == before.state(before.last)).all(1) & state.any(1)
            if bool(same.any()):
                return (
                    "its state is handed on between two parts that a checkpoint with "
                    "use_reentrant=True runs again, and lags across them would be lost; use "
                    "use_reentrant=False, which gives the same gradient"
                )
    return ""
