"""In which order did two or three symbols come, far apart among others that say nothing?"""

from math import log
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
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

DISTRACTORS = 4
X = 4
"""The index of the symbol X, after a, b, c and d; Y is the next."""


def placed(
    steps: int, at: list[Int[Tensor, "N"]], generator: torch.Generator
) -> tuple[Int[Tensor, "T N"], Int[Tensor, "N"]]:
    """Distractors, with an X or a Y at the places given, and the number of its class.

    X stands for a 0 and Y for a 1; the first is the highest digit of the class.
    """
    count = len(at[0])
    indices = torch.randint(DISTRACTORS, (steps, count), generator=generator)
    klass = torch.zeros(count, dtype=torch.int64)
    for place in at:
        which = whole_numbers(0, 1, count, generator)
        indices[place, torch.arange(count)] = X + which
        klass = 2 * klass + which
    return indices, klass


class TemporalOrder(AbstractTask):
    """Experiments 6a and 6b of 1997: E, distractors with two or three X or Y, and B; which order?

    Lengths are uniform from 100 to 110. Two symbols stand at 10 to 20 and at 50 to 60, three at
    10 to 20, 33 to 43 and 66 to 76 (steps from 0). A sequence is right if each of the 4 or 8
    outputs errs by less than 0.3; the task is solved when the mean error over the last 2000
    training sequences is below 0.1 and all of them were right.

    Args:
        relevant: 2 (6a) or 3 (6b), the symbols whose order counts.

    Example:
        >>> import torch
        >>> from retrograde.tasks.temporal_order import TemporalOrder
        >>> TemporalOrder(relevant=3).outputs
        8
    """

    paper: ClassVar[str] = "Hochreiter and Schmidhuber (1997), section 5.6"
    inputs = DISTRACTORS + 4
    judged_on = 2000
    fresh = False

    def __init__(self, relevant: int = 2):
        self.relevant = _checks.whole("relevant", relevant, least=2, most=3, words="2 or 3")

    @property
    def outputs(self) -> int:
        return 1 << self.relevant

    @property
    def guess(self) -> Guess:
        """Of 1 / classes everywhere, and of one class."""
        share = 1 / self.outputs
        return Guess(share * (1 - share), share)

    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        count = _checks.whole("count", count)
        lengths = whole_numbers(100, 110, count, generator)
        starts = (10, 50) if self.relevant == 2 else (10, 33, 66)
        at = [whole_numbers(start, start + 10, count, generator) for start in starts]
        indices, klass = placed(int(lengths.max()), at, generator)
        first, last = X + 2, X + 3
        indices[0] = first
        indices[lengths - 1, torch.arange(count)] = last
        read = Symbols(indices * within(len(indices), lengths), self.inputs, lengths)
        return answered_last(read, symbols(klass, self.outputs), lengths)

    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        return largest_errors(output, sequences) < 0.3

    def solved(self, right: Bool[Tensor, "N"], errors: Float[Tensor, "N"]) -> bool:
        return super().solved(right, errors) and float(errors.mean()) < 0.1


class ModernTemporalOrder(AbstractClassification):
    """Two X or Y in T steps, in the second and in the sixth tenth; logits of 4 classes are due.

    Solved: fewer than 1 % of 10,000 sequences are wrong.

    Args:
        length: T.

    Example:
        >>> import torch
        >>> from retrograde.tasks.temporal_order import ModernTemporalOrder
        >>> ModernTemporalOrder(length=50).draw(3, torch.Generator().manual_seed(0)).x.shape
        torch.Size([50, 3, 6])
    """

    paper: ClassVar[str] = "Pascanu, Mikolov and Bengio (2013), arXiv 1211.5063"
    inputs, outputs = DISTRACTORS + 2, 4
    judged_on = 10_000

    def __init__(self, length: int = 100):
        self.length = _checks.whole("length", length, least=10)

    @property
    def guess(self) -> Guess:
        """Of equal logits, and of one class."""
        return Guess(log(4), 1 / 4)

    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        count, tenth = _checks.whole("count", count), self.length / 10
        at = [
            whole_numbers(int(start * tenth), int((start + 1) * tenth) - 1, count, generator)
            for start in (1, 5)
        ]
        indices, klass = placed(self.length, at, generator)
        lengths = torch.full((count,), self.length)
        return answered_last(symbols(indices, self.inputs), symbols(klass, self.outputs), lengths)

    def solved(self, right: Bool[Tensor, "N"], errors: Float[Tensor, "N"]) -> bool:
        return int((~right).sum()) < len(right) / 100
