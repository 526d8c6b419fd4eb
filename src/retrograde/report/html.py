"""A report as one page that opens offline: the charts' own JavaScript is part of the file."""

from importlib.metadata import version
from typing import Any

import altair
import torch
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined

from retrograde.report.report import Layer, Report


def render(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("retrograde", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    titles, rows = report.table()
    return environment.get_template("page.html.jinja").render(
        report=report,
        titles=titles,
        rows=rows,
        layers=[
            {"name": layer.name, "sentence": sentence, "charts": _charts(report, layer)}
            for layer, sentence in zip(report.layers, report.sentences, strict=True)
        ],
        javascript=vl_convert.javascript_bundle(  # None: the libraries alone
            None,  # type: ignore[arg-type]
            vl_version=_vega_lite_version(),
        ),
        versions=f"retrograde {version('retrograde')}, torch {torch.__version__}",
    )


def _vega_lite_version() -> str:
    """Major and minor version of the Vega-Lite that Altair's specifications are written for."""
    return ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _charts(report: Report, layer: Layer) -> list[dict[str, Any]]:
    """The specifications of a layer's charts, the same objects that the Python API returns."""
    charts: dict[str, Any] = {
        "How much of what enters at t comes from the weights' use at k": layer.flow.by_time(),
        "The mean contribution over lag": layer.flow,
        "Which lags make up the gradient": report.by_lag(layer),
        "Which weights make up the gradient": layer.flow.by_parameter(),
    }
    if layer.has_carousel:
        charts["By which routes the gradient arrives"] = layer.flow.by_route()
        charts["How often it crossed recurrent weights"] = layer.by_crossing()
    return [{"label": label, "spec": part.chart().to_dict()} for label, part in charts.items()]
