"""A second device for machines without one: tensors that refuse to meet those of the CPU.

A `There` holds a tensor of the CPU, says that it is elsewhere, and lets an operation through only
where a GPU would: all tensors there, or numbers without an axis, or positions given by the CPU.
What is computed is computed on the CPU, so that the numbers are to be the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
"""What it is called: a device that every build of torch knows, and that needs no driver."""

MOVES = {"aten::copy_", "aten::_to_copy"}
POSITIONS = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class There(Tensor):
    """A tensor on the other device."""

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        return Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.tolist:
            return args[0].here.tolist()
        if func is Tensor.new_tensor:
            return There(args[0].here.new_tensor(*args[1:], **kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """torch.tensor copies from lists before anything is dispatched."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor and _is_there(kwargs.get("device")):
            return There(func(*args, **(kwargs | {"device": "cpu"})))
        return func(*args, **kwargs)


@contextmanager
def another_device() -> Iterator[None]:
    """Within, tensors can also be made there, with `device=`."""
    with _Functions(), _Dispatch():
        yield


def _is_there(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device) == DEVICE


def _run(func, args, kwargs):
    name = func._schema.name
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, There)]
    here = [each for each in tensors if not isinstance(each, There) and each.ndim]
    if name in POSITIONS:  # on the CPU, or where the tensor is that they point into
        values = [each for each in args[2:3] if isinstance(each, Tensor) and each.ndim]
        here = [each for each in (args[0], *values) if not isinstance(each, There)]
    if there and here and name not in MOVES:
        raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
    result_there = bool(there)
    if name == "aten::copy_":
        result_there = isinstance(args[0], There)
    if kwargs.get("device") is not None:
        result_there = _is_there(kwargs["device"])
        kwargs = kwargs | {"device": torch.device("cpu")}
    own = {id(each.here): each for each in there}

    def placed(result):
        if id(result) in own:  # written to in place
            return own[id(result)]
        return There(result) if isinstance(result, Tensor) and result_there else result

    args, kwargs = tree_map(
        lambda each: each.here if isinstance(each, There) else each, (args, kwargs)
    )
    return tree_map(placed, func(*args, **kwargs))
