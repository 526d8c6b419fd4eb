"""The gradients that arrived in one backward pass; they outlive the graph."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from retrograde.recording.calls import Call, Intermediate, WeightKey

Key = TypeVar("Key")


@dataclass(eq=False)
class BackwardPass:
    """The gradients of one backward pass.

    Attributes:
        arrived: the whole gradient of each result of a call.
        entered: of those that another call may continue from, what did not come back through that
            call: what the loss gives to them.
        between: the same for the tensors between two calls.
        returned: what came back to each call through the tensors between it and the next.
        given: the whole gradient of each part of a state that a call was given, if it was altered.
        weights: the gradient of each tensor that a layer used as a weight.
        beside: the part of it that did not come through the layer, such as a penalty in the loss.
        inside: the layers that the loss reaches other than through their output and state.
        problems: the layers for which the pass cannot be used, and why.
    """

    arrived: dict[tuple[Call, str], Tensor] = field(default_factory=dict)
    entered: dict[tuple[Call, str], Tensor] = field(default_factory=dict)
    between: dict[Intermediate, Tensor] = field(default_factory=dict)
    returned: dict[Call, dict[Intermediate, Tensor]] = field(default_factory=dict)
    given: dict[tuple[Call, str], Tensor] = field(default_factory=dict)
    weights: dict[WeightKey, Tensor] = field(default_factory=dict)
    beside: dict[WeightKey, Tensor] = field(default_factory=dict)
    inside: set[str] = field(default_factory=set)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def reached(self) -> set[Call]:
        """The calls that the pass went through, so far if another thread still runs it."""
        return {call for call, _ in [*self.arrived]}

    def calls(self, among: Mapping[Call, int]) -> list[Call]:
        """Those of some numbered calls that the pass went through, in order."""
        return sorted((call for call in self.reached if call in among), key=among.__getitem__)

    @staticmethod
    def together(passes: "Iterable[BackwardPass]") -> "BackwardPass":
        """Several passes as the one through the sum of their losses."""
        whole = BackwardPass()
        for one in passes:
            _add_all(whole.arrived, one.arrived)
            _add_all(whole.entered, one.entered)
            _add_all(whole.given, one.given)
            _add_all(whole.weights, one.weights)
            _add_all(whole.beside, one.beside)
            _add_all(whole.between, one.between)
            for call, of_call in one.returned.items():
                _add_all(whole.returned.setdefault(call, {}), of_call)
            whole.inside |= one.inside
            whole.problems |= one.problems
        return whole


def add(store: dict[Key, Tensor], key: Key, gradient: Tensor) -> Tensor:
    """Keep a copy of a gradient, or add it to what has arrived there before; returns the copy.

    The tensor itself may change later: a hook may write into it, whoever called backward may fill
    it anew, and what a hook kept is its owner's to zero.
    """
    copy = gradient.clone() if not gradient.requires_grad else gradient.detach().clone()
    store[key] = store[key] + copy if key in store else copy
    return copy


def _add_all(store: dict[Key, Tensor], more: Mapping[Key, Tensor]) -> None:
    for key, gradient in more.items():
        store[key] = store[key] + gradient if key in store else gradient
