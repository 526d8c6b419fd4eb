"""The network that the lecture turns the knobs of, and one backward pass through it.

All numbers are drawn once, for the largest network, and a smaller one is cut from them: a knob that
is turned a little changes the network a little, and all generations read the same input and share
the weights of the gates that they share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import get_args

import torch
from torch import Tensor

from retrograde import _checks, cells
from retrograde.cells import AbstractLayer, Gate
from retrograde.cells.gates import GRU_GATES, Role
from retrograde.cells.generations import generations
from retrograde.decomposition import Flow, decompose
from retrograde.recording import Recorded, record_cell

INPUTS, MOST_HIDDEN, MOST_STEPS = 4, 64, 200
"""Numbers that the network reads at each step, and the largest network and sequence there are."""

GENERATIONS = {
    "plain RNN (1990)": "elman",
    "carousel alone": "cec",
    "LSTM of 1997: input and output gate": "lstm-1997",
    "LSTM of 2000: forget gate": "lstm-2000",
    "LSTM of 2002: peepholes": "lstm-2002",
    "GRU (2014)": "gru",
}
"""The generations by what the lecture calls them."""

KNOBS = {
    "forget": "forget_bias",
    "input": "input_bias",
    "output": "output_bias",
    "reset": "reset_bias",
}
"""The field of `Setting` that is added to the bias of a gate of each role."""


@dataclass(frozen=True)
class Setting:
    """Where the knobs stand.

    Attributes:
        generation: "elman", "gru", or the name of an LSTM in `retrograde.cells.generations`.
        steps: T, from 2 to 200.
        hidden: H, from 1 to 64.
        recurrent_scale: what torch's default recurrent weights are multiplied by.
        forget_bias: added to the bias of the forget gate; of a GRU, of the update gate.
        input_bias, output_bias, reset_bias: added to the biases of these gates.
        every_step: whether the loss enters at every step, or at the last one alone.

    A knob of a gate that the generation lacks does nothing; `knobs` says which it has.

    Raises:
        ArgumentError: for an unknown generation, sizes outside those ranges, or a number that is
            not finite.

    Example:
        >>> from retrograde.explore.lesson import Setting, flow_of
        >>> flow_of(Setting(forget_bias=5.0)).reach > flow_of(Setting(forget_bias=-1.0)).reach
        True
    """

    generation: str = "lstm-2000"
    steps: int = 100
    hidden: int = 32
    recurrent_scale: float = 1.0
    forget_bias: float = 0.0
    input_bias: float = 0.0
    output_bias: float = 0.0
    reset_bias: float = 0.0
    every_step: bool = True

    def __post_init__(self) -> None:
        _checks.one_of("generation", self.generation, tuple(GENERATIONS.values()))
        _checks.whole("steps", self.steps, 2, MOST_STEPS)
        _checks.whole("hidden", self.hidden, 1, MOST_HIDDEN)
        _checks.number("recurrent_scale", self.recurrent_scale)
        for name in KNOBS.values():
            _checks.number(name, getattr(self, name))
        _checks.flag("every_step", self.every_step)

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The gates of the generation."""
        if self.generation == "elman":
            return cells.Elman(torch.zeros(1, 1), torch.zeros(1, 1)).gates
        return GRU_GATES if self.generation == "gru" else generations[self.generation].blocks

    @property
    def knobs(self) -> dict[str, str]:
        """The gate that each bias belongs to, by the field: those that do something here."""
        return {KNOBS[gate.role]: gate.name for gate in self.gates if gate.role in KNOBS}


def cell_of(setting: Setting) -> AbstractLayer:
    """The network: torch's default weights, U(-1/sqrt(H), 1/sqrt(H)), with the knobs turned."""
    size, gates, drawn = setting.hidden, setting.gates, _weights()

    def joined(kind: str, gates: Sequence[Gate] = gates) -> Tensor:
        return torch.cat([drawn[gate.role, kind][:size] for gate in gates]).div(size**0.5)

    added = [getattr(setting, KNOBS[gate.role]) if gate.role in KNOBS else 0.0 for gate in gates]
    w = joined("input")
    r = joined("recurrent")[:, :size] * setting.recurrent_scale
    b = joined("bias") + torch.tensor(added, dtype=w.dtype).repeat_interleave(size)
    if setting.generation == "elman":
        return cells.Elman(w, r, b)
    if setting.generation == "gru":
        return cells.GRU(w, r, b)
    peepholes = generations[setting.generation].peephole_gates
    p = joined("peephole", [g for g in gates if g.name in peepholes]) if peepholes else None
    return cells.LSTM(w, r, b, weight_ch=p, generation=setting.generation)


@lru_cache(maxsize=8)
def recorded(setting: Setting) -> Recorded:
    """One pass over one sequence; the loss is L = sum_t g_t . h_t with fixed random g_t.

    Every loss step gives the same to its h_t whatever the network does, so that differences between
    two settings come from the way back alone.
    """
    x, given = _sequence()
    given = given[: setting.steps, :, : setting.hidden] / setting.hidden**0.5
    if not setting.every_step:
        given = torch.cat([torch.zeros_like(given[1:]), given[-1:]])
    return record_cell(
        cell_of(setting), x[: setting.steps], lambda h, _: (given * h).sum(), name="network"
    )


@lru_cache(maxsize=8)
def flow_of(setting: Setting) -> Flow:
    """The same pass, taken apart."""
    return decompose(recorded(setting))


@cache
def _weights() -> Mapping[tuple[str | None, str], Tensor]:
    """For each role of a gate the largest block of its weights, from U(-1, 1)."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "input": (MOST_HIDDEN, INPUTS),
        "recurrent": (MOST_HIDDEN, MOST_HIDDEN),
        "bias": (MOST_HIDDEN,),
        "peephole": (MOST_HIDDEN,),
    }
    return {
        (role, kind): 2 * torch.rand(shape, generator=random, dtype=torch.float64) - 1
        for role in get_args(Role)
        for kind, shape in shapes.items()
    }


@cache
def _sequence() -> tuple[Tensor, Tensor]:
    """The longest input and the g_t of the loss, from N(0, 1)."""
    random = torch.Generator().manual_seed(1)
    shape = (MOST_STEPS, 1, INPUTS + MOST_HIDDEN)
    drawn = torch.randn(shape, generator=random, dtype=torch.float64)
    return drawn[..., :INPUTS].contiguous(), drawn[..., INPUTS:]
