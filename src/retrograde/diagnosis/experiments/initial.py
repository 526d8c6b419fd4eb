"""What does the state start from? Zero and a learnt state are usual; others are told."""

import torch
from torch import Tensor

from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.sight import see


def _look(case: Case) -> list[Finding] | NotApplicable:
    started = {
        name: states[0]
        for name, states in case.sight.initial.items()
        if states[0] is not None and any(bool(part.any()) for part in states[0])
    }
    constant = {
        name: state
        for name, state in started.items()
        if not any(part.requires_grad for part in state)
    }
    if not constant:
        return []
    try:
        same = see(case.model, case.batch, case.loss_fn, case.seed).initial
        other = see(case.model, case.batch, case.loss_fn, case.seed + 1).initial
    except Exception as error:
        return NotApplicable(f"a second pass failed: {type(error).__name__}")
    found = []
    for name, state in constant.items():
        again = (same.get(name) or [None])[0]
        as_before = again is not None and all(map(torch.equal, state, again))
        found.append(_given(name, state, other.get(name) if as_before else None, _compares(case)))
    return found


def _compares(case: Case) -> bool:
    """Whether the loss has a target for each sample; noise is what a generator starts from."""
    seen = case.sight.comparisons
    samples = {reads[0].samples for reads in case.sight.reads.values()}
    return any(
        bool(each.target.ndim)
        and not samples.isdisjoint(each.target.shape[:2])
        and bool((each.target != each.target.flatten()[0]).any())
        for each in seen
    )


def _given(
    name: str,
    state: tuple[Tensor, ...],
    others: list[tuple[Tensor, ...] | None] | None,
    compares: bool,
) -> Finding:
    other = others[0] if others else None
    drawn = other is not None and not all(map(torch.equal, state, other))
    fixed = not drawn and all(bool((part == part.flatten()[0]).all()) for part in state)
    size = max(float(part.double().abs().max()) for part in state)
    return Finding(
        "initial-state",
        "warning" if drawn and compares else "info",
        name,
        f"{name!r} starts from a state that is neither zero nor learnt: it is "
        + (
            "drawn at random, another one with every seed"
            if drawn
            else "one constant number throughout"
            if fixed
            else "supplied from outside the layer, and no gradient goes back into it"
        ),
        (Evidence("largest entry of the initial state", size, "state"),),
        (
            "The initial state is made with torch.randn or the like: noise that the model has to "
            "forget"
            if drawn
            else "It is filled with a constant"
            if fixed
            else "The model keeps the state of the batch before, or it comes with the batch",
        ),
        (
            "Start from zeros (hx=None) or from a parameter"
            if drawn or fixed
            else "Keep it if this batch goes on where the last one ended; else reset it: other "
            "samples, or a new episode, must not start from it",
        ),
    )


INITIAL = Experiment(
    "initial-state",
    "The state starts from neither zero nor a parameter",
    "The state that each layer is first given, where it is not zero and gets no gradient. A second "
    "pass with other random numbers tells one that is drawn from one that is carried in.",
    _look,
    kind="wiring",
)
