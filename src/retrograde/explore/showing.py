"""How results are shown in the app: charts that the browser draws, as wide as there is room."""

import json
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Picture:
    """An Altair chart for marimo, drawn by the Vega-Lite that marimo brings.

    A chart's own bundle holds a picture for other notebooks, which takes longer to draw than the
    numbers take to compute.
    """

    chart: Any

    def _mime_(self) -> tuple[str, str]:
        spec = self.chart.to_dict()
        spec |= {
            "width": "container",
            "config": CONFIG,
            "usermeta": {"embedOptions": {"renderer": "svg", "actions": False}},
        }
        major = spec["$schema"].rpartition("/v")[2].partition(".")[0]
        return f"application/vnd.vegalite.v{major}+json", json.dumps(spec)
