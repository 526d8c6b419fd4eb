"""What changes when samples change places, or one is given the data of another?

Where samples of a batch meet by design (a statistic of the batch, pooling, attention, a contrastive
loss), the loss is the same whatever order they come in. Axes in the wrong order and reshapes that
mix samples depend on it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from retrograde.diagnosis.copies import copied, copied_model, seeded
from retrograde.diagnosis.experiments.experiment import Case
from retrograde.diagnosis.experiments.numbers import tensors
from retrograde.diagnosis.sight import Read, see

PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)

ROUNDING = 1e-5
"""Of the loss; sums in another order differ by less, and samples that are mixed by more."""


def order_matters(case: Case, samples: int) -> bool | None:
    """Whether the loss depends on the order of the samples; None where that cannot be told.

    Every tensor and list of the batch that has an axis of the samples is put in another order, and
    numbers that may name samples (the edges of a graph) are changed along. It cannot be told where
    the pass is random, carries a state from sample to sample, or does not run.
    """
    if _carried(case):
        return None
    try:
        first, second = (_loss(case, case.batch, seed) for seed in (case.seed, case.seed + 1))
    except Exception:
        return None
    if first != second or first != first:
        return None
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    if bool((order == torch.arange(samples)).all()):
        order = order.flip(0)
    size = max(abs(first), _size(case))
    tried = False
    for arranged in _arranged(case.batch, order):
        try:
            other = _loss(case, arranged, case.seed)
        except Exception:
            continue
        tried = True
        if abs(other - first) <= _rounding(case) * size:
            return False
    return True if tried else None


def read_from_others(case: Case, samples: int, sample: int) -> tuple[str, list[int]] | None:
    """A layer that reads data of one sample in others, and in which; None if there is none.

    One sample is given the data of another, and what the layers read is compared with the pass as
    it was.

    Raises:
        ValueError: if nothing can be said, since the batch has no such axis, or the pass fails.
    """
    found = []
    tried = False
    for axis in (0, 1):
        batch = _with_data_of(case.batch, sample, (sample or samples) - 1, samples, axis)
        if batch is None:
            continue
        try:
            reads = see(case.model, batch, case.loss_fn, case.seed).reads
        except Exception as error:
            raise ValueError(f"the pass fails with other data: {type(error).__name__}") from None
        moved = {
            name: _in_fewest(_moved(one[0], reads[name][0]), one[0].samples, samples)
            for name, one in case.sight.reads.items()
            if one[0].samples % samples == 0 and name in reads
        }
        tried |= any(moved.values())
        others = {n: [o for o in each if o != sample] for n, each in moved.items() if each}
        if any(moved.values()) and not any(others.values()):
            return None
        found += [(name, each) for name, each in others.items() if each][:1]
    if not tried:
        raise ValueError("no layer reads what a sample of the batch holds")
    return found[0] if found else None


def _in_fewest(moved: list[int], count: int, samples: int) -> list[int]:
    """The samples that own what moved, where each owns several: side by side, or in turn."""
    side_by_side = {each // (count // samples) for each in moved}
    in_turn = {each % samples for each in moved}
    return sorted(side_by_side if len(side_by_side) <= len(in_turn) else in_turn)


def _moved(before: Read, after: Read) -> list[int]:
    """The samples in which a layer reads other numbers."""
    if before.x.shape != after.x.shape or (before.packed is None) != (after.packed is None):
        return []
    if before.packed is not None and after.packed is not None:
        if not _packed_alike(before.packed, after.packed):
            return []
    change = (after.x.detach() - before.x.detach()).abs()
    change = torch.where(change > 1e-6 * before.x.detach().abs().max(), change, 0)
    return torch.nonzero(before.by_sample(change)).flatten().tolist()


def _packed_alike(one: PackedSequence, other: PackedSequence) -> bool:
    """Whether rows of the one are those of the same samples and steps in the other."""
    pairs = ((one.batch_sizes, other.batch_sizes), (one.sorted_indices, other.sorted_indices))
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _with_data_of(batch: Any, sample: int, other: int, samples: int, axis: int) -> Any:
    """A batch in which one sample has the data of another; None if none of it has the axis.

    One number for each sample may be its length, and stays.
    """
    batch, found = copied(batch), False
    for _, tensor in tensors(batch):
        if tensor.ndim < 2 and not tensor.is_floating_point():
            continue
        along = axis if tensor.ndim > axis and tensor.shape[axis] == samples else 1 - axis
        if tensor.ndim > along and tensor.shape[along] == samples:
            # Windows over one series are views that share their memory: each gets its own first.
            tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
            with torch.no_grad():
                tensor.select(along, sample).copy_(tensor.select(along, other).clone())
            found = True
    return batch if found else None


def _carried(case: Case) -> bool:
    """Whether a layer starts from a state that is another for each sample."""
    for states in case.sight.initial.values():
        for part in states[0] or ():
            rows = part.detach().flatten(0, -2) if part.ndim > 1 else part.detach()
            if not part.requires_grad and part.ndim > 1 and bool((rows != rows[0]).any()):
                return True
    return False


def _size(case: Case) -> float:
    """The size of the predictions, which a loss near 0 is a difference of."""
    prediction = case.sight.prediction
    return 0.0 if prediction is None else float(prediction.detach().double().abs().mean())


def _rounding(case: Case) -> float:
    """What rounding may move a loss by, relative to its size."""
    loss, prediction = case.sight.loss, case.sight.prediction
    kinds = [t.dtype for t in (loss, prediction) if t is not None] + list(case.sight.autocast)
    return max([ROUNDING, *(8 * torch.finfo(kind).eps for kind in kinds if kind.is_floating_point)])


def _loss(case: Case, batch: Any, seed: int) -> float:
    """The loss of a copy without dropout, whose masks belong to places in the batch."""
    model = copied_model(case.model)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0
    with seeded(seed), torch.enable_grad(), _NoDropout():
        return float(case.loss_fn(model, copied(batch)).detach())


DROPOUTS = {
    getattr(functional, name)
    for name in (
        *("dropout", "dropout1d", "dropout2d", "dropout3d"),
        *("alpha_dropout", "feature_alpha_dropout"),
    )
}


class _NoDropout(TorchFunctionMode):
    """Dropout gives back what it is given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


def _arranged(batch: Any, order: Tensor) -> Iterator[Any]:
    """The batch with its samples in another order, in every way that can be meant."""
    samples = len(order)
    places = torch.empty_like(order)
    places[order] = torch.arange(samples)

    def pick(axes: Callable[[Tensor], list[int]]) -> Callable[[Tensor], Tensor]:
        def take(tensor: Tensor) -> Tensor:
            for axis in axes(tensor):
                tensor = tensor.index_select(axis, order.to(tensor.device))
            return tensor

        return take

    def along(*preferred: int) -> Callable[[Tensor], list[int]]:
        def axes(tensor: Tensor) -> list[int]:
            own = [axis for axis, size in enumerate(tensor.shape[:3]) if size == samples]
            return sorted(own, key=lambda axis: axis not in preferred)[:1]

        return axes

    def both(tensor: Tensor) -> list[int]:
        return [axis for axis, size in enumerate(tensor.shape[:2]) if size == samples]

    def named(tensor: Tensor) -> Tensor:
        return places.to(tensor.device)[tensor.long()].to(tensor.dtype)

    first = pick(along(0))
    try:
        for way in (first, pick(along(1)), pick(both)):
            yield _changed(batch, partial(_everywhere, way), order)
        for place, each in tensors(batch):
            if _may_name(each, samples):
                yield _changed(batch, partial(_but_at, place, named, first), order)
    except _Unknown:
        return


def _everywhere(way: Callable[[Tensor], Tensor], _: str, tensor: Tensor) -> Tensor:
    return way(tensor)


def _but_at(
    place: str,
    there: Callable[[Tensor], Tensor],
    elsewhere: Callable[[Tensor], Tensor],
    at: str,
    tensor: Tensor,
) -> Tensor:
    return there(tensor) if at == place else elsewhere(tensor)


def _may_name(tensor: Tensor, samples: int) -> bool:
    """Whether all its numbers may be those of samples."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        return False
    return bool(tensor.numel()) and 0 <= int(tensor.min()) and int(tensor.max()) < samples


def may_relate(case: Case, samples: int) -> str:
    """The place of something that may say which samples belong together; "" if there is nothing.

    A matrix of all pairs, numbers of samples in a tensor without an axis for them, an object of
    unknown kind, or numbers for each sample that the model holds itself.
    """
    targets = [each.target for each in case.sight.comparisons]
    for place, tensor in tensors(case.batch):
        if any(tensor.shape == t.shape and torch.equal(tensor, t) for t in targets):
            continue
        if tensor.is_floating_point():
            if tensor.shape == (samples, samples):
                return place
        elif tensor.numel() > 1 and _may_name(tensor, samples + 1):
            if samples not in tensor.shape or tensor.shape[0] == 2:  # edges are [2, E]
                return place
    unknown = _unknown(case.batch, "batch")
    if unknown:
        return unknown
    for module_name, module in case.model.named_modules():
        if type(module).__module__.startswith("torch."):
            continue
        held = {**module._buffers, **module._parameters}
        held |= {n: v for n, v in vars(module).items() if isinstance(v, Tensor)}
        for name, value in held.items():
            if value is not None and value.ndim > 1 and value.shape[0] == samples:
                return f"{module_name}.{name}".lstrip(".") + " of the model"
    return ""


def _unknown(value: Any, place: str) -> str:
    """The place of what is no tensor, number or container of them, or names samples in a list."""
    if isinstance(value, (*PLAIN, Tensor, PackedSequence)):
        return ""
    if isinstance(value, Mapping):
        parts = [(f"{place}[{key!r}]", each) for key, each in value.items()]
    elif isinstance(value, list | tuple):
        if len(value) > 1 and all(type(each) in (list, tuple, int) for each in value):
            return place
        parts = [(f"{place}[{n}]", each) for n, each in enumerate(value)]
    elif is_dataclass(value):
        parts = [(f"{place}.{f.name}", getattr(value, f.name, None)) for f in fields(value)]
    else:
        return place
    return next((found for where, each in parts if (found := _unknown(each, where))), "")


class _Unknown(Exception):
    """Something in the batch whose samples cannot be told."""


def _changed(
    value: Any, change: Callable[[str, Tensor], Tensor], order: Tensor, place: str = "batch"
) -> Any:
    """The batch with changed tensors, lists of one thing for each sample in the new order."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return change(place, value.detach())
    if isinstance(value, PackedSequence):
        raise _Unknown
    if isinstance(value, Mapping) and hasattr(value, "items"):
        other = copied(value)
        for key, each in value.items():
            other[key] = _changed(each, change, order, f"{place}[{key!r}]")
        return other
    if isinstance(value, list | tuple):
        if _one_for_each(value, len(order)):
            parts = [value[int(number)] for number in order]
        else:
            parts = [_changed(v, change, order, f"{place}[{n}]") for n, v in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        return replace(
            value, **{n: _changed(v, change, order, f"{place}.{n}") for n, v in own.items()}
        )
    raise _Unknown


def _one_for_each(values: list[Any] | tuple[Any, ...], samples: int) -> bool:
    """Whether a list holds one thing for each sample, and no tensors of all of them.

    Raises:
        _Unknown: for a long list of tensors that may be either.
    """
    if len(values) != samples or len({type(each) for each in values}) > 1:
        return False
    if not all(isinstance(each, Tensor) and samples in each.shape[:2] for each in values):
        return True
    if samples > FEW:
        raise _Unknown
    return False


FEW = 4
"""Up to this many samples, a batch may be a tuple of one tensor per sample."""
