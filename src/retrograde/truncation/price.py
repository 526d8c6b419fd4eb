"""What a window costs against the present one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    """One forward and backward pass of the recurrent layer over fewer steps, measured.

    Attributes:
        steps: of the window.
        present: of the present window, T.
        seconds: of the pass over the window, the least of a few.
        present_seconds: of the pass over all T steps.
        bytes: what autograd keeps from its forward pass for its backward pass, the layer's weights
            left out.
        present_bytes: the same for all T steps.
        further: steps after the first loss step, which a shorter input keeps, and which the pass
            over the window reads as well.

    Example:
        >>> from retrograde.truncation import Price
        >>> print(Price(5, 20, seconds=0.5, present_seconds=1.0, bytes=250, present_bytes=1000))
        50% of the time and 25% of the memory of the present 20 steps
    """

    steps: int
    present: int
    seconds: float
    present_seconds: float
    bytes: int
    present_bytes: int
    further: int = 0

    @property
    def time(self) -> float:
        """Seconds over those of the present window."""
        return self.seconds / self.present_seconds

    @property
    def memory(self) -> float:
        """Bytes over those of the present window."""
        return self.bytes / self.present_bytes

    def __str__(self) -> str:
        return (
            f"{self.time:.0%} of the time and {self.memory:.0%} of the memory of the present "
            f"{self.present} steps"
        )
