"""The part of dL/ds_t that a better readout of the present state would not remove.

    left_t = delta_t - A [h_t, 1]      A by least squares over all samples, loss steps and batches

In a fresh network most of delta_t = dL/ds_t follows from the state itself: an output that is too
large or has the wrong mean. It says nothing of the past, and only adds noise. Nothing is left of a
loss that is linear in the outputs, which asks the same of every sample, nor of one that is
quadratic in them and has no targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde.decomposition import Flow
from retrograde.truncation.signal import Gather, one_process

ROWS_FOR_EACH = 10
"""With fewer rows for each unit of the output a regression would explain noise, too; the mean alone
is taken out then."""

REFINED = 3
"""How often the normal equations are solved, each time for what the solutions before left."""

ROUNDING = 16
"""What is left counts as rounding where its norm is at most this many rounding errors of that of
dL/ds_t."""


@dataclass(frozen=True, eq=False)
class Readout:
    """The linear readout of a layer's output that explains most of dL/ds_t.

    Attributes:
        weight: A without its last column; none where there are too few rows to fit it.
        bias: its last column.
        rounding: the relative size up to which what is left is rounding.
    """

    weight: Float[Tensor, "D S"]
    bias: Float[Tensor, "S"]
    rounding: float

    @staticmethod
    def fitted(
        flows: Sequence[Flow],
        mean_only: bool = False,
        answers: Gather = one_process,
    ) -> "Readout":
        """By least squares over a layer's passes in several batches.

        Args:
            flows: the passes.
            mean_only: fit the bias alone.
            answers: gathers what all processes answer, each with its own flows.
        """
        x, y = (
            torch.cat([each[loss_steps(flow)].double().flatten(0, 1).cpu() for flow, each in pairs])
            for pairs in (
                [(flow, flow.unrolled.output) for flow in flows],
                [(flow, flow.entries.direct) for flow in flows],
            )
        )
        eps = [torch.finfo(flow.entries.direct.dtype).eps for flow in flows]
        counts = answers(lambda: (len(x), max(eps)))
        rows, recorded = sum(count for count, _ in counts), max(each for _, each in counts)
        if mean_only or rows < ROWS_FOR_EACH * (x.shape[1] + 1):
            x = x[:, :0]
        x = torch.cat((x, x.new_ones(len(x), 1)), 1)
        gram = sum(answers(partial(torch.matmul, x.T, x)))
        found = x.new_zeros(x.shape[1], y.shape[1])
        for _ in range(REFINED):  # the normal equations alone are good to half of the digits
            left = sum(answers(partial(torch.matmul, x.T, y - x @ found)))
            found = found + torch.linalg.lstsq(gram, left, driver="gelsd").solution
        device = flows[0].entries.direct.device
        rounding = ROUNDING * (recorded + rows**0.5 * torch.finfo(torch.float64).eps)
        return Readout(found[:-1].to(device), found[-1].to(device), rounding)

    def left(
        self,
        output: Float[Tensor, "T B H"],
        direct: Float[Tensor, "T B S"],
        steps: Bool[Tensor, "T"],
    ) -> Float[Tensor, "T B S"]:
        """What it does not explain of dL/ds_t at the loss steps; 0 where that is rounding alone.

        Args:
            output: h_t.
            direct: dL/ds_t.
            steps: the loss steps.
        """
        x, y = output[steps].double(), direct[steps].double()
        found = y - (x[..., : len(self.weight)] @ self.weight + self.bias)
        small = torch.linalg.vector_norm(found) <= self.rounding * torch.linalg.vector_norm(y)
        left = torch.zeros_like(direct)
        if not small:
            left[steps] = found.to(direct.dtype)
        return left

    def left_of(self, flow: Flow) -> Float[Tensor, "T B S"]:
        """What it does not explain of a pass."""
        return self.left(flow.unrolled.output, flow.entries.direct, loss_steps(flow))


def same_for_all(flows: Sequence[Flow]) -> bool:
    """Whether dL/ds_t is the same at every loss step of every sample, up to rounding."""
    mean = Readout.fitted(flows, mean_only=True)
    return not any(bool(mean.left_of(flow).any()) for flow in flows)


def loss_steps(flow: Flow) -> Bool[Tensor, "T"]:
    """The steps at which the loss enters."""
    return flow.entries.direct.flatten(1).any(1)
