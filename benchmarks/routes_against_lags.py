"""What do routes and crossings cost, against the parts by lag alone?

`by_lag` is one backward pass with all entry rows and the sums over lag bins. `by_route` in the same
pass splits every bin by route; `by_crossing` carries a row for each number of crossings.
"""

import torch
from _measure import THREADS, Size, Spread, answer, interleaved, lstm_pass, ratios

from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_crossing import Crossings
from retrograde.decomposition.by_lag import LagSums
from retrograde.decomposition.by_route import RouteSums
from retrograde.engine import Entries, fold, unroll

SIZE = Size(T=256, B=8, I=64, H=128)
TARGETS = {"by lag and by route": 2.5, "by crossing, 8": 10}
ROUNDS = 7

if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    recorded = lstm_pass(SIZE)[-1]
    cell, parameters = recorded.cell, recorded.cell.parameters
    unrolled = unroll(cell, recorded.x, recorded.initial)
    entries = Entries.of(recorded.direct)
    octaves = lag_bins("octaves", SIZE.T)

    def by_lag() -> LagSums:
        return LagSums(octaves, cell)

    def by_route() -> RouteSums:
        return RouteSums(octaves, cell, entries)

    seconds = interleaved(
        {
            "by lag": lambda: fold(unrolled, entries, [by_lag()]),
            "by lag and by route": lambda: fold(unrolled, entries, [by_lag(), by_route()]),
            "by route": lambda: fold(unrolled, entries, [by_route()]),
            "by crossing, 8": lambda: Crossings(octaves, 8).parts(unrolled, entries),
        },
        ROUNDS,
    )
    rows: list[dict[str, object]] = []
    for name, values in seconds.items():
        times = ratios(values, seconds["by lag"])
        target = TARGETS.get(name)
        rows.append(
            {
                "what": name,
                "seconds": Spread.of(values),
                "times by lag": times,
                "target": target,
                "met": times.median <= target if target else None,
            }
        )
    answer(__file__, f"{SIZE}: what do routes and crossings cost?", rows)
