"""The report as data: findings, layers, the table and the sentences that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean

from retrograde._checks import listed
from retrograde.charts import half_life_in_words, lag_in_words
from retrograde.diagnosis import Check, Finding, Threshold
from retrograde.diagnosis.finding import at_least
from retrograde.report.layer import Horizon, Layer

FAINT = 0.01
"""A part of less than this share of the gradient hardly counts, however far back it comes from."""


@dataclass(frozen=True)
class Settings:
    """All that is needed to repeat a report.

    Attributes:
        versions: of retrograde, torch and Python.
        model: the model, as it prints itself.
        batch: kind, shape and data type of what it was given.
        device: where it ran.
        seed: of everything random in it.
        needs_lag: the lag that was said to matter.
        rules: the rules that were applied; `Report.checks` says which of them could look.
        thresholds: what they compared with.

    Example:
        >>> import torch, retrograde
        >>> report = retrograde.diagnose(
        ...     torch.nn.GRU(2, 4), torch.ones(20, 3, 2), lambda model, x: model(x)[0].sum(), seed=7
        ... )
        >>> report.settings.seed, report.settings.batch
        (7, '[20, 3, 2] float32')
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    batch: str = ""
    device: str = ""
    seed: int | None = None
    needs_lag: int | None = None
    rules: tuple[str, ...] = ()
    thresholds: tuple[Threshold, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """What a report holds, and the sentences that follow; `Report` says what each field is."""

    title: str
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...] = ()
    horizon: Horizon | None = None
    notes: tuple[str, ...] = ()
    settings: Settings = Settings()
    checks: tuple[Check, ...] = ()

    # What pydantic reads when the report is written and read: numbers beyond JSON's are strings.
    __pydantic_config__ = {"ser_json_inf_nan": "strings", "extra": "forbid"}

    @property
    def ok(self) -> bool:
        """Whether nothing was found that is more than a remark."""
        return not any(at_least(finding.severity, "warning") for finding in self.findings)

    @property
    def looked(self) -> tuple[str, ...]:
        """The rules that looked at one layer at least, or at the model as a whole."""
        looked = {check.name for check in self.checks if check.status != "not applicable"}
        return tuple(name for name in self._rules if name in looked)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why rules do not apply, or did not see all of a layer: a sentence for each reason."""
        by_layer: dict[tuple[str | None, str, str], list[str]] = {}
        for check in self.checks:
            if check.reason:
                silent = check.status == "not applicable"
                verb = "not apply" if silent else "not look at all of it"
                by_layer.setdefault((check.layer, verb, check.reason), []).append(check.name)
        places: dict[tuple[tuple[str, ...], str, str], list[str]] = {}
        for (layer, verb, reason), names in by_layer.items():
            alike = places.setdefault((tuple(names), verb, reason), [])
            alike.append("the whole model" if layer is None else layer)
        layers = {check.layer for check in self.checks} - {None}
        return tuple(
            f"{'every layer' if 1 < len(layers) == len(where) else listed(where)}: {listed(names)} "
            f"{'does' if len(names) == 1 else 'do'} {verb}, since {reason}."
            for (names, verb, reason), where in places.items()
        )

    @property
    def _rules(self) -> tuple[str, ...]:
        """The rules that were applied, in order."""
        return tuple(dict.fromkeys(check.name for check in self.checks))

    @property
    def sentences(self) -> tuple[str, ...]:
        """One plain sentence for each layer."""
        return tuple(sentence(layer, self.horizon) for layer in self.layers)

    @property
    def summary(self) -> str:
        """Three sentences: what is wrong, what probably causes it, and what helps."""
        if self.ok:
            looked = self._looked()
            if self.settings.rules and not self.looked:
                return f"Nothing can be said: {looked} {self._reaches()}"
            if self.findings:
                remark = _ended(self.findings[0].message)
                return f"Nothing found that needs mending: {looked} {self._reaches()} {remark}"
            named = self.settings.needs_lag
            far = [layer.reach for layer in self.layers if layer.reach_is_lower_bound]
            if named is None:
                need = "Whether a lag is reached that matters to you, needs_lag= would tell."
            elif min(far, default=named) < named:
                need = f"Whether {counted(named, 'step')} are within reach cannot be told."
            else:
                need = f"The lag that matters to you, {counted(named, 'step')}, is within reach."
            return f"Nothing found: {looked} {self._reaches()} {need}"
        first, *others = self.findings
        more = f" (and {len(others)} more)" if others else ""
        cause = first.causes[0] if first.causes else self._reaches()
        where = f"{first.layer}: " if first.layer and len(self.layers) > 1 else ""
        found = _ended(where + first.message, more)
        return f"{found} {_ended(cause)} {_ended(_what_helps(first))}"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column titles and one row of text for each layer."""
        figures = list(dict.fromkeys(name for layer in self.layers for name in layer.figures))
        widest = max(self.layers, key=lambda layer: layer.steps, default=None)
        groups = [f"lags {lag_in_words(lags)}" for lags in (widest.by_lag.lags if widest else ())]
        rows = []
        for layer in self.layers:
            share = [percent(value) for value in layer.by_lag.share.tolist()]
            half = half_life_in_words(layer.half_life).removesuffix(" steps")
            least = "at least " if layer.reach_is_lower_bound else ""
            reach = f"{least}{layer.reach} of {layer.steps - 1}"
            note = "void" if layer.void else layer.residual_note
            if layer.void:
                share, half, reach = ["void"] * len(share), "void", "void"
            rows.append(
                (
                    layer.name,
                    *(layer.figures.get(name, "") for name in figures),
                    reach,
                    half,
                    *share,
                    *[""] * (len(groups) - len(share)),
                    residual_in_words(layer.residual, note),
                )
            )
        return ("layer", *figures, "reach (steps)", "half-life (steps)", *groups, "residual"), rows

    def scalars(self) -> dict[str, float]:
        """At most ten numbers for each layer, for any logger, named as `Monitor` names them.

        `retrograde/<layer>/<scalar>` with reach (steps), rate and growth (powers of two per step),
        share_near and share_carousel (shares), gradient_norm (L2), residual and
        findings (how many are warnings or errors), and lower_bound (1) where the reach is one.
        What there is not (no carousel) is left out, and of a layer whose parts are void all but
        the residual and the findings.
        """
        found: dict[str, float] = {}
        for layer in self.layers:
            serious = [
                finding
                for finding in self.findings
                if finding.layer == layer.name and at_least(finding.severity, "warning")
            ]
            values = {
                "reach": float(layer.reach),
                "rate": 0.0 - 1 / layer.half_life,  # no half-life is so short as 0 steps
                "share_near": layer.share_near,
                "share_carousel": layer.share_carousel,
                "growth": layer.growth,
                "gradient_norm": layer.gradient_norm,
                "residual": layer.residual,
                "findings": float(len(serious)),
            }
            if layer.reach_is_lower_bound:
                values["lower_bound"] = 1.0
            if layer.void:
                values = {name: values[name] for name in ("residual", "findings")}
            finite = {name: value for name, value in values.items() if abs(value) < float("inf")}
            found |= {f"retrograde/{layer.name}/{name}": value for name, value in finite.items()}
        return found

    def _looked(self) -> str:
        """How many rules looked at every layer, and which others at some or none."""
        silent = {check.name for check in self.checks if check.status == "not applicable"}
        whole = [name for name in self._rules if name not in silent]
        some = [name for name in self._rules if name in silent and name in self.looked]
        none = [name for name in self._rules if name not in self.looked]
        where = counted(len({check.layer for check in self.checks if check.layer}), "layer")
        of = f"{len(whole)} of " if silent else ""
        parts = [f"{of}{counted(len(self._rules), 'rule')} looked at {where}"]
        parts += [f"{listed(some)} at some of them"] * bool(some)
        parts += [f"{listed(none)} {'does' if len(none) == 1 else 'do'} not apply"] * bool(none)
        return _ended("; ".join(parts))

    def _reaches(self) -> str:
        return self.sentences[0] if self.layers else "No layer could be taken apart."


def sentence(layer: Layer, horizon: Horizon | None) -> str:
    """What the layer's numbers say, in one plain sentence."""
    name = layer.name
    if layer.void:
        return (
            f"{name}: void; its parts differ from the gradient by {layer.residual:.2g} of its "
            f"size, where {layer.residual_bound:.1g} is allowed, and say nothing about it."
        )
    if not layer.entries:
        return f"{name}: the loss gives it no gradient; dL/dh is exactly 0 at every step."
    if layer.steps == 1:
        return f"{name}: the sequence has a single step, so there is nothing to look back on."
    if horizon is None or layer.beyond is None:
        half = half_life_in_words(layer.half_life)
        return (
            f"{name}: the gradient reaches back {_steps(layer)} of the "
            f"{layer.steps - 1} there are; the half-life of its adjoint is {half}."
        )
    reach, lag = _steps(layer), f"{horizon.name} ({counted(horizon.lag, 'step')})"
    if layer.reach < horizon.lag and layer.reach_is_lower_bound:
        return f"{name}: cannot tell; its gradient reaches back {reach}, perhaps as far as {lag}."
    if layer.reach < horizon.lag:
        verdict = f"no, its gradient reaches back {reach}, short of {lag}, and"
    elif abs(layer.beyond) < FAINT:
        verdict = f"hardly; single contributions reach back {reach}, as far as {lag}, but summed up"
    else:
        verdict = f"yes, its gradient reaches back {reach}, as far as {lag}, and"
    return f"{name}: {verdict} {percent(layer.beyond)} of the gradient comes from there and beyond."


def _steps(layer: Layer) -> str:
    """The reach in words."""
    words = counted(layer.reach, "step")
    return f"at least {words}" if layer.reach_is_lower_bound else words


def percent(share: float) -> str:
    """A share with one digit after the point, never "-0.0%"; "-" if there is none."""
    if share != share:
        return "-"
    return f"{round(share, 3) + 0.0:.1%}"


def residual_in_words(residual: float, note: str) -> str:
    """The residual, or why there is none."""
    if residual != residual:
        return note
    return f"{residual:.1e}" + (f" ({note})" if note else "")


def number(value: float | None) -> str:
    """A measured number with three digits, a whole one with all; "-" if there is none."""
    if value is None:
        return "-"
    whole = abs(value) < 1e6 and value == int(value)
    return str(int(value)) if whole else f"{value:.3g}"


def _what_helps(finding: Finding) -> str:
    """The best remedy with its numbers, or that there is none, or what to do."""
    unit = finding.evidence[0].unit if finding.evidence else ""
    trained = [trial for trial in finding.trials if trial.verdict != "not trained"]
    if trained and trained[0].training and trained[0].verdict == "trained better":
        best, ends = trained[0], trained[0].training
        return (
            f"What trained better: {best.title}, loss {number(mean(ends.remedy_final))} where the "
            f"original has {number(mean(ends.original_final))}"
        )
    if trained:
        were = counted(len(trained), "remedy was", "remedies were")
        return f"{were} trained, and none trained better"
    tried = [trial for trial in finding.trials if trial.after is not None]
    if tried and tried[0].closer:
        best = tried[0]
        name = finding.evidence[0].name
        return (
            f"What moves it most in one pass: {best.title}, {name} {number(best.before)} -> "
            f"{number(best.after)} {unit}"
        )
    if tried:
        were = counted(len(tried), "remedy was", "remedies were")
        return f"{were} tried in one pass, and none moves it"
    return finding.advice[0] if finding.advice else "No remedy was tried"


def _ended(sentence: str, more: str = "") -> str:
    return sentence.rstrip(".") + more + "."


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things in words: "1 step", "2 steps"."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"
