"""Hooks on gradients: those of what a layer's calls return, and of its weights.

They keep the gradients of every backward pass, and notice where hooks of the user's change what
comes back from later steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle, unserializable_hook

from retrograde.errors import RetrogradeError
from retrograde.recording.backward_pass import BackwardPass, add
from retrograde.recording.calls import Call, WeightKey
from retrograde.recording.graph import Edge, Node, on_changes, same_numbers
from retrograde.recording.states import StateTracker

Store = Callable[[BackwardPass], dict[Any, Tensor]]

REACHED = torch.zeros(())
"""What is kept of a gradient of which only its arrival is of interest."""


class Guard:
    """A context that turns an error of ours into the reason why a layer is not recorded.

    One made by `contextmanager` would take longer than most hooks.

    Attributes:
        problem: the first reason; empty if there is none.
    """

    def __init__(self) -> None:
        self.problem = ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        why = f"recording it failed, {type(error).__name__}: {error}"
        if isinstance(error, RetrogradeError):
            why = str(error)
        self.problem = self.problem or why
        return True


@dataclass(eq=False)
class GradientHooks:
    """The hooks on the gradients of one layer.

    Attributes:
        layer: its name.
        tracker: follows states between the calls of all layers.
        current: gives the backward pass that is running.
        guard: keeps errors of ours out of the user's backward pass.
        unannounced: a gradient arrived that no call of torch.autograd.backward started.
    """

    layer: str
    tracker: StateTracker
    current: Callable[[], BackwardPass | None]
    guard: Guard
    unannounced: bool = False
    _differentiated: list[BackwardPass | None] = field(default_factory=list)
    _handles: dict[Call | WeightKey, list[RemovableHandle]] = field(default_factory=dict)

    def remove_with(self, owner: Call | WeightKey, handle: RemovableHandle) -> None:
        """Remove a hook when the call or weight it looks at is forgotten, or the block ends."""
        self._handles.setdefault(owner, []).append(handle)

    def remove_all(self) -> None:
        """Remove every hook."""
        for owner in [*self._handles]:
            self.remove_of(owner)

    def remove_of(self, owner: Call | WeightKey) -> None:
        """Remove the hooks of a call or weight."""
        for handle in self._handles.pop(owner, ()):
            handle.remove()

    @property
    def weights(self) -> set[WeightKey]:
        """The weights that have hooks."""
        return {owner for owner in self._handles if not isinstance(owner, Call)}

    def keep(
        self,
        tensor: Tensor,
        edge: Edge | None,
        store: Store,
        key: tuple[Any, ...],
        check: Callable[[BackwardPass], None] | None = None,
        first: bool = False,
        late: bool = False,
    ) -> None:
        """Keep the gradient of a tensor, of every backward pass, if it gets one.

        Args:
            tensor, edge: the tensor, and where its gradient arrives.
            store, key: where in a pass the gradient is kept.
            check: called before the gradient of a weight is kept.
            first: keep it as it arrives, before the user's own hooks change it.
            late: the user's own hooks are there already; both are to be seen.
        """
        if edge is None:
            return

        def arrived(gradient: Tensor | None) -> None:
            to = self.current()
            if check is None and torch.is_grad_enabled():  # create_graph=True
                self._differentiated_by(edge)
            if to is None and check is None:
                self.unannounced = True
            if to is None or gradient is None:  # other outputs of the node have one
                return
            with self.guard:
                if check is not None:
                    check(to)
                before = store(to).get(key)
                if not first and self._may_be_changed(key[0]):
                    kept = gradient if before is None else before + gradient
                    store(to)[key] = kept.detach()  # until it is seen as it leaves
                    self._keep_as_it_leaves(edge, store(to), key, before)
                    return
                copy = add(store(to), key, gradient)
                if not first:
                    self._notice_changes(edge, key[0], gradient, copy)

        arrived = unserializable_hook(arrived)  # type: ignore[no-untyped-call]
        handle = tensor.register_hook(arrived)  # type: ignore[no-untyped-call]
        self.remove_with(key[0] if isinstance(key[0], Call) else key, handle)
        if first or late:
            hooks = handle.hooks_dict_ref()
            for number in [n for n in hooks if n != handle.id]:
                hooks[number] = hooks.pop(number)

    def notice_arrival(self, tensor: Tensor, edge: Edge, call: Call, name: str) -> None:
        """Notice that a gradient arrives at a result whose graph shows what is inside its call."""
        arrival = _Arrival(self, tensor, edge, (call, name))
        self.tracker.starting.setdefault(call, []).append(arrival.begin)

    def watch_module(self, node: Node, call: Call) -> None:
        """Notice if the backward hooks of a module, at its node, change what passes through it."""
        for handle in on_changes(node, self.changed):
            self.remove_with(call, handle)

    def _differentiated_by(self, edge: Edge) -> None:
        """Note the pass by which a gradient of this call with a graph of its own is computed."""
        to = self.current()

        def runs(_: Any) -> None:  # not if the gradient of the result itself is all that is wanted
            handle.remove()
            self._differentiated.append(to)

        handle = edge[0].register_prehook(runs)

    def differentiated_before(self, backward: BackwardPass) -> bool:
        """Whether part of the pass reached the weights through a gradient with a graph.

        In a layer that torch runs as one kernel, this only shows as a use of the weights outside
        the layer after such a gradient was taken.
        """
        beside = any(key[0] == self.layer for key in [*backward.beside])
        return beside and any(to is not backward for to in self._differentiated)

    def _may_be_changed(self, call: Call) -> bool:
        """Whether hooks of the user's may change the gradient of a call's result."""
        return not (call.form.transparent or self.tracker.continued(call))

    def _keep_as_it_leaves(
        self, edge: Edge, store: dict[Any, Tensor], key: tuple[Any, ...], before: Tensor | None
    ) -> None:
        """Keep a gradient as the user's own hooks, on the tensor or on its node, leave it.

        Args:
            edge, store, key: where it arrives and where it is kept.
            before: what was kept there before it came, if anything.
        """

        def left(gradients: tuple[Tensor | None, ...]) -> None:
            handle.remove()
            with self.guard:
                after = gradients[edge[1]]
                if after is None:
                    store[key] = store[key].clone()
                else:
                    after = after.detach()
                    store[key] = after.clone() if before is None else before + after

        handle = edge[0].register_prehook(left)

    def _notice_changes(self, edge: Edge, call: Call, gradient: Tensor, copy: Tensor) -> None:
        """Notice if the user's own hooks change a gradient that comes back from later steps.

        Args:
            edge: where it arrives.
            call: the call whose result it is of.
            gradient, copy: the gradient, and a copy of it as it arrived.
        """
        # Of a step of a loop one through .data is not noticed; it leaves a residual.
        version, transparent = gradient._version, call.form.transparent

        def left(gradients: tuple[Tensor | None, ...]) -> None:
            handle.remove()
            after = gradients[edge[1]]
            if transparent and after is gradient and version == gradient._version:
                return
            with self.guard:
                if after is not None and not same_numbers(after, copy):
                    self.changed()

        handle = edge[0].register_prehook(left)

    def changed(self) -> None:
        """Note that a hook changed what comes back from later steps."""
        to = self.current()
        if to is not None:
            to.problems[self.layer] = (
                "a hook on its output or state, or on a module around it, changes the gradient on "
                "its way back through the layer; remove the hook for the recorded pass"
            )


class _Arrival:
    """Sees that a gradient arrives at a result whose graph shows what is inside its call.

    Of those the gradient itself is not needed, since what each user of the result gives is kept
    apart; only whether one came, and whether a hook of the user's changed it.
    """

    def __init__(self, hooks: GradientHooks, tensor: Tensor, edge: Edge, key: tuple[Call, str]):
        self._hooks, self._tensor, self._key = hooks, tensor, key
        self._node, self._number = edge
        self._came: Tensor | None = None
        self._version, self._kept = 0, False
        hooks.remove_with(key[0], self._node.register_prehook(self._first))

    def begin(self) -> list[RemovableHandle]:
        """A backward pass begins: the hooks of the user's own are in place."""
        if self._tensor._backward_hooks and not self._kept:
            self._kept = True
            edge = self._node, self._number
            self._hooks.keep(self._tensor, edge, lambda to: to.arrived, self._key, late=True)
        return [] if self._kept else [self._node.register_prehook(self._last)]

    def _first(self, gradients: tuple[Tensor | None, ...]) -> None:
        hooks, gradient = self._hooks, gradients[self._number]
        to = hooks.current()
        if torch.is_grad_enabled():  # create_graph=True
            hooks._differentiated.append(to)
        if to is None:
            hooks.unannounced = True
        elif gradient is not None:
            to.arrived.setdefault(self._key, REACHED)
            self._came, self._version = gradient, gradient._version

    def _last(self, gradients: tuple[Tensor | None, ...]) -> None:
        came, after, self._came = self._came, gradients[self._number], None
        if came is None or (after is came and self._version == came._version):
            return
        with self._hooks.guard:
            same = self._version == came._version and after is not None
            if not (same and same_numbers(after, came)):  # type: ignore[arg-type]
                self._hooks.changed()
