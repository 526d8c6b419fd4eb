"""How much memory beyond the recording does `decompose` take, and does time grow linearly in T?

Every case runs in a fresh process, libraries warmed up. Before `decompose` freed memory is handed
back to the system, so that it cannot be used again unseen, and the peak of the resident memory is
reset; what the peak then rises above the memory in use is counted, the result included. Linux only.
"""

import ctypes
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from _measure import THREADS, Size, Spread, answer, lstm_pass
from torch.utils.benchmark import timer

import retrograde

LENGTHS = ((1000, None), (1000, 256), (2500, 256), (5000, 256), (10000, 256))
"""T and max_rows; None is the default, here one row for each step."""

MEGABYTES = 300
ROUNDS = 1


def resident(key: str) -> int:
    """VmRSS, the resident memory, or VmHWM, its peak, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def measure(steps: int, max_rows: int | None) -> tuple[float, float, float]:
    """Seconds, megabytes beyond the recording, and the residual of one `decompose`."""
    torch.set_num_threads(THREADS)
    retrograde.decompose(lstm_pass(Size(T=40, B=8, I=64, H=128))[-1])
    recorded = lstm_pass(Size(T=steps, B=8, I=64, H=128))[-1]
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), timer()
    flow = retrograde.decompose(recorded, max_rows=max_rows)
    seconds = timer() - start
    return seconds, (resident("VmHWM") - before) / 1e6, float(flow.residual)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        rounds = [list(fresh.map(measure, *zip(*LENGTHS, strict=True))) for _ in range(ROUNDS)]
    rows: list[dict[str, object]] = []
    for (steps, max_rows), results in zip(LENGTHS, zip(*rounds, strict=True), strict=True):
        seconds, megabytes, residuals = zip(*results, strict=True)
        targeted = max_rows is None
        rows.append(
            {
                "T": steps,
                "rows": max_rows or steps,
                "seconds": Spread.of(seconds),
                "ms per step": Spread.of([1000 * value / steps for value in seconds]),
                "MB beyond": Spread.of(megabytes),
                "residual": f"{max(residuals):.1e}",
                "target MB": MEGABYTES if targeted else None,
                "met": max(megabytes) <= MEGABYTES if targeted else None,
            }
        )
    answer(__file__, "B=8 I=64 H=128: memory beyond the recording, and time", rows)
