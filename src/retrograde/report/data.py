"""The report as data: findings, layers, the table and the sentences that follow from them."""

from dataclasses import dataclass, field

from retrograde._checks import listed
from retrograde._words import counted, half_life_in_words, lag_in_words, residual, share
from retrograde.diagnosis import RULES, Check, Finding
from retrograde.diagnosis.finding import at_least
from retrograde.report.growth import Growth, NeededLag
from retrograde.report.layer import Layer
from retrograde.report.sentences import grown, reach_in_words, sentence, what_to_do
from retrograde.report.settings import Settings

NEEDED = "the lag that it needs"
"""What a horizon is called that is the lag named by needs_lag=."""

SOLVED = "solved"
"""The rule that says that there is nothing left to learn."""


@dataclass(frozen=True)
class ReportData:
    """What a report holds, and the sentences that follow; `Report` says what each field is."""

    title: str
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...] = ()
    horizon: NeededLag | None = None
    notes: tuple[str, ...] = ()
    settings: Settings = Settings()
    checks: tuple[Check, ...] = ()
    loss: float | None = None
    growth: dict[str, Growth] = field(default_factory=dict)

    # What pydantic reads when the report is written and read: numbers beyond JSON's are strings.
    __pydantic_config__ = {"ser_json_inf_nan": "strings", "extra": "forbid"}

    @property
    def ok(self) -> bool:
        """Whether nothing was found that is more than a remark."""
        return not any(at_least(finding.severity, "warning") for finding in self.findings)

    @property
    def solved(self) -> bool:
        """Whether the model was found to have learnt what there is to learn."""
        return any(finding.rule == SOLVED for finding in self.findings)

    @property
    def looked(self) -> tuple[str, ...]:
        """The rules that looked at one layer at least, or at the model as a whole."""
        looked = {check.name for check in self.checks if check.status != "not applicable"}
        return tuple(name for name in self._rules if name in looked)

    @property
    def checked(self) -> tuple[tuple[str, str, str, str, str], ...]:
        """What became of each check, in the order of the rules, in words for a table.

        A row holds the question that the rule answers a part of, the rule, "passed", "found" or
        "not applicable", where, and why it does not apply or what it could not look at. Layers of
        which the same is to be said share a row.
        """
        order = list(RULES)
        rows: dict[tuple[str, str, str], list[str]] = {}
        for check in sorted(
            self.checks, key=lambda each: order.index(each.name) if each.name in order else -1
        ):
            where = rows.setdefault((check.name, check.status, check.reason), [])
            where.append("the whole model" if check.layer is None else check.layer)
        layers = {check.layer for check in self.checks} - {None}
        return tuple(
            (
                RULES[name].kind if name in RULES else "",
                name,
                status,
                "every layer" if 1 < len(layers) == len(where) else listed(where),
                reason,
            )
            for (name, status, reason), where in rows.items()
        )

    @property
    def _rules(self) -> tuple[str, ...]:
        """The rules that were applied, in order."""
        return tuple(dict.fromkeys(check.name for check in self.checks))

    @property
    def sentences(self) -> tuple[str, ...]:
        """One plain sentence for each layer."""
        return tuple(
            sentence(layer, self.horizon) + grown(self.growth.get(layer.name), self.horizon)
            for layer in self.layers
        )

    @property
    def answers(self) -> tuple[str, ...]:
        """The sentences that say what neither findings nor table do.

        All where no rule looked, and those about a horizon that has a name of its own.
        """
        named = self.horizon is not None and self.horizon.name != NEEDED
        return self.sentences if named or not self.settings.rules else ()

    @property
    def summary(self) -> str:
        """The answer in two sentences: what is wrong and what helps, or how far the model sees."""
        if self.settings.rules and not self.looked:
            return f"Nothing can be said: {looked_in_words(self)} {far_in_words(self)}"
        if self.ok:
            return f"{verdict(self)}: {looked_in_words(self)} {far_in_words(self)}"
        first = self.findings[0]
        alike = [f.layer for f in self.findings[1:] if f.rule == first.rule and f.layer]
        where = f"{first.layer}: " if first.layer and len(self.layers) > 1 else ""
        also = f"; likewise in {listed(alike)}" if alike else ""
        return f"{_ended(where + first.message, also)} {_ended(what_to_do(first))}"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column titles and one row of text for each layer."""
        figures = list(dict.fromkeys(name for layer in self.layers for name in layer.figures))
        widest = max(self.layers, key=lambda layer: layer.steps, default=None)
        groups = [f"lags {lag_in_words(lags)}" for lags in (widest.by_lag.lags if widest else ())]
        rows = []
        for layer in self.layers:
            shares = [share(part) for part in layer.by_lag.share.tolist()]
            half = half_life_in_words(layer.half_life).removesuffix(" steps")
            least = "at least " if layer.reach_is_lower_bound else ""
            reach = f"{least}{layer.reach} of {layer.steps - 1}"
            note = "void" if layer.void else layer.residual_note
            if layer.void:
                shares, half, reach = ["void"] * len(shares), "void", "void"
            rows.append(
                (
                    layer.name,
                    *(layer.figures.get(name, "") for name in figures),
                    reach,
                    half,
                    *shares,
                    *[""] * (len(groups) - len(shares)),
                    residual(layer.residual, note),
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


def verdict(report: ReportData) -> str:
    """Whether anything was found, in three or six words."""
    return "Nothing found that needs mending" if report.findings else "Nothing found"


def looked_in_words(report: ReportData) -> str:
    """How many rules could look at something."""
    rules = counted(len(report._rules), "rule")
    of = f"{len(report.looked)} of " if len(report.looked) < len(report._rules) else ""
    return f"{of}{rules} could look."


def far_in_words(report: ReportData) -> str:
    """How far the gradient reaches in all layers, and whether that is as far as it should."""
    if not report.layers:
        return "No layer could be taken apart."
    if report.solved:
        return "The model has learnt what there is to learn, by whatever lags that takes."
    named, known = report.settings.needs_lag, [each for each in report.layers if each.seen]
    if not known:
        return " ".join(report.sentences)
    if named is None:
        reaches = listed([f"{reach_in_words(each)} in {each.name}" for each in known])
        if len(report.layers) == 1:
            reaches = reach_in_words(known[0])
        return f"The gradient reaches back {reaches}; needs_lag= tells whether that is enough."
    far = [c.layer for c in report.checks if c.name == "vanishing" and c.status == "passed"]
    lag = f"The lag that matters to you, {counted(named, 'step')},"
    if len(far) == len(report.layers):
        return f"{lag} is within reach" + (" of every layer." if len(far) > 1 else ".")
    if far:
        return f"{lag} is within reach of {listed(filter(None, far))}."
    return f"Whether {counted(named, 'step')} are within reach cannot be told."


def _ended(sentence: str, more: str = "") -> str:
    return sentence.rstrip(".") + more + "."
