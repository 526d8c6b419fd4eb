"""What does it cost a training run to record a pass, or to have the monitor along?

A step is forward, backward and Adam of an nn.LSTM with a linear read-out at every step. Steps with
and without `record` take turns; so do whole runs of RUN steps with and without the monitor, which
looks at one of every hundred. What recording adds grows less than the step itself; that is shown by
a second size. What a look of the monitor takes depends on the number of steps, layers and
directions: at four sizes steps that it looks at take turns with plain ones, and what a run pays is
one such step among every hundred, 1 + (times without - 1) / 100. `--looks` measures these alone.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from _measure import Size, Spread, answer, interleaved, ratios
from torch import nn

import retrograde


@dataclass(frozen=True)
class Case:
    """A model and what it reads."""

    size: Size
    layers: int = 1
    bidirectional: bool = False

    def __str__(self) -> str:
        layers = f", {self.layers} layers" if self.layers > 1 else ""
        return f"{self.size}{layers}" + (", both directions" if self.bidirectional else "")


SMALL, LARGER = Case(Size(T=100, B=32, I=64, H=128)), Case(Size(T=100, B=64, I=256, H=512))
MONITORED = (
    SMALL,
    Case(Size(T=365, B=16, I=8, H=32)),
    Case(Size(T=100, B=32, I=64, H=64), layers=2, bidirectional=True),
    Case(Size(T=1000, B=2, I=64, H=128), layers=2, bidirectional=True),
)
"""Models that the monitor watches."""

TOLD = Case(Size(T=100, B=64, I=8, H=64))
"""One with enough samples to tell what is learnable."""

THREADS = 1 if "--one-thread" in sys.argv else 2
CLOCK = {"clock": time.process_time} if "--processor-time" in sys.argv else {}
STEP_ROUNDS, LARGER_ROUNDS, RUN_ROUNDS, LOOK_ROUNDS = 300, 30, 21, 6
LEARNABLE_ROUNDS = 3
RUN, EVERY = 100, 100
RECORDING, MONITORING = 0.03, 0.05
"""Targets: the part of a step, and of a run, that may be added."""


class Model(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        size, directions = case.size, 1 + case.bidirectional
        self.recurrent = nn.LSTM(
            size.I, size.H, case.layers, batch_first=True, bidirectional=case.bidirectional
        )
        self.readout = nn.Linear(directions * size.H, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.recurrent(x)[0])


def training(case: Case) -> tuple[Model, Callable[[], None], torch.optim.Optimizer]:
    """A model, its forward and backward pass, and its optimiser."""
    torch.manual_seed(0)
    model, size = Model(case), case.size
    x, y = torch.randn(size.B, size.T, size.I), torch.randn(size.B, size.T, 1)
    return (
        model,
        lambda: (model(x) - y).square().mean().backward(),
        torch.optim.Adam(model.parameters()),
    )


def plain_step(case: Case) -> Callable[[], None]:
    _, forward_backward, optimizer = training(case)

    def step() -> None:
        optimizer.zero_grad()
        forward_backward()
        optimizer.step()

    return step


def recorded_step(case: Case) -> Callable[[], None]:
    model, forward_backward, optimizer = training(case)

    def step() -> None:
        optimizer.zero_grad()
        with retrograde.record(model):
            forward_backward()
        optimizer.step()

    return step


def steps(case: Case) -> dict[str, Callable[[], None]]:
    return {"a step": plain_step(case), "a step, recorded": recorded_step(case)}


def monitored_step(case: Case, every: int, delta: float | None = None) -> Callable[[], None]:
    model, forward_backward, optimizer = training(case)
    monitor = retrograde.Monitor(model, every=every, delta=delta)

    def step() -> None:
        optimizer.zero_grad()
        with monitor:
            forward_backward()
        optimizer.step()

    return step


def run_of(step: Callable[[], None], steps: int = RUN) -> Callable[[], None]:
    def run() -> None:
        for _ in range(steps):
            step()

    return run


def runs(case: Case) -> dict[str, Callable[[], None]]:
    return {
        f"{RUN} steps": run_of(plain_step(case)),
        f"{RUN} steps, monitor": run_of(monitored_step(case, EVERY)),
    }


def looks(case: Case) -> dict[str, Callable[[], None]]:
    return {"a step": plain_step(case), "a step, looked at": monitored_step(case, every=1)}


def learnable_looks(case: Case) -> dict[str, Callable[[], None]]:
    """Ten steps, and the same with `delta`, all looked at: one of them tells what is learnable."""
    plain, watched = plain_step(case), monitored_step(case, every=1, delta=0.1)
    return {
        "10 steps": run_of(plain, 10),
        "10 steps, looked at with delta": run_of(watched, 10),
    }


def rows(
    case: Case, cases: dict[str, Callable[[], None]], rounds: int, target: float | None = None
) -> list[dict[str, object]]:
    """What the second of two cases costs, in times the first."""
    seconds, (plain, watched) = interleaved(cases, rounds, **CLOCK), cases
    times = ratios(seconds[watched], seconds[plain])
    # Some rounds are lost to a neighbour; the spread shown is that of the middle half.
    each = sorted(w / p for w, p in zip(seconds[watched], seconds[plain], strict=True))
    middle = Spread(each[len(each) // 4], times.median, each[-1 - len(each) // 4])
    return [
        {
            "size": str(case),
            "what": name,
            "ms": Spread.of([1000 * value for value in seconds[name]]),
            "times without": middle if name == watched else None,
            "target": 1 + target if target and name == watched else None,
            "met": times.median <= 1 + target if target and name == watched else None,
        }
        for name in cases
    ]


def recording_and_runs() -> list[dict[str, object]]:
    return [
        *rows(SMALL, steps(SMALL), STEP_ROUNDS, RECORDING),
        *rows(LARGER, steps(LARGER), LARGER_ROUNDS),
        *rows(SMALL, runs(SMALL), RUN_ROUNDS, MONITORING),
    ]


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    answer(
        __file__,
        "What do recording and the monitor cost?",
        [
            *(() if "--looks" in sys.argv else recording_and_runs()),
            *(row for case in MONITORED for row in rows(case, looks(case), LOOK_ROUNDS)),
            *rows(TOLD, learnable_looks(TOLD), LEARNABLE_ROUNDS),
        ],
    )
