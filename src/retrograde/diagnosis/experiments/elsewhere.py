"""Is a named lag another layer's, or bridged by another way than the recurrence?

A layer is judged by its own recurrence. A lag of the whole model may span several layers, as from a
decoder into its encoder, and attention or pooling reads far steps without any memory.
"""

import torch
from torch import Tensor

from retrograde.diagnosis.experiments.dependence import by_sample
from retrograde.diagnosis.sight import Read, Sight

FELT = 0.1
"""Of what comes from the latest steps: ten times what reach asks for, so that no layer that falls
short of the lag can have handed it on."""


def not_its_own(sight: Sight, layer: str, lag: int, steps: int) -> str:
    """Why a lag is nothing to judge a layer of this many steps by; "" if it is."""
    if len(sight.reads) > 1 and lag >= steps:
        return f"it has {steps} steps, and the lag of {lag} spans other layers"
    if _bridged(sight, layer, lag):
        return f"the last prediction sees {lag} steps back by another way than its recurrence"
    return ""


def _bridged(sight: Sight, layer: str, lag: int) -> bool:
    """Whether the last prediction depends on what a layer read a lag ago as on the latest steps.

    By whatever way: where a layer hands on too little, it is another one.
    """
    reads = sight.reads.get(layer, [])
    if not reads or sight.prediction is None or not sight.prediction.requires_grad:
        return False
    for view in by_sample(sight.prediction, reads[0].samples, reads[0].steps)[:1]:
        newest = view[:, -1] if view.ndim > 2 else view
        total = newest.sum()
        sizes = torch.cat([_by_step(read, _felt(total, read, sight)) for read in reads])
        if lag < len(sizes):
            return bool(sizes[: len(sizes) - lag].max() >= FELT * sizes.max() > 0)
    return False


def _felt(total: Tensor, read: Read, sight: Sight) -> Tensor:
    """The gradient at what a layer was given, through every layer that was given the same.

    The directions of a bidirectional layer may be two modules.
    """
    every = [each for reads in sight.reads.values() for each in reads]
    same = {id(each.x): each.x for each in every if each.given is read.given}
    found = torch.autograd.grad(
        total, list(same.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.stack(found).sum(0)


def _by_step(read: Read, gradient: Tensor) -> Tensor:
    """The norm of a gradient at each step, in the order of the recurrence; of a packed sequence, at
    each step of the longest.
    """
    sizes: Tensor = gradient.detach().double()
    if read.packed is not None:
        counts = read.packed.batch_sizes.tolist()
        return torch.stack([torch.linalg.vector_norm(part) for part in torch.split(sizes, counts)])
    steps = sizes.unsqueeze(0) if read.time_axis is None else sizes.movedim(read.time_axis, 0)
    steps = steps.flip(0) if read.backwards else steps
    return steps.flatten(1).square().sum(1).sqrt()
