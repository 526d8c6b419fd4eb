"""Whether a declared recurrence does what its module did: the outputs of its replay, step by step.

A step that differs in one term parts from the module at the first step; rounding grows with the
steps, and in a chaotic recurrence with every one of them. So the replay is run once more with its
weights moved by one rounding, and may part from the module by a multiple of what that moves.
"""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from retrograde.cells import AbstractCell
from retrograde.cells.trying_out import tried
from retrograde.declarations.declaration import without
from retrograde.declarations.reading import OUTPUT
from retrograde.errors import ArgumentError, RecordingError
from retrograde.recording.calls import Call
from retrograde.recording.form import Form
from retrograde.recording.weights import Weights

ROUNDINGS = 64
"""Allowed multiple of a rounding error of the size of the outputs, and of what rounding moves."""


def moved(cell: AbstractCell, rounding: float) -> AbstractCell:
    """The cell with its weights moved up or down by one rounding."""
    generator = torch.Generator().manual_seed(0)

    def other(weight: Tensor) -> Tensor:
        signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight)
        return weight * (1 + rounding * (2 * signs - 1))

    return cell.with_parameters({name: other(w) for name, w in cell.parameters.items()})


def declared_cells(
    form: Form, weights: Weights, reached: Collection[str]
) -> tuple[tuple[AbstractCell, ...], dict[str, str]]:
    """The cells of a declared recurrence, tried out, and whose weights theirs are.

    Args:
        form: how the module lays things out.
        weights: copies of its weights.
        reached: those of them that got a gradient; the others are no parameters of the cell.

    Returns:
        The cells, and the module's name of each of their parameters.

    Raises:
        RecordingError: with what is wrong with the step, or for a cell that does not take the
            module's weights as they are.
    """
    try:
        cells = tried(without(cell, weights.copies.keys() - reached) for cell in weights.cells)
    except ArgumentError as error:
        hint = (
            "; weights= of the declaration names those that the step uses, start= what a sequence "
            "starts from"
        ) * ("does not depend" in str(error))
        raise RecordingError(f"its declared recurrence cannot be used: {error}{hint}") from None
    whose = {id(copy): name for name, copy in weights.copies.items()}
    names = {}
    for cell, suffix in zip(cells, form.suffixes, strict=True):
        for name, weight in cell.parameters.items():
            if id(weight) not in whose:
                raise RecordingError(
                    f"its declared cell computes {name} from the module's weights, so that the two "
                    "gradients cannot be compared; give the cell the weights as they are, or "
                    "declare a step function"
                )
            names[name + suffix] = whose[id(weight)]
    return cells, names


def check_shapes(calls: Sequence[Call]) -> None:
    """See that every part of a state is as large as the samples and the cell say.

    Raises:
        RecordingError: with what does not fit.
    """
    if all(call.steps is not None and not bool((call.steps > 0).any()) for call in calls):
        raise RecordingError("the lengths of all its samples are 0: there is no step")
    for call in calls:
        if call.steps is not None and len(call.steps) != call.batch:
            raise RecordingError(
                f"its lengths cannot be read: expected the number of steps of each of {call.batch} "
                f"samples; got those of {len(call.steps)}; declare lengths="
            )
        steps, batch = call.sequence(call.x)[0].shape[:2]
        slots = call.cells[0].slots
        for name, part in (*call.given.items(), *call.last.items()):
            width = slots[name].stop - slots[name].start if name in slots else 0
            layers = len(call.form.positions) or 1
            fits = part.shape[-1:] == (width,) and part.numel() in (width, batch * layers * width)
            if not fits or (call.form.positions and len(part) != layers):
                raise RecordingError(
                    f"its state cannot be read: {name} has shape {tuple(part.shape)}, but the "
                    f"call is read as {batch} samples of {steps} steps, with {width} entries of "
                    f"{name!r}; declare the layout (batch_first=), which argument or result is "
                    "meant (x=, initial=, last=), or the sizes (state=)"
                )
        if OUTPUT in call.sequences and not isinstance(call.x, PackedSequence):
            found = tuple(call.outputs(call.output).shape[:2])
            if found != (steps, batch):
                raise RecordingError(
                    f"its output cannot be read: {found[1]} samples of {found[0]} steps, where the "
                    f"input has {batch} samples of {steps} steps; declare output= or x="
                )


def check_agreement(
    what: str,
    ran: Float[Tensor, "T B M"],
    ours: Float[Tensor, "T B M"],
    disturbed: Float[Tensor, "T B M"],
    rounding: float,
    first: int = 0,
    drew: bool = False,
) -> None:
    """See that the replay of a call gives what the module gave.

    Args:
        what: what is compared, for the message.
        ran: what the module gave.
        ours: what the replay gives.
        disturbed: what it gives with weights that a rounding moved.
        rounding: the relative rounding error of the arithmetic that the module ran in.
        first: the number of the first step that is compared.
        drew: the module drew random numbers.

    Raises:
        RecordingError: with the first step at which they part, and by how much.
    """
    size = ran.abs().flatten(1).amax(1).cummax(0).values.clamp(min=torch.finfo(ran.dtype).tiny)
    apart = (ours - ran).abs().flatten(1).amax(1)
    drift = (disturbed - ours).abs().flatten(1).amax(1).cummax(0).values
    allowed = ROUNDINGS * torch.maximum(rounding * size, drift)
    known = ran.isfinite().flatten(1).all(1) & allowed.isfinite()
    wrong = torch.nonzero(known & ~(apart <= allowed)).flatten()
    if not len(wrong):
        return
    step = int(wrong[0])
    sample, unit = divmod(int((ours[step] - ran[step]).abs().flatten().argmax()), ran.shape[2])
    got, wanted = float(ours[step, sample, unit]), float(ran[step, sample, unit])
    share, explained = float(apart[step] / size[step]), float(allowed[step] / size[step])
    raise RecordingError(
        f"its declared recurrence does not give what the module gave: {what} part at step "
        f"{first + step}, most in sample {sample}, unit {unit}: {got:.6g} in place of "
        f"{wanted:.6g} ({share:.1e} of its size, where rounding explains {explained:.1e})"
        + _advice(first + step, drew)
    )


def _advice(step: int, drew: bool) -> str:
    if drew:
        return (
            ". The module drew random numbers while it ran (a dropout, noise), which the step does "
            "not repeat: call model.eval() or set the dropout to 0 for the recorded pass"
        )
    if step:
        return ". Up to there they agree: look at what the module does only from some step on"
    return (
        ". Look at the layout (batch_first=, x=), at the initial state (initial=) and at the step: "
        "the order of gates, a bias that is left out"
    )
