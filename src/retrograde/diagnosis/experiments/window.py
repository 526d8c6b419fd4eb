"""How short a window of truncated back-propagation keeps the gradient of a long sequence?"""

import torch

from retrograde import _words
from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.subject import LONG, Subject, half_octaves

LOST = 0.01
"""The part of the gradient that a window may lose."""


def window_of(subject: Subject) -> tuple[int, int] | None:
    """Lags that make up 99 % of the gradient, and the window that keeps as much of it.

    A state that is detached every W steps passes a lag l on for a part 1 - l/W of all steps, so
    that a window loses  sum_l share(l) min(1, l/W).  Both on a scale of half powers of two.
    """
    flow = subject.live
    if flow is None or subject.far_unknown:
        return None
    edges = half_octaves(flow.steps)
    share = flow.by_lag(bins=tuple(edges)).share.double().abs()
    ends = torch.tensor([*edges[1:], flow.steps], dtype=torch.float64, device=share.device)
    beyond = share.sum() - share.cumsum(0)
    lags = next((int(e) for e, rest in zip(ends, beyond, strict=True) if rest <= LOST), None)
    lost = (share.unsqueeze(1) * ((ends - 1).unsqueeze(1) / ends).clamp(max=1)).sum(0)
    window = next((int(e) for e, rest in zip(ends, lost, strict=True) if rest <= LOST), None)
    return None if lags is None or window is None else (lags, window)


def _look(case: Case) -> list[Finding] | NotApplicable:
    long = [s for s in case.subjects.values() if s.live is not None and s.live.steps >= LONG]
    if not long:
        return NotApplicable(f"no sequence has {LONG} steps or more")
    return [found for subject in long if (found := _window(subject)) is not None]


def _window(subject: Subject) -> Finding | None:
    found = window_of(subject)
    assert subject.flow is not None
    steps = subject.flow.steps
    if found is None or found[1] * 2 > steps:
        return None
    lags, window = found
    return Finding(
        "window",
        "info",
        subject.name,
        "Truncated back-propagation in shorter windows would lose next to nothing of the gradient "
        f"of {subject.name!r}, which is taken over {steps} steps, in "
        f"{_words.share(window / steps)} of the memory",
        (
            Evidence("window that keeps 99 % of the gradient", float(window), "steps"),
            Evidence("lags that make up 99 % of the gradient", float(lags), "steps"),
        ),
        (),
        (f"Detach the state every {window} steps: state = state.detach()",),
    )


WINDOW = Experiment(
    "window",
    "A shorter window would do",
    "The share of all lags below a window, in long sequences: what truncated back-propagation "
    "would keep, and what it would save. It is a remark, and says nothing of what the model could "
    "learn from further back if its gates were held open.",
    _look,
    kind="advice",
)
