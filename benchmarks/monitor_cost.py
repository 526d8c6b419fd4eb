"""What does it cost a training run to record a pass, or to have the monitor along?

A step is forward, backward and Adam of an nn.LSTM with a linear read-out at every step. Steps with
and without `record` take turns; so do whole runs of RUN steps with and without the monitor, which
looks at one of every hundred. What recording adds grows less than the step itself; that is shown by
a second size.
"""

import sys
from collections.abc import Callable

import torch
from _measure import Size, Spread, answer, interleaved, ratios
from torch import nn

import retrograde

SIZE, LARGER = Size(T=100, B=32, I=64, H=128), Size(T=100, B=64, I=256, H=512)
THREADS = 1 if "--one-thread" in sys.argv else 2
STEP_ROUNDS, LARGER_ROUNDS, RUN_ROUNDS, RUN, EVERY = 300, 30, 21, 100, 100
RECORDING, MONITORING = 0.03, 0.05
"""Targets: the part of a step, and of a run, that may be added."""


class Model(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(size.I, size.H, batch_first=True)
        self.readout = nn.Linear(size.H, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.recurrent(x)[0])


def training(size: Size) -> tuple[Model, Callable[[], None], torch.optim.Optimizer]:
    """A model, its forward and backward pass, and its optimiser."""
    torch.manual_seed(0)
    model = Model(size)
    x, y = torch.randn(size.B, size.T, size.I), torch.randn(size.B, size.T, 1)
    return (
        model,
        lambda: (model(x) - y).square().mean().backward(),
        torch.optim.Adam(model.parameters()),
    )


def plain_step(size: Size) -> Callable[[], None]:
    _, forward_backward, optimizer = training(size)

    def step() -> None:
        optimizer.zero_grad()
        forward_backward()
        optimizer.step()

    return step


def recorded_step(size: Size) -> Callable[[], None]:
    model, forward_backward, optimizer = training(size)

    def step() -> None:
        optimizer.zero_grad()
        with retrograde.record(model):
            forward_backward()
        optimizer.step()

    return step


def steps(size: Size) -> dict[str, Callable[[], None]]:
    return {"a step": plain_step(size), "a step, recorded": recorded_step(size)}


def monitored_run() -> Callable[[], None]:
    model, forward_backward, optimizer = training(SIZE)
    monitor = retrograde.Monitor(model, every=EVERY)

    def run() -> None:
        for _ in range(RUN):
            optimizer.zero_grad()
            with monitor:
                forward_backward()
            optimizer.step()

    return run


def plain_run() -> Callable[[], None]:
    step = plain_step(SIZE)

    def run() -> None:
        for _ in range(RUN):
            step()

    return run


def rows(
    size: Size, cases: dict[str, Callable[[], None]], rounds: int, target: float | None = None
) -> list[dict[str, object]]:
    """What the second of two cases costs, in times the first."""
    seconds, (plain, watched) = interleaved(cases, rounds), cases
    times = ratios(seconds[watched], seconds[plain])
    # Some rounds are lost to a neighbour; the spread shown is that of the middle half.
    each = sorted(w / p for w, p in zip(seconds[watched], seconds[plain], strict=True))
    middle = Spread(each[len(each) // 4], times.median, each[-1 - len(each) // 4])
    return [
        {
            "size": str(size),
            "what": name,
            "ms": Spread.of([1000 * value for value in seconds[name]]),
            "times without": middle if name == watched else None,
            "target": 1 + target if target and name == watched else None,
            "met": times.median <= 1 + target if target and name == watched else None,
        }
        for name in cases
    ]


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    answer(
        __file__,
        "What do recording and the monitor cost?",
        [
            *rows(SIZE, steps(SIZE), STEP_ROUNDS, RECORDING),
            *rows(LARGER, steps(LARGER), LARGER_ROUNDS),
            *rows(
                SIZE,
                {f"{RUN} steps": plain_run(), f"{RUN} steps, monitor": monitored_run()},
                RUN_ROUNDS,
                MONITORING,
            ),
        ],
    )
