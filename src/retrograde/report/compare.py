"""Two reports side by side: their findings, and numbers, judged where something judges them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from retrograde import _checks
from retrograde._words import counted, number
from retrograde.diagnosis import Finding
from retrograde.errors import ArgumentError
from retrograde.report.changes import Difference, FindingChange, LayerChange, Number
from retrograde.report.compare_findings import Doubts, paired
from retrograde.report.comparison import Comparison
from retrograde.report.differences import differ, judged, missing, moved_thresholds, of_settings
from retrograde.report.growth import NeededLag
from retrograde.report.horizon_compare import compare_horizons
from retrograde.report.horizon_report import HorizonReport
from retrograde.report.layer import Layer
from retrograde.report.report import Report

CLEAR = 0.1
"""Losses of one batch that are nearer to each other than this share of the larger one have changed,
and neither is called better."""

RULES = {"reach": ("vanishing", "above"), "growth": ("exploding", "below")}
"""The rule that judges a number of a layer, and which way is then the healthy one."""


def compare(
    a: Report | HorizonReport,
    b: Report | HorizonReport,
    names: tuple[str, str] = ("before", "after"),
) -> Comparison:
    """Compare two reports, of a model before and after a change for example.

    Findings are paired by rule and layer, and by gate and route where a rule found several. One
    that is gone or less severe is better, unless its rule did not look the second time or a
    threshold it stands on was changed.

    More is not better by itself: a reach of 60 steps is no gain for a task that needs 10. So a
    number of a layer is called better or worse only where something says which way is healthy:

    - reach, where both reports were given the same needs_lag= (or answer to the same horizon) and
      at least one falls short of it: longer is better;
    - a number that a finding of this layer, in either report, stands on as evidence with a
      threshold; and reach where there is a vanishing finding, growth where there is an exploding
      one: towards the healthy side is better.

    Of a layer whose parts are void in either report the residual alone is compared.

    The loss comes first: lower is better where both reports saw the same batch and the two differ
    by more than a tenth. A model that has
    learnt what there is to learn (the rule `solved`) is not called worse for its loss, its numbers
    or a remark.

    Everything else is "changed". Numbers that agree in three digits are the same, and so are
    residuals within an order of magnitude, as these are rounding errors.

    Two horizon reports are compared by window, reach and learnability horizon, for the whole
    gradient, each layer and each parameter; a longer window is neither better nor worse.

    Args:
        a: the report before.
        b: the report after, of the same kind.
        names: what to call the two.

    Raises:
        ArgumentError: for what is no report, a report and a horizon report, or other than two
            names.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.report import compare
        >>> report = retrograde.diagnose(
        ...     torch.nn.GRU(1, 2), torch.ones(5, 1, 1), lambda model, x: model(x)[0].sum()
        ... )
        >>> compare(report, report).summary
        'Nothing changed.'
    """
    _checks.tuple_of("names", names, str, "two names")
    if len(names) != 2:
        raise ArgumentError(f"names must be two names; got {_checks.shown(names)}")
    if isinstance(a, HorizonReport) and isinstance(b, HorizonReport):
        return compare_horizons(a, b, names)
    words = "a report, as of diagnose or Report.from_json"
    if isinstance(a, HorizonReport) or isinstance(b, HorizonReport):
        words += "; a horizon report is compared with another one"
    a, b = _checks.instance("a", a, Report, words), _checks.instance("b", b, Report, words)
    before = {layer.name: layer for layer in a.layers}
    after = {layer.name: layer for layer in b.layers}
    settings = tuple(_settings(a, b))
    doubts = Doubts(a, b)
    need = _need(a, b)
    layers = []
    for name in (name for name in before if name in after):
        findings = paired(_of(a, name), _of(b, name), doubts)
        numbers = _numbers(before[name], after[name], findings, need, a.horizon == b.horizon)
        layers.append(LayerChange(name, numbers, findings))
    both = set(before) & set(after)
    changes = Comparison(
        names,
        settings,
        paired(_elsewhere(a, both), _elsewhere(b, both), doubts),
        tuple(layers),
        tuple(name for name in before if name not in after),
        tuple(name for name in after if name not in before),
        _loss(a, b),
    )
    return _spared(changes) if b.solved else changes


def _loss(a: Report, b: Report) -> Number | None:
    """What became of the loss; which way is better is known where both saw the same batch."""
    if a.loss is None or b.loss is None:
        return None
    alike = (a.settings.batch, a.settings.seed) == (b.settings.batch, b.settings.seed)
    clear = abs(a.loss - b.loss) > CLEAR * max(abs(a.loss), abs(b.loss))
    return judged("loss", "", a.loss, b.loss, "below" if alike and clear else None)


def _spared(changes: Comparison) -> Comparison:
    """Nothing is worse in a model that has learnt what there is to learn, unless it must be mended.

    A solved model is no worse for a short or small gradient, nor for a loss a little above another.
    """

    def number(part: Number) -> Number:
        return replace(part, verdict="changed") if part.verdict == "worse" else part

    def finding(change: FindingChange) -> FindingChange:
        worse = change.verdict == "worse" and change.finding.severity == "info"
        evidence = tuple(map(number, change.evidence))
        return replace(change, verdict="changed" if worse else change.verdict, evidence=evidence)

    return replace(
        changes,
        findings=tuple(map(finding, changes.findings)),
        layers=tuple(
            replace(
                layer,
                numbers=tuple(map(number, layer.numbers)),
                findings=tuple(map(finding, layer.findings)),
            )
            for layer in changes.layers
        ),
        loss=None if changes.loss is None else number(changes.loss),
    )


def _numbers(
    before: Layer,
    after: Layer,
    findings: Sequence[FindingChange],
    need: int | None,
    same_horizon: bool,
) -> tuple[Number, ...]:
    """The numbers of a layer that at least one report has."""
    healthy = _healthy(findings)
    short = need is not None and min(before.reach, after.reach) < need
    if short:
        healthy["reach"] = "above"
    elif need is not None:
        healthy.pop("reach", None)
    carousel = before.share_carousel, after.share_carousel
    rows: list[tuple[str, str, float | None, float | None]] = [
        ("reach", "steps", float(before.reach), float(after.reach)),
        ("half-life", "steps", before.half_life, after.half_life),
        ("share near", "of the gradient", before.share_near, after.share_near),
        ("share carousel", "of the gradient, by the last hop", *carousel),
        ("growth", "powers of two per step", before.growth, after.growth),
        ("gradient norm", "", before.gradient_norm, after.gradient_norm),
        ("residual", "", before.residual, after.residual),
    ]
    if before.reach_is_lower_bound or after.reach_is_lower_bound:
        healthy.pop("reach", None)
    if before.void or after.void:
        rows = [row for row in rows if row[0] == "residual"]
    elif same_horizon:
        rows.append(("share beyond the horizon", "of the gradient", before.beyond, after.beyond))
    return tuple(
        judged(name, unit, old, new, healthy.get(name))
        for name, unit, old, new in rows
        if not (missing(old) and missing(new))
    )


def _healthy(findings: Sequence[FindingChange]) -> dict[str, str]:
    """Which way is the healthy one, for numbers that a finding stands on."""
    found = [each for change in findings for each in (change.before, change.after) if each]
    rules = {each.rule for each in found}
    judged = {name: way for name, (rule, way) in RULES.items() if rule in rules}
    for each in found:
        for evidence in each.evidence:
            if evidence.threshold is not None:
                judged[evidence.name] = evidence.healthy
    return judged


def _need(a: Report, b: Report) -> int | None:
    """The lag that both reports say matters."""
    lags = [_lag(report) for report in (a, b)]
    return lags[0] if lags[0] == lags[1] else None


def _lag(report: Report) -> int | None:
    named = report.settings.needs_lag
    return named if named is not None else report.horizon.lag if report.horizon else None


def _of(report: Report, layer: str) -> list[Finding]:
    return [found for found in report.findings if found.layer == layer]


def _elsewhere(report: Report, layers: set[str]) -> list[Finding]:
    """Findings of the model as a whole, and of layers that one report alone has."""
    return [found for found in report.findings if found.layer not in layers]


def _settings(a: Report, b: Report) -> Iterator[Difference]:
    """What was set or run differently."""
    old, new = a.settings, b.settings
    yield from of_settings(old, new)
    yield from differ("needs_lag", old.needs_lag, new.needs_lag)
    yield from differ("horizon", _horizon(a.horizon), _horizon(b.horizon))
    yield from differ("rules", ", ".join(old.rules), ", ".join(new.rules))
    for name, before, after in moved_thresholds(old, new):
        yield from differ(f"threshold {name}", number(before), number(after))
    after_layers = {layer.name: layer for layer in b.layers}
    for layer in a.layers:
        if layer.name in after_layers:
            other = after_layers[layer.name]
            for name in ("steps", "batch", "entries"):
                yield from differ(
                    f"{name} of {layer.name}", getattr(layer, name), getattr(other, name)
                )


def _horizon(horizon: NeededLag | None) -> str:
    return f"{horizon.name} ({counted(horizon.lag, 'step')})" if horizon else ""
