"""One-step-ahead forecasts of the weekly change of CO2, from windows of 104 weeks.

A window holds 104 weekly changes. From the 53rd on, each step forecasts the change of the week that
follows, so every forecast has at least a full year behind it. Changes that touch a missing week are
fed in (interpolated) but never scored.
"""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from jaxtyping import Bool, Float
from lightning.pytorch.callbacks import LambdaCallback, RichProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from retrograde.data import mauna_loa_co2

WEEKS = 104
YEAR = 52
FIRST_TEST_YEAR = 1988
HIDDEN = 32
BATCH = 32
LEARNING_RATE = 2e-3
CLIP = 1.0


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of weekly changes, in units of the training set's standard deviation.

    Attributes:
        x: changes fed in, shape [N, 104, 1].
        y: the change that follows each step, shape [N, 104, 1].
        scored: steps that count, shape [N, 104, 1].
    """

    x: Float[Tensor, "N T 1"]
    y: Float[Tensor, "N T 1"]
    scored: Bool[Tensor, "N T 1"]


@dataclass(frozen=True, eq=False)
class Task:
    """Training windows (every start), held-out windows (each week scored once), and the unit."""

    train: Windows
    test: Windows
    unit: float

    @property
    def naive(self) -> dict[str, float]:
        """Test errors in ppm of the two forecasts that need no model."""
        year_ago = self.test.x.roll(YEAR - 1, 1)  # the change 52 weeks before the one forecast
        return {
            "no change": self.error(torch.zeros_like(self.test.y)),
            "last year's change": self.error(year_ago),
        }

    def error(self, forecast: Float[Tensor, "N T 1"]) -> float:
        """Root mean square error on the held-out windows, in ppm."""
        return float(masked_loss(forecast, self.test.y, self.test.scored).sqrt()) * self.unit


def load(dtype: torch.dtype = torch.float32) -> Task:
    """The task on the record that ships with the package; 1988 to 2001 are held out."""
    record = mauna_loa_co2()
    change = record.ppm.diff()
    unknown = record.missing[1:] | record.missing[:-1]
    split = next(i for i, day in enumerate(record.dates) if day.year >= FIRST_TEST_YEAR)
    unit = float(change[:split][~unknown[:split]].std())
    change = (change / unit).to(dtype)
    return Task(
        _windows(change[:split], unknown[:split], stride=1),
        _windows(change[split:], unknown[split:], stride=WEEKS - YEAR),
        unit,
    )


def _windows(change: Float[Tensor, "W"], unknown: Bool[Tensor, "W"], stride: int) -> Windows:
    values = change.unfold(0, WEEKS + 1, stride).unsqueeze(-1)
    known = ~unknown.unfold(0, WEEKS + 1, stride).unsqueeze(-1)
    late_enough = (torch.arange(WEEKS) >= YEAR).view(1, -1, 1)
    return Windows(values[:, :-1], values[:, 1:], known[:, 1:] & late_enough)


def masked_loss(
    forecast: Float[Tensor, "N T 1"], y: Float[Tensor, "N T 1"], scored: Bool[Tensor, "N T 1"]
) -> Float[Tensor, ""]:
    """Mean squared error over the scored steps."""
    return (forecast - y)[scored].square().mean()


class Forecaster(nn.Module):
    """A recurrent layer of torch and a linear read-out at every step."""

    def __init__(self, recurrent: nn.RNNBase):
        super().__init__()
        self.recurrent = recurrent
        self.readout = nn.Linear(recurrent.hidden_size, 1, dtype=next(recurrent.parameters()).dtype)

    def forward(self, x: Float[Tensor, "N T I"]) -> Float[Tensor, "N T 1"]:
        forecast: Tensor = self.readout(self.recurrent(x)[0])
        return forecast


def forecasters(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Forecaster]:
    """A plain RNN and an LSTM of the same size, freshly initialised."""
    kinds: dict[str, type[nn.RNN] | type[nn.LSTM]] = {"RNN": nn.RNN, "LSTM": nn.LSTM}
    models = {}
    for name, kind in kinds.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models[name] = Forecaster(kind(1, HIDDEN, batch_first=True, dtype=dtype))
    return models


def train(
    model: Forecaster, windows: Windows, epochs: int, seed: int, progress: bool
) -> dict[str, dict[str, Tensor]]:
    """Train a model in place, with Lightning's loop and progress bar.

    Returns:
        The weights by when they were kept: "fresh" and after each epoch.
    """
    kept = {"fresh": _copy(model)}
    keep = LambdaCallback(
        on_train_epoch_end=lambda trainer, _: kept.update(
            {f"epoch {trainer.current_epoch + 1}": _copy(model)}
        )
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = DataLoader(
        TensorDataset(windows.x, windows.y, windows.scored),
        batch_size=BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=CLIP,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=[keep, *([RichProgressBar(leave=False)] if progress else [])],
    )
    with warnings.catch_warnings():
        # The windows are in memory already: worker processes would only cost time.
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        # Lightning 2.6 calls torch.utils._pytree in a way that torch 2.13 deprecates.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        trainer.fit(_Fit(model), data)
    return kept


def _copy(model: Forecaster) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


class _Fit(lightning.LightningModule):
    def __init__(self, model: Forecaster):
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor]) -> Tensor:
        x, y, scored = batch
        loss = masked_loss(self.model(x), y, scored)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)
