"""What one backward pass brought to the recorded layers."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from retrograde.recording.calls import Call, Way, WeightKey

Key = TypeVar("Key")


@dataclass(eq=False)
class Pass:
    """The gradients of one backward pass.

    Attributes:
        arrived: the whole gradient of each result of a call.
        entered: of those that may be handed on, what reached them by other ways than the calls'
            own; that is what the loss gives to them.
        between: the same of the tensors between two calls.
        returned: what came back to each call by the ways through which its state was handed on.
        given: the whole gradient of each part of a state that a call was given, if it was altered.
        weights: the gradient of each tensor that a layer used as a weight.
        beside: what of it came by other ways than through the layer, a penalty in the loss.
        inside: the layers that the loss reaches past their output and state.
        problems: the layers for which the pass cannot be used, and why.
    """

    arrived: dict[tuple[Call, str], Tensor] = field(default_factory=dict)
    entered: dict[tuple[Call, str], Tensor] = field(default_factory=dict)
    between: dict[Way, Tensor] = field(default_factory=dict)
    returned: dict[Call, dict[Way, Tensor]] = field(default_factory=dict)
    given: dict[tuple[Call, str], Tensor] = field(default_factory=dict)
    weights: dict[WeightKey, Tensor] = field(default_factory=dict)
    beside: dict[WeightKey, Tensor] = field(default_factory=dict)
    inside: set[str] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)

    def calls(self, among: Iterable[Call]) -> list[Call]:
        """The calls that the pass went through, in order."""
        reached = {call for call, _ in self.arrived}
        return [call for call in among if call in reached]


def add(store: dict[Key, Tensor], key: Key, gradient: Tensor) -> Tensor:
    """Keep a copy of a gradient, or add it to what has arrived there before; returns the copy.

    The tensor itself may change later: a hook may write into it, whoever called backward may fill
    it anew, and what a hook kept is its owner's to zero.
    """
    copy = gradient.clone() if not gradient.requires_grad else gradient.detach().clone()
    store[key] = store[key] + copy if key in store else copy
    return copy
