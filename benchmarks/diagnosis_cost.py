"""How long does `diagnose` take with its remedies tried, and how long the page that it writes?

The sizes of the issue: 32 samples, 200 steps, 128 hidden units, an LSTM and a linear output layer,
the loss at the last step or at every one. The unit is one forward and backward pass of that model,
timed in the same round.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _measure import THREADS, Size, Spread, answer, ratios
from torch import nn
from torch.utils.benchmark import timer

import retrograde
from retrograde.tasks.trial_set.models import Forecaster, squared

SIZE = Size(T=200, B=32, I=8, H=128)
ROUNDS = 2
WHOLE, PAGE = 60.0, 3.0
"""Targets in seconds."""

WRITE = """
import time
import retrograde
report = retrograde.Report.from_json("report.json")
start = time.perf_counter()
report.to_html("page.html")
print(time.perf_counter() - start)
"""


def measure(last: bool) -> list[float]:
    """Seconds of a pass, until progress is told, of the diagnosis, and of writing its page."""
    torch.manual_seed(0)
    model = Forecaster(nn.LSTM(SIZE.I, SIZE.H), SIZE.H, last)
    x = torch.randn(SIZE.T, SIZE.B, SIZE.I)
    batch = x, torch.randn(SIZE.B, 1) if last else torch.randn(SIZE.T, SIZE.B, 1)
    squared(model, batch).backward()
    told: list[float] = []
    start = timer()
    squared(model, batch).backward()
    a_pass = timer()
    report = retrograde.diagnose(
        model, batch, squared, remedies="pass", progress=lambda *_: told.append(timer())
    )
    done = timer()
    return [a_pass - start, told[0] - a_pass, done - a_pass, page(report)]


def page(report: retrograde.Report) -> float:
    """Seconds to write the page in a process that has written none, imports of charts included."""
    with TemporaryDirectory() as folder:
        report.to_json(Path(folder) / "report.json")
        done = subprocess.run(
            [sys.executable, "-c", WRITE],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    return float(done.stdout)


def main() -> None:
    torch.set_num_threads(THREADS)
    rows = []
    for name, last in (("loss at the last step", True), ("loss at every step", False)):
        measure(last)  # warm
        passes, firsts, wholes, pages = zip(*(measure(last) for _ in range(ROUNDS)), strict=True)
        rows += [
            {
                "case": f"{SIZE}, {name}",
                "what": what,
                "seconds": Spread.of(seconds),
                "forward and backward passes": ratios(seconds, passes),
                "target": target,
                "met": None if target is None else Spread.of(seconds).median <= target,
            }
            for what, seconds, target in (
                ("until the first progress", firsts, 1.0),
                ("diagnose, remedies tried", wholes, WHOLE),
                ("writing the page", pages, PAGE),
            )
        ]
    answer(__file__, "How long does a diagnosis take?", rows)


if __name__ == "__main__":
    main()
