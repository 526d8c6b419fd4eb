"""What a cell reads at each step, and what the loss gives to its state there.

A stack reads x, and the masks of a dropout between its layers. A layer that reads both ways is two
cells side by side, each with its own time; in a stack of such layers each reads the outputs of both
below over the whole sequence, which are computed first, and what it hands down counts as given by
the loss to the layer below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from retrograde.cells import AbstractCell, Carrying, SideBySide, Stacked
from retrograde.engine import Border, Entries, Unrolled, input_adjoints, unroll, with_factors
from retrograde.engine import Read as Entry
from retrograde.errors import RecordingError
from retrograde.recording.calls import Read
from retrograde.recording.chains import Span
from retrograde.recording.masks import masks_of

REPLAYED = 1e-2
"""Masks were found again if the output differs no more from the one that ran, relative to its size.
With other masks it differs by about 1. In low precision 32 eps are allowed."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A cell and everything that it meets in one or several sequences.

    Attributes:
        cell: the cell.
        x: the layer's input, [T, B, I].
        reads: what the cell reads, [T, B, R].
        initial: the state before the first step, [B, S].
        direct: what the loss gives to each state, [T, B, S].
        borders: the steps that were not entered with the state before.
        lengths: the steps of each sample, None if all run to the end.
    """

    cell: AbstractCell
    x: Float[Tensor, "T B I"]
    reads: Float[Tensor, "T B R"]
    initial: Float[Tensor, "B S"]
    direct: Float[Tensor, "T B S"]
    borders: Mapping[int, Border]
    lengths: Int[Tensor, "B"] | None

    @staticmethod
    def side_by_side(readings: "Sequence[Reading]") -> "Reading":
        """Several sequences as samples of one, each from step 0."""
        if len(readings) == 1:
            return readings[0]
        longest = max(len(reading.x) for reading in readings)

        def joined(sequences: list[Tensor]) -> Tensor:
            return torch.cat(
                [pad(one, (0, 0, 0, 0, 0, longest - len(one))) for one in sequences], 1
            )

        ragged = any(r.lengths is not None or len(r.x) < longest for r in readings)
        lengths = torch.cat([r._lengths() for r in readings]) if ragged else None
        borders = {
            k: Border.side_by_side([r.borders.get(k, _handed_on(r.initial)) for r in readings])
            for k in sorted({k for reading in readings for k in reading.borders})
        }
        x = joined([reading.x for reading in readings])
        own = all(reading.reads is reading.x for reading in readings)
        reads = x if own else joined([reading.reads for reading in readings])
        initial = torch.cat([reading.initial for reading in readings])
        direct = joined([reading.direct for reading in readings])
        return Reading(readings[0].cell, x, reads, initial, direct, borders, lengths)

    def _lengths(self) -> Int[Tensor, "B"]:
        full = torch.full(self.x.shape[1:2], len(self.x), device=self.x.device)
        return full if self.lengths is None else self.lengths


def read(chain: list[Span], masked: bool, held: bool) -> Reading:
    """The reading of one sequence of calls.

    Args:
        chain: the calls.
        masked: a dropout acted in any call of the layer.
        held: the state that entered a call outlives it in any sequence of the layer.

    Raises:
        RecordingError: if the masks of a dropout cannot be drawn again.
    """
    sequence = _Sequence(chain, masked, held)
    return _both_ways(sequence) if chain[0].call.form.directions == 2 else _one_way(sequence)


class _Sequence:
    """The tensors of calls that follow each other, time first, one call after the other.

    Where samples end at steps of their own, each goes on from its own last step. Calls of fewer
    samples leave the others as they are.
    """

    def __init__(self, chain: list[Span], masked: bool, held: bool):
        first = chain[0].call
        self.form, self.cells, self.calls = first.form, first.cells, [span.call for span in chain]
        self.held = held
        self.batch = max(call.batch for call in self.calls)
        self._place(chain)
        self.x = self.joined([call.sequence(call.x)[0] for call in self.calls])
        self.initial = self.padded(first.state(first.given))
        drawn = [masks_of(call) for call in self.calls] if masked else []
        self.masks = [self.joined(list(of_layer)) for of_layer in zip(*drawn, strict=True)]
        width = sum(cell.output_size for cell in first.top)
        self.given_to_state = self.x.new_zeros(*self.x.shape[:2], self.initial.shape[1])
        self.given_to_entered = torch.zeros_like(self.given_to_state) if held else None
        self.given_to_output = self.x.new_zeros(*self.x.shape[:2], width)
        for number, span in enumerate(chain):
            if span.by_output is not None:
                self.put(self.given_to_output, number, span.call.outputs(span.by_output))
            last, samples = self.ends[number] - 1, torch.arange(span.call.batch)
            self.given_to_state[last, samples.to(last.device)] = span.by_state
            if self.given_to_entered is not None:
                self.given_to_entered[last, samples.to(last.device)] = span.by_entered
        self.borders = self._borders(chain)

    def _place(self, chain: list[Span]) -> None:
        """Where the steps of each call lie: `starts` and `ends`, for each of its samples."""
        device = self.calls[0].output.device
        parts = [call.sequence(call.x) for call in self.calls]
        ragged = any(lengths is not None for _, lengths in parts)
        at = torch.zeros(self.batch, dtype=torch.int64, device=device)
        self.starts: list[Tensor] = []
        self.ends: list[Tensor] = []
        last = at.clone()
        for x, lengths in parts:
            batch = x.shape[1]
            self.starts.append(at[:batch].clone())
            at[:batch] += len(x) if lengths is None else lengths
            self.ends.append(at[:batch].clone())
            last[:batch] = at[:batch]
            if not ragged:  # all samples keep the same time
                at[:] = at[:batch].max()
        batches = [call.batch for call in self.calls]
        own = sorted(batches, reverse=True) == batches and not any(map(_mixes, chain))
        self.steps = int(last.max())
        ended = own and bool((last < self.steps).any())
        self.lengths = last if ended else None
        self.even = not ragged and len(set(batches)) == 1

    def padded(self, state: Float[Tensor, "b M"]) -> Float[Tensor, "B M"]:
        """A state of a call, zeros for samples that it did not have."""
        return pad(state, (0, 0, 0, self.batch - len(state)))

    def put(
        self, into: Float[Tensor, "T B M"], number: int, values: Float[Tensor, "K b M"]
    ) -> None:
        """Write what belongs to the steps of one call."""
        starts, ends = self.starts[number], self.ends[number]
        if self.even:
            into[int(starts[0]) : int(ends[0])] = values
            return
        steps = torch.arange(len(values), device=starts.device).unsqueeze(1)
        step, sample = torch.nonzero(steps < ends - starts, as_tuple=True)
        into[starts[sample] + step, sample] = values[step, sample]

    def taken(self, values: Float[Tensor, "T B M"], number: int, like: Tensor) -> Tensor:
        """What belongs to the steps of one call, zeros after the end of a sample."""
        starts, ends = self.starts[number], self.ends[number]
        found = torch.zeros_like(like)
        steps = torch.arange(len(like), device=starts.device).unsqueeze(1)
        step, sample = torch.nonzero(steps < ends - starts, as_tuple=True)
        found[step, sample] = values[starts[sample] + step, sample]
        return found

    def joined(self, parts: list[Float[Tensor, "_ _ M"]]) -> Float[Tensor, "T B M"]:
        """What belongs to the steps of all calls."""
        if self.even:
            return torch.cat(parts)
        whole = parts[0].new_zeros(self.steps, self.batch, parts[0].shape[2])
        for number, part in enumerate(parts):
            self.put(whole, number, part)
        return whole

    def _borders(self, chain: list[Span]) -> dict[int, Border]:
        """The borders before the first steps of the calls."""
        size, borders = self.initial.shape[1], dict[int, Border]()
        held = 2 if self.held else 1
        for number, span in enumerate(chain):
            reads = span.reads
            if number == 0 or (reads is None and not self.held):
                continue
            batch, starts = span.call.batch, self.starts[number]
            own = torch.arange(batch * size, device=starts.device).view(batch, size)
            if reads is None:
                reads = (Read(False, own, torch.ones_like(own, dtype=torch.float64)),)
            state = self.padded(span.call.state(span.call.given).repeat(1, held))
            found = []
            for read in reads:
                sample, unit = read.source // size, read.source % size
                source = sample * held * size + unit + (size if read.entered else 0)
                factor = read.factor.to(state.dtype).repeat(1, held)
                found.append(
                    (
                        self.padded(factor),
                        pad(source.repeat(1, held), (0, 0, 0, self.batch - batch)),
                    )
                )
            for k in sorted(set(starts.tolist())):
                here = torch.zeros(self.batch, dtype=torch.bool, device=starts.device)
                here[:batch] = starts == k
                before = borders.get(k, _handed_on(state))
                borders[k] = _replaced(before, here, state, found)
        return borders

    def unroll(self, cell: AbstractCell, reads: Tensor, part: slice = slice(None)) -> Unrolled:
        """Run a cell that holds a part of the state."""
        size = self.initial.shape[1]
        start, stop, _ = part.indices(size)
        borders = {k: _sliced(border, size, start, stop) for k, border in self.borders.items()}
        return unroll(cell, reads, self.initial[:, part], borders=borders, lengths=self.lengths)

    def turned(self, values: Float[Tensor, "T B M"]) -> Float[Tensor, "T B M"]:
        """Each call and sample from its end to its start: the time of a reverse direction."""
        order = torch.arange(len(values), device=values.device).unsqueeze(1)
        order = order.repeat(1, values.shape[1])
        for starts, ends in zip(self.starts, self.ends, strict=True):
            own = order[:, : len(starts)]
            inside = (own >= starts) & (own < ends)
            steps = torch.arange(len(values), device=values.device).unsqueeze(1)
            order[:, : len(starts)] = torch.where(inside, starts + ends - 1 - steps, own)
        return values.gather(0, order.unsqueeze(-1).expand_as(values))

    def check_replayed(self, output: Float[Tensor, "T B M"]) -> None:
        """Refuse masks that are not those of the pass that ran.

        Raises:
            RecordingError: with what to do.
        """
        for number, call in enumerate(self.calls):
            if not self.masks or call.output._version != call.version:
                continue
            ran = call.outputs(call.output)
            ours = self.taken(output, number, ran)
            tolerance = max(REPLAYED, 32 * torch.finfo(call.output.dtype).eps)
            known = ours.isfinite() & ran.isfinite()  # a NaN has its own message, and says nothing
            if not bool((ours - ran)[known].norm() <= tolerance * ran[known].norm()):
                raise RecordingError(
                    f"its dropout={self.form.dropout} between layers drew masks that cannot be "
                    "drawn again (cuDNN keeps them to itself); call model.eval(), or set "
                    "dropout=0, for the recorded pass"
                )


def _handed_on(like: Float[Tensor, "B S"]) -> Border:
    """A border that hands on everything as it is."""
    return Border.detached(torch.zeros_like(like), torch.ones_like(like, dtype=torch.bool))


def _mixes(span: Span) -> bool:
    """Whether a sample reads the state of another one."""
    size = span.call.state_size
    sample = torch.arange(span.call.batch, device=span.by_state.device).unsqueeze(1)
    return any(
        bool(((read.source // size != sample) & (read.factor != 0)).any())
        for read in span.reads or ()
    )


def _replaced(
    border: Border,
    here: Bool[Tensor, "B"],
    state: Float[Tensor, "B S"],
    reads: list[tuple[Tensor, Tensor]],
) -> Border:
    """A border with what some samples read put in the place of what they read before."""
    mask = here.unsqueeze(1)
    own = torch.arange(state.numel(), device=state.device).view_as(state)
    found = []
    for number in range(max(len(reads), len(border.reads))):
        old = border.reads[number] if number < len(border.reads) else Entry(torch.zeros_like(state))
        factor, source = reads[number] if number < len(reads) else (torch.zeros_like(state), own)
        before = own if old.source is None else old.source
        source = torch.where(mask, source, before)
        factor = torch.where(mask, factor, old.factor)
        plain = bool(((source == own) | (factor == 0)).all())
        found.append(Entry(factor, None if plain else source))
    return Border(torch.where(mask, state, border.state), border.carried & ~mask, tuple(found))


def _sliced(border: Border, size: int, start: int, stop: int) -> Border:
    """That of a part of the state, whose entries read the same part alone, without what is held."""
    width, wide = stop - start, border.state.shape[1]
    if width == wide:
        return border
    reads = []
    for read in border.reads:
        factor, source = read.factor[:, start:stop], read.source
        if source is not None:
            sample, unit = source[:, start:stop] // wide, source[:, start:stop] % wide
            inside = (unit >= start) & (unit < stop)
            factor = factor * inside
            source = torch.where(inside, sample * width + unit - start, 0)
        reads.append(Entry(factor, source))
    return Border(border.state[:, start:stop], border.carried[:, start:stop], tuple(reads))


def _one_way(sequence: _Sequence) -> Reading:
    """A single cell or a stack."""
    cells, masks = sequence.cells, sequence.masks
    cell = cells[0] if sequence.form.stepped else Stacked(cells, masked=bool(masks))
    reads = torch.cat((sequence.x, *masks), -1) if masks else sequence.x
    if masks:
        sequence.check_replayed(sequence.unroll(cell, reads).output)
    direct = sequence.given_to_state
    direct[..., cell.output] += sequence.given_to_output
    return _reading(sequence, cell, reads, direct)


def _reading(
    sequence: _Sequence, cell: AbstractCell, reads: Tensor, direct: Float[Tensor, "T B S"]
) -> Reading:
    """The reading of a whole sequence, with what is held beside the state."""
    initial, x = sequence.initial, sequence.x
    if sequence.given_to_entered is not None:
        cell, initial = Carrying(cell), torch.cat((initial, initial), -1)
        direct = torch.cat((direct, sequence.given_to_entered), -1)
    return Reading(cell, x, reads, initial, direct, sequence.borders, sequence.lengths)


def _both_ways(sequence: _Sequence) -> Reading:
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
        x = _as_output(sequence, pair, unrolled.output)
        if number < len(masks):
            x = x * masks[number]
    sequence.check_replayed(x)

    direct = sequence.given_to_state
    for number, (pair, part, unrolled) in reversed(list(enumerate(pairs))):
        of_pair = direct[..., part]
        of_pair[..., pair.output] += _as_output(sequence, pair, given)
        if number:
            unrolled = with_factors(unrolled, of_pair)
            by_reads = input_adjoints(unrolled, Entries.of(of_pair, max_rows=1))
            forward, reverse = by_reads.chunk(2, -1)
            given = forward + sequence.turned(reverse)
            if masks:
                given = given * masks[number - 1]
    reads = torch.cat([unrolled.x for _, _, unrolled in pairs], -1)
    cell = SideBySide(sequence.cells, sequence.form.suffixes)
    return _reading(sequence, cell, reads, direct)


def _as_output(
    sequence: _Sequence, pair: SideBySide, values: Float[Tensor, "T B M"]
) -> Float[Tensor, "T B M"]:
    """From the own times of both directions to the time of the output, or back."""
    forward, reverse = torch.split(values, [cell.output_size for cell in pair.layers], -1)
    return torch.cat((forward, sequence.turned(reverse)), -1)
