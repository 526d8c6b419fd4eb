"""From the calls of a layer and what a backward pass brought, to one `Recorded`.

Calls that carry a state on become one sequence; others lie side by side as samples, since the
gradient of the weights is the sum over both. Where a state was not carried on as it was, what comes
back from the call after counts as what the loss gives, so that the parts still sum to the gradient.
"""

import torch
from torch import Tensor

from retrograde.cells import policy_of
from retrograde.errors import RecordingError
from retrograde.recording.calls import Call
from retrograde.recording.chains import by_step, chains_of
from retrograde.recording.passes import Pass
from retrograde.recording.readings import Reading, read
from retrograde.recording.recording import Recorded


def assemble(name: str, calls: list[Call], brought: Pass) -> Recorded:
    """Put the calls of a layer in one backward pass together.

    Raises:
        RecordingError: if the calls ran with different weights, if a dropout's masks cannot be
            drawn again, or if the loss used what is not recorded.
    """
    problem = brought.problems.get(name) or _problem(name, calls, brought)
    if problem:
        raise RecordingError(f"{name!r}: {problem}")
    chains, notes = chains_of(calls, brought)
    try:
        masked = any(call.random is not None for call in calls)
        held = any(
            read.entered and bool(read.factor.any())
            for chain in chains
            for span in chain
            for read in span.reads or ()
        ) or any(bool(span.by_entered.any()) for chain in chains for span in chain)
        reading = Reading.side_by_side([read(chain, masked, held) for chain in chains])
        if len(chains) > 1:
            notes.append(
                f"{len(chains)} separate runs of the layer lie side by side as samples: lags do "
                "not cross from one to another"
            )
        policy = policy_of(reading.cell)
        if policy is not None:
            notes.append(
                f"{policy!r} clips inside its back-propagation: what is taken apart is the clipped "
                "gradient, flow.unclipped is the true one"
            )
        gradients = {
            weight: _through_the_layer(weight, calls, brought, notes)
            for weight in reading.cell.parameters
        }
    except RecordingError as error:
        raise RecordingError(f"{name!r}: {error}") from None
    return Recorded(
        name,
        reading.cell,
        reading.x,
        reading.initial,
        reading.direct,
        gradients,
        None if reading.reads is reading.x else reading.reads,
        reading.borders,
        reading.lengths,
        tuple(notes),
        lags_end=tuple(sorted({k for chain in chains for k, span in by_step(chain) if span.ends})),
        rounding=max(call.rounding for call in calls),
        final=_final([chain[-1].call for chain in chains], reading.initial),
    )


def _final(last: list[Call], like: Tensor) -> Tensor | None:
    """The state in which the last calls ended; None where other samples began than ended."""
    state = torch.cat([call.state(call.last) for call in last])
    return state if state.shape == like.shape else None


def _through_the_layer(weight: str, calls: list[Call], brought: Pass, notes: list[str]) -> Tensor:
    """Autograd's gradient of a weight, without what came to it by other ways."""
    used = {call.keys[weight] for call in calls if weight in call.keys}
    gradients = [brought.weights[key] for key in used if key in brought.weights]
    if not gradients:
        raise RecordingError(
            f"autograd gave no gradient of its {weight} in this pass: it was frozen, the loss does "
            "not depend on it, or backward(inputs=...) left it out; call backward() without inputs"
        )
    beside = [brought.beside[key] for key in used if key in brought.beside]
    if beside:
        notes.append(
            f"a part of the gradient of {weight} does not come through the layer (a penalty on the "
            "weights?) and is left out"
        )
    return torch.stack(gradients).sum(0) - sum(beside)


def _problem(name: str, calls: list[Call], brought: Pass) -> str:
    """Why these calls cannot be put together; empty if nothing stands in the way."""
    if any((call, "activation") in brought.arrived for call in calls):
        return (
            "the loss uses what return_activations=True handed out, and a gradient that enters "
            "there is not followed; use output and state for the recorded pass"
        )
    if name in brought.inside:
        return (
            "the loss reaches inside it, past its output and state, as a penalty on gradients "
            "(create_graph=True) does; leave such terms out of the recorded pass"
        )
    weights = [[w for cell in call.cells for w in cell.parameters.values()] for call in calls]
    for others in weights[1:]:
        same = others[0] is weights[0][0] or all(map(torch.equal, weights[0], others))
        if not same:
            return (
                "its weights were not the same in all calls of this backward pass, so that there "
                "is no one gradient to take apart; record passes with one set of weights"
            )
    return ""
