"""Where in a recurrent module a layer stands: its number and its direction, as one value.

Names of torch.nn carry it as a suffix (`weight_hh_l1_reverse`). It is read from a suffix once,
where names come from outside, and written back only where names go out.
"""

import re
from dataclasses import dataclass
from functools import partial

from retrograde import _checks

SUFFIX = re.compile(r"_l(?P<layer>\d+)(?P<reverse>_reverse)?")


@dataclass(frozen=True, order=True)
class Position:
    """Number of a layer from the input upwards, and whether it reads the sequence backwards.

    Raises:
        ArgumentError: for a layer that is no integer from 0, or a direction that is no flag.

    Example:
        >>> from retrograde.cells import Position
        >>> Position(1, reverse=True).suffix
        '_l1_reverse'
        >>> Position.of("_l1_reverse")
        Position(layer=1, reverse=True)
        >>> print(Position(0), "|", Position(1, reverse=True))
        layer 0 | layer 1, reverse
    """

    layer: int
    reverse: bool = False

    def __post_init__(self) -> None:
        _checks.fields(self, layer=partial(_checks.whole, least=0), reverse=_checks.flag)

    @staticmethod
    def of(suffix: str) -> "Position | None":
        """The position that a suffix of torch.nn's names stands for; None for any other suffix."""
        found = SUFFIX.fullmatch(suffix)
        return found and Position(int(found["layer"]), found["reverse"] is not None)

    @staticmethod
    def every(layers: int, bidirectional: bool) -> "tuple[Position, ...]":
        """Those of a whole module, in torch's order: layer by layer, forward before reverse."""
        directions = (False, True) if bidirectional else (False,)
        return tuple(Position(layer, reverse) for layer in range(layers) for reverse in directions)

    @property
    def suffix(self) -> str:
        """What the names of its weights end in."""
        return f"_l{self.layer}" + ("_reverse" if self.reverse else "")

    def __str__(self) -> str:
        return f"layer {self.layer}" + (", reverse" if self.reverse else "")
