"""Ten symbols, to be said again after T steps."""

from math import log
from typing import ClassVar

import torch
from torch import Tensor

from retrograde import _checks
from retrograde.tasks.task import AbstractClassification, Guess, Sequences, symbols

SYMBOLS, COPIED = 8, 10
BLANK, GO = 8, 9


class Copying(AbstractClassification):
    """Ten symbols, T - 1 blanks, a signal; then the ten symbols are due, while blanks are read.

        input   3 1 4 1 5 2 6 5 3 5 - - ... - - > - - - - - - - - - -
        output  - - - - - - - - - - - - ... - - - 3 1 4 1 5 2 6 5 3 5

    At all T + 20 steps logits of the 8 symbols and the blank are due. Knowing when the symbols are
    due and nothing of them costs 10 ln 8 / (T + 20) nats, the score to be beaten; the paper names
    no test, and here the task is solved when 1000 sequences are copied without an error.

    Args:
        delay: T.

    Example:
        >>> from retrograde.tasks.copying import Copying
        >>> f"{Copying(delay=100).guess.loss:.4f}"
        '0.1733'
    """

    paper: ClassVar[str] = "Arjovsky, Shah and Bengio (2016), arXiv 1511.06464"
    inputs, outputs = SYMBOLS + 2, SYMBOLS + 1
    judged_on = 1000

    def __init__(self, delay: int = 100):
        self.delay = _checks.whole("delay", delay)

    @property
    def guess(self) -> Guess:
        """Of equal logits for the symbols where they are due, and of one symbol there."""
        steps = self.delay + 2 * COPIED
        return Guess(COPIED * log(SYMBOLS) / steps, SYMBOLS**-COPIED)

    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        count = _checks.whole("count", count)
        steps = self.delay + 2 * COPIED
        copied = torch.randint(SYMBOLS, (COPIED, count), generator=generator)
        read: Tensor = torch.full((steps, count), BLANK)
        answer = read.clone()
        read[:COPIED] = answer[-COPIED:] = copied
        read[self.delay + COPIED - 1] = GO
        due = torch.ones(steps, count, dtype=torch.bool)
        lengths = torch.full((count,), steps)
        return Sequences(symbols(read, self.inputs), symbols(answer, self.outputs), due, lengths)
