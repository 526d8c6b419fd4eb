"""What do all bins of lags of a long linear recurrence cost, against its gradient in one pass?

A minGRU with as many inputs as units, one sample, float32, a loss at every step, one thread. Where
units of the state lead to themselves alone, a bin of lags costs one pass over the steps, and bins
double in width. Memory is what the peak rises above the memory in use, the pass included there.
`--steps` takes another length, `--units` another size. Linux only.
"""

import ctypes
import time
from pathlib import Path

import torch
import typer
from _measure import Spread, answer, interleaved, ratios
from memory_and_length import resident
from torch.utils.benchmark import timer

import retrograde
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.rounding import whole_gradient
from retrograde.engine import Entries, Unrolled, unroll
from retrograde.engine.unitwise import gradients_by_lag

ROUNDS = 3


def long_pass(steps: int, units: int) -> tuple[Unrolled, torch.Tensor]:
    """A pass through a minGRU whose gates keep, and what the loss gives to each state."""
    torch.manual_seed(0)
    weight = torch.randn(2 * units, units) / units**0.5
    cell = retrograde.cells.MinGRU(weight, torch.randn(2 * units) - 3)
    return unroll(cell, torch.randn(steps, 1, units)), torch.randn(steps, 1, units)


def main(steps: int = 100_000, units: int = 256) -> None:
    torch.set_num_threads(1)
    bins = lag_bins("octaves", steps)
    walls: list[float] = []

    def all_lags(unrolled: Unrolled, direct: torch.Tensor) -> None:
        start = timer()
        gradients_by_lag(unrolled, Entries.of(direct), bins)
        walls.append(timer() - start)

    all_lags(*long_pass(1000, units))  # warms up
    unrolled, direct = long_pass(steps, units)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    all_lags(unrolled, direct)
    beyond = resident("VmHWM") - before
    walls.clear()
    seconds = interleaved(
        {
            "all lags": lambda: all_lags(unrolled, direct),
            "gradient": lambda: whole_gradient(unrolled, direct),
        },
        ROUNDS,
        clock=time.process_time,
    )
    states = unrolled.states
    row = {
        "bins": len(bins),
        "all lags, processor s": Spread.of(seconds["all lags"]),
        "wall s": Spread.of(walls[1:]),
        "gradient, processor s": Spread.of(seconds["gradient"]),
        "times the gradient": ratios(seconds["all lags"], seconds["gradient"]),
        "MB": round(beyond / 1e6),
        "times the states": round(beyond / (states.numel() * states.element_size()), 1),
    }
    answer(__file__, f"T={steps} N={units}: what do all bins of lags cost?", [row])


if __name__ == "__main__":
    typer.run(main)
