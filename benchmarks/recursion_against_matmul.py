"""How near does the backward recursion come to the machine's own rate of matrix products?

Each of the T(T+1)/2 adjoints dL_t/da_k [B, 4H] has to go through the recurrent weights [4H, H]:
2 * B * 4H * H operations for each pair (t, k), and only these are counted. What the engine does
besides (gates, rescaling, folds) lowers its rate; where it gets through with fewer operations (many
rows go through one Jacobian for each sample) its rate is above that of what it really multiplies.
Products are timed in the same rounds.
"""

from collections import deque
from collections.abc import Callable

import torch
from _measure import THREADS, Size, Spread, answer, interleaved, lstm_pass, ratios

import retrograde
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_lag import LagSums
from retrograde.decomposition.by_time import ContributionNorms
from retrograde.engine import Entries, fold, unroll
from retrograde.engine.adjoint import rows_of_entries

SIZE = Size(T=256, B=8, I=64, H=128)
OPERATIONS = 2 * SIZE.B * 4 * SIZE.H * SIZE.H * SIZE.T * (SIZE.T + 1) // 2
TARGET = 1.0
ROUNDS = 9
SAME_SHAPE, SQUARE = "mm 1024 x 4H x H", "mm 1024 x 1024 x 1024"


def products(rows: int, inner: int, columns: int) -> Callable[[], None]:
    """As many products as make up (nearly) the operations of the recursion."""
    left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(0)
    times = round(OPERATIONS / (2 * rows * inner * columns))

    def run() -> None:
        for _ in range(times):
            torch.mm(left, right, out=out)

    return run


def recursions() -> dict[str, Callable[[], object]]:
    """The recursion alone, with one fold each, and everything that `decompose` does."""
    recorded = lstm_pass(SIZE)[-1]
    cell, parameters = recorded.cell, recorded.cell.parameters
    unrolled = unroll(cell, recorded.x, recorded.initial)
    entries = Entries.of(recorded.direct)
    octaves = lag_bins("octaves", SIZE.T)
    return {
        "stream": lambda: deque(rows_of_entries(unrolled, entries), maxlen=0),  # keeps none
        "stream + by_lag": lambda: fold(unrolled, entries, [LagSums(octaves, cell)]),
        "stream + norms": lambda: fold(
            unrolled, entries, [ContributionNorms(entries, SIZE.T, parameters)]
        ),
        "retrograde.decompose": lambda: retrograde.decompose(recorded),
    }


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    seconds = interleaved(
        {
            SAME_SHAPE: products(1024, 4 * SIZE.H, SIZE.H),
            SQUARE: products(1024, 1024, 1024),
            **recursions(),
        },
        ROUNDS,
    )
    rows: list[dict[str, object]] = []
    for name, values in seconds.items():
        against = ratios(seconds[SAME_SHAPE], values)
        targeted = name == "stream + by_lag"
        rows.append(
            {
                "what": name,
                "seconds": Spread.of(values),
                "GFLOP/s": Spread.of([OPERATIONS / value / 1e9 for value in values]),
                "of same shape": against,
                "of square": ratios(seconds[SQUARE], values),
                "target": TARGET if targeted else None,
                "met": against.median >= TARGET if targeted else None,
            }
        )
    answer(__file__, f"{SIZE}: how near to the rate of matrix products?", rows)
