"""Where to clip? Plain RNN and LSTM trained on two tasks, clipped nowhere, at the end and inside.

    python -m retrograde.tasks.clipping_study

trains every combination of task, layer, way of clipping and seed, which takes some ten minutes, and
writes what came out beside this file. The page docs/should-the-output-layer-be-clipped.md is made
of it, and the tests begin every kind of training anew.
"""

import copy
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from typing import Any

import lightning
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from retrograde.clipping import PreActivationValue
from retrograde.decomposition import decompose
from retrograde.errors import NonFiniteError
from retrograde.integrations.lightning import ClippingCallback
from retrograde.nn import ClippedInside, clip_inside, initialise
from retrograde.recording import record
from retrograde.tasks import forecast
from retrograde.tasks.clipping_results import (
    AT_THE_END,
    BATCH,
    FILE,
    HIDDEN,
    INSIDE,
    LAG,
    LAYERS,
    LOOK,
    NEVER,
    SEEDS,
    WAYS,
    Run,
)

GROUPS = {"recurrent": "model.recurrent.*", "output": "model.readout.*"}
Batch = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Task:
    """A task.

    Attributes:
        steps: of training.
        batches: the training data of a seed.
        loss: of a model's forecasts and a batch; a mean over `terms` squared errors.
        error: on held-out data.
        trivial: the error of the best forecast that needs no model.
        terms: how many squared errors the loss of a batch is a mean of.
    """

    steps: int
    batches: Callable[[int], Iterator[Batch]]
    loss: Callable[[nn.Module, Batch], Tensor]
    error: Callable[[nn.Module], float]
    trivial: float
    terms: int


def adding(samples: int, seed: int) -> tuple[Float[Tensor, "N T 2"], Float[Tensor, "N 1"]]:
    """Two of `LAG` numbers from U[0, 1] are marked, one in each half; their sum is the target.

    Knowing only the mean one is off by 1/6 on average, squared.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers, marks = torch.rand(samples, LAG, generator=generator), torch.zeros(samples, LAG)
    for start, stop in ((0, LAG // 2), (LAG // 2, LAG)):
        where = torch.randint(start, stop, (samples, 1), generator=generator)
        marks.scatter_(1, where, 1.0)
    return torch.stack((numbers, marks), -1), (numbers * marks).sum(1, keepdim=True)


@cache
def tasks() -> dict[str, Task]:
    """The adding problem, and forecasts of CO2 as in the demo."""
    return {"adding": _adding(1500), "CO2": _co2(300)}


def _adding(steps: int) -> Task:
    x, y = adding(500, 10**6)

    def batches(seed: int) -> Iterator[Batch]:
        data = TensorDataset(*adding(steps * BATCH, seed))
        return iter(DataLoader(data, batch_size=BATCH))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        error: Tensor = model(batch[0])[:, -1] - batch[1]
        return error.square().mean()

    @torch.no_grad()
    def error(model: nn.Module) -> float:
        return float(loss(model, (x, y)))

    return Task(steps, batches, loss, error, 1 / 6, BATCH)


def _co2(steps: int) -> Task:
    task = forecast.load()
    windows = task.train

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(windows.x), (steps, BATCH), generator=generator)
        return ((windows.x[some], windows.y[some], windows.scored[some]) for some in chosen)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x, y, scored = batch
        return forecast.masked_loss(model(x), y, scored)

    @torch.no_grad()
    def error(model: nn.Module) -> float:
        return task.error(model(task.test.x))

    terms = BATCH * (forecast.WEEKS - forecast.YEAR)
    return Task(steps, batches, loss, error, min(task.naive.values()), terms)


def made(layer: str, inputs: int, seed: int) -> forecast.Forecaster:
    """A forecaster that can see far from the start: orthogonal, or with a forget bias of 3."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recurrent = LAYERS[layer](inputs, HIDDEN, batch_first=True)
        model = forecast.Forecaster(recurrent)
        if layer == "RNN":
            initialise(recurrent, "orthogonal")
        else:
            initialise(recurrent, "forget-bias", value=3.0)
    return model


class _Fit(lightning.LightningModule):
    """SGD for the plain RNN, whose gradient's size then matters; Adam for the LSTM."""

    def __init__(self, model: nn.Module, task: Task, optimiser: Callable[..., Any]):
        super().__init__()
        self.model, self.task, self.optimiser = model, task, optimiser
        self.losses: list[float] = []

    def training_step(self, batch: Batch) -> Tensor:
        loss = self.task.loss(self.model, batch)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return self.optimiser(self.parameters())


OPTIMISERS: dict[str, Callable[..., Any]] = {
    "RNN": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "LSTM": lambda weights: torch.optim.Adam(weights, lr=0.01),
}


class _Look(lightning.Callback):
    """Compares the gradient that is clipped inside with the true one, on a copy of the model."""

    def __init__(self) -> None:
        self.cosines: list[float] = []

    def on_train_batch_start(self, trainer: Any, fit: Any, batch: Batch, batch_idx: int) -> None:
        if batch_idx % LOOK:
            return
        model = copy.deepcopy(fit.model)
        with record(model) as recording:
            fit.task.loss(model, batch).backward()
        self.cosines.append(decompose(recording, max_rows=1).clipped().cosine())


def train(name: str, layer: str, way: str, seed: int, steps: int | None = None) -> Run:
    """One training, of all its steps or of the first ones alone."""
    task = tasks()[name]
    model = made(layer, 2 if name == "adding" else 1, seed)
    look, inside = _Look(), None
    if way == INSIDE:
        inside = clip_inside(model, PreActivationValue(1.0 / task.terms))
    clipping = ClippingCallback(AT_THE_END.get(way, NEVER), groups=GROUPS)
    fit = _Fit(model, task, OPTIMISERS[layer])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps or task.steps,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[clipping, look] if inside else [clipping],
    )
    finite = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers
        try:
            trainer.fit(fit, _Batches(task.batches(seed)))
        except NonFiniteError:
            finite = False
    return _run((name, layer, way, seed), task, fit, clipping, look, inside, finite)


class _Batches:
    """An iterator as Lightning wants it: something with an iterator of its own."""

    def __init__(self, batches: Iterator[Batch]):
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return self._batches


def _run(
    which: tuple[str, str, str, int],
    task: Task,
    fit: _Fit,
    clipping: ClippingCallback,
    look: _Look,
    inside: ClippedInside | None,
    finite: bool,
) -> Run:
    error = task.error(fit.model) if finite else math.nan
    assert clipping.clipper is not None
    groups = clipping.clipper.statistics().groups
    rates = {name: groups[name].clip_rate for name in GROUPS}
    cosine = groups["all"].cosine
    if inside is not None:
        rates, cosine = {"recurrent": next(iter(inside.clip_rate.values()))}, _mean(look.cosines)
    norms = {name: groups[name].norm[50] for name in GROUPS}
    diverged = not error <= task.trivial * 1.5
    return Run(*which, error, diverged, rates, cosine, norms, tuple(fit.losses[:5]))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def study(seeds: range = SEEDS) -> Iterator[Run]:
    """All trainings."""
    for which in product(tasks(), LAYERS, WAYS, seeds):
        yield train(*which)


if __name__ == "__main__":
    runs = []
    for run in study():
        runs.append(asdict(run))
        print(run, flush=True)
    FILE.write_text(json.dumps(runs, indent=1) + "\n")
