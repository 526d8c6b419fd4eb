"""A symbol at the beginning returns at the end; what stands between them says nothing about it."""

from math import log
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde import _checks
from retrograde.tasks.task import (
    AbstractClassification,
    AbstractTask,
    Guess,
    Sequences,
    Symbols,
    answered_last,
    largest_errors,
    symbols,
    whole_numbers,
    within,
)


class RememberedSymbol(AbstractTask):
    """Experiments 2a and 2b of 1997: (y, ..., y) and (x, ..., x), with p - 1 symbols between.

    There are p + 1 symbols a_1 .. a_{p-1}, x and y. Each next symbol is to be predicted, the last
    one over a lag of p steps. The task is solved when over 10,000 sequences no output errs by 0.25
    or more, at any step (2a) or at the last (2b).

    Args:
        lag: p.
        between: "ordered" (2a): a_1, a_2 .. a_{p-1}; "random" (2b): drawn from them.

    Example:
        >>> import torch
        >>> from retrograde.tasks.remembered_symbol import RememberedSymbol
        >>> sequences = RememberedSymbol(lag=4).draw(1, torch.Generator().manual_seed(1))
        >>> sequences.x[:, 0].argmax(1).tolist(), sequences.y[:, 0].argmax(1).tolist()
        ([4, 0, 1, 2], [0, 1, 2, 4])
    """

    paper: ClassVar[str] = "Hochreiter and Schmidhuber (1997), section 5.2, tasks 2a and 2b"
    judged_on, flawless = 10_000, True

    def __init__(self, lag: int = 100, between: Literal["ordered", "random"] = "ordered"):
        self.lag = _checks.whole("lag", lag, least=2)
        self.between = _checks.one_of("between", between, ("ordered", "random"))

    @property
    def inputs(self) -> int:
        return self.lag + 1

    @property
    def outputs(self) -> int:
        return self.lag + 1

    @property
    def guess(self) -> Guess:
        """Of a network that does not know the first symbol: it halves the last step between two.

        What stands between is known in 2a. In 2b it is one of p - 1 that are equally likely, which
        costs 1 - 1 / (p - 1) at each of p - 1 steps.
        """
        steps, others = self.lag, self.lag - 1
        between = 0.0 if self.between == "ordered" else others * (1 - 1 / others)
        return Guess((between + 1 / 2) / steps / self.outputs, 1 / 2)

    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        count = _checks.whole("count", count)
        others = self.lag - 1
        first = whole_numbers(others, others + 1, count, generator)
        middle = torch.arange(others).unsqueeze(1).expand(others, count)
        if self.between == "random":
            middle = torch.randint(others, (others, count), generator=generator)
        numbers = torch.cat((first[None], middle, first[None]))
        due = torch.ones(self.lag, count, dtype=torch.bool)
        lengths = torch.full((count,), self.lag)
        read = Symbols(numbers[:-1], self.inputs, lengths)
        return Sequences(read, symbols(numbers[1:], self.outputs), due, lengths)

    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        largest = (output - sequences.y).abs().amax(2)
        return (largest.amax(0) if self.between == "ordered" else largest[-1]) < 0.25


class DistractedSymbol(AbstractTask):
    """Experiment 2c of 1997: (b, x or y, distractors, e), and then: was it x or y?

    At least q distractors follow, each drawn from p symbols; after q of them each further step
    ends the row with probability 1/10. The lag is at least q + 1. The task is solved when over
    10,000 sequences neither of the two outputs, for x and for y, errs by 0.2 or more.

    Args:
        distance: q.
        distractors: p.

    Example:
        >>> import torch
        >>> from retrograde.tasks.remembered_symbol import DistractedSymbol
        >>> task = DistractedSymbol(distance=50, distractors=20)
        >>> task.inputs, int(task.draw(100, torch.Generator().manual_seed(0)).lengths.min())
        (24, 53)
    """

    paper: ClassVar[str] = "Hochreiter and Schmidhuber (1997), section 5.2, task 2c"
    outputs = 2
    judged_on, flawless = 10_000, True

    def __init__(self, distance: int = 50, distractors: int = 50):
        self.distance = _checks.whole("distance", distance)
        self.distractors = _checks.whole("distractors", distractors)

    @property
    def inputs(self) -> int:
        return self.distractors + 4

    @property
    def guess(self) -> Guess:
        """Of an answer that does not know the second symbol."""
        return Guess(1 / 4, 1 / 2)

    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        count = _checks.whole("count", count)
        more = torch.empty(count).geometric_(1 / 10, generator=generator).long() - 1
        lengths = self.distance + more + 3
        e, b, x = range(self.distractors, self.distractors + 3)
        which = whole_numbers(0, 1, count, generator)
        size = (int(lengths.max()), count)
        indices = torch.randint(self.distractors, size, generator=generator)
        indices[0], indices[1] = b, x + which
        indices[lengths - 1, torch.arange(count)] = e
        read = Symbols(indices * within(len(indices), lengths), self.inputs, lengths)
        return answered_last(read, symbols(which, self.outputs), lengths)

    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        return largest_errors(output, sequences) < 0.2


class FirstSymbol(AbstractClassification):
    """Was the first symbol an a or a b? It is asked after `lag` further steps, all distractors.

    The simplest task with one lag: each distractor is drawn from 4 symbols, which say nothing; the
    answer is due at the last step, as logits of 2 classes. Solved: at least 99 % of 1000 sequences
    are right.

    Args:
        lag: steps from the symbol to the answer.

    Example:
        >>> import torch
        >>> from retrograde.tasks import FirstSymbol
        >>> sequences = FirstSymbol(lag=4).draw(1, torch.Generator().manual_seed(2))
        >>> sequences.x[:, 0].argmax(1).tolist(), sequences.y[-1, 0].tolist()
        ([4, 3, 1, 0, 2], [1.0, 0.0])
    """

    paper: ClassVar[str] = (
        "the ladder of this package; after Hochreiter and Schmidhuber (1997), 5.2"
    )
    inputs, outputs = 6, 2
    judged_on = 1000

    def __init__(self, lag: int = 10):
        self.lag = _checks.whole("lag", lag)

    @property
    def guess(self) -> Guess:
        """Of equal logits, and of one class."""
        return Guess(log(2), 1 / 2)

    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        count, others = _checks.whole("count", count), self.inputs - self.outputs
        klass = whole_numbers(0, 1, count, generator)
        between = torch.randint(others, (self.lag, count), generator=generator)
        x = symbols(torch.cat((others + klass[None], between)), self.inputs)
        lengths = torch.full((count,), self.lag + 1)
        return answered_last(x, symbols(klass, self.outputs), lengths)

    def solved(self, right: Bool[Tensor, "N"], errors: Float[Tensor, "N"]) -> bool:
        return float(right.double().mean()) >= 0.99
