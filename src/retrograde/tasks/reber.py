"""Strings of the embedded Reber grammar, one by one and as an endless stream.

A Reber string is made by walking from node 0 to the end of `REBER`. Embedded it stands between
two equal symbols: B T (Reber string) T E, or B P (Reber string) P E. All but the last T or P can be
told from the latest symbols; that one returns after at least six.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from random import Random
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde import _checks
from retrograde.tasks.task import AbstractTask, Guess, Lot, Sequences, padded, ranked, symbols

SYMBOLS = "BTPSXVE"

REBER: dict[int, dict[str, int]] = {
    0: {"B": 1},
    1: {"T": 2, "P": 3},
    2: {"S": 2, "X": 4},
    3: {"T": 3, "V": 5},
    4: {"X": 3, "S": 6},
    5: {"P": 4, "V": 6},
    6: {"E": 7},
}
"""The symbols that may come at each node and where they lead; each of two has probability 1/2."""


def _embedded() -> dict[str, dict[str, str]]:
    grammar = {"start": {"B": "second"}, "second": {"T": "T0", "P": "P0"}, "last": {"E": "start"}}
    for box in "TP":
        for node, arcs in REBER.items():
            grammar[f"{box}{node}"] = {symbol: f"{box}{end}" for symbol, end in arcs.items()}
        grammar[f"{box}7"] = {box: "last"}
    return grammar


EMBEDDED = _embedded()
"""The same for the embedded grammar. After the E it begins anew."""


@dataclass(frozen=True, eq=False)
class Strings(Sequences):
    """Strings of the grammar; at each step the next symbol is due.

    Attributes:
        possible: the symbols that may come next, [T, N, 7].
    """

    possible: Bool[Tensor, "T N 7"]


def walk(chance: Random, steps: int | None = None) -> tuple[str, list[str]]:
    """One string, or the first `steps` symbols of an endless stream of strings.

    Returns:
        The symbols, and for each of them those that could have stood in its place.
    """
    node, string, choices = "start", list[str](), list[str]()
    while not string or (node != "start" if steps is None else len(string) < steps):
        arcs = EMBEDDED[node]
        choices.append("".join(arcs))
        string.append(choices[-1][chance.getrandbits(1) if len(arcs) > 1 else 0])
        node = arcs[string[-1]]
    return "".join(string), choices


def walks(
    count: int, generator: torch.Generator, steps: int | None = None
) -> Iterator[tuple[str, list[str]]]:
    """`count` of them."""
    chance = Random(int(torch.randint(2**62, (), generator=generator)))
    return (walk(chance, steps) for _ in range(count))


def as_strings(walks: Sequence[tuple[str, list[str]]]) -> Strings:
    """The sequences that predict each symbol of some walks, but the first, from those before it."""
    lengths = torch.tensor([len(string) - 1 for string, _ in walks])
    indices = padded([[SYMBOLS.index(symbol) for symbol in string] for string, _ in walks])
    sets = sorted({choice for _, choices in walks for choice in choices})
    members = torch.tensor([[symbol in choice for symbol in SYMBOLS] for choice in sets])
    which = padded([[sets.index(choice) for choice in choices[1:]] for _, choices in walks])
    due = torch.arange(len(which)).unsqueeze(1) < lengths
    return Strings(
        symbols(indices[:-1], len(SYMBOLS), lengths),
        symbols(indices[1:], len(SYMBOLS), lengths),
        due,
        lengths,
        members[which] & due.unsqueeze(2),
    )


def foretold(output: Float[Tensor, "T N 7"], strings: Strings) -> Bool[Tensor, "T N"]:
    """The steps at which every symbol that may come next is more active than every other one."""
    return ranked(output, strings.possible)


def _visits() -> dict[str, float]:
    """How often the making of one string comes to each node of the embedded grammar, on average."""
    nodes = list(EMBEDDED)
    leads = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
    for node, arcs in EMBEDDED.items():
        for end in arcs.values():
            if end != "start":
                leads[nodes.index(node), nodes.index(end)] += 1 / len(arcs)
    once = torch.zeros(len(nodes), dtype=torch.float64)
    once[nodes.index("start")] = 1
    visits = torch.linalg.solve((torch.eye(len(nodes)) - leads).T, once)
    return dict(zip(nodes, visits.tolist(), strict=True))


def _loss(stream: bool) -> float:
    """The mean squared error where T and P are never told apart; each choice of two costs 1/2."""
    visits = _visits()
    if not stream:
        del visits["start"]  # the first B is not predicted
    choices = sum(often for node, often in visits.items() if len(EMBEDDED[node]) == 2)
    return (choices + 1) / 2 / sum(visits.values()) / len(SYMBOLS)


class EmbeddedReber(AbstractTask):
    """Experiment 1 of 1997: predict each next symbol of strings of the embedded Reber grammar.

    A string was predicted if at each step the symbols that may come next are the most active
    outputs. `lot` draws 256 strings to learn and 256 others; the task is solved when all 512 are
    predicted. The shortest strings have nine symbols.

    Example:
        >>> import torch
        >>> from retrograde.tasks.reber import EmbeddedReber
        >>> task = EmbeddedReber()
        >>> strings = task.draw(3, torch.Generator().manual_seed(0))
        >>> bool(task.right(strings.possible.float(), strings).all()), task.guess.right
        (True, 0.5)
    """

    paper: ClassVar[str] = "Hochreiter and Schmidhuber (1997), section 5.1"
    inputs = outputs = len(SYMBOLS)
    judged_on = 512

    @property
    def guess(self) -> Guess:
        """Of a network that takes T and P for equally likely where one must return."""
        return Guess(_loss(stream=False), 1 / 2)

    def draw(self, count: int, generator: torch.Generator) -> Strings:
        count = _checks.whole("count", count)
        return as_strings([*walks(count, generator)])

    def lot(self, generator: torch.Generator) -> Lot:
        return StringSets(self, generator)

    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        assert isinstance(sequences, Strings)
        return (foretold(output, sequences) | ~sequences.due).all(0)


class StringSets(Lot):
    """256 strings to learn, drawn again and again, and 256 others; a test takes all of them.

    Attributes:
        learnt, others: the two sets.
    """

    def __init__(self, task: AbstractTask, generator: torch.Generator):
        super().__init__(task, generator)
        self.learnt = [*walks(256, generator)]
        seen = {string for string, _ in self.learnt}
        more = (one for part in repeat(1) for one in walks(part, generator) if one[0] not in seen)
        self.others = [*islice(more, 256)]

    def training(self, count: int) -> Strings:
        which = torch.randint(len(self.learnt), (count,), generator=self.generator)
        return as_strings([self.learnt[one] for one in which])

    def tests(self, most: int) -> Iterator[Sequences]:
        strings = self.learnt + self.others
        for first in range(0, len(strings), most):
            yield as_strings(strings[first : first + most])


class ContinualReber(EmbeddedReber):
    """An endless stream of embedded Reber strings, whose ends are not marked.

    A training stream ends with its first error or after 100,000 symbols. The task is solved
    *perfectly* when ten streams of 100,000 symbols are predicted without an error, and *well* if
    errors come after more than 1000 symbols on average; `right` asks the former of each stream,
    and `run` counts the symbols before the first error.

    Args:
        steps: symbols of a stream.

    Example:
        >>> import torch
        >>> from retrograde.tasks.reber import ContinualReber
        >>> task = ContinualReber(steps=50)
        >>> task.draw(2, torch.Generator().manual_seed(0)).x.shape
        torch.Size([50, 2, 7])
    """

    paper: ClassVar[str] = "Gers, Schmidhuber and Cummins (2000)"
    judged_on = 10

    def __init__(self, steps: int = 100_000):
        self.steps = _checks.whole("steps", steps)

    @property
    def guess(self) -> Guess:
        """Of a network that takes T and P for equally likely where one must return, in a stream
        that is long: none of it remains without an error."""
        return Guess(_loss(stream=True), 0.0)

    def draw(self, count: int, generator: torch.Generator) -> Strings:
        count = _checks.whole("count", count)
        return as_strings([*walks(count, generator, self.steps + 1)])

    def lot(self, generator: torch.Generator) -> Lot:
        return Lot(self, generator)

    def run(self, output: Float[Tensor, "T N O"], strings: Strings) -> list[int]:
        """The symbols that each stream predicts before its first error."""
        wrong = ~foretold(output, strings)
        first = torch.where(wrong.any(0), wrong.int().argmax(0), len(wrong))
        return [int(count) for count in first]
