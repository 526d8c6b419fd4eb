"""Two networks whose `param.grad.norm()` is the same, and whose gradients do not reach alike."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from retrograde.decomposition import Flow, decompose
from retrograde.explore.lesson import Setting, cell_of, recorded
from retrograde.recording import record


@dataclass(frozen=True)
class Trained:
    """What a training loop sees of one network, and what it does not.

    Attributes:
        norm: `weight_hh_l0.grad.norm()`, as autograd gives it.
        readout: what the output layer, and so the loss, is multiplied by.
        flow: the same pass, taken apart.
    """

    norm: float
    readout: float
    flow: Flow


def with_equal_norms(first: Setting, second: Setting) -> tuple[Trained, Trained]:
    """The passes of two torch.nn.LSTM, the second with an output layer that makes the norms equal.

    The gradient is linear in the output layer, so that |dL/dR| of the first over that of the second
    is the factor; the second pass is then run with it, and nothing is taken on trust.

    Example:
        >>> from retrograde.explore.lesson import Setting
        >>> from retrograde.explore.proof import with_equal_norms
        >>> one, two = with_equal_norms(Setting(forget_bias=5.0), Setting(forget_bias=-2.0))
        >>> abs(one.norm / two.norm - 1) < 1e-9, one.flow.reach > 5 * two.flow.reach
        (True, True)
    """
    far, near = _Loop(first), _Loop(second)
    return far.recorded(1.0), near.recorded(far.norm(1.0) / near.norm(1.0))


class _Loop:
    """torch's own LSTM with the weights, the input and the loss of a setting."""

    def __init__(self, setting: Setting):
        setting = replace(setting, generation="lstm-2000")
        cell, made = cell_of(setting), recorded(setting)
        self.x, self.given = made.x, made.direct[..., cell.output]
        self.lstm = nn.LSTM(made.x.shape[2], setting.hidden, dtype=torch.float64)
        weights = {f"{name}_l0": weight for name, weight in cell.parameters.items()}
        zeros = torch.zeros_like(weights["bias_ih_l0"])  # torch has two biases, the lesson one
        self.lstm.load_state_dict(weights | {"bias_hh_l0": zeros})

    def norm(self, readout: float) -> float:
        """`weight_hh_l0.grad.norm()` after a backward pass."""
        self.lstm.zero_grad()
        output, _ = self.lstm(self.x)
        loss: Tensor = (readout * self.given * output).sum()
        torch.autograd.backward(loss)
        grad = self.lstm.get_parameter("weight_hh_l0").grad
        assert grad is not None
        return float(grad.norm())

    def recorded(self, readout: float) -> Trained:
        """The same pass, recorded."""
        with record(self.lstm) as recording:
            norm = self.norm(readout)
        return Trained(norm, readout, decompose(recording))


def scale_of(*passes: Trained) -> tuple[float, float]:
    """A vertical scale, in powers of two, that holds the lag curves of all passes."""
    curves = [one.flow.by_time().log2_mean_by_lag for one in passes]
    sizes = torch.cat([curve[curve.isfinite()] for curve in curves])
    return float(sizes.min()) - 1, float(sizes.max()) + 1


def in_words(far: Trained, near: Trained) -> str:
    """What the norm of a gradient says of its reach, in Markdown."""
    last = far.flow.steps - 1
    return (
        f"**The norm cannot tell.** A reaches {far.flow.reach} of {last} steps, B "
        f"{near.flow.reach}. The gradient of a recurrent weight is a sum over lags, and the near "
        "ones hide the far ones. (Both are torch.nn.LSTM, with the same weights but for the forget "
        f"bias. The output layer of B is {near.readout:.3g} times that of A, the factor that makes "
        "the norms equal.)"
    )
