"""Streams of spikes whose distances are to be measured or made, and periodic functions."""

from collections.abc import Callable, Iterator
from math import pi
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde import _checks
from retrograde.tasks.task import (
    AbstractTask,
    Guess,
    Lot,
    Sequences,
    largest_errors,
    whole_numbers,
    within,
)


class Streams(Lot):
    """Streams to learn, and a longer one for each test."""

    task: "Spikes | PeriodicFunction"

    def tests(self, most: int) -> Iterator[Sequences]:
        yield self.task.test(self.generator)


class Spikes(AbstractTask):
    """Spikes at T(n) = T(n - 1) + F + I(n), where I(n) is 0 or 1.

    - "measure" (the paper's MSD, or with one spike in a stream its NMSD): the network reads the
      spikes and tells I(n) at each of them.
    - "generate" (GTS): it reads I(n), from one spike to the next, and is to give the spikes.

    A stream is right if no answer errs by 0.49 or more. The paper's training stops a stream at its
    first error or after 100 correct spikes, and tests the network on another one; the task is
    solved when 1000 spikes of that are right. Its abstract says that peepholes let a network
    distinguish 50 steps from 49.

    Args:
        what: "measure" or "generate".
        shortest: F.
        spikes: of each stream to learn.
        tested: spikes of a test: one stream, or as many streams where each has one spike.
        alike: whether I(n) is always 0, so that all distances are F.

    Example:
        >>> import torch
        >>> from retrograde.tasks.timing import Spikes
        >>> task = Spikes("measure", shortest=3, spikes=2)
        >>> drawn = task.draw(1, torch.Generator().manual_seed(0))
        >>> drawn.x.flatten().tolist(), drawn.y.flatten().tolist()
        ([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    """

    paper: ClassVar[str] = "Gers, Schraudolph and Schmidhuber (2002), JMLR 3"
    inputs = outputs = 1
    judged_on, limit = 1, 0.49

    def __init__(
        self,
        what: Literal["measure", "generate"] = "measure",
        shortest: int = 10,
        spikes: int = 100,
        tested: int = 1000,
        alike: bool = False,
    ):
        _checks.one_of("what", what, ("measure", "generate"))
        self.what: Literal["measure", "generate"] = what
        self.shortest = _checks.whole("shortest", shortest)
        self.spikes = _checks.whole("spikes", spikes)
        self.tested = _checks.whole("tested", tested)
        self.alike = _checks.flag("alike", alike)

    def test(self, generator: torch.Generator) -> Sequences:
        """The sequences of a test."""
        if self.spikes == 1:
            return self.draw(self.tested, generator)
        return Spikes(self.what, self.shortest, self.tested, alike=self.alike).draw(1, generator)

    def lot(self, generator: torch.Generator) -> Streams:
        return Streams(self, generator)

    @property
    def guess(self) -> Guess:
        """Of an answer that counts no steps: the same at every step that counts."""
        if self.what == "measure":
            return Guess(0.0, 1.0) if self.alike else Guess(1 / 4, 0.5**self.spikes)
        often = 1 / (self.shortest + (0.0 if self.alike else 1 / 2))
        return Guess(often * (1 - often), 0.0)

    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        count = _checks.whole("count", count)
        more = whole_numbers(0, 0 if self.alike else 1, self.spikes * count, generator)
        more = more.view(self.spikes, count)
        ends = (self.shortest + more).cumsum(0)  # T(n), counted from 1
        lengths = ends[-1]
        nothing = torch.zeros(int(lengths.max()), count)
        spike = nothing.scatter(0, ends - 1, 1.0)
        if self.what == "measure":
            told = nothing.scatter(0, ends - 1, more.float())
            return Sequences(spike.unsqueeze(2), told.unsqueeze(2), spike.bool(), lengths)
        changes = more.float().diff(dim=0, prepend=torch.zeros(1, count))
        starts = torch.cat((torch.zeros(1, count, dtype=torch.int64), ends[:-1]))
        due = within(len(nothing), lengths)
        held = nothing.scatter(0, starts, changes).cumsum(0) * due
        return Sequences(held.unsqueeze(2), spike.unsqueeze(2), due, lengths)

    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        return largest_errors(output, sequences) < self.limit


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda phase: (1 - (2 * pi * phase).cos()) / 2,
    "triangle": lambda phase: 1 - (2 * phase - 1).abs(),
    "rectangle": lambda phase: (phase >= 0.5).float(),
}
"""One period of each function, from phase 0 to 1, with values from 0 to 1."""


class PeriodicFunction(AbstractTask):
    """Generate a periodic function with no input at all (the paper's PFG).

    A stream is right if no step errs by 0.3 or more. Training stops a stream at its first error or
    after 100 periods; a test asks for a thousand. The phase at which each function begins is ours.
    The input of the network is always 0.

    Args:
        shape: "cosine", "triangle" or "rectangle".
        period: F, in steps.
        periods: of each stream to learn.
        tested: periods of the stream of a test.

    Example:
        >>> import torch
        >>> from retrograde.tasks.timing import PeriodicFunction
        >>> task = PeriodicFunction("triangle", period=4, periods=1)
        >>> task.draw(1, torch.Generator()).y.flatten().tolist()
        [0.0, 0.5, 1.0, 0.5]
    """

    paper: ClassVar[str] = "Gers, Schraudolph and Schmidhuber (2002), JMLR 3"
    inputs = outputs = 1
    judged_on, limit = 1, 0.3

    def __init__(
        self,
        shape: Literal["cosine", "triangle", "rectangle"] = "cosine",
        period: int = 10,
        periods: int = 100,
        tested: int = 1000,
    ):
        _checks.one_of("shape", shape, SHAPES)
        self.shape: Literal["cosine", "triangle", "rectangle"] = shape
        self.period = _checks.whole("period", period, least=2)
        self.periods = _checks.whole("periods", periods)
        self.tested = _checks.whole("tested", tested)

    def test(self, generator: torch.Generator) -> Sequences:
        """The sequence of a test."""
        return PeriodicFunction(self.shape, self.period, self.tested).draw(1, generator)

    def lot(self, generator: torch.Generator) -> Streams:
        return Streams(self, generator)

    @property
    def guess(self) -> Guess:
        """Of the function's mean."""
        values = self._period()
        return Guess(float(values.var(correction=0)), 0.0)

    def _period(self) -> Float[Tensor, "T"]:
        return SHAPES[self.shape](torch.arange(self.period) / self.period)

    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        """The same stream `count` times; nothing is drawn."""
        count = _checks.whole("count", count)
        y = self._period().repeat(self.periods).view(-1, 1, 1).expand(-1, count, -1)
        due = torch.ones(len(y), count, dtype=torch.bool)
        return Sequences(torch.zeros(len(y), count, 1), y, due, torch.full((count,), len(y)))

    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        return largest_errors(output, sequences) < self.limit
