"""Handwritten digits, read one pixel at a time. They need the `study` extra, for scikit-learn."""

from functools import cached_property
from math import log
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrograde import _checks
from retrograde._optional import optional
from retrograde.tasks.task import AbstractClassification, Guess, Sequences, answered_last, symbols

PIXELS, CLASSES, GREYS = 64, 10, 16
HELD_OUT = 360
"""The last images, which are for the test; those before are for training."""


class SequentialDigits(AbstractClassification):
    """The 1797 digits of 8 x 8 pixels that scikit-learn ships, as 64 steps of one number.

    A small relative of the sequential MNIST of 784 steps. The class is due after the last pixel.
    No test is named; here it is solved when 95 % of the held-out images are recognised.

    Args:
        permuted: the pixels come in one fixed random order, which takes their neighbourhood away.
        held_out: draw from the last 360 images, which no training sees, instead of the others.

    Example:
        >>> from retrograde.tasks.digits import SequentialDigits
        >>> SequentialDigits(permuted=True).outputs
        10
    """

    paper: ClassVar[str] = "after Le, Jaitly and Hinton (2015), arXiv 1504.00941"
    inputs, outputs = 1, CLASSES
    judged_on = HELD_OUT

    def __init__(self, permuted: bool = False, held_out: bool = False):
        self.permuted = _checks.flag("permuted", permuted)
        self.held_out = _checks.flag("held_out", held_out)

    @property
    def guess(self) -> Guess:
        """Of equal logits, and of one class; the ten classes are nearly equally frequent."""
        return Guess(log(CLASSES), 1 / CLASSES)

    @cached_property
    def _images(self) -> tuple[Float[Tensor, "T N"], Int[Tensor, "N"]]:
        with optional("SequentialDigits", "study"):
            from sklearn.datasets import load_digits
        images, classes = load_digits(return_X_y=True)
        part = slice(-HELD_OUT, None) if self.held_out else slice(-HELD_OUT)
        pixels = torch.from_numpy(images[part]).float().T / GREYS
        if self.permuted:
            pixels = pixels[torch.randperm(PIXELS, generator=torch.Generator().manual_seed(0))]
        return pixels, torch.from_numpy(classes[part]).long()

    def draw(self, count: int, generator: torch.Generator) -> Sequences:
        """Draw `count` different images.

        Raises:
            ArgumentError: if there are not that many.
            MissingExtraError: without scikit-learn.
        """
        pixels, classes = self._images
        count = _checks.whole("count", count, most=len(classes))
        which = torch.randperm(len(classes), generator=generator)[:count]
        lengths = torch.full((count,), PIXELS)
        answer = symbols(classes[which], CLASSES)
        return answered_last(pixels[:, which].unsqueeze(2), answer, lengths)

    def solved(self, right: Bool[Tensor, "N"], errors: Float[Tensor, "N"]) -> bool:
        return float(right.double().mean()) >= 0.95
