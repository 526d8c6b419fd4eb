"""All lags at once, where each unit of the state leads to itself alone.

With F_k the Jacobian of step k and b_k what the loss gives to s_k and comes back through it, the
adjoint of s_k over the lags l .. l+m-1 (l >= 1) is

    P_{l-1}(k) W_m(k+l-1)       P_l(k) = F_{k+1} .. F_{k+l}
                                W_m(k) = b_{k+1} + F_{k+1} b_{k+2} + .. + P_{m-1}(k) b_{k+m}

where the products are taken unit by unit. Both double in one pass over the steps,

    W_{2m}(k) = W_m(k) + P_m(k) W_m(k+m)        P_{2m}(k) = P_m(k) P_m(k+m)

so that bins of lags that double in width cost one pass each, whatever the length. The difference of
whole adjoints, W(k) - P_m(k) W(k+m), would give the same in exact numbers; where the near lags are
small beside the far ones, it would cancel. Nothing is subtracted here.

Each unit at each step has an exponent of its own, since units forget at rates of their own.

Reference for scans by doubling: W. Daniel Hillis and Guy L. Steele, "Data Parallel Algorithms",
Communications of the ACM 29 (1986).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.unitwise import Group, unitwise
from retrograde.engine.adjoint import refuse_non_finite
from retrograde.engine.entries import Entries
from retrograde.engine.gradients import AdjointSums
from retrograde.engine.scaling import NO_EXPONENT, Scaled, power_of_two
from retrograde.engine.unroll import Chunk, Unrolled
from retrograde.engine.wide import ZERO, Wide

SLAB = 2**17
"""Steps are taken together up to this many numbers of the state, 512 KiB in float32."""


def is_unitwise(unrolled: Unrolled) -> bool:
    """Whether the lags of a pass can be found unit by unit.

    That is so where no path from state to state passes a weight, and every state enters the next
    step in its own place, whatever it is multiplied by.
    """
    return unitwise(unrolled.cell.structure) is not None and all(
        len(each.reads) <= 1 and all(read.source is None for read in each.reads)
        for each in unrolled.boundaries.values()
    )


@torch.no_grad()
def gradients_by_lag(
    unrolled: Unrolled, entries: Entries, lags: Sequence[range]
) -> dict[str, Scaled]:
    """For each parameter a row for each bin of lags: the sum of C[t,k] over all pairs in it.

    Args:
        unrolled: a pass that `is_unitwise`.
        entries: where the loss enters; lags are those of single steps, whatever rows they share.
        lags: bins without gaps, from lag 0 on.
    """
    rows = []
    for adjoint in adjoints_by_lag(unrolled, entries, lags):
        sums = AdjointSums(unrolled.cell, 1)
        for slab in adjoint:
            sums.add_steps(slab.chunk, slab.values.unsqueeze(0), slab.exponent.unsqueeze(0))
        rows.append(sums.result())
    return {
        name: Scaled(
            torch.cat([row[name].values for row in rows]),
            torch.cat([row[name].exponent for row in rows]),
        )
        for name in rows[0]
    }


@dataclass(frozen=True, eq=False)
class Slab:
    """The adjoint of the state after each of some neighbouring steps.

    `values * 2**exponent`, [K, B, S] and [K]; a step that nothing comes back to has no exponent.
    """

    chunk: Chunk
    values: Float[Tensor, "K B S"]
    exponent: Int[Tensor, "K"]


def adjoints_by_lag(
    unrolled: Unrolled, entries: Entries, lags: Sequence[range]
) -> Iterator[Iterator[Slab]]:
    """For each bin of lags the adjoint of every state, slab by slab, in parts that add up.

    A bin must be taken to its end before the next one is asked for.
    """
    windows: list[Windows] = []
    for each in lags:
        parts = list[Iterator[Slab]]()
        if not each.start:
            parts.append(_direct(unrolled, entries))
        if each.stop > 1:
            start = max(0, each.start - 1)
            windows = windows or Windows.every(unrolled, entries)
            for window in windows:
                window.move_to(start, each.stop - 1 - start)
            if windows:  # else no route is left along which anything comes back
                parts.append(_slabs(unrolled, windows))
        yield chain.from_iterable(parts)


def adjoints_at_lags(unrolled: Unrolled, entries: Entries) -> Iterator[tuple[int, Iterator[Slab]]]:
    """The adjoint of every state from the loss one lag later, for lags 0, 1, 2, 3, 5, 9, 17, ...

    These are the first lags of octaves; each costs half of what a bin does. One lag must be taken
    to its end before the next one is asked for.
    """
    yield 0, _direct(unrolled, entries)
    windows = Windows.every(unrolled, entries)
    while windows and windows[0].start + 1 < len(unrolled):
        yield windows[0].start + 1, _slabs(unrolled, windows)
        for window in windows:
            window.jump()


def _direct(unrolled: Unrolled, entries: Entries) -> Iterator[Slab]:
    """Lag 0: what the loss gives to the states directly."""
    for steps in _steps(unrolled, 0, len(unrolled)):
        values, exponent = entries.between(steps.start, len(steps))
        exponent = torch.where(values.flatten(1).any(1), exponent, NO_EXPONENT)
        yield Slab(unrolled.chunk(steps.start, steps.stop), values, exponent)


def _slabs(unrolled: Unrolled, windows: "Sequence[Windows]") -> Iterator[Slab]:
    """The lags that the windows have moved to."""
    batch, size = unrolled.states.shape[1:]
    for steps in _steps(unrolled, 0, len(unrolled) - 1 - windows[0].start):
        found = [window.adjoint(steps) for window in windows]
        top = torch.stack([wide.exponent.flatten(1).amax(1) for wide in found]).amax(0)
        values = unrolled.states.new_zeros(len(steps), batch, size)
        for window, wide in zip(windows, found, strict=True):
            rows = wide.values * power_of_two(wide.exponent - top.view(-1, 1, 1), wide.values)
            for row, slot in zip(rows, window.group.slots, strict=True):
                values[..., slot] = row
        exponent = torch.where(top <= ZERO, NO_EXPONENT, top.long())
        yield Slab(unrolled.chunk(steps.start, steps.stop), values, exponent)


def _steps(unrolled: Unrolled, start: int, stop: int) -> Iterator[range]:
    """Steps, as many at a time as a slab may hold."""
    most = max(1, SLAB // unrolled.states[0].numel())
    for first in range(start, stop, most):
        yield range(first, min(first + most, stop))


class Windows:
    """P_l(k) and W_m(k) of a group of units for every step k: the adjoint over m lags from l on.

    Both are held for the whole sequence; the lags are moved on, bin after bin. Numbers of the lags
    here are one less than elsewhere, since b_k has come back by one step already.

    Attributes:
        group: the parts of the state.
        start: l, 0 at first.
        width: m, 1 at first.
    """

    def __init__(self, unrolled: Unrolled, entries: Entries, number: int):
        self._unrolled, self._entries, self._number = unrolled, entries, number
        groups = unitwise(unrolled.cell.structure)
        assert groups is not None
        self.group: Group = groups[number]
        self.start, self.width = 0, 1
        self._products, self._sums = self._single()
        self._near: Wide | None = None  # P_start, if that is neither 1 nor P_width

    @staticmethod
    def every(unrolled: Unrolled, entries: Entries) -> "list[Windows]":
        """Those of each group of a pass that `is_unitwise`."""
        groups = unitwise(unrolled.cell.structure) or ()
        return [Windows(unrolled, entries, number) for number in range(len(groups))]

    def adjoint(self, steps: range) -> Wide:
        """P_l(k) W_m(k+l) at some steps, [n, K, B, H]."""
        sums = self._sums.at(steps.start + self.start, steps.stop + self.start)
        if not self.start:
            return sums
        near = self._products if self._near is None else self._near
        return near.at(steps.start, steps.stop).times(sums)

    def move_to(self, start: int, width: int) -> None:
        """The next lags: as many as `width`, from where these end, or from 0 on."""
        if start + width >= len(self._unrolled) - 1:  # what lies behind the end is 0
            width = max(width, self.width)
            width = self.width << (-(-width // self.width) - 1).bit_length()
        if start:
            assert start == self.start + self.width
            self._near = None if start == width else self._farther()
        self._widen(width)
        self.start = start

    def jump(self) -> None:
        """From a single lag l to 2 l, from 0 to 1: P_{2l}(k) = P_l(k) P_l(k+l)."""
        assert self.width == 1 and self._near is None
        if self.start:
            for steps in _steps(self._unrolled, 0, len(self._products) - self.start):
                near = self._products.at(steps.start, steps.stop)
                far = self._products.at(steps.start + self.start, steps.stop + self.start)
                self._products.put(steps.start, near.times(far))
        self.start = max(1, 2 * self.start)

    def _farther(self) -> Wide:
        """P_{l+m} = P_l(k) P_m(k+l)."""
        if not self.start:
            return self._products.copy()
        near = self._products.copy() if self._near is None else self._near
        for steps in _steps(self._unrolled, 0, len(near) - self.start):
            there = self._products.at(steps.start + self.start, steps.stop + self.start)
            near.put(steps.start, near.at(steps.start, steps.stop).times(there))
        return near

    def _widen(self, width: int) -> None:
        """From W_m and P_m to those of another width, by its binary digits."""
        digits = max(0, width.bit_length() - self.width.bit_length())
        if width >> digits != self.width:
            products, sums = self._one
            self.width, self._products, self._sums = 1, products.copy(), sums.copy()
            digits = width.bit_length() - 1
        for digit in reversed(range(digits)):
            self._join(self._products, self._sums)
            self.width *= 2
            if width >> digit & 1:
                self._join(*self._one)
                self.width += 1

    def _join(self, products: Wide, sums: Wide) -> None:
        """Windows of any width behind these: W(k) + P(k) W'(k+m) and P(k) P'(k+m).

        In place, from the first step on: what is read lies behind what is written.
        """
        for steps in _steps(self._unrolled, 0, len(self._sums) - self.width):
            there = steps.start + self.width, steps.stop + self.width
            near = self._products.at(steps.start, steps.stop)
            far = near.times(sums.at(*there))
            product = near.times(products.at(*there))
            self._sums.put(steps.start, self._sums.at(steps.start, steps.stop).plus(far))
            self._products.put(steps.start, product)

    @cached_property
    def _one(self) -> tuple[Wide, Wide]:
        """P_1 and W_1, kept where a width is no power of two times the one before."""
        return self._single()

    def _single(self) -> tuple[Wide, Wide]:
        """P_1(k) = F_{k+1} and W_1(k) = b_{k+1}, for k = 0 .. T-2."""
        unrolled, group = self._unrolled, self.group
        count, size = len(group.slots), group.slots[0].stop - group.slots[0].start
        shape = len(unrolled) - 1, unrolled.states.shape[1], size
        exponents = (torch.empty(shape, dtype=torch.int32, device=unrolled.x.device) for _ in "PW")
        new = unrolled.states.new_empty
        products = Wide(new(count, count, *shape), next(exponents))
        sums = Wide(new(count, *shape), next(exponents))
        for steps in _steps(unrolled, 1, len(unrolled)):
            chunk = unrolled.chunk(steps.start, steps.stop)
            groups = unitwise(chunk.graph)
            assert groups is not None
            factors = groups[self._number].factors((len(steps), shape[1]), unrolled.states)
            direct, exponent = self._entries.between(steps.start, len(steps))
            pulled = chunk.pull_back(direct.flatten(0, 1).unsqueeze(0), steps.start, len(steps))
            back = pulled.previous().view_as(direct)
            for k, boundary in chunk.boundaries.items():
                at = k - steps.start
                back[at] = boundary.pull_back(back[at : at + 1])[0]
                for number, slot in enumerate(group.slots):
                    passed = boundary.reads[0].factor[:, slot] if boundary.reads else 0
                    factors[number, :, at] *= passed
            sizes = back.flatten(1).abs().amax(1)
            if not bool(sizes.isfinite().all()):
                last = int(torch.nonzero(~sizes.isfinite()).max())
                refuse_non_finite(sizes, steps.start + last)
            parts = torch.stack([back[..., slot] for slot in group.slots])
            products.put(steps.start - 1, Wide.of(factors, exponent.new_zeros(())))
            sums.put(steps.start - 1, Wide.of(parts, exponent.view(-1, 1, 1)))
        return products, sums
