"""How far back the gradient sees: vanishing, and near lags that drown the far ones."""

from retrograde._words import number
from retrograde.diagnosis.activity import Activity, keeping_for
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable, Severity
from retrograde.diagnosis.need import Need
from retrograde.diagnosis.rules.rule import Rule
from retrograde.diagnosis.subject import Subject, share_beyond

BENGIO = (
    'Yoshua Bengio, Patrice Simard, Paolo Frasconi, "Learning Long-Term Dependencies with Gradient '
    'Descent is Difficult", IEEE Transactions on Neural Networks 5(2) (1994)'
)
PASCANU = (
    'Razvan Pascanu, Tomas Mikolov, Yoshua Bengio, "On the difficulty of training recurrent neural '
    'networks", ICML (2013), arXiv 1211.5063'
)
TALLEC = (
    'Corentin Tallec, Yann Ollivier, "Can recurrent neural networks warp time?", ICLR (2018), '
    "arXiv 1804.11188"
)


LOST = -24.0
"""log2 of the contribution beside which, in float32, one of this size is lost in rounding."""


def severity_of(subject: Subject) -> Severity:
    """How bad it is to miss the lag that matters: a remark where nobody said that it does.

    A named lag cannot be learnt as it stands where what comes from there is lost in the rounding of
    what comes from near; where it is merely faint, training may still find it.
    """
    flow, need = subject.live, subject.need
    if need.why != "named":
        return "info"
    if flow is None:
        return "warning"
    mean = flow.by_time().log2_mean_by_lag
    far = mean[need.lag :]
    arrives = bool(len(far)) and float(far.max()) > float(mean[0]) + LOST
    return "warning" if arrives else "error"


def keeping_too_short(subject: Subject) -> tuple[Activity, float, float] | None:
    """The forget gate with the shortest time constant, that time constant, and the one needed."""
    needed = 1 / (1 - keeping_for(subject.need.lag))
    worst = None
    for activity in subject.known:
        if activity.gate.role == "forget":
            longest = float(activity.time_constants.double().quantile(0.9))
            if worst is None or longest < worst[1]:
                worst = (activity, longest, needed)
    return worst


def _no_lag(need: Need) -> NotApplicable:
    return NotApplicable(need.words if need.why == "named" else "no lag beyond 0 matters to it")


def _reach(subject: Subject) -> Evidence | NotApplicable:
    flow, need = subject.live, subject.need
    if flow is None:
        return NotApplicable(subject.why_not_live)
    if need.lag < 1:
        return _no_lag(need)
    if subject.far_unknown and not reaches(subject):
        return NotApplicable("its gradient may reach further than can be seen")
    return Evidence("reach", float(flow.reach), "steps", float(need.lag), "above", need.setting)


def _vanishing(subject: Subject, evidence: Evidence) -> Finding:
    flow, need = subject.live, subject.need
    assert flow is not None
    causes = _causes(subject)
    return Finding(
        "vanishing",
        severity_of(subject),
        subject.name,
        f"The gradient does not reach the lag that matters ({need.words})",
        (evidence,),
        tuple(causes),
        (
            "Give the units a longer time constant: a forget bias or chrono initialisation for the "
            "lag you need (LSTM, GRU), orthogonal recurrent weights (plain RNN)",
            "Let the loss ask for the far lag: a loss at every step is dominated by near ones",
            "If the lag cannot be reached, feed it in: lagged inputs, or coarser steps",
        ),
        steps=(0, max(0, flow.steps - 1 - int(flow.reach))),
    )


def _causes(subject: Subject) -> list[str]:
    """Why the reach is short, the likeliest first."""
    found, need = [], subject.need
    if subject.longest_lag < need.lag:
        found.append(_too_short_a_pass(subject))
    short = keeping_too_short(subject)
    if short and short[1] < short[2]:
        found.append(f"The {short[0].name} gate lets go long before that lag")
    worst = max(subject.known, key=lambda each: each.saturated, default=None)
    if worst and worst.saturated > subject.limits["saturated_share"]:
        found.append(f"Most of {worst.name} is saturated and lets little through")
    radius = subject.spectral_radius
    if radius is not None and radius < 1:
        found.append(
            "The recurrent weights shrink what passes them, at a spectral radius of "
            f"{number(radius)}, and the slope of the activation shrinks it further"
        )
    elif radius is not None:
        found.append("The slopes of the activation shrink what comes back, whatever the weights do")
    if not found:
        found.append("What comes back is multiplied by gates below 1 at every step")
    return found


def _too_short_a_pass(subject: Subject) -> str:
    """Why this pass cannot show the lag, whatever the weights."""
    seen = f"No lag beyond {subject.longest_lag} can be seen in this pass at all"
    if subject.recorded.boundaries:
        return f"{seen}: the state is detached or reset on the way"
    if subject.longest_lag == len(subject.recorded.x) - 1:
        return f"{seen}: what ran before its first step is not connected to it (a detached state?)"
    return f"{seen}: the loss enters too early"


def _far(subject: Subject) -> Evidence | NotApplicable:
    flow, need = subject.live, subject.need
    if flow is None:
        return NotApplicable(subject.why_not_live)
    if subject.far_unknown:
        return NotApplicable("its gradient may reach further than can be seen")
    if need.lag < 1:
        return _no_lag(need)
    if need.lag >= flow.steps:
        return NotApplicable("its sequence is no longer than the lag that matters")
    share = abs(float(share_beyond(flow, need.lag)))
    limit = subject.limits["far_share"]
    return Evidence("share of the far lags", share, "of the gradient", limit, "above", "far_share")


def reaches(subject: Subject) -> bool:
    """Whether the gradient is known to reach the lag that matters."""
    if subject.void or subject.live is None:
        return False
    return subject.live.reach >= subject.need.lag


def _falls_short(subject: Subject) -> str:
    return "" if reaches(subject) else "its reach falls short of the lag that matters"


def _near(subject: Subject, evidence: Evidence) -> Finding:
    flow, need = subject.live, subject.need
    assert flow is not None
    return Finding(
        "near-lags-dominate",
        "warning" if need.why == "named" else "info",
        subject.name,
        "The gradient as a whole does not vanish, its distant part does: single contributions "
        f"reach the lag that matters ({need.words}), and hardly count in the sum",
        (evidence,),
        (
            "The gradient is a sum over lags, and the many near ones outweigh the far ones",
            "Far contributions of different samples and steps point in different directions and "
            "cancel in the sum",
        ),
        (
            "Ask for the far lag in the loss: score the steps that need it, or weigh them more",
            "Initialise for that horizon, so that the far part starts out larger",
        ),
        steps=(0, max(0, flow.steps - 1 - need.lag)),
    )


VANISHING = Rule(
    "vanishing",
    "The gradient vanishes",
    "Reach, the largest lag at which the mean contribution is still 1 % of that at lag 0, against "
    "the lag that matters: the one named by needs_lag=, else a season in the layer's own input, "
    "else a part of the sequence. What lies beyond the reach, the weights cannot learn to use.",
    _reach,
    _vanishing,
    ("reach_fraction", "season_correlation"),
    (
        "forget-bias",
        "chrono",
        "orthogonal",
        "spectral-radius",
        "identity",
        "no-forget-gate",
        "lstm",
    ),
    (BENGIO, PASCANU, TALLEC),
    kind="memory",
)
NEAR = Rule(
    "near-lags-dominate",
    "Near lags dominate",
    "The gradient of a recurrent weight is a sum over lags. It hardly ever vanishes as a whole: "
    "its distant part does, while the near part keeps its norm looking healthy. Looked at where "
    "the reach is long enough and the far lags are drowned all the same.",
    _far,
    _near,
    ("far_share",),
    ("forget-bias", "chrono", "orthogonal", "no-forget-gate"),
    (PASCANU,),
    unless=_falls_short,
    kind="memory",
)
