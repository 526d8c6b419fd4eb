"""Clipping inside back-propagation: policies that act at every step, before the gradient is formed.

A policy returns *factors* that it chooses from the whole adjoint of a step, sample by sample. As
what it does is a multiplication, every part of a gradient can be multiplied by the same factors, so
that the decompositions of a clipped gradient stay exact.

    delta_k   <-  factor * delta_k       the adjoint of the state that arrives at step k
    da_k      <-  factor * da_k          the adjoint of a gate's pre-activations, element by element
    delta_k-1 <-  A^T delta_k + factor * R^T da_k         what goes back through recurrent weights
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks


class AbstractInside:
    """What to do at every step of back-propagation; a subclass says it for one place or several.

    A place that it leaves alone (None) it leaves alone at every step; factors of 1 change nothing.

    Example:
        >>> import torch, retrograde
        >>> class Halve(retrograde.clipping.AbstractInside):
        ...     def on_state(self, delta):
        ...         return torch.full_like(delta[..., :1], 0.5)
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> inside = retrograde.nn.clip_inside(lstm, Halve())
        >>> lstm(torch.ones(5, 4, 2))[0].sum().backward()
        >>> inside.clip_rate["LSTM"]  # at every step
        1.0
    """

    @property
    def random(self) -> bool:
        """Whether it draws, so that two passes are not clipped alike."""
        return False

    def on_state(self, delta: Float[Tensor, "B S"]) -> Float[Tensor, "B 1"] | None:
        """The factor of each sample's adjoint of the state; None to leave it alone."""
        return None

    def on_pre_activation(self, da: Float[Tensor, "B G H"]) -> Float[Tensor, "B G H"] | None:
        """The factors of the adjoints of some gates' pre-activations; None to leave them alone."""
        return None

    def on_recurrent(self, like: Float[Tensor, "B S"]) -> Float[Tensor, "B 1"] | None:
        """The factor of all that goes back through recurrent weights; None to leave it alone."""
        return None


@dataclass(frozen=True)
class PreActivationValue(AbstractInside):
    """Bring every element of the pre-activations' adjoints into [-max_value, max_value].

        da_k = max(-max_value, min(max_value, da_k))        at every step, for every gate

    What goes on to the step before is computed from the clipped da_k, except along the carousel,
    which passes no pre-activation. Unlike clipping at the end it can turn the gradient against
    itself: 10, -9.5 and -0.4 sum to 0.1, and clipped at 1 to -0.4.

    Args:
        max_value: the threshold for the elements' sizes. It is one for each sample's part of the
            loss: where the loss is a mean over the batch, adjoints are B times smaller than in a
            sum.

    Raises:
        ArgumentError: unless the threshold is positive.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> policy = retrograde.clipping.PreActivationValue(1e-3)
        >>> inside = retrograde.nn.clip_inside(lstm, policy)
        >>> lstm(torch.ones(5, 4, 2))[0].sum().backward()
        >>> bool(lstm.bias_ih_l0.grad.abs().max() < 1.001 * 5 * 4 * 1e-3)  # a sum over T and B
        True

    References:
        Alex Graves, "Generating Sequences With Recurrent Neural Networks" (2013), arXiv 1308.0850:
        the derivatives with respect to the inputs of the LSTM layers, before the activation
        functions.
    """

    max_value: float

    def __post_init__(self) -> None:
        _checks.fields(self, max_value=_checks.positive)

    def on_pre_activation(self, da: Float[Tensor, "B G H"]) -> Float[Tensor, "B G H"]:
        size = da.abs()
        return torch.where(size > self.max_value, self.max_value / size, 1.0)


@dataclass(frozen=True)
class StateNorm(AbstractInside):
    """Scale the adjoint of the state at every step, so that its norm is at most a threshold.

        delta_k *= min(1, max_norm / |delta_k|)        for each sample and each layer

    The state is all of it, (h, c) in an LSTM, so that the carousel is held as well. Each step keeps
    its direction; their sum need not.

    Args:
        max_norm: the threshold for the L2 norm, of each sample's part of the loss: where the loss
            is a mean over the batch, adjoints are B times smaller than in a sum.

    Raises:
        ArgumentError: unless the threshold is positive.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> inside = retrograde.nn.clip_inside(lstm, retrograde.clipping.StateNorm(1e-3))
        >>> lstm(torch.ones(5, 4, 2))[0].sum().backward()
        >>> inside.clip_rate["LSTM"]  # at every step and for every sample
        1.0
    """

    max_norm: float

    def __post_init__(self) -> None:
        _checks.fields(self, max_norm=_checks.positive)

    def on_state(self, delta: Float[Tensor, "B S"]) -> Float[Tensor, "B 1"]:
        # in float64, as squares of what a smaller type holds can be out of its range
        norm = torch.linalg.vector_norm(delta, dim=-1, keepdim=True, dtype=torch.float64)
        return torch.where(norm > self.max_norm, self.max_norm / norm, 1.0).to(delta.dtype)


@dataclass(frozen=True)
class HDetach(AbstractInside):
    """Detach h from time to time: at a step, with a probability, nothing goes back through it.

        delta_{k-1} = A^T delta_k + xi_k R^T da_k        xi_k = 0 with the probability, else 1

    A holds the routes that cross no recurrent weights (the carousel, and peepholes), R those that
    do. One draw for each step and layer, the same for the whole batch, from torch's generator. The
    gradient of the recurrent weights themselves is kept.

    Args:
        probability: of detaching at a step. 1 is the truncated backward pass of 1997.

    Raises:
        ArgumentError: for a probability outside (0, 1].

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> inside = retrograde.nn.clip_inside(lstm, retrograde.clipping.HDetach(1.0))
        >>> h0, c0 = (torch.zeros(1, 4, 3, requires_grad=True) for _ in range(2))
        >>> lstm(torch.ones(5, 4, 2), (h0, c0))[0].sum().backward()
        >>> bool(h0.grad.any()), bool(c0.grad.any())  # the carousel carries all of it
        (False, True)

    References:
        Devansh Arpit, Bhargav Kanuparthi et al., "h-detach: Modifying the LSTM Gradient Towards
        Better Optimization", ICLR (2019), arXiv 1810.03023.
    """

    probability: float

    def __post_init__(self) -> None:
        _checks.fields(self, probability=_probability)

    @property
    def random(self) -> bool:
        return True

    def on_recurrent(self, like: Float[Tensor, "B S"]) -> Float[Tensor, "B 1"]:
        kept = float(torch.rand(()) >= self.probability)
        return torch.full_like(like[:, :1], kept)


@dataclass(frozen=True)
class ChainInside(AbstractInside):
    """Several policies inside back-propagation, one after the other; `chain(...)` makes it.

    Args:
        policies: in the order in which they act on the same place.

    Example:
        >>> import retrograde
        >>> clipping = retrograde.clipping
        >>> policy = clipping.chain(clipping.HDetach(0.25), clipping.StateNorm(1.0))
        >>> [type(each).__name__ for each in policy.policies]
        ['HDetach', 'StateNorm']
    """

    policies: tuple[AbstractInside, ...]

    def __post_init__(self) -> None:
        _checks.tuple_of(
            "policies", self.policies, AbstractInside, "policies that act inside back-propagation"
        )

    @property
    def random(self) -> bool:
        return any(policy.random for policy in self.policies)

    def on_state(self, delta: Float[Tensor, "B S"]) -> Float[Tensor, "B 1"] | None:
        return _product(delta, [policy.on_state for policy in self.policies])

    def on_pre_activation(self, da: Float[Tensor, "B G H"]) -> Float[Tensor, "B G H"] | None:
        return _product(da, [policy.on_pre_activation for policy in self.policies])

    def on_recurrent(self, like: Float[Tensor, "B S"]) -> Float[Tensor, "B 1"] | None:
        return _product(like, [policy.on_recurrent for policy in self.policies])


def _product(
    adjoint: Tensor, policies: Sequence[Callable[[Tensor], Tensor | None]]
) -> Tensor | None:
    """What several policies make of an adjoint, each of what the one before left."""
    product: Tensor | None = None
    for policy in policies:
        factor = policy(adjoint if product is None else adjoint * product)
        if factor is not None:
            product = factor if product is None else product * factor
    return product


def _probability(name: str, value: object) -> float:
    return _checks.number(name, value, lambda real: 0 < real <= 1, "above 0 and at most 1")
