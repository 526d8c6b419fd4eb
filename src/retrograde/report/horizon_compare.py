"""Two horizon reports side by side."""

from collections.abc import Iterator

from retrograde.report.changes import Difference, LayerChange, Number
from retrograde.report.comparison import Comparison
from retrograde.report.differences import differ, judged, missing, of_settings
from retrograde.report.horizon_data import Curve
from retrograde.report.horizon_report import HorizonReport

JUDGED = ("training_steps", "batch_size", "past")
"""What `learnable` and `used` are asked for."""

WHOLE = "the whole gradient"


def compare_horizons(a: HorizonReport, b: HorizonReport, names: tuple[str, str]) -> Comparison:
    """What changed in the window that a model needs, at the last weights of each report."""
    before, after = ({curve.of: curve for curve in report.last.curves} for report in (a, b))
    layers = [
        LayerChange(of or WHOLE, tuple(_numbers(a, b, of, before[of], after[of])), ())
        for of in before
        if of in after
    ]
    return Comparison(
        names,
        tuple(_settings(a, b)),
        (),
        tuple(layers),
        tuple(of for of in before if of not in after),
        tuple(of for of in after if of not in before),
    )


def _numbers(
    a: HorizonReport, b: HorizonReport, of: str, before: Curve, after: Curve
) -> Iterator[Number]:
    """Those that at least one report has."""
    windows = before.window, after.window
    rows: list[tuple[str, str, float | None, float | None]] = [("window", "steps", *windows)]
    if not of:
        rows.append(("used", "steps", a.last.used, b.last.used))
        rows.append(("reach", "steps", a.last.reach, b.last.reach))
        rows.append(("learnable", "steps", a.last.learnable, b.last.learnable))
    k = before.window
    if k is not None and k in b.steps:
        bias = before.bias[a.steps.index(k)], after.bias[b.steps.index(k)]
        rows.append((f"bias at K = {k}", "", *bias))
    for name, unit, old, new in rows:
        if not (missing(old) and missing(new)):
            yield judged(name, unit, old, new, None)


def _settings(a: HorizonReport, b: HorizonReport) -> Iterator[Difference]:
    """What was set or run differently."""
    yield from of_settings(a.settings, b.settings)
    for name in ("kind", "layer", "length", "batches", "delta", *JUDGED):
        yield from differ(name, getattr(a, name), getattr(b, name))
    yield from differ("weights", a.last.name, b.last.name)
