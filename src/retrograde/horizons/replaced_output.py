"""The loss of a model, its recurrent layer's output put together from other states."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retrograde.declarations import Declaration
from retrograde.declarations.reading import (
    OUTPUT,
    CallTensors,
    argument_names,
    named_arguments,
)
from retrograde.diagnosis.copies import copied, copied_model, seeded
from retrograde.diagnosis.run import LossFunction
from retrograde.recording import Recorded
from retrograde.recording.layers import layers_of

AGREES = 1e-3
"""The output put together from states agrees with the layer's own to this part of it, or to as many
rounding errors as follow."""

ROUNDINGS = 4


def loss_of(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    recorded: Recorded,
    states: Float[Tensor, "T1 B S"],
) -> Tensor:
    """The loss, as a function of the states that take the place of the layer's own.

    Args:
        model: the user's model; a copy is run.
        batch: the batch that was recorded.
        loss_fn: maps (model, batch) to the loss.
        seed: of what is random in the pass.
        recorded: the layer, for which `follows_from` holds.
        states: the states, the initial one first.
    """
    return _run(model, batch, loss_fn, seed, _Output(recorded, states, check=False))


def follows_from(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    recorded: Recorded,
    states: Float[Tensor, "T1 B S"],
) -> bool:
    """Whether what the layer returns, in all of its calls, can be put together from its states."""
    output = _Output(recorded, states, check=True)
    with torch.no_grad():
        _run(model, batch, loss_fn, seed, output)
    return not output.refused and output.at == len(states) - 1


@torch.enable_grad()
def adjoint_of(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    recorded: Recorded,
    states: Float[Tensor, "T1 B S"],
) -> Float[Tensor, "T1 B S"]:
    """The gradient of `loss_of` by the states, none of which depends on another one."""
    leaf = states.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss_of(model, batch, loss_fn, seed, recorded, leaf), leaf)
    return found


def _run(
    model: nn.Module, batch: Any, loss_fn: LossFunction, seed: int, output: "_Output"
) -> Tensor:
    copy = copied_model(model)
    module, declaration = layers_of(copy)[output.layer]
    if declaration is not None and declaration.reading is not None:
        # Not by setattr: Keras would keep it as a part of the layer.
        vars(module)[declaration.method] = _replacing(module, declaration, output)
    else:
        module.register_forward_hook(output)
    with seeded(seed):
        return loss_fn(copy, copied(batch))


def _replacing(
    module: nn.Module, declaration: Declaration, output: "_Output"
) -> Callable[..., Any]:
    """The method of a declared module whose calls are read, returning other outputs."""
    method, reading = getattr(module, declaration.method), declaration.reading
    names = argument_names(module, declaration.method)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        assert reading is not None
        read = reading(module, named_arguments(names, args, kwargs), result)
        return output.replaced(result, output.as_read(result, read))

    return call


class _Output:
    """A forward hook that returns other outputs and states in the form of the layer's own.

    Each call, of an encoder and of a decoder that continues it, goes on from where the one before
    it ended.

    Attributes:
        at: the steps of the calls so far.
        refused: whether the outputs of a call cannot be put together.
    """

    def __init__(self, recorded: Recorded, states: Float[Tensor, "T1 B S"], check: bool):
        self.layer = recorded.name
        self._recorded, self._states, self._check = recorded, states, check
        self.refused, self.at = False, 0

    def __call__(self, module: nn.Module, inputs: Any, result: Any) -> Any:
        return self.replaced(result, self._made(module, result))

    def replaced(self, result: Any, made: Any) -> Any:
        """What is returned in the place of a result, if that can be."""
        if made is None or (self._check and not _agree(made, result)):
            self.refused = True
            return result
        return made

    def as_read(self, result: Any, read: CallTensors) -> Any:
        """What was read of a call, [B, T, *] and [B, *], put together and left in its place."""
        if read.lengths is not None:
            return None
        states = self._next(len(self._states) - 1)
        if not len(states):
            return None
        output, last = states[:, :, self._recorded.cell.output], states[-1]
        made: dict[int, Tensor] = {}
        for name, tensor in read.results.items():
            if name == OUTPUT:
                values = output[-1] if read.places is not None else output.transpose(0, 1)
            else:
                values = last[:, self._recorded.cell.slots[name]]
            if values.shape != tensor.shape:
                return None
            made[id(tensor)] = values.to(tensor)
        return _in_place(result, made)

    def _next(self, steps: int) -> Float[Tensor, "T B S"]:
        """The states of the next steps; fewer where the sequence ends before."""
        states = self._states[self.at + 1 :][:steps]
        self.at += steps
        return states

    def _made(self, module: nn.Module, result: Any) -> Any:
        """The output, and the last states of the layers, in the shapes of what was returned."""
        cell = self._recorded.cell
        first = result[0] if isinstance(result, tuple) else result
        first = getattr(first, "data", first)  # of a PackedSequence
        if not isinstance(first, Tensor):
            return None
        states = self._next(first.numel() // self._states[0][:, cell.output].numel())
        if not len(states):
            return None
        output = states[:, :, cell.output]
        last = {
            letter: torch.stack([states[-1][:, slot] for slot in slots])
            for letter in "hc"
            if (slots := [s for n, s in cell.slots.items() if n[0] == letter])
        }
        if isinstance(module, nn.LSTMCell):
            return _all_in_form((last["h"][0], last["c"][0]), result)
        if isinstance(module, nn.RNNCellBase):
            return _in_form(last["h"][0], result)
        if isinstance(result, Tensor):
            return _in_form(output, result)
        if len(result) != 2:
            return None
        returned = _in_form(output, result[0])
        if isinstance(result[1], Tensor):
            second: Any = _in_form(last.get("h"), result[1])
        elif isinstance(result[1], tuple) and len(result[1]) == 2 and "c" in last:
            second = _all_in_form((last.get("h"), last["c"]), result[1])
        else:
            second = None
        return None if returned is None or second is None else (returned, second)


def _all_in_form(values: tuple[Tensor | None, ...], like: tuple[Any, ...]) -> Any:
    """Each in the form of the one in its place; None where one of them cannot be."""
    found = tuple(_in_form(*each) for each in zip(values, like, strict=True))
    return None if any(each is None for each in found) else found


def _in_place(result: Any, made: dict[int, Tensor]) -> Any:
    """A nested result with other tensors in the place of some."""
    if isinstance(result, list | tuple):
        return type(result)(_in_place(part, made) for part in result)
    return made.get(id(result), result)


def _in_form(values: Tensor | None, like: Any) -> Any:
    """Values in the form of another tensor: its batch first, or without one, or packed."""
    if isinstance(like, PackedSequence) and values is not None:
        return _packed(values, like)
    if values is None or not isinstance(like, Tensor):
        return None
    for form in (values, values.transpose(0, 1), values.squeeze(1)):
        if form.shape == like.shape:
            return form.to(like)
    return None


def _packed(values: Float[Tensor, "T B H"], like: PackedSequence) -> PackedSequence | None:
    """Values packed as another sequence, all of whose samples run to the end."""
    if like.data.shape != values.flatten(0, 1).shape:
        return None
    rows = values if like.sorted_indices is None else values[:, like.sorted_indices]
    return like._replace(data=rows.flatten(0, 1).to(like.data))


def _agree(made: Any, result: Any) -> bool:
    if isinstance(made, PackedSequence):
        return _agree(made.data, result.data)
    if isinstance(made, Tensor):
        off = torch.linalg.vector_norm(made - result)
        part = max(AGREES, ROUNDINGS * torch.finfo(result.dtype).eps)
        return bool(off <= part * torch.linalg.vector_norm(result))
    return all(_agree(a, b) for a, b in zip(made, result, strict=True))
