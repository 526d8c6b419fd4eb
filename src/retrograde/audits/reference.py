"""The reference: the step function of a layer over a call, differentiated by autograd.

Nothing of the engine has a part in it, and nothing of the implementation but its weights.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde.audits.rounded import Rounded
from retrograde.declarations.reading import OF_PIECE, OUTPUT
from retrograde.recording.calls import Call, is_output

OUTPUTS, STATE, X, INITIAL = "its outputs", "its last state", "dL/dx", "dL/d initial state"
"""What is compared beside the gradients of parameters."""


@dataclass(frozen=True, eq=False)
class Pass:
    """What a forward and a backward pass give, in one layout.

    Attributes:
        values: by what they are; those of every step are [T, B, *].
        gradients: of the parameters by name, of x [T, B, I], of the initial state [B, S].
    """

    values: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]

    @property
    def every(self) -> tuple[str, ...]:
        """What there is, values first."""
        return (*self.values, *self.gradients)

    def of(self, what: str) -> Tensor:
        """One of them."""
        return self.values[what] if what in self.values else self.gradients[what]


def reference(
    call: Call,
    names: Mapping[str, str],
    adjoints: Mapping[str, Tensor],
    rounded: Rounded | None = None,
) -> Pass:
    """The pass of the step function.

    Args:
        call: the call, in float64.
        names: the module's name of each parameter of its cells.
        adjoints: what the loss gives to each result, in the layout of the result.
        rounded: the arithmetic, if it is not that of float64.
    """

    def read(values: Tensor) -> Tensor:
        values = values if rounded is None else rounded.round(values)
        return values.detach().requires_grad_()

    weights = [{name: read(w) for name, w in cell.parameters.items()} for cell in call.cells]
    whole, lengths = call.sequence(call.x)
    whole = torch.where(inside(call, whole), whole, 0)  # what lies behind an end is not read
    x, initial = read(whole), read(call.state(call.given))
    with torch.enable_grad(), rounded or nullcontext():
        outputs, states, last = _run(call, weights, x, initial, lengths)
        loss = (call.state({n: a for n, a in adjoints.items() if not is_output(n)}) * last).sum()
        for name in filter(is_output, adjoints):
            given = call.outputs(adjoints[name])
            of_piece = outputs
            if name != OUTPUT:
                of_piece = states[..., call.cells[0].slots[name.removeprefix(OF_PIECE)]]
            loss = loss + (given * of_piece * inside(call, given)).sum()
        flat = [w for of_cell in weights for w in of_cell.values()]
        found = torch.autograd.grad(loss, [x, initial, *flat], materialize_grads=True)
    gradients = {X: found[0], INITIAL: found[1]}
    suffixed = [
        name + suffix
        for of_cell, suffix in zip(weights, call.form.suffixes, strict=True)
        for name in of_cell
    ]
    gradients |= {names[n]: g for n, g in zip(suffixed, found[2:], strict=True)}
    values = {STATE: last.detach()}
    if OUTPUT in call.sequences:
        values[OUTPUTS] = outputs.detach()
    return Pass(values, gradients)


def inside(call: Call, values: Float[Tensor, "T B _"]) -> Bool[Tensor, "T B 1"]:
    """Where the steps of each sample are, by its length."""
    lengths = call.sequence(call.x)[1]
    if lengths is None:
        return torch.ones_like(values[..., :1], dtype=torch.bool)
    steps = torch.arange(len(values), device=values.device).unsqueeze(1)
    return (steps < lengths).unsqueeze(-1)


def _run(
    call: Call,
    weights: list[dict[str, Tensor]],
    x: Float[Tensor, "T B I"],
    initial: Float[Tensor, "B S"],
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the states of the first cell, and the last state of all layers and directions."""
    steps, batch = x.shape[:2]
    ends = torch.full((batch,), steps, device=x.device) if lengths is None else lengths
    directions, start = call.form.directions, 0
    lasts, states = [], []
    for number in range(0, len(call.cells), directions):
        outputs = []
        for direction in range(directions):
            cell = call.cells[number + direction].with_parameters(weights[number + direction])
            state, found = initial[:, start : start + cell.state_size], [x.new_zeros(0)] * steps
            start += cell.state_size
            for k in reversed(range(steps)) if direction else range(steps):
                there = (k < ends).unsqueeze(1)
                state = torch.where(there, cell.step(x[k], state).state, state)
                found[k] = state
            lasts.append(state)
            states.append(torch.stack(found))
            outputs.append(states[-1][..., cell.output])
        x = torch.cat(outputs, -1)
    return x, states[0], torch.cat(lasts, -1)
