"""One pass of a model, looked at lag by lag: all of its recurrent layers, or one."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde.decomposition import Parts
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.from_recording import unasked
from retrograde.decomposition.residual import void_in_words
from retrograde.engine import Scaled
from retrograde.errors import VoidDecompositionWarning
from retrograde.recording import Recorded, Recording
from retrograde.truncation.horizon import ENDS, of_layers
from retrograde.truncation.measures import Measures, root_of_squares
from retrograde.truncation.truncated import KINDS


@dataclass(frozen=True, eq=False)
class Seen:
    """What one pass says.

    Attributes:
        measures: by name, "" for the whole gradient; none of a truncation that a single pass does
            not tell.
        parts: those of each bin of lags, by layer and parameter.
        lags: the bins.
        steps: of the longest layer.
        reach: the largest of any layer.
        samples: of the batch.
        notes: what a reader must know.
        sensitivity: log2 of the norm of dL/dx in each bin.
        layers: the recorded layers.
    """

    measures: Mapping[str, Measures]
    parts: tuple[Mapping[str, Scaled], ...]
    lags: tuple[range, ...]
    steps: int
    reach: int
    samples: int
    notes: tuple[str, ...]
    sensitivity: Float[Tensor, "M"]
    layers: Mapping[str, Recorded]


def look(recording: Recording, layer: str | None, kind: str) -> Seen:
    """Look at one pass."""
    if layer is not None and layer not in recording.refused:
        _checks.existing("layer", layer, recording)
    names = [*recording] if layer is None else [layer]
    if not names:
        recording.only()  # says why
    flows = {name: unasked(recording[name]) for name in names}
    steps = max(flow.steps for flow in flows.values())
    lags = lag_bins("octaves", steps)
    measures: dict[str, Mapping[str, Measures]] = {}
    parts: list[dict[str, Scaled]] = [{} for _ in lags]
    notes, sensitivity = [], []
    for name, flow in flows.items():
        if not flow.walked(inputs=True).residual.ok:
            words = void_in_words(name, flow.residual)
            warnings.warn(words, VoidDecompositionWarning, stacklevel=3)
        starts = [bin_.start for bin_ in lags]
        put(parts, name, rows_of({of: flow.by_lag(of, starts) for of in flow.parameters}))
        if kind in KINDS:
            measures[name] = flow.truncated(kind, steps)
        by_input = flow.by_lag("input", starts).log2
        nothing = by_input.new_full((len(lags) - len(by_input),), -torch.inf)
        sensitivity.append(torch.cat((by_input, nothing)))
        if flow.lags_end:
            notes.append(f"{name}: {ENDS}")
    if len(flows) > 1 and measures:
        notes.append(SEVERAL)
    return Seen(
        of_layers(measures) if measures else {},
        tuple(parts),
        lags,
        steps,
        max(flow.reach for flow in flows.values()),
        max(flow.recorded.x.shape[1] for flow in flows.values()),
        tuple(notes),
        root_of_squares(torch.stack(sensitivity)),
        {name: flow.recorded for name, flow in flows.items()},
    )


SEVERAL = (
    "several recurrent layers: the recurrence of each is truncated on its own, and what comes to a "
    "layer through another one's past counts as given by the loss, so that truncating all of them "
    "at once may lose more"
)


def put(
    parts: Sequence[dict[str, Scaled]], layer: str, some: Sequence[Mapping[str, Scaled]]
) -> None:
    """Put the parts of a layer, which may have fewer bins, beside those of others."""
    nothing = {n: Scaled(torch.zeros_like(r.values), r.exponent) for n, r in some[0].items()}
    for number, found in enumerate(parts):
        here = some[number] if number < len(some) else nothing
        found |= {f"{layer}: {name}": row for name, row in here.items()}


def rows_of(parts: Mapping[str, Parts]) -> list[dict[str, Scaled]]:
    """The parts of several parameters, bin by bin, each as one row."""
    rows = {name: each.scaled for name, each in parts.items()}
    count = len(next(iter(rows.values())).exponent)
    return [
        {n: Scaled(row.values[at : at + 1], row.exponent[at : at + 1]) for n, row in rows.items()}
        for at in range(count)
    ]
