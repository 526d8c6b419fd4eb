"""What does a whole decomposition of a long sequence cost, against the pass that it takes apart?

`decompose` of a pass with a loss at every step, in at most `ROWS` rows: the sizes and shares of all
contributions, by time and by lag, and the adjoints. In one thread and in processor time, so that a
busy neighbour does not count.
"""

import time

import torch
from _measure import Size, Spread, answer, interleaved, lstm_pass, ratios

import retrograde

SIZE, ROWS = Size(T=3000, B=8, I=64, H=64), 32
TARGET = 0.3
"""Seconds."""

ROUNDS = 5

if __name__ == "__main__":
    torch.set_num_threads(1)
    model, x, adjoint, recorded = lstm_pass(SIZE)

    def plain() -> None:
        model.zero_grad()
        (model(x)[0] * adjoint).sum().backward()

    def taken_apart() -> None:
        retrograde.decompose(recorded, max_rows=ROWS)

    seconds = interleaved(
        {"forward and backward": plain, "decompose": taken_apart}, ROUNDS, clock=time.process_time
    )
    spent = Spread.of(seconds["decompose"])
    row: dict[str, object] = {
        "what": f"decompose in {ROWS} rows",
        "seconds": spent,
        "times forward and backward": ratios(seconds["decompose"], seconds["forward and backward"]),
        "target (seconds)": TARGET,
        "met": spent.median <= TARGET,
    }
    answer(__file__, f"{SIZE}: what does a whole decomposition cost?", [row])
