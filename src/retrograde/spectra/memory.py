"""How long the recurrence remembers: what its gates promise, and what its Jacobians do."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks, charts
from retrograde.cells.gates import with_role
from retrograde.cells.leaves import leaves
from retrograde.decomposition.lags import REACH, reach_of
from retrograde.engine.scaling import row_norms
from retrograde.spectra.jacobians import Chain

AGREE = 2
"""Two lags agree if they differ by less than this factor: the lag of 1 % moves by that much when
the curve is a power law and the threshold is taken as 2 % or 1/2 %."""


@dataclass(frozen=True, eq=False)
class Memory:
    """Lags in steps. What is forgotten is what has fallen to 1 % of what it was, as in `reach`.

    Attributes:
        time_constants: -1 / mean(ln f) of each unit, over time and batch, f the forget gate (of a
            GRU: the update gate): the steps in which the carousel alone shrinks by a factor of e.
            The 1 / (1 - mean f) of the diagnosis is longer, by half a step where f is steady and
            near 1: a single step with a closed gate, which ends all memory, hardly changes it. By
            slot, shape [H]; inf where the gate stands at 1; empty for cells without one.
        log2_state: the mean size of ds_end/ds_k, the Frobenius norm over that at lag 0, mean over
            the batch, at each lag, shape [T]: a perturbation of the state in a random direction.
        log2_input: the same of ds_end/dx_k: a perturbation of one input, all entries alike.
        reach: `Flow.reach` of the recorded loss; None if there was none.

    Both curves are seen from the last step of the stretch.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(1, 1)
        >>> for parameter in lstm.parameters():
        ...     _ = torch.nn.init.zeros_(parameter)
        >>> memory = retrograde.spectrum(lstm, torch.ones(20, 1, 1)).memory
        >>> memory.time_constants["c_l0"]  # -1 / ln(1/2)
        tensor([1.4427], dtype=torch.float64)
        >>> memory.by_gates["c_l0"], memory.state
        (tensor([6.6439], dtype=torch.float64), 6)
    """

    time_constants: Mapping[str, Float[Tensor, "H"]]
    log2_state: Float[Tensor, "T"]
    log2_input: Float[Tensor, "T"]
    reach: int | None

    @property
    def by_gates(self) -> Mapping[str, Float[Tensor, "H"]]:
        """The lag at which the carousel of each unit has fallen to 1 %: ln(100) time constants."""
        return {name: -math.log(REACH) * tau for name, tau in self.time_constants.items()}

    @property
    def state(self) -> int:
        """The largest lag at which 1 % of a perturbation of the state is left."""
        return reach_of(self.log2_state)

    @property
    def input(self) -> int:
        """The largest lag at which 1 % of a perturbation of one input is left."""
        return reach_of(self.log2_input)

    @property
    def agrees(self) -> bool | None:
        """Whether the gradient of the recorded loss reaches as far back as inputs are remembered.

        Within a factor of two, counted in steps; None without a loss. It need not: a loss can ask
        for directions that are forgotten sooner than the average one, or later. Beyond the longest
        lag of the stretch nothing is known of inputs, and reach counts no further.
        """
        if self.reach is None:
            return None
        reach = min(self.reach, len(self.log2_input) - 1)
        steps = sorted((reach + 1, self.input + 1))
        return steps[1] <= AGREE * steps[0]

    def chart(self) -> Any:
        """What is left of a perturbation of the state and of one input over lag, in Altair."""
        curves = {"state": self.log2_state.tolist(), "one input": self.log2_input.tolist()}
        return charts.memory(curves, REACH, "state and input")


def compare(recurrences: Mapping[str, Memory]) -> Any:
    """The memory of several recurrences in one chart: what is left of their state over lag.

    Args:
        recurrences: what they remember, by the names to be shown.

    Returns:
        An Altair chart.

    Example:
        >>> import torch, retrograde
        >>> x, lstm = torch.randn(30, 2, 1), torch.nn.LSTM(1, 4)
        >>> before = retrograde.spectrum(lstm, x).memory
        >>> retrograde.nn.initialise(lstm, "forget-bias", value=3.0)
        >>> after = retrograde.spectrum(lstm, x).memory
        >>> chart = retrograde.spectra.compare({"torch": before, "forget bias 3": after})
    """
    _checks.mapping("recurrences", recurrences, "of names to Memory")
    for name, one in recurrences.items():
        _checks.instance("each name in recurrences", name, str, "a text")
        _checks.instance(f"recurrences[{name!r}]", one, Memory, "Memory, as of a Spectrum")
    curves = {name: one.log2_state.tolist() for name, one in recurrences.items()}
    return charts.memory(curves, REACH, "the state")


def memory_of(chain: Chain, reach: int | None) -> Memory:
    """What the gates promise and what the Jacobians do, from the last step of a chain."""
    state = chain.unrolled.x.new_empty(len(chain), chain.batch)
    read = torch.empty_like(state)
    for k, chunk, product, _ in chain.products():
        lag = len(chain) - 1 - k
        rows = product.values.transpose(0, 1).contiguous()
        by_input = chunk.pull_back(rows, k).input().transpose(0, 1)
        state[lag] = torch.log2(row_norms(product.values)) + product.exponent
        read[lag] = torch.log2(row_norms(by_input)) + product.exponent
    return Memory(time_constants(chain), _mean(state), _mean(read), reach)


@torch.no_grad()
def time_constants(chain: Chain) -> dict[str, Float[Tensor, "H"]]:
    """-1 / mean(ln f) of each unit, by the slot that the gate keeps."""
    logs: dict[str, Tensor] = {}
    every = list(leaves(chain.cell))
    for step in chain.steps():
        for leaf in every:
            activations = leaf.of(step).activations
            for gate in with_role(leaf.cell.activations, "forget"):
                if gate.name not in activations:
                    continue
                total = activations[gate.name].log().sum((0, 1))
                name = gate.keeps + leaf.suffix
                logs[name] = logs[name] + total if name in logs else total
    count = len(chain) * chain.batch
    return {name: 1 / (total / count).abs() for name, total in logs.items()}


def _mean(log2: Float[Tensor, "T B"]) -> Float[Tensor, "T"]:
    """log2 of the mean over the batch, relative to lag 0."""
    mean = torch.logsumexp(log2 * math.log(2), 1) / math.log(2)
    return torch.where(mean.isfinite(), mean - mean[0], -torch.inf)
