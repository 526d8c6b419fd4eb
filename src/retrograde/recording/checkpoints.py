"""Calls that a checkpoint ran again inside the backward pass, cut off from each other.

With use_reentrant=False the graph is the one of the forward pass. With use_reentrant=True each
segment is run again from copies of what went into it, and goes back by a backward pass of its own;
what lies between two segments is in the graph of neither.
"""

from collections.abc import Sequence

from retrograde.recording.calls import Call


def cut_off(calls: Sequence[Call]) -> str:
    """Why calls cannot be put together, if a state was handed on between two such segments."""
    for call in (call for call in calls if call.again and not call.link):
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
