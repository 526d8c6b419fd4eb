"""In which precision a layer computes, and in which it is taken apart."""

import torch
from torch import Tensor, nn

from retrograde.nn import AbstractRecurrent

ANALYSED = (torch.float32, torch.float64)
"""Lower precisions are taken apart in float32."""

TENSOR_FLOAT = 2.0**-10
"""The rounding error of TensorFloat-32, which keeps 10 bits after the leading one."""


def rounding_of(module: nn.Module, output: Tensor) -> float:
    """The largest relative rounding error (machine epsilon) in a call of a layer.

    Its tensors do not show it: under autocast a layer with float32 weights multiplies in bfloat16,
    and on a GPU float32 may be multiplied in TensorFloat-32, as cuDNN does for recurrent layers
    unless told otherwise.
    """
    found = [torch.finfo(output.dtype).eps]
    kind = output.device.type
    ours = isinstance(module, AbstractRecurrent)  # which leave autocast alone
    torchs = isinstance(module, nn.RNNBase | nn.RNNCellBase)
    if not ours and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        found.append(torch.finfo(torch.get_autocast_dtype(kind)).eps)
    if output.dtype == torch.float32:
        multiplied = torch.get_float32_matmul_precision()
        if multiplied == "medium":
            found.append(torch.finfo(torch.bfloat16).eps)
        elif multiplied == "high" or (torchs and kind == "cuda" and _cudnn_rounds()):
            found.append(TENSOR_FLOAT)
    return max(found)


def _cudnn_rounds() -> bool:
    """Whether cuDNN may use TensorFloat-32; torch refuses to say where its settings disagree."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return True
