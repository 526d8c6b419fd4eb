"""One forward pass of a copied model, watched from outside: what layers read, what the loss did.

Nothing in the pass is changed. Layers are watched by hooks, the loss by torch's own protocol for
functions that are called on tensors, and its graph is kept, so that questions can be asked of it.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from retrograde.declarations import Declaration
from retrograde.declarations.keras import named_modules
from retrograde.declarations.reading import (
    argument_names,
    initial_of,
    input_of,
    is_sequence,
    named_arguments,
    read_call,
)
from retrograde.diagnosis.copies import copied, copied_model, seeded, within
from retrograde.diagnosis.run import LossFunction
from retrograde.errors import RetrogradeError
from retrograde.recording.layers import layers_of

LOSSES: Mapping[Callable[..., Any], str] = {
    getattr(nn.functional, name): name
    for name in (
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "cross_entropy",
        "ctc_loss",
        "gaussian_nll_loss",
        "huber_loss",
        "kl_div",
        "l1_loss",
        "mse_loss",
        "nll_loss",
        "poisson_nll_loss",
        "smooth_l1_loss",
    )
}
"""The loss functions of torch that compare a prediction with a target."""

DIFFERENCES = {torch.sub, torch.subtract, Tensor.sub, Tensor.__sub__, Tensor.__rsub__}
"""How a loss that is written by hand compares them."""

ELEMENTWISE = {
    *DIFFERENCES,
    *(torch.div, torch.true_divide, Tensor.div, Tensor.__truediv__, Tensor.__rtruediv__),
    *(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__),
    *(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__),
    *(torch.maximum, torch.minimum, torch.logaddexp),
}
"""Operations that broadcast what they are given."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A prediction that was compared with a target.

    Attributes:
        function: the name of the loss function; "difference" for one written by hand.
        prediction: the tensor that depends on the model.
        target: the one that does not.
        result: what came of it.
        call: the loss function for another prediction, everything else the same.
        options: what else it was given.
        inside: whether the model itself made the comparison.
    """

    function: str
    prediction: Tensor
    target: Tensor
    result: Tensor
    call: Callable[[Tensor], Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    inside: bool = False


@dataclass(frozen=True, eq=False)
class Read:
    """What a layer read in one call.

    Attributes:
        x: the tensor that its gradient arrives at; rows of samples, steps, or both.
        lengths: the packed sequence, if it was one.
        batch_axis: the axis of the samples; None for a single sequence without such an axis.
        time_axis: that of the steps; None for a cell, which is given one step.
        given: the tensor that the layer was called with; `x` itself, or without a gradient.
        backwards: whether the layer begins at the last step.
    """

    x: Tensor
    packed: PackedSequence | None
    batch_axis: int | None
    time_axis: int | None
    given: Tensor
    backwards: bool = False

    @property
    def samples(self) -> int:
        """The number of samples, 1 without an axis for them."""
        if self.packed is not None:
            return int(self.packed.batch_sizes[0])
        return 1 if self.batch_axis is None else self.x.shape[self.batch_axis]

    @property
    def steps(self) -> int:
        """The number of steps."""
        if self.packed is not None:
            return len(self.packed.batch_sizes)
        return 1 if self.time_axis is None else self.x.shape[self.time_axis]

    def comes_from(self, other: "Read") -> bool:
        """Whether what is read was computed from what another layer read."""
        if not self.x.requires_grad or self.x is other.x:
            return False
        (found,) = torch.autograd.grad(self.x.sum(), other.x, retain_graph=True, allow_unused=True)
        return found is not None

    def by_sample(self, rows: Tensor) -> Tensor:
        """The largest absolute value of each sample in a tensor with the shape of `x`."""
        if self.packed is not None:
            sizes = self.packed.batch_sizes
            place = torch.cat([torch.arange(int(size)) for size in sizes]).to(rows.device)
            largest = rows.abs().flatten(1).amax(1)
            found = largest.new_zeros(self.samples).scatter_reduce(0, place, largest, "amax")
            order = self.packed.unsorted_indices
            return found if order is None else found[order]
        if self.batch_axis is None:
            return rows.abs().max().reshape(1)
        return rows.abs().movedim(self.batch_axis, 0).flatten(1).amax(1)


@dataclass(eq=False)
class Sight:
    """What was seen of a pass.

    Attributes:
        loss: the loss, with its graph.
        output: what the model returned, if that is one tensor; the last time it was called.
        outputs: all tensors that it returned then.
        reads: what each layer read, call by call.
        initial: the state that each layer was given, call by call; None where it was given none.
        final: the state that it returned, call by call.
        comparisons: predictions and targets.
        broadcast: operations of the loss that made a matrix of a column that depends on the model
            and a vector of as many numbers that does not.
        warnings: what torch warned of in the loss.
        returned: the nodes of the graph that made what layers returned, by the largest absolute
            value that they can return.
        kept: the places in the model of tensors with a graph that it holds after the pass.
        autocast: the low precisions that autocast had layers run in.
    """

    loss: Tensor | None = None
    output: Tensor | None = None
    outputs: tuple[Tensor, ...] = ()
    reads: dict[str, list[Read]] = field(default_factory=dict)
    initial: dict[str, list[tuple[Tensor, ...] | None]] = field(default_factory=dict)
    final: dict[str, list[tuple[Tensor, ...]]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    broadcast: list[Comparison] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    returned: dict[Any, float] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    autocast: set[torch.dtype] = field(default_factory=set)

    @property
    def prediction(self) -> Tensor | None:
        """What is compared with the target, else what the model returned."""
        if len(self.comparisons) == 1:
            return self.comparisons[0].prediction
        return self.output


def see(model: nn.Module, batch: Any, loss_fn: LossFunction, seed: int) -> Sight:
    """Watch one forward pass of a copy of the model, in the mode that it is in.

    Whatever the loss function raises is raised. Random numbers outside are left alone.
    """
    copy, batch = copied_model(model), copied(batch)
    sight = Sight()
    with (
        seeded(seed),
        torch.enable_grad(),
        warnings.catch_warnings(record=True) as warned,
        _hooked(copy, sight) as depth,
        _Functions(sight, depth),
    ):
        warnings.simplefilter("always")
        loss = loss_fn(copy, batch)
    sight.loss = loss if isinstance(loss, Tensor) else None
    sight.comparisons = _of_the_loss(sight)
    sight.kept = tuple(
        place
        for place, value in within(copy)
        if isinstance(value, Tensor) and not value.is_leaf and value.requires_grad
    )
    sight.warnings = list(dict.fromkeys(str(each.message) for each in warned))
    return sight


def _of_the_loss(sight: Sight) -> list[Comparison]:
    """The comparisons without differences that are no comparison of a prediction with its target.

    A difference that goes into the prediction of another comparison is a mask or a change of
    units. Inside a model a difference counts only if the model returns the loss itself.
    """
    loss_inside = any(not each.ndim and each.requires_grad for each in sight.outputs)
    found = [
        each
        for each in sight.comparisons
        if each.function != "difference" or not each.inside or loss_inside
    ]
    before = {each.result.grad_fn: each for each in found if each.function == "difference"}
    chained: set[int] = set()
    for each in found if before else ():
        nodes = upstream(each.prediction)
        chained |= {id(one) for node, one in before.items() if one is not each and node in nodes}
    return [each for each in found if id(each) not in chained]


def upstream(tensor: Tensor) -> set[Any]:
    """The nodes of the graph that a tensor was computed by."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return seen


@dataclass
class _Depth:
    """How many calls of modules of the model are at work."""

    calls: int = 0


@contextmanager
def _hooked(model: nn.Module, sight: Sight) -> Iterator[_Depth]:
    """Hooks on the model and its layers; what each layer reads is made to get a gradient."""
    depth, handles = _Depth(), []
    found = layers_of(model).items()
    layers = {module: name for name, (module, _) in found}
    declared = {module: declaration for _, (module, declaration) in found if declaration}

    def enters(module: nn.Module, args: Any, kwargs: Any) -> Any:
        depth.calls += 1
        name = layers.get(module)
        if name is not None and module in declared:
            return _read_declared(module, declared[module], name, args, kwargs, sight)
        return None if name is None else _read(module, name, args, kwargs, sight)

    def leaves(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        depth.calls -= 1
        if module in declared:
            state = _state_of_declared(module, declared[module], args, kwargs, result)
            sight.final.setdefault(layers[module], []).append(state)
        elif module in layers:
            state = result if isinstance(module, nn.RNNCellBase) else result[1]
            sight.final.setdefault(layers[module], []).append(_parts(state) or ())
            _note_returned(module, result, sight)
        if module is model:
            sight.outputs = tuple(_tensors(result))
            sight.output = result if isinstance(result, Tensor) else None

    for _, module in named_modules(model):
        if isinstance(module, torch.jit.ScriptModule | _Loss):
            continue
        handles.append(module.register_forward_pre_hook(enters, with_kwargs=True))
        handles.append(module.register_forward_hook(leaves, always_call=True, with_kwargs=True))
    try:
        yield depth
    finally:
        for handle in handles:
            handle.remove()


def _read(
    module: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], sight: Sight
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Note what a layer is called with, and hand on an input that gets a gradient."""
    given = args[0] if args else kwargs.get("input")
    packed = given if isinstance(given, PackedSequence) else None
    x = packed.data if packed is not None else given
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    state = args[1] if len(args) > 1 else kwargs.get("hx")
    sight.initial.setdefault(name, []).append(_parts(state))
    stepped, first = isinstance(module, nn.RNNCellBase), getattr(module, "batch_first", False)
    axes: tuple[int | None, int | None]
    if stepped:
        axes = (0 if x.ndim == 2 else None, None)
    elif x.ndim == 2:  # a single sequence
        axes = (None, 0)
    else:
        axes = (0, 1) if first else (1, 0)
    given = _noted(x, packed, axes, name, sight)
    if given is None:
        return None
    return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "input": given})


def _noted(
    x: Tensor,
    packed: PackedSequence | None,
    axes: tuple[int | None, int | None],
    name: str,
    sight: Sight,
    backwards: bool = False,
) -> Tensor | PackedSequence | None:
    """Note what a layer reads; gives what is to be handed on in its place, None for itself."""
    if torch.is_autocast_enabled(x.device.type):
        sight.autocast.add(torch.get_autocast_dtype(x.device.type))
    changed, own = not x.requires_grad, x
    if changed:
        x = x.detach().requires_grad_()
    sight.reads.setdefault(name, []).append(Read(x, packed, *axes, own, backwards))
    if not changed:
        return None
    return packed._replace(data=x) if packed is not None else x


def _read_declared(
    module: nn.Module,
    declaration: Declaration,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sight: Sight,
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The same of a declared recurrence; one that puts its input together itself is left alone."""
    if callable(declaration.x):
        return None
    names = argument_names(module)
    arguments = named_arguments(names, args, kwargs)
    try:
        read = input_of(declaration, module, arguments)
        state = initial_of(declaration, arguments, read)
    except RetrogradeError:  # the recording says why
        return None
    packed = read if isinstance(read, PackedSequence) else None
    x = read if isinstance(read, Tensor) else read.data
    if not x.is_floating_point():
        return None
    sight.initial.setdefault(name, []).append(tuple(state.values()) or None)
    first = declaration.batch_comes_first(module)
    axes = ((0, 1) if first else (1, 0)) if is_sequence(read) else (0, None)
    backwards = bool(getattr(module, "go_backwards", False))  # Keras' word for it
    given = _noted(x, packed, axes, name, sight, backwards)
    if given is None:
        return None
    place = next(number for number, value in enumerate(arguments.values()) if value is read)
    if place < len(args):
        return (*args[:place], given, *args[place + 1 :]), kwargs
    return args, {**kwargs, list(arguments)[place]: given}


def _state_of_declared(
    module: nn.Module, declaration: Declaration, args: Any, kwargs: Any, result: Any
) -> tuple[Tensor, ...]:
    """The last state that a declared recurrence returned, as far as it can be read."""
    arguments = named_arguments(argument_names(module), args, kwargs)
    try:
        results = read_call(declaration, module, arguments, result, {}).results
    except RetrogradeError:
        return ()
    return tuple(part for name, part in results.items() if name in declaration.pieces)


def _note_returned(module: nn.Module, result: Any, sight: Sight) -> None:
    """Note what made the states that a layer returned, if tanh bounds them."""
    unbounded = getattr(module, "proj_size", 0) or getattr(module, "nonlinearity", "") == "relu"
    if unbounded or not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return
    for each in result if isinstance(result, tuple) else (result,):
        state = (
            each[0] if isinstance(each, tuple) and not isinstance(each, PackedSequence) else each
        )
        if isinstance(state, Tensor):
            sight.returned[last_node(state)] = 1.0
        if isinstance(module, nn.LSTMCell):
            break  # what follows is the cell state


RESHAPED = (
    *("View", "UnsafeView", "Squeeze", "Unsqueeze", "Transpose", "TBackward", "Permute"),
    *("Reshape", "Clone", "Alias"),
)
"""How the nodes begin that leave all numbers as they are."""

SHAPES = (*RESHAPED, "Select", "Slice", "Index", "Expand")
"""And those that leave some of them, or repeat them."""


def last_node(tensor: Tensor, beyond: tuple[str, ...] = SHAPES) -> Any:
    """The last node of its graph that is none of these: no change of shape, no selection."""
    node: Any = tensor.grad_fn
    while type(node).__name__.startswith(beyond) and node.next_functions:
        node = node.next_functions[0][0]
    return node


def _tensors(result: Any) -> Iterator[Tensor]:
    """The tensors in what a model returned."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping | list | tuple):
        for part in result.values() if isinstance(result, Mapping) else result:
            yield from _tensors(part)


def _parts(state: Any) -> tuple[Tensor, ...] | None:
    """The parts of a state, h or (h, c)."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else (state,)
    return tuple(part for part in state if isinstance(part, Tensor))


class _Functions(TorchFunctionMode):
    """Eyes on the functions that compare a prediction with a target."""

    def __init__(self, sight: Sight, depth: _Depth) -> None:
        super().__init__()
        self._sight, self._depth = sight, depth

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            if func in LOSSES:
                self._compared(LOSSES[func], func, args, kwargs, result)
            elif func in DIFFERENCES and self._depth.calls <= 1 and len(args) == 2:
                self._compared("difference", func, args, kwargs, result)
            if func in ELEMENTWISE and not self._depth.calls and _makes_a_matrix(args, result):
                self._sight.broadcast += self._pair(func.__name__, func, args, kwargs, result)
        return result

    def _compared(
        self, name: str, func: Any, args: Any, kwargs: dict[str, Any], result: Tensor
    ) -> None:
        self._sight.comparisons += self._pair(name, func, args, kwargs, result)

    def _pair(
        self, name: str, func: Any, args: Any, kwargs: dict[str, Any], result: Tensor
    ) -> list[Comparison]:
        """What depends on the model beside what does not; nothing if there is no such pair."""
        given = {**dict(zip(("input", "target"), args, strict=False)), **kwargs}
        given |= {"input": given.get("input", given.get("log_probs"))}
        given |= {"target": given.get("target", given.get("targets"))}
        prediction, target = given["input"], given["target"]
        if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
            return []
        swapped = target.requires_grad and not prediction.requires_grad
        if swapped:
            prediction, target = target, prediction
        if not prediction.requires_grad or target.requires_grad:
            return []

        def call(other: Tensor) -> Tensor:
            changed = [other if arg is prediction else arg for arg in args]
            named = {key: other if arg is prediction else arg for key, arg in kwargs.items()}
            again: Tensor = func(*changed, **named)
            return again

        options = {key: value for key, value in given.items() if key not in ("input", "target")}
        if name == "ctc_loss":
            options |= dict(zip(("input_lengths", "target_lengths"), args[2:4], strict=False))
        inside = self._depth.calls > 0
        return [Comparison(name, prediction, target, result, call, options, inside)]


def _makes_a_matrix(args: Any, result: Tensor) -> bool:
    """Whether [N, 1] and [N] became [N, N]."""
    if len(args) != 2 or not all(isinstance(arg, Tensor) for arg in args):
        return False
    one, other = (tuple(arg.shape) for arg in args)
    column, row = (one, other) if len(one) > len(other) else (other, one)
    return (
        column == (*row, 1) and len(row) > 0 and result.numel() > max(map(math.prod, (one, other)))
    )
