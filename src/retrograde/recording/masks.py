"""The masks of a dropout between layers, drawn once more from where the random generator stood.

torch draws them inside its kernel and keeps them to itself. On a CPU the same draws can be
repeated; whether they were is seen from the layer's output (readings.py).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.recording.calls import Call, data


def masks_of(call: Call) -> list[Float[Tensor, "T B W"]]:
    """What the outputs of each layer but the last were multiplied by: ones without a dropout."""
    steps = (
        call.sequence(call.x)[0].shape[:2] if isinstance(call.x, Tensor) else data(call.x).shape[:1]
    )
    width = call.form.directions * call.cells[0].output_size
    device = call.output.device
    ones = torch.ones(*steps, width, dtype=call.output.dtype, device=device)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if call.random is not None and on_gpu:
            torch.cuda.set_rng_state(call.random, device)
        elif call.random is not None:
            torch.set_rng_state(call.random)
        drawn = [torch.dropout(ones, call.form.dropout, True) for _ in range(call.form.layers - 1)]
    if isinstance(call.x, Tensor):
        return [mask.to(call.dtype) for mask in drawn]
    return [call.outputs(mask) for mask in drawn]
