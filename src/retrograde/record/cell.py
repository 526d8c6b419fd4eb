"""Recording a bare cell, also one that torch does not have."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde.cells import AbstractCell
from retrograde.cells.base import is_cell
from retrograde.errors import ArgumentError
from retrograde.record.recording import Recorded


def record_cell(
    cell: AbstractCell,
    x: Float[Tensor, "..."],
    loss: Callable[[Float[Tensor, "T B H"], Float[Tensor, "B S"]], Tensor],
    initial: Float[Tensor, "..."] | None = None,
    name: str = "cell",
) -> Recorded:
    """Record a bare cell: run it over x, and let autograd differentiate the loss.

    Args:
        cell: any cell, also one that torch.nn does not have.
        x: inputs, shape [T, B, I].
        loss: maps (outputs [T, B, H], last state [B, S]) to a scalar.
        initial: the initial state, shape [B, S]; zeros if None.
        name: what to call it in messages and reports.

    Raises:
        ArgumentError: for an input or a state that does not fit the cell, or a loss that is not a
            scalar tensor with a gradient.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.cells import Elman
        >>> linear = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> recorded = retrograde.record_cell(linear, torch.ones(3, 1, 1), lambda h, s: s.sum())
        >>> retrograde.decompose(recorded).by_time("weight_ih").norm
        tensor([[0.2500, 0.5000, 1.0000]], dtype=torch.float64)
    """
    dtype = next(iter(is_cell(cell).parameters.values())).dtype
    _checks.tensor("x", x, ["T", "B", cell.input_size], dtype)
    if not x.numel():
        raise ArgumentError(f"x must hold a step and a sample; got shape {list(x.shape)}")
    _checks.function("loss", loss, "(outputs, last state) -> loss")
    _checks.instance("name", name, str, "a text")
    if initial is None:
        initial = x.new_zeros(x.shape[1], cell.state_size)
    _checks.tensor("initial", initial, [x.shape[1], cell.state_size], dtype)
    with torch.enable_grad():
        weights = {n: w.detach().clone().requires_grad_() for n, w in cell.parameters.items()}
        live = cell.with_parameters(weights)
        state, hidden = initial, []
        for x_k in x:
            state = live.step(x_k, state).state
            hidden.append(state[:, cell.output])
        output = torch.stack(hidden)
        # The loss sees leaves, so that what it gives to each h_t is known without what comes later.
        leaf_output = output.detach().requires_grad_()
        leaf_state = state.detach().requires_grad_()
        value = _checks.loss(
            "loss(outputs, last state)", loss(leaf_output, leaf_state), "its arguments"
        )
        direct = torch.autograd.grad(value, (leaf_output, leaf_state), materialize_grads=True)
        grads = torch.autograd.grad(
            (output, state), list(weights.values()), direct, materialize_grads=True
        )
    entering = torch.zeros(len(x), *state.shape, dtype=x.dtype, device=x.device)
    entering[..., cell.output] = direct[0]
    entering[-1] += direct[1]
    gradients = dict(zip(weights, grads, strict=True))
    return Recorded(name, cell, x.detach(), initial.detach(), entering, gradients)
