"""What happened to a state between calls, in sentences for the reader of a recording."""

from collections.abc import Sequence

DETACHED = "the state was detached before {}: nothing comes back from there"
REPLACED = "parts of the state were replaced before {}: nothing comes back to them"
CHANGED = (
    "the state was changed between calls before {} (masked, scaled, reordered, added to): "
    "adjoints pass through the change"
)
COMPUTED = (
    "the state before {} is computed from the one before in a way that adjoints are not followed "
    "through (a linear map, a norm, a network, a hook, states of several earlier calls): what "
    "comes back through it counts as given by the loss, and lags end there"
)
BRANCHED = (
    "a run starts at {} from a state that another call continues or reads as its input: what "
    "comes back to that state counts as given by the loss, and lags end there"
)
FED_BACK = (
    "the input at {} is computed from the layer's own outputs: what comes back through it counts "
    "as given by the loss to those outputs, so that lags through the input end there"
)

BY_HAND = (
    "a backward pass started at the state before {}, with a gradient that was handed to it: that "
    "counts as given by the loss, and lags end there"
)


def in_words(changes: Sequence[tuple[int, str]]) -> list[str]:
    """One sentence for each kind of change, with the steps at which it happened."""
    kinds: dict[str, list[int]] = {}
    for step, change in changes:
        kinds.setdefault(change, []).append(step)
    return [kind.format(_steps(steps)) for kind, steps in kinds.items()]


def _steps(steps: list[int], shown: int = 5) -> str:
    named = ", ".join(map(str, steps[:shown]))
    more = f" and {len(steps) - shown} more" if len(steps) > shown else ""
    return f"step{'s' if len(steps) > 1 else ''} {named}{more}"
