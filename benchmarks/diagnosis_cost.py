"""How long does `diagnose` take with its remedies tried, and how long the page that it writes?

The sizes of the issue: 32 samples, 200 steps, 128 hidden units, an LSTM and a linear output layer,
the loss at the last step or at every one. The unit is one forward and backward pass of that model,
timed in the same round.

With `--long` it is a sequence of 3000 steps, 8 samples, 64 hidden units, the loss at every step and
no remedies, on one thread and in its processor time, and what `horizon` takes of the same batch.
Progress tells the parts: the tables are the pass with a row for each block of loss steps, from
which the parts by time, lag and route follow; the report adds the parts by crossing.
"""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _measure import THREADS, Size, Spread, answer, ratios
from torch import nn
from torch.utils.benchmark import timer

import retrograde
from retrograde.tasks.trial_set.models import Forecaster, squared

SIZE = Size(T=200, B=32, I=8, H=128)
LONG = Size(T=3000, B=8, I=4, H=64)
ROUNDS = 2
WHOLE, PAGE, PASSES = 60.0, 3.0, 10.0
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


def measure_long() -> list[float]:
    """Processor seconds of a diagnosis, of its tables, experiments and report, and of a horizon."""
    torch.manual_seed(0)
    model = Forecaster(nn.LSTM(LONG.I, LONG.H), LONG.H, False)
    batch = torch.randn(LONG.T, LONG.B, LONG.I), torch.randn(LONG.T, LONG.B, 1)
    told = list[float]()
    start = time.process_time()
    retrograde.diagnose(
        model,
        batch,
        squared,
        remedies=None,
        progress=lambda *_: told.append(time.process_time()),
    )
    done = time.process_time()
    _, taken_apart, tried, written = told
    retrograde.horizon(model, batch, squared)
    horizon = time.process_time() - done
    return [done - start, tried - taken_apart, written - tried, done - written, horizon]


def long_sequence() -> None:
    torch.set_num_threads(1)
    measure_long()  # warm
    columns = zip(*(measure_long() for _ in range(ROUNDS)), strict=True)
    names = ("diagnose, no remedies", "its tables", "its experiments", "its report", "horizon")
    rows = []
    for name, seconds in zip(names, columns, strict=True):
        target = PASSES if name == names[0] else None
        found = Spread.of(seconds)
        met = None if target is None else found.median <= target
        rows.append({"what": name, "processor seconds": found, "target": target, "met": met})
    question = f"{LONG}, loss at every step, one thread: how long does a diagnosis take?"
    answer("diagnosis_cost_long", question, rows)


def main() -> None:
    if "--long" in sys.argv:
        long_sequence()
        return
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
