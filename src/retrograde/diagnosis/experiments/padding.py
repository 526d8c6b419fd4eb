"""Is the state read after it has run over padding?

Padding shows in what a layer reads: the same numbers at every step to the end, in samples of
different lengths.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.subject import Subject


def trailing(x: Tensor) -> Int[Tensor, "B"]:
    """How many steps at the end of each sample repeat the last one, itself included; [T, B, I]."""
    same = (x == x[-1]).all(-1).flip(0)
    return same.long().cumprod(0).sum(0)


def _look(case: Case) -> list[Finding] | NotApplicable:
    subjects = [s for s in case.subjects.values() if s.place is None and len(s.recorded.x) > 2]
    packed = [s for s in subjects if s.recorded.lengths is not None]
    findings = [found for s in subjects if s not in packed for found in _read_late(s)]
    if not findings and len(packed) == len(subjects):
        return NotApplicable(
            "the sequences are packed" if packed else "no layer reads three steps or more"
        )
    return findings


def _read_late(subject: Subject) -> list[Finding]:
    recorded = subject.recorded
    steps = len(recorded.x)
    run = trailing(recorded.x)
    padded = run > 1
    if not bool(padded.any()) or bool((run == steps).all()) or len(set(run.tolist())) < 3:
        return []  # samples of one length: what is at the end is no padding
    enters = (recorded.direct != 0).any(-1)
    first = torch.where(enters.any(0), enters.long().argmax(0), steps)
    over = (first - (steps - run)).clamp(min=0)  # repeated steps before the loss first reads
    over = torch.where(padded & (first < steps), over, 0)
    share = float((over > 1).double().mean())
    if share < SHARE:
        return []
    longest, median = int(over.max()), int(over[over > 1].median())
    return [
        Finding(
            "reads-padding",
            "error",
            subject.name,
            f"The loss reads {subject.name!r} after it has run over padding: in {share:.0%} of the "
            f"samples the input repeats itself to the end, and the state runs over {median} such "
            f"steps (median; {longest} at most) before it is read",
            (
                Evidence("samples that run over padding", 100 * share, "%", 100 * SHARE, "below"),
                Evidence("longest run over padding", float(longest), "steps"),
            ),
            ("Sequences of different lengths are padded, and all are read at the last step",),
            (
                "Read each sample at its own last step: out[torch.arange(B), lengths - 1]",
                "Or pack them (pack_padded_sequence with enforce_sorted=False), and read h_n",
            ),
        )
    ]


SHARE = 0.1
"""Of the samples; a few that stand still at the end may do so by themselves."""

PADDING = Experiment(
    "reads-padding",
    "The state runs over padding before it is read",
    "Steps at the end of a sample that repeat its last one, in samples of different lengths, and "
    "a loss that first reads the state behind them. What the sample said has to survive the "
    "padding, and the gradient has to come back over it.",
    _look,
    replaces=("forget-gate-too-short", "vanishing", "near-lags-dominate"),
)
