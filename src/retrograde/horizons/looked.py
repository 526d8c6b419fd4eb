"""The batches of one process, looked at one by one, and what it tells other processes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrograde.decomposition import Flow
from retrograde.decomposition.by_phase import by_phase
from retrograde.decomposition.from_recording import unasked
from retrograde.diagnosis.copies import copied_model
from retrograde.diagnosis.run import LossFunction, run
from retrograde.errors import ArgumentError
from retrograde.horizons.feedback import count_calls, fed_back
from retrograde.horizons.seen import Seen, look
from retrograde.horizons.separable import is_sum_over_steps
from retrograde.horizons.shorter import Cut, Shorter, shortened
from retrograde.horizons.used import PASTS, losses_without_the_past, why_not_replaced
from retrograde.truncation.measures import Measures


@dataclass(frozen=True, eq=False)
class Told:
    """What a process tells the others of a batch.

    Attributes:
        of: the K of the curves.
        curves: the measures, by name.
        steps, samples, lags, layers: the length of the longest layer, the size of the batch, the
            bins, and the names of the layers.
        reach, sensitivity, notes: as in `Seen`.
        losses: with all older than K steps replaced; none where that is not known.
    """

    of: tuple[int, ...]
    curves: Mapping[str, Measures]
    steps: int
    samples: int
    lags: tuple[range, ...]
    layers: tuple[str, ...]
    reach: int
    sensitivity: Float[Tensor, "M"]
    notes: tuple[str, ...]
    losses: list[float]


class Looked:
    """The batches of one process, as they are looked at.

    Attributes:
        every: what each pass says.
        kept: each batch, and the seed of its pass.
        losses: of each, with all older than K steps replaced; none where that is not known.
        shorter: for kind="window", the passes over shorter inputs.
        left_out: batches of another size than the first.
        equal: batches equal to an earlier one.
        unknown: why what is used and learnable is not known; "" where it is.
        back: layers whose outputs come back through their input.
        one_by_one: whether the loss is a sum over steps; None where that is not known.
        alone: whether there is no other recurrent layer in the model.
    """

    def __init__(self) -> None:
        self.every: list[Seen] = []
        self.kept: list[tuple[Any, int]] = []
        self.losses: list[list[float]] = []
        self.shorter: list[Shorter] = []
        self.left_out, self.equal, self.unknown = 0, 0, ""
        self.back: list[str] = []
        self.one_by_one: bool | None = None
        self.alone = True

    def take(
        self,
        model: nn.Module,
        batch: Any,
        loss_fn: LossFunction,
        seed: int,
        kind: str,
        layer: str | None,
        past: str,
        cut: Cut | None,
    ) -> None:
        """Look at a batch."""
        copy = copied_model(model)
        calls = count_calls(copy)
        recording = run(copy, batch, loss_fn, seed).recording
        seen = look(recording, layer, kind)
        if self.every and seen.samples != self.every[0].samples:
            self.left_out += 1
            return
        if any(_same(seen, other) for other in self.every):
            self.equal += 1
            return
        self.every.append(seen)
        self.kept.append((batch, seed))
        alike(self.every[0], seen, len(self.every))
        if len(self.every) == 1:
            repeated = {name: one for name, one in seen.layers.items() if calls[name] > 1}
            self.back = fed_back(model, batch, loss_fn, seed, repeated)
            if kind == "chunks":
                lengths = {name: len(recorded.x) for name, recorded in recording.items()}
                self.one_by_one = is_sum_over_steps(model, batch, loss_fn, seed, lengths)
                if self.one_by_one is False:
                    raise ArgumentError(NO_SUM)
        if kind == "window":
            self.shorter.append(shortened(model, batch, loss_fn, seed, recording, seen.layers, cut))
            _cut_like_the_first(self.shorter)
        losses: list[float] = []
        self.alone = len({*recording, *recording.refused}) == 1
        if len(seen.layers) > 1:
            self.unknown = SEVERAL_LAYERS
        elif self.back:
            self.unknown = ITS_OWN_INPUT
        if not self.unknown:
            flow = self.flows[-1]
            self.unknown = why_not_replaced(model, batch, loss_fn, seed, flow)
        if not self.unknown and (past != PASTS[0] or seen.samples > 1):
            counts = replaced(seen.lags)
            losses = losses_without_the_past(model, batch, loss_fn, seed, flow, counts, past)
        self.losses.append(losses)

    @property
    def flows(self) -> list[Flow]:
        """The passes of all layers."""
        return [unasked(one) for seen in self.every for one in seen.layers.values()]

    def by_phase(self) -> dict[int, tuple[float, ...]]:
        """The bias of single phases, of the first batch."""
        flow = self.flows[0]
        return by_phase(flow.gradient, flow.steps, flow.in_chunks)

    def told(self) -> list[Told]:
        """What other processes are told."""
        steps = tuple(range(1, self.every[0].steps + 1))
        return [
            Told(
                self.shorter[0].steps if self.shorter else steps,
                self.shorter[number].measures if self.shorter else seen.measures,
                seen.steps,
                seen.samples,
                seen.lags,
                tuple(seen.layers),
                seen.reach,
                seen.sensitivity,
                seen.notes,
                losses,
            )
            for number, (seen, losses) in enumerate(zip(self.every, self.losses, strict=True))
        ]


SEVERAL_LAYERS = "there are several recurrent layers; name one, layer="

ITS_OWN_INPUT = "its outputs come back through its own input"

NO_SUM = (
    'kind="chunks" needs a loss that is a sum over steps; what this one gives to the output at one '
    "step depends on the outputs at others, as with attention, pooling, a product or a norm over "
    'time, so that it cannot be computed chunk by chunk. Use kind="sliding"'
)


def _same(one: Seen, other: Seen) -> bool:
    """Whether the layers read the same, and the loss asks the same of them."""
    return one.layers.keys() == other.layers.keys() and all(
        torch.equal(getattr(mine, what), getattr(other.layers[name], what))
        for name, mine in one.layers.items()
        for what in ("x", "initial", "direct")
    )


def replaced(lags: Sequence[range]) -> tuple[int, ...]:
    """The K at which all older is replaced: from the first lag of each bin on."""
    return (*(each.start for each in lags), lags[-1].stop)


def _cut_like_the_first(shorter: Sequence[Shorter]) -> None:
    """Refuse a batch whose loss enters at other steps than that of the first.

    Raises:
        ArgumentError: with the steps.
    """
    first, last = shorter[0].further, shorter[-1].further
    if first != last:
        raise ArgumentError(
            f"in batch 1 the loss enters from {first} steps before the last one on, in batch "
            f"{len(shorter)} from {last}. Give batches that are alike"
        )


def alike(first: Seen | Told, other: Seen | Told, number: int) -> None:
    """Refuse a batch whose gradient cannot be compared with that of the first.

    Args:
        first: what is said of the first batch.
        other: of another one.
        number: which one, from 1.

    Raises:
        ArgumentError: with what differs.
    """
    for what, one, of_other in (
        ("numbers of steps", first.steps, other.steps),
        ("layers", ", ".join(first.layers), ", ".join(other.layers)),
    ):
        if one != of_other:
            raise ArgumentError(
                f"batches 1 and {number} have different {what}: {one} and {of_other}. "
                "Give batches that are alike"
            )
