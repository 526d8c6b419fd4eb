"""A module on the compiled library: all its layers and directions, without the cells in between.

At 16 hidden units the arithmetic of a pass takes as long as making a few Python objects does: what
runs on the library is read straight from the module here. Whatever is unusual about a call (packed,
without a batch, under autocast, a wrong shape) takes the general way, which also words the errors.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from operator import itemgetter
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from retrograde.cells import Position
from retrograde.compiled import passes
from retrograde.nn.compiled_pass import compiled
from retrograde.nn.traced_pass import traced, usable


@runtime_checkable
class Layers(Protocol):
    """What is read of a module: the arguments of its constructor."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    training: bool
    _parameters: dict[str, nn.Parameter | None]


Result = tuple[Tensor, tuple[Tensor, ...], tuple[Mapping[str, Tensor], ...]]


def names_of(
    layers: int, bidirectional: bool, bias: bool, peepholes: bool, between_gates: bool
) -> tuple[tuple[str, ...], ...]:
    """The names of the weights, by layer and direction in torch's order, by `passes.WEIGHTS`.

    The name of a weight that is not there is "".
    """
    there = {"weight_ih", "weight_hh"}
    there |= {"bias_ih", "bias_hh"} if bias else set()
    there |= {"weight_ch"} if peepholes else set()
    there |= {"weight_gg"} if between_gates else set()
    every = Position.every(layers, bidirectional)
    return tuple(
        tuple(name + at.suffix if name in there else "" for name in passes.WEIGHTS) for at in every
    )


_names = cache(names_of)


@cache
def _places(names: tuple[str, ...]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What takes those weights that are there from a mapping, and puts None where one is not."""
    there = [name for name in names if name]
    return itemgetter(*there), itemgetter(*[there.index(n) if n else -1 for n in names])


def _weights(module: Layers, names: tuple[str, ...]) -> Sequence[Tensor | None]:
    """The weights of a layer and direction by `passes.WEIGHTS`."""
    if not torch.compiler.is_compiling():
        take, place = _places(names)
        try:
            held: tuple[Tensor | None, ...] = place((*take(module._parameters), None))
            return held
        except KeyError:  # the module is parametrized, and has something else in their place
            pass
    return [getattr(module, name) if name else None for name in names]


def _runner(x: Tensor, weights: Sequence[Tensor | None]) -> Callable[..., passes.Pass] | None:
    """What runs a pass of the library, if it can read these."""
    if torch.compiler.is_compiling():
        return traced if usable(x, *weights) else None
    library = passes.in_use(x, *weights)
    return None if library is None else partial(compiled, library)


def through_library(
    kind: passes.Kind,
    module: Layers,
    x: object,
    hx: object,
    inside: bool,
) -> Result | None:
    """What the module gives, on the library; None where the general way is to be taken.

    Args:
        kind: of its cells.
        module: one of this package, neither truncated nor clipped inside.
        x: its input.
        hx: its initial state, as it was given.
        inside: whether activations are wanted.

    Returns:
        Outputs as the input is laid out, the parts of the last state, and activations by layer and
        direction, laid out likewise.
    """
    layers, both, first = module.num_layers, module.bidirectional, module.batch_first
    if type(x) is not Tensor:
        return None
    shape: Sequence[int] = x.shape
    if len(shape) != 3 or shape[2] != module.input_size or 0 in shape:
        return None
    named = names_of if torch.compiler.is_compiling() else _names  # which it warns of
    names = named(layers, both, module.bias, kind.blocks[1] > 0, kind.gates != ())
    weights = [_weights(module, some) for some in names]
    run = _runner(x, [*chain.from_iterable(weights)])
    if run is None or torch.is_autocast_enabled("cpu"):
        return None
    parts, count, samples = len(kind.state), len(weights), shape[0 if first else 1]
    initial: Sequence[Sequence[Tensor | None]] = [[None] * parts] * count
    if hx is not None:
        given = (hx,) if type(hx) is Tensor else hx
        if not isinstance(given, tuple | list) or len(given) != parts:
            return None
        shape = (count, samples, module.hidden_size)
        if not all(type(p) is Tensor and p.shape == shape and p.dtype == x.dtype for p in given):
            return None
        initial = list(zip(*(part.unbind() for part in given), strict=True))
    if first:
        x = x.transpose(0, 1)
    last: list[tuple[Tensor, ...]] = []
    activations: list[dict[str, Tensor]] = []
    directions = 1 + both
    for start in range(0, count, directions):
        outputs = []
        for number in range(start, start + directions):
            passed = run(kind, x, initial[number], weights[number], number > start, inside)
            outputs.append(passed.states[0])
            last.append(passed.last)
            if inside:
                within = dict(zip(kind.state, passed.states, strict=True))
                within |= passes.activations_of(kind, passed.states[0], passed.kept)
                activations.append(within)
        x = torch.cat(outputs, -1) if both else outputs[0]
        if module.dropout and module.training and start + directions < count:
            x = nn.functional.dropout(x, module.dropout)
    if first:
        x = x.transpose(0, 1)
        activations = [{n: v.transpose(0, 1) for n, v in each.items()} for each in activations]
    ends = last[0] if count == 1 else tuple(torch.cat(part) for part in zip(*last, strict=True))
    return x, tuple(ends), tuple(activations)
