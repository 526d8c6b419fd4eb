"""From what the parts of a state read of the call before to what all of its entries read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.recording.calls import Call, ReadTerms


@dataclass(frozen=True, eq=False)
class StateRead:
    """What the entries of a state that a call was given read of the call before.

    Attributes:
        entered: it is the state that entered the call before, not the one that it returned.
        source: the entries that are read, sample * S + unit, shape [B, S].
        factor: by which they are multiplied, 0 where nothing is read, shape [B, S], float64.
    """

    entered: bool
    source: Int[Tensor, "B S"]
    factor: Float[Tensor, "B S"]


def reads_of(call: Call, before: Call, terms: Mapping[str, ReadTerms]) -> list[StateRead]:
    """The same, from the terms of its parts; outputs of steps before the last are -1."""
    reads: list[StateRead] = []
    for letter, of_letter in terms.items():
        shape, found = call.given[letter].shape, []
        for entered, name, site, term in of_letter:
            numbers = before.state_entries(name, site)
            source = numbers if term.source is None else numbers[term.source]
            found.append(
                StateRead(
                    entered,
                    call.arranged({letter: source.view(shape)}, torch.int64),
                    call.arranged({letter: term.factor.view(shape)}, torch.float64),
                )
            )
        reads = merged(reads, [read for read in found if bool(read.factor.any())])
    return reads


def merged(reads: list[StateRead], more: list[StateRead]) -> list[StateRead]:
    """Reads of several parts of a state, each of which has entries of its own, as few as can be."""
    merged, left = list(reads), list(more)
    for number, read in enumerate(merged):
        for other in left:
            apart = not bool(((read.factor != 0) & (other.factor != 0)).any())
            if other.entered == read.entered and apart:
                source = torch.where(other.factor != 0, other.source, read.source)
                merged[number] = StateRead(read.entered, source, read.factor + other.factor)
                left.remove(other)
                break
    return merged + left
