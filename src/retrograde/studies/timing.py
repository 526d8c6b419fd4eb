"""Timing with and without peepholes, after Gers, Schraudolph and Schmidhuber (2002).

One cell, trained on line with momentum, measures the distance of two spikes, makes spikes at equal
distances, or a cosine. The rate is so small that single precision would lose its changes.
"""

from collections.abc import Sequence

from retrograde.studies.outcomes import Results
from retrograde.studies.study import Row, Study, Table
from retrograde.studies.tables import OnLine
from retrograde.tasks.blocks import Blocks
from retrograde.tasks.experiments import Experiment
from retrograde.tasks.timing import PeriodicFunction, Spikes

RATE = 1e-5
OPEN, PRINTED = 2.0, -2.0
"""Biases of the forget gate: one that keeps 88 % of the state at each step, and the one that the
paper is said to give, which keeps 12 %."""

BUDGET, TRIALS = 2_000_000, 10

TASKS: dict[str, tuple[str, Spikes | PeriodicFunction, float]] = {
    "measure": ("measure one distance of 10 or 11", Spikes("measure", 10, spikes=1), 0.99),
    "measure-stream": ("measure distances of 10 or 11", Spikes("measure", 10), 0.9999),
    "generate": ("make spikes at a distance of 10", Spikes("generate", 10, alike=True), 0.999),
    "cosine": ("make a cosine of period 10", PeriodicFunction("cosine", 10), 0.99),
    "generate-told": ("make spikes at 10 or 11, as told", Spikes("generate", 10), 0.999),
}
"""By name: a title, the task, and the momentum."""

KINDS: dict[str, tuple[str, bool, float]] = {
    "peepholes": ("with peepholes", True, OPEN),
    "none": ("without", False, OPEN),
    "printed": ("with peepholes, forget bias -2", True, PRINTED),
}
"""By name: a title, whether there are peepholes, and the bias of the forget gate."""

IN_THE_PAPER = {
    ("measure", True): "learned",
    ("measure", False): "learned, at times sooner",
    ("cosine", True): "learned",
    ("cosine", False): "learned",
    ("generate", True): "learned",
    ("generate", False): "not learned",
}
"""By what is done, and whether there are peepholes."""


def kinds_of(task: str) -> dict[str, tuple[str, bool, float]]:
    """The networks that are tried on a task: the printed bias on one of them is enough."""
    return {kind: of for kind, of in KINDS.items() if kind != "printed" or task == "measure"}


def network(peepholes: bool, forget_bias: float, output: str) -> Blocks:
    """The paper's: 17 weights with peepholes, 14 without."""
    return Blocks(
        inputs=1,
        outputs=1,
        blocks=1,
        forget_gates=True,
        seen="cells",
        biased="all",
        cell_input="identity",
        cell_output="identity",
        input_biases=(0.0,),
        forget_biases=(forget_bias,),
        output_biases=(2.0,),
        peepholes=peepholes,
        output=output,
    )


def experiment(task: str, kind: str) -> Experiment:
    """A row as an experiment."""
    _, what, momentum = TASKS[task]
    _, peepholes, bias = KINDS[kind]
    return Experiment(
        name_of(task, kind),
        what,
        network(peepholes, bias, "identity" if task == "cosine" else "[0, 1]"),
        RATE,
        None,
        each_step=True,
        momentum=momentum,
        double=True,
    )


def name_of(task: str, kind: str) -> str:
    """The name of a row."""
    return f"{task}-{kind}"


def table(results: Results) -> Table:
    """How many trials learned each task, beside what the paper says of it."""
    titles = ["task", "gates", "in the paper", "solved", "streams"]
    rows = list[Sequence[str]]()
    for task, (title, what, _) in TASKS.items():
        for kind, (gates, peepholes, _) in kinds_of(task).items():
            outcome = results.outcome(name_of(task, kind))
            solved, streams = "not run", ""
            if outcome is not None:
                solved = f"{outcome.solved} of {outcome.trials}"
            if outcome is not None and outcome.sequences is not None:
                streams = f"{outcome.sequences[0]:,.0f}"
            done = what.what if isinstance(what, Spikes) else what.shape
            paper = IN_THE_PAPER[done, peepholes]
            rows.append([title, gates, paper, solved, streams])
    return titles, rows


STUDY = Study(
    "2002",
    "Do gates have to see the state to tell time?",
    "Gers, Schraudolph and Schmidhuber (2002)",
    "1000 distances are measured, or spikes made, without an answer that errs by .49 (1000 periods "
    f"of the cosine: .3), within {BUDGET:,} streams",
    tuple(
        Row(
            name_of(task, kind),
            f"{title}, {gates}",
            OnLine(experiment(task, kind)),
            TRIALS,
            BUDGET,
        )
        for task, (title, *_) in TASKS.items()
        for kind, (gates, *_) in kinds_of(task).items()
    ),
    counts="streams",
    together=TRIALS,
    table=table,
)
