"""The tensors that a layer uses as its weights while a block records, and copies of them."""

from collections.abc import Iterator, Mapping
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from retrograde.declarations.reading import CallTensors
from retrograde.recording.backward_pass import BackwardPass
from retrograde.recording.calls import WeightKey
from retrograde.recording.gradient_hooks import GradientHooks
from retrograde.recording.graph import edge_of, same_numbers
from retrograde.recording.precision import ANALYSED
from retrograde.recording.readers import Reader
from retrograde.recording.weights import Weights

CHANGED = (
    "was changed in place between the forward and the backward pass, so that the gradient belongs "
    "to neither; run optimiser steps and load weights after backward"
)


class WeightsInUse:
    """Follows which tensor each weight of a layer is, and whether it changes.

    Attributes:
        keys: of the tensors that the layer uses now and that get a gradient, by name.
    """

    def __init__(self, reader: Reader, gradients: GradientHooks):
        self.keys: Mapping[str, WeightKey] = {}
        self._reader, self._gradients = reader, gradients
        self._layer, self._known = gradients.layer, gradients.tracker.weights
        self._tensors: dict[str, Tensor] = {}
        self._copies = Weights({}, tuple)
        self._versions: dict[str, tuple[int, int]] = {}
        self._kinds: dict[str, tuple[torch.device, torch.dtype]] = {}
        self._checked: BackwardPass | None = None
        self._owners: dict[str, tuple[nn.Module, str]] = {}
        self._numbers: Iterator[int] = count()

    def use(self, name: str, weight: Tensor) -> None:
        """Take this tensor as the weight that the layer uses from now on."""
        self._tensors[name] = weight
        edge = edge_of(weight)
        if edge is None:
            self.keys = {n: key for n, key in self.keys.items() if n != name}
            return
        if edge not in self._known:
            key = self._known[edge] = (self._layer, name, next(self._numbers))
            self._gradients.keep(
                weight, edge, lambda to: to.weights, key, self._check_unchanged, True
            )
        self.keys = {**self.keys, name: self._known[edge]}

    def of_module(self, name: str) -> Tensor:
        """A weight of the layer as it is now, perhaps one of a part of it."""
        if name not in self._owners:
            owner, _, last = self._reader.places.get(name, name).rpartition(".")
            self._owners[name] = self._reader.module.get_submodule(owner), last
        holder, attribute = self._owners[name]
        weight = holder._parameters.get(attribute)  # which getattr finds last
        return getattr(holder, attribute) if weight is None else weight

    def copied(self, tensors: CallTensors) -> Weights:
        """The weights as they are now, copied again only if they changed."""
        names, own = self._reader.form.weights, self._reader.module._parameters
        for name in names:
            if name not in own and parametrize.is_parametrized(self._reader.module, name):
                continue
            weight = own[name] if name in own else self.of_module(name)
            if weight is not None and weight is not self._tensors.get(name):
                self.use(name, weight)
        versions = {n: (id(self._tensors[n]), self._tensors[n]._version) for n in names}
        if versions != self._versions:
            copies = {name: _copy(self._tensors[name]) for name in names}
            self._copies = self._reader.weights(copies, tensors)
            self._versions = versions
            self._kinds = {n: (self._tensors[n].device, self._tensors[n].dtype) for n in names}
        return self._copies

    def changed(self) -> str:
        """Which weight changed since the forward pass, as far as torch knows; empty if none."""
        for name, (device, dtype) in self._kinds.items():
            now = self._tensors[name]
            if (now.device, now.dtype) != (device, dtype):
                return (
                    f"{self._layer!r}: its {name} was moved from {device}, {dtype} to "
                    f"{now.device}, {now.dtype} after the forward pass; move the model before"
                )
            if self._versions and now._version != self._versions[name][1]:
                return f"{self._layer!r}: its {name} {CHANGED}"
        return ""

    def _check_unchanged(self, to: BackwardPass) -> None:
        """Look for changes made through `.data`, which autograd does not notice.

        A row of the recurrent weights is compared, when the first gradient of a weight arrives:
        comparing everything would take longer than the rest of the recording, and later an
        optimiser may already have run. The residual shows the changes that this misses.
        """
        self._versions = {}  # what changes a weight from now on may leave its version alone
        if self._checked is to:
            return
        self._checked = to
        if not any(call.layer == self._layer for call, _ in to.arrived) or self.changed():
            return
        declared = self._reader.form.declared
        for name, copy in self._copies.copies.items():
            if not (copy.ndim == 2 if declared else name.startswith("weight_hh")):
                continue
            row, then = self._tensors[name].detach()[0].to(copy.dtype), copy[0]
            if not same_numbers(row, then):
                to.problems[self._layer] = f"its {name} {CHANGED}"


def _copy(weight: Tensor) -> Tensor:
    """A copy in the precision of the analysis."""
    weight = weight.detach().clone()
    return weight if weight.dtype in ANALYSED else weight.float()
