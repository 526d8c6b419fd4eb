"""The charts for those who publish: Matplotlib axes of the same numbers, in the same colours.

Each function takes what its namesake in `retrograde.charts` takes, and axes to draw on; it makes a
figure where none are given, and returns both as (figure, axes).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy
import torch
from torch import Tensor

from retrograde._optional import optional
from retrograde._words import half_life_in_words, lag_in_words
from retrograde.charts import ACCENT, COUNTER, GREY, INK, SERIES
from retrograde.charts.drawing import DEPTH, ramp, repeated
from retrograde.charts.parts import axes_in_words, block_in_words

Drawn = tuple[Any, Any]
"""A Matplotlib figure and its axes."""


def lag_curve(log2_mean: Tensor, reach: int, half_life: float, floor: float, ax: Any) -> Drawn:
    """Mean norm of the contributions over lag, with reach and half-life marked."""
    figure, ax = _axes(ax)
    rows = [(lag, size) for lag, size in enumerate(log2_mean.tolist()) if math.isfinite(size)]
    if rows:
        lags, sizes = zip(*rows, strict=True)
        ax.plot(lags, sizes, color=INK, marker=".", label="mean contribution")
        if len(rows) > 1 and half_life == half_life:
            ax.axvline(reach, color=ACCENT, linestyle="--", label=f"reach: {reach} steps")
            ax.axhline(sizes[0] + math.log2(floor), color=ACCENT, linestyle="--", linewidth=0.8)
            slope = [sizes[0] - lag / half_life for lag in lags]
            words = f"half-life: {half_life_in_words(half_life)}"
            ax.plot(lags, slope, color=COUNTER, linestyle=":", label=words)
            ax.set_ylim(bottom=min(sizes))
        ax.legend()
    ax.set(xlabel="lag (steps)", ylabel="log2 of the mean contribution")
    _whole(ax.xaxis)
    return figure, ax


def truncation_curve(
    steps: Sequence[int],
    band: Sequence[Sequence[float]],
    delta: float,
    window: int | None,
    kind: str,
    ax: Any,
) -> Drawn:
    """Bias over K: the median over batches, its band from 10 % to 90 %, and the window."""
    figure, ax = _axes(ax)
    low, median, high = band
    ax.plot(steps, median, color=INK, marker=".", label=f"{kind}, at the current weights")
    if list(low) != list(high):
        ax.fill_between(steps, low, high, color=INK, alpha=0.25, label="80 % of the batches")
    ax.axhline(delta, color=ACCENT, linestyle="--", linewidth=0.8, label=f"bias {delta:g}")
    if window is not None:
        ax.axvline(window, color=ACCENT, linestyle="--", label=f"window: {window} steps")
    ax.legend()
    ax.set(xlabel="K (steps back)", ylabel="||g - g_K|| / ||g||")
    _whole(ax.xaxis)
    return figure, ax


def loss_step_by_use_step(
    entries: Sequence[int],
    uses: Sequence[int],
    log2: Sequence[Sequence[float]],
    parameter: str | None,
    ax: Any,
) -> Drawn:
    """The map of C[t,k]: loss step t upwards, use step k to the right, log2 norm as colour."""
    figure, ax = _axes(ax)
    if len(log2) == 1:
        ax.plot(uses[: len(log2[0])], log2[0], color=INK, marker=".")
        ax.set(xlabel="use step k", ylabel="log2 norm", title=f"loss step {entries[0]}")
        _whole(ax.xaxis)
        return figure, ax
    sizes = torch.full((len(log2), len(uses) - 1), torch.nan, dtype=torch.float64)
    for at, row in enumerate(log2):
        sizes[at, : len(row)] = torch.tensor(row, dtype=torch.float64)
    sizes[~sizes.isfinite()] = torch.nan
    finite = sizes[sizes.isfinite()]
    if len(finite):
        top = float(finite.max())
        least = max(float(finite.min()), top - DEPTH)
        mesh = ax.pcolormesh(
            uses, entries, sizes.numpy(), cmap="viridis", vmin=least, vmax=top, rasterized=True
        )
        figure.colorbar(mesh, ax=ax, label="log2 norm")
    ax.set(xlabel="use step k", ylabel="loss step t", title=parameter or "")
    _whole(ax.xaxis, ax.yaxis)
    return figure, ax


def shares_by_lag(lags: Sequence[range], log2: Tensor, share: Tensor, ax: Any) -> Drawn:
    """Signed share of the gradient in each bin of lags."""
    figure, ax = _axes(ax)
    _bars(ax, [lag_in_words(lag) for lag in lags], share.tolist())
    ax.set(xlabel="lag (steps)", ylabel="signed share")
    ax.yaxis.set_major_formatter(_percent())
    return figure, ax


def shares(
    axes: Sequence[Mapping[str, Sequence[Any]]], log2: Tensor, share: Tensor, ax: Any
) -> Drawn:
    """Signed shares by the labels of the first axis, and of all others in their order."""
    (down, names), *rest = axes_in_words(axes)
    figure, ax = _axes(ax, len(names))
    if not rest:
        _bars(ax, names, share.flatten().tolist(), along="y")
        ax.set(ylabel=down, xlabel="signed share")
        ax.xaxis.set_major_formatter(_percent())
        return figure, ax
    columns = [" · ".join(labels) for labels in product(*(labels for _, labels in rest))]
    values = share.reshape(len(names), -1)
    top = float(values.abs().max()) or 1.0
    through = [COUNTER, "#f4f4f4", INK]
    colours = _matplotlib().colors.LinearSegmentedColormap.from_list("share", through)
    image = ax.imshow(values.numpy(), cmap=colours, vmin=-top, vmax=top, aspect="auto")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=", ".join(name for name, _ in rest), ylabel=down)
    figure.colorbar(image, ax=ax, label="signed share", format=_percent())
    return figure, ax


def split_by_lag(
    kind: str, labels: Sequence[str], lags: Sequence[range], log2: Tensor, share: Tensor, ax: Any
) -> Drawn:
    """Routes or crossings over lag: their signed shares, stacked."""
    figure, ax = _axes(ax)
    colours = repeated(SERIES, len(labels)) if kind == "route" else ramp(len(labels))
    names = [lag_in_words(lag) for lag in lags]
    above, below = numpy.zeros(len(names)), numpy.zeros(len(names))
    for label, colour, parts in zip(labels, colours, share.nan_to_num().numpy(), strict=True):
        bottom = numpy.where(parts >= 0, above, below)
        ax.bar(names, parts, bottom=bottom, color=colour, label=label)
        above, below = above + parts.clip(min=0), below + parts.clip(max=0)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set(xlabel="lag (steps)", ylabel="signed share")
    ax.yaxis.set_major_formatter(_percent())
    ax.legend(title=kind)
    return figure, ax


def blocks(names: Sequence[tuple[str, str | None]], log2: Tensor, share: Tensor, ax: Any) -> Drawn:
    """Size of each block of the gradient, labelled with its share of the whole."""
    figure, ax = _axes(ax, len(names))
    for at, (size, part) in enumerate(zip(log2.tolist(), share.tolist(), strict=True)):
        if math.isfinite(size):
            ax.plot(size, at, "o", color=INK)
            beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            ax.annotate(f"{part:.1%}", (size, at), **beside)
    ax.set_yticks(range(len(names)), [block_in_words(name) for name in names])
    ax.invert_yaxis()
    ax.margins(x=0.12)  # room for the shares
    ax.set(xlabel="log2 norm", ylabel="parameter")
    return figure, ax


def singular_values(
    lengths: Sequence[int],
    shown: Sequence[int],
    size: int,
    log2: Sequence[Sequence[float]],
    ax: Any,
) -> Drawn:
    """log2 of the singular values over the length of the window."""
    figure, ax = _lines(lengths, shown, log2, ax)
    ax.set(xlabel="length of the window (steps)", ylabel="log2 singular value")
    _whole(ax.xaxis)
    return figure, ax


def exponents(
    steps: Sequence[int], shown: Sequence[int], size: int, each: Sequence[Sequence[float]], ax: Any
) -> Drawn:
    """Lyapunov exponents as estimated from the first steps, for each number of steps."""
    figure, ax = _lines(steps, shown, each, ax)
    ax.set(xlabel="steps seen", ylabel="exponent so far (nats per step)")
    _whole(ax.xaxis)
    return figure, ax


def training_run(
    layers: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], needs_lag: int | None, ax: Any
) -> Drawn:
    """Reach (solid) and horizon (dashed) of each layer over training."""
    figure, ax = _axes(ax)
    for colour, (name, curves) in zip(repeated(SERIES, len(layers)), layers.items(), strict=True):
        for what, style in (("reach", "-"), ("horizon", "--")):
            if curves[what]:
                at, steps = zip(*curves[what], strict=True)
                ax.plot(at, steps, style, color=colour, label=f"{name}: {what}")
    if needs_lag is not None:
        ax.axhline(needs_lag, color=ACCENT, linestyle="--", label=f"needed: {needs_lag} steps")
    ax.set(xlabel="block", ylabel="lag (steps)")
    _whole(ax.xaxis, ax.yaxis)
    ax.legend()
    return figure, ax


def _axes(ax: Any, names: int = 0) -> Drawn:
    """The axes to draw on and their figure; for None new ones, with room for names on the left."""
    if ax is not None:
        return ax.get_figure(), ax
    size = (6.4, max(4.8, 0.2 * names))
    drawn: Drawn = _matplotlib().pyplot.subplots(layout="constrained", figsize=size)
    return drawn


def _whole(*axes: Any) -> None:
    """Ticks at whole numbers alone, of steps and lags."""
    for axis in axes:
        axis.set_major_locator(_matplotlib().ticker.MaxNLocator(integer=True))


def _matplotlib() -> Any:
    with optional("a plot", "plot"):
        import matplotlib.colors
        import matplotlib.pyplot
        import matplotlib.ticker

    return matplotlib


def _bars(ax: Any, names: Sequence[str], values: Sequence[float], along: str = "x") -> None:
    values = [0.0 if value != value else value for value in values]
    colours = [COUNTER if value < 0 else INK for value in values]
    if along == "x":
        ax.bar(names, values, color=colours)
        ax.axhline(0, color=GREY, linewidth=0.8)
    else:
        ax.barh(names, values, color=colours)
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.invert_yaxis()


def _lines(
    at: Sequence[int], shown: Sequence[int], values: Sequence[Sequence[float]], ax: Any
) -> Drawn:
    """A line for each direction."""
    figure, ax = _axes(ax)
    for number, (direction, colour) in enumerate(zip(shown, ramp(len(shown)), strict=True)):
        line = [row[number] for row in values]
        ax.plot(at, line, color=colour, marker=".", label=str(direction + 1))
    ax.legend(title="direction")
    return figure, ax


def _percent() -> Any:
    return _matplotlib().ticker.PercentFormatter(1.0, decimals=0)
