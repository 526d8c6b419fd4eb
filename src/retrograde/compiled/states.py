"""The states of a cell over a sequence, in one call of the library for each layer."""

from torch import Tensor

from retrograde.cells import AbstractCell, CellStep, SideBySide, Stacked
from retrograde.compiled import passes
from retrograde.compiled.library import Library


def library_for(cell: AbstractCell, x: Tensor, initial: Tensor) -> Library | None:
    """The library, if it is in use and can run a cell over x [T, B, I] from a state [B, S]."""
    weights = [weight for each in _layers(cell) for weight in passes.weights_of(each)]
    if not all(passes.kind_of(each) for each in _layers(cell)):
        return None
    return passes.in_use(x, initial, *weights)


def numbers_kept(library: Library, cell: AbstractCell, x: Tensor) -> int:
    """How many numbers the activations of all steps take, which are held in whole vectors."""
    numbers = 0
    for layer in _layers(cell):
        kind = passes.kind_of(layer)
        assert kind is not None
        hidden = layer.state_size // len(kind.state)
        numbers += len(kind.activations) * passes.padded(library, x, hidden)
    return numbers * x.shape[0] * x.shape[1]


def run(
    library: Library, cell: AbstractCell, x: Tensor, states: Tensor, initial: Tensor, keep: bool
) -> CellStep:
    """Write the states after each step, behind the one before them.

    Args:
        library: what `library_for` gave.
        cell: the recurrence.
        x: [T, B, I].
        states: [T+1, B, S], of which all but the first are written.
        initial: the state that enters the first step, if it is another than the one before it.
        keep: whether the activations are wanted.

    Returns:
        The steps, without their activations unless they are wanted.
    """
    layers = list[CellStep]()
    if isinstance(cell, Stacked | SideBySide):
        read, at = x, 0
        parts = zip(cell.layers, cell.split(states), cell.split(initial), strict=True)
        for layer, of_layer, start in parts:
            if isinstance(cell, SideBySide):
                read = x[..., at : at + layer.input_size]
                at += layer.input_size
            layers.append(run(library, layer, read, of_layer, start, keep))
            if isinstance(cell, Stacked):
                read = layers[-1].state[..., layer.output]
        return CellStep(x, states[:-1], states[1:], layers=tuple(layers))
    kind, weights = passes.kind_of(cell), passes.weights_of(cell)
    assert kind is not None
    count = len(kind.state)
    given, inside = passes.side_by_side(kind, initial.chunk(count, -1)), keep or kind.gates != ()
    found = passes.forward(library, kind, x, given, weights, keep=inside)
    found = passes.with_gates(kind, found)
    for part, written in zip(states[1:].chunk(count, -1), found.states, strict=True):
        part.copy_(written)
    kept = passes.activations_of(kind, found.states[0], found.kept) if keep else {}
    return CellStep(x, states[:-1], states[1:], kept)


def _layers(cell: AbstractCell) -> tuple[AbstractCell, ...]:
    if isinstance(cell, SideBySide) or (isinstance(cell, Stacked) and not cell.masked):
        return tuple(inner for layer in cell.layers for inner in _layers(layer))
    return (cell,)
