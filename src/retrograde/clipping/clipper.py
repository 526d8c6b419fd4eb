"""Clip a model's gradients by a policy, once or step after step, and see what that did."""

import math
import weakref
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler, OptState

from retrograde import _checks
from retrograde.clipping.gradients import Gradients, Layout
from retrograde.clipping.groups import ALL, Patterns, grouped
from retrograde.clipping.policies import AbstractPolicy, check_groups, inside, is_policy
from retrograde.clipping.statistics import BEFORE, History, Statistics, summarise, with_whole
from retrograde.errors import ArgumentError, ClippingError, NonFiniteError

NonFinite = Literal["raise", "skip"]


def clip(
    model: nn.Module,
    policy: AbstractPolicy,
    *,
    groups: Mapping[str, Patterns] | None = None,
    nonfinite: NonFinite = "raise",
) -> Tensor:
    """Clip the gradients of a model once, in place, and keep nothing.

    In a training loop a `Clipper` does the same, faster, and with statistics.

    Args:
        model, policy, groups, nonfinite: as for `Clipper`; the policy is none that looks back.

    Returns:
        The L2 norm of all gradients before clipping, as `torch.nn.utils.clip_grad_norm_` gives it.

    Raises:
        ArgumentError: for a policy that looks back at earlier steps, and as `Clipper`.
        ClippingError, NonFiniteError: as `Clipper`.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.Linear(2, 1)
        >>> model(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> retrograde.clipping.clip(model, retrograde.clipping.Value(1.0))
        tensor(5.0990)
    """
    is_policy(policy)
    for part in inside(policy):
        if part.remembers:
            raise ArgumentError(
                f"{part!r} looks back at earlier steps; keep a Clipper(model, policy) and call it "
                "after every backward pass"
            )
    parameters = _Parameters(model, groups)
    check_groups(policy, parameters.groups)
    check_nonfinite(nonfinite)
    with torch.no_grad():
        gradients = Gradients(*parameters.current(), measured=False)
        if parameters.finite(gradients, nonfinite):
            policy.apply(gradients.whole, None)
            gradients.finish()
    return gradients.norm


class Clipper:
    """Clip a model's gradients after every backward pass, and keep what that did.

    Three lines in a loop of one's own:

        clipper = retrograde.clipping.Clipper(model, retrograde.clipping.GlobalNorm(1.0))
        ...
            loss.backward()
            norm = clipper()
            optimizer.step()

    The gradients belong to groups. A parameter is `recurrent` where its name says that it is a
    recurrent weight or bias, a peephole or a projection of torch's or our recurrent layers
    (`weight_hh`, `bias_hh`, `weight_ch`, `weight_gg`, `weight_hr`), `input` for their `weight_ih`
    and `bias_ih`, and `output` for everything else: also for what lies before a recurrent layer, an
    embedding for instance, unless `groups` names it.

    Calls do not wait for the device but for one number, whether the norm is finite, as
    `clip_grad_norm_(..., error_if_nonfinite=True)` does. Everything else is read when it is asked
    for. Norms of 16-bit gradients are computed in float32; a norm beyond the range counts as not
    finite. Under DistributedDataParallel every process does the same to the same gradients.
    Parameters that are sharded over processes, and sparse gradients, are not supported.

    With a gradient scaler (automatic mixed precision), gradients have to be unscaled first; give
    the scaler, and a forgotten `scaler.unscale_(optimizer)` is said. Take `nonfinite="skip"` then:
    an infinite gradient is how a scaler finds its scale. Without `scaler` it cannot be seen that
    gradients are scaled, and thresholds mean something else.

    Args:
        model: any module; parameters without a gradient are left out, step by step.
        policy: what to do; `GlobalNorm(math.inf)` only measures.
        groups: groups of one's own, each with one or several patterns of parameter names
            (`{"encoder": "encoder.*"}`). What they leave belongs to the scopes above; a group may
            have the name of a scope and adds to it (`{"recurrent": "mycell.*"}`).
        nonfinite: what to do where the norm is NaN or infinite. "raise" raises and leaves the
            gradients as they are. "skip" takes all gradients away (`.grad = None`), so that the
            optimiser's step changes nothing, counts the step in `skipped`, and remembers nothing
            of it.
        keep: how many of the last steps the statistics are about; None for all. A step takes 16
            bytes a group.
        scaler, optimizer: a gradient scaler and the optimiser whose gradients it scales.

    Attributes:
        groups: the names of the parameters of each group.
        skipped: how many steps were skipped.

    Raises:
        ArgumentError: on construction, for a group that matches nothing or overlaps another one.
        ClippingError: when called before the backward pass, twice after one, after the optimiser's
            step, or with gradients that are still scaled. The optimiser's step is seen by the
            weights that it changed; a fused optimiser's is not seen.
        NonFiniteError: when called with gradients that are not finite, unless they are skipped.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.clipping import ByGroup, Clipper, GlobalNorm
        >>> lstm = torch.nn.LSTM(1, 2)
        >>> clipper = Clipper(lstm, ByGroup({"recurrent": GlobalNorm(1e-3)}))
        >>> lstm(torch.ones(5, 3, 1))[0].sum().backward()
        >>> norm = clipper()
        >>> groups = clipper.statistics().groups
        >>> groups["recurrent"].clip_rate, groups["input"].clip_rate
        (1.0, 0.0)
    """

    def __init__(
        self,
        model: nn.Module,
        policy: AbstractPolicy,
        *,
        groups: Mapping[str, Patterns] | None = None,
        nonfinite: NonFinite = "raise",
        keep: int | None = None,
        scaler: GradScaler | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        is_policy(policy)
        check_nonfinite(nonfinite)
        keep = _checks.optional_whole("keep", keep)
        if (scaler is None) != (optimizer is None):
            raise ArgumentError(
                "scaler and optimizer must be given together, since a scaler knows for each "
                f"optimiser whether its gradients are unscaled; got scaler={scaler!r} and "
                f"optimizer={optimizer!r}"
            )
        self._parameters = _Parameters(model, groups)
        self.groups: Mapping[str, tuple[str, ...]] = self._parameters.groups
        check_groups(policy, self.groups)
        self.policy, self.nonfinite, self.skipped = policy, nonfinite, 0
        self._scaler, self._optimizer = scaler, optimizer
        self._memory: dict[str, Any] | None = None
        self._history = History(keep)
        self._seen = _Seen(self._parameters.parameters)

    def __call__(self) -> Tensor:
        """Clip in place what the backward pass left in `.grad`.

        Returns:
            The L2 norm of all gradients before clipping, as `clip_grad_norm_` gives it.
        """
        _check_unscaled(self._scaler, self._optimizer)
        layout, grads = self._parameters.current()
        self._seen.check(grads)
        with torch.no_grad():
            gradients = Gradients(layout, grads, measured=True)
            if self._parameters.finite(gradients, self.nonfinite):
                self._memory = self.policy.apply(gradients.whole, self._memory)
                effect = gradients.finish()
                assert effect is not None
                self._history.add(effect)
                self._seen.note(grads)
            else:
                self.skipped += 1
        return gradients.norm

    @property
    def fresh(self) -> bool:
        """Whether there are gradients, and a backward pass has changed them since the last call."""
        grads = [p.grad for p in self._parameters.parameters if p.grad is not None]
        return bool(grads) and not self._seen.again(grads)

    def statistics(self, last: int | None = None) -> Statistics:
        """What clipping did, per group and over all.

        Args:
            last: over how many of the last steps; None for all that are kept.

        Raises:
            ClippingError: before the first step.
            ArgumentError: for a number that is not a positive integer.
        """
        return summarise(self._rows(last), self.skipped, tuple(self.groups))

    def norms(self) -> dict[str, Tensor]:
        """The L2 norm before clipping at every step that is kept, by group; "all" is the whole.

        This is the history that `suggest` takes.

        Returns:
            Float64 tensors on the CPU, one number a step.

        Raises:
            ClippingError: before the first step.
        """
        rows = with_whole(self._rows(None))
        return dict(zip([*self.groups, ALL], rows[:, BEFORE].unbind(1), strict=True))

    def scalars(self, last: int | None = None) -> dict[str, float]:
        """A few of the statistics under stable names, for a logger.

        `retrograde/clipping/<group>/norm` (median, before clipping), `.../clip_rate`, `.../cosine`
        and `.../share` for every group and for "all", and `retrograde/clipping/skipped`, the count
        so far. Numbers that are not finite are left out; before the first step only the count is
        there.

        Args:
            last: over how many of the last steps; None for all that are kept.

        Raises:
            ArgumentError: for a number that is not a positive integer.
        """
        found = {"retrograde/clipping/skipped": float(self.skipped)}
        clipped = self._history.rows() is not None
        for name, group in self.statistics(last).groups.items() if clipped else ():
            start = f"retrograde/clipping/{name}"
            found[f"{start}/norm"] = group.norm[50]
            found[f"{start}/clip_rate"] = group.clip_rate
            found[f"{start}/cosine"] = group.cosine
            found[f"{start}/share"] = group.share
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a clipper for the same model needs to go on, bit for bit.

        It holds tensors, numbers and text, which `torch.load` reads with `weights_only=True`.
        """
        return {
            "policy": repr(self.policy),
            "groups": {group: list(names) for group, names in self.groups.items()},
            "skipped": self.skipped,
            "memory": self._memory,
            "history": self._history.rows(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ArgumentError: if it belongs to another policy or to other groups.
        """
        own = self.state_dict()
        for part in ("policy", "groups"):
            if state.get(part) != own[part]:
                raise ArgumentError(
                    f"this state belongs to the {part} {state.get(part)}; this clipper has "
                    f"{own[part]}. Create the clipper with the same arguments as then"
                )
        device = self._parameters.parameters[0].device
        self.skipped = int(state["skipped"])
        self._memory = _on(state["memory"], device)
        self._history.load(_on(state["history"], device))

    def _rows(self, last: int | None) -> Tensor:
        last = _checks.optional_whole("last", last)
        rows = self._history.rows()
        if rows is None:
            raise ClippingError(
                f"nothing has been clipped yet ({self.skipped} steps were skipped); call the "
                "clipper after a backward pass first"
            )
        return rows if last is None else rows[-last:]


class _Parameters:
    """The parameters of a model, frozen ones included, and those that have a gradient now.

    Attributes:
        parameters: in the model's order.
        groups: the names of each group's.
    """

    def __init__(self, model: nn.Module, own: Mapping[str, Patterns] | None):
        model = _checks.model("model", model)
        while isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        named = {_plain_name(name): parameter for name, parameter in model.named_parameters()}
        if not any(parameter.requires_grad for parameter in named.values()):
            raise ArgumentError(
                f"no parameter of {type(model).__name__} has requires_grad=True, so there will be "
                "no gradient to clip"
            )
        self.parameters = tuple(named.values())
        self.groups = grouped(named, own)
        group_of = {name: group for group, names in self.groups.items() for name in names}
        self._names, self._group_of = tuple(named), tuple(group_of[name] for name in named)
        self._key: object = None
        self._layout: Layout | None = None

    def current(self) -> tuple[Layout, list[Tensor]]:
        """The parameters that have a gradient, and these.

        Raises:
            ClippingError: if there are none.
            ArgumentError: if one is sparse.
        """
        every = [parameter.grad for parameter in self.parameters]
        grads = [grad for grad in every if grad is not None]
        if not grads:
            raise ClippingError(
                "there are no gradients: every .grad is None. Clip after loss.backward(), and "
                "before optimizer.step() and optimizer.zero_grad()"
            )
        present = None if len(grads) == len(every) else tuple(grad is not None for grad in every)
        key = (present, grads[0].device)
        if self._layout is None or key != self._key:
            there = [i for i, grad in enumerate(every) if grad is not None]
            for i, grad in zip(there, grads, strict=True):
                if grad.layout != torch.strided:
                    raise ArgumentError(
                        f"the gradient of {self._names[i]!r} is sparse, and torch cannot compute "
                        "its norm; create the layer with sparse=False, or clip a model without it"
                    )
            self._key = key
            self._layout = Layout.of(
                [self.parameters[i] for i in there],
                [self._group_of[i] for i in there],
                tuple(self.groups),
            )
        return self._layout, grads

    def finite(self, gradients: Gradients, nonfinite: NonFinite) -> bool:
        """Whether the norm is a number; if not, raise or take all gradients away.

        Raises:
            NonFiniteError: with the parameters concerned.
        """
        norm = float(gradients.norm)
        if math.isfinite(norm):
            return True
        if nonfinite == "skip":
            for parameter in self.parameters:
                parameter.grad = None
            return False
        there = [n for n, p in zip(self._names, self.parameters, strict=True) if p.grad is not None]
        spoilt = [
            name
            for name, finite in zip(there, gradients.norms.isfinite().tolist(), strict=True)
            if not finite
        ]
        where = ", ".join(spoilt[:3]) + (f" and {len(spoilt) - 3} more" if spoilt[3:] else "")
        raise NonFiniteError(
            f"the norm of the gradients is {norm}: "
            + (f"it is not finite in {where}" if spoilt else "their squares leave the range")
            + ". They were left unchanged. nonfinite='skip' skips such a step; retrograde.diagnose "
            "tells where the first such value comes from"
        )


class _Seen:
    """Tells a gradient that has been clipped already, or used already, from a new one.

    A backward pass makes a new tensor of a gradient or adds to it in place, which torch counts. The
    optimiser's step changes weights in place, which torch counts, too; so the count of one weight
    is noted as soon as its gradient is complete.
    """

    def __init__(self, parameters: tuple[nn.Parameter, ...]):
        self._clipped: list[tuple[weakref.ref[Tensor], int]] = []
        self._weight = [parameter for parameter in parameters if parameter.requires_grad][-1]
        self._at = at = list[int]()

        def note(weight: Tensor) -> None:
            at[:] = [weight._version]

        handle = self._weight.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
        weakref.finalize(self, handle.remove)

    def again(self, grads: list[Tensor]) -> bool:
        """Whether these are the very gradients that were clipped last."""
        return len(grads) == len(self._clipped) and all(
            reference() is grad and version == grad._version
            for grad, (reference, version) in zip(grads, self._clipped, strict=True)
        )

    def note(self, grads: list[Tensor]) -> None:
        """These have been clipped."""
        self._clipped = [(weakref.ref(grad), grad._version) for grad in grads]

    def check(self, grads: list[Tensor]) -> None:
        """See that these gradients are new, and not yet used.

        Raises:
            ClippingError: otherwise.
        """
        at = list(self._at)
        self._at.clear()
        if self.again(grads):
            raise ClippingError(
                "these gradients have been clipped already: no backward pass has changed them "
                "since. Call the clipper once, after loss.backward() and before optimizer.step()"
            )
        if at and at[0] != self._weight._version:
            raise ClippingError(
                "the weights have changed since the backward pass, so the optimiser has already "
                "stepped with unclipped gradients. Call the clipper after loss.backward() and "
                "before optimizer.step()"
            )


def check_nonfinite(nonfinite: object) -> None:
    """Refuse what is neither "raise" nor "skip".

    Raises:
        ArgumentError: with what it is.
    """
    _checks.one_of("nonfinite", nonfinite, ("raise", "skip"))


def _check_unscaled(scaler: GradScaler | None, optimizer: torch.optim.Optimizer | None) -> None:
    """See that a scaler has unscaled the gradients of this optimiser.

    Raises:
        ClippingError: if it has not, or if it has made the optimiser's step.
    """
    if scaler is None or not scaler.is_enabled():
        return
    state = scaler._per_optimizer_states.get(id(optimizer))
    stage = OptState.READY if state is None else state["stage"]
    if stage is OptState.STEPPED:
        raise ClippingError(
            "scaler.step(optimizer) has been called already, with unclipped gradients. Call the "
            "clipper between scaler.unscale_(optimizer) and scaler.step(optimizer)"
        )
    if stage is not OptState.UNSCALED:
        raise ClippingError(
            "the gradients are still scaled, so a threshold would mean something else. Call "
            "scaler.unscale_(optimizer) before the clipper"
        )


def _plain_name(name: str) -> str:
    """A parameter's name without what torch.compile puts before it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _on(value: Any, device: torch.device) -> Any:
    """Tensors on a device, and everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _on(inner, device) for key, inner in value.items()}
    return value
