"""What an axis of parts runs over, and which of its places a label means."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from numbers import Integral
from typing import Any

import numpy
from torch import Tensor

from retrograde import _checks
from retrograde.errors import ArgumentError

Label = int | str | range | None
"""A step, a name, a range of lags or of steps; None for a parameter without gates."""

Axis = Mapping[str, tuple[Label, ...]]
"""What an axis runs over, and the label of each place on it. Where a place has two labels, the
parameter and the gate of a block for one, the axis has both."""


def size_of(axis: Axis) -> int:
    """How many places it has."""
    return len(next(iter(axis.values())))


def ends(label: Any) -> tuple[int, int]:
    """The first and the last step of a label."""
    return (label.start, label.stop - 1) if isinstance(label, range) else (label, label)


def merged(labels: Sequence[Any]) -> Label:
    """One label for neighbouring steps."""
    first, last = ends(labels[0])[0], ends(labels[-1])[1]
    return labels[0] if len(labels) == 1 else range(first, last + 1)


def borders(labels: Sequence[Any]) -> tuple[int, ...]:
    """Where each of some labels begins, and where the last one ends."""
    return (*(ends(label)[0] for label in labels), *(ends(label)[1] + 1 for label in labels[-1:]))


def places_of(name: str, column: Sequence[Label], wanted: Any) -> Iterator[int]:
    """The places in a column that a label, or one of several, means."""
    several = isinstance(wanted, tuple | list)
    for one in wanted if several else (wanted,):
        places = [at for at, label in enumerate(column) if _means(name, label, one)]
        if not places:
            there = ", ".join(map(str, column[:20])) + (", ..." if len(column) > 20 else "")
            raise ArgumentError(f"no part has {name} {_checks.shown(one)}; there are: {there}")
        yield from places


def _means(name: str, label: Label, wanted: Any) -> bool:
    if isinstance(wanted, Integral | Tensor | numpy.ndarray):
        wanted = _checks.whole(name, wanted, least=None)
    if isinstance(wanted, range):
        if not isinstance(label, range):
            return isinstance(label, int) and label in wanted
        inside = [number in wanted for number in (label[0], label[-1])]
        if label != wanted and any(inside) and not all(inside):
            raise ArgumentError(
                f"{name} {_checks.shown(wanted)} begins or ends inside {label}, which is a single "
                "part; choose bins= that begin there"
            )
        return all(inside)
    if isinstance(label, range) and isinstance(wanted, int):
        return wanted in label
    return type(label) is type(wanted) and label == wanted


def table_columns(axes: Sequence[Axis]) -> Iterator[tuple[str, list[Label]]]:
    """Name and values of each column of a table of all places; two columns for ranges."""
    places = list(product(*(range(size_of(axis)) for axis in axes)))
    for number, axis in enumerate(axes):
        for name, labels in axis.items():
            column = [labels[place[number]] for place in places]
            if any(isinstance(label, range) for label in labels):
                yield f"first_{name}", [ends(label)[0] for label in column]
                yield f"last_{name}", [ends(label)[1] for label in column]
            else:
                yield name, column
