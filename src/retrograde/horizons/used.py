"""What a model uses, asked of its forward pass: the loss when all older than K steps is replaced.

    s_t(K) = the state at t after the last K inputs, from another past's state at t - K

For every t at once, as samples of one pass of K steps. The layer's output is replaced by what these
states give, and the rest of the model computes its loss from it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrograde.cells.precision import no_autocast
from retrograde.decomposition import Flow
from retrograde.diagnosis.copies import copied, copied_model, seeded
from retrograde.diagnosis.run import LossFunction
from retrograde.engine import Unrolled, unroll
from retrograde.recording import Recorded, recurrent_layers

PASTS = ("another sample", "mean", "zeros")
"""What the past can be replaced by."""

AGREES = 1e-3
"""The output put together from states agrees with the layer's own to this part of it."""


def losses_without_the_past(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    flow: Flow,
    steps: Sequence[int],
    past: str,
) -> list[float] | str:
    """The loss with all older than K steps replaced, for each K; or why it is not known.

    Args:
        model: the user's model; copies are run.
        batch: the batch that was recorded.
        loss_fn: maps (model, batch) to the loss.
        seed: of what is random in the pass.
        flow: the recorded pass of the layer.
        steps: the K; with T and more nothing is replaced.
        past: one of `PASTS`.
    """
    recorded, unrolled = flow.recorded, flow.unrolled
    if recorded.boundaries or recorded.lengths is not None:
        return "states are reset, or samples end before others"
    if past == "another sample" and recorded.x.shape[1] < 2:
        return "there is no other sample in the batch"
    layer = recurrent_layers(model).get(recorded.name)
    if layer is None or not _one_way(recorded):
        return "the layer reads the sequence both ways"
    before = _pasts(recorded, unrolled, past)
    found = []
    for count in (len(unrolled), *steps):
        replaced = windowed(unrolled, before, count)
        output = _Output(recorded, replaced, check=count == len(unrolled))
        copy = copied_model(model)
        hook = recurrent_layers(copy)[recorded.name].register_forward_hook(output)
        try:
            with seeded(seed), torch.no_grad():
                loss = loss_fn(copy, copied(batch))
        finally:
            hook.remove()
        if output.refused or output.calls != 1:
            return "its output does not follow from its states alone"
        found.append(float(loss))
    return found[1:]


@torch.no_grad()
def windowed(
    unrolled: Unrolled, before: Float[Tensor, "T1 B S"], count: int
) -> Float[Tensor, "T1 B S"]:
    """The states when each looks back over `count` steps, from the states of another past.

    Args:
        unrolled: the pass.
        before: the states that the windows start from, the initial one first.
        count: K; with 0 the states themselves are those of the other past.
    """
    states = unrolled.states.clone()
    if count >= len(unrolled):
        return states
    moving = before[1 : len(unrolled) - count + 1]
    with no_autocast(moving.device):
        for at in range(count):
            moving = unrolled.cell.step(unrolled.x[1 + at : 1 + at + len(moving)], moving).state
    states[count + 1 :] = moving
    return states


def _pasts(recorded: Recorded, unrolled: Unrolled, past: str) -> Float[Tensor, "T1 B S"]:
    """The states of the other past, at every step."""
    if past == "another sample":
        return unrolled.states.roll(recorded.x.shape[1] // 2, 1)
    x, width = unrolled.x.clone(), recorded.x.shape[2]
    read = x[..., :width]  # what follows are masks
    x[..., :width] = 0 if past == "zeros" else read.mean((0, 1))
    return unroll(unrolled.cell, x, recorded.initial).states


def _one_way(recorded: Recorded) -> bool:
    return not any("reverse" in name for name in recorded.cell.slots)


class _Output:
    """A forward hook that returns other outputs and states in the form of the layer's own."""

    def __init__(self, recorded: Recorded, states: Float[Tensor, "T1 B S"], check: bool):
        self._recorded, self._states, self._check = recorded, states, check
        self.refused, self.calls = False, 0

    def __call__(self, module: nn.Module, inputs: Any, result: Any) -> Any:
        self.calls += 1
        made = self._made(result)
        if made is None or (self._check and not _agree(made, result)):
            self.refused = True
            return None
        return made

    def _made(self, result: Any) -> Any:
        """The output, and the last states of the layers, in the shapes of what was returned."""
        output = self._states[1:, :, self._recorded.cell.output]
        if isinstance(result, Tensor):
            return _in_form(output, result)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
            return None
        last = {
            letter: torch.stack([self._states[-1][:, slot] for slot in slots])
            for letter in "hc"
            if (slots := [s for n, s in self._recorded.cell.slots.items() if n[0] == letter])
        }
        first = _in_form(output, result[0])
        if isinstance(result[1], Tensor):
            second: Any = _in_form(last.get("h"), result[1])
        elif isinstance(result[1], tuple) and len(result[1]) == 2 and "c" in last:
            second = tuple(_in_form(last[n], r) for n, r in zip("hc", result[1], strict=True))
            second = None if any(each is None for each in second) else second
        else:
            second = None
        return None if first is None or second is None else (first, second)


def _in_form(values: Tensor | None, like: Tensor) -> Tensor | None:
    """Values in the shape of another tensor: its batch first, or without one."""
    if values is None:
        return None
    for form in (values, values.transpose(0, 1), values.squeeze(1)):
        if form.shape == like.shape:
            return form.to(like)
    return None


def _agree(made: Any, result: Any) -> bool:
    if isinstance(made, Tensor):
        off = torch.linalg.vector_norm(made - result)
        return bool(off <= AGREES * torch.linalg.vector_norm(result))
    return all(_agree(a, b) for a, b in zip(made, result, strict=True))
