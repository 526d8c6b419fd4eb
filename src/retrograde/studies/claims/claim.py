"""A claim about recurrent networks: its words, what is measured, and the rule of its verdict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Literal

from retrograde.errors import ArgumentError

Verdict = Literal["true", "half true", "wrong", "cannot tell"]
Figures = Mapping[str, float]

SEEDS = 5
"""Networks, drawn with seeds 0 to 4, behind every mean unless a claim says otherwise."""


@dataclass(frozen=True)
class Text:
    """One of the five texts that this project grew from.

    Attributes:
        title: as it stands there.
        heading: the same in English.
        kind: what kind of text it is.
    """

    title: str
    heading: str
    kind: str


TEXTS = {
    "000": Text(
        "LSTMユニットを持つRNNも「勾配の爆発」に悩まされるのはなぜですか?",
        "Why do RNNs with LSTM units explode, too?",
        "A question on Cross Validated with its answers, in a Japanese translation",
    ),
    "001": Text(
        "LSTM改善RNN梯度弥散和梯度爆炸问题",
        "The LSTM against vanishing and exploding gradients in RNNs",
        "A derivation by hand over three linear steps, in Chinese",
    ),
    "002": Text(
        "RNNの問題点とLSTMについて",
        "The problems of RNNs, and the LSTM",
        "How the LSTM came about, problem by problem, in Japanese",
    ),
    "003": Text(
        "RNNにおける誤差逆伝播法と勾配消失問題(パート2)",
        "Back-propagation and the vanishing gradient problem in RNNs, part 2",
        "An LSTM of three steps with code and printed numbers, in a Japanese translation",
    ),
    "004": Text(
        "Должны ли градиенты для выходного уровня RNN обрезаться?",
        "Should the gradients of the output layer of an RNN be clipped?",
        "A question with one answer, in a Russian translation",
    ),
}
"""By their numbers here."""


@dataclass(frozen=True)
class Statement:
    """A sentence that the figures decide.

    Attributes:
        words: the sentence, with the names of figures where they belong.
        holds: whether it is borne out, from the figures.

    Example:
        >>> from retrograde.studies.claims import Statement
        >>> grows = Statement("it grows by {factor:.2f} per step", lambda f: f["factor"] > 1)
        >>> grows.said({"factor": 1.5}), grows.judged({"factor": 0.8}), grows.judged({})
        ('it grows by 1.50 per step', False, None)
    """

    words: str
    holds: Callable[[Figures], bool]

    @property
    def needs(self) -> frozenset[str]:
        """The names of the figures in the sentence."""
        return figures_in(self.words)

    def said(self, figures: Figures) -> str:
        """The sentence with its figures."""
        return self.words.format_map(figures)

    def judged(self, figures: Figures) -> bool | None:
        """Whether it is borne out; None where a figure is missing."""
        return None if self.needs - set(figures) else bool(self.holds(figures))


@dataclass(frozen=True)
class Claim:
    """A claim of one of the texts.

    It is put into sentences that can be measured. It is *true* if all of them are borne out,
    *wrong* if none is, *half true* otherwise; sentences without figures do not count, and where no
    sentence has any, one *cannot tell*.

    Attributes:
        name: of the claim.
        text: the number of the text in `TEXTS`.
        quotation: its words.
        meaning: the same in English.
        measure: the figures, from networks drawn with these seeds.
        statements: what the claim says, sentence by sentence.
        why: what lies behind, and where the claim is wrong; with names of figures.
        seeds: how many networks are drawn.
        quick: how many give the same verdict already.
        page: of the documentation, where the same is told at length.
        reads: the studies whose shipped results it reads.

    Example:
        >>> from retrograde.studies.claims import CLAIMS
        >>> claim = CLAIMS["powers"]
        >>> claim.verdict(claim.figures())
        'half true'
    """

    name: str
    text: str
    quotation: str
    meaning: str
    measure: Callable[[range], Figures]
    statements: tuple[Statement, ...]
    why: str
    seeds: int = SEEDS
    quick: int = 1
    page: str = ""
    reads: tuple[str, ...] = ()

    @property
    def remark(self) -> Statement:
        """What lies behind, as a sentence that decides nothing."""
        return Statement(self.why, lambda _: True)

    def figures(self, seeds: range | None = None) -> dict[str, float]:
        """What is measured, from networks drawn with these seeds; 0, 1, ... if None."""
        return dict(self.measure(range(self.seeds) if seeds is None else seeds))

    def verdict(self, figures: Figures) -> Verdict:
        """What the figures say of the claim."""
        judged = {statement.judged(figures) for statement in self.statements} - {None}
        if not judged:
            return "cannot tell"
        return "half true" if len(judged) == 2 else "true" if True in judged else "wrong"

    def check(self, figures: Figures) -> None:
        """Refuse figures that are not those of this claim.

        Raises:
            ArgumentError: for figures that no sentence has; or where some are missing, unless the
                claim reads the results of studies, which need not be there.
        """
        sentences = [*(each.needs for each in self.statements), figures_in(self.why)]
        needed = frozenset[str]().union(*sentences)
        wrong = set(figures) - needed if self.reads else needed.symmetric_difference(figures)
        if wrong:
            raise ArgumentError(f"the claim {self.name!r} has other figures: {sorted(wrong)}")


def figures_in(words: str) -> frozenset[str]:
    """The names of the figures in a sentence."""
    return frozenset(name for _, name, _, _ in Formatter().parse(words) if name)
