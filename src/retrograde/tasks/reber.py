"""Strings of the embedded Reber grammar, one by one and as an endless stream.

A Reber string is made by walking from node 0 to the end of `REBER`. Embedded it stands between
two equal symbols: B T (Reber string) T E, or B P (Reber string) P E. All but the last T or P can be
told from the latest symbols; that one returns after at least six.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retrograde import _checks
from retrograde.tasks.task import (
    AbstractTask,
    Guess,
    Lot,
    Sequences,
    Symbols,
    largest_errors,
    ranked,
    symbols,
    within,
)

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
        begins: the steps before which the state of a network is set to zero, [T, N]; None for none.
    """

    possible: Bool[Tensor, "T N 7"]
    begins: Bool[Tensor, "T N"] | None = None


NODES = tuple(EMBEDDED)
FOLLOWING = torch.tensor(
    [[SYMBOLS.index((*arcs, *arcs)[which]) for which in range(2)] for arcs in EMBEDDED.values()]
)
"""The symbols that may come at each node, [nodes, 2]; twice the same where there is one."""

LEADING = torch.tensor(
    [
        [NODES.index(arcs[SYMBOLS[symbol]]) for symbol in symbols]
        for arcs, symbols in zip(EMBEDDED.values(), FOLLOWING.tolist(), strict=True)
    ]
)
"""Where they lead."""

POSSIBLE = torch.tensor([[symbol in arcs for symbol in SYMBOLS] for arcs in EMBEDDED.values()])
"""The same as a set, [nodes, 7]."""


class Walks(NamedTuple):
    """Walks through the embedded grammar, each from its start until it is there again.

    Attributes:
        numbers: of the symbols, [T, N].
        nodes: those at which they were chosen, [T, N].
        lengths: symbols of each, [N]; what stands beyond belongs to no walk.
    """

    numbers: Int[Tensor, "T N"]
    nodes: Int[Tensor, "T N"]
    lengths: Int[Tensor, "N"]

    def of(self, which: Int[Tensor, "M"]) -> "Walks":
        """Some of them."""
        lengths = self.lengths[which]
        some = slice(int(lengths.max()))
        return Walks(self.numbers[some, which], self.nodes[some, which], lengths)

    def texts(self) -> tuple[Int[Tensor, "S"], Int[Tensor, "S"]]:
        """The symbols and nodes of all of them in a row."""
        inside = within(len(self.numbers), self.lengths).T
        return self.numbers.T[inside], self.nodes.T[inside]

    def spelt(self) -> list[str]:
        """Each of them as a string."""
        return [
            "".join(SYMBOLS[number] for number in numbers[:length])
            for numbers, length in zip(self.numbers.T.tolist(), self.lengths.tolist(), strict=True)
        ]


def walked(count: int, generator: torch.Generator) -> Walks:
    """`count` walks, side by side."""
    node = torch.zeros(count, dtype=torch.int64)
    lengths, walking = torch.zeros_like(node), torch.ones_like(node, dtype=torch.bool)
    numbers, nodes = list[Tensor](), list[Tensor]()
    while bool(walking.any()):
        which = torch.randint(2, (count,), generator=generator)
        nodes.append(node)
        numbers.append(FOLLOWING[node, which])
        node = LEADING[node, which]
        lengths += walking
        walking = walking & (node != 0)
    return Walks(torch.stack(numbers), torch.stack(nodes), lengths)


def predicted(walks: Walks) -> Strings:
    """The sequences that predict each symbol of some walks, but the first, from those before it."""
    lengths = walks.lengths - 1
    due = within(len(walks.numbers) - 1, lengths)
    return Strings(
        Symbols(walks.numbers[:-1] * due, len(SYMBOLS), lengths),
        symbols(walks.numbers[1:], len(SYMBOLS), lengths),
        due,
        lengths,
        POSSIBLE[walks.nodes[1:]] & due.unsqueeze(2),
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
    """The mean squared error where T and P are never told apart, which costs 1/2 once a string.

    So does each choice of two, where the symbol that came is to be predicted and not both.
    """
    visits = _visits()
    if stream:
        return 1 / 2 / sum(visits.values()) / len(SYMBOLS)
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
    judged_on, flawless = 512, True

    @property
    def guess(self) -> Guess:
        """Of a network that takes T and P for equally likely where one must return."""
        return Guess(_loss(stream=False), 1 / 2)

    def draw(self, count: int, generator: torch.Generator) -> Strings:
        count = _checks.whole("count", count)
        return predicted(walked(count, generator))

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
        self.learnt = walked(256, generator)
        seen, found = set(self.learnt.spelt()), list[Walks]()
        while sum(len(walks.lengths) for walks in found) < 256:
            more = walked(256, generator)
            new = [n for n, string in enumerate(more.spelt()) if string not in seen]
            found.append(more.of(torch.tensor(new)))
        numbers, nodes = (
            pad_sequence([column for walks in found for column in getattr(walks, part).T])
            for part in ("numbers", "nodes")
        )
        lengths = torch.cat([walks.lengths for walks in found])
        self.others = Walks(numbers, nodes, lengths).of(torch.arange(256))

    def training(self, count: int) -> Strings:
        return predicted(self.learnt.of(torch.randint(256, (count,), generator=self.generator)))

    def tests(self, most: int) -> Iterator[Sequences]:
        for walks in (self.learnt, self.others):
            for which in torch.split(torch.arange(256), most):
                yield predicted(walks.of(which))


class ContinualReber(EmbeddedReber):
    """An endless stream of embedded Reber strings, whose ends are not marked.

    A symbol is predicted if each output errs by less than .49, where all the symbols that may come
    next have the target 1. Both are our reading of a secondary source, which gives the .49: with
    the symbol that came as the only target no answer to a choice of two is right, and with a larger
    limit .5 everywhere always is.

    A training stream ends with its first error or after 100,000 symbols. The task is solved
    *perfectly* when ten streams of 100,000 symbols are predicted without an error, and *well* if
    errors come after more than 1000 symbols on average; `right` asks the former of each stream,
    and `run` counts the symbols before the first error.

    Args:
        steps: symbols of a stream.
        resets: whether the state of a network is to be set to zero at the beginning of each string,
            as the paper does for comparison.

    Example:
        >>> import torch
        >>> from retrograde.tasks.reber import ContinualReber
        >>> task = ContinualReber(steps=50)
        >>> task.draw(2, torch.Generator().manual_seed(0)).x.shape
        torch.Size([50, 2, 7])
    """

    paper: ClassVar[str] = "Gers, Schmidhuber and Cummins (2000)"
    judged_on = 10
    limit = 0.49

    def __init__(self, steps: int = 100_000, resets: bool = False):
        self.steps = _checks.whole("steps", steps)
        self.resets = _checks.flag("resets", resets)

    @property
    def guess(self) -> Guess:
        """Of a network that takes T and P for equally likely where one must return, in a stream
        that is long: none of it remains without an error."""
        return Guess(_loss(stream=True), 0.0)

    def draw(self, count: int, generator: torch.Generator) -> Strings:
        count = _checks.whole("count", count)
        stream, drawn = self.lot(generator), list[Strings]()
        for _ in range(count):
            stream.begin()
            drawn.append(stream.take(self.steps))
            stream.move(self.steps)
        parts = ("x", "y", "due", "possible", *(("begins",) if self.resets else ()))
        x, y, due, *rest = (torch.cat([getattr(each, part) for each in drawn], 1) for part in parts)
        return Strings(x, y, due, torch.full((count,), self.steps), *rest)

    def lot(self, generator: torch.Generator) -> "Stream":
        return Stream(self, generator)

    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        return largest_errors(output, sequences) < self.limit

    def run(self, output: Float[Tensor, "T N O"], strings: Strings) -> list[int]:
        """The symbols that each stream predicts before its first error."""
        wrong = ~((output - strings.y).abs() < self.limit).all(2)
        first = torch.where(wrong.any(0), wrong.int().argmax(0), len(wrong))
        return [int(count) for count in first]


class Stream(Lot):
    """The symbols of one endless stream after the other."""

    DRAWN: ClassVar[int] = 500
    """Strings that are drawn at once."""

    task: ContinualReber

    def __init__(self, task: ContinualReber, generator: torch.Generator):
        super().__init__(task, generator)
        self.forget()

    def forget(self) -> None:
        """Go on with strings that are still to be drawn."""
        self._numbers = self._nodes = torch.zeros(0, dtype=torch.int64)
        self._at = 0

    def begin(self) -> None:
        """A new stream begins: go on with the next string."""
        starts = (self._nodes[self._at :] == 0).nonzero()
        self._at = self._at + int(starts[0]) if len(starts) else len(self._nodes)

    def take(self, steps: int) -> Strings:
        """The next symbols, each with the one after it to be predicted; they can be taken again."""
        while len(self._numbers) <= self._at + steps:
            more = walked(self.DRAWN, self.generator).texts()
            self._numbers = torch.cat((self._numbers[self._at :], more[0]))
            self._nodes = torch.cat((self._nodes[self._at :], more[1]))
            self._at = 0
        lengths, some = torch.tensor([steps]), slice(self._at, self._at + steps + 1)
        numbers, nodes = self._numbers[some].unsqueeze(1), self._nodes[some].unsqueeze(1)
        possible = POSSIBLE[nodes[1:]]
        due = torch.ones(steps, 1, dtype=torch.bool)
        read = Symbols(numbers[:-1], len(SYMBOLS), lengths)
        begins = nodes[:-1] == 0 if self.task.resets else None
        return Strings(read, possible.float(), due, lengths, possible, begins)

    def move(self, steps: int) -> None:
        """Go on behind so many of them."""
        self._at += steps
