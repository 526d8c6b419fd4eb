"""Original and remedy trained side by side, for what only training can tell. Lightning trains."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from retrograde._optional import optional
from retrograde.clipping import Clipper, GlobalNorm, suggest
from retrograde.clipping.groups import ALL
from retrograde.diagnosis.finding import Finding, Training, Trial
from retrograde.diagnosis.remedies import Afterwards
from retrograde.diagnosis.run import LossFunction, scalar
from retrograde.diagnosis.trials import Clinic, Treated, in_words
from retrograde.diagnosis.unharmed import copied, copied_model, seeded
from retrograde.errors import ClippingError, MissingExtraError, NonFiniteError

MOST = 4
"""So many remedies are trained."""

LEARNING_RATE = 1e-3
OPTIMIZER = f"Adam, learning rate {LEARNING_RATE:g}, the same batch at every step"


@dataclass(frozen=True)
class Trained:
    """How a training went.

    Attributes:
        losses: at each step.
        norms: those of the gradient before anything was done to it, at each step at which it was
            finite, by group.
    """

    losses: tuple[float, ...]
    norms: Mapping[str, Tensor]


def train(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    steps: int,
    seed: int,
    afterwards: Afterwards | None = None,
) -> Trained:
    """So many steps of training; the model itself is left alone.

    Args:
        model: is copied.
        batch: the one batch.
        loss_fn: as in `diagnose`.
        steps: how many.
        seed: of what is random.
        afterwards: what is done to the gradients before each step (clipping).

    Raises:
        MissingExtraError: if Lightning is not installed.
    """
    with optional("training a remedy", "lightning"):
        import lightning

    losses: list[float] = []

    class Fit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = copied_model(model)
            self.norms = Clipper(self.model, GlobalNorm(math.inf))  # it only measures

        def training_step(self, _: int) -> Tensor:
            loss = scalar(loss_fn(self.model, copied(batch)))
            losses.append(float(loss.detach()))
            return loss

        def on_before_optimizer_step(self, _: object) -> None:
            with suppress(NonFiniteError, ClippingError):
                self.norms()
            if afterwards is not None:
                afterwards(self.model)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)

    device = next(model.parameters()).device
    with warnings.catch_warnings(), _hushed(), seeded(seed), torch.enable_grad():
        warnings.simplefilter("ignore")  # Lightning's advice about workers, devices and loggers
        trainer = lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        fit = Fit()
        modes = {module: module.training for module in fit.model.modules()}
        numbers: Any = DataLoader(range(steps), batch_size=None)  # type: ignore[arg-type]
        fit.train()
        for module, mode in modes.items():
            module.training = mode
        trainer.fit(fit, numbers)
    with suppress(ClippingError):
        return Trained(tuple(losses), fit.norms.norms())
    return Trained(tuple(losses), {})


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what Lightning says about devices, and with its logger as it was afterwards."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def plan(
    findings: Sequence[Finding], treated: Mapping[tuple[str, str], Treated], most: int = MOST
) -> list[tuple[str, str]]:
    """The (layer, remedy) pairs worth training.

    The best of each finding, and those of which training tells more than one pass does.
    """
    pairs: dict[tuple[str, str], None] = {}
    for finding in findings:
        if finding.layer is None:
            continue
        tried = [((finding.layer, trial.remedy), trial.helped) for trial in finding.trials]
        best = [pair for pair, helped in tried if helped][:1]
        others = [pair for pair, _ in tried if treated[pair].applied.by_training]
        pairs |= dict.fromkeys(best + others)
    return list(pairs)[:most]


def train_remedies(
    clinic: Clinic,
    findings: Sequence[Finding],
    treated: Mapping[tuple[str, str], Treated],
    steps: int,
    tell: Callable[[str], object],
) -> list[Finding]:
    """The findings with the curves of their best remedies beside that of the original.

    Args:
        clinic: the model.
        findings: with their trials.
        treated: the models after each remedy.
        steps: how many steps to train.
        tell: called with what is trained next, before each training.
    """

    problems: dict[tuple[str, str], str] = {}

    def curve(model: nn.Module, afterwards: Afterwards | None = None) -> Trained:
        return train(model, clinic.batch, clinic.loss_fn, steps, clinic.seed, afterwards)

    pairs = plan(findings, treated)
    if not pairs:
        return list(findings)
    tell("training the original")
    curves: dict[tuple[str, str], Trained] = {}
    original = Trained((), {})
    try:
        original = curve(clinic.model)
    except MissingExtraError:
        raise
    except Exception as error:  # the model may not stand training; that is an answer too
        problems = dict.fromkeys(pairs, in_words(error))
        pairs = []
    for layer, remedy in pairs:
        tell(f"training {remedy} on {layer}")
        one = treated[layer, remedy]
        try:
            curves[layer, remedy] = curve(one.model, one.applied.afterwards)
        except Exception as error:
            problems[layer, remedy] = in_words(error)

    def with_curve(layer: str | None, trial: Trial) -> Trial:
        if layer is not None and (layer, trial.remedy) in problems:
            said = f"could not be trained: {problems[layer, trial.remedy]}"
            return replace(trial, note="; ".join(filter(None, (trial.note, said))))
        if layer is None or (layer, trial.remedy) not in curves:
            return trial
        training = Training(OPTIMIZER, original.losses, curves[layer, trial.remedy].losses)
        note = "; ".join(filter(None, (trial.note, _threshold(trial.remedy, original.norms))))
        return replace(trial, training=training, note=note)

    return [
        replace(finding, trials=tuple(with_curve(finding.layer, trial) for trial in finding.trials))
        for finding in findings
    ]


def _threshold(remedy: str, norms: Mapping[str, Tensor]) -> str:
    """What the norms of the original's training say of a threshold, for clipping by norm."""
    if remedy != "clip" or not norms or not bool((norms[ALL] > 0).any()):
        return ""
    return "from the norms while the original trained: " + str(suggest(norms)).replace("\n", " ")
