"""The hooks on one recurrent layer: they keep its calls and the gradients that arrive."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle, unserializable_hook

from retrograde.declarations.reading import CallTensors
from retrograde.errors import RetrogradeError
from retrograde.recording.backward_pass import BackwardPass, add
from retrograde.recording.calls import Call, WeightKey, data
from retrograde.recording.graph import Edge, base_of, edge_of, on_changes, same_numbers
from retrograde.recording.interception import Hook, left_out_of_copies, observed
from retrograde.recording.layers import ANALYSED, Form, Weights, rounding_of
from retrograde.recording.readers import Reader
from retrograde.recording.states import StateTracker

Store = Callable[[BackwardPass], dict[Any, Tensor]]

REACHED = torch.zeros(())
"""What is kept of a gradient of which only its arrival is of interest."""

CHANGED = (
    "was changed in place between the forward and the backward pass, so that the gradient belongs "
    "to neither; run optimiser steps and load weights after backward"
)


@dataclass(eq=False)
class LayerRecorder:
    """Records one layer while the block runs. No error in a hook reaches the user's model.

    Attributes:
        name: of the layer.
        reader: of its calls.
        tracker: follows states between the calls of all layers.
        current: gives the backward pass that is running.
        hooks: removes all hooks at the end.
        calls: the calls so far that can get a gradient.
        idle: the number of calls that cannot: under no_grad, or with nothing that requires it.
        problem: why the layer cannot be recorded, once that is clear.
        outer_calls: the number of calls of a subclass's own forward.
        unannounced: a gradient arrived that no call of torch.autograd.backward started.
    """

    name: str
    reader: Reader
    tracker: StateTracker
    current: Callable[[], BackwardPass | None]
    hooks: ExitStack
    calls: list[Call] = field(default_factory=list)
    idle: int = 0
    problem: str = ""
    outer_calls: int = 0
    unannounced: bool = False
    _weights: dict[str, Tensor] = field(default_factory=dict)
    _keys: Mapping[str, WeightKey] = field(default_factory=dict)
    _copies: Weights = field(default_factory=lambda: Weights({}, tuple))
    _kinds: dict[str, tuple[torch.device, torch.dtype]] = field(default_factory=dict)
    _versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    _checked: BackwardPass | None = None
    _differentiated: list[BackwardPass | None] = field(default_factory=list)
    _random: Tensor | None = None
    _before_drawing: Tensor | None = None
    _owners: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    _without_cudnn: bool = False
    _handles: dict[Call | WeightKey, list[RemovableHandle]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)
    _guard: "_Guard | None" = None

    @property
    def module(self) -> nn.Module:
        """The layer."""
        return self.reader.module

    @property
    def _form(self) -> Form:
        return self.reader.form

    @property
    def kind(self) -> str:
        """The class of a layer whose subclass has its own forward; empty for all others."""
        return self._form.kind if self._form.overridden else ""

    @property
    def traced(self) -> bool:
        """Whether torch.compile traces into it, so that compiled code does not call it."""
        return not isinstance(self.module, nn.RNNBase)

    def attach(self) -> None:
        """Put the hooks in place."""
        module = self.module
        self.hooks.enter_context(left_out_of_copies(module))
        self.hooks.callback(self._remove_hooks)
        method = self.reader.method
        if method in vars(module):  # it may be bound to the forward of the class
            before = module.register_forward_pre_hook(Hook(self._before))
            after = module.register_forward_hook(  # what other hooks make of the output comes after
                Hook(self._after), prepend=True, with_kwargs=True, always_call=True
            )
            self.hooks.callback(before.remove)
            self.hooks.callback(after.remove)
        else:
            inner, outer = self.reader.forwards
            around = observed(module, inner, self._before, self._after, method)
            self.hooks.enter_context(around)
            if outer is not inner:
                calls = observed(module, outer, self._called, lambda *_: None)
                self.hooks.enter_context(calls)
        for name in self._form.weights:
            if parametrize.is_parametrized(module, name):
                self._follow_parametrization(name)
            else:
                self._use(name, self._weight(name))

    def remove_with(self, owner: Call | WeightKey, handle: RemovableHandle) -> None:
        """Remove a hook when the call or weight it looks at is forgotten, or the block ends."""
        self._handles.setdefault(owner, []).append(handle)

    def _remove_hooks(self) -> None:
        for owner in [*self._handles]:
            self._remove_hooks_of(owner)

    def _remove_hooks_of(self, owner: Call | WeightKey) -> None:
        for handle in self._handles.pop(owner, ()):
            handle.remove()

    def forget(self, calls: Collection[Call]) -> None:
        """Let go of calls, with their hooks and the computed weights that only they used."""
        for call in calls:
            self.calls.remove(call)
            self._remove_hooks_of(call)
        used = {key for call in self.calls for key in call.keys.values()} | {*self._keys.values()}
        weights = {key for key in self._handles if not isinstance(key, Call)} - used
        for key in weights:
            self._remove_hooks_of(key)
        self.tracker.forget(calls, weights)

    def _weight(self, name: str) -> Tensor:
        """A weight of the layer as it is now, perhaps one of a part of it."""
        if name not in self._owners:
            owner, _, last = self.reader.places.get(name, name).rpartition(".")
            self._owners[name] = self.module.get_submodule(owner), last
        holder, attribute = self._owners[name]
        weight = holder._parameters.get(attribute)  # which getattr finds last
        return getattr(holder, attribute) if weight is None else weight

    def _follow_parametrization(self, name: str) -> None:
        """Follow a computed weight: each tensor it computes may be the one that the layer uses."""
        computing: nn.Module = self.module.parametrizations[name]  # type: ignore[index, assignment]

        def computed(module: nn.Module, args: Any, weight: Tensor) -> None:
            with self._guarded():
                self._use(name, weight)

        self.hooks.enter_context(left_out_of_copies(computing))
        self.hooks.callback(computing.register_forward_hook(Hook(computed)).remove)

    def _use(self, name: str, weight: Tensor) -> None:
        """Take this tensor as the weight that the layer uses from now on."""
        self._weights[name] = weight
        edge = edge_of(weight)
        if edge is None:
            self._keys = {n: key for n, key in self._keys.items() if n != name}
            return
        if edge not in self.tracker.weights:
            key = self.tracker.weights[edge] = (self.name, name, next(self._numbers))
            self._keep_gradient(
                weight, edge, lambda to: to.weights, key, self._check_unchanged, True
            )
        self._keys = {**self._keys, name: self.tracker.weights[edge]}

    def _keep_gradient(
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
            with self._guarded():
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
        beside = any(key[0] == self.name for key in [*backward.beside])
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
            with self._guarded():
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
            with self._guarded():
                if after is not None and not same_numbers(after, copy):
                    self._gradient_changed()

        handle = edge[0].register_prehook(left)

    def _gradient_changed(self) -> None:
        """Note that a hook changed what comes back from later steps."""
        to = self.current()
        if to is not None:
            to.problems[self.name] = (
                "a hook on its output or state, or on a module around it, changes the gradient on "
                "its way back through the layer; remove the hook for the recorded pass"
            )

    def changed(self) -> str:
        """Which weight changed since the forward pass, as far as torch knows; empty if none."""
        for name, (device, dtype) in self._kinds.items():
            now = self._weights[name]
            if (now.device, now.dtype) != (device, dtype):
                return (
                    f"{self.name!r}: its {name} was moved from {device}, {dtype} to {now.device}, "
                    f"{now.dtype} after the forward pass; move the model before"
                )
            if self._versions and now._version != self._versions[name][1]:
                return f"{self.name!r}: its {name} {CHANGED}"
        return ""

    def _check_unchanged(self, to: BackwardPass) -> None:
        """Look for changes made through `.data`, which autograd does not notice.

        A row of the recurrent weights is compared, when the first gradient of a weight arrives:
        comparing everything would take longer than the rest of the recording, and later an
        optimiser may already have run. The residual shows the changes that this misses.
        """
        self._versions = {}  # what changes a weight from now on may leave its version alone
        if self._checked is to:
            return
        self._checked = to
        if not any(call.layer == self.name for call, _ in to.arrived) or self.changed():
            return
        for name, copy in self._copies.copies.items():
            recurrent = copy.ndim == 2 if self._form.declared else name.startswith("weight_hh")
            if not recurrent:
                continue
            row, then = self._weights[name].detach()[0].to(copy.dtype), copy[0]
            if not same_numbers(row, then):
                to.problems[self.name] = f"its {name} {CHANGED}"

    def _called(self, module: nn.Module, args: Any) -> None:
        self.outer_calls += 1

    def _before(self, module: nn.Module, args: Any) -> None:
        with self._guarded():
            self.reader.before()
            self._random = self._before_drawing = None
            # What a step of a loop draws, the first one does.
            if self._form.declared and module.training and not (self._form.stepped and self.calls):
                self._before_drawing = _random_state(self.module)
            cuda_in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            if not (self._form.dropout or cuda_in_use):
                return
            device = next(self.module.parameters()).device
            if self._form.dropout:
                self._random = _random_state(self.module)
            # In eval mode cuDNN keeps nothing for a backward pass; torch's own kernels do.
            if device.type == "cuda" and not module.training and torch.backends.cudnn.enabled:
                torch.backends.cudnn.enabled, self._without_cudnn = False, True

    def _after(self, module: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
        if self._without_cudnn:
            torch.backends.cudnn.enabled, self._without_cudnn = True, False
        if returned is None:  # the call failed
            return
        with self.tracker.lock, self._guarded():
            self._record(self.reader.read(args, kwargs, returned), returned)

    def _record(self, tensors: CallTensors, returned: Any) -> None:
        """Keep a call, and hook the gradients of what it returned."""
        results, x = tensors.results, data(tensors.x)
        if not x.numel():
            self.problem = f"its input has shape {tuple(x.shape)}: there is no step or sample"
        if self.problem or not any(tensor.requires_grad for tensor in results.values()):
            self.idle += 1
            return
        weights, form = self._copied(tensors), self._form
        call = Call.of(self.name, form, weights, self._keys, tensors, self._random)
        if self._before_drawing is not None:
            call.drew = not torch.equal(self._before_drawing, _random_state(self.module))
        call.passes_before = self.tracker.passes
        call.rounding = max(rounding_of(self.module, call.output), tensors.rounding)
        for name, tensor in () if form.stepped else results.items():
            results[name] = base_of(tensor)
            if results[name] is not tensor:
                call.views[name] = (tensor.shape, tensor.stride(), tensor.storage_offset())
        for node in self.tracker.add(call, tensors, self.calls):
            for handle in on_changes(node, self._gradient_changed):
                self.remove_with(call, handle)
        for name, tensor in results.items():
            edge = edge_of(tensor)
            if edge is not None and form.transparent:
                arrival = _Arrival(self, tensor, edge, (call, name))
                self.tracker.starting.setdefault(call, []).append(arrival.begin)
            else:
                self._keep_gradient(tensor, edge, lambda to: to.arrived, (call, name))
        same = call.origin.same if call.origin else ()
        for name, tensor in tensors.given.items():  # what is handed on as it is was copied before
            handed_on = call.origin and name in same and tensor._version == 0
            from_call = call.origin.before if call.origin and handed_on else None
            before = from_call.last.get(name) if from_call else None
            call.given[name] = tensor.detach().clone() if before is None else before
        for letter in call.origin.altered if call.origin else ():
            tensor = tensors.given[letter]
            self._keep_gradient(
                tensor, edge_of(tensor), lambda to: to.given, (call, letter), first=True
            )
        for tensor in () if form.declared else _activations(returned):
            self._keep_gradient(
                tensor, edge_of(tensor), lambda to: to.arrived, (call, "activation")
            )
        if self.current() is not None:
            call.rerun = any(part.requires_grad for part in tensors.given.values())
        self.calls.append(call)

    def _copied(self, tensors: CallTensors) -> Weights:
        """The weights as they are now, copied again only if they changed."""
        names, own = self._form.weights, self.module._parameters
        for name in names:
            if name not in own and parametrize.is_parametrized(self.module, name):
                continue
            weight = own[name] if name in own else self._weight(name)
            if weight is not None and weight is not self._weights.get(name):
                self._use(name, weight)
        versions = {n: (id(self._weights[n]), self._weights[n]._version) for n in names}
        if versions != self._versions:
            copies = {name: _copy(self._weights[name]) for name in names}
            self._copies = self.reader.weights(copies, tensors)
            self._versions = versions
            self._kinds = {n: (self._weights[n].device, self._weights[n].dtype) for n in names}
        return self._copies

    def _guarded(self) -> "_Guard":
        """Turn an error of ours into the reason why this layer is not recorded."""
        self._guard = self._guard or _Guard(self)
        return self._guard


class _Arrival:
    """Sees that a gradient arrives at a result whose graph shows what is inside its call.

    Of those the gradient itself is not needed, since what each user of the result gives is kept
    apart; only whether one came, and whether a hook of the user's changed it.
    """

    def __init__(self, recorder: LayerRecorder, tensor: Tensor, edge: Edge, key: tuple[Call, str]):
        self._recorder, self._tensor, self._key = recorder, tensor, key
        self._node, self._number = edge
        self._came: Tensor | None = None
        self._version, self._kept = 0, False
        recorder.remove_with(key[0], self._node.register_prehook(self._first))

    def begin(self) -> list[RemovableHandle]:
        """A backward pass begins: the hooks of the user's own are in place."""
        if self._tensor._backward_hooks and not self._kept:
            self._kept = True
            edge = self._node, self._number
            self._recorder._keep_gradient(
                self._tensor, edge, lambda to: to.arrived, self._key, late=True
            )
        return [] if self._kept else [self._node.register_prehook(self._last)]

    def _first(self, gradients: tuple[Tensor | None, ...]) -> None:
        recorder, gradient = self._recorder, gradients[self._number]
        to = recorder.current()
        if torch.is_grad_enabled():  # create_graph=True
            recorder._differentiated.append(to)
        if to is None:
            recorder.unannounced = True
        elif gradient is not None:
            to.arrived.setdefault(self._key, REACHED)
            self._came, self._version = gradient, gradient._version

    def _last(self, gradients: tuple[Tensor | None, ...]) -> None:
        came, after, self._came = self._came, gradients[self._number], None
        if came is None or (after is came and self._version == came._version):
            return
        with self._recorder._guarded():
            same = self._version == came._version and after is not None
            if not (same and same_numbers(after, came)):  # type: ignore[arg-type]
                self._recorder._gradient_changed()


class _Guard:
    """A context for hooks; one made by `contextmanager` would take longer than most hooks."""

    def __init__(self, recorder: LayerRecorder):
        self._recorder = recorder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        why = f"recording it failed, {type(error).__name__}: {error}"
        if isinstance(error, RetrogradeError):
            why = str(error)
        self._recorder.problem = self._recorder.problem or why
        return True


def _random_state(module: nn.Module) -> Tensor:
    """That of the generator on the module's device."""
    device = next(module.parameters()).device
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _copy(weight: Tensor) -> Tensor:
    """A copy in the precision of the analysis."""
    weight = weight.detach().clone()
    return weight if weight.dtype in ANALYSED else weight.float()


def _activations(returned: Any) -> list[Tensor]:
    """The activations that a layer of ours returns beside output and state on request."""
    inside = returned[2] if isinstance(returned, tuple) and len(returned) == 3 else ()
    return [tensor for layer in inside for tensor in layer.values()]
