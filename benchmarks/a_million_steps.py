"""How long does it take to take a million steps apart, and in how much memory?

One sample of a million steps, a loss at every step, in rows of relative resolution 1/16. Three
times are told apart: the pass that is recorded, `nn.LSTM` forward and backward; `decompose`, which
sums and compares with autograd, with exact sums and shares by lag; and `flow.sizes`, root mean
squares by lag with their intervals, from which reach and half-life follow. In one thread and in
processor time, so that a busy neighbour does not count; the peak of the resident memory is that of
the whole process. Linux only. `--steps N` takes N steps alone.
"""

import resource
import time
from dataclasses import replace

import torch
import typer
from _measure import Size, answer, lstm_pass

import retrograde

SIZES = (Size(T=10_000, B=1, I=8, H=32), Size(T=1_000_000, B=1, I=8, H=32))
SECONDS, GIGABYTES = 600, 4.0
"""Targets, for the longest: for `decompose`, and for the process."""


def measure(size: Size) -> dict[str, object]:
    start = time.process_time()
    recorded = lstm_pass(size)[-1]
    after = time.process_time()
    flow = retrograde.decompose(recorded, relative=16)
    shares = flow.by_lag("weight_hh_l0").share
    summed = time.process_time()
    reach = flow.reach  # of the sizes
    sizes = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    longest = size == SIZES[-1]
    met = summed - after <= SECONDS and peak <= GIGABYTES and flow.residual.ok
    return {
        "size": str(size),
        "recorded, s": round(after - start, 1),
        "decompose, s": round(summed - after, 1),
        "us per step": round(1e6 * (summed - after) / size.T),
        "sizes, s": round(sizes - summed, 1),
        "peak, GB": round(peak, 2),
        "residual": f"{float(flow.residual):.1e} of {flow.residual.bound:.1e} allowed",
        "sum of shares": round(float(shares.sum()), 6),
        "reach": reach,
        "target": f"{SECONDS} s, {GIGABYTES} GB" if longest else "",
        "met": met if longest else None,
    }


def main(steps: int = 0) -> None:
    """All sizes, or a pass of so many steps alone."""
    torch.set_num_threads(1)
    sizes = (replace(SIZES[-1], T=steps),) if steps else SIZES
    answer(__file__, "Taking a million steps apart", [measure(size) for size in sizes])


if __name__ == "__main__":
    typer.run(main)
