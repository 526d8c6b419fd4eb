"""Calls of a layer that follow each other as one stretch of time: where the steps of each lie, what
it was given there, what the loss gives there, and the boundaries between them.

torch draws the masks of a dropout inside its kernel and keeps them to itself. On a CPU the same
draws can be repeated from the state of the random generator before the call; whether they are the
same is seen from the layer's output.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from retrograde.cells import AbstractCell
from retrograde.declarations.reading import OF_PIECE, OUTPUT
from retrograde.engine import Boundary, Read, Unrolled, unroll
from retrograde.errors import RecordingError
from retrograde.recording.agreement import check_agreement, moved
from retrograde.recording.calls import Call, data
from retrograde.recording.reads import StateRead
from retrograde.recording.segment import Segment

REPLAYED = 1e-2
"""Masks are those of the pass if the output differs from the recorded one by no more than this,
relative to its size. With other masks it differs by about 1. In low precision 32 eps are
allowed."""


class Timeline:
    """The tensors of calls that follow each other, time first, one call after the other.

    Where samples end at steps of their own, each goes on from its own last step. Calls of fewer
    samples leave the others as they are. `samples` picks some of a single call in which all have
    the same number of steps; None is all of them.
    """

    def __init__(
        self,
        segments: list[Segment],
        cells: Sequence[AbstractCell],
        masked: bool,
        held: bool,
        samples: Int[Tensor, "B"] | None = None,
    ):
        first = segments[0].call
        self.form, self.cells = first.form, tuple(cells)
        self.calls = [segment.call for segment in segments]
        self.held = held
        self.batch = max(call.batch for call in self.calls)
        some: Any = slice(None) if samples is None else samples
        self._some = some
        self._place(segments)
        self.x = self.joined([call.sequence(call.x)[0][:, some] for call in self.calls])
        self.initial = self.padded(first.state(first.given)[some])
        drawn = [_masks_of(call) for call in self.calls] if masked else []
        self.masks = [self.joined(list(of_layer)) for of_layer in zip(*drawn, strict=True)]
        width = sum(cell.output_size for cell in first.top)
        self.given_to_state = self.x.new_zeros(*self.x.shape[:2], self.initial.shape[1])
        self.given_to_entered = torch.zeros_like(self.given_to_state) if held else None
        self.given_to_output = self.x.new_zeros(*self.x.shape[:2], width)
        for number, segment in enumerate(segments):
            for name, gradient in segment.by_output.items():
                into = self.given_to_output
                if name != OUTPUT:
                    into = self.given_to_state[
                        ..., self.cells[0].slots[name.removeprefix(OF_PIECE)]
                    ]
                self.put(into, number, segment.call.given_to_outputs(gradient)[:, some])
            ends = self.ends[number]
            (there,) = torch.nonzero(ends > 0, as_tuple=True)  # others have had no step yet
            last = ends[there] - 1, there
            self.given_to_state[last] += segment.by_state[some][there]
            if self.given_to_entered is not None:
                self.given_to_entered[last] = segment.by_entered[some][there]
        self.boundaries = self._boundaries(segments)

    def _place(self, segments: list[Segment]) -> None:
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
        own = sorted(batches, reverse=True) == batches and not any(map(_mixes, segments))
        self.steps = int(last.max())
        ended = own and bool((last < self.steps).any())
        self.lengths = last if ended else None
        self.even = not ragged and len(set(batches)) == 1
        self.starts, self.ends = ([at[self._some] for at in of] for of in (self.starts, self.ends))
        self.batch = max(map(len, self.starts))

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

    def inside(self, values: Float[Tensor, "K b M"], number: int) -> Float[Tensor, "K b M"]:
        """Values of the steps of one call, zeros after the end of a sample."""
        steps = torch.arange(len(values), device=values.device).unsqueeze(1)
        there = steps < self.ends[number] - self.starts[number]
        return torch.where(there.unsqueeze(-1), values, 0)

    def joined(self, parts: list[Float[Tensor, "_ _ M"]]) -> Float[Tensor, "T B M"]:
        """What belongs to the steps of all calls."""
        if self.even:
            return torch.cat(parts)
        whole = parts[0].new_zeros(self.steps, self.batch, parts[0].shape[2])
        for number, part in enumerate(parts):
            self.put(whole, number, part)
        return whole

    def _boundaries(self, segments: list[Segment]) -> dict[int, Boundary]:
        """The boundaries before the first steps of the calls."""
        size, boundaries = self.initial.shape[1], dict[int, Boundary]()
        held = 2 if self.held else 1
        for number, segment in enumerate(segments):
            reads = segment.reads
            if number == 0 or (reads is None and not self.held):
                continue
            batch, starts = segment.call.batch, self.starts[number]
            own = torch.arange(batch * size, device=starts.device).view(batch, size)
            if reads is None:
                reads = (StateRead(False, own, torch.ones_like(own, dtype=torch.float64)),)
            state = self.padded(segment.call.state(segment.call.given).repeat(1, held))
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
                before = boundaries.get(k, unchanged(state))
                boundaries[k] = _replaced(before, here, state, found)
        return boundaries

    def unroll(self, cell: AbstractCell, reads: Tensor, part: slice = slice(None)) -> Unrolled:
        """Run a cell that holds a part of the state."""
        size = self.initial.shape[1]
        start, stop, _ = part.indices(size)
        boundaries = {
            k: _sliced(boundary, size, start, stop) for k, boundary in self.boundaries.items()
        }
        return unroll(
            cell, reads, self.initial[:, part], boundaries=boundaries, lengths=self.lengths
        )

    def turned(self, values: Float[Tensor, "T B M"]) -> Float[Tensor, "T B M"]:
        """Each call and sample from its end to its start: the time of a reverse direction."""
        if self.even:
            calls = zip(self.starts, self.ends, strict=True)
            return torch.cat([values[int(a[0]) : int(b[0])].flip(0) for a, b in calls])
        order = torch.arange(len(values), device=values.device).unsqueeze(1)
        order = order.repeat(1, values.shape[1])
        for starts, ends in zip(self.starts, self.ends, strict=True):
            own = order[:, : len(starts)]
            inside = (own >= starts) & (own < ends)
            steps = torch.arange(len(values), device=values.device).unsqueeze(1)
            order[:, : len(starts)] = torch.where(inside, starts + ends - 1 - steps, own)
        return values.gather(0, order.unsqueeze(-1).expand_as(values))

    def check_whole(self, output: Float[Tensor, "T B M"]) -> None:
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
                    "drawn again (cuDNN does not expose them); call model.eval(), or set "
                    "dropout=0, for the recorded pass"
                )

    def check_declared(self, cell: AbstractCell) -> None:
        """Refuse a declared recurrence that does not give what its module gave.

        Raises:
            RecordingError: with where they part, and by how much.
        """
        ours = self.unroll(cell, self.x)
        rounding = max(call.rounding for call in self.calls)
        disturbed = self.unroll(moved(cell, rounding), self.x)
        for number, call in enumerate(self.calls):
            if OUTPUT in call.sequences and call.output._version == call.version:
                ran = call.outputs(call.output)[:, self._some]
                one, other = (self.taken(each.output, number, ran) for each in (ours, disturbed))
                inside = self.inside(ran, number)
                check_agreement("its outputs", inside, one, other, rounding, drew=call.drew)
            last = self.ends[number], torch.arange(len(self.ends[number]), device=self.x.device)
            one, other = (each.states[last].unsqueeze(0) for each in (ours, disturbed))
            ones = {name: torch.ones_like(part) for name, part in call.last.items()}
            seen, ended = (call.state(parts)[self._some] for parts in (ones, call.last))
            ran = torch.where(seen > 0, ended, one)
            step = int(last[0].max()) - 1
            check_agreement("its last states", ran, one, other, rounding, step, call.drew)


def unchanged(like: Float[Tensor, "B S"]) -> Boundary:
    """A boundary that hands on everything as it is."""
    return Boundary.detached(torch.zeros_like(like), torch.ones_like(like, dtype=torch.bool))


def _mixes(segment: Segment) -> bool:
    """Whether a sample reads the state of another one."""
    size = segment.call.state_size
    sample = torch.arange(segment.call.batch, device=segment.by_state.device).unsqueeze(1)
    return any(
        bool(((read.source // size != sample) & (read.factor != 0)).any())
        for read in segment.reads or ()
    )


def _replaced(
    boundary: Boundary,
    here: Bool[Tensor, "B"],
    state: Float[Tensor, "B S"],
    reads: list[tuple[Tensor, Tensor]],
) -> Boundary:
    """A boundary with what some samples read put in the place of what they read before."""
    mask = here.unsqueeze(1)
    own = torch.arange(state.numel(), device=state.device).view_as(state)
    found = []
    for number in range(max(len(reads), len(boundary.reads))):
        old = (
            boundary.reads[number]
            if number < len(boundary.reads)
            else Read(torch.zeros_like(state))
        )
        factor, source = reads[number] if number < len(reads) else (torch.zeros_like(state), own)
        before = own if old.source is None else old.source
        source = torch.where(mask, source, before)
        factor = torch.where(mask, factor, old.factor)
        plain = bool(((source == own) | (factor == 0)).all())
        found.append(Read(factor, None if plain else source))
    return Boundary(
        torch.where(mask, state, boundary.state), boundary.carried & ~mask, tuple(found)
    )


def _sliced(boundary: Boundary, size: int, start: int, stop: int) -> Boundary:
    """That of a part of the state, whose entries read the same part alone, without what is held."""
    width, wide = stop - start, boundary.state.shape[1]
    if width == wide:
        return boundary
    reads = []
    for read in boundary.reads:
        factor, source = read.factor[:, start:stop], read.source
        if source is not None:
            sample, unit = source[:, start:stop] // wide, source[:, start:stop] % wide
            inside = (unit >= start) & (unit < stop)
            factor = factor * inside
            source = torch.where(inside, sample * width + unit - start, 0)
        reads.append(Read(factor, source))
    return Boundary(boundary.state[:, start:stop], boundary.carried[:, start:stop], tuple(reads))


def _masks_of(call: Call) -> list[Float[Tensor, "T B W"]]:
    """What the outputs of each layer but the last were multiplied by: ones without a dropout."""
    steps = (
        call.sequence(call.x)[0].shape[:2] if isinstance(call.x, Tensor) else data(call.x).shape[:1]
    )
    width = call.form.directions * call.cells[0].output_size
    device = call.output.device
    ones = torch.ones(*steps, width, dtype=call.output.dtype, device=device)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if call.random is not None and on_gpu:
            torch.cuda.set_rng_state(call.random, device)
        elif call.random is not None:
            torch.set_rng_state(call.random)
        drawn = [torch.dropout(ones, call.form.dropout, True) for _ in range(call.form.layers - 1)]
    if isinstance(call.x, Tensor):
        return [mask.to(call.dtype) for mask in drawn]
    return [call.outputs(mask) for mask in drawn]
