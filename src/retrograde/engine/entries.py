"""Where the loss enters the recurrence, and which entry steps share a row of the backward pass."""

from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde import _checks
from retrograde.engine.scaling import CENTRE, Scaled, factors_to_centre, largest_of

FULL_ROWS = 1024
"""Up to this many entry steps each have a row of their own unless the caller says otherwise."""

BLOCK_ROWS = 512
"""Above that, neighbouring entry steps share rows, and there are at most this many."""

REPRESENTABLE = 120
"""2^e is an ordinary number of every data type up to this e."""


@dataclass(frozen=True, eq=False)
class Coming:
    """What the loss gives at neighbouring steps, after the latest of them.

    Attributes:
        first: the earliest step.
        rows: how many rows there are at each step, [K].
        values: what the loss gives at each step, in units of the row that takes it; None if it
            gives nothing.
        opened: the exponents of the rows that it opens, the latest first.
    """

    first: int
    rows: list[int]
    values: Float[Tensor, "K B S"] | None
    opened: list[int]


@dataclass(frozen=True, eq=False)
class Entries:
    """dL/ds_k as the loss alone gives it, and the blocks of entry steps that share a row.

    `direct` holds dL/ds_k without what comes through later steps. `blocks` are (first, last) entry
    steps, in order of time; a block of one step is a row [t] of the entry-by-use map. A wider row's
    adjoint is that of the block's summed loss, so that sums over entries stay exact.

    With `relative`, every entry step opens a row, and two neighbouring rows become one when their
    lag is `relative` times the width of both and at least `exact` (merging.py).
    """

    direct: Float[Tensor, "T B S"]
    blocks: tuple[tuple[int, int], ...]
    relative: int | None = None
    exact: int = 0

    @staticmethod
    def merging(direct: Float[Tensor, "T B S"], relative: int) -> "Entries":
        """A row for every step at which the loss enters, merged two by two as their lags grow.

        Lags up to `relative` are exact, longer ones are known to 1/relative of themselves.

        Raises:
            ArgumentError: if `relative` is not a positive integer.
        """
        _checks.tensor("direct", direct, ["T", "B", "S"])
        relative = _checks.whole("relative", relative)
        each = Entries.of(direct, max(1, len(direct)))
        return Entries(direct, each.blocks, relative)

    @staticmethod
    def of(direct: Float[Tensor, "T B S"], max_rows: int | None = None) -> "Entries":
        """Group the steps at which the loss enters into at most `max_rows` rows.

        By default every entry step has its own row up to 1024 of them; more share 512 rows.

        Raises:
            ArgumentError: if `max_rows` is not a positive integer.
        """
        _checks.tensor("direct", direct, ["T", "B", "S"])
        max_rows = _checks.optional_whole("max_rows", max_rows)
        largest = largest_of(direct.flatten(1))
        steps = torch.nonzero(largest).squeeze(1).tolist()
        if max_rows is None:
            max_rows = FULL_ROWS if len(steps) <= FULL_ROWS else BLOCK_ROWS
        width = max(1, -(-len(steps) // max_rows))
        first, last = steps[::width], [*steps[width - 1 :: width], *steps[-1:]]
        found = Entries(direct, tuple(zip(first, last, strict=False)))
        found.__dict__["_largest"] = largest  # once is enough
        return found

    def __len__(self) -> int:
        return len(self.blocks)

    @cached_property
    def single(self) -> bool:
        """Whether every row is that of a single step."""
        return all(first == last for first, last in self.blocks)

    @cached_property
    def _ends(self) -> Int[Tensor, "2 E"]:
        """First and last steps of the blocks, latest block first: the order of the rows."""
        ends = torch.tensor(self.blocks, dtype=torch.int64, device=self.direct.device)
        return ends.reshape(-1, 2).flip(0).T.contiguous()

    @property
    def steps(self) -> Int[Tensor, "E"]:
        """The last entry step of each row, in order of time."""
        return self._ends[1].flip(0)

    @property
    def resolution(self) -> int:
        """Width of the widest row, in steps; what rows say of lags is exact if it is 1.

        With `relative` it is that of the rows farthest away, and near ones are narrower.
        """
        if self.relative:
            return max(1, len(self.direct) // self.relative)
        return max((last - first + 1 for first, last in self.blocks), default=1)

    @cached_property
    def _scales(self) -> tuple[Float[Tensor, "T"], Int[Tensor, "T"]]:
        """For every step a factor 2^e that brings dL/ds_k near the centre, and the exponent -e."""
        return factors_to_centre(self._largest)

    @cached_property
    def _largest(self) -> Float[Tensor, "T"]:
        return largest_of(self.direct.flatten(1))

    def at(self, k: int) -> Scaled:
        """dL/ds_k without what comes through later steps, as one row."""
        row = torch.empty_like(self.direct[k]).unsqueeze(0)
        return Scaled(row, self.write(k, row))

    def write(self, k: int, row: Float[Tensor, "1 B S"]) -> Int[Tensor, "1"]:
        """Overwrite a row with dL/ds_k, and give the exponent of what was written."""
        factors, exponents = self._scales
        torch.mul(self.direct[k], factors[k], out=row[0])
        return exponents[k : k + 1]

    def between(self, k: int, steps: int) -> tuple[Float[Tensor, "K B S"], Int[Tensor, "K"]]:
        """dL/ds_k of several steps, without what comes through later ones, and exponents."""
        factors, exponents = self._scales
        some = slice(k, k + steps)
        return self.direct[some] * factors[some, None, None], exponents[some]

    @cached_property
    def exponents(self) -> dict[int, int]:
        """Those of dL/ds_k by step, for every step at which it is not zero."""
        steps = torch.nonzero(self._largest).squeeze(1)
        return dict(zip(steps.tolist(), self._scales[1][steps].tolist(), strict=True))

    def near(self, k: int, exponent: int) -> bool:
        """Whether dL/ds_k can be added to a row in units of 2^exponent without loss."""
        return k not in self.exponents or _near(self.exponents[k], exponent)

    def add(self, k: int, row: Float[Tensor, "B S"], exponent: int) -> bool:
        """Add dL/ds_k to a row in units of 2^exponent; whether their scales are near enough."""
        near = self.near(k, exponent)
        if near and k in self.exponents:
            row.add_(self.direct[k], alpha=2.0**-exponent)
        return near

    def coming(
        self, k: int, length: int, rows: int, more: int, newest: int, most: int, lift: int = 0
    ) -> Coming:
        """What the loss gives at the steps before k that can be taken together with it.

        A step that adds to a row on quite another scale ends them.

        Args:
            k: the latest step, which is complete.
            length: how many steps there may be.
            rows: how many rows there are at k.
            more: how many of them are no entries of their own.
            newest: the exponent of the newest.
            most: how many rows times steps may be held.
            lift: how many powers of two above the centre a row starts, where a power of two
                reaches there.
        """
        counts, factors, opened = [rows], [0.0], list[int]()
        step, last = k - 1, k - length
        while step > last:
            entered, stop = counts[-1] - more, last
            if entered < len(self.blocks):
                stop = max(last, self.blocks[-1 - entered][1])
            added = self._added(range(stop + 1, step + 1), newest)
            counts += [counts[-1]] * len(added)
            factors += added
            step -= len(added)
            if step > stop or step == last or (counts[-1] + 1) * (len(counts) + 1) > most:
                break
            newest = self.exponents.get(step, 0)
            if abs(newest - lift) <= REPRESENTABLE:
                newest -= lift
            opened.append(newest)
            counts.append(counts[-1] + 1)
            factors.append(2.0**-newest)
            step, last = step - 1, max(last, k - most // counts[-1])
        first, values = k - len(counts) + 1, None
        if any(factors):
            given = self.direct[first : k + 1]
            values = given * given.new_tensor(factors[::-1]).view(-1, 1, 1)
        return Coming(first, counts[::-1], values, opened)

    def _added(self, steps: range, exponent: int) -> list[float]:
        """What dL/ds_k is multiplied by where it is added to a row in units of 2^exponent.

        At the latest of some steps and before, up to one on quite another scale.
        """
        every = [*map(self.exponents.get, reversed(steps))]
        factors: dict[int | None, float] = {None: 0.0}
        for own in {*every} - {None}:
            assert own is not None
            if _near(own, exponent):
                factors[own] = 2.0**-exponent
        return [*map(factors.__getitem__, takewhile(factors.__contains__, every))]

    def opens(self, k: int, rows: int) -> bool:
        """Whether step k is the first entry, going backwards, of row number `rows`."""
        return rows < len(self.blocks) and self.blocks[-1 - rows][1] == k

    def covers(self, k: int, rows: int) -> bool:
        """Whether the newest of `rows` rows is a block that step k still belongs to."""
        return 0 < rows and self.blocks[-rows][0] <= k < self.blocks[-rows][1]

    def lags(self, k: int, rows: int) -> Int[Tensor, "N"]:
        """Lag of each of the first `rows` rows at use step k, latest entry first.

        For a block it is the distance to the middle of its entries that k can reach.
        """
        return self._lags[k, :rows]

    def lags_between(self, k: int, steps: int, rows: int) -> Int[Tensor, "N K"]:
        """The same at steps k, k+1, ...; -1 where the step is later than the entry, or none."""
        found = self._lags[max(0, k) : k + steps, :rows].T
        return found if k >= 0 else torch.nn.functional.pad(found, (-k, 0), value=-1)

    @cached_property
    def _lags(self) -> Int[Tensor, "T E"]:
        k = torch.arange(len(self.direct), device=self.direct.device).unsqueeze(1)
        first, last = self._ends
        return torch.where(last >= k, (torch.maximum(first, k) + last) // 2 - k, -1)

    @property
    def lag_table(self) -> Int[Tensor, "E T"]:
        """The lag of every row (in order of time) at every use step, -1 where the use is later."""
        return self._lags.T.flip(0)


def _near(one: int, other: int) -> bool:
    """Whether numbers in units of powers of two can be added in those of the other."""
    return abs(one - other) <= CENTRE and abs(other) <= REPRESENTABLE
