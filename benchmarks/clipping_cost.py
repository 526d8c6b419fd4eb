"""What does a `Clipper` with statistics cost beside `torch.nn.utils.clip_grad_norm_`?

The model has 200 parameter tensors: 49 LSTMs of one layer and two linear ones. The gradients are
there; a round clips them by every way in turn, each time after an addition that is not timed and
makes them new. Torch is measured as everybody calls it, with `model.parameters()`, which walks
through all modules, and with a list that was made before; the ratios are to the latter.
"""

from collections.abc import Callable

import torch
from _measure import Spread, answer, interleaved, ratios
from torch import Tensor, nn

from retrograde.clipping import AGC, AutoClip, ByGroup, Clipper, GlobalNorm, Value, ZClip

ROUNDS, THREADS, TARGET = 400, 1, 1.15
LSTMS = 49
SIZES = (16, 64, 128)
LIST = "clip_grad_norm_, a list"


def model_of(size: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.LSTM(size, size) for _ in range(LSTMS)]
    return nn.Sequential(*layers, nn.Linear(size, size), nn.Linear(size, size))


def seconds_of(size: int) -> dict[str, list[float]]:
    """Seconds of every way in each round; a round before that is for warming up."""
    model = model_of(size)
    parameters = list(model.parameters())
    assert len(parameters) == 200
    grads: list[Tensor] = [torch.randn_like(p) for p in parameters]
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = grad
    limit = GlobalNorm(1.0)
    ways: dict[str, Callable[[], object]] = {
        LIST: lambda: nn.utils.clip_grad_norm_(parameters, 1.0),
        "clip_grad_norm_, model.parameters()": lambda: nn.utils.clip_grad_norm_(
            model.parameters(), 1.0
        ),
        "clip_grad_value_, a list": lambda: nn.utils.clip_grad_value_(parameters, 1e-3),
        "GlobalNorm": Clipper(model, limit),
        "ByGroup of three": Clipper(
            model, ByGroup({"recurrent": limit, "input": limit, "output": limit})
        ),
        "AutoClip": Clipper(model, AutoClip()),
        "ZClip": Clipper(model, ZClip()),
        "Value": Clipper(model, Value(1e-3)),
        "AGC": Clipper(model, AGC()),
    }
    return interleaved(ways, ROUNDS, before=lambda: torch._foreach_add_(grads, 0.01))


def rows(size: int) -> list[dict[str, object]]:
    seconds = seconds_of(size)
    targeted = ("GlobalNorm", "ByGroup of three", "AutoClip", "ZClip")
    found = []
    for name, values in seconds.items():
        times = ratios(values, seconds[LIST])
        # Some rounds are lost to a neighbour; the spreads shown are those of the middle half.
        each = sorted(a / b for a, b in zip(values, seconds[LIST], strict=True))
        found.append(
            {
                "hidden units": size,
                "what": name,
                "microseconds": middle([1e6 * value for value in sorted(values)]),
                "times a list": Spread(each[len(each) // 4], times.median, each[-len(each) // 4]),
                "target": TARGET if name in targeted else None,
                "met": times.median <= TARGET if name in targeted else None,
            }
        )
    return found


def middle(values: list[float]) -> Spread:
    """The quartiles of sorted values."""
    return Spread(values[len(values) // 4], values[len(values) // 2], values[-len(values) // 4])


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    answer(
        __file__,
        "What does clipping with statistics cost? 200 parameter tensors",
        [row for size in SIZES for row in rows(size)],
    )
