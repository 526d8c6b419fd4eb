"""How the horizon grows while a network learns: the same batches at several checkpoints."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

from retrograde import _checks
from retrograde.declarations.matching import Declared
from retrograde.diagnosis.copies import copied_model
from retrograde.diagnosis.examine import Progress
from retrograde.diagnosis.run import LossFunction
from retrograde.errors import ArgumentError
from retrograde.horizons.over_batches import BATCHES, TRAINING_STEPS, horizon
from retrograde.horizons.shorter import Cut
from retrograde.horizons.used import PASTS
from retrograde.truncation import Horizon


def over_training(
    model: nn.Module,
    batches: Any,
    loss_fn: LossFunction,
    checkpoints: Mapping[str, Mapping[str, Tensor]],
    *,
    kind: str = "sliding",
    layer: str | None = None,
    most: int = BATCHES,
    training_steps: int = TRAINING_STEPS,
    batch_size: int | None = None,
    past: str = PASTS[0],
    cut: Cut | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cells: Declared | None = None,
) -> dict[str, Horizon]:
    """The horizon of a model at several checkpoints, on the same batches.

    Args:
        model: the model; it is copied, and a copy takes the weights of each checkpoint.
        batches: as in `retrograde.horizon`.
        loss_fn: as there.
        checkpoints: state dicts by name, in order of training.
        kind, layer, most, training_steps, batch_size, past, cut, seed, cells: as there.
        progress: called with (batches done, batches in all, what comes next), at each checkpoint.

    Returns:
        The horizons by the name of the checkpoint.

    Raises:
        ArgumentError: if there is no checkpoint or one does not fit the model, and as in
            `retrograde.horizon`.

    Example:
        >>> import torch
        >>> from retrograde.horizons import over_training
        >>> model = torch.nn.RNN(1, 3)
        >>> kept = {"fresh": {n: w.clone() for n, w in model.state_dict().items()}}
        >>> with torch.no_grad():
        ...     _ = model.weight_hh_l0.mul_(2)
        >>> kept["later"] = model.state_dict()
        >>> found = over_training(model, torch.ones(9, 2, 1), lambda m, x: m(x)[0].sum(), kept)
        >>> list(found)
        ['fresh', 'later']
    """
    _checks.model("model", model)
    _checks.mapping("checkpoints", checkpoints, "of names to state dicts")
    if not checkpoints:
        raise ArgumentError("checkpoints must hold at least one state dict; got none")
    seed, most = _checks.whole("seed", seed, -(2**63), 2**64 - 1), _checks.whole("most", most)
    if isinstance(batches, Iterator):  # every checkpoint sees the same ones
        drawn = list(islice(batches, most))

        def batches(number: int) -> Any:
            return drawn[(number - seed) % len(drawn)]

        most = min(most, len(drawn))
    return {
        name: horizon(
            _with_weights(model, name, weights),
            batches,
            loss_fn,
            kind=kind,
            layer=layer,
            most=most,
            training_steps=training_steps,
            batch_size=batch_size,
            past=past,
            cut=cut,
            seed=seed,
            progress=None if progress is None else _at(progress, name),
            cells=cells,
        )
        for name, weights in checkpoints.items()
    }


def _at(progress: Progress, name: str) -> Progress:
    """Progress that says at which checkpoint it is."""
    return lambda done, total, what: progress(done, total, f"{name}: {what}")


def _with_weights(model: nn.Module, name: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model with the weights of a checkpoint."""
    copy = copied_model(model)
    try:
        copy.load_state_dict(dict(_checks.mapping("a checkpoint", weights, "of names to weights")))
    except (RuntimeError, TypeError) as error:
        said = " ".join(str(error).split())
        raise ArgumentError(f"the checkpoint {name!r} does not fit the model: {said}") from None
    return copy
