"""Run the cell of a sequence again: what it reads at each step, and what the loss gives there.

A stack reads x, and the masks of a dropout between its layers. A bidirectional layer is two cells
side by side, each with its own time. In a bidirectional stack each layer reads the outputs of both
directions below over the whole sequence, which are computed first; the gradient of its input counts
as given by the loss to the layer below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from retrograde.cells import AbstractCell, Carrying, CellStep, SideBySide, Stacked
from retrograde.engine import (
    Boundary,
    Entries,
    Scaled,
    Unrolled,
    backpropagate,
    input_adjoints,
    with_factors,
)
from retrograde.engine.forward import Checkpoints
from retrograde.recording.calls import Call
from retrograde.recording.reads import StateRead
from retrograde.recording.segment import Segment
from retrograde.recording.timeline import Timeline, unchanged


@dataclass(frozen=True, eq=False)
class Replayed:
    """A cell with its inputs, boundaries and adjoints, for one or several sequences.

    Attributes:
        cell: the cell.
        x: the layer's input, [T, B, I].
        reads: what the cell reads, [T, B, R].
        initial: the state before the first step, [B, S].
        direct: what the loss gives to each state, [T, B, S].
        boundaries: the steps whose entering state is not simply the state before.
        lengths: the steps of each sample, None if all run to the end.
        ran: the cell run over what it reads, if it was.
    """

    cell: AbstractCell
    x: Float[Tensor, "T B I"]
    reads: Float[Tensor, "T B R"]
    initial: Float[Tensor, "B S"]
    direct: Float[Tensor, "T B S"]
    boundaries: Mapping[int, Boundary]
    lengths: Int[Tensor, "B"] | None
    ran: Unrolled | None = None

    @staticmethod
    def side_by_side(runs: "Sequence[Replayed]") -> "Replayed":
        """Several sequences as samples of one, each from step 0."""
        if len(runs) == 1:
            return runs[0]
        longest = max(len(run.x) for run in runs)

        def joined(sequences: list[Tensor]) -> Tensor:
            return torch.cat(
                [pad(one, (0, 0, 0, 0, 0, longest - len(one))) for one in sequences], 1
            )

        ragged = any(r.lengths is not None or len(r.x) < longest for r in runs)
        lengths = torch.cat([r._lengths() for r in runs]) if ragged else None
        boundaries = {
            k: Boundary.side_by_side([r.boundaries.get(k, unchanged(r.initial)) for r in runs])
            for k in sorted({k for run in runs for k in run.boundaries})
        }
        x = joined([run.x for run in runs])
        own = all(run.reads is run.x for run in runs)
        reads = x if own else joined([run.reads for run in runs])
        initial = torch.cat([run.initial for run in runs])
        direct = joined([run.direct for run in runs])
        return Replayed(runs[0].cell, x, reads, initial, direct, boundaries, lengths)

    def _lengths(self) -> Int[Tensor, "B"]:
        full = torch.full(self.x.shape[1:2], len(self.x), device=self.x.device)
        return full if self.lengths is None else self.lengths


def replay(
    segments: list[Segment],
    cells: Sequence[AbstractCell],
    masked: bool,
    held: bool,
    samples: Int[Tensor, "B"] | None = None,
) -> Replayed:
    """Replay one sequence of calls.

    Args:
        segments: the calls.
        cells: the cell of every layer and direction.
        masked: a dropout acted in any call of the layer.
        held: the state that entered a call outlives it in any sequence of the layer.
        samples: the samples to replay, of a single call; None for all.

    Raises:
        RecordingError: if the masks of a dropout cannot be drawn again, or if a declared recurrence
            does not give what its module gave.
    """
    sequence = Timeline(segments, cells, masked, held, samples)
    return (
        _bidirectional(sequence)
        if segments[0].call.form.directions == 2
        else _one_direction(sequence)
    )


@dataclass(frozen=True, eq=False)
class Back:
    """What comes back to a call from the one after it, [B, S].

    Attributes:
        to_state: to the state that it returned.
        to_entered: to the state that entered it.
    """

    to_state: Float[Tensor, "B S"]
    to_entered: Float[Tensor, "B S"]

    @staticmethod
    def nothing(call: Call) -> "Back":
        """Nothing, to the last call."""
        none = call.x.data.new_zeros(call.batch, call.state_size, dtype=call.dtype)
        return Back(none, none.clone())


@torch.no_grad()
def pulled_back(
    segment: Segment, back: Back, reads: Sequence[StateRead], before: Call
) -> tuple[Float[Tensor, "T B I"], Back]:
    """What a call gives to its input, and to the call before.

    Args:
        segment: the call, of one cell in one direction, with all that the loss gives to it.
        back: what comes back to it.
        reads: what the state that it was given reads of the call before.
        before: that call.
    """
    call, (cell,) = segment.call, segment.call.cells
    timeline = Timeline([segment], call.cells, False, False)
    direct = timeline.given_to_state
    direct[..., cell.output] += timeline.given_to_output
    samples = torch.arange(call.batch, device=direct.device)
    direct[timeline.ends[0] - 1, samples] += back.to_state
    unrolled = with_factors(timeline.unroll(cell, timeline.x), direct)
    to_input, to_given = torch.zeros_like(unrolled.x), segment.by_entered + back.to_entered
    for step in backpropagate(unrolled, Entries.of(direct, max_rows=1)):
        exponent = step.delta.exponent
        to_input[step.k] = Scaled(step.adjoint.input(), exponent).total().plain()[0]
        if step.k == 0:
            to_given += Scaled(step.adjoint.previous(), exponent).total().plain()[0]
    found = Back.nothing(before)
    for read in reads:
        into = found.to_entered if read.entered else found.to_state
        part = (to_given * read.factor.to(to_given.dtype)).flatten()
        into.view(-1).index_add_(0, read.source.flatten(), part)
    return to_input, found


def _one_direction(sequence: Timeline) -> Replayed:
    """A single cell or a stack."""
    cells, masks = sequence.cells, sequence.masks
    cell = Stacked(cells, masked=bool(masks)) if sequence.form.positions else cells[0]
    reads = torch.cat((sequence.x, *masks), -1) if masks else sequence.x
    if masks:
        sequence.check_whole(sequence.unroll(cell, reads).output)
    if sequence.form.declared:
        sequence.check_declared(cell)
    direct = sequence.given_to_state
    direct[..., cell.output] += sequence.given_to_output
    return _whole(sequence, cell, reads, direct)


def _whole(
    sequence: Timeline, cell: AbstractCell, reads: Tensor, direct: Float[Tensor, "T B S"]
) -> Replayed:
    """A whole sequence; the state that entered each call is held beside the state if needed."""
    initial, x = sequence.initial, sequence.x
    if sequence.given_to_entered is not None:
        cell, initial = Carrying(cell), torch.cat((initial, initial), -1)
        direct = torch.cat((direct, sequence.given_to_entered), -1)
    return Replayed(cell, x, reads, initial, direct, sequence.boundaries, sequence.lengths)


def _bidirectional(sequence: Timeline) -> Replayed:
    """Two cells for every layer, all side by side."""
    masks, x, given = sequence.masks, sequence.x, sequence.given_to_output
    pairs, start = [], 0
    for number in range(sequence.form.layers):
        both = slice(2 * number, 2 * number + 2)
        pair = SideBySide(sequence.cells[both], sequence.form.suffixes[both])
        part = slice(start, start + pair.state_size)
        start = part.stop
        reads = torch.cat((x, sequence.turned(x)), -1)
        unrolled = sequence.unroll(pair, reads, part)
        pairs.append((pair, part, unrolled))
        x = _output(sequence, pair, unrolled.states[1:])
        if number < len(masks):
            x = x * masks[number]
    sequence.check_whole(x)

    direct = sequence.given_to_state
    for number, (pair, part, unrolled) in reversed(list(enumerate(pairs))):
        of_pair = direct[..., part]
        forward, reverse = torch.split(given, [cell.output_size for cell in pair.layers], -1)
        to_both = forward, sequence.turned(reverse)
        for cell, values, state in zip(pair.layers, to_both, pair.split(of_pair), strict=True):
            state[..., cell.output] += values
        if number:
            unrolled = with_factors(unrolled, of_pair)
            by_reads = input_adjoints(unrolled, Entries.of(of_pair, max_rows=1))
            forward, reverse = by_reads.chunk(2, -1)
            given = forward + sequence.turned(reverse)
            if masks:
                given = given * masks[number - 1]
    reads = torch.cat([unrolled.x for _, _, unrolled in pairs], -1)
    cell = SideBySide(sequence.cells, sequence.form.suffixes)
    whole = _whole(sequence, cell, reads, direct)
    if sequence.held or any(isinstance(of.trajectory, Checkpoints) for _, _, of in pairs):
        return whole
    return replace(whole, ran=_joined(whole, [of for _, _, of in pairs]))


def _joined(whole: Replayed, parts: Sequence[Unrolled]) -> Unrolled:
    """Cells side by side, each of which was run."""
    states = torch.cat([of.states for of in parts], -1)
    joined = Unrolled(whole.cell, whole.reads, states, boundaries=whole.boundaries)
    layers = [of.run.layers for of in parts if of.run is not None]
    if len(layers) < len(parts):
        return joined
    steps = CellStep(whole.reads, states[:-1], states[1:], layers=tuple(chain(*layers)))
    return joined.with_steps(steps)


def _output(
    sequence: Timeline, pair: SideBySide, states: Float[Tensor, "T B S"]
) -> Float[Tensor, "T B M"]:
    """The output of both directions, in the time of the input."""
    parts = zip(pair.split(states), pair.layers, strict=True)
    forward, reverse = (state[..., cell.output] for state, cell in parts)
    return torch.cat((forward, sequence.turned(reverse)), -1)
