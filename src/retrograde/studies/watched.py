"""A network that is trained with torch, and what the monitor sees of it meanwhile."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.cells.gates import with_role
from retrograde.errors import NonFiniteError
from retrograde.monitor import Monitor
from retrograde.monitor.history import FORGOTTEN
from retrograde.nn import AbstractRecurrent

LAYER = "recurrent"
"""The name of the recurrence in its network, and in the monitor's scalars."""

FIGURES = (
    *("updates", "loss", "reach", "horizon", "needed", "carousel"),
    *("crossings", "time_constants"),
)
"""What is kept of each look, where the network has it; `Inside.figures` says what each is."""


class Network(nn.Module):
    """A recurrence, and a linear layer that reads its output.

    Args:
        recurrent: the recurrence.
        outputs: number of answers.
        every_step: whether it answers at every step, and not at the last one alone.
    """

    def __init__(self, recurrent: AbstractRecurrent, outputs: int, every_step: bool = False):
        super().__init__()
        self.recurrent = recurrent
        self.readout = nn.Linear(recurrent.hidden_size, outputs)
        self.every_step = every_step

    def forward(self, x: Tensor, recorded: bool = False) -> Tensor:
        # With activations the package's own pass runs, which in these sizes is faster than torch's.
        fast = torch.is_grad_enabled() and not recorded
        output = self.recurrent(x, return_activations=fast)[0]
        answers: Tensor = self.readout(output if self.every_step else output[-1])
        return answers


class Inside:
    """What `retrograde.Monitor` sees of a network at some updates of its training.

    Args:
        model: the network.
        lag: one that matters; adds the figure `needed`.
        samples, entries: how much of a pass is looked at, as the monitor takes it.

    Attributes:
        monitor: the monitor.
        looks: the names and numbers of each.
    """

    def __init__(
        self,
        model: Network,
        lag: int | None = None,
        samples: int | None = None,
        entries: int | None = None,
    ):
        self.model = model
        self.monitor = Monitor(model, every=1, samples=samples, entries=entries, needs_lag=lag)
        self.looks: list[dict[str, Any]] = []

    @property
    def figures(self) -> dict[str, list[Any]]:
        """A list for each quantity that the network has, with a number, or None, for each look.

        updates: number of updates before the look. loss: of the sequences looked at. reach,
        needed and carousel: the monitor's scalars `reach`, `needed` and `share_carousel`.
        horizon: the lag at which 1 % of the adjoint would be left by the monitor's `rate`; None
        where it does not shrink. crossings: the share of paths that cross no recurrent weights,
        and that of all others. time_constants: the median and the largest of the units',
        -1 / mean(ln f), in steps; None for one that is infinite.
        """
        names = {name for look in self.looks for name, value in look.items() if value is not None}
        return {n: [look.get(n) for look in self.looks] for n in FIGURES if n in names}

    @contextmanager
    def look(self, update: int, x: Tensor, crossings: bool = True) -> Iterator[Monitor]:
        """Around a forward and a backward pass, whose loss the monitor is to be told.

        Args:
            update: the number of updates before it.
            x: what the network reads.
            crossings: whether shares by crossing are wanted, which cost several times the rest.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a pass that cannot be looked at has no numbers
            with self.monitor:
                yield self.monitor
        self.looks.append({"updates": update} | self._seen(x, crossings))

    def _seen(self, x: Tensor, crossings: bool) -> dict[str, Any]:
        told = self.monitor.scalars
        scalars = {name.rpartition("/")[2]: value for name, value in told.items()}
        seen: dict[str, Any] = {"loss": short(scalars.get("loss", math.nan))}
        if "reach" not in scalars:
            return seen
        seen["reach"] = int(scalars["reach"])
        rate = scalars.get("rate", math.nan)
        seen["horizon"] = short(-FORGOTTEN / rate) if rate < 0 else None
        seen["needed"] = short(scalars.get("needed", math.nan))
        seen["carousel"] = short(scalars.get("share_carousel", math.nan))
        try:
            if crossings and seen["carousel"] is not None:
                parts = self.monitor.flow(LAYER).by_crossing(max_crossings=1)
                seen["crossings"] = [short(float(share)) for share in parts.sum("lag").share]
            seen["time_constants"] = self._time_constants(x)
        except NonFiniteError:
            pass
        return seen

    @torch.no_grad()
    def _time_constants(self, x: Tensor) -> list[float | None] | None:
        """The median and the largest of the units'; None without a gate that keeps the state."""
        layer = self.model.recurrent
        gates = with_role(layer.cells()[0].activations, "forget")
        inside = layer(x, return_activations=True)[2][0]
        if not gates or gates[0].name not in inside:
            return None
        found = -1 / inside[gates[0].name].double().log().mean((0, 1))
        return [short(float(found.median())), short(float(found.max()))]


def short(value: float) -> float | None:
    """Four digits; None for what is no finite number."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
