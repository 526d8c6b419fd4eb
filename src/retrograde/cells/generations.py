"""The LSTM family as a table: each generation is a row of what it has, with its paper.

The story that the rows tell: the carousel alone keeps the error, gates protect it (1997), the
forget gate lets it go (2000), peepholes look at it (2002). The eight variants are those that Greff
et al. (2017) trained 5400 networks to compare; each takes one thing away from the LSTM of 2002, or
adds one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from retrograde import _checks
from retrograde.cells.base import standard_shapes
from retrograde.cells.gates import ACTIVATIONS, LSTM_GATES, Gate
from retrograde.errors import ArgumentError

HOCHREITER_1997 = (
    'Sepp Hochreiter, Jürgen Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8) (1997)'
)
GERS_2000 = (
    'Felix A. Gers, Jürgen Schmidhuber, Fred Cummins, "Learning to Forget: Continual Prediction '
    'with LSTM", Neural Computation 12(10) (2000)'
)
GERS_2002 = (
    'Felix A. Gers, Nicol N. Schraudolph, Jürgen Schmidhuber, "Learning Precise Timing with LSTM '
    'Recurrent Networks", Journal of Machine Learning Research 3 (2002)'
)
GREFF_2017 = (
    "Klaus Greff, Rupesh K. Srivastava, Jan Koutník, Bas R. Steunebrink, Jürgen Schmidhuber, "
    '"LSTM: A Search Space Odyssey", IEEE TNNLS 28(10) (2017), arXiv 1503.04069'
)

NAMES = tuple(gate.name for gate in LSTM_GATES)
SIGMOID_GATES = tuple(gate.name for gate in LSTM_GATES if gate.role != "candidate")


@dataclass(frozen=True)
class Generation:
    """What one member of the LSTM family has.

    Attributes:
        name: its name in the table.
        meaning: what sets it apart, in a line.
        paper: where it comes from.
        gates: the blocks of rows of its weights, in torch's order i, f, g, o; a gate that is left
            out stands at 1.
        peepholes: its gates see the cell state: i and f that of the step before, o the new one.
        coupled: f = 1 - i.
        gate_recurrence: its gates also see all gates of the step before.
        cell_activation: g, the activation function of the cell input.
        state_activation: h, that of the cell state.
        also: a second name.

    Example:
        >>> from retrograde.cells import generations
        >>> generations["lstm-1997"].gates
        ('input', 'cell', 'output')
        >>> generations["peephole"].parameter_count(inputs=8, hidden=16)
        1712
    """

    name: str
    meaning: str
    paper: str
    gates: tuple[str, ...] = NAMES
    peepholes: bool = False
    coupled: bool = False
    gate_recurrence: bool = False
    cell_activation: str = "tanh"
    state_activation: str = "tanh"
    also: str = ""

    @cached_property
    def peephole_gates(self) -> tuple[str, ...]:
        """The gates that see the cell state, in the order of the rows of `weight_ch`."""
        gates = SIGMOID_GATES if self.peepholes else ()
        return tuple(gate for gate in gates if gate in self.gates)

    @cached_property
    def blocks(self) -> tuple[Gate, ...]:
        """The gates as values, in the same order."""
        candidate = ACTIVATIONS[self.cell_activation]
        return tuple(
            replace(gate, activation=candidate) if gate.role == "candidate" else gate
            for gate in LSTM_GATES
            if gate.name in self.gates
        )

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by name, both biases included."""
        shapes = standard_shapes(len(self.gates), inputs, hidden)
        if self.peephole_gates:
            shapes["weight_ch"] = (len(self.peephole_gates) * hidden,)
        if self.gate_recurrence:
            shapes["weight_gg"] = (3 * hidden, 3 * hidden)
        return shapes

    def parameter_count(self, inputs: int, hidden: int, bias: bool = True) -> int:
        """How many numbers a layer has: G H (I + H + 2) + P H, and 9 H^2 where gates see gates.

        G counts the gates with weights (the cell input among them), P the peepholes; torch's two
        biases are counted as two.
        """
        gates = len(self.gates) * hidden * (inputs + hidden + 2 * bias)
        between_gates = 9 * hidden * hidden if self.gate_recurrence else 0
        return gates + len(self.peephole_gates) * hidden + between_gates


def _without(gate: str) -> tuple[str, ...]:
    return tuple(each for each in NAMES if each != gate)


TABLE = (
    Generation(
        "cec",
        "the bare carousel: f = 1 and no gates",
        HOCHREITER_1997 + ", section 3.2, with the activation functions of its section 4",
        gates=("cell",),
        also="carousel",
        cell_activation="4*sigmoid-2",
        state_activation="2*sigmoid-1",
    ),
    Generation(
        "lstm-1997",
        "input and output gates, f = 1 (that its gates also see each other is the row fgr)",
        HOCHREITER_1997,
        gates=("input", "cell", "output"),
        also="gates",
        cell_activation="4*sigmoid-2",
        state_activation="2*sigmoid-1",
    ),
    Generation(
        "lstm-2000", "the forget gate; what torch.nn.LSTM computes", GERS_2000, also="forget-gate"
    ),
    Generation(
        "lstm-2002",
        "peepholes; the output gate sees the new c (V in Greff et al.)",
        GERS_2002,
        peepholes=True,
        also="peephole",
    ),
    Generation("nig", "no input gate: i = 1", GREFF_2017, gates=_without("input"), peepholes=True),
    Generation(
        "nfg", "no forget gate: f = 1", GREFF_2017, gates=_without("forget"), peepholes=True
    ),
    Generation(
        "nog", "no output gate: o = 1", GREFF_2017, gates=_without("output"), peepholes=True
    ),
    Generation(
        "niaf",
        "no input activation function: g is the identity",
        GREFF_2017,
        peepholes=True,
        cell_activation="identity",
    ),
    Generation(
        "noaf",
        "no output activation function: h is the identity",
        GREFF_2017,
        peepholes=True,
        state_activation="identity",
    ),
    Generation(
        "cifg",
        "coupled input and forget gate: f = 1 - i",
        GREFF_2017,
        gates=_without("forget"),
        peepholes=True,
        coupled=True,
    ),
    Generation("np", "no peepholes; the equations of lstm-2000", GREFF_2017),
    Generation(
        "fgr",
        "full gate recurrence: every gate sees all gates of the step before",
        GREFF_2017,
        peepholes=True,
        gate_recurrence=True,
    ),
)

generations: Mapping[str, Generation] = {
    name: row for row in TABLE for name in (row.name, row.also) if name
}
"""Every generation by its name, and by its second name where it has one."""


def generation(name: str) -> Generation:
    """The row of that name.

    Raises:
        ArgumentError: for an unknown name; the message lists the table.
    """
    if not isinstance(name, str) or name not in generations:
        known = ", ".join(row.name + (f" ({row.also})" if row.also else "") for row in TABLE)
        raise ArgumentError(
            f"there is no LSTM generation {_checks.shown(name)}"
            f"{_checks.closest(name, generations)}; there are: {known}"
        )
    return generations[name]
