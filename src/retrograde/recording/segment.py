"""What sequences of calls are made of."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from retrograde.recording.calls import Call
from retrograde.recording.reads import StateRead


@dataclass(frozen=True, eq=False)
class Segment:
    """A call as a part of a sequence.

    Attributes:
        call: the call.
        by_output: what the loss gives to its outputs, by their names, in the layout of the output.
        by_state: what the loss gives to its last state, [B, S].
        by_entered: what it gives to the state that entered the call, bypassing the call, [B, S].
        reads: what the state that it started from reads of the call before; None for the first
            call, and where the state was handed on unchanged.
        changes: what happened to the state before the call, as sentences with a place for the step.
        ends: lags end there, although the state depends on earlier ones.
    """

    call: Call
    by_output: Mapping[str, Tensor]
    by_state: Float[Tensor, "B S"]
    by_entered: Float[Tensor, "B S"]
    reads: tuple[StateRead, ...] | None
    changes: tuple[str, ...] = ()
    ends: bool = False
