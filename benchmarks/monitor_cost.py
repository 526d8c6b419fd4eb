"""What does it cost a training run to record a pass, or to have the monitor along?

A step is forward, backward and Adam of an nn.LSTM with a linear read-out at every step. Steps with
and without `record` take turns; so do whole runs of RUN steps with and without the monitor, which
looks at one of every hundred.
"""

import sys
from collections.abc import Callable

import torch
from _measure import Size, Spread, answer, interleaved, ratios
from torch import nn

import retrograde

SIZE = Size(T=100, B=32, I=64, H=128)
THREADS = 1 if "--one-thread" in sys.argv else 2
STEP_ROUNDS, RUN_ROUNDS, RUN, EVERY = 300, 21, 100, 100
RECORDING, MONITORING = 0.03, 0.05
"""Targets: the part of a step, and of a run, that may be added."""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(SIZE.I, SIZE.H, batch_first=True)
        self.readout = nn.Linear(SIZE.H, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.recurrent(x)[0])


def training() -> tuple[Model, Callable[[], None], torch.optim.Optimizer]:
    """A model, its forward and backward pass, and its optimiser."""
    torch.manual_seed(0)
    model = Model()
    x, y = torch.randn(SIZE.B, SIZE.T, SIZE.I), torch.randn(SIZE.B, SIZE.T, 1)
    return (
        model,
        lambda: (model(x) - y).square().mean().backward(),
        torch.optim.Adam(model.parameters()),
    )


def plain_step() -> Callable[[], None]:
    _, forward_backward, optimizer = training()

    def step() -> None:
        optimizer.zero_grad()
        forward_backward()
        optimizer.step()

    return step


def recorded_step() -> Callable[[], None]:
    model, forward_backward, optimizer = training()

    def step() -> None:
        optimizer.zero_grad()
        with retrograde.record(model):
            forward_backward()
        optimizer.step()

    return step


def monitored_run() -> Callable[[], None]:
    model, forward_backward, optimizer = training()
    monitor = retrograde.Monitor(model, every=EVERY)

    def run() -> None:
        for _ in range(RUN):
            optimizer.zero_grad()
            with monitor:
                forward_backward()
            optimizer.step()

    return run


def plain_run() -> Callable[[], None]:
    step = plain_step()

    def run() -> None:
        for _ in range(RUN):
            step()

    return run


def rows(
    plain: str, watched: str, cases: dict[str, Callable[[], None]], rounds: int, target: float
) -> list[dict[str, object]]:
    seconds = interleaved(cases, rounds)
    times = ratios(seconds[watched], seconds[plain])
    # Some rounds are lost to a neighbour; the spread shown is that of the middle half.
    each = sorted(w / p for w, p in zip(seconds[watched], seconds[plain], strict=True))
    middle = Spread(each[len(each) // 4], times.median, each[-1 - len(each) // 4])
    return [
        {
            "what": name,
            "ms": Spread.of([1000 * value for value in seconds[name]]),
            "times without": middle if name == watched else None,
            "target": 1 + target if name == watched else None,
            "met": times.median <= 1 + target if name == watched else None,
        }
        for name in cases
    ]


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    steps = {"a step": plain_step(), "a step, recorded": recorded_step()}
    runs = {f"{RUN} steps": plain_run(), f"{RUN} steps, monitor": monitored_run()}
    answer(
        __file__,
        f"What do recording and the monitor cost? {SIZE}",
        rows(*steps, steps, STEP_ROUNDS, RECORDING) + rows(*runs, runs, RUN_ROUNDS, MONITORING),
    )
