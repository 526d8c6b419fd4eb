"""Two classes of sequences that only their first elements tell apart; the rest is noise."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde import _checks
from retrograde.tasks.task import (
    AbstractTask,
    Guess,
    Sequences,
    answered_last,
    largest_errors,
    mean_errors,
    whole_numbers,
)

VARIANCE = 0.2
"""Of the noise on the input line."""

TARGET_VARIANCE = 0.1
"""Of the noise on the targets of task 3c."""


class TwoSequences(AbstractTask):
    """Experiments 3a, 3b and 3c of 1997, after Bengio, Simard and Frasconi (1994).

    The first N elements are 1 for one class and -1 for the other; all later ones are drawn from a
    normal distribution of variance 0.2. Lengths are uniform from T to 1.1 T, and the class is due
    at the end.

    - "plain" (3a): targets 1 and 0. A sequence is right if its error is below 0.2; solved: of 256
      sequences all are right, with a mean error below 0.01.
    - "noisy inputs" (3b): noise of variance 0.2 on the first N elements too; solved: fewer than 6
      of 256 are wrong, with a mean error below 0.04.
    - "noisy targets" (3c): targets 0.2 and 0.8 with normal noise of variance 0.1. Errors are those
      against the target without noise; a sequence is right below 0.1; solved: all of 256 are, with
      a mean error below 0.015.

    The paper's first criterion (ST1) leaves the mean error out, its second (ST2) is the one here.
    It remarks that guessing weights at random solves 3a and 3b faster than any training.

    Args:
        length: T, the shortest length.
        informative: N.
        noise: "plain", "noisy inputs" or "noisy targets".

    Example:
        >>> import torch
        >>> from retrograde.tasks.two_sequences import TwoSequences
        >>> sequences = TwoSequences(length=20).draw(5, torch.Generator().manual_seed(0))
        >>> sequences.x[:3, 0].flatten().tolist(), float(sequences.y.amax())
        ([1.0, 1.0, 1.0], 1.0)
    """

    paper: ClassVar[str] = "Hochreiter and Schmidhuber (1997), section 5.3"
    inputs = outputs = 1
    judged_on = 256

    def __init__(
        self,
        length: int = 100,
        informative: int = 3,
        noise: Literal["plain", "noisy inputs", "noisy targets"] = "plain",
    ):
        self.length = _checks.whole("length", length, least=2)
        self.informative = _checks.whole("informative", informative, most=self.length)
        self.noise = _checks.one_of("noise", noise, ("plain", "noisy inputs", "noisy targets"))

    @property
    def guess(self) -> Guess:
        """Of the mean of the two targets, and of one of them."""
        if self.noise == "noisy targets":
            return Guess(0.3**2 + TARGET_VARIANCE, 1 / 2)
        return Guess(1 / 4, 1 / 2)

    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        count = _checks.whole("count", count)
        lengths = whole_numbers(self.length, self.length + self.length // 10, count, generator)
        first = whole_numbers(0, 1, count, generator)
        steps = torch.arange(int(lengths.max())).unsqueeze(1)
        x = torch.randn(len(steps), count, generator=generator) * VARIANCE**0.5
        signal = 2.0 * first - 1
        if self.noise == "noisy inputs":
            x = torch.where(steps < self.informative, x + signal, x)
        else:
            x = torch.where(steps < self.informative, signal, x)
        x = torch.where(steps < lengths, x, 0.0)
        target = first.float()
        if self.noise == "noisy targets":
            noise = torch.randn(count, generator=generator) * TARGET_VARIANCE**0.5
            target = self._expected(first) + noise
        return answered_last(x.unsqueeze(2), target.unsqueeze(1), lengths)

    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        limit = 0.1 if self.noise == "noisy targets" else 0.2
        return largest_errors(output, self._without_noise(sequences)) < limit

    def solved(self, right: Bool[Tensor, "N"], errors: Float[Tensor, "N"]) -> bool:
        most, error = {
            "plain": (0, 0.01),
            "noisy inputs": (5, 0.04),
            "noisy targets": (0, 0.015),
        }[self.noise]
        return int((~right).sum()) <= most and float(errors.mean()) < error

    def errors(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Float[Tensor, "N"]:
        return mean_errors(output, self._without_noise(sequences))

    def _without_noise(self, sequences: Sequences) -> Sequences:
        """The same sequences with the targets that the noise was added to."""
        if self.noise != "noisy targets":
            return sequences
        target = self._expected(sequences.x[0, :, 0] > 0)
        return answered_last(sequences.x, target.unsqueeze(1), sequences.lengths)

    @staticmethod
    def _expected(first: Tensor) -> Float[Tensor, "N"]:
        """0.2 for class 1, whose elements are 1, and 0.8 for class 2."""
        return torch.where(first.bool(), 0.2, 0.8)
