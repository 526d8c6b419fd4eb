"""One quantity of an implementation beside that of its step function."""

import math
from dataclasses import dataclass

import torch

from retrograde.audits.bands import Verdict, verdict

NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class Check:
    """One quantity of a layer at one length and in one precision.

    Attributes:
        layer: its name.
        precision: the data type that the implementation ran in.
        steps: T.
        what: the parameter whose gradient it is, or "its outputs", "its last state", "dL/dx",
            "dL/d initial state".
        error: ||implementation - reference|| / ||reference||.
        allowed: what rounding explains of it (`retrograde.audits.bands`); infinite where it decides
            the quantity.
        ratio: ||implementation|| / ||reference||.
        step: the first step at which the two part, in the order in which they are computed.

    Example:
        >>> from retrograde.audits import Check
        >>> check = Check("rnn", "float32", 6, "dL/dx", 2e-8, 1e-6, 1.0)
        >>> check.verdict
        'rounding'
    """

    layer: str
    precision: str
    steps: int
    what: str
    error: float
    allowed: float
    ratio: float
    step: int | None = None

    @property
    def verdict(self) -> Verdict:
        """What the error is: "rounding", "unclear" or "difference"."""
        return verdict(self.error, self.allowed)

    @property
    def excess(self) -> float:
        """The error in units of what rounding explains; 0 where rounding decides the quantity."""
        return 0.0 if math.isinf(self.allowed) else self.error / self.allowed
