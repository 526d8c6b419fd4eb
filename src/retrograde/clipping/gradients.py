"""The gradients of one step while policies act on them, with the norms that they go by.

Torch computes one norm per tensor, once. From these follow the norm of any group and, as long as
groups are only scaled, the norms afterwards, without another look at the gradients. The factors are
multiplied in at the end, in one call where all groups have the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TINY = 1e-6
"""What torch adds to a norm before it divides by it."""


@dataclass(frozen=True)
class Layout:
    """Where the parameters that have a gradient stand, by group.

    Attributes:
        parameters: of all groups, in the model's order.
        places: positions in `parameters`, by group.
        indices: the same on the device of the first gradient.
    """

    parameters: tuple[nn.Parameter, ...]
    places: Mapping[str, tuple[int, ...]]
    indices: Mapping[str, Tensor]

    @staticmethod
    def of(
        parameters: Sequence[nn.Parameter], group_of: Sequence[str], groups: Sequence[str]
    ) -> "Layout":
        """Lay out parameters, all of which have a gradient, by the group of each.

        A group may be without any; its norm is zero.
        """
        device = parameters[0].device
        places = {
            group: tuple(i for i, other in enumerate(group_of) if other == group)
            for group in groups
        }
        indices = {
            group: torch.tensor(where, dtype=torch.long, device=device)
            for group, where in places.items()
        }
        return Layout(tuple(parameters), places, indices)


@dataclass(frozen=True)
class Effect:
    """What was done to the gradient of every group, in the layout's order.

    Attributes:
        before, after: its L2 norm.
        cosine: between the gradient before and after; 1 where either is zero.
        clipped: 1 where a threshold was exceeded, 0 where not.
    """

    before: Tensor
    after: Tensor
    cosine: Tensor
    clipped: Tensor


class Gradients:
    """All gradients of a step.

    Args:
        layout: the parameters, all of which have a gradient.
        grads: their gradients.
        measured: whether `finish` has to tell what was done.

    Attributes:
        norm: L2 norm of them all before anything was done, as `clip_grad_norm_` returns it.
        norms: the same of every tensor.
    """

    def __init__(self, layout: Layout, grads: list[Tensor], measured: bool):
        self._layout, self._grads, self._measured = layout, grads, measured
        self.norms = norms_of(grads)
        self.norm: Tensor = torch.linalg.vector_norm(self.norms)
        self._plain: dict[str, Tensor] = {}  # norms by group, without the factors
        self._factors: dict[str, Tensor] = {}  # what is still to be multiplied in
        self._clipped: dict[str, Tensor] = {}
        self._edited: set[str] = set()
        self._originals: dict[str, list[Tensor]] = {}  # of edited groups
        self._before = [self._plain_norm(group) for group in layout.places] if measured else []

    @property
    def whole(self) -> "Part":
        """All groups, for a policy to act on."""
        return Part(self, tuple(self._layout.places))

    def norm_of(self, groups: tuple[str, ...]) -> Tensor:
        """L2 norm of some groups as they are now."""
        untouched = not self._factors and not self._edited
        if untouched and len(groups) == len(self._layout.places):
            return self.norm
        norms = torch.stack([self._norm(group) for group in groups])
        norm: Tensor = norms[0] if len(groups) == 1 else torch.linalg.vector_norm(norms)
        return norm

    def scale(self, groups: tuple[str, ...], factor: Tensor, clipped: Tensor) -> None:
        """Multiply some groups by a factor, and note whether a threshold was exceeded."""
        for group in groups:
            known = self._factors.get(group)
            self._factors[group] = factor if known is None else known * factor
            self._clipped[group] = (
                self._clipped[group] | clipped if group in self._clipped else clipped
            )

    def edit(self, groups: tuple[str, ...], act: Callable[[list[nn.Parameter]], object]) -> None:
        """Let a function change the gradients of some groups in place, element by element."""
        groups = tuple(group for group in groups if self._layout.places[group])
        if not groups:
            return
        for group in groups:
            if self._measured and group not in self._originals:
                self._originals[group] = [grad.clone() for grad in self._own(group)]
        self._edited |= set(groups)
        self._multiply(groups)
        places = self._layout.places
        act([self._layout.parameters[i] for group in groups for i in places[group]])
        for group in groups:
            self._plain[group] = torch.linalg.vector_norm(norms_of(self._own(group)))

    def finish(self) -> Effect | None:
        """Multiply what is still to be multiplied, and tell what was done if that was asked for."""
        effect = self._effect() if self._measured else None
        self._multiply(tuple(self._factors))
        return effect

    def _own(self, group: str) -> list[Tensor]:
        return [self._grads[i] for i in self._layout.places[group]]

    def _plain_norm(self, group: str) -> Tensor:
        if group not in self._plain:
            one = len(self._layout.places) == 1
            norms = self.norms.index_select(0, self._layout.indices[group])
            self._plain[group] = self.norm if one else torch.linalg.vector_norm(norms)
        return self._plain[group]

    def _norm(self, group: str) -> Tensor:
        norm, factor = self._plain_norm(group), self._factors.get(group)
        return norm if factor is None else norm * factor

    def _multiply(self, groups: tuple[str, ...]) -> None:
        factors = {group: self._factors.pop(group) for group in groups if group in self._factors}
        same = len({id(factor) for factor in factors.values()}) == 1
        if same and len(factors) == len(self._layout.places):
            multiply(self._grads, next(iter(factors.values())))
            return
        for group, factor in factors.items():
            multiply(self._own(group), factor)

    def _effect(self) -> Effect:
        before, after, cosine, clipped = self._before, [], [], []
        no, one = torch.zeros_like(self.norm, dtype=torch.bool), torch.ones_like(self.norm)
        for group, norm in zip(self._layout.places, before, strict=True):
            edited = group in self._edited
            after.append(self._norm(group))
            cosine.append(self._cosine(group, norm) if edited else one)
            passed = self._clipped.get(group, no)
            clipped.append(passed | (after[-1] < norm) if edited else passed)
        return Effect(*(torch.stack(numbers) for numbers in (before, after, cosine, clipped)))

    def _cosine(self, group: str, before: Tensor) -> Tensor:
        """Between the original gradient of an edited group and what it is now.

        Both are divided by their norms first, so that no product leaves the range.
        """
        after = self._plain_norm(group)
        dots = [
            torch.dot((old.to(before) / before).reshape(-1), (new.to(before) / after).reshape(-1))
            for old, new in zip(self._originals[group], self._own(group), strict=True)
        ]
        there = (before > 0) & (after > 0)
        return torch.where(there, torch.stack(dots).sum().clamp(-1, 1), torch.ones_like(before))


@dataclass(frozen=True)
class Part:
    """The gradients that a policy is asked about: one or several groups.

    Attributes:
        gradients: all gradients of the step.
        groups: the names of those groups.

    Example:
        >>> import torch, retrograde
        >>> class Tell(retrograde.clipping.AbstractPolicy):
        ...     def apply(self, part, memory):
        ...         print(part.groups, float(part.norm))
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> model(torch.tensor([[4.0]])).sum().backward()
        >>> norm = retrograde.clipping.clip(model, Tell())
        ('output',) 4.0
    """

    gradients: Gradients
    groups: tuple[str, ...]

    @property
    def norm(self) -> Tensor:
        """L2 norm of the part as it is now, a scalar on the device of the gradients."""
        return self.gradients.norm_of(self.groups)

    def of(self, group: str) -> "Part":
        """One group alone."""
        return Part(self.gradients, (group,))

    def limit(self, threshold: float | Tensor) -> None:
        """Scale the part so that its norm is at most the threshold, by torch's own formula.

        g *= min(1, threshold / (|g| + 1e-6))
        """
        norm = self.norm
        factor = torch.clamp(threshold / (norm + TINY), max=1.0)
        self.gradients.scale(self.groups, factor, norm > threshold)

    def edit(self, act: Callable[[list[nn.Parameter]], object]) -> None:
        """Let a function change `.grad` of the part's parameters in place, element by element."""
        self.gradients.edit(self.groups, act)


def norms_of(grads: list[Tensor]) -> Tensor:
    """L2 norm of every tensor, on the device of the first; 16-bit gradients in float32."""
    kinds = {(grad.device, grad.dtype) for grad in grads}
    if len(kinds) == 1 and grads[0].dtype in (torch.float32, torch.float64):
        return torch.stack(torch._foreach_norm(grads))
    norms: dict[int, Tensor] = {}
    for kind in kinds:
        where = [i for i, grad in enumerate(grads) if (grad.device, grad.dtype) == kind]
        wide = torch.float32 if kind[1] in (torch.float16, torch.bfloat16) else None
        found = torch._foreach_norm([grads[i] for i in where], 2, dtype=wide)
        norms |= zip(where, found, strict=True)
    return torch.stack([norms[i].to(grads[0].device) for i in range(len(grads))])


def multiply(grads: list[Tensor], factor: Tensor) -> None:
    """Multiply gradients in place, wherever they are."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for grad in grads:
        by_device.setdefault(grad.device, []).append(grad)
    for device, there in by_device.items():
        torch._foreach_mul_(there, factor.to(device))
