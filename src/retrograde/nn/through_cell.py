"""A cell through a sequence, on the backend in use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.compiled import passes
from retrograde.nn.compiled_pass import compiled
from retrograde.nn.recurrence import Note, run


@dataclass(frozen=True, eq=False)
class Through:
    """A cell that ran through a sequence; all of it can be differentiated.

    Attributes:
        output: what the layer hands on, [T, B, H].
        states: the parts of the state after each step, by name, [T, B, H].
        last: those after the last step that ran, [B, H].
        activations: gates and other activated values by name, [T, B, H]; none if not asked for.
    """

    output: Float[Tensor, "T B H"]
    states: Mapping[str, Float[Tensor, "T B _"]]
    last: Mapping[str, Float[Tensor, "B _"]]
    activations: Mapping[str, Float[Tensor, "T B _"]]


def through_cell(
    cell: AbstractCell,
    x: Float[Tensor, "T B I"],
    initial: Sequence[Float[Tensor, "B _"]],
    note: Note | None = None,
    inside: bool = False,
) -> Through:
    """Run a cell through a sequence on the backend in use.

    Args:
        cell: the recurrence.
        x: inputs.
        initial: the parts of the initial state.
        note: is told what a clipping policy did in the backward pass.
        inside: whether activations are wanted.
    """
    plain, altered = passes.plain(cell)
    library = passes.in_use(x, *initial, *passes.weights_of(plain))
    kind = passes.kind_of(plain) if library else None
    if library and kind:
        weights = passes.weights_of(plain)
        passed = compiled(library, kind, x, initial, weights, False, inside, altered, note)
        output, named = passed.states[0], dict(zip(kind.state, passed.states, strict=True))
        activations = passes.activations_of(kind, output, passed.kept) if inside else {}
        ends = {name: part[0] for name, part in zip(kind.state, passed.last, strict=True)}
        return Through(output, named, ends, activations)
    first = torch.cat(tuple(initial), -1)
    states = run(cell, x, first, note)
    activations = {}
    if inside:
        before = torch.cat((first.unsqueeze(0), states[:-1]))
        activations = dict(cell.step(x, before).activations)
    parts = {name: states[..., slot] for name, slot in cell.slots.items()}
    last = {name: part[-1] for name, part in parts.items()}
    return Through(states[..., cell.output], parts, last, activations)
