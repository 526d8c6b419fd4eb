"""A report as one page that opens offline."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from retrograde import _files, charts
from retrograde._optional import optional
from retrograde._words import number, residual, suffix, value
from retrograde.decomposition.lags import REACH
from retrograde.diagnosis import Finding
from retrograde.report.answer import answer
from retrograde.report.data import ReportData
from retrograde.report.layer import Layer
from retrograde.report.pictures import MOST_BYTES, Pictures, drawing, javascript
from retrograde.report.text import (
    CHECKED,
    batches_in_words,
    expected,
    moved_in_words,
    training_in_words,
)

MOST_FINDINGS = 40
"""Maximum number of findings shown with their evidence; of the rest only the message is shown."""

MOST_CURVES = 8
"""Maximum number of layers in the chart of all layers."""

MOST_MODEL = 20_000
"""Maximum number of characters shown of a model's description."""


@dataclass(frozen=True)
class Kind:
    """A kind of chart that a layer has: what it shows, in words, and how to get it, if at all."""

    label: str
    chart: Callable[[Layer], Any]


KINDS = {
    "lags": Kind("The mean contribution over lag", lambda layer: layer.chart()),
    "map": Kind(
        "How much of what enters at t comes from the weights' use at k",
        lambda layer: layer.by_time.chart(),
    ),
    "shares": Kind("Which lags make up the gradient", lambda layer: layer.by_octave.chart()),
    "blocks": Kind("Which weights make up the gradient", lambda layer: layer.by_parameter.chart()),
    "routes": Kind(
        "By which route the last hop arrives",
        lambda layer: layer.by_route and layer.by_route.chart(),
    ),
    "crossings": Kind(
        "How often it crossed recurrent weights",
        lambda layer: layer.by_crossing and layer.by_crossing.chart(),
    ),
    "gates": Kind("What the gates do over time", lambda layer: layer.gates_chart()),
    "exponents": Kind(
        "What becomes of any gradient in the long run",
        lambda layer: layer.directions and layer.directions.exponents_chart(),
    ),
    "singular": Kind(
        "What becomes of any gradient over a window",
        lambda layer: layer.directions and layer.directions.chart(),
    ),
}
"""In the order in which a layer shows them."""

FILTERS: dict[str, Callable[..., object]] = {
    "number": number,
    "residual": residual,
    "value": value,
    "suffix": suffix,
    "expected": expected,
    "training_in_words": training_in_words,
    "moved_in_words": moved_in_words,
    "batches_in_words": batches_in_words,
}
"""What templates put into words by functions of the report as text."""

LIGHT_FIRST = (
    "lags",
    "shares",
    "blocks",
    "crossings",
    "routes",
    "gates",
    "exponents",
    "singular",
    "map",
)

FORWARD = ("gates", "exponents", "singular")
"""The kinds that hold where the parts of the gradient are void."""

EVIDENCE: dict[str, Callable[[Layer, Finding], tuple[str, Any]]] = {
    "vanishing": lambda layer, finding: ("lags", layer.chart),
    "near-lags-dominate": lambda layer, finding: ("lags", layer.chart),
    "exploding": lambda layer, finding: ("adjoint", layer.adjoint_chart),
    "non-finite": lambda layer, finding: ("adjoint", layer.adjoint_chart),
    "saturated": lambda layer, finding: (
        f"saturation {_gate(finding)}",
        lambda: layer.saturation_chart(finding.gate, finding.position),
    ),
    "forget-gate-too-short": lambda layer, finding: (
        f"gates {_gate(finding)}",
        lambda: layer.gates_chart(finding.gate, finding.position),
    ),
    "conflicting-lags": lambda layer, finding: ("shares", layer.by_octave.chart),
    "dead-units": lambda layer, finding: ("blocks", layer.by_parameter.chart),
    "double-bias": lambda layer, finding: ("blocks", layer.by_parameter.chart),
    "output-outweighs": lambda layer, finding: ("blocks", layer.by_parameter.chart),
    "misleading-radius": lambda layer, finding: ("adjoint", layer.adjoint_chart),
}
"""By rule: the chart of the layer that shows what the rule saw, with a key among its charts."""


def _gate(finding: Finding) -> str:
    """Its gate, and where in the module, as part of a key."""
    return ", ".join(str(part) for part in (finding.gate, finding.position) if part)


def render(report: ReportData) -> str:
    """The page as text."""
    page = environment(**FILTERS).get_template("page.html.jinja")
    libraries = javascript()

    def written(gallery: _Gallery) -> str:
        text = page.render(
            title=report.title,
            report=report,
            answer=answer(report),
            gallery=gallery,
            kinds=KINDS,
            javascript=libraries,
            most_findings=MOST_FINDINGS,
            most_model=MOST_MODEL,
            version=version("retrograde"),
            **_table(report),
        )
        return _files.encodable(text)

    bare = written(_Gallery(report, 0))
    gallery = _Gallery(report, MOST_BYTES - len(bare.encode()))
    gallery.fill()
    return written(gallery)


def excerpt(report: ReportData) -> str:
    """What a notebook shows: no script, no style that reaches beyond it, and one picture."""
    page = environment(**FILTERS).get_template("excerpt.html.jinja")
    chart = _first_chart(report)
    text = page.render(
        report=report,
        most_findings=MOST_FINDINGS,
        picture="" if chart is None else drawing().Markup(charts.picture(chart, "")),
        **_table(report),
    )
    return _files.encodable(text)


def _first_chart(report: ReportData) -> Any:
    """What the first finding stands on, or how far back the gradient of the first layer reaches."""
    for finding in report.findings[:1]:
        if found := _evidence(report, finding):
            return found[1]()
    layers = [layer for layer in report.layers if not layer.void]
    return layers[0].chart() if layers else None


def _of_layers(report: ReportData) -> Any:
    """How much comes from how far back, of the layers that have something to show."""
    concerned = {finding.layer for finding in report.findings}
    seen = sorted(
        (each for each in report.layers if each.seen), key=lambda e: e.name not in concerned
    )
    curves = {each.name: _over_first(each.log2_mean_by_lag) for each in seen[:MOST_CURVES]}
    if not curves:
        return None
    return charts.reach_by_layer(curves, REACH, report.settings.needs_lag, len(report.layers))


def _over_first(curve: Sequence[float]) -> list[float]:
    """A curve in powers of two, over its value at lag 0."""
    first = next(filter(math.isfinite, curve), 0.0)
    return [log2 - first for log2 in curve]


def _evidence(report: ReportData, finding: Finding) -> tuple[str, Callable[[], Any]] | None:
    """The chart of what a finding stands on, if there is one: its key, and what draws it."""
    for place, layer in enumerate(report.layers):
        if layer.name == finding.layer and finding.rule in EVIDENCE:
            kind, make = EVIDENCE[finding.rule](layer, finding)
            return f"{place}-{kind}", make
    return None


class _Gallery(Pictures):
    """The charts of a report.

    Attributes:
        left_out: the layers without it, by kind.
    """

    def __init__(self, report: ReportData, room: int):
        super().__init__(room)
        self.report = report
        self.left_out: dict[str, list[str]] = {}

    def fill(self) -> None:
        """First what findings stand on, then kind by kind, from the light ones to the heavy."""
        self.add("layers", partial(_of_layers, self.report))
        for name, growth in self.report.growth.items():
            self.add(f"growth-{name}", partial(growth.chart, name, self.report.horizon))
        for place, finding in enumerate(self.report.findings[:MOST_FINDINGS]):
            if found := _evidence(self.report, finding):
                self.add(*found)
            self.add(f"trials-{place}", finding.chart)
            for row, trial in enumerate(finding.trials):
                if trial.training:
                    self.add(f"training-{place}-{row}", trial.training.chart)
        concerned = {finding.layer for finding in self.report.findings}
        layers = list(enumerate(self.report.layers))
        layers.sort(key=lambda numbered: numbered[1].name not in concerned)
        fits = True
        for kind in LIGHT_FIRST:
            for place, layer in layers:
                if layer.void and kind not in FORWARD:
                    continue
                fits = fits and self.add(f"{place}-{kind}", partial(KINDS[kind].chart, layer))
                if not fits:
                    self.left_out.setdefault(kind, []).append(layer.name)

    def evidence(self, finding: Finding) -> str | None:
        """The key of the chart that shows what a finding stands on, if it is here."""
        found = _evidence(self.report, finding)
        return found[0] if found and found[0] in self.specs else None

    def of(self, place: int) -> dict[str, str]:
        """The charts of a layer that are here: label by key."""
        keys = {f"{place}-{kind}": shown.label for kind, shown in KINDS.items()}
        return {key: label for key, label in keys.items() if key in self.specs}


def environment(**filters: Callable[..., object]) -> Any:
    """The templates of this folder, with everything escaped."""
    with optional("a page", "report"):
        from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("retrograde", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= filters
    return found


def _table(report: ReportData) -> dict[str, Any]:
    titles, rows = report.table()
    return {"titles": titles, "rows": rows, "checked": CHECKED}
