"""How long does a module take to train, beside torch's own?

One step is forward, backward and Adam. `retrograde.backend()` runs what torch does not have, and
what it has as a loop of operations: one call of a C library for each pass, or, where that was not
built, loops of torch operations with the pull-back written by hand. The last rows have a loss at
the last of 500 steps, whose gradients leave the normal range of float32 on the way back, and what
their products and functions would take if all steps could be computed at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from _measure import THREADS, Size, Spread, answer, interleaved, ratios
from torch import Tensor, nn

import retrograde

SIZES = {
    Size(T=50, B=8, I=8, H=16): (0.55, 0.6, 40),
    Size(T=100, B=32, I=64, H=128): (0.85, 0.9, 12),
    Size(T=100, B=64, I=256, H=512): (0.9, 1.0, 5),
}
"""With the targets of what torch does not have, and of its LSTM with all that happens inside handed
out, as a share of nn.LSTM's time; and how many rounds."""
OWN = {"return_activations": True}
LONG, OF_LONG = Size(T=500, B=8, I=8, H=64), 0.25
REACHED = 172
"""How many of these steps a gradient comes back to."""
PLAIN, OF_PLAIN = (Size(T=100, B=1, I=32, H=32), Size(T=100, B=8, I=64, H=64)), 1 / 3


@dataclass(frozen=True)
class Case:
    """A module, its options, what it is compared with, and the share of its time that is wanted."""

    module: nn.Module
    options: dict[str, bool]
    beside: str
    target: float | None = None


def generations(size: Size) -> dict[str, Case]:
    LSTM, GRU, sizes = retrograde.nn.LSTM, retrograde.nn.GRU, (size.I, size.H)
    target, inside, _ = SIZES[size]
    torchs = "torch.nn.LSTM"
    return {
        torchs: Case(nn.LSTM(*sizes), {}, torchs),
        "lstm-2000, all activations": Case(LSTM(*sizes), OWN, torchs, inside),
        "lstm-1997": Case(LSTM(*sizes, generation="lstm-1997"), {}, torchs, target),
        "lstm-2002 (peepholes)": Case(LSTM(*sizes, generation="lstm-2002"), {}, torchs, target),
        "cifg": Case(LSTM(*sizes, generation="cifg"), {}, torchs, target),
        "gru-2014": Case(GRU(*sizes, generation="gru-2014"), {}, torchs, target),
        "fgr": Case(LSTM(*sizes, generation="fgr"), {}, torchs),
        "torch.nn.LSTM, clipped inside": Case(clipped(nn.LSTM(*sizes)), {}, torchs),
    }


def plain(size: Size) -> dict[str, Case]:
    """What torch has as a loop of operations."""
    sizes, ours = (size.I, size.H), retrograde.nn
    return {
        "torch.nn.GRU": Case(nn.GRU(*sizes), {}, "torch.nn.GRU"),
        "gru-torch": Case(ours.GRU(*sizes), {}, "torch.nn.GRU", OF_PLAIN),
        "torch.nn.RNN": Case(nn.RNN(*sizes), {}, "torch.nn.RNN"),
        "rnn": Case(ours.RNN(*sizes), {}, "torch.nn.RNN", OF_PLAIN),
    }


def long(size: Size) -> dict[str, Case]:
    sizes, torchs = (size.I, size.H), "torch.nn.LSTM"
    ours = retrograde.nn.LSTM(*sizes, generation="lstm-2002")
    return {
        torchs: Case(nn.LSTM(*sizes), {}, torchs),
        "lstm-2002 (peepholes)": Case(ours, {}, torchs, OF_LONG),
    }


def at_once(size: Size, reached: int) -> Callable[[], None]:
    """The products and functions of a step of training, in a few operations of torch.

    Forwards all gates of each step, three sigmoids and two tanh; backwards, for the steps that are
    reached, the gradients of h before them and of the weights.
    """
    T, B, I, H = size.T, size.B, size.I, size.H  # noqa: E741
    seen, weights = torch.randn(T * B, I + H), torch.randn(I + H, 4 * H)
    gradients, values = torch.randn(reached * B, 4 * H), torch.randn(T * B, H)

    def run() -> None:
        seen @ weights
        for function in 3 * [torch.sigmoid] + 2 * [torch.tanh]:
            function(values)
        gradients @ weights[I:].T
        gradients.T @ seen[: reached * B]

    return run


def clipped(layer: nn.Module) -> nn.Module:
    """With Graves's clipping of the pre-activations at every step."""
    retrograde.nn.clip_inside(layer, retrograde.clipping.PreActivationValue(1e-4))
    return layer


def training(case: Case, size: Size, loss_on: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(case.module.parameters())
    x, y = torch.randn(size.T, size.B, size.I), torch.randn(size.T, size.B, size.H)

    def step() -> None:
        optimizer.zero_grad()
        loss_on(case.module(x, **case.options)[0] - y).square().mean().backward()
        optimizer.step()

    return step


def rows(
    size: Size,
    cases: dict[str, Case],
    rounds: int,
    loss: str = "every step",
    loss_on: Callable[[Tensor], Tensor] = lambda error: error,
    reached: int = 0,
) -> Iterator[dict[str, object]]:
    torch.manual_seed(0)
    steps = {name: training(case, size, loss_on) for name, case in cases.items()}
    if reached:
        steps["products and functions at once"] = at_once(size, reached)
    seconds = interleaved(steps, rounds)
    for name, values in seconds.items():
        case = cases.get(name, Case(nn.Identity(), {}, "torch.nn.LSTM"))
        share = ratios(values, seconds[case.beside])
        yield {
            "size": str(size),
            "loss at": loss,
            "module": name,
            "ms a step": Spread.of([1000 * value for value in values]),
            "share of": case.beside,
            "share": share,
            "target": case.target,
            "met": share.median <= case.target if case.target is not None else None,
        }


def every_row() -> Iterator[dict[str, object]]:
    for size, (*_, rounds) in SIZES.items():
        yield from rows(size, generations(size), rounds)
    for size in PLAIN:
        yield from rows(size, plain(size), 20)
    last = "the last step", lambda error: error[-1]
    yield from rows(LONG, long(LONG), 40, *last, REACHED)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    title = f"Training beside torch.nn, on the {retrograde.backend()} backend"
    answer(__file__, title, list(every_row()))
