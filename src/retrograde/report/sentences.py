"""What the numbers of a layer and the remedies of a finding say, in plain sentences."""

from statistics import mean

from retrograde._words import counted, half_life_in_words, number, share, suffix, value
from retrograde.diagnosis import RULES, Finding
from retrograde.report.growth import Growth, NeededLag
from retrograde.report.layer import Layer

FAINT = 0.01
"""A part of less than this share of the gradient hardly counts, however far back it comes from."""


def reach_in_words(layer: Layer) -> str:
    """How far the gradient reaches in a layer, and how far it might."""
    least = "at least " if layer.reach_is_lower_bound else ""
    return f"{least}{layer.reach} of {counted(layer.steps - 1, 'step')}"


def sentence(layer: Layer, horizon: NeededLag | None) -> str:
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
    return f"{name}: {verdict} {share(layer.beyond)} of the gradient comes from there and beyond."


def grown(growth: Growth | None, horizon: NeededLag | None) -> str:
    """The window that a gradient needs, now and before training, as a further sentence."""
    if growth is None or not (growth.weights and growth.window):
        return ""
    first, last = growth.window[0], growth.window[-1]
    if last is None:
        return f" No truncation keeps the bias of its gradient within {growth.delta:g}."
    fresh = "none" if first is None else str(first)
    words = (
        f" A window of {counted(last, 'step')} keeps the bias of its gradient within "
        f"{growth.delta:g} ({growth.weights[0]}: {fresh})"
    )
    if horizon is None:
        return words + "."
    return f"{words}; one of {horizon.lag} has a bias of {number(growth.beyond)}."


def _steps(layer: Layer) -> str:
    """The reach in words."""
    words = counted(layer.reach, "step")
    return f"at least {words}" if layer.reach_is_lower_bound else words


def what_to_do(finding: Finding) -> str:
    """What helps; what mends it, if that is wiring or soundness and no remedy helps."""
    helped = any(trial.closer or trial.verdict == "trained better" for trial in finding.trials)
    certain = finding.rule in RULES and RULES[finding.rule].kind in ("wiring", "soundness")
    return finding.advice[0] if certain and finding.advice and not helped else what_helps(finding)


def what_helps(finding: Finding) -> str:
    """The best remedy with its numbers, or that there is none, or what to do."""
    unit = finding.evidence[0].unit if finding.evidence else ""
    trained = [trial for trial in finding.trials if not trial.undecided]
    whys = (t.training.inconclusive for t in finding.trials if t.undecided and t.training)
    inconclusive = {
        "by heart": "one batch is learned by heart",
        "nothing learned": "nothing is learned yet",
    }
    if trained and trained[0].training and trained[0].verdict == "trained better":
        best, ends = trained[0], trained[0].training
        better = f"What trained better: {best.title}"
        if not (ends.remedy_final and ends.original_final):
            return better
        return (
            f"{better}, loss {number(mean(ends.remedy_final))} where the original has "
            f"{number(mean(ends.original_final))}"
        )
    if trained:
        were = counted(len(trained), "remedy was", "remedies were")
        return f"{were} trained, and none trained better"
    measured = finding.evidence[:1]  # what a remedy moves
    tried = [trial for trial in finding.trials if measured and trial.after is not None]
    if tried and tried[0].closer:
        best = tried[0]
        name = measured[0].name
        moved = f"{name} {value(best.before, unit)} -> {value(best.after, unit)} {suffix(unit)}"
        why = next((f"; training cannot tell, as {inconclusive[why]}" for why in whys if why), "")
        return f"What moves it most in one pass: {best.title}, {moved.rstrip()}{why}"
    if tried:
        were = counted(len(tried), "remedy was", "remedies were")
        return f"{were} tried in one pass, and none moves it"
    return finding.advice[0] if finding.advice else "No remedy was tried"
