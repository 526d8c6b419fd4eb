"""What to clip, and where: the output layer, and before the update or inside the pass."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from retrograde import charts
from retrograde.clipping import GlobalNorm, PreActivationValue
from retrograde.decomposition import Flow, decompose
from retrograde.decomposition.clipped import ClippedFlow
from retrograde.decomposition.rows import joined
from retrograde.explore.lesson import Setting, flow_of
from retrograde.nn import initialise
from retrograde.recording import Recording, record
from retrograde.tasks.clipping_results import WAYS, results


@lru_cache(maxsize=32)
def long_pass(gain: float, steps: int) -> tuple[float, float, Recording]:
    """Norms of the gradients of recurrent and output layer, and the pass that they come from.

    A plain RNN whose recurrent matrix is `gain` times an orthogonal one, an input so small that
    tanh is linear, and the loss at the last step.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        recurrent = nn.RNN(2, 16, bias=False, dtype=torch.float64)
        readout = nn.Linear(16, 1, dtype=torch.float64)
        initialise(recurrent, "orthogonal", gain=gain)
    x = torch.zeros(steps, 1, 2, dtype=torch.float64)
    x[0] = 1e-4
    with record(recurrent) as recording:
        (readout(recurrent(x)[0][-1]) - 1).square().mean().backward()
    return _gradient_norm(recurrent), _gradient_norm(readout), recording


def _gradient_norm(layer: nn.Module) -> float:
    given = [weight.grad for weight in layer.parameters() if weight.grad is not None]
    return float(nn.utils.get_total_norm(given))


LENGTHS = (10, 20, 40, 80)
"""Lengths of the sequences compared."""


def lengths_in_markdown(gain: float) -> str:
    """The norms for ever longer sequences, as a table."""
    rows = [
        f"| {steps} | {recurrent:.3g} | {output:.3g} |"
        for steps in LENGTHS
        for recurrent, output, _ in [long_pass(gain, steps)]
    ]
    head = "| length T | gradient of the recurrent layer | of the output layer |"
    return "\n".join([head, "|---|---|---|", *rows])


def lengths_chart(gain: float) -> Any:
    """The adjoint on its way back through the longest of them."""
    adjoints = decompose(long_pass(gain, LENGTHS[-1])[2]).adjoints
    return charts.adjoint_curve(adjoints.log2_growth_by_lag.tolist(), adjoints.half_life)


def lengths_in_words(gain: float) -> str:
    """Whether the output layer is to be clipped, in Markdown."""
    first, out, _ = long_pass(gain, LENGTHS[0])
    last, out_last, _ = long_pass(gain, LENGTHS[-1])
    runs = results()
    diverged = {way: sum(run.diverged for run in runs if run.way == way) for way in WAYS}
    counted = ", ".join(f"{way} {count}" for way, count in diverged.items())
    return (
        f"**Long sequences are no reason to.** From T = {LENGTHS[0]} to {LENGTHS[-1]} the gradient "
        f"of the recurrent layer changes by a factor of {last / first:.3g}, that of the output "
        f"layer by {out_last / out:.3g}: it is applied once per loss, whatever the length. "
        f"It may be large for other reasons. Of {len(runs)} trainings, those that diverged, by "
        f"what was clipped: {counted}."
    )


@dataclass(frozen=True, eq=False)
class Clipped:
    """The same gradient clipped to the same norm in two places.

    Attributes:
        kept: what is left of its norm, in both.
        at_the_end: before the update, by its norm (Pascanu et al., 2013).
        inside: on its way back, each element of every pre-activation's adjoint (Graves, 2013).
    """

    kept: float
    at_the_end: ClippedFlow[Flow]
    inside: ClippedFlow[Flow]


def clipped_where(setting: Setting, limit: float) -> Clipped:
    """Adjoints held within [-limit, limit] inside, and the norm that this gives as that of the end.

    Example:
        >>> from retrograde.explore.examples import clipped_where
        >>> from retrograde.explore.lesson import Setting
        >>> found = clipped_where(Setting(recurrent_scale=4.0, steps=30), 0.1)
        >>> round(found.at_the_end.cosine(), 6), found.inside.cosine() < 1
        (1.0, True)
    """
    flow = flow_of(setting)
    inside = flow.clipped(PreActivationValue(limit))
    whole = joined(list(flow.gradient.values())).log2_norms()
    kept = inside.kept()
    return Clipped(kept, flow.clipped(GlobalNorm(kept * 2.0 ** float(whole))), inside)


EXPLODING = Setting(recurrent_scale=6.0, forget_bias=3.0, steps=50)
"""An LSTM whose gradient asks to be clipped."""


def clipped_in_words(found: Clipped) -> str:
    """What the two places do to the direction, in Markdown."""
    return (
        f"**Just before the update**, if the direction matters. Both ways leave {found.kept:.3g} "
        f"of the norm. Clipped by its norm at the end, the gradient has a cosine of "
        f"{found.at_the_end.cosine():.3f} to the true one: the step is shorter, in the same "
        f"direction. Clipped inside, **{found.inside.cosine():.3f}**: the largest lags and "
        "routes lose most."
    )
