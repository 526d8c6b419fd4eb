"""A horizon report for a terminal and as a page."""

from collections.abc import Iterator
from importlib.metadata import version
from math import isnan
from typing import Any

from retrograde import _files, charts
from retrograde._terminal import as_text, indented, plain, rich
from retrograde._words import counted, lag_in_words, number, share
from retrograde.report.horizon_data import KINDS, PASTS, Curve, HorizonData
from retrograde.report.html import environment
from retrograde.report.pictures import Pictures, javascript

TITLE = "Is the window long enough?"

COLUMNS = ("K", "bias", "10 to 90 %", "cosine", "norm", "signs differ")

Row = tuple[str, ...]

MOST_PARTS = 40
"""Maximum number of layers and parameters in the table of a text or page."""


def text(report: HorizonData) -> str:
    """The report as plain text, 120 columns wide."""
    return as_text(renderable(report))


def renderable(report: HorizonData) -> Any:
    """The report as something that a rich console can print."""
    parts: list[Any] = [
        rich().Text(TITLE, style="bold"),
        rich().Text(report.last.advice),
        rich().Text(plain(basis(report)), style="dim"),
    ]
    for heading, titles, rows in tables(report):
        table = rich().Table(box=None, pad_edge=False)
        for title in titles:
            table.add_column(
                title, justify="left" if title in ("of", "weights", "lags") else "right"
            )
        for row in rows:
            table.add_row(*(rich().Text(plain(cell)) for cell in row))
        parts += ["", heading, indented(table)]
    parts += ["", *(rich().Text(plain(note), style="dim") for note in report.last.notes)]
    return rich().Group(*parts)


def page(report: HorizonData) -> str:
    """The report as one page that opens offline."""
    gallery = Pictures()
    gallery.add("curve", lambda: curve_chart(report))
    if len(report.weights) > 1:
        gallery.add("growth", lambda: growth_chart(report))
    found: str = (
        environment()
        .get_template("horizon.html.jinja")
        .render(
            title=TITLE,
            report=report,
            basis=basis(report),
            tables=list(tables(report)),
            notes=report.last.notes,
            gallery=gallery,
            javascript=javascript(),
            version=version("retrograde"),
        )
    )
    return _files.encodable(found)


def curve_chart(report: HorizonData) -> Any:
    """The bias over K at the last weights."""
    whole = report.last.curves[0]
    band = [list(whole.low), list(whole.bias), list(whole.high)]
    return charts.truncation_curve(report.steps, band, report.delta, whole.window, report.kind)


def growth_chart(report: HorizonData) -> Any:
    """Window, reach and learnability horizon at each set of weights."""
    return charts.horizon_growth(
        [each.name for each in report.weights],
        {
            "window": [each.window for each in report.weights],
            "reach": [each.reach for each in report.weights],
            "learnable": [_or_none(each.learnable) for each in report.weights],
        },
    )


def basis(report: HorizonData) -> str:
    """What the curve is of, and what the lags were asked for."""
    words = [
        f"Truncation: {report.kind} ({KINDS[report.kind]}).",
        f"Sequences of {counted(report.length, 'step')}, "
        f"{counted(report.batches, 'batch', 'batches')}.",
    ]
    if report.layer is not None:
        words.append(f"Layer: {report.layer}.")
    if report.past is not None:
        words.append(f"Used: against {PASTS[report.past]}.")
    if report.training_steps is not None:
        size = "as seen here" if report.batch_size is None else f"of {report.batch_size}"
        words.append(
            f"Learnable: by {counted(report.training_steps, 'training step')}, batches {size}."
        )
    return " ".join(words)


def tables(report: HorizonData) -> Iterator[tuple[str, Row, list[Row]]]:
    """Heading, titles and rows: over training, over K, and over layers and parameters."""
    rows: list[Row]
    if len(report.weights) > 1:
        rows = [
            (
                each.name,
                _window(each.window),
                _lag(each.used),
                str(each.reach),
                _lag(each.learnable),
            )
            for each in report.weights
        ]
        titles = ("weights", "window", "used", "reach", "learnable")
        yield "While the network learns", titles, rows
    if report.last.lags:
        rows = [
            (
                lag_in_words(range(each.first, each.last + 1)),
                number(each.used),
                number(each.reached),
                number(each.learnable),
                _interval(each.low, each.high),
            )
            for each in report.last.lags
        ]
        titles = ("lags", "used", "reached", "learnable", "95 % interval")
        yield "What the model uses, what the gradient reaches, what the data hold", titles, rows
    whole = report.last.curves[0]
    banded = any(low < high for low, high in zip(whole.low, whole.high, strict=True))
    places = [at for at, title in enumerate(COLUMNS) if banded or title != "10 to 90 %"]
    rows = [tuple(_row(report, whole, at)[place] for place in places) for at in report.shown]
    yield "What a window of K steps leaves", tuple(COLUMNS[place] for place in places), rows
    parts = report.last.curves[1:][:MOST_PARTS]
    if parts:
        at = 0 if whole.window is None else report.steps.index(whole.window)
        title = f"bias at K = {report.steps[at]}"
        rows = [(part.of, _window(part.window), number(part.bias[at])) for part in parts]
        yield "Layers and parameters", ("of", "window", title), rows


def _row(report: HorizonData, curve: Curve, at: int) -> tuple[str, ...]:
    return (
        str(report.steps[at]),
        number(curve.bias[at]),
        _interval(curve.low[at], curve.high[at]),
        "-" if isnan(curve.cosine[at]) else f"{curve.cosine[at]:.3f}",
        number(curve.ratio[at]),
        share(curve.signs[at]),
    )


def _interval(low: float | None, high: float | None) -> str:
    known = low is not None and high is not None and not isnan(low) and not isnan(high)
    return f"{number(low)} to {number(high)}" if known else "-"


def _or_none(lag: int | None) -> int | None:
    """A lag; None where it is not known or there is none."""
    return None if lag is None or lag < 0 else lag


def _window(steps: int | None) -> str:
    return "none" if steps is None else str(steps)


def _lag(lag: int | None) -> str:
    return "-" if lag is None else "none" if lag < 0 else str(lag)
