"""By phase: what is left of a gradient when the state is detached every K steps, phase by phase."""

from collections.abc import Callable, Mapping

import torch

from retrograde.decomposition.rows import joined
from retrograde.engine import Scaled
from retrograde.truncation.cuts import octaves, phases


def by_phase(
    gradient: Mapping[str, Scaled], steps: int, cut: Callable[[int, int], Mapping[str, Scaled]]
) -> dict[int, tuple[float, ...]]:
    """The bias of cuts every 1, 2, 4, ... steps, one for each phase that is tried.

    Args:
        gradient: the whole one, each parameter as one row.
        steps: T.
        cut: the gradient with the state detached every so many steps, from a step on.
    """
    whole = joined(list(gradient.values()))
    minus, size = Scaled(-whole.values, whole.exponent), whole.log2_norms()

    def bias(every: int, phase: int) -> float:
        found = cut(every, phase)
        left = joined([found[name] for name in gradient]).plus(minus)
        return float(torch.exp2(left.log2_norms() - size))

    return {k: tuple(bias(k, phase) for phase in phases(k)) for k in octaves(steps)}
