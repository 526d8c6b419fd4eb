"""Shared by the benchmarks: a pass to measure, interleaved repeats, the answer as table and JSON.

Cases that are compared take turns, round by round, so that whatever else the machine does meets
them all; ratios are formed within a round, and every figure is given with its spread over rounds.
Every benchmark that takes its threads and its clock from here also runs with --one-thread, and with
--processor-time, which leaves out what neighbours take from one thread.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.benchmark import timer

import retrograde

THREADS = 1 if "--one-thread" in sys.argv else 2
CLOCK = time.process_time if "--processor-time" in sys.argv else timer
"""torch's clock waits for an accelerator."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """One figure over all rounds."""

    min: float
    median: float
    max: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        return Spread(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.min:.3g}–{self.max:.3g})"


@dataclass(frozen=True)
class Size:
    """T steps, B samples, I inputs, H hidden units."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int

    def __str__(self) -> str:
        return f"T={self.T} B={self.B} I={self.I} H={self.H}"


def lstm_pass(size: Size) -> tuple[nn.LSTM, Tensor, Tensor, retrograde.Recorded]:
    """A float32 nn.LSTM, its input, a random dL/dh at every step, and the recorded pass."""
    torch.manual_seed(0)
    model = nn.LSTM(size.I, size.H)
    x, output_adjoint = torch.randn(size.T, size.B, size.I), torch.randn(size.T, size.B, size.H)
    with retrograde.record(model) as recording:
        (model(x)[0] * output_adjoint).sum().backward()
    return model, x, output_adjoint, recording.only()


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = CLOCK,
) -> dict[str, list[float]]:
    """Seconds that each case takes in each round, after one round of warming up.

    `before` runs before each case and is not timed. torch's `Timer` is not used: it repeats one
    case many times, and cases that take turns meet the same neighbours.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, run in cases.items():
            before()
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: values[1:] for name, values in seconds.items()}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the ratios within each round."""
    return Spread.of([n / d for n, d in zip(numerators, denominators, strict=True)])


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    names = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def answer(script: str, question: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print the rows as a table and write them to results/, named after the script."""
    table = Table(*rows[0], title=question, caption=" | ".join(map(str, machine().values())))
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
    figures = [
        {key: asdict(v) if isinstance(v, Spread) else v for key, v in row.items()} for row in rows
    ]
    RESULTS.mkdir(exist_ok=True)
    content = {"question": question, "machine": machine(), "rows": figures}
    (RESULTS / f"{Path(script).stem}.json").write_text(json.dumps(content, indent=2) + "\n")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
