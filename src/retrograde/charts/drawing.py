"""What all charts share: size, colours, and the pieces that they are made of.

Altair is imported when the first chart is drawn, not with the package.
"""

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from retrograde._optional import optional

WIDTH = 500

DEPTH = 40
"""The colours of the map span at most this many powers of two below its largest norm."""

LINE = 84
"""Maximum number of characters in a line below a title: about as wide as a chart."""

POINTS = 1000
"""Maximum number of points of a curve; of a longer one every n-th is shown."""

INK, ACCENT, COUNTER, GREY = "#3a7cab", "#c4478a", "#c96f0a", "#7f7f7f"

SERIES = (
    *("#3b7bbf", "#c96f0a", "#2da55a", "#c33c2d", "#963cff"),
    *("#5a695a", "#a57896", "#9678ff", "#8a8a1f", "#1c93a0"),
    *("#9c6b4e", "#d1579b", "#9467bd", "#e0605f", "#0f8a78"),
    *("#b08030", "#5f82e0", "#a85fd6", "#2f9158", "#d5494c"),
)
"""The first eight are told apart whatever colours their reader sees."""

RAMP = ("#2f66d8", "#6a78a8", "#857d78", "#a87c3e", "#c98000")
"""Colours that stand out (3 to 1 and more) from white paper and from a dark page alike."""

SHAPES = (
    *("circle", "square", "triangle-up", "diamond"),
    *("cross", "triangle-down", "triangle-right", "triangle-left"),
)

NORM = "abs(datum.log2) < 1000 ? format(pow(2, datum.log2), '.3g') : '2^' + datum.log2"


def ramp(count: int) -> list[str]:
    """Colours along the ramp, in equal steps."""
    colours = torch.tensor(
        [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in RAMP], dtype=torch.float64
    )
    found = []
    for number in range(count):
        at = number * (len(RAMP) - 1) / max(1, count - 1)
        first = min(int(at), len(RAMP) - 2)
        mixed = torch.lerp(colours[first], colours[first + 1], at - first)
        found.append("#" + "".join(f"{round(value):02x}" for value in mixed.tolist()))
    return found


def nothing(alt: Any, title: str) -> Any:
    """In place of a chart that has no number to show."""
    text = "nothing to draw: every number is 0 or not finite"
    data = table(alt, {"text": "string"}, [(text,)])
    chart = alt.Chart(data, title=title, width=WIDTH, height=60)
    return chart.mark_text().encode(text=alt.Text("text:N"))


def rule(
    alt: Any, where: Mapping[str, int | float], axis: str, text: str, *, left: bool = False
) -> list[Any]:
    """A dashed line with a label, vertical at a lag or horizontal at a size.

    The label of a vertical one stands to its right, or to its `left`; that of a horizontal one ends
    where the chart ends, however wide it is drawn.
    """
    name, at = next(iter(where.items()))
    data = table(alt, {name: "number", "text": "string"}, [(at, text)])
    line = (
        alt.Chart(data)
        .mark_rule(strokeDash=[4, 4], color=ACCENT)
        .encode({"x": alt.X, "y": alt.Y}[axis](f"{name}:Q"))
    )
    words = alt.Text("text:N")
    if axis == "x":
        align, dx = ("right", -5) if left else ("left", 5)
        label = alt.Chart(data).mark_text(align=align, dx=dx, dy=6, baseline="top")
        return [line, label.encode(x=alt.X(f"{name}:Q"), y=alt.YValue(0), text=words)]
    label = alt.Chart(data).mark_text(align="right", dy=-6)
    return [line, label.encode(y=alt.Y(f"{name}:Q"), x=alt.XValue("width"), text=words)]


def fitting_scale(alt: Any, values: Sequence[float]) -> Any:
    """A linear scale, or a logarithmic one for positive values that differ by orders."""
    if values and min(values) > 0 and max(values) > 100 * min(values):
        return alt.Scale(type="log")
    return alt.Scale(zero=False, padding=12)


def table(alt: Any, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> Any:
    """Rows as comma-separated text: a third of the bytes, and quick to hand over."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return alt.Data(values=text.getvalue(), format={"type": "csv", "parse": dict(columns)})


def thinned(count: int, most: int = POINTS) -> range:
    return range(0, count, max(1, -(-count // most)))


def repeated(values: Sequence[str], count: int) -> list[str]:
    return [values[number % len(values)] for number in range(count)]


def titled(title: str, *lines: str) -> dict[str, Any]:
    """A title and, in sentences below it, what is drawn; the last says how to read it."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, LINE)]
    return {"text": title, "subtitle": wrapped, "anchor": "start"}


def contributions(parameter: str | None) -> str:
    """What the parts of a chart are parts of."""
    return f"Contributions to {parameter or 'the whole gradient'}."


def naming(alt: Any, **options: Any) -> Any:
    """An axis of names, which keeps clear of its title however long they are."""
    return alt.Axis(labelLimit=280, maxExtent=330, **options)


def counting(alt: Any, **options: Any) -> Any:
    """An axis of steps or lags, with ticks at whole numbers alone."""
    return alt.Axis(tickMinStep=1, **options)


def altair() -> Any:
    with optional("a chart", "report"):
        import altair

    return altair
