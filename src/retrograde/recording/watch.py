"""The hooks on one recurrent layer: every call of it, and the gradients of its weights."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import unserializable_hook

from retrograde.recording.calls import Call, WeightKey, data, parts_of, results_of
from retrograde.recording.forward import computing, looking_at, outermost
from retrograde.recording.graph import Edge, edge_of, on_changes, origin_of, same_numbers
from retrograde.recording.layers import ANALYSED, Form, Layer, Weights, form_of, weights_of
from retrograde.recording.links import Surroundings
from retrograde.recording.passes import Pass, add
from retrograde.recording.precision import rounding_of

Store = Callable[[Pass], dict[Any, Tensor]]

CHANGED = (
    "was changed in place between the forward and the backward pass, so that the gradient belongs "
    "to neither; let optimiser steps and loading wait until after backward"
)


@dataclass(eq=False)
class Watch:
    """One layer while the block runs. Nothing that goes wrong in a hook reaches the user's model.

    Attributes:
        name, module: the layer.
        around: the graph around the calls of all layers.
        current: gives the backward pass that is running.
        hooks: takes all hooks away at the end.
        calls: what was called so far, with a gradient to come.
        idle: the number of calls without one: under no_grad, or with nothing that requires it.
        problem: why the layer cannot be recorded, once that is clear.
        outer_calls: the number of calls of a forward that a subclass has of its own.
        unannounced: a gradient came that did not start with a call of torch.autograd.backward.
    """

    name: str
    module: Layer
    around: Surroundings
    current: Callable[[], Pass | None]
    hooks: ExitStack
    calls: list[Call] = field(default_factory=list)
    idle: int = 0
    problem: str = ""
    outer_calls: int = 0
    unannounced: bool = False
    _form: Form = field(init=False)
    _mode: tuple[bool, float] = field(init=False)
    _weights: dict[str, Tensor] = field(default_factory=dict)
    _keys: Mapping[str, WeightKey] = field(default_factory=dict)
    _copies: Weights = field(default_factory=lambda: Weights({}, tuple))
    _kinds: dict[str, tuple[torch.device, torch.dtype]] = field(default_factory=dict)
    _versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    _checked: Pass | None = None
    _differentiated: list[Pass | None] = field(default_factory=list)
    _random: Tensor | None = None
    _without_cudnn: bool = False

    def __post_init__(self) -> None:
        self._form, self._mode = form_of(self.module), _mode(self.module)

    @property
    def kind(self) -> str:
        """The class of a layer with a forward of its own; empty for all others."""
        return self._form.kind if self._form.overridden else ""

    @property
    def traced(self) -> bool:
        """Whether torch.compile looks inside it, so that in compiled code it is not called."""
        return not isinstance(self.module, nn.RNNBase)

    def attach(self) -> None:
        """Put the hooks in place."""
        module = self.module
        self.hooks.enter_context(_left_out_of_copies(module))
        if "forward" in vars(module):  # what stands there may be bound to the forward of the class
            before = module.register_forward_pre_hook(_Hook(self._before))
            after = module.register_forward_hook(  # what other hooks make of the output comes after
                _Hook(self._after), prepend=True, with_kwargs=True, always_call=True
            )
            self.hooks.callback(before.remove)
            self.hooks.callback(after.remove)
        else:
            inner, outer = computing(module), outermost(module)
            self.hooks.enter_context(looking_at(module, inner, self._before, self._after))
            if outer is not inner:
                looking = looking_at(module, outer, self._called, lambda *_: None)
                self.hooks.enter_context(looking)
        for name in self._form.weights:
            if parametrize.is_parametrized(module, name):
                self._watch_parametrization(name)
            else:
                self._use(name, getattr(module, name))

    def _watch_parametrization(self, name: str) -> None:
        """Of a weight that is computed, every tensor may be the one that the layer uses."""
        computing: nn.Module = self.module.parametrizations[name]  # type: ignore[index, assignment]

        def computed(module: nn.Module, args: Any, weight: Tensor) -> None:
            with self._guarded():
                self._use(name, weight)

        self.hooks.enter_context(_left_out_of_copies(computing))
        self.hooks.callback(computing.register_forward_hook(_Hook(computed)).remove)

    def _use(self, name: str, weight: Tensor) -> None:
        """The layer runs with this tensor as a weight from now on."""
        self._weights[name] = weight
        edge = edge_of(weight)
        if edge is None:
            self._keys = {n: key for n, key in self._keys.items() if n != name}
            return
        if edge not in self.around.weights:
            key = self.around.weights[edge] = (self.name, name, len(self.around.weights))
            self._collect(weight, edge, lambda to: to.weights, key, self._check_unchanged, True)
        self._keys = {**self._keys, name: self.around.weights[edge]}

    def _collect(
        self,
        tensor: Tensor,
        edge: Edge | None,
        store: Store,
        key: tuple[Any, ...],
        check: Callable[[Pass], None] | None = None,
        first: bool = False,
    ) -> None:
        """Keep the gradient of a tensor, of every backward pass, if it gets one.

        Args:
            tensor, edge: the tensor, and where its gradient arrives.
            store, key: where in a pass the gradient is kept.
            check: called before the gradient of a weight is kept.
            first: take it as it comes, and not as hooks of the user's leave it.
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
                copy = add(store(to), key, gradient)
                if not first:
                    self._look_again(edge, store(to), key, before, gradient, copy)

        arrived = unserializable_hook(arrived)  # type: ignore[no-untyped-call]
        handle = tensor.register_hook(arrived)  # type: ignore[no-untyped-call]
        self.hooks.callback(handle.remove)
        if first:
            hooks = handle.hooks_dict_ref()
            for number in [n for n in hooks if n != handle.id]:
                hooks[number] = hooks.pop(number)

    def _differentiated_by(self, edge: Edge) -> None:
        """Keep in mind by which pass a gradient of this call is computed that has a graph."""
        to = self.current()

        def runs(_: Any) -> None:  # not if the gradient of the result itself is all that is wanted
            handle.remove()
            self._differentiated.append(to)

        handle = edge[0].register_prehook(runs)

    def differentiated_before(self, brought: Pass) -> bool:
        """Whether a part of the pass came to the weights through a gradient with a graph.

        In layers that torch runs as one kernel, all that is seen of it is that the weights are used
        beside the layer, after such a gradient was taken.
        """
        beside = any(key[0] == self.name for key in brought.beside)
        return beside and any(to is not brought for to in self._differentiated)

    def _look_again(
        self,
        edge: Edge,
        store: dict[Any, Tensor],
        key: tuple[Any, ...],
        before: Tensor | None,
        gradient: Tensor,
        copy: Tensor,
    ) -> None:
        """Take a gradient as the user's own hooks, on the tensor or on its node, leave it.

        Args:
            edge, store, key: where it arrives, and where it is kept.
            before: what was kept there before it came, if anything.
            gradient, copy: itself, and a copy of it as it came.
        """
        # Of a step of a loop a change is only noticed; one through .data leaves a residual.
        version, stepped = gradient._version, key[0].form.stepped

        def left(gradients: tuple[Tensor | None, ...]) -> None:
            handle.remove()
            after = gradients[edge[1]]
            if stepped and after is gradient and version == gradient._version:
                return
            with self._guarded():
                if after is None or same_numbers(after, copy):
                    return
                call = key[0]
                if call.form.stepped or self.around.goes_on(call):
                    self._gradient_changed()
                after = after.detach()
                store[key] = after.clone() if before is None else before + after

        handle = edge[0].register_prehook(left)

    def _gradient_changed(self) -> None:
        """What comes back from later steps is not what the step after gave."""
        to = self.current()
        if to is not None:
            to.problems[self.name] = (
                "a hook on its output or state, or on a module around it, changes the gradient on "
                "its way back through the layer; take the hook off for the recorded pass"
            )

    def changed(self) -> str:
        """Which weight is not as it was in the forward pass, as far as torch knows; or nothing."""
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

    def _check_unchanged(self, to: Pass) -> None:
        """Autograd itself notices changes, but not those made through `.data`.

        A row of the recurrent weights is compared, when the first gradient of a weight arrives:
        comparing everything would take longer than the rest of the recording, and later an
        optimiser may be at work already. What that does not show, the residual does.
        """
        self._versions = {}  # what changes a weight from now on may leave its version alone
        if self._checked is to:
            return
        self._checked = to
        if not to.calls(self.calls) or self.changed():
            return
        for name in (name for name in self._copies.copies if name.startswith("weight_hh")):
            copy = self._copies.copies[name]
            row, then = self._weights[name].detach()[0].to(copy.dtype), copy[0]
            if not same_numbers(row, then):
                to.problems[self.name] = f"its {name} {CHANGED}"

    def _called(self, module: nn.Module, args: Any) -> None:
        self.outer_calls += 1

    def _before(self, module: nn.Module, args: Any) -> None:
        with self._guarded():
            if self._mode != _mode(module):
                self._form, self._mode = form_of(self.module), _mode(module)
            self._random = None
            cuda_in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            if not (self._form.dropout or cuda_in_use):
                return
            device = next(module.parameters()).device
            if self._form.dropout:
                on_gpu = device.type == "cuda"
                self._random = torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()
            # In eval mode cuDNN keeps nothing for a backward pass; torch's own kernels do.
            if device.type == "cuda" and not module.training and torch.backends.cudnn.enabled:
                torch.backends.cudnn.enabled, self._without_cudnn = False, True

    def _after(self, module: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
        if self._without_cudnn:
            torch.backends.cudnn.enabled, self._without_cudnn = True, False
        if returned is None:  # the call failed
            return
        with self._guarded():
            self._record({**dict(zip(("input", "hx"), args, strict=False)), **kwargs}, returned)

    def _record(self, arguments: dict[str, Any], returned: Any) -> None:
        """Keep a call, and have the gradients of what it returned."""
        form, weights = self._form, self._copied()
        results, x = results_of(form, returned), data(arguments["input"])
        if not x.numel():
            self.problem = f"its input has shape {tuple(x.shape)}: there is no step or sample"
        if self.problem or not any(tensor.requires_grad for tensor in results.values()):
            self.idle += 1
            return
        call = Call.of(self.name, form, weights, self._keys, arguments, results, self._random)
        call.rounding = rounding_of(self.module, call.output)
        for name, tensor in () if form.stepped else results.items():
            results[name] = origin_of(tensor)
            if results[name] is not tensor:
                call.views[name] = (tensor.shape, tensor.stride(), tensor.storage_offset())
        for node in self.around.add(call, arguments, results, self.calls):
            for handle in on_changes(node, self._gradient_changed):
                self.hooks.callback(handle.remove)
        for name, tensor in results.items():
            self._collect(tensor, edge_of(tensor), lambda to: to.arrived, (call, name))
        given = parts_of(arguments.get("hx"))
        for letter in call.link.altered if call.link else ():
            tensor = given[letter]
            self._collect(tensor, edge_of(tensor), lambda to: to.given, (call, letter), first=True)
        for tensor in _activations(returned):
            self._collect(tensor, edge_of(tensor), lambda to: to.arrived, (call, "activation"))
        if self.current() is not None:
            call.again = any(part.requires_grad for part in given.values())
        self.calls.append(call)

    def _copied(self) -> Weights:
        """The weights as they are now, copied again only if they changed."""
        names, own = self._form.weights, self.module._parameters
        for name in names:
            if name not in own and parametrize.is_parametrized(self.module, name):
                continue
            weight = own[name] if name in own else getattr(self.module, name)
            if weight is not None and weight is not self._weights.get(name):
                self._use(name, weight)
        versions = {n: (id(self._weights[n]), self._weights[n]._version) for n in names}
        if versions != self._versions:
            copies = {name: _copy(self._weights[name]) for name in names}
            self._copies = weights_of(self.module, self._form, copies)
            self._versions = versions
            self._kinds = {n: (self._weights[n].device, self._weights[n].dtype) for n in names}
        return self._copies

    def _guarded(self) -> "_Guard":
        """Turn an error of ours into a reason why this layer is not recorded."""
        return _Guard(self)


class _Guard:
    """A context for hooks; one written with `contextmanager` takes longer than what most do."""

    def __init__(self, watch: Watch):
        self._watch = watch

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        why = f"recording it failed, {type(error).__name__}: {error}"
        self._watch.problem = self._watch.problem or why
        return True


def _mode(module: nn.Module) -> tuple[bool, float]:
    """What may change from one call to the next: training or not, and the dropout."""
    return module.training, vars(module).get("dropout", 0.0)


_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)
"""Where torch keeps the hooks of a module, all by the same numbers."""


@contextmanager
def _left_out_of_copies(module: nn.Module) -> Iterator[None]:
    """In the block, a copy or a file of the module is that of one without our hooks.

    A class that copies itself its own way, as that of a parametrized layer does, is left alone: its
    copies have hooks that do nothing.
    """
    attributes = vars(module)
    if "__getstate__" in attributes or hasattr(type(module), "__deepcopy__"):
        yield
        return

    def state() -> Any:
        own = attributes.pop("__getstate__")
        try:
            found = module.__getstate__()  # type: ignore[no-untyped-call]
            return _without_ours(found) if isinstance(found, dict) else found
        finally:
            attributes["__getstate__"] = own

    attributes["__getstate__"] = state  # copy and pickle ask the instance, not the class
    try:
        yield
    finally:
        del attributes["__getstate__"]


def _without_ours(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module without the hooks of this package."""
    hooks = {name: state[name] for name in _HOOKS if name in state}
    ours = {n for of in hooks.values() for n, hook in of.items() if isinstance(hook, _Hook)}
    left = {
        name: type(of)((n, hook) for n, hook in of.items() if n not in ours)
        for name, of in hooks.items()
    }
    return {**state, **left}


class _Hook:
    """A hook on a module; a copy of it does nothing."""

    def __init__(self, look: Callable[..., None]):
        self._look = partial(_untraced(), look)

    def __call__(self, *args: Any) -> None:
        self._look(*args)

    def __reduce__(self) -> tuple[type["_Hook"], tuple[Callable[..., None]]]:
        return _Hook, (_nothing,)


def _nothing(*_: Any) -> None:
    """What a hook on a copy does."""


def _call(hook: Callable[..., None], *args: Any) -> None:
    hook(*args)


def _untraced() -> Callable[..., None]:
    """Calls a hook, which torch.compile is not to trace. Asking torch if it is at work loads it."""
    return _disabled() if "torch._dynamo" in sys.modules else _call


@cache
def _disabled() -> Callable[..., None]:
    """Made once, since making it takes longer than all the rest."""
    return torch.compiler.disable(_call)  # type: ignore[no-untyped-call, no-any-return]


def _copy(weight: Tensor) -> Tensor:
    """A copy in the precision of the analysis."""
    weight = weight.detach().clone()
    return weight if weight.dtype in ANALYSED else weight.float()


def _activations(returned: Any) -> list[Tensor]:
    """What a layer of ours hands out beside output and state, if it was asked to."""
    inside = returned[2] if isinstance(returned, tuple) and len(returned) == 3 else ()
    return [tensor for layer in inside for tensor in layer.values()]
