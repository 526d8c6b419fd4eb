"""Memory of large results, which is kept from call to call.

What is freed in one large piece goes back to the system, and each page of the next piece costs a
fault and is filled with zeros: where rows are handed out by the megabyte, as long as they take to
be computed.
"""

import math
import weakref
from collections import deque

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

SMALL, LARGE = 2**18, 2**25
"""Bytes: smaller ones the allocator keeps itself, and larger ones are too much to keep."""

COUNT = 4
"""How many pieces are kept for the whole process, so that it is 128 MiB at most."""

_kept: deque[NDArray[numpy.uint8]] = deque(maxlen=COUNT)
"""Those that nobody holds, the latest last; threads append and pop without a lock."""


def room(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor; its memory is used again once no tensor holds it any more."""
    size = math.prod(shape) * like.element_size()
    if not SMALL <= size <= LARGE:
        return like.new_empty(shape)
    memory = _taken(1 << (size - 1).bit_length())
    start = -memory.ctypes.data % 64  # as torch has it
    part = memory[start : start + size]
    weakref.finalize(part, _kept.append, memory).atexit = False
    return torch.from_numpy(part).view(like.dtype).view(shape)


def _taken(size: int) -> NDArray[numpy.uint8]:
    """So many bytes and some to align them by, kept ones if there are any."""
    for _ in range(COUNT):
        try:
            memory = _kept.pop()
        except IndexError:
            break
        if memory.nbytes == size + 64:
            return memory
        _kept.appendleft(memory)
    return numpy.empty(size + 64, numpy.uint8)
