"""From adjoint rows to the gradients of the parameters, row by row, summed over steps.

The outer products of many steps are one matrix product, so rows of neighbouring steps are pulled
back together, as if the steps were samples of one step.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.cells.precision import no_autocast
from retrograde.cells.reverse_mode import CellAdjoint
from retrograde.compiled.sums import Sums
from retrograde.compiled.uses import Uses
from retrograde.engine.adjoint import AdjointSpan, SummedSpan
from retrograde.engine.scaling import NO_EXPONENT, Scaled, power_of_two
from retrograde.engine.unroll import Chunk

SUMMED = 2**21
"""Rows of several spans are pulled back together up to this many numbers, 8 MiB in float32."""

BAND = 64
"""Numbers further apart than 2^BAND are added only when all are there: what is nothing beside the
gradient of one parameter at another step may be all that there is of another parameter's."""


class ParameterSums:
    """For each of some rows the gradient of every parameter, summed over steps."""

    def __init__(self, parameters: Mapping[str, Tensor], rows: int):
        self._sums = {
            name: value.new_zeros(rows, *value.shape) for name, value in parameters.items()
        }
        like = next(iter(parameters.values()))
        self._exponent = like.new_full((rows,), NO_EXPONENT, dtype=torch.int64)
        self._least = self._exponent  # of all that was added
        self._empty = True
        self._apart: dict[str, Scaled] = {}

    def units(self, arriving: Int[Tensor, "M"]) -> Int[Tensor, "M"]:
        """The exponents of what is added next: those of the sums, raised to any that is larger.

        Sums on quite another scale are put aside first.
        """
        if self._empty:
            self._exponent, self._least, self._empty = arriving, arriving, False
            return arriving
        if far_apart(torch.stack((self._least, self._exponent, arriving), 1)):
            self._apart = self.result()
            self._sums = {name: torch.zeros_like(total) for name, total in self._sums.items()}
            self._exponent = self._least = torch.full_like(self._exponent, NO_EXPONENT)
        less, more = torch.minimum(self._least, arriving), torch.maximum(self._least, arriving)
        self._least = torch.where(less == NO_EXPONENT, more, less)
        top = torch.maximum(self._exponent, arriving)
        shift = torch.where(self._exponent == NO_EXPONENT, 0, self._exponent - top)
        if bool(shift.any()):
            for total in self._sums.values():
                total *= power_of_two(shift, total).view(-1, *[1] * (total.ndim - 1))
        self._exponent = top
        return top

    def add(self, pulled: CellAdjoint, rows: Int[Tensor, "R"] | None = None) -> None:
        """What a pull-back says of the parameters, its rows in `units` (plain numbers before).

        Args:
            pulled: the pull-back.
            rows: the numbers of its rows; None if it has all of them.
        """
        for formed in pulled.formed:
            for some, gradients in formed.blocks(SUMMED):
                for name, parts in gradients.items():
                    self._sums[name][some if rows is None else rows[some]] += parts
        for uses in pulled.uses:
            da, summed = uses.adjoint, None
            for name, first, operand in uses.operands:
                total = self._sums[name]
                total = total.mT if name in uses.columns else total
                if operand is None:  # two biases may be two rows of one parameter
                    total = total.flatten(1)
                total = total[:, first : first + da.shape[2]]
                if operand is None:  # two biases, one sum
                    part = summed = da.sum(1) if summed is None else summed
                elif rows is None:
                    total.baddbmm_(da.mT, operand.expand(len(da), -1, -1))
                    continue
                else:
                    with no_autocast(da.device):
                        part = torch.bmm(da.mT, operand.expand(len(da), -1, -1))
                if rows is None:
                    total += part
                else:
                    total.index_add_(0, rows, part)

    def result(self) -> dict[str, Scaled]:
        """The sums, by parameter."""
        exponent = torch.where(self._exponent == NO_EXPONENT, 0, self._exponent)
        sums = {name: Scaled(total, exponent) for name, total in self._sums.items()}
        if not self._apart:
            return sums
        return {
            name: total.normalised()[0].plus(self._apart[name].normalised()[0])
            for name, total in sums.items()
        }


def far_apart(exponents: Int[Tensor, "M K"]) -> bool:
    """Whether any row holds numbers further apart than 2^BAND."""
    most = exponents.amax(1, keepdim=True)
    least = torch.where(exponents == NO_EXPONENT, most, exponents)
    return bool((most - least > BAND).any())


class AdjointSums:
    """The same from adjoint rows of neighbouring steps, span by span.

    The library adds up what it can run, operations of torch do the rest.
    """

    def __init__(self, cell: AbstractCell, rows: int):
        self._parameters, self._rows = cell.parameters, rows
        self._sums: ParameterSums | None = None
        self._compiled: Sums | None = None
        self._gathered: list[tuple[Float[Tensor, "M _ B S"], Int[Tensor, "M _"]]] = []
        self._numbers = 0

    def add(
        self,
        span: AdjointSpan | SummedSpan,
        values: Float[Tensor, "N K B S"],
        exponent: Int[Tensor, "N K"],
        places: Int[Tensor, "N K"] | None = None,
    ) -> None:
        """Rows at the steps of a span; spans come in the order of the recursion, last one first.

        Args:
            span: the steps.
            values: a row for each sum.
            exponent: of each row, NO_EXPONENT for one that counts for nothing.
            places: the numbers of the sums that the rows belong to, where they are others.
        """
        uses = span.chunk.compiled_uses
        if uses is not None:
            if places is None:
                places = torch.arange(self._rows).unsqueeze(1).expand_as(exponent)
            self._by_library(uses, span.here.start, values, places, exponent)
            return
        if places is not None:
            values, exponent = rows_together(values, places, exponent, self._rows)
        self._gathered.insert(0, (values, exponent))
        self._numbers += values.numel()
        if span.first == span.chunk.first or self._numbers + values.numel() > SUMMED:
            every, exponents = zip(*self._gathered, strict=True)
            self._add(span.chunk, span.first, torch.cat(every, 1), torch.cat(exponents, 1))
            self._gathered, self._numbers = [], 0

    def add_rows(self, span: AdjointSpan, places: Int[Tensor, "N K"]) -> None:
        """The rows of a span, those with the same number at a step as one; -1 leaves one out."""
        uses = span.chunk.compiled_uses
        exponent = torch.where(span.norms > 0, span.exponent, NO_EXPONENT)
        if uses is not None:
            self._by_library(uses, span.here.start, span.values, places, exponent)
            return
        stop = len(span)
        for piece in span.pieces(self._rows):
            here = slice(stop - len(piece), stop)
            some = places[:, here], exponent[:, here]
            self.add(piece, *rows_together(piece.values, *some, self._rows))
            stop = here.start

    def _by_library(
        self,
        uses: Uses,
        first: int,
        values: Float[Tensor, "N K B S"],
        places: Int[Tensor, "N K"],
        exponent: Int[Tensor, "N K"],
    ) -> None:
        if self._compiled is None:
            self._compiled = Sums(self._rows, NO_EXPONENT)
        self._compiled.add(uses, first, values, places, exponent)

    def add_steps(
        self, chunk: Chunk, values: Float[Tensor, "M K B S"], exponent: Int[Tensor, "M K"]
    ) -> None:
        """Rows at all steps of a chunk; chunks come in any order. `values` are overwritten."""
        uses = chunk.compiled_uses
        if uses is not None:
            places = torch.arange(self._rows).unsqueeze(1).expand_as(exponent)
            self._by_library(uses, 0, values, places, exponent)
        else:
            self._add(chunk, chunk.first, values, exponent)

    def _add(
        self,
        chunk: Chunk,
        k: int,
        values: Float[Tensor, "M K B S"],
        exponent: Int[Tensor, "M K"],
    ) -> None:
        count = exponent.shape[1]
        if count > 1 and far_apart(exponent):
            half = count // 2
            self._add(chunk, k + half, values[:, half:], exponent[:, half:])
            self._add(chunk, k, values[:, :half], exponent[:, :half])
            return
        if self._sums is None:
            self._sums = ParameterSums(self._parameters, self._rows)
        top = exponent.amax(1)
        units, rows = self._sums.units(top), None
        if bool((top == NO_EXPONENT).any()):  # where a block of loss steps is far, most bins
            rows = torch.nonzero(top != NO_EXPONENT).squeeze(1)
            values, exponent, units = values[rows], exponent[rows], units[rows]
        values *= power_of_two(exponent - units.unsqueeze(1), values)[..., None, None]
        if len(values):
            self._sums.add(chunk.pull_back(values.flatten(1, 2), k, count), rows)

    def result(self) -> dict[str, Scaled]:
        """The sums, by parameter."""
        if self._compiled is None:
            sums = self._sums or ParameterSums(self._parameters, self._rows)
            return sums.result()
        found = _found(self._compiled, self._parameters)
        if self._sums is not None:  # some chunks were none that the library can run
            more = self._sums.result()
            found = {name: total.plus(more[name]) for name, total in found.items()}
        return found

    def side_by_side(self) -> Scaled | None:
        """The gradients of all parameters as one vector for each row, for all rows of the same
        steps in one order; None where these are not ready to be put side by side."""
        sums = self._compiled
        if sums is None or self._sums is not None or sums.some_aside or not sums.apart:
            return None
        unit = sums.units[0]
        values = torch.cat([part.flatten(1) for _, part, _ in sums.found()], 1)
        nothing = unit == NO_EXPONENT
        if bool(nothing.any()):
            values[nothing] = 0
        return Scaled(values, torch.where(nothing, 0, unit))


def _found(sums: Sums, parameters: Mapping[str, Tensor]) -> dict[str, Scaled]:
    """What the library has summed, by parameter."""
    (recent, _, aside), count = sums.units, sums.units.shape[1]
    unit = torch.maximum(recent, aside)
    some_empty = bool((recent == NO_EXPONENT).any())
    found = dict[str, Tensor]()
    for side, part, before in sums.found():
        name, value = side.parameter, parameters[side.parameter]
        column = -1, *[1] * (part.ndim - 1)
        if some_empty:
            part = torch.where((recent == NO_EXPONENT).view(column), 0, part)
        if before is not None:
            scale = [power_of_two(each - unit, before).view(column) for each in (recent, aside)]
            before = torch.where((aside == NO_EXPONENT).view(column), 0, before)
            part = part * scale[0] + before * scale[1]
        if name not in found and part.shape[1:] == value.shape and not side.columns:
            found[name] = part.clone(memory_format=torch.contiguous_format)
            continue
        if name not in found:
            found[name] = part.new_zeros(count, *value.shape)
        total = found[name].mT if side.columns else found[name]
        # Two biases may be two rows of one parameter.
        total = total.flatten(1) if side.width is None else total
        total[:, side.first : side.first + side.height] += part
    unit = torch.where(unit == NO_EXPONENT, 0, unit)
    rows = {
        name: Scaled(found[name] if name in found else value.new_zeros(count, *value.shape), unit)
        for name, value in parameters.items()
    }
    if not sums.some_aside:
        return rows
    rows = {name: each.normalised()[0] for name, each in rows.items()}
    return {
        name: Scaled(each.values.to(parameters[name].dtype), each.exponent)
        for name, each in rows.items()
    }


def rows_together(
    values: Float[Tensor, "N K B S"],
    places: Int[Tensor, "N K"],
    exponent: Int[Tensor, "N K"],
    count: int,
) -> tuple[Float[Tensor, "M K B S"], Int[Tensor, "M K"]]:
    """Rows that have the same number at a step as one, on the largest exponent among them.

    Args:
        values: the rows.
        places: the number of each at each step, -1 to leave it out.
        exponent: of each row, NO_EXPONENT for one of zeros.
        count: how many numbers there are.
    """
    steps, device = values.shape[1], values.device
    place = places * steps + torch.arange(steps, device=device)
    place = torch.where(places < 0, count * steps, place).flatten()
    exponent = exponent.flatten()
    top = exponent.new_full((count * steps + 1,), NO_EXPONENT)
    top.scatter_reduce_(0, place, exponent, "amax")
    order = place.argsort(stable=True)
    weights = power_of_two(exponent - top[place], values)
    sums = torch.nn.functional.embedding_bag(
        order,
        values.flatten(0, 1).flatten(1),
        torch.searchsorted(place[order], torch.arange(len(top), device=device)),
        mode="sum",
        per_sample_weights=weights[order],
    )
    shape = count, steps
    return sums[:-1].view(*shape, *values.shape[2:]), top[:-1].view(shape)
