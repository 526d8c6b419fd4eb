"""How far back a layer has to see: as the user says, as its input shows, or a part of the whole."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde._words import counted, number, share
from retrograde.recording import Recorded

NEARLY = 0.9
"""A peak of this part of the highest one is as high as it, but for the noise."""

CHANCE = 3.0
"""The autocorrelation of n pairs of noise has a standard deviation of 1/sqrt(n);
this multiple of it is no chance."""


@dataclass(frozen=True)
class Need:
    """A lag that matters.

    Attributes:
        lag: in steps.
        why: where it comes from: "named", "season" or "length".
        words: the same in words.
        setting: the threshold in the table that it stands on, if it does.
    """

    lag: int
    why: str
    words: str
    setting: str | None


def need_of(recorded: Recorded, named: int | None, season: float, fraction: float) -> Need:
    """The lag that a layer needs.

    Args:
        recorded: the pass.
        named: the lag that the user named.
        season: from what autocorrelation on a peak counts as a season.
        fraction: the part of the sequence that is expected otherwise.
    """
    if named is not None:
        return Need(named, "named", f"needs_lag={named}", None)
    found = season_of(recorded.x, season)
    if found is not None:
        lag, height = found
        words = f"the input resembles itself {lag} steps ago, autocorrelation {number(height)}"
        return Need(lag, "season", words, "season_correlation")
    lag = math.ceil(min(max(fraction, 0.0), 1.0) * (len(recorded.x) - 1))
    words = f"{counted(lag, 'step')}, {share(fraction)} of the sequence"
    return Need(lag, "length", words, "reach_fraction")


def need_among(
    layers: Mapping[str, Recorded], name: str, named: int, last: str | None
) -> Need | None:
    """The part of a named lag that a layer has to hold beside others; None if all of it.

    Args:
        layers: the layers of the model.
        name: of the layer.
        named: the lag.
        last: the layer that ran last; None for a recording, of which it is not known what reads the
            layer's single steps.

    Where one layer's state goes on to another, as an encoder's to a decoder, the lag is that of
    both end to end: the later one holds its own steps, the earlier one the rest. Elsewhere a layer
    need not hold the lag if it is too short for it and another one is not, or if one of another
    length may read its single steps and carry the lag past it (where the model is run, that is
    tried).
    """
    recorded = layers[name]
    steps, later = len(recorded.x), _later(layers, name)
    after = sum(len(layers[other].x) for other in later)
    others = [len(each.x) for other, each in layers.items() if other != name]
    before = any(name in _later(layers, other) for other in layers)
    bridged = any(length != steps for length in others) and _read_at_several(recorded)
    if bridged and not before and last is None:
        return _elsewhere(named, "which a layer of another length may carry past it")
    if after:
        where = f"of which {after} steps lie in {', '.join(later)}"
        if named <= after:
            return _elsewhere(named, "all of which lies where its state goes on")
        return Need(min(named - after, steps - 1), "named", f"needs_lag={named}, {where}", None)
    if before and named >= steps:
        words = f"needs_lag={named}, the nearest {steps} steps of it"
        return Need(steps - 1, "named", words, None)
    if named >= steps and any(length > named for length in others):
        return _elsewhere(named, "which is longer than its sequence, and which another layer holds")
    return None


def _elsewhere(named: int, words: str) -> Need:
    return Need(0, "named", f"the lag that matters is one of {named} steps, {words}", None)


def _later(layers: Mapping[str, Recorded], name: str) -> list[str]:
    """The layers that its state goes on to, one after the other."""
    found: list[str] = []
    waiting = [name]
    while waiting:
        notes = layers[waiting.pop()].notes
        for other in layers:
            if other not in (name, *found) and any(f"passes on to {other!r}" in n for n in notes):
                found.append(other)
                waiting.append(other)
    return found


def _read_at_several(recorded: Recorded) -> bool:
    """Whether the loss depends on what the layer returns at more than one step."""
    return int((recorded.direct != 0).flatten(1).any(1).sum()) > 1


def season_of(x: Float[Tensor, "T B I"], least: float) -> tuple[int, float] | None:
    """The lag of the first high peak of the input's autocorrelation, and its height, or None.

        r(l) = sum_t z_t z_{t-l} / (T - l)  over  sum_t z_t^2 / T,   z without mean and trend

    Over all samples and features together, each in units of its own spread, up to half of the
    sequence. A peak lies behind a lag at which r is below `least`: that neighbours resemble each
    other is no season, nor is a height that noise reaches where there are few pairs. Twice a
    season is as high a peak, but for the noise: the first one counts that is nearly as high as
    the highest.
    """
    steps = len(x)
    if steps < 8 or not bool(x.isfinite().all()):
        return None
    varies = x.double().std(0).amax() > 1e-6 * x.abs().amax()
    r = autocorrelation(x) if bool(varies) else torch.zeros(0)
    below = torch.nonzero(r < least)
    if not len(below):
        return None
    first = int(below[0])
    if first >= len(r) - 1:
        return None
    inside = r[first:-1]  # at the very end it may still be rising
    pairs = x[0].numel() * torch.arange(steps - first, steps - len(r) + 1, -1, device=r.device)
    floor = (CHANCE / pairs.sqrt()).clamp(min=least)
    peaks = (inside >= r[first - 1 : -2]) & (inside >= r[first + 1 :]) & (inside >= floor)
    if not bool(peaks.any()):
        return None
    high = peaks & (inside >= NEARLY * inside[peaks].max())
    lag = first + int(torch.nonzero(high)[0])
    return lag, float(r[lag])


def autocorrelation(x: Float[Tensor, "T B I"]) -> Float[Tensor, "L"]:
    """r(l) for lags 0 .. T/2, of what is left without mean and linear trend."""
    steps = len(x)
    z = x.double().flatten(1)
    time = torch.linspace(-1, 1, steps, dtype=z.dtype, device=z.device).unsqueeze(1)
    z = z - z.mean(0)
    z = z - time * (time * z).sum(0) / time.square().sum()
    power = z.square().sum(0)
    z = z[:, power > 1e-12 * power.max().clamp(min=torch.finfo(z.dtype).tiny)]
    z = z / z.square().sum(0).sqrt()
    spectrum = torch.fft.rfft(z, 2 * steps, dim=0)
    r = torch.fft.irfft(spectrum.abs().square().sum(1), 2 * steps)[: steps // 2 + 1]
    r = r * steps / torch.arange(steps, steps - len(r), -1, device=r.device)
    mean: Tensor = r / max(1, z.shape[1])
    return mean
