"""How results are shown in the app: charts that the browser draws, and numbers that are typeset."""

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrograde.charts.drawing import altair

INK = "currentColor"
"""That of the text around, on a light page and on a dark one."""

CONFIG = {
    "background": "transparent",
    "axis": {
        **dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor", "gridColor"), INK),
        **{"domainOpacity": 0.5, "tickOpacity": 0.5, "gridOpacity": 0.15},
    },
    "legend": {"labelColor": INK, "titleColor": INK, "orient": "bottom", "columns": 4},
    "title": {"color": INK, "subtitleColor": INK, "anchor": "start"},
    "text": {"color": INK},
    "view": {"stroke": INK, "strokeOpacity": 0.2},
}


MINUS = "\N{MINUS SIGN}"

LINE = 48
"""Letters of a title that fit a phone."""


@dataclass(frozen=True)
class Picture:
    """An Altair chart for marimo, drawn by the Vega-Lite that marimo brings, as wide as its place.

    A chart's own bundle holds a picture for other notebooks, which takes longer to draw than the
    numbers take to compute.

    Attributes:
        chart: the chart.
        y: the ends of its vertical scale, where it is to be compared with another; None for its
            own, with its title.
    """

    chart: Any
    y: tuple[float, float] | None = None

    def _mime_(self) -> tuple[str, str]:
        spec = self.chart.to_dict()
        spec |= {
            "title": _title(spec.get("title", "")) if self.y is None else "",
            "width": "container",
            "config": CONFIG,
            "usermeta": {"embedOptions": {"renderer": "svg", "actions": False}},
        }
        for layer in spec.get("layer", ()) if self.y is not None else ():
            scale = layer["encoding"].get("y", {}).get("scale")
            if scale is not None:
                scale |= {"domain": self.y, "nice": False}
        if spec.get("mark", {}).get("type") == "rect":  # no light between the cells of a map
            spec["encoding"]["stroke"] = spec["encoding"]["color"]
        major = spec["$schema"].rpartition("/v")[2].partition(".")[0]
        return f"application/vnd.vegalite.v{major}+json", json.dumps(spec)


def _title(title: str | dict[str, Any]) -> list[str]:
    """A title in lines that fit a phone; what a subtitle says the screen says itself."""
    text = title if isinstance(title, str) else title.get("text", "")
    return textwrap.wrap(text if isinstance(text, str) else " ".join(text), LINE)


def pictures(chart: Any, y: tuple[float, float] | None = None) -> list[Picture]:
    """A chart, or those that it holds one below the other: only single ones fit their place."""
    parts = getattr(chart, "vconcat", None)
    if parts is None:
        return [Picture(chart, y)]
    found: list[Picture] = []
    for part in parts:
        alone = part.copy()
        if not found and "title" not in part.to_dict(validate=False):
            alone.title = chart.title
        if alone.data is altair().Undefined:
            alone.data = chart.data
        found.append(Picture(alone))
    return found


def side_by_side(items: Sequence[Any]) -> str:
    """HTML that puts what marimo has made into columns, or below each other on a phone."""
    columns = "repeat(auto-fit, minmax(min(300px, 100%), 1fr))"
    cells = "".join(f"<div>{item}</div>" for item in items)
    return f'<div style="display: grid; grid-template-columns: {columns}; gap: 1rem">{cells}</div>'


def typeset(markdown: str) -> str:
    """Powers and indices as they are written by hand: 2^-3.5, R_o."""

    def raised(found: re.Match[str]) -> str:
        return f"<sup>{found[1].replace('-', MINUS)}</sup>"

    markdown = re.sub(r"\^(-?(?:\d+(?:\.\d+)?|inf))", raised, markdown)
    return re.sub(r"\b([A-Zdc])_([a-zA-Z0-9])\b", r"<i>\1</i><sub>\2</sub>", markdown)
