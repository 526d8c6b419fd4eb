"""The gradient by number of crossings, in as many rows as memory and time allow."""

import math

from retrograde.decomposition import Flow, Parts

CROSSING_NUMBERS = 2**26
"""Maximum number of numbers in the rows of `by_crossing`, 256 MiB in float32."""

CROSSING_ROWS, CROSSING_WORK = 256, 2**30
"""With more rows than this, those of `by_crossing` are merged as their lags grow: as many rows as
make up this many numbers at all steps together."""

RESOLUTIONS, COARSEST = (2, 3, 4, 6, 8, 12, 16), 2
"""To which part of themselves lags are known then."""


def by_crossing(flow: Flow) -> Parts:
    """The gradient by number of crossings, in fewer rows where memory or time would not do.

    The lags of the parts are octaves: where there are many loss steps, rows that are known to a
    part of their lag answer that as well as rows of single steps do.
    """
    numbers = 9 * flow.unrolled.x.shape[1] * flow.unrolled.cell.state_size  # of a row at a step
    most = max(1, CROSSING_NUMBERS // numbers)
    if len(flow.entries) > CROSSING_ROWS:
        most = min(most, CROSSING_WORK // (numbers * flow.steps))
    if len(flow.entries) <= most:
        return flow.by_crossing(max_crossings=8)
    finest = max((r for r in RESOLUTIONS if _rows_at(r, flow.steps) <= most), default=COARSEST)
    return flow.with_rows(relative=finest).by_crossing(max_crossings=8)


def _rows_at(relative: int, steps: int) -> float:
    """About how many rows there are where lags are known to 1/relative of themselves."""
    return relative * (1 + math.log2(max(2.0, steps / relative)))
