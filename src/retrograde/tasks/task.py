"""What a task is: sequences to draw, answers to judge, and the score of guessing."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True, eq=False)
class Symbols:
    """Inputs that are one symbol at each step: vectors with a single 1.

    Attributes:
        numbers: of the symbols, [T, N]; 0 beyond the ends of their sequences.
        count: I, how many symbols there are.
        lengths: steps of each sequence, [N].
    """

    numbers: Int[Tensor, "T N"]
    count: int
    lengths: Int[Tensor, "N"]

    def vectors(self) -> Float[Tensor, "T N I"]:
        """The symbols as vectors; zeros beyond the ends of their sequences."""
        return symbols(self.numbers, self.count, self.lengths)


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of one task, padded with zeros at their ends.

    Attributes:
        read: what the network reads, as `Symbols` or as `x`.
        y: what it should answer, [T, N, O]; zero where no answer is due.
        due: the steps at which an answer is due, [T, N]. Errors arise nowhere else.
        lengths: steps of each sequence, [N].

    Example:
        >>> import torch
        >>> from retrograde.tasks import Adding
        >>> drawn = Adding(50).draw(3, torch.Generator().manual_seed(0))
        >>> drawn.x.shape[1:], drawn.due.sum(0).tolist()
        (torch.Size([3, 2]), [1, 1, 1])
    """

    read: Float[Tensor, "T N I"] | Symbols
    y: Float[Tensor, "T N O"]
    due: Bool[Tensor, "T N"]
    lengths: Int[Tensor, "N"]

    @cached_property
    def x(self) -> Float[Tensor, "T N I"]:
        """What the network reads, [T, N, I]."""
        return self.read.vectors() if isinstance(self.read, Symbols) else self.read


@dataclass(frozen=True)
class Guess:
    """How well a network does that has learnt everything but what lies far back.

    Attributes:
        loss: its mean loss.
        right: the largest share of sequences that it can get right.

    Example:
        >>> from retrograde.tasks import Copying
        >>> print(f"{Copying(delay=100).guess.loss:.4f} nats")
        0.1733 nats
    """

    loss: float
    right: float


class AbstractTask(ABC):
    """A task: its sequences, its loss, and when it counts as solved.

    Attributes:
        paper: where it comes from.
        judged_on: the number of sequences that `solved` looks at.
        fresh: they are drawn for the test; otherwise they are the latest ones of the training.
        limit: an error of an answer at which the training leaves a sequence, as some papers do; 0
            for none.
        flawless: one that is wrong is enough to fail.

    Example:
        >>> import torch
        >>> from retrograde.tasks import Adding
        >>> task = Adding(50)
        >>> drawn = task.draw(3, torch.Generator().manual_seed(0))
        >>> always = torch.full_like(drawn.y, 0.5)
        >>> bool(task.loss(always, drawn) < 0.1), task.right(always, drawn).shape
        (True, torch.Size([3]))
    """

    paper: ClassVar[str]
    judged_on: int
    fresh: bool = True
    limit: float = 0.0
    flawless: bool = False

    @property
    @abstractmethod
    def inputs(self) -> int:
        """I, the width of what the network reads."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """O, the width of its answer."""

    @property
    @abstractmethod
    def guess(self) -> Guess:
        """The score of guessing, in closed form."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        """Draw `count` sequences."""

    @abstractmethod
    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        """The sequences that were answered as the paper asks."""

    def loss(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Float[Tensor, ""]:
        """The mean squared error of all outputs, over the steps at which an answer is due."""
        return (output - sequences.y)[sequences.due].square().mean()

    def errors(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Float[Tensor, "N"]:
        """The mean absolute error of each sequence, over outputs and the steps that count."""
        return mean_errors(output, sequences)

    def solved(self, right: Bool[Tensor, "N"], errors: Float[Tensor, "N"]) -> bool:
        """Whether the task counts as solved.

        Args:
            right: of `judged_on` sequences, those that were right.
            errors: their mean absolute errors.
        """
        return bool(right.all())

    def lot(self, generator: torch.Generator) -> "Lot":
        """What one network is trained and tested on."""
        return Lot(self, generator)


class Lot:
    """The sequences of one network: drawn one after the other, for training and for tests.

    Args:
        task: whose sequences they are.
        generator: of all of them.
    """

    def __init__(self, task: AbstractTask, generator: torch.Generator):
        self.task, self.generator = task, generator

    def training(self, count: int) -> Sequences:
        """Sequences to learn."""
        return self.task.draw(count, self.generator)

    def tests(self, most: int) -> Iterator[Sequences]:
        """The sequences of a test, `most` at once."""
        for first in range(0, self.task.judged_on, most):
            yield self.task.draw(min(most, self.task.judged_on - first), self.generator)


class AbstractClassification(AbstractTask):
    """A task whose outputs are logits, with the mean cross-entropy (in nats) as its loss.

    Example:
        >>> from retrograde.tasks import AbstractClassification, Adding, Copying
        >>> [isinstance(task(), AbstractClassification) for task in (Copying, Adding)]
        [True, False]
    """

    def loss(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Float[Tensor, ""]:
        """The mean cross-entropy, in nats, over the steps at which an answer is due."""
        return cross_entropy(output[sequences.due], sequences.y[sequences.due])

    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        """The sequences in which the right class has the largest logit at every step."""
        wrong = output.argmax(2) != sequences.y.argmax(2)
        return ~(wrong & sequences.due).any(0)


def largest_errors(output: Float[Tensor, "T N O"], sequences: Sequences) -> Float[Tensor, "N"]:
    """The largest absolute error of each sequence, over outputs and the steps that count."""
    largest = (output - sequences.y).abs().amax(2)
    return torch.where(sequences.due, largest, 0.0).amax(0)


def mean_errors(output: Float[Tensor, "T N O"], sequences: Sequences) -> Float[Tensor, "N"]:
    """The mean absolute error of each sequence, over outputs and the steps that count."""
    means = (output - sequences.y).abs().mean(2)
    return torch.where(sequences.due, means, 0.0).sum(0) / sequences.due.sum(0)


def whole_numbers(low: int, high: int, count: int, generator: torch.Generator) -> Int[Tensor, "N"]:
    """`count` whole numbers from low to high, both included, all equally likely."""
    return torch.randint(low, high + 1, (count,), generator=generator)


def answered_last(
    read: Float[Tensor, "T N I"] | Symbols, answer: Float[Tensor, "N O"], lengths: Int[Tensor, "N"]
) -> Sequences:
    """Sequences with one answer each, due at their last step."""
    steps = len(read.numbers if isinstance(read, Symbols) else read)
    due = torch.arange(steps).unsqueeze(1) == lengths - 1
    y = torch.where(due.unsqueeze(2), answer.unsqueeze(0), 0.0)
    return Sequences(read, y, due, lengths)


def symbols(
    indices: Int[Tensor, "*N"], count: int, lengths: Int[Tensor, "N"] | None = None
) -> Float[Tensor, "*N C"]:
    """Symbols as vectors with a single 1; beyond the ends of their sequences as zeros."""
    inside = indices.new_ones(()) if lengths is None else within(len(indices), lengths)
    vectors = torch.zeros(*indices.shape, count)
    ones = inside.float().expand(indices.shape).unsqueeze(-1)
    return vectors.scatter_(-1, indices.unsqueeze(-1), ones)


def within(steps: int, lengths: Int[Tensor, "N"]) -> Bool[Tensor, "T N"]:
    """The steps of each sequence, of `steps` that they are padded to."""
    return torch.arange(steps).unsqueeze(1) < lengths


def ranked(output: Float[Tensor, "*N O"], possible: Bool[Tensor, "*N O"]) -> Bool[Tensor, "*N"]:
    """Where every output that may be active is more active than every other one."""
    least = output.masked_fill(~possible, torch.inf).amin(-1)
    most = output.masked_fill(possible, -torch.inf).amax(-1)
    return least > most
