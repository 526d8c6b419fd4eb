"""Which recurrent layers there are in a mapping of names to tensors, told by names and shapes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retrograde.cells.gates import ACTIVATIONS, GRU_GATES, Gate, with_role
from retrograde.cells.generations import TABLE, generation
from retrograde.cells.position import SUFFIX, Position

NAME = re.compile(
    r"(?:(?P<path>.*)\.)?(?P<weight>weight_(?:ih|hh|hr|ch|gg)|bias_(?:ih|hh))"
    rf"(?P<suffix>(?:{SUFFIX.pattern})?)",
    re.DOTALL,
)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Kind:
    """What a recurrent layer is, as far as it is known.

    Attributes:
        name: "LSTM", "GRU" or "RNN", the likeliest reading.
        generations: the generations of that name with just these shapes; none for an RNN.
        gates: the blocks of rows of its matrices, in order; "1 of 3", ... where they may be either.
        others: further readings of the same shapes.
        nonlinearity: of an RNN, where it is known: shapes do not tell.

    Example:
        >>> import torch
        >>> from retrograde.spectra import inspect_weights
        >>> kind = inspect_weights(torch.nn.GRU(2, 3)).layers[0].kind
        >>> kind.name, kind.gates
        ('GRU', ('reset', 'update', 'candidate'))
    """

    name: str
    generations: tuple[str, ...]
    gates: tuple[str, ...]
    others: tuple[str, ...] = ()
    nonlinearity: str | None = None

    @property
    def blocks(self) -> tuple[Gate, ...]:
        """The gates as values; of one that shapes do not tell neither activation nor role."""
        if self.name == "GRU":
            return GRU_GATES
        if self.name == "RNN":
            return (Gate("hidden", ACTIVATIONS.get(self.nonlinearity or ""), "candidate"),)
        rows = [generation(name) for name in self.generations]
        if any(row.gates != self.gates for row in rows):
            return tuple(Gate(name, None) for name in self.gates)
        return rows[0].blocks  # they differ in activations of the same largest slope, if at all

    @property
    def keeping(self) -> str | None:
        """The gate whose bias sets how long the state is kept; None if there is none."""
        found = with_role(self.blocks, "input" if self.coupled else "forget")
        return found[0].name if found else None

    @property
    def written(self) -> str | None:
        """The gate that lets the candidate in; None if there is none."""
        found = with_role(self.blocks, "input")
        return found[0].name if found else None

    @property
    def coupled(self) -> bool:
        """f = 1 - i, for certain."""
        return self.name == "LSTM" and all(generation(name).coupled for name in self.generations)


def split_name(name: str) -> tuple[str, str, Position | None] | None:
    """Path of the layer, weight and position of a weight's name; None for any other name.

    Example:
        >>> split_name("encoder.lstm.weight_hh_l1_reverse")
        ('encoder.lstm', 'weight_hh', Position(layer=1, reverse=True))
        >>> split_name("decoder.weight_hh")  # of a cell, which has no layers
        ('decoder', 'weight_hh', None)
    """
    found = NAME.fullmatch(name)
    if found is None:
        return None
    return found["path"] or "", found["weight"], Position.of(found["suffix"])


def state_dicts(checkpoint: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dicts inside a checkpoint, each with its place: itself, or dicts at any depth.

    A state dict is one that has a recurrent weight among its own entries.
    """
    for place, found in _nested(checkpoint):
        named = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if any(split_name(name) for name in named):
            yield place, unwrapped(named)


def names_in(checkpoint: Mapping[Any, Any]) -> list[str]:
    """The names of all that is no dict, those of tensors first."""
    named = [
        (isinstance(value, Tensor), f"{place}.{name}" if place else str(name))
        for place, found in _nested(checkpoint)
        for name, value in found.items()
        if not isinstance(value, Mapping)
    ]
    return [name for _, name in sorted(named, key=lambda each: not each[0])]


def _nested(checkpoint: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The checkpoint and every dict inside it, each once, with its place."""
    waiting = [("", checkpoint)]
    seen: set[int] = set()
    while waiting:
        place, found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield place, found
        waiting += [
            (f"{place}.{name}" if place else str(name), part)
            for name, part in found.items()
            if isinstance(part, Mapping)
        ]


def unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without what torch.compile and DistributedDataParallel put before them.

    Example:
        >>> import torch
        >>> list(unwrapped({"module._orig_mod.lstm.weight_hh_l0": torch.zeros(8, 2)}))
        ['lstm.weight_hh_l0']
    """
    names = [[part for part in name.split(".") if part != "_orig_mod"] for name in weights]
    wrapped = all(parts[0] == "module" for parts in names)
    return {
        ".".join(parts[wrapped:]): weight
        for parts, weight in zip(names, weights.values(), strict=True)
    }


def kind_of(shapes: Shapes) -> Kind | None:
    """What a layer with weights of these shapes may be; None if nothing that is known here.

    The rows of weight_hh, in units, are the gates: 4 for an LSTM, 3 for a GRU or an LSTM that lacks
    one, 1 for an RNN or the bare carousel. weight_ch and weight_gg tell the generations apart.

    Example:
        >>> kind_of({"weight_hh": (12, 4)}).name, kind_of({"weight_hh": (12, 4)}).others
        ('GRU', ('lstm-1997',))
    """
    rows, columns = shapes["weight_hh"]
    projection = shapes.get("weight_hr")
    hidden = columns if projection is None else projection[1]
    if not hidden or not columns or rows % hidden:
        return None
    if projection is not None:
        fits = rows == 4 * hidden and projection[0] == columns and not _extras(shapes)
        return Kind("LSTM", ("lstm-2000",), generation("lstm-2000").gates) if fits else None
    found = {key: shapes[key] for key in ("weight_hh", *_extras(shapes))}
    fitting = [row for row in TABLE if _without_rest(row.shapes(1, hidden)) == found]
    lstms = tuple(row.name for row in fitting)
    if not _extras(shapes) and rows == 3 * hidden:
        return Kind("GRU", ("gru-torch", "gru-2014"), tuple(gate.name for gate in GRU_GATES), lstms)
    if not _extras(shapes) and rows == hidden:
        return Kind("RNN", (), ("hidden",), lstms)
    if not fitting:
        return None
    gates = {row.gates for row in fitting}
    count = rows // hidden
    unknown = tuple(f"{number + 1} of {count}" for number in range(count))
    return Kind("LSTM", lstms, gates.pop() if len(gates) == 1 else unknown)


def _extras(shapes: Shapes) -> tuple[str, ...]:
    return tuple(name for name in ("weight_ch", "weight_gg") if name in shapes)


def _without_rest(shapes: Shapes) -> Shapes:
    return {n: s for n, s in shapes.items() if n in ("weight_hh", "weight_ch", "weight_gg")}
