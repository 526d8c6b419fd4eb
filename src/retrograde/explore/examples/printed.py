"""Are the printed numbers right? An article's LSTM of one unit, computed again."""

from functools import lru_cache

import numpy as np
import torch
from torch import nn

from retrograde.decomposition import Flow, decompose
from retrograde.recording import record

PRINTED = (0.010906688399113558, 0.02478099846737857, 0.13901933055672275)
"""Norms of the parts of dL_3/dW_x by use step 0, 1, 2, as 「RNNにおける誤差逆伝播法と勾配消失問題
(パート2)」 prints them."""


@lru_cache(maxsize=1)
def printed_numbers(seed: int = 1) -> Flow:
    """The article's LSTM (one sample, three inputs, three steps, one hidden unit).

    Args:
        seed: of its random numbers; the article prints those of 1.
    """
    random = np.random.RandomState(seed)
    x, h0, w_x, w_h, b = (random.randn(*s) for s in ((1, 3, 3), (1, 1), (3, 4), (1, 4), (4,)))
    given = torch.from_numpy(random.randn(1, 3, 1))
    to_torch = [0, 1, 3, 2]  # its gates i, f, o, g as torch's i, f, g, o
    lstm = nn.LSTM(3, 1, batch_first=True, dtype=torch.float64)
    weights = {"weight_ih_l0": w_x.T, "weight_hh_l0": w_h.T, "bias_ih_l0": b, "bias_hh_l0": 0 * b}
    lstm.load_state_dict({n: torch.from_numpy(w[to_torch].copy()) for n, w in weights.items()})
    h = torch.from_numpy(h0).unsqueeze(0)
    with record(lstm) as recording:
        output, _ = lstm(torch.from_numpy(x), (h, torch.zeros_like(h)))
        (output * given).sum().backward()
    return decompose(recording)


def components() -> list[float]:
    """The three norms that the article prints, computed."""
    norms: list[float] = printed_numbers().by_time("weight_ih_l0").norm[2].tolist()
    return norms


def components_in_markdown() -> str:
    """The printed and the computed norms, as a table."""
    rows = [
        f"| {k} | {2 - k} | {printed:.15f} | {ours:.15f} | {abs(printed - ours):.0e} |"
        for k, (printed, ours) in enumerate(zip(PRINTED, components(), strict=True))
    ]
    head = "| use step | lag | printed | computed by Retrograde | difference |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def components_in_words() -> str:
    """Whether the article's numbers are right, in Markdown."""
    ours = components()
    worst = max(abs(a - b) for a, b in zip(PRINTED, ours, strict=True))
    return (
        f"**They are**, to {worst:.0e}. The loss of the last step gets "
        f"{ours[2] / ours[0]:.3g} times as much from its own step as from two steps before: "
        "even over three steps the near terms dominate. (The norms of the parts of dL_3/dW_x in an "
        "LSTM of one unit, seed 1, as 「RNNにおける誤差逆伝播法と勾配消失問題(パート2)」 has them.)"
    )
