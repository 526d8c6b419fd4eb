"""The recurrent models of darts, as they are, in their own trainer."""

import pytest
import torch

darts = pytest.importorskip("darts", reason="run `make test-integrations` (darts)")

import numpy as np  # noqa: E402
from darts.models import BlockRNNModel, RNNModel  # noqa: E402
from darts.utils.likelihood_models.torch import GaussianLikelihood  # noqa: E402
from plain_loop import FLOAT32, agrees, plain_loop  # noqa: E402
from pytorch_lightning import Callback  # noqa: E402

import retrograde  # noqa: E402
from retrograde.data import mauna_loa_co2  # noqa: E402
from retrograde.integrations.lightning import MonitorCallback  # noqa: E402

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")

LENGTH, H = 12, 4


def series(dtype=np.float32):
    weekly = mauna_loa_co2().ppm[:60].numpy()
    return darts.TimeSeries.from_values(((weekly - weekly.mean()) / weekly.std()).astype(dtype))


class KeepBatch(Callback):
    """The latest batch of a training, to go through the model once more."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch


def model_of(kind, name, callbacks, epochs, **options):
    lengths = (
        {"training_length": LENGTH, "input_chunk_length": LENGTH - 4}
        if kind is RNNModel
        else {"input_chunk_length": LENGTH, "output_chunk_length": 3}
    )
    return kind(
        **lengths,
        model=name,
        hidden_dim=H,
        batch_size=8,
        n_epochs=epochs,
        random_state=0,
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "callbacks": callbacks,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        **options,
    )


CASES = [
    (RNNModel, "LSTM", {}),
    (RNNModel, "GRU", {"n_rnn_layers": 2}),
    (RNNModel, "RNN", {"likelihood": GaussianLikelihood()}),
    (BlockRNNModel, "LSTM", {"n_rnn_layers": 2}),
    (BlockRNNModel, "GRU", {}),
]


@pytest.mark.parametrize(
    ("kind", "name", "options"), CASES, ids=[f"{k.__name__}-{n}" for k, n, _ in CASES]
)
def test_every_lag_is_that_of_a_plain_loop(kind, name, options):
    kept = KeepBatch()
    forecaster = model_of(kind, name, [kept], 1, **options)
    forecaster.fit(series(np.float64))  # they train in the data type of the series
    module = forecaster.model.train()
    assert next(module.parameters()).dtype == torch.float64
    module.log = lambda *_, **__: None  # outside of a trainer there is nowhere to log to

    def run():
        return module.training_step(kept.batch, 0)

    with retrograde.record(module) as recording:
        run().backward()
    (flow,) = (retrograde.decompose(recording[layer]) for layer in recording)
    assert flow.steps == LENGTH
    agrees(flow, plain_loop(module.rnn, run))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_the_training_is_the_same_to_the_last_bit(name, unchecked):
    """200 steps or more of their trainer, every one of them recorded, and none."""
    ends = []
    for watched in (False, True):
        callback = MonitorCallback(every=1, images_every=None)
        callbacks = [callback] if watched else []
        forecaster = model_of(RNNModel, name, callbacks, 34, n_rnn_layers=2, dropout=0.2)
        forecaster.fit(series())
        ends.append([p.detach().clone() for p in forecaster.model.parameters()])
    assert forecaster.model.trainer.global_step >= 200
    assert all(map(torch.equal, *ends))
    monitor = callback.monitor
    assert monitor.step >= 199 and not monitor.problems
    assert monitor.scalars["retrograde/unrecorded"] == 0
    assert retrograde.decompose(monitor.recording["rnn"]).residual < FLOAT32
    assert np.isfinite(forecaster.predict(3).values()).all()
