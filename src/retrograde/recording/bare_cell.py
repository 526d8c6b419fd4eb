"""Record a bare cell: it is run here, and autograd differentiates the loss."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrograde import _checks
from retrograde.cells import AbstractCell
from retrograde.cells.base import is_cell
from retrograde.errors import ArgumentError
from retrograde.recording.recorded import Recorded

OWN_STEP = (
    "the residual compares with autograd's gradient of the cell's own step, but cannot tell "
    "whether that step does what a module of yours does: record_cell(..., gradients=module) can"
)


def record_cell(
    cell: AbstractCell,
    x: Float[Tensor, "..."],
    loss: Callable[[Float[Tensor, "T B H"], Float[Tensor, "B S"]], Tensor],
    initial: Float[Tensor, "..."] | None = None,
    name: str = "cell",
    gradients: Mapping[str, Tensor] | nn.Module | None = None,
) -> Recorded:
    """Record a bare cell: run it over x, and let autograd differentiate the loss.

    Args:
        cell: any cell, also one that torch.nn does not have.
        x: inputs, shape [T, B, I].
        loss: maps (outputs [T, B, H], last state [B, S]) to a scalar.
        initial: the initial state, shape [B, S]; zeros if None.
        name: what to call it in messages and reports.
        gradients: what the residual compares with. By default autograd's gradient of the cell's own
            step, which shows that its pull-back is right and no more. Where the cell stands for a
            module of yours: that module after its backward pass with the same weights, inputs and
            loss, or its gradients by the names of the cell's parameters. The residual then shows
            whether the cell does what the module does.

    Raises:
        ArgumentError: for an input or a state that does not fit the cell, a loss that is not a
            scalar tensor with a gradient, or gradients that are not there, of another shape, or of
            parameters that the cell does not have.

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
    _checks.function("loss", loss, "(outputs, last state) -> loss", takes=2)
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
        entering_grads = torch.autograd.grad(
            value, (leaf_output, leaf_state), materialize_grads=True
        )
        direct = [g.detach() for g in entering_grads]  # torch 2.6 lets the zeros require grad
        grads = torch.autograd.grad(
            (output, state), list(weights.values()), direct, materialize_grads=True
        )
    entering = torch.zeros(len(x), *state.shape, dtype=x.dtype, device=x.device)
    entering[..., cell.output] = direct[0]
    entering[-1] += direct[1]
    own = dict(zip(weights, grads, strict=True))
    copied = {n: w.detach() for n, w in weights.items()}
    return Recorded(
        name,
        cell.with_parameters(copied),
        x.detach(),
        initial.detach(),
        entering,
        own if gradients is None else _given(gradients, cell),
        notes=(OWN_STEP,) if gradients is None else (),
        final=state.detach(),
        against="autograd's gradient of the cell's own step"
        if gradients is None
        else "the gradients that were given",
    )


def _given(gradients: object, cell: AbstractCell) -> dict[str, Tensor]:
    """The gradients of a module, or by name, as those of the cell's parameters.

    Raises:
        ArgumentError: if they are not.
    """
    names = ", ".join(cell.parameters)
    if isinstance(gradients, nn.Module):
        given = {n: p.grad for n, p in gradients.named_parameters() if n in cell.parameters}
    elif isinstance(gradients, Mapping):
        given = dict(gradients)
        if unknown := [name for name in given if name not in cell.parameters]:
            raise ArgumentError(
                f"gradients holds {', '.join(map(repr, unknown))}; the cell's parameters are "
                + names
            )
    else:
        raise ArgumentError(
            "gradients must be a module after its backward pass, or a mapping from the names of "
            f"the cell's parameters ({names}) to tensors; got {type(gradients).__name__}"
        )
    found: dict[str, Tensor] = {}
    for name, weight in cell.parameters.items():
        gradient = given.get(name)
        if not isinstance(gradient, Tensor):
            raise ArgumentError(
                f"gradients has none of {name!r}: call backward() on the module first, and name "
                f"its parameters as the cell does ({names})"
            )
        if gradient.shape != weight.shape or not gradient.is_floating_point():
            raise ArgumentError(
                f"the gradient of {name!r} must be floating-point numbers of shape "
                f"{tuple(weight.shape)}; got {gradient.dtype} of {tuple(gradient.shape)}"
            )
        found[name] = gradient.detach().clone()
    return found
