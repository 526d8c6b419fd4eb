"""Clipping policies: small frozen values that say what to do with the gradients of a step.

A policy is asked with a part of the gradients, and with what it remembers from the steps before;
it acts on the part and returns what it will remember. Nothing else is kept: the policy itself never
changes, so that one value can serve many models. Those here act at the end of the backward pass, on
the finished gradients; those of inside.py within it. None reads a number from the device.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn

from retrograde import _checks
from retrograde.clipping.gradients import Part
from retrograde.clipping.groups import ALL
from retrograde.clipping.inside import AbstractInside, ChainInside
from retrograde.errors import ArgumentError

Memory = dict[str, Any] | None
"""What a policy remembers: tensors, integers and more of the same; None before the first step."""


class AbstractPolicy(ABC):
    """What to do with the gradients of a step.

    Attributes:
        remembers: whether it looks back at earlier steps.

    Example:
        >>> import torch, retrograde
        >>> class Sign(retrograde.clipping.AbstractPolicy):
        ...     def apply(self, part, memory):
        ...         part.edit(lambda parameters: [p.grad.sign_() for p in parameters])
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> model(torch.tensor([[3.0, -4.0]])).sum().backward()
        >>> norm = retrograde.clipping.clip(model, Sign())
        >>> model.weight.grad
        tensor([[ 1., -1.]])
    """

    remembers: ClassVar[bool] = False

    @abstractmethod
    def apply(self, part: Part, memory: Memory) -> Memory:
        """Act on a part of the gradients; return what to remember.

        Args:
            part: its `norm`, `limit(threshold)` and `edit(function)` are all that is needed.
            memory: what the last call for this part returned, None at first.
        """


@dataclass(frozen=True)
class GlobalNorm(AbstractPolicy):
    """Scale all gradients alike where their norm together is above a threshold.

    g *= min(1, max_norm / (|g| + 1e-6)), which is `torch.nn.utils.clip_grad_norm_`, bit for bit
    where it acts on all groups. It keeps the direction. The small constant makes the norm come out
    lower than the threshold by up to 1e-6.

    Args:
        max_norm: the threshold for the L2 norm; `math.inf` clips never, and only measures.

    Raises:
        ArgumentError: unless the threshold is positive.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> model(torch.tensor([[4.0]])).sum().backward()
        >>> retrograde.clipping.clip(model, GlobalNorm(1.0))
        tensor(4.)
        >>> model.weight.grad
        tensor([[1.0000]])

    References:
        Razvan Pascanu, Tomas Mikolov, Yoshua Bengio, "On the difficulty of training recurrent
        neural networks", ICML (2013), arXiv 1211.5063, algorithm 1. It takes 0.5 to 10 times the
        average norm for a threshold.
    """

    max_norm: float

    def __post_init__(self) -> None:
        _checks.fields(self, max_norm=_checks.positive)

    def apply(self, part: Part, memory: Memory) -> Memory:
        part.limit(self.max_norm)
        return None


@dataclass(frozen=True)
class Value(AbstractPolicy):
    """Bring every element of the gradients into [-max_value, max_value].

    g_i = max(-max_value, min(max_value, g_i)), which is `torch.nn.utils.clip_grad_value_`. It keeps
    signs, and so a direction of descent, but not the direction.

    Args:
        max_value: the threshold for the elements' sizes.

    Raises:
        ArgumentError: unless the threshold is positive.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> model(torch.tensor([[4.0, 0.5]])).sum().backward()
        >>> norm = retrograde.clipping.clip(model, retrograde.clipping.Value(1.0))
        >>> model.weight.grad
        tensor([[1.0000, 0.5000]])
    """

    max_value: float

    def __post_init__(self) -> None:
        _checks.fields(self, max_value=_checks.positive)

    def apply(self, part: Part, memory: Memory) -> Memory:
        part.edit(lambda parameters: nn.utils.clip_grad_value_(parameters, self.max_value))
        return None


@dataclass(frozen=True)
class AGC(AbstractPolicy):
    """Adaptive gradient clipping: each unit's gradient by the size of that unit's weights.

    With W_i a row of a weight, which is one unit (in a recurrent layer: one gate of one unit), and
    G_i its gradient:

        G_i *= min(1, factor max(|W_i|, eps) / |G_i|)

    A bias or any other vector counts as one row. It keeps the direction of each row, not of the
    whole. To leave a layer out, name the others in `ByGroup`.

    Args:
        factor: the threshold for |G_i| / |W_i|.
        eps: the least size that a row of weights is taken to have.

    Raises:
        ArgumentError: unless both are positive.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> with torch.no_grad():
        ...     model.weight[:] = 2.0
        >>> model(torch.tensor([[4.0]])).sum().backward()
        >>> norm = retrograde.clipping.clip(model, retrograde.clipping.AGC(0.01))
        >>> model.weight.grad  # 1 % of the weight
        tensor([[0.0200]])

    References:
        Andrew Brock, Soham De, Samuel L. Smith, Karen Simonyan, "High-Performance Large-Scale Image
        Recognition Without Normalization" (2021), arXiv 2102.06171.
    """

    factor: float = 0.01
    eps: float = 1e-3

    def __post_init__(self) -> None:
        _checks.fields(self, factor=_checks.positive, eps=_checks.positive)

    def apply(self, part: Part, memory: Memory) -> Memory:
        part.edit(self._by_rows)
        return None

    def _by_rows(self, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            limit = self.factor * row_norms(parameter.detach()).clamp(min=self.eps)
            # limit is positive, so a row of zeros has the quotient inf, and stays.
            factor = (limit / row_norms(parameter.grad)).clamp(max=1.0)
            parameter.grad.mul_(factor)


@dataclass(frozen=True)
class AutoClip(AbstractPolicy):
    """Clip by a percentile of all norms that there have been, this step's included.

    c_t = percentile_p(|g_1|, ..., |g_t|), and then as `GlobalNorm` with c_t. It keeps the
    direction. The lower the percentile, the more often it clips: at 10, in most steps of a steady
    run.

    Args:
        percentile: p, from 0 to 100.
        history: how many of the last norms count; None for all, as in the paper. A step takes
            longer the more there are.

    Raises:
        ArgumentError: for a percentile outside that range, or a history that is not a positive
            integer.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> clipper = retrograde.clipping.Clipper(model, retrograde.clipping.AutoClip(50.0))
        >>> for size in (1.0, 2.0, 9.0):
        ...     model.zero_grad()
        ...     model(torch.tensor([[size]])).sum().backward()
        ...     norm = clipper()
        >>> model.weight.grad  # the median of 1, 2 and 9
        tensor([[2.0000]])

    References:
        Prem Seetharaman, Gordon Wichern, Bryan Pardo, Jonathan Le Roux, "AutoClip: Adaptive
        Gradient Clipping for Source Separation Networks" (2020), arXiv 2007.14469.
    """

    remembers: ClassVar[bool] = True
    percentile: float = 10.0
    history: int | None = None

    def __post_init__(self) -> None:
        _checks.fields(self, percentile=_percent, history=_checks.optional_whole)

    def apply(self, part: Part, memory: Memory) -> Memory:
        seen = part.norm.reshape(1)
        if memory is not None:
            seen = torch.cat([memory["norms"], seen])
        if self.history is not None:
            seen = seen[-self.history :]
        part.limit(percentile(seen, self.percentile))
        return {"norms": seen}


@dataclass(frozen=True)
class ZClip(AbstractPolicy):
    """Clip spikes: norms far above a running mean, measured in running standard deviations.

    With mean m and variance v so far, z = (|g| - m) / (sqrt(v) + eps). Where z > z_threshold, the
    gradient is scaled to the norm

        c = clip_factor (m + z_threshold sqrt(v) / (z / z_threshold))

    the lower, the larger the spike. Afterwards, with n = c where it clipped and n = |g| where not,
    m = alpha m + (1 - alpha) n and v = alpha v + (1 - alpha) (n - m)^2. The first `warmup` steps
    are not clipped; their mean and variance are what it starts from. It keeps the direction.
    `chain(ZClip(), GlobalNorm(1.0))` adds the fixed limit that the authors' code has beside it.

    Args:
        alpha: how much of the running mean and variance stays from step to step.
        z_threshold: from how many standard deviations on a norm is a spike.
        warmup: how many steps it only looks at.
        clip_factor: what c is multiplied by.
        eps: keeps z finite where the norm has not varied.

    Raises:
        ArgumentError: for an alpha outside (0, 1), a warmup that is not a positive integer, and
            others that are not positive.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> clipper = retrograde.clipping.Clipper(model, retrograde.clipping.ZClip(warmup=3))
        >>> for size in (1.0, 1.2, 0.8, 50.0):
        ...     model.zero_grad()
        ...     model(torch.tensor([[size]])).sum().backward()
        ...     norm = clipper()
        >>> bool(model.weight.grad < 2)  # the spike was clipped
        True

    References:
        "ZClip" (2025), arXiv 2504.02507.
    """

    remembers: ClassVar[bool] = True
    alpha: float = 0.97
    z_threshold: float = 2.5
    warmup: int = 25
    clip_factor: float = 1.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        positive = dict.fromkeys(("z_threshold", "clip_factor", "eps"), _checks.positive)
        _checks.fields(self, alpha=_decay, warmup=_checks.whole, **positive)

    def apply(self, part: Part, memory: Memory) -> Memory:
        norm = part.norm
        if memory is None or "first" in memory:
            first = norm.reshape(1) if memory is None else torch.cat([memory["first"], norm[None]])
            if len(first) < self.warmup:
                return {"first": first}
            return {"mean": first.mean(), "variance": first.var(correction=0)}
        mean, variance = memory["mean"], memory["variance"]
        deviation = variance.sqrt()
        z = (norm - mean) / (deviation + self.eps)
        limit = self.clip_factor * (mean + self.z_threshold * deviation / (z / self.z_threshold))
        spike = z > self.z_threshold
        part.limit(torch.where(spike, limit, math.inf))
        fed = torch.where(spike, limit, norm)
        mean = self.alpha * mean + (1 - self.alpha) * fed
        variance = self.alpha * variance + (1 - self.alpha) * (fed - mean).square()
        return {"mean": mean, "variance": variance}


@dataclass(frozen=True)
class ByGroup(AbstractPolicy):
    """A policy of its own for each of several groups; all other groups are left as they are.

    Args:
        policies: by group: a scope (`recurrent`, `input`, `output`), a group of one's own that the
            clipper was given, or `all`.

    Raises:
        ArgumentError: for no group at all, for what is no policy, and for `all` beside other
            groups, which would overlap. The clipper says which groups the model has.

    Example:
        >>> ByGroup({"recurrent": GlobalNorm(1.0), "output": Value(0.5)})
        ByGroup(policies={'recurrent': GlobalNorm(max_norm=1.0), 'output': Value(max_value=0.5)})
    """

    policies: Mapping[str, AbstractPolicy]

    def __post_init__(self) -> None:
        _checks.mapping("policies", self.policies, "of groups to policies")
        object.__setattr__(self, "policies", dict(self.policies))
        if not self.policies:
            raise ArgumentError(
                'name a group and its policy: ByGroup({"recurrent": GlobalNorm(1)})'
            )
        for policy in self.policies.values():
            is_policy(policy)
        if ALL in self.policies and len(self.policies) > 1:
            others = ", ".join(repr(group) for group in self.policies if group != ALL)
            raise ArgumentError(
                f"{ALL!r} and {others} overlap: a parameter belongs to one group of ByGroup. "
                "chain(...) applies one policy after the other"
            )

    def apply(self, part: Part, memory: Memory) -> Memory:
        remembered = {}
        for group, policy in self.policies.items():
            own = part if group == ALL else part.of(group)
            remembered[group] = policy.apply(own, (memory or {}).get(group))
        return remembered


@dataclass(frozen=True)
class Chain(AbstractPolicy):
    """Several policies, one after the other; `chain(...)` makes it.

    Args:
        policies: in the order in which they act.

    Example:
        >>> import retrograde
        >>> clipping = retrograde.clipping
        >>> policy = clipping.chain(clipping.ZClip(), clipping.GlobalNorm(1.0))
        >>> [type(each).__name__ for each in policy.policies]
        ['ZClip', 'GlobalNorm']
    """

    policies: tuple[AbstractPolicy, ...]

    def __post_init__(self) -> None:
        _checks.tuple_of("policies", self.policies, AbstractPolicy, "clipping policies")

    def apply(self, part: Part, memory: Memory) -> Memory:
        remembered = {}
        for place, policy in enumerate(self.policies):
            key = str(place)
            remembered[key] = policy.apply(part, (memory or {}).get(key))
        return remembered


@overload
def chain(*policies: AbstractPolicy) -> Chain: ...


@overload
def chain(*policies: AbstractInside) -> ChainInside: ...


def chain(*policies: Any) -> Chain | ChainInside:
    """Policies that act one after the other, each on what the one before left.

    They act either all at the end of the backward pass or all inside it.

    Raises:
        ArgumentError: for none at all, for what is no policy, and for policies of both places.

    Example:
        >>> chain(Value(5.0), GlobalNorm(1.0)).policies
        (Value(max_value=5.0), GlobalNorm(max_norm=1.0))
    """
    if not policies:
        raise ArgumentError("chain needs at least one policy; GlobalNorm(math.inf) only measures")
    within = [isinstance(policy, AbstractInside) for policy in policies]
    if any(within) and any(isinstance(policy, AbstractPolicy) for policy in policies):
        raise ArgumentError(
            f"{', '.join(map(repr, policies))} act in two places: give those inside back-propa"
            "gation to retrograde.nn.clip_inside(model, policy), the others to a Clipper"
        )
    for policy in policies:
        (is_inside if any(within) else is_policy)(policy)
    return ChainInside(policies) if all(within) else Chain(policies)


def inside(policy: AbstractPolicy) -> list[AbstractPolicy]:
    """A policy and all policies that it is made of."""
    parts: tuple[AbstractPolicy, ...] = ()
    if isinstance(policy, Chain):
        parts = policy.policies
    elif isinstance(policy, ByGroup):
        parts = tuple(policy.policies.values())
    return [policy, *(inner for part in parts for inner in inside(part))]


def check_groups(policy: AbstractPolicy, groups: Mapping[str, tuple[str, ...]]) -> None:
    """See that every group that a policy names is there.

    Raises:
        ArgumentError: with what there is.
    """
    if isinstance(policy, Chain):
        for part in policy.policies:
            check_groups(part, groups)
    elif isinstance(policy, ByGroup):
        for group, part in policy.policies.items():
            if group != ALL and group not in groups:
                there = "; ".join(f"{name!r}: {', '.join(held)}" for name, held in groups.items())
                raise ArgumentError(
                    f"the group {group!r} matches no parameter; there are "
                    f"{there}. Give your own groups as groups={{name: patterns}}"
                )
            check_groups(part, groups if group == ALL else {group: groups[group]})


def percentile(values: Tensor, percent: float) -> Tensor:
    """A percentile with linear interpolation, as numpy's; torch.quantile refuses long vectors."""
    place = percent / 100 * (len(values) - 1)
    below = int(place)
    ordered = values.sort().values
    return torch.lerp(ordered[below], ordered[math.ceil(place)], place - below)


def row_norms(values: Tensor) -> Tensor:
    """L2 norm of every row, over all axes but the first; of a vector or a number as a whole."""
    axes = tuple(range(1, values.ndim)) or None
    norms: Tensor = torch.linalg.vector_norm(values, dim=axes, keepdim=True)
    return norms


def _percent(name: str, value: object) -> float:
    return _checks.between(name, value, 0.0, 100.0, "from 0 to 100")


def _decay(name: str, value: object) -> float:
    return _checks.number(name, value, lambda real: 0 < real < 1, "between 0 and 1")


def is_policy(policy: object) -> None:
    """Refuse what is no policy.

    Raises:
        ArgumentError: with what it is.
    """
    if isinstance(policy, AbstractInside):
        raise ArgumentError(
            f"{policy!r} acts inside back-propagation: give it to retrograde.nn.clip_inside(model, "
            "policy), before training"
        )
    if not isinstance(policy, AbstractPolicy):
        raise ArgumentError(
            f"a clipping policy is needed, such as GlobalNorm(1.0); got {_checks.shown(policy)}"
        )


def is_inside(policy: object) -> None:
    """Refuse what does not act inside back-propagation.

    Raises:
        ArgumentError: with what it is.
    """
    if isinstance(policy, AbstractPolicy):
        raise ArgumentError(
            f"{policy!r} acts at the end of the backward pass: give it to a Clipper. Policies that "
            "act inside are PreActivationValue, StateNorm and HDetach"
        )
    if not isinstance(policy, AbstractInside):
        raise ArgumentError(
            f"a policy inside back-propagation is needed, such as PreActivationValue(1.0); got "
            f"{policy!r}"
        )
