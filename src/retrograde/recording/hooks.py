"""The hooks on one recurrent layer: they keep its calls, and hook the gradients of each."""

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from retrograde.declarations.reading import CallTensors
from retrograde.recording.backward_pass import BackwardPass
from retrograde.recording.calls import Call, data
from retrograde.recording.copies import Hook, left_out_of_copies
from retrograde.recording.form import Form
from retrograde.recording.gradient_hooks import GradientHooks, Guard
from retrograde.recording.graph import base_of, edge_of
from retrograde.recording.interception import observed
from retrograde.recording.precision import rounding_of
from retrograde.recording.readers import Reader
from retrograde.recording.states import StateTracker
from retrograde.recording.weights_in_use import WeightsInUse


class LayerRecorder:
    """Records one layer while the block runs. No error in a hook reaches the user's model.

    Attributes:
        name: of the layer.
        reader: of its calls.
        tracker: follows states between the calls of all layers.
        current: gives the backward pass that is running.
        hooks: removes all hooks at the end.
        guard: holds why the layer cannot be recorded, once that is clear.
        gradients: the hooks on its gradients.
        weights: the tensors that it uses as weights.
        calls: the calls so far that can get a gradient.
        idle: the number of calls that cannot: under no_grad, or with nothing that requires it.
        outer_calls: the number of calls of a subclass's own forward.
    """

    def __init__(
        self,
        name: str,
        reader: Reader,
        tracker: StateTracker,
        current: Callable[[], BackwardPass | None],
        hooks: ExitStack,
    ):
        self.name, self.reader, self.tracker = name, reader, tracker
        self.current, self.hooks = current, hooks
        self.guard = Guard()
        self.gradients = GradientHooks(name, tracker, current, self.guard)
        self.weights = WeightsInUse(reader, self.gradients)
        self.calls: list[Call] = []
        self.idle = self.outer_calls = 0
        self._random: Tensor | None = None
        self._before_drawing: Tensor | None = None
        self._without_cudnn = False

    @property
    def module(self) -> nn.Module:
        """The layer."""
        return self.reader.module

    @property
    def _form(self) -> Form:
        return self.reader.form

    @property
    def problem(self) -> str:
        """Why the layer cannot be recorded; empty if it can, as far as is known."""
        return self.guard.problem

    @property
    def traced(self) -> bool:
        """Whether torch.compile traces into it, so that compiled code does not call it."""
        return not isinstance(self.module, nn.RNNBase)

    def attach(self) -> None:
        """Put the hooks in place."""
        module = self.module
        self.hooks.enter_context(left_out_of_copies(module))
        self.hooks.callback(self.gradients.remove_all)
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
                self.weights.use(name, self.weights.of_module(name))

    def forget(self, calls: Collection[Call]) -> None:
        """Let go of calls, with their hooks and the computed weights that only they used."""
        for call in calls:
            self.calls.remove(call)
            self.gradients.remove_of(call)
        used = {key for call in self.calls for key in call.keys.values()}
        weights = self.gradients.weights - used - {*self.weights.keys.values()}
        for key in weights:
            self.gradients.remove_of(key)
        self.tracker.forget(calls, weights)

    def _follow_parametrization(self, name: str) -> None:
        """Follow a computed weight: each tensor it computes may be the one that the layer uses."""
        computing: nn.Module = self.module.parametrizations[name]  # type: ignore[index, assignment]

        def computed(module: nn.Module, args: Any, weight: Tensor) -> None:
            with self.guard:
                self.weights.use(name, weight)

        self.hooks.enter_context(left_out_of_copies(computing))
        self.hooks.callback(computing.register_forward_hook(Hook(computed)).remove)

    def _called(self, module: nn.Module, args: Any) -> None:
        self.outer_calls += 1

    def _before(self, module: nn.Module, args: Any) -> None:
        with self.guard:
            self.reader.before()
            self._random = self._before_drawing = None
            # Of the steps of a loop, the first tells whether they draw random numbers.
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
        with self.tracker.lock, self.guard:
            self._record(self.reader.read(args, kwargs, returned), returned)

    def _record(self, tensors: CallTensors, returned: Any) -> None:
        """Keep a call, and hook the gradients of what it returned."""
        results, x = tensors.results, data(tensors.x)
        if not x.numel():
            self.guard.problem = f"its input has shape {tuple(x.shape)}: there is no step or sample"
        if self.guard.problem or not any(tensor.requires_grad for tensor in results.values()):
            self.idle += 1
            return
        weights, form = self.weights.copied(tensors), self._form
        call = Call.of(self.name, form, weights, self.weights.keys, tensors, self._random)
        if self._before_drawing is not None:
            call.drew = not torch.equal(self._before_drawing, _random_state(self.module))
        call.passes_before = self.tracker.passes
        call.rounding = max(rounding_of(self.module, call.output), tensors.rounding)
        for name, tensor in () if form.stepped else results.items():
            results[name] = base_of(tensor)
            if results[name] is not tensor:
                call.views[name] = (tensor.shape, tensor.stride(), tensor.storage_offset())
        for node in self.tracker.add(call, tensors, self.calls):
            self.gradients.watch_module(node, call)
        _keep_given(call, tensors.given)
        self._hook(call, tensors, () if form.declared else _activations(returned))
        if self.current() is not None:
            call.rerun = any(part.requires_grad for part in tensors.given.values())
        self.calls.append(call)

    def _hook(self, call: Call, tensors: CallTensors, activations: Collection[Tensor]) -> None:
        """Hook the gradients of what a call returned, and of a state computed from earlier ones."""
        for name, tensor in tensors.results.items():
            edge = edge_of(tensor)
            if edge is not None and call.form.transparent:
                self.gradients.notice_arrival(tensor, edge, call, name)
            else:
                self.gradients.keep(tensor, edge, lambda to: to.arrived, (call, name))
        for letter in call.origin.altered if call.origin else ():
            tensor = tensors.given[letter]
            self.gradients.keep(
                tensor, edge_of(tensor), lambda to: to.given, (call, letter), first=True
            )
        for tensor in activations:
            self.gradients.keep(
                tensor, edge_of(tensor), lambda to: to.arrived, (call, "activation")
            )


def _keep_given(call: Call, given: Mapping[str, Tensor]) -> None:
    """Keep the state that a call was given; what was handed on as it is was copied before."""
    origin = call.origin
    before = origin.before if origin else None
    same = origin.same if origin and before else ()
    for name, tensor in given.items():
        kept = before.last.get(name) if before and name in same and not tensor._version else None
        call.given[name] = tensor.detach().clone() if kept is None else kept


def _random_state(module: nn.Module) -> Tensor:
    """That of the generator on the module's device."""
    device = next(module.parameters()).device
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _activations(returned: Any) -> list[Tensor]:
    """The activations that a layer of ours returns beside output and state on request."""
    inside = returned[2] if isinstance(returned, tuple) and len(returned) == 3 else ()
    return [tensor for layer in inside for tensor in layer.values()]
