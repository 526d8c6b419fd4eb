"""What a cell reads at each step, and what the loss gives to its state there.

A stack reads x, and the masks of a dropout between its layers. A layer that reads both ways is two
cells side by side, each with its own time; in a stack of such layers each reads the outputs of both
below over the whole sequence, which are computed first, and what it hands down counts as given by
the loss to the layer below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from retrograde.cells import AbstractCell, SideBySide, Stacked
from retrograde.engine import Border, Entries, Unrolled, input_adjoints, unroll, with_factors
from retrograde.errors import RecordingError
from retrograde.record.chains import Span
from retrograde.record.masks import masks_of

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
            k: Border(
                torch.cat([r._border(k).state for r in readings]),
                torch.cat([r._border(k).carried for r in readings]),
            )
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

    def _border(self, k: int) -> Border:
        if k in self.borders:
            return self.borders[k]
        return Border(
            torch.zeros_like(self.initial), torch.ones_like(self.initial, dtype=torch.bool)
        )


def read(chain: list[Span], masked: bool) -> Reading:
    """The reading of one sequence of calls; `masked` if a dropout acted in any call of the layer.

    Raises:
        RecordingError: if the masks of a dropout cannot be drawn again.
    """
    sequence = _Sequence(chain, masked)
    return _both_ways(sequence) if chain[0].call.form.directions == 2 else _one_way(sequence)


class _Sequence:
    """The tensors of calls that follow each other, time first, one call after the other."""

    def __init__(self, chain: list[Span], masked: bool):
        first = chain[0].call
        self.form, self.cells, self.calls = first.form, first.cells, [span.call for span in chain]
        parts = [call.sequence(call.x) for call in self.calls]
        self.x = torch.cat([x for x, _ in parts])
        self.lengths = parts[0][1]  # calls of samples that end earlier are not carried on
        self.initial = first.state(first.given)
        drawn = [masks_of(call) for call in self.calls] if masked else []
        self.masks = [torch.cat(of_layer) for of_layer in zip(*drawn, strict=True)]
        self.borders: dict[int, Border] = {}
        self.spans: list[tuple[int, int]] = []
        steps, batch = self.x.shape[:2]
        self.given_to_state = self.x.new_zeros(steps, batch, self.initial.shape[1])
        top = self.cells[-self.form.directions :]
        self.given_to_output = self.x.new_zeros(steps, batch, sum(cell.output_size for cell in top))
        for span, (x, _) in zip(chain, parts, strict=True):
            start = self.spans[-1][1] if self.spans else 0
            stop = start + len(x)
            self.spans.append((start, stop))
            if span.border is not None:
                self.borders[start] = span.border
            last = torch.full((batch,), stop - 1) if self.lengths is None else self.lengths - 1
            samples = torch.arange(batch, device=x.device)
            self.given_to_state[last.to(x.device), samples] = span.by_state
            if span.by_output is not None:
                self.given_to_output[start:stop] = span.call.outputs(span.by_output)

    def unroll(self, cell: AbstractCell, reads: Tensor, part: slice = slice(None)) -> Unrolled:
        """Run a cell that holds a part of the state."""
        borders = {
            k: Border(border.state[:, part], border.carried[:, part])
            for k, border in self.borders.items()
        }
        return unroll(cell, reads, self.initial[:, part], borders=borders, lengths=self.lengths)

    def turned(self, values: Float[Tensor, "T B M"]) -> Float[Tensor, "T B M"]:
        """Each call and sample from its end to its start: the time of a reverse direction."""
        order = torch.arange(len(values), device=values.device).unsqueeze(1)
        order = order.repeat(1, values.shape[1])
        for start, stop in self.spans:
            end = stop if self.lengths is None else self.lengths.to(values.device)
            steps = order[start:stop]
            order[start:stop] = torch.where(steps < end, start + end - 1 - steps, steps)
        return values.gather(0, order.unsqueeze(-1).expand_as(values))

    def check_replayed(self, output: Float[Tensor, "T B M"]) -> None:
        """Refuse masks that are not those of the pass that ran.

        Raises:
            RecordingError: with what to do.
        """
        for call, (start, stop) in zip(self.calls, self.spans, strict=True):
            if not self.masks or call.output._version != call.version:
                continue
            ran = call.outputs(call.output)
            ours = output[start:stop]
            if self.lengths is not None:
                steps = torch.arange(stop - start, device=ours.device).view(-1, 1, 1)
                ours = ours * (steps < self.lengths.to(ours.device).view(1, -1, 1))
            tolerance = max(REPLAYED, 32 * torch.finfo(call.output.dtype).eps)
            known = ours.isfinite() & ran.isfinite()  # a NaN has its own message, and says nothing
            if not bool((ours - ran)[known].norm() <= tolerance * ran[known].norm()):
                raise RecordingError(
                    f"its dropout={self.form.dropout} between layers drew masks that cannot be "
                    "drawn again (cuDNN keeps them to itself); call model.eval(), or set "
                    "dropout=0, for the recorded pass"
                )


def _one_way(sequence: _Sequence) -> Reading:
    """A single cell or a stack."""
    cells, masks = sequence.cells, sequence.masks
    cell = cells[0] if sequence.form.stepped else Stacked(cells, masked=bool(masks))
    reads = torch.cat((sequence.x, *masks), -1) if masks else sequence.x
    if masks:
        sequence.check_replayed(sequence.unroll(cell, reads).output)
    direct = sequence.given_to_state
    direct[..., cell.output] += sequence.given_to_output
    return Reading(
        cell, sequence.x, reads, sequence.initial, direct, sequence.borders, sequence.lengths
    )


def _both_ways(sequence: _Sequence) -> Reading:
    """Two cells for every layer, all side by side."""
    masks, x, given = sequence.masks, sequence.x, sequence.given_to_output
    pairs, start = [], 0
    for number in range(sequence.form.layers):
        pair = SideBySide(sequence.cells[2 * number : 2 * number + 2], ("", "_reverse"))
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
    return Reading(
        cell, sequence.x, reads, sequence.initial, direct, sequence.borders, sequence.lengths
    )


def _as_output(
    sequence: _Sequence, pair: SideBySide, values: Float[Tensor, "T B M"]
) -> Float[Tensor, "T B M"]:
    """From the own times of both directions to the time of the output, or back."""
    forward, reverse = torch.split(values, [cell.output_size for cell in pair.layers], -1)
    return torch.cat((forward, sequence.turned(reverse)), -1)
