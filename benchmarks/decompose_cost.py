"""What does a whole decomposition of a long sequence cost, against the pass that it takes apart?

`decompose` of a pass with a loss at every step, in at most `ROWS` rows: the sizes and shares of all
contributions, by time and by lag, and the adjoints; and the sums by lag in rows of relative
resolution 1/16. In one thread and in processor time, so that a busy neighbour does not count.
"""

import time

import torch
from _measure import Size, Spread, answer, interleaved, lstm_pass, ratios

import retrograde

SIZE, ROWS = Size(T=3000, B=8, I=64, H=64), 32
RELATIVE = 16
TARGETS = {f"{ROWS} rows": 0.3, f"relative={RELATIVE}": 1.5}
"""Seconds."""

PLAIN, ROUNDS = "forward and backward", 5

if __name__ == "__main__":
    torch.set_num_threads(1)
    model, x, adjoint, recorded = lstm_pass(SIZE)

    def plain() -> None:
        model.zero_grad()
        (model(x)[0] * adjoint).sum().backward()

    ways = {
        f"{ROWS} rows": lambda: retrograde.decompose(recorded, max_rows=ROWS),
        f"relative={RELATIVE}": lambda: retrograde.decompose(recorded, relative=RELATIVE),
    }
    seconds = interleaved({PLAIN: plain, **ways}, ROUNDS, clock=time.process_time)
    rows: list[dict[str, object]] = [
        {
            "what": f"decompose, {way}",
            "seconds": Spread.of(seconds[way]),
            "times forward and backward": ratios(seconds[way], seconds[PLAIN]),
            "target (seconds)": target,
            "met": Spread.of(seconds[way]).median <= target,
        }
        for way, target in TARGETS.items()
    ]
    answer(__file__, f"{SIZE}: what does a whole decomposition cost?", rows)
