"""Whether a recording adds up to its gradient, for those who look at no more than a part of it.

The whole pass has to be gone through for that, so torch does it where it has the layer: fused, in a
fraction of the time that adjoint rows take. What torch does not confirm is looked at once more by
the recursion itself, which alone can say that it is void.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells import GRU, LSTM, AbstractCell, Elman, SideBySide, Stacked
from retrograde.decomposition.from_recording import unasked
from retrograde.decomposition.residual import Allowance, Residual, residual
from retrograde.decomposition.rounding import rounding_of
from retrograde.engine import Scaled
from retrograde.recording import Recorded

VF: Any = torch._VF
PLAIN = {"tanh": VF.rnn_tanh, "relu": VF.rnn_relu}


def check(recorded: Recorded) -> Residual:
    """The residual of the whole gradient in one row, `flow.whole_residual`.

    Raises:
        NonFiniteError: if a NaN or an infinity was recorded and torch's layer does not serve.
    """
    gradient = fused_gradient(recorded) if recorded.gradients else None
    if gradient is not None:
        rows = {name: Scaled.of(whole.unsqueeze(0)) for name, whole in gradient.items()}
        found = residual(rows, recorded.gradients, _unmeasured(recorded), recorded.against)
        if found.ok:
            return found
    return unasked(recorded, max_rows=1).whole_residual


def _unmeasured(recorded: Recorded) -> Allowance:
    nothing = dict.fromkeys(recorded.gradients, 0.0)
    steps = len(recorded.x)
    return Allowance(rounding_of(recorded), steps, {}, lambda: nothing, lambda off, sensitive: "")


def fused_gradient(recorded: Recorded) -> Mapping[str, Tensor] | None:
    """The gradient of each parameter by torch's own layers, without our recursion.

    None where they do not serve: for cells that torch does not have, where a state was not simply
    handed on or dropout acted between layers, or where the loss gives something to a cell state on
    the way, which torch's layers do not return.
    """
    if recorded.boundaries:
        return None
    weights = {n: w.detach().requires_grad_() for n, w in recorded.cell.parameters.items()}
    with torch.enable_grad():
        try:
            r = recorded
            _, given = _run(r.cell, r.inputs, r.initial, r.direct, weights)
        except _NotTorchs:
            return None
        results, gradients = zip(*given, strict=True)
        found = torch.autograd.grad(results, list(weights.values()), gradients)
    return dict(zip(weights, found, strict=True))


class _NotTorchs(Exception):
    """A cell, or something about it, that torch's layers do not have."""


def _run(
    cell: AbstractCell,
    x: Float[Tensor, "T B I"],
    initial: Float[Tensor, "B S"],
    direct: Float[Tensor, "T B S"],
    weights: Mapping[str, Tensor],
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The output of a cell, and all results of the layers inside with what the loss gives them."""
    if isinstance(cell, SideBySide) or (isinstance(cell, Stacked) and not cell.masked):
        given, start = [], 0
        for layer, end, offset in zip(cell.layers, cell.suffixes, cell.offsets, strict=True):
            part = slice(offset, offset + layer.state_size)
            own = {name: weights[name + end] for name in layer.parameters}
            reads = x
            if isinstance(cell, SideBySide):  # each reads its own part
                reads = x[..., start : start + layer.input_size]
                start += layer.input_size
            output, more = _run(layer, reads, initial[:, part], direct[..., part], own)
            given += more
            x = output if isinstance(cell, Stacked) else x
        return x, given
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    flat = [weights[name] for name in names if name in weights]
    options = (len(flat) == 4, 1, 0.0, True, False, False)
    if len(flat) != len(weights) or len(flat) == 3:
        raise _NotTorchs
    h = initial[:, cell.slots["h"]].unsqueeze(0).contiguous()
    x = x.contiguous()
    if isinstance(cell, LSTM) and cell.generation == "lstm-2000":
        at = cell.slots["c"]
        if bool(direct[:-1, :, at].any()):
            raise _NotTorchs
        state = (h, initial[:, at].unsqueeze(0).contiguous())
        output, _, last = VF.lstm(x, state, flat, *options)
        given = [(last[0], direct[-1, :, at])]
    elif isinstance(cell, GRU):
        output, given = VF.gru(x, h, flat, *options)[0], []
    elif isinstance(cell, Elman) and cell.activation in PLAIN:
        output, given = PLAIN[cell.activation](x, h, flat, *options)[0], []
    else:
        raise _NotTorchs
    return output, [(output, direct[..., cell.slots["h"]]), *given]
