"""What is kept of one call of a recurrent layer: copies of what went in and came out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from retrograde.cells import AbstractCell
from retrograde.record.layers import Form, Weights

OUTPUT = "output"
"""The name of a layer's output among its results; those of the last state are its letters."""

LETTERS = ("h", "c", "i", "f", "o")
"""The parts of a state, in the order in which layers take and return them."""


WeightKey = tuple[str, str, int]
"""A tensor that a layer uses as a weight: the layer, the weight, and a number of its own."""


@dataclass(frozen=True, eq=False)
class Link:
    """Where the state came from that a call was given.

    Attributes:
        before: the call that returned it.
        carried: the entries that were handed on unchanged, shape [B, S]; the others are new.
        sources: for each letter that was not detached, the results of `before` it was made from.
        same: the letters for which the very tensor was passed on, without any operation.
    """

    before: "Call"
    carried: Tensor
    sources: Mapping[str, frozenset[str]]
    same: frozenset[str]

    @property
    def altered(self) -> frozenset[str]:
        """The letters for which another tensor was passed on, computed from the results."""
        return frozenset(self.sources) - self.same

    @property
    def results(self) -> frozenset[str]:
        """The results of `before` through which a gradient comes back from this call."""
        return frozenset().union(*self.sources.values())


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
        link: where its state came from, if from another call of the layer.
        passed_to: other layers whose state was computed from this call's results.
        rounding: the relative rounding error of the arithmetic it ran in.
    """

    layer: str
    form: Form
    weights: Weights
    keys: Mapping[str, WeightKey]
    x: Tensor | PackedSequence
    given: Mapping[str, Tensor]
    last: Mapping[str, Tensor]
    output: Tensor
    version: int
    random: Tensor | None
    views: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)
    link: Link | None = None
    passed_to: set[str] = field(default_factory=set)
    rounding: float = 0.0

    @staticmethod
    def of(
        layer: str,
        form: Form,
        weights: Weights,
        keys: Mapping[str, WeightKey],
        arguments: Mapping[str, Any],
        results: Mapping[str, Tensor],
        random: Tensor | None,
    ) -> "Call":
        """Keep what the layer was called with and what it returned."""
        x, output = arguments["input"], results["h" if form.stepped else OUTPUT]
        copied = data(x).detach().clone()
        return Call(
            layer,
            form,
            weights,
            keys,
            x._replace(data=copied) if isinstance(x, PackedSequence) else copied,
            {n: part.detach().clone() for n, part in parts_of(arguments.get("hx")).items()},
            {n: part.detach().clone() for n, part in results.items() if n != OUTPUT},
            output.detach(),
            output._version,
            random,
        )

    @property
    def cells(self) -> tuple[AbstractCell, ...]:
        """The cell of every layer and direction, in torch's order."""
        return self.weights.cells

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the analysis."""
        return next(iter(self.weights.copies.values())).dtype

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return self.sequence(self.x)[0].shape[1]

    def sequence(self, values: Tensor | PackedSequence) -> tuple[Tensor, Tensor | None]:
        """A sequence as [T, B, *], and the lengths of its samples if they differ."""
        if isinstance(values, PackedSequence):
            padded, lengths = pad_packed_sequence(values)
            short = bool((lengths < len(padded)).any())
            return padded.to(self.dtype), lengths.to(padded.device) if short else None
        values = values.to(self.dtype)
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
        """What the layer returned for every step, or a gradient of it, as [T, B, *]."""
        packed = isinstance(self.x, PackedSequence)
        return self.sequence(self.x._replace(data=values) if packed else values)[0]  # type: ignore[union-attr]

    def state(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The parts of a state as one vector [B, S], layer by layer; what is missing is 0."""
        batch, vectors = self.batch, []
        for number, cell in enumerate(self.cells):
            for letter, slot in cell.slots.items():
                width = slot.stop - slot.start
                if letter in parts:
                    part = parts[letter].to(self.dtype)
                    part = part if self.form.stepped else part[number]
                    vectors.append(part.expand(batch, width))
                else:
                    vectors.append(self.x.data.new_zeros(batch, width, dtype=self.dtype))
        return torch.cat(vectors, -1)


def results_of(form: Form, returned: Any) -> dict[str, Tensor]:
    """What a layer returned, by name: "output" and the letters of its last state."""
    if form.stepped:
        return parts_of(returned)
    return {OUTPUT: data(returned[0]), **parts_of(returned[1])}


def parts_of(state: Any) -> dict[str, Tensor]:
    """The parts of a state as layers take and return it, by letter."""
    parts = () if state is None else (state,) if isinstance(state, Tensor) else state
    return dict(zip(LETTERS, parts, strict=False))


def data(sequence: Tensor | PackedSequence) -> Tensor:
    """The numbers of a sequence, packed or not."""
    return sequence.data if isinstance(sequence, PackedSequence) else sequence
