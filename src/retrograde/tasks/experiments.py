"""The published experiments: a task, the network that learnt it, and what came out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from retrograde.tasks.blocks import Blocks
from retrograde.tasks.reber import ContinualReber, EmbeddedReber
from retrograde.tasks.remembered_symbol import DistractedSymbol, RememberedSymbol
from retrograde.tasks.task import AbstractTask
from retrograde.tasks.temporal_order import TemporalOrder
from retrograde.tasks.two_numbers import Adding, Multiplication
from retrograde.tasks.two_sequences import TwoSequences


@dataclass(frozen=True)
class Published:
    """What a paper reports of one row of its tables.

    Attributes:
        weights: of the network.
        sequences: the mean number of training sequences until the task was solved, over the trials
            that solved it; None where none is given.
        succeeded: the share of trials that solved it.
        trials: how many there were.
    """

    weights: int
    sequences: int | None
    succeeded: float
    trials: int


@dataclass(frozen=True)
class Experiment:
    """One row of a published table.

    Training was on line: after each sequence, or after each of its steps, one step of gradient
    descent on half the squared error, summed over outputs and the steps at which an answer is due.

    Attributes:
        name: the paper's number, and what tells the rows apart: blocks and cells of each, and the
            rate (1); q and p (2c); T and N (3); T (4); the wrong answers that are too many (5).
            Those of Gers et al. begin with the year, 2000.
        task: what was to be learnt.
        network: the plan of the network.
        rate: the learning rate.
        published: what came out, where a table says so.
        each_step: the weights change after each answer.
        decay: what the rate is multiplied by after each step of a sequence; the next one begins
            with the whole rate.
        cells_after: the sequences that the outputs learn from the inputs alone, before the cells
            are added to the network.
        momentum: what remains of a change of the weights at the next one.
        double: whether the network computes in double precision.
        reading: how it departs from what is printed, where another reading of the paper is tried;
            the name then is that of the printed row and a word more, and `published` the same.

    Example:
        >>> from retrograde.tasks.experiments import EXPERIMENTS
        >>> EXPERIMENTS["4-500"].published.sequences
        209000
    """

    name: str
    task: AbstractTask
    network: Blocks
    rate: float
    published: Published | None
    each_step: bool = False
    decay: float = 1.0
    cells_after: int = 0
    momentum: float = 0.0
    double: bool = False
    reading: str = ""


ALONE = 300
"""Sequences of experiments 2a and 2b before the cell is added, "once the error has stopped
decreasing". The largest error of a sequence of 2a, by which success is judged, does so after 100:
it is that of the last step, about 1/2, from then on."""


def _fitting(task: AbstractTask, blocks: int, size: int, spread: float = 0.1) -> Blocks:
    return Blocks(task.inputs, task.outputs, blocks, size, spread=spread)


def _linear(printed: Experiment) -> Experiment:
    return replace(
        printed,
        name=f"{printed.name}-linear",
        network=replace(printed.network, output="identity"),
        reading="the output is linear",
    )


def _direct(printed: Experiment) -> Experiment:
    blocks = range(printed.network.blocks)
    network = replace(
        printed.network,
        skip=True,
        biased="gates and outputs",
        input_biases=tuple(-0.5 - block / 2 for block in blocks),
    )
    return replace(
        printed,
        name=f"{printed.name}-direct",
        network=network,
        reading="outputs see inputs and have biases; input gates begin at -0.5, -1 and -1.5",
    )


def _of_1997() -> Iterator[Experiment]:
    reber = EmbeddedReber()
    for blocks, size, rate, sequences, succeeded in (
        (4, 1, 0.1, 39_740, 1.0),
        (3, 2, 0.1, 21_730, 1.0),
        (3, 2, 0.2, 14_060, 0.97),
        (4, 1, 0.5, 9_500, 0.97),
        (3, 2, 0.5, 8_440, 1.0),
    ):
        network = replace(
            _fitting(reber, blocks, size, 0.2),
            biased="gates",
            output_biases=tuple(-1.0 - block for block in range(blocks)),
        )
        published = Published(264 if size == 1 else 276, sequences, succeeded, 30)
        printed = Experiment(f"1-{blocks}x{size}-{rate}", reber, network, rate, published, True)
        yield printed
        if size == 2:
            yield _direct(printed)
    for name, between, sequences in (("2a", "ordered", 5_040), ("2b", "random", 5_680)):
        remembered = RememberedSymbol(100, between)  # type: ignore[arg-type]
        network = replace(
            _fitting(remembered, 1, 1, 0.2),
            output_gates=False,
            seen="nothing",
            skip=True,
            cell_input="[0, 1]",
            cell_output="identity",
        )
        yield Experiment(
            name,
            remembered,
            network,
            1.0,
            Published(10_504, sequences, 1.0, 18),
            each_step=True,
            cells_after=ALONE,
        )
    for q, p, weights, sequences in (
        (50, 50, 364, 30_000),
        (100, 100, 664, 31_000),
        (200, 200, 1264, 33_000),
        (500, 500, 3064, 38_000),
        (1000, 1000, 6064, 49_000),
        (1000, 500, 3064, 49_000),
        (1000, 200, 1264, 75_000),
        (1000, 100, 664, 135_000),
        (1000, 50, 364, 203_000),
    ):
        distracted = DistractedSymbol(q, p)
        network, published = _fitting(distracted, 2, 1, 0.2), Published(weights, sequences, 1.0, 20)
        printed = Experiment(f"2c-{q}-{p}", distracted, network, 0.01, published)
        yield printed
        yield replace(
            printed,
            name=f"{printed.name}-unfed",
            network=replace(network, seen="nothing"),
            reading="the hidden layer sees the inputs alone",
        )
    for name, noise, length, informative, rate, sequences in (
        ("3a", "plain", 100, 3, 1.0, 39_850),
        ("3a", "plain", 100, 1, 1.0, 64_330),
        ("3a", "plain", 1000, 3, 1.0, 452_460),
        ("3b", "noisy inputs", 100, 3, 1.0, 43_250),
        ("3b", "noisy inputs", 100, 1, 1.0, 78_430),
        ("3b", "noisy inputs", 1000, 1, 1.0, 485_080),
        ("3c", "noisy targets", 100, 3, 0.1, 269_650),
        ("3c", "noisy targets", 100, 1, 0.1, 565_640),
    ):
        two = TwoSequences(length, informative, noise)  # type: ignore[arg-type]
        network = replace(
            _fitting(two, 3, 1),
            biased="hidden",
            input_biases=(-1.0, -3.0, -5.0),
            output_biases=(-2.0, -4.0, -6.0),
        )
        published = Published(102, sequences, 1.0, 10)
        yield Experiment(f"{name}-{length}-{informative}", two, network, rate, published)
    for length, sequences in ((100, 74_000), (500, 209_000), (1000, 853_000)):
        adding = Adding(length)
        network = replace(_fitting(adding, 2, 2), biased="all", input_biases=(-3.0, -6.0))
        published = Published(93, sequences, 1.0, 10)
        printed = Experiment(f"4-{length}", adding, network, 0.5, published)
        yield from (printed, _linear(printed))
    for wrong, sequences in ((140, 482_000), (13, 1_273_000)):
        product = Multiplication(100, wrong)
        network = replace(_fitting(product, 2, 2), biased="all")
        published = Published(93, sequences, 1.0, 10)
        printed = Experiment(f"5-{wrong}", product, network, 0.1, published)
        yield from (printed, _linear(printed))
    for name, relevant, blocks, rate, weights, sequences, trials in (
        ("6a", 2, 2, 0.5, 156, 31_390, 20),
        ("6b", 3, 3, 0.1, 308, 571_100, 10),
    ):
        order = TemporalOrder(relevant)
        biases = tuple(-2.0 * (block + 1) for block in range(blocks))
        network = replace(_fitting(order, blocks, 2), biased="all", input_biases=biases)
        yield Experiment(name, order, network, rate, Published(weights, sequences, 1.0, trials))


def _of_2000() -> Iterator[Experiment]:
    stream = ContinualReber()
    network = Blocks(
        stream.inputs,
        stream.outputs,
        blocks=4,
        size=2,
        seen="cells",
        skip=True,
        biased="gates and outputs",
        spread=0.2,
        input_biases=(-0.5, -1.0, -1.5, -2.0),
        output_biases=(-0.5, -1.0, -1.5, -2.0),
    )
    forgetting = replace(network, forget_gates=True, forget_biases=(0.5, 1.0, 1.5, 2.0))
    for name, task, plan, decay, weights, perfect in (
        ("no-forgetting", stream, network, 1.0, 360, 0.0),
        ("resets", ContinualReber(resets=True), network, 1.0, 360, 0.74),
        ("constant", stream, forgetting, 1.0, 424, 0.18),
        ("decayed", stream, forgetting, 0.99, 424, 0.62),
    ):
        published = Published(weights, None, perfect, 100)
        yield Experiment(f"2000-{name}", task, plan, 0.5, published, each_step=True, decay=decay)


EXPERIMENTS = {row.name: row for row in (*_of_1997(), *_of_2000())}
"""By name, in the order of the papers."""
