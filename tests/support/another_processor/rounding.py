"""A processor that rounds otherwise, played on this one.

Processors agree on the sum, product and quotient of two numbers. They differ in what is put
together from many: in the order of a sum, in fused multiply-adds, in the polynomial that stands for
tanh. Here the results of such operations are moved by a few units in the last place, up or down. As
on a real processor the same call gives the same bits again, and what is exact on all of them stays
exact: the sum of a few small integers, sigmoid(0).

What a test or a page shows of numbers must not change under it. That says more than the instruction
sets of the machine at hand: neither Arm nor another maker's matrix product is among them.
"""

import zlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SUMS = """
    mm addmm bmm baddbmm mv addmv dot vdot addr sum mean prod var std norm linalg_vector_norm cumsum
    logsumexp addcmul addcdiv lerp linalg_qr _linalg_svd _linalg_slogdet _linalg_eigh linalg_eig
    _linalg_eigvals linalg_lu_factor_ex _linalg_solve_ex linalg_inv_ex
"""
CURVES = """
    exp exp2 expm1 log log2 log10 log1p tanh sigmoid sin cos tan asin acos atan atanh sinh cosh pow
    erf erfinv softplus log_sigmoid_forward _softmax _log_softmax rsqrt tanh_backward
    sigmoid_backward log_sigmoid_backward softplus_backward _softmax_backward_data
    _log_softmax_backward_data
"""
OPERATIONS = frozenset((SUMS + CURVES).split())

BITS = {torch.float32: (torch.int32, 2**8 - 1), torch.float64: (torch.int64, 2**20 - 1)}
"""An integer as wide as the number, and its last bits: where all of these are 0 a result is taken
for exact."""


class AnotherProcessor(TorchDispatchMode):
    """In this block sums and curves are off by up to so many units in the last place."""

    def __init__(self, ulps: int) -> None:
        super().__init__()
        self.ulps = ulps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name not in OPERATIONS:
            return result
        if isinstance(result, torch.Tensor):
            return self.moved(result, name)
        return tuple(self.moved(part, f"{name}.{n}") for n, part in enumerate(result))

    def moved(self, result: Any, name: str) -> Any:
        if not isinstance(result, torch.Tensor) or result.dtype not in BITS or not result.numel():
            return result
        integer, last = BITS[result.dtype]
        tiny, largest = 2 * torch.finfo(result.dtype).tiny, torch.finfo(result.dtype).max / 2
        bits = result.contiguous().view(integer)
        size = result.abs()
        free = (bits & last != 0) & (size > tiny) & (size < largest)
        seed = zlib.crc32(repr((name, tuple(result.shape))).encode())
        generator = torch.Generator().manual_seed(seed)
        ulps = torch.randint(-self.ulps, self.ulps + 1, bits.shape, generator=generator)
        return (bits + ulps * free).to(integer).view(result.dtype)
