"""The states of a cell over a sequence, in one call of the library for each layer."""

import torch
from torch import Tensor

from retrograde.cells import AbstractCell, SideBySide, Stacked
from retrograde.compiled import passes
from retrograde.compiled.library import Library


def library_for(cell: AbstractCell, x: Tensor, initial: Tensor) -> Library | None:
    """The library, if it is in use and can run a cell over x [T, B, I] from a state [B, S]."""
    weights = [weight for each in _layers(cell) for weight in passes.weights_of(each)]
    if not all(passes.kind_of(each) for each in _layers(cell)):
        return None
    return passes.in_use(x, initial, *weights)


def states_of(library: Library, cell: AbstractCell, x: Tensor, initial: Tensor) -> Tensor:
    """The states after each step, [T, B, S].

    Args:
        library: what `library_for` gave.
        cell: the recurrence.
        x: [T, B, I].
        initial: the state before, [B, S].
    """
    if isinstance(cell, Stacked | SideBySide):
        found, at = list[Tensor](), 0
        for layer, part in zip(cell.layers, cell.split(initial), strict=True):
            x_of = x[..., at : at + layer.input_size]
            found.append(states_of(library, layer, x_of, part))
            if isinstance(cell, Stacked):
                x = found[-1][..., layer.output]
            else:
                at += layer.input_size
        return torch.cat(found, -1) if len(found) > 1 else found[0]
    kind, weights = passes.kind_of(cell), passes.weights_of(cell)
    assert kind is not None
    starts = initial.chunk(len(kind.parts), -1)
    states = passes.forward(library, kind, x, starts, weights, keep=False).states
    return torch.cat(states, -1) if len(states) > 1 else states[0]


def _layers(cell: AbstractCell) -> tuple[AbstractCell, ...]:
    if isinstance(cell, SideBySide) or (isinstance(cell, Stacked) and not cell.masked):
        return tuple(inner for layer in cell.layers for inner in _layers(layer))
    return (cell,)
