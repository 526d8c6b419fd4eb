"""Is the state read after it has run over padding?

Padding shows in what a layer reads: the same numbers at every step to the end, in samples of
different lengths.
"""

from collections.abc import Mapping

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


def padding(x: Tensor) -> Int[Tensor, "B"] | None:
    """The steps of padding at the end of each sample; None if there is none, or it cannot be told.

    Numbers that repeat themselves, or that are the same as at the end, in the middle of a sample
    (silence, events, few symbols) are no padding.
    """
    run = trailing(x)
    padded = run > 1
    steps = len(x)
    if not bool(padded.any()) or bool((run == steps).all()) or len(set(run.tolist())) < 3:
        return None  # samples of one length: what is at the end is no padding
    before = torch.arange(steps, device=x.device).unsqueeze(1) < steps - run
    as_the_end = (x == x[-1]).all(-1) & before
    repeats = torch.zeros_like(before)
    repeats[1:] = (x[1:] == x[:-1]).all(-1) & before[1:]
    alike = float(as_the_end.any(0)[padded].double().mean())
    still = float(repeats[:, padded].sum() / before[:, padded].sum().clamp(min=1))
    return torch.where(padded, run, 0) if max(alike, still) < INSIDE else None


def _look(case: Case) -> list[Finding] | NotApplicable:
    subjects = [s for s in case.subjects.values() if s.place is None and len(s.recorded.x) > 2]
    packed = [s for s in subjects if s.recorded.lengths is not None]
    known = {s.name: padding(s.recorded.x) for s in subjects if s not in packed}
    findings = []
    for s in subjects:
        run = known.get(s.name)
        if run is None and s.name in known:
            run = next(
                (known[one] for one in _below(case, s, known) if known[one] is not None), None
            )
        if run is not None:
            findings += _read_late(s, run)
    if not findings and len(packed) == len(subjects):
        return NotApplicable(
            "the sequences are packed" if packed else "no layer reads three steps or more"
        )
    return findings


def _below(case: Case, subject: Subject, known: Mapping[str, object]) -> list[str]:
    """The layers whose outputs a layer reads, step by step."""
    reads = case.sight.reads
    shape = subject.recorded.x.shape[:2]
    return [
        name
        for name in known
        if name in reads
        and subject.name in reads
        and case.subjects[name].recorded.x.shape[:2] == shape
        and reads[subject.name][0].comes_from(reads[name][0])
    ]


def _read_late(subject: Subject, run: Int[Tensor, "B"]) -> list[Finding]:
    recorded = subject.recorded
    steps = len(recorded.x)
    enters = (recorded.direct != 0).any(-1)
    first = torch.where(enters.any(0), enters.long().argmax(0), steps)
    over = (first - (steps - run)).clamp(min=0)  # repeated steps before the loss first reads
    over = torch.where((run > 1) & (first < steps), over, 0)
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


INSIDE = 0.1
"""Of the padded samples, or of their steps; the input is then at rest, or has few values."""

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
    kind="wiring",
    remedies=("read-at-lengths",),
)
