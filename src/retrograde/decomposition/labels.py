"""A decomposition is a way to label rows: all that `Flow` needs to know of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from retrograde.decomposition.parts import Parts
from retrograde.engine.entries import Entries
from retrograde.engine.unroll import Unrolled


class AbstractLabels(ABC):
    """How parts are labelled; a frozen dataclass, so that a pass is made once for equal labels.

    To add a decomposition, write one in a file of its own, and a method of `Flow` that makes it.

    Attributes:
        lags: those of each bin.
    """

    lags: tuple[range, ...]

    @abstractmethod
    def parts(self, unrolled: Unrolled, entries: Entries) -> Mapping[str, Parts]:
        """The parts of each parameter's gradient, by one backward pass."""
