"""One backward pass through a network that was just drawn, and how its adjoint grows."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from retrograde.decomposition import Flow, decompose
from retrograde.decomposition.adjoints import AdjointNorms, Adjoints
from retrograde.engine import fold
from retrograde.nn import initialise
from retrograde.recording import record

STEPS, SAMPLES, INPUTS, HIDDEN = 100, 8, 8, 32
"""Of a pass, unless a claim is about them: the setting of docs/why-an-lstm-still-explodes.md."""


@lru_cache(maxsize=64)
def noise_pass(
    kind: Callable[..., nn.Module],
    seed: int,
    *,
    steps: int = STEPS,
    hidden: int = HIDDEN,
    forget_bias: float | None = None,
    scale: float = 1.0,
    spread: float | None = None,
    orthogonal: float | None = None,
    quiet: bool = False,
    **options: Any,
) -> Flow:
    """White noise through a fresh layer, and a random loss at its last output.

    Passes are kept, since several claims look at the same ones.

    Args:
        kind: the class of the layer.
        seed: of its weights, its input and the loss.
        steps, hidden: T and H.
        forget_bias: of an LSTM or GRU; torch's default if None.
        scale: what torch's default recurrent weights are multiplied by.
        spread: recurrent weights are uniform in [-spread, spread] instead.
        orthogonal: they are this many times an orthogonal matrix instead.
        quiet: the input is zero, and so are the biases.
        options: of the class.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layer = kind(INPUTS, hidden, dtype=torch.float64, **options)
        if forget_bias is not None:
            initialise(layer, "forget-bias", value=forget_bias)
        if orthogonal is not None:
            initialise(layer, "orthogonal", gain=orthogonal)
        with torch.no_grad():
            for name, weight in layer.named_parameters():
                if name.startswith("weight_hh") and spread is not None:
                    weight.uniform_(-spread, spread)
                elif name.startswith("weight_hh"):
                    weight.mul_(scale)
            if quiet:
                for name, weight in layer.named_parameters():
                    weight.mul_(not name.startswith("bias"))
        x = (not quiet) * torch.randn(steps, SAMPLES, INPUTS, dtype=torch.float64)
        given = torch.randn(SAMPLES, hidden, dtype=torch.float64)
    with record(layer) as recording:
        (layer(x)[0][-1] * given).sum().backward()
    return decompose(recording)


@lru_cache(maxsize=256)
def _adjoints(flow: Flow) -> Adjoints:
    """Their sizes alone, which take less than all that `Flow.adjoints` comes with."""
    norms = AdjointNorms(flow.entries, flow.steps)
    fold(flow.unrolled, flow.entries, [norms])
    return norms.result()


def half_life(flow: Flow) -> float:
    """Steps in which the adjoint halves."""
    return _adjoints(flow).half_life


def growth(flow: Flow, first: int = 0) -> float:
    """log2 of what the adjoint at the longest lag is of that at lag `first`.

    At lag 0 only h has an adjoint, which c shares from lag 1 on.
    """
    log2 = _adjoints(flow).log2[-1]
    return float(log2[0] - log2[-1 - first])


def only(flow: Flow, *kept: str) -> Flow:
    """The same pass with all routes cut but these."""
    return flow.without(*(route for route in flow.routes if route not in kept))


def carousel(flow: Flow) -> Flow:
    """The same pass with all routes cut that cross recurrent weights."""
    return flow.without(*(route for route in flow.routes if route.startswith("recurrent")))


def mean(values: Iterable[float]) -> float:
    """The mean."""
    found = list(values)
    return sum(found) / len(found)
