"""How much slower does a module train on our own recurrence than torch's on its kernel?

One step is forward, backward and Adam. What torch has, `retrograde.nn` runs on torch's kernel; the
other rows are loops of torch operations with the pull-back written by hand, the last one with a
policy that clips inside it.
"""

from collections.abc import Callable, Iterator

import torch
from _measure import THREADS, Size, Spread, answer, interleaved, ratios
from torch import nn

import retrograde

SIZES = (
    Size(T=50, B=8, I=8, H=16),
    Size(T=100, B=32, I=64, H=128),
    Size(T=100, B=64, I=256, H=512),
)
TARGETED, TARGET = SIZES[1], 4
OWN = {"return_activations": True}
"""Asks for what torch's kernel does not hand out, and so for our recurrence."""
OURS = ("lstm-1997", "lstm-2002 (peepholes)", "gru-2014")
"""What torch does not have, and what therefore runs as a loop of torch operations."""
ROUNDS = 9


def modules(size: Size) -> dict[str, tuple[nn.Module, dict[str, bool]]]:
    LSTM, sizes = retrograde.nn.LSTM, (size.I, size.H)
    return {
        "torch.nn.LSTM": (nn.LSTM(*sizes), {}),
        "lstm-2000, torch's kernel": (LSTM(*sizes), {}),
        "lstm-2000, own, with all activations": (LSTM(*sizes), OWN),
        "lstm-1997": (LSTM(*sizes, generation="lstm-1997"), {}),
        "lstm-2002 (peepholes)": (LSTM(*sizes, generation="lstm-2002"), {}),
        "gru-2014": (retrograde.nn.GRU(*sizes, generation="gru-2014"), {}),
        "torch.nn.LSTM, clipped inside": (clipped(nn.LSTM(*sizes)), {}),
    }


def clipped(layer: nn.Module) -> nn.Module:
    """With Graves's clipping of the pre-activations at every step."""
    retrograde.nn.clip_inside(layer, retrograde.clipping.PreActivationValue(1e-4))
    return layer


def training(module: nn.Module, options: dict[str, bool], size: Size) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters())
    x, y = torch.randn(size.T, size.B, size.I), torch.randn(size.T, size.B, size.H)

    def step() -> None:
        optimizer.zero_grad()
        (module(x, **options)[0] - y).square().mean().backward()
        optimizer.step()

    return step


def rows(size: Size) -> Iterator[dict[str, object]]:
    torch.manual_seed(0)
    cases = {name: training(*case, size) for name, case in modules(size).items()}
    seconds = interleaved(cases, ROUNDS)
    for name, values in seconds.items():
        times = ratios(values, seconds["torch.nn.LSTM"])
        targeted = size is TARGETED and name in OURS
        yield {
            "size": str(size),
            "module": name,
            "ms a step": Spread.of([1000 * value for value in values]),
            "times torch's": times,
            "target": TARGET if targeted else None,
            "met": times.median <= TARGET if targeted else None,
        }


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    title = "Training: how much slower than torch.nn.LSTM?"
    answer(__file__, title, [row for size in SIZES for row in rows(size)])
