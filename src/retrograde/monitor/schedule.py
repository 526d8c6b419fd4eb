"""Which blocks are recorded: every n-th, or as many as a share of the time allows."""

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median

REMEMBERED = 32
"""The number of blocks of which the median is taken: a single one may have waited for data."""


class Schedule:
    """When the next look is due.

    A block is as long as from its start to the next one's, optimiser and data included. What a look
    costs is the time of its block beyond the median of blocks without one. After a look that cost
    `c` where a block takes `b`, the next one is at least `c / (b * budget)` blocks away, and at
    least `every`.

    Args:
        every: least distance of two looks, in blocks.
        budget: the largest share of the time of training that looks may take; None for any.
        clock: gives seconds.

    Attributes:
        distance: blocks from the latest look to the next.
    """

    def __init__(
        self, every: int, budget: float | None, clock: Callable[[], float] = time.perf_counter
    ):
        self.every, self.budget, self.distance = every, budget, every
        self._clock = clock
        self._whole: deque[float] = deque(maxlen=REMEMBERED)
        self._inside: deque[float] = deque(maxlen=REMEMBERED)
        self._started: float | None = None
        self._looked = False
        self._since: int | None = None

    def start(self) -> bool:
        """Begin a block; whether it is to be looked at."""
        self._since = None if self._since is None else self._since + 1
        now = self._clock()
        if self._started is not None and not self._looked:
            self._whole.append(now - self._started)
        self._started = now
        self._looked = self._since is None or self._since >= self.distance
        if self._looked:
            self._since = 0
        return self._looked

    @property
    def looks(self) -> bool:
        """Whether the present block is looked at."""
        return self._looked

    def look(self) -> None:
        """Look at the block that has just begun, although it is not due."""
        self._looked = True

    def stop(self) -> None:
        """End a block, after the look if there was one."""
        if self._started is None:
            return
        spent = self._clock() - self._started
        if not self._looked:
            self._inside.append(spent)
        elif self.budget is not None and self._whole:
            cost = max(0.0, spent - median(self._inside))
            affordable = cost / (self.budget * max(median(self._whole), 1e-9))
            self.distance = max(self.every, math.ceil(affordable))
