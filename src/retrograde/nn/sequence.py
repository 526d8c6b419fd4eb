"""Cells through sequences in all of torch's layouts: what a layer of torch.nn does around them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from retrograde import _checks
from retrograde.cells import AbstractCell
from retrograde.cells.precision import no_autocast, under_autocast
from retrograde.errors import ArgumentError
from retrograde.nn.recurrence import Note
from retrograde.nn.through_cell import through_cell

State = Tensor | tuple[Tensor, ...]
Named = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Sequences:
    """The input of a layer, time first, and how it came.

    Attributes:
        x: [T, B, I].
        lengths: the steps of each sample, None if all run to the end.
        given: the input as it was given.
        batch_first: whether its first axis is the batch, if it has one.
    """

    x: Float[Tensor, "T B I"]
    lengths: Int[Tensor, "B"] | None
    given: Tensor | PackedSequence
    batch_first: bool

    @staticmethod
    def of(
        given: Tensor | PackedSequence, size: int, batch_first: bool, dtype: torch.dtype
    ) -> "Sequences":
        """Read an input [T, B, I], [B, T, I] if `batch_first`, [T, I], or packed.

        Raises:
            ArgumentError: for another shape or data type than that of the weights (which autocast
                converts to), and for an input without a step or a sample.
        """
        if isinstance(given, PackedSequence):
            x, lengths = pad_packed_sequence(given)
            shape, dims = list(given.data.shape), 3
        elif not isinstance(given, Tensor) or given.layout != torch.strided:
            raise ArgumentError(
                f"input must be a strided tensor, or be packed; got {_checks.shown(given)}"
            )
        else:
            x, lengths, shape, dims = given, None, list(given.shape), given.ndim
        if dims not in (2, 3) or shape[-1] != size:
            layout = f"[B, T, {size}]" if batch_first else f"[T, B, {size}]"
            raise ArgumentError(
                f"input must have shape {layout} or [T, {size}], or be packed; got {shape}"
            )
        if not x.numel():
            raise ArgumentError(f"input of shape {shape} has no step or no sample to run over")
        x = _typed("input", x, dtype)
        if lengths is None and dims == 2:
            x = x.unsqueeze(1)
        elif lengths is None and batch_first:
            x = x.transpose(0, 1)
        return Sequences(x, None if lengths is None else lengths.to(x.device), given, batch_first)

    @property
    def unbatched(self) -> bool:
        return isinstance(self.given, Tensor) and self.given.ndim == 2

    def initial(self, hx: State | None, layers: int, slots: dict[str, int]) -> list[Tensor]:
        """The parts of the initial state, [layers, B, size] each; zeros if none is given.

        Raises:
            ArgumentError: for other parts, shapes or data types than these.
        """
        shapes = [[layers, self.x.shape[1], size] for size in slots.values()]
        if hx is None:
            return [self.x.new_zeros(shape) for shape in shapes]
        given = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
        if not all(isinstance(part, Tensor) for part in given):
            raise ArgumentError(
                f"hx must be a tensor for each of {', '.join(slots)}; got {_checks.shown(hx)}"
            )
        if self.unbatched:
            given = tuple(part.unsqueeze(1) if part.ndim == 2 else part for part in given)
        if [list(part.shape) for part in given] != shapes:
            expected = ", ".join(f"{n}_0 {s}" for n, s in zip(slots, shapes, strict=True))
            arrived = ", ".join(str(list(part.shape)) for part in given)
            raise ArgumentError(f"hx must be {expected}; got {arrived}")
        return [_typed("hx", part, self.x.dtype) for part in given]

    def turned(self, values: Float[Tensor, "T B M"]) -> Float[Tensor, "T B M"]:
        """Each sample from its end to its start, the time of a reverse direction, or back."""
        if self.lengths is None:
            return values.flip(0)
        steps = torch.arange(len(values), device=values.device).unsqueeze(1)
        order = torch.where(steps < self.lengths, self.lengths - 1 - steps, steps)
        return values.gather(0, order.unsqueeze(-1).expand_as(values))

    def last(self, states: Float[Tensor, "T B M"]) -> Float[Tensor, "B M"]:
        """The state after the last step of each sample."""
        if self.lengths is None:
            return states[-1]
        return states[self.lengths - 1, torch.arange(states.shape[1], device=states.device)]

    def on_kernel(
        self,
        kernel: Callable[..., Any],
        initial: Sequence[Tensor],
        weights: list[Tensor],
        *options: Any,
    ) -> tuple[Tensor | PackedSequence, list[Tensor]]:
        """What torch's own function gives: outputs as the input is laid out, and the last state.

        In the data type of the weights, also under autocast.
        """
        with no_autocast(self.x.device):
            return self._on_kernel(kernel, initial, weights, *options)

    def _on_kernel(
        self,
        kernel: Callable[..., Any],
        initial: Sequence[Tensor],
        weights: list[Tensor],
        *options: Any,
    ) -> tuple[Tensor | PackedSequence, list[Tensor]]:
        if not isinstance(self.given, PackedSequence):
            hx = list(initial) if len(initial) > 1 else initial[0]
            output, *last = kernel(self.x, hx, weights, *options, False)
            return self.as_given(output), last
        there, back = self.given.sorted_indices, self.given.unsorted_indices
        parts = [part if there is None else part.index_select(1, there) for part in initial]
        hx = parts if len(parts) > 1 else parts[0]
        steps = self.given.data.to(self.x.dtype)
        data, *last = kernel(steps, self.given.batch_sizes, hx, weights, *options)
        last = [part if back is None else part.index_select(1, back) for part in last]
        return self.given._replace(data=data), last

    def dropped(self, values: Float[Tensor, "T B M"], probability: float) -> Tensor:
        """A dropout with torch's draws: in a packed sequence for the steps that there are."""
        if not isinstance(self.given, PackedSequence):
            return nn.functional.dropout(values, probability)
        packed = self.as_given(values)
        assert isinstance(packed, PackedSequence)
        data = nn.functional.dropout(packed.data, probability)
        return pad_packed_sequence(packed._replace(data=data))[0]

    def as_given(self, values: Float[Tensor, "T B M"]) -> Tensor | PackedSequence:
        """Values of every step, laid out as the input is."""
        if isinstance(self.given, PackedSequence):
            assert self.lengths is not None
            order, lengths = self.given.sorted_indices, self.lengths
            if order is not None:
                values, lengths = values.index_select(1, order), lengths[order]
            packed = nn.utils.rnn.pack_padded_sequence(values, lengths.cpu())
            return self.given._replace(data=packed.data)
        if self.unbatched:
            return values.squeeze(1)
        return values.transpose(0, 1) if self.batch_first else values

    def state(self, parts: Sequence[Tensor]) -> State:
        """The parts of the last state, [layers, B, size] each, as torch.nn returns them."""
        if self.unbatched:
            parts = [part.squeeze(1) for part in parts]
        return tuple(parts) if len(parts) > 1 else parts[0]


def _typed(name: str, given: Tensor, dtype: torch.dtype) -> Tensor:
    """What a layer is given, in the data type of its weights: autocast converts it.

    Raises:
        ArgumentError: for another data type outside autocast.
    """
    if under_autocast(given.device):
        return given.to(dtype)
    if given.dtype != dtype:
        raise ArgumentError(
            f"{name} must be {dtype}, as the weights are; got {given.dtype}. Convert it with "
            f"{name}.to({dtype}), or the model"
        )
    return given


def sizes_of(cell: AbstractCell) -> dict[str, int]:
    """The parts of a cell's state and their sizes."""
    return {name: slot.stop - slot.start for name, slot in cell.slots.items()}


def through(
    cells: Sequence[AbstractCell],
    sequences: Sequences,
    initial: Sequence[Tensor],
    *,
    directions: int,
    dropout: float,
    inside: bool = False,
    note: Note | None = None,
) -> tuple[Tensor, list[Tensor], list[Named]]:
    """Run layers one after the other, also under autocast in the data type of their weights.

    Args:
        cells: of every layer and direction, in torch's order.
        sequences: the input.
        initial: the parts of the initial state.
        directions: 2 if each layer reads both ways.
        dropout: the probability that acts between layers, 0 in eval mode.
        inside: whether activations are wanted.
        note: told what a clipping policy did in the backward pass.

    Returns:
        Outputs [T, B, directions * H], the parts of the last state, and activations by layer and
        direction.
    """
    with no_autocast(sequences.x.device):
        return _through(cells, sequences, initial, directions, dropout, inside, note)


def _through(
    cells: Sequence[AbstractCell],
    sequences: Sequences,
    initial: Sequence[Tensor],
    directions: int,
    dropout: float,
    inside: bool,
    note: Note | None,
) -> tuple[Tensor, list[Tensor], list[Named]]:
    x, last, activations = sequences.x, [list[Tensor]() for _ in initial], list[Named]()
    for start in range(0, len(cells), directions):
        outputs = []
        for number, cell in enumerate(cells[start : start + directions], start):
            back = number > start
            along = sequences.turned(x) if back else x
            first = [part[number] for part in initial]
            passed = through_cell(cell, along, first, note, inside)
            for part, (name, end) in zip(last, passed.last.items(), strict=True):
                whole = sequences.lengths is None
                part.append(end if whole else sequences.last(passed.states[name]))
            named = {"h": passed.output}
            if inside:
                named |= {**passed.states, **passed.activations}
            if back:
                named = {name: sequences.turned(value) for name, value in named.items()}
            outputs.append(named["h"])
            activations.append(named)
        x = torch.cat(outputs, -1)
        if dropout and start + directions < len(cells):
            x = sequences.dropped(x, dropout)
    return x, [torch.stack(part) for part in last], activations
