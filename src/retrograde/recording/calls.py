"""What is kept of a call of a recurrent layer; it outlives the graph.

A `Call` holds copies of what went in and came out, and its `StateOrigin`: the call before, and what
its state reads of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any
from weakref import ReferenceType

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from retrograde.cells import AbstractCell
from retrograde.declarations.reading import OF_PIECE, OUTPUT, CallTensors
from retrograde.recording.entry_maps import Term
from retrograde.recording.form import Form
from retrograde.recording.weights import Weights

WeightKey = tuple[str, str, int]
"""A tensor that a layer uses as a weight: the layer, the weight, and a number of its own."""

ReadTerms = tuple[tuple[bool, str, tuple[int, ...], Term], ...]
"""What a tensor reads of a call: the name of what is read (a result, or if True stands before it a
part of the state that entered the call), its shape, the entries and factors, all flat."""


@dataclass(frozen=True, eq=False)
class Intermediate:
    """A tensor between two calls, and what it reads of the first of them.

    Attributes:
        before: that call.
        terms: what it reads of that call.
    """

    before: "Call"
    terms: ReadTerms

    @property
    def later(self) -> bool:
        """Whether it reads what the call returned, and not only what had entered it."""
        return any(not entered for entered, *_ in self.terms)

    def pull_back(self, gradient: Tensor) -> dict[tuple[bool, str], Tensor]:
        """The gradient of the tensor as gradients of what it reads."""
        found: dict[tuple[bool, str], Tensor] = {}
        for entered, name, shape, term in self.terms:
            part = gradient.flatten() * term.factor.to(gradient.dtype)
            if term.source is not None:
                empty = part.new_zeros(prod(shape))
                part = empty.index_add_(0, term.source, part)
            part = part.view(shape)
            key = (entered, name)
            found[key] = found[key] + part if key in found else part
        return found


@dataclass(frozen=True, eq=False)
class StateOrigin:
    """Where the state came from that a call was given.

    Attributes:
        returned_by: the call that returned it, for as long as that is kept.
        terms: what its parts read of that call, those in `same` left out; nothing where they were
            detached or replaced.
        letters: the parts of the state that read something.
        results: the results of `before` that are read.
        same: the letters whose very result was passed on, without any operation.
        altered: the letters for which another tensor was passed on, computed from results.
        between: the tensors between the two calls, each with the letter of the part as which it
            was given, or "" if it was not given itself.
        opaque: the state was also computed from earlier ones in a way that is not followed.
        plain: each of the tensors between is given once, so that gradients can be compared.
        as_input: the part of the state that is also the input, where it is the very same tensor.
    """

    returned_by: "ReferenceType[Call]"
    terms: Mapping[str, ReadTerms] = field(default_factory=dict)
    letters: frozenset[str] = frozenset()
    results: frozenset[str] = frozenset()
    same: frozenset[str] = frozenset()
    altered: frozenset[str] = frozenset()
    between: Mapping[Intermediate, str] = field(default_factory=dict)
    opaque: bool = False
    plain: bool = True
    as_input: Intermediate | None = None

    @property
    def before(self) -> "Call | None":
        """The call that returned the state; None once it was forgotten."""
        return self.returned_by()


@dataclass(eq=False)
class Call:
    """One call of a layer.

    Attributes:
        layer: the layer's name.
        form: how the layer lays things out.
        weights: its weights, copied.
        keys: which tensors they were copied from, by the weights' names.
        x: the input.
        given: the parts of the initial state by letter; empty if none was given.
        last: the parts of the last state by letter.
        output: the output itself, not copied, and its version then.
        random: the state of the random generator before the call, if masks were drawn in it.
        views: of those results whose gradient arrives at the tensor that they are a view of, the
            shape, strides and offset in it.
        rerun: it ran inside a backward pass, as a checkpoint runs it, from a state that gets a
            gradient.
        origin: where its state came from, if from another call of the layer.
        tails: tensors computed from its results, and from the state that entered it, that the loss
            reads and no later call.
        by_hand: a backward pass started at its last state with a given gradient, where the next
            call began with that state as a leaf.
        branches: its state came from a call whose state another one continues.
        fed_back: its input was computed from results of earlier calls of the layer.
        ragged: samples have steps of their own, in it or in a call before.
        passed_to: other layers whose state was computed from this call's results.
        rounding: the relative rounding error of the arithmetic it ran in.
        steps: the number of steps of each sample, where the call was told.
        sequences: the names of its results that hold every step; none for a single step.
        drew: random numbers were drawn in it, which a declared step does not repeat.
        places: of a call that skips steps, which of its steps each output is that of, or -1.
        passes_before: how many backward passes had ended when it was made.
        was_reached: a backward pass went through it.
    """

    layer: str
    form: Form
    weights: Weights
    keys: Mapping[str, WeightKey]
    x: Tensor | PackedSequence
    given: dict[str, Tensor]
    last: Mapping[str, Tensor]
    output: Tensor
    version: int
    random: Tensor | None
    views: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)
    rerun: bool = False
    origin: StateOrigin | None = None
    tails: tuple[Intermediate, ...] = ()
    by_hand: bool = False
    branches: bool = False
    fed_back: bool = False
    ragged: bool = False
    passed_to: set[str] = field(default_factory=set)
    rounding: float = 0.0
    steps: Tensor | None = None
    sequences: tuple[str, ...] = ()
    drew: bool = False
    places: Tensor | None = None
    passes_before: int = 0
    was_reached: bool = False

    @staticmethod
    def of(
        layer: str,
        form: Form,
        weights: Weights,
        keys: Mapping[str, WeightKey],
        tensors: CallTensors,
        random: Tensor | None,
    ) -> "Call":
        """Keep what the layer was called with and what it returned; `given` is not copied yet."""
        x, results = tensors.x, tensors.results
        output = results[OUTPUT] if OUTPUT in results else next(iter(results.values()))
        sequences = tuple(name for name in results if is_output(name))
        with torch.no_grad():
            copied = data(x).clone()
            last = {name: part.clone() for name, part in results.items() if name not in sequences}
        call = Call(
            layer,
            form,
            weights,
            keys,
            x._replace(data=copied) if isinstance(x, PackedSequence) else copied,
            dict(tensors.given),
            last,
            output.detach(),
            output._version,
            random,
            steps=tensors.lengths,
            sequences=sequences,
            places=tensors.places,
        )
        if isinstance(x, PackedSequence) or tensors.lengths is not None:
            call.ragged = call.sequence(call.x)[1] is not None
        return call

    @property
    def cells(self) -> tuple[AbstractCell, ...]:
        """The cell of every layer and direction, in torch's order."""
        return self.weights.cells

    @cached_property
    def dtype(self) -> torch.dtype:
        """The data type of the analysis."""
        return next(iter(self.weights.copies.values())).dtype

    @cached_property
    def batch(self) -> int:
        """B, the number of samples."""
        return self.sequence(self.x)[0].shape[1]

    def sequence(self, values: Tensor | PackedSequence) -> tuple[Tensor, Tensor | None]:
        """A sequence as [T, B, *], and the lengths of its samples if they differ."""
        ordered, lengths = self._time_first(values)
        return ordered.to(self.dtype), lengths

    def _time_first(self, values: Tensor | PackedSequence) -> tuple[Tensor, Tensor | None]:
        if isinstance(values, PackedSequence):
            padded, lengths = pad_packed_sequence(values)
            short = bool((lengths < len(padded)).any())
            return padded, lengths.to(padded.device) if short else None
        if self.steps is not None:
            ordered = values.transpose(0, 1) if self.form.batch_first else values
            lengths = self.steps.to(values.device, torch.int64).clamp(0, len(ordered))
            return ordered, lengths if bool((lengths < len(ordered)).any()) else None
        if self.form.stepped:
            return (values if values.ndim == 2 else values.unsqueeze(0)).unsqueeze(0), None
        if values.ndim == 2:  # torch's unbatched form
            return values.unsqueeze(1), None
        return (values.transpose(0, 1) if self.form.batch_first else values), None

    def as_returned(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient that arrived for a result, in the layout of the result."""
        if name not in self.views:
            return gradient
        return gradient.contiguous().as_strided(*self.views[name])

    def outputs(self, values: Tensor) -> Tensor:
        """What the layer returned for every step as [T, B, *]; NaN where it returned none."""
        return self._outputs(values).to(self.dtype)

    def given_to_outputs(self, gradient: Tensor) -> Tensor:
        """A gradient of what the layer returned as one of its output at every step, [T, B, *]."""
        if self.places is None:
            return self.outputs(gradient)
        gradient = self._returned(gradient).to(self.dtype)
        steps = len(self.sequence(self.x)[0])
        found = gradient.new_zeros(steps + 1, *gradient.shape[1:])
        places = self.places.T.clone()
        places[places < 0] = steps
        found.scatter_add_(0, places.unsqueeze(-1).expand_as(gradient), gradient)
        return found[:-1]

    def _returned(self, values: Tensor) -> Tensor:
        """What the layer returned as [T', B, *]: of every step, or of the last one."""
        if values.ndim == 2 and self.places is not None:
            return values.unsqueeze(0)
        packed = isinstance(self.x, PackedSequence)
        return self._time_first(self.x._replace(data=values) if packed else values)[0]  # type: ignore[union-attr]

    def _outputs(self, values: Tensor) -> Tensor:
        returned = self._returned(values)
        if self.places is None:
            return returned
        nothing = torch.nan if returned.is_floating_point() else -1
        steps, places = len(self.sequence(self.x)[0]), self.places.T
        found = returned.new_full((steps, *returned.shape[1:]), nothing)
        for step in reversed(range(len(places))):  # of several outputs the first is the step's own
            (samples,) = torch.nonzero(places[step] >= 0, as_tuple=True)
            found[places[step, samples], samples] = returned[step, samples]
        return found

    def state(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The parts of a state as one vector [B, S], layer by layer; what is missing is 0."""
        return self.arranged(parts, self.dtype)

    def arranged(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The same in any data type."""
        batch, vectors = self.batch, []
        for number, cell in enumerate(self.cells):
            for letter, slot in cell.slots.items():
                width = slot.stop - slot.start
                if letter in parts:
                    part = self.form.of_layer(parts[letter].to(dtype), number, width)
                    vectors.append(part.expand(batch, width))
                else:
                    vectors.append(self.x.data.new_zeros(batch, width, dtype=dtype))
        return torch.cat(vectors, -1)

    def state_entries(self, name: str, shape: Sequence[int]) -> Int[Tensor, "n"]:
        """For every entry of a result or of a part of the state the entry of [B, S] that it is.

        Those of outputs before the last step, which no later call reads as a state, are -1.

        Args:
            name: "output", or the letter of a part of the state.
            shape: of the tensor whose gradient arrives.
        """
        if not self.form.stepped:
            return self._state_entries(name, shape)
        key = (name, tuple(shape), self.batch)
        if key not in self.weights.numbers:
            self.weights.numbers[key] = self._state_entries(name, shape)
        return self.weights.numbers[key]

    def _state_entries(self, name: str, shape: Sequence[int]) -> Int[Tensor, "n"]:
        device = self.output.device
        raw = torch.arange(prod(shape), device=device).view(*shape)
        if name in self.views:
            raw = self.as_returned(name, raw)
        numbers = torch.full((prod(shape),), -1, device=device)
        entries = torch.arange(self.batch * self.state_size, device=device).view(self.batch, -1)
        if not is_output(name):
            places = self.arranged({name: raw + 1}, torch.int64)  # 0 where it has no part
            numbers[places[places > 0] - 1] = entries[places > 0]
            return numbers
        steps, (_, lengths) = self._outputs(raw), self.sequence(self.x)
        last = torch.full((self.batch,), len(steps) - 1, device=device)
        last = last if lengths is None else lengths - 1
        start = self.state_size - sum(cell.state_size for cell in self.top)
        column = 0
        for direction, cell in enumerate(self.top):
            at = torch.zeros_like(last) if direction else last
            part = cell.output if name == OUTPUT else cell.slots[name.removeprefix(OF_PIECE)]
            of_cell = entries[:, start : start + cell.state_size][:, part]
            columns = slice(column, column + of_cell.shape[1])
            own = steps[at, torch.arange(self.batch, device=device)][:, columns]
            numbers[own[own >= 0]] = of_cell[own >= 0]
            start, column = start + cell.state_size, columns.stop
        return numbers

    @property
    def top(self) -> tuple[AbstractCell, ...]:
        """The cells of the uppermost layer, whose outputs are the layer's."""
        return self.cells[-self.form.directions :]

    @property
    def state_size(self) -> int:
        """S, the size of the state of all layers."""
        return sum(cell.state_size for cell in self.cells)


def is_output(name: str) -> bool:
    """Whether a result is that of every step."""
    return name == OUTPUT or name.startswith(OF_PIECE)


def data(sequence: Tensor | PackedSequence) -> Tensor:
    """The numbers of a sequence, packed or not."""
    return sequence.data if isinstance(sequence, PackedSequence) else sequence
