"""Gates and units that cannot do their work: saturated, too short, dead, or biased twice."""

from collections.abc import Callable

import torch
from torch import Tensor

from retrograde._checks import listed
from retrograde.cells import AbstractLayer, Gate
from retrograde.cells.gates import ACTIVATIONS, with_role
from retrograde.cells.leaves import Leaf, leaves
from retrograde.diagnosis.activity import Activity
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.rules.reach import TALLEC, keeping_too_short, reaches, severity_of
from retrograde.diagnosis.rules.rule import Rule
from retrograde.diagnosis.subject import Subject

GERS = (
    'Felix A. Gers, Jürgen Schmidhuber, Fred Cummins, "Learning to Forget: Continual Prediction '
    'with LSTM", Neural Computation 12(10) (2000)'
)
JOZEFOWICZ = (
    'Rafal Jozefowicz, Wojciech Zaremba, Ilya Sutskever, "An Empirical Exploration of Recurrent '
    'Network Architectures", ICML (2015)'
)


def _limit(activity: Activity) -> str:
    """The threshold of a gate, or of a squashed cell state."""
    return "saturated_state_share" if activity.gate.role == "state" else "saturated_share"


def _worst(subject: Subject) -> Activity | None:
    """The gate or state furthest beyond its threshold, or nearest to it."""
    return max(
        subject.known,
        key=lambda each: each.saturated - subject.limits[_limit(each)],
        default=None,
    )


def _saturated(subject: Subject) -> Evidence | NotApplicable:
    if subject.live is None:
        return NotApplicable(subject.why_not_live)
    worst = _worst(subject)
    if worst is None:
        return NotApplicable(_without_role(subject) or "the activations of its step are not known")
    name = _limit(worst)
    unit, limit = "of units and steps", subject.limits[name]
    return Evidence("saturated share", worst.saturated, unit, limit, "below", name)


DRIVE = 2 / 3**0.5
"""The spread of a pre-activation from which on weights may decide a gate, not the task: weights
twice as large as torch draws them, and larger than orthogonal ones, give as much to a state of
size 1."""


def _driven(subject: Subject) -> bool:
    """Whether inputs, weights or biases are so large that they saturate gates by themselves.

    A trained model may decide most of its gates at ordinary sizes, and learn all the same.
    """
    x = subject.recorded.x.double()
    size = float(x.square().mean().sqrt()) if x.numel() else 0.0
    for name, weight in subject.recorded.weights.items():
        spread = float(weight.double().square().mean().sqrt()) if weight.numel() else 0.0
        if weight.ndim == 2:
            first = name in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse")
            spread *= weight.shape[1] ** 0.5 * (size if first else 1.0)
        if spread > DRIVE:
            return True
    return False


def _decided(subject: Subject, evidence: Evidence) -> Finding:
    worst = _worst(subject)
    assert worst is not None
    of_state = worst.gate.role == "state"
    words = {"state": "activated state", "candidate": "candidate"}
    what = words.get(worst.gate.role or "", f"{worst.gate.name} gate")
    spread = float(subject.recorded.x.double().std()) if subject.recorded.x.numel() > 1 else 0.0
    mean = float(subject.recorded.x.double().mean())
    since, last = worst.since, len(subject.recorded.x) - 1
    when = "" if since is None else ", and stays so to the end"
    others = sorted(subject.known, key=lambda each: -each.saturated)[1:4]
    causes = [
        "The cell state has drifted: it adds up what comes in, and nothing takes it away again"
        if of_state
        else "The recurrent weights or the biases are large: drawn so, or grown in steps of the "
        "optimiser that were too large"
    ]
    loud = max(abs(mean), spread) > 3
    if loud:
        causes.insert(0, "The layer's input is not scaled")
    return Finding(
        "saturated",
        "warning" if of_state or _driven(subject) else "info",
        subject.name,
        f"Most of the {what} ({worst.name}) is saturated{when}: "
        + ("next to nothing passes it back" if of_state else "its weights get next to no gradient"),
        (
            evidence,
            *(
                Evidence(f"saturated share of {each.name}", each.saturated, "of units and steps")
                for each in others
            ),
            Evidence("mean of the input", mean, "units of the input"),
            Evidence("standard deviation of the input", spread, "units of the input"),
        ),
        tuple(causes),
        (
            *(("Give it a gate that can let go, or a negative input bias",) if of_state else ()),
            *(("Scale the input to mean 0 and standard deviation 1",) if loud else ()),
            "Start from smaller weights",
            "If it was trained: go back to an earlier checkpoint, lower the rate, and clip",
        ),
        gate=worst.gate.name,
        position=worst.position,
        steps=None if since is None else (since, last),
    )


def _constant(subject: Subject) -> Evidence | NotApplicable:
    if subject.live is None:
        return NotApplicable(subject.why_not_live)
    if subject.need.lag <= 1:
        named = subject.need.lag < 1 and subject.need.why == "named"
        return NotApplicable(subject.need.words if named else "no lag beyond 1 matters to it")
    short = keeping_too_short(subject)
    if short is None:
        return NotApplicable("it has no gate that is known to keep its state")
    _, longest, needed = short
    setting = subject.need.setting
    return Evidence("time constant", longest, "steps", needed, "above", setting)


def _short(subject: Subject, evidence: Evidence) -> Finding:
    found, need = keeping_too_short(subject), subject.need
    assert found is not None
    gate = found[0]
    other_ways = ", but the gradient gets there by other routes" if reaches(subject) else ""
    if subject.far_unknown and not other_ways:
        other_ways = "; whether the gradient gets there by other routes cannot be told"
    return Finding(
        "forget-gate-too-short",
        "info" if other_ways else severity_of(subject),
        subject.name,
        f"The {gate.name} gate forgets too fast: not even its longest-lived tenth of units keeps "
        f"1 % over the lag that matters ({need.words}){other_ways}",
        (
            evidence,
            Evidence(f"mean of the {gate.name} gate", float(gate.mean.mean()), "open"),
        ),
        (
            "The gate's bias is too low: torch draws it around 0, which leaves half at every step",
            "It was trained on shorter dependencies than those you need",
        ),
        (
            "Set the gate's bias for the lag you need, or spread the units' time constants up to "
            "it (chrono)",
        ),
        gate=gate.gate.name,
        position=gate.position,
    )


def _dead(subject: Subject) -> Evidence | NotApplicable:
    if subject.live is None:
        return NotApplicable(subject.why_not_live)
    if not subject.units:
        return NotApplicable("no piece of its state is called h")
    if not bool((subject.recorded.x != subject.recorded.x[:1, :1]).any()):
        return NotApplicable("its input is the same at every step of every sample")
    dead, count = _count(subject)
    limit = subject.limits["dead_share"]
    return Evidence("dead units", dead / count, "of the units", limit, "below", "dead_share")


def _count(subject: Subject) -> tuple[int, int]:
    dead = sum(int(units.dead.sum()) for units in subject.units)
    return dead, sum(len(units.moved) for units in subject.units)


def _idle(subject: Subject, evidence: Evidence) -> Finding:
    relu = any(units.activation == ACTIVATIONS["relu"] for units in subject.units)
    return Finding(
        "dead-units",
        "error" if evidence.value == 1 else "warning",
        subject.name,
        "Units are dead: their output is the same number at every step of every sample, and no "
        "gradient passes them",
        (evidence,),
        (
            "Their pre-activations are negative throughout, and a relu passes nothing there"
            if relu
            else "Their gates are shut, or they stand at the end of their activation function",
            "A step of the optimiser that was too large has pushed them there",
        ),
        (
            "Start them anew, with biases at 0 and a smaller learning rate",
            "For a relu RNN, the identity initialisation keeps units alive",
        ),
    )


def _pairs(subject: Subject) -> list[tuple[Leaf, Gate, Tensor, Tensor]]:
    """Both biases of the forget gate of every layer that has two."""
    found = []
    for leaf in leaves(subject.recorded.cell):
        cell = leaf.cell
        forget = with_role(cell.gates, "forget")
        if not isinstance(cell, AbstractLayer) or not forget:
            continue
        if cell.bias_ih is not None and cell.bias_hh is not None:
            number, count = cell.gates.index(forget[0]), len(cell.gates)
            one, other = (bias.chunk(count)[number] for bias in (cell.bias_ih, cell.bias_hh))
            found.append((leaf, forget[0], one, other))
    return found


def _set_twice(subject: Subject) -> tuple[Leaf, Gate, Tensor] | None:
    """The forget slice that is the same in both biases, the largest of any layer."""
    equal = [
        (leaf, gate, one)
        for leaf, gate, one, other in _pairs(subject)
        if torch.allclose(one, other, rtol=1e-5, atol=1e-7)
    ]
    return max(equal, key=lambda row: float(row[2].abs().min()), default=None)


def _twice(subject: Subject) -> Evidence | NotApplicable:
    if not _pairs(subject):
        return NotApplicable("it has no forget gate with two biases")
    found = _set_twice(subject)
    largest = float(found[2].abs().min()) if found else 0.0
    limit, name = subject.limits["double_bias"], "forget bias set in both biases"
    return Evidence(name, largest, "bias", limit, "below", "double_bias")


def _doubled(subject: Subject, evidence: Evidence) -> Finding:
    found = _set_twice(subject)
    assert found is not None
    leaf, gate, bias = found
    one, other, whose, cause = _in_words(subject, leaf)
    total = float(2 * bias.mean())
    horizon = 1 / (1 - float((2 * bias).sigmoid().mean()))
    return Finding(
        "double-bias",
        "warning",
        subject.name,
        f"The bias of the {gate.name} gate is set twice: {one} and {other} hold the same, and "
        f"{whose} adds the two",
        (
            evidence,
            Evidence("forget bias in effect", total, "bias"),
            Evidence("time constant that it implies", horizon, "steps"),
        ),
        (cause,),
        (
            f"Set the bias in {one.removesuffix(leaf.suffix)} and leave 0 in "
            f"{other.removesuffix(leaf.suffix)}",
        ),
        gate=gate.name,
        position=leaf.position,
    )


def _in_words(subject: Subject, leaf: Leaf) -> tuple[str, str, str, str]:
    """What both biases are called, what adds them, and how both may have come to be set."""
    if f"bias{leaf.suffix}" in subject.recorded.cell.parameters:
        cause = "bias_initializer fills both rows of the bias that reset_after=True gives a GRU"
        return f"bias{leaf.suffix}[0]", f"bias{leaf.suffix}[1]", "Keras", cause
    cause = "A loop filled every parameter whose name holds 'bias', and torch has two of them"
    return f"bias_ih{leaf.suffix}", f"bias_hh{leaf.suffix}", "torch", cause


def _without_role(subject: Subject) -> str:
    """The gates of which nothing can be said, and why; "" if there are none."""
    unknown = subject.unknown_gates
    if not unknown:
        return ""
    return (
        f"activation or role of {listed(unknown)} {'is' if len(unknown) == 1 else 'are'} not given "
        "(retrograde.cells.Gate), so that it cannot be told whether a saturated gate blocks the "
        "state or holds it"
    )


def _elsewhere(subject: Subject, seen: Callable[[Leaf], bool], what: str) -> str:
    """The layers of a stack of different cells in which a rule has nothing to look at."""
    places = [
        str(leaf.position or leaf.route_suffix.removeprefix("_"))
        for leaf in leaves(subject.recorded.cell)
        if not seen(leaf)
    ]
    return f"there is no {what} in {listed(places)}" if places else ""


def _without_units(subject: Subject) -> str:
    return _elsewhere(subject, lambda leaf: "h" in leaf.cell.slots, "piece of the state called h")


def _without_forget(subject: Subject) -> str:
    def seen(leaf: Leaf) -> bool:
        return bool(with_role(leaf.cell.activations, "forget"))

    return _elsewhere(subject, seen, "forget gate")


SATURATED = Rule(
    "saturated",
    "Gates or states are saturated",
    "The share of activations, over samples, units and steps, at which the slope of the activation "
    "function is next to 0. A unit that holds its state (its forget or update gate open, its input "
    "gate shut) is not counted: that is what gates are for. It is a warning where a cell state has "
    "drifted, or where inputs, weights or biases are so large that they decide by themselves; a "
    "trained model whose gates are decided at ordinary sizes gets a remark.",
    _saturated,
    _decided,
    ("saturated_slope", "saturated_share", "saturated_state_share"),
    ("forget-gate", "standardise-input", "spectral-norm", "orthogonal", "fresh", "lower-rate"),
    (
        'Sepp Hochreiter, Jürgen Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8) '
        "(1997): state drift",
    ),
    rests_on="forward",
    left_out=_without_role,
    kind="scale",
)


def _said_by_vanishing(subject: Subject) -> str:
    """Of a guessed lag that the gradient falls short of, one remark is enough."""
    known = subject.live is not None and not subject.far_unknown
    guessed = subject.need.why != "named"
    return "vanishing says so" if guessed and known and not reaches(subject) else ""


SHORT = Rule(
    "forget-gate-too-short",
    "The forget gate is too short",
    "A gate that stands at f on average keeps f^lag of the state: its time constant is 1/(1 - f). "
    "Compared is that of the longest-lived tenth of the units with the one that would keep 1 % "
    "over the lag that matters. A GRU's update gate keeps the state likewise. Where the gradient "
    "reaches that lag all the same, by the recurrent weights, this is a remark.",
    _constant,
    _short,
    ("reach_fraction", "season_correlation"),
    ("forget-bias", "chrono"),
    (GERS, JOZEFOWICZ, TALLEC),
    rests_on="forward",
    left_out=_without_forget,
    unless=_said_by_vanishing,
    kind="memory",
)
DEAD = Rule(
    "dead-units",
    "Units are dead",
    "A unit is dead if its output is the same number at every step of every sample: it carries "
    "nothing forwards, and nothing comes back through it.",
    _dead,
    _idle,
    ("dead_share",),
    ("identity", "fresh", "standardise-input"),
    (
        'Quoc V. Le, Navdeep Jaitly, Geoffrey E. Hinton, "A Simple Way to Initialize Recurrent '
        'Networks of Rectified Linear Units" (2015), arXiv 1504.00941',
    ),
    rests_on="forward",
    left_out=_without_units,
    kind="scale",
)
DOUBLE = Rule(
    "double-bias",
    "The forget bias is set twice",
    "torch.nn.LSTM has two biases that it adds, and so has the update gate of torch.nn.GRU. A loop "
    "that sets the gate's slice of every bias to 1 makes it 2: the two slices are then the same "
    "number in every unit, which two drawn at random never are, and training, which moves both "
    "alike, keeps them so.",
    _twice,
    _doubled,
    ("double_bias",),
    ("one-bias",),
    (JOZEFOWICZ, "https://github.com/pytorch/pytorch/issues/750"),
    rests_on="given",
    left_out=_without_forget,
    kind="wiring",
)
