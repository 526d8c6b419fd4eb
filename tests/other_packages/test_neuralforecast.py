"""The recurrent models of neuralforecast, as they are, on a real series in their own trainer.

Apart from `make test` because neuralforecast brings ray, pandas, scipy and more, which nothing else
here needs; `make test-integrations` installs them and runs this.
"""

import csv
import math

import pytest
import torch

neuralforecast = pytest.importorskip("neuralforecast", reason="run `make test-integrations`")

import pandas as pd  # noqa: E402
from neuralforecast.models import GRU, LSTM, RNN  # noqa: E402
from pytorch_lightning.loggers import CSVLogger  # noqa: E402

import retrograde  # noqa: E402
from retrograde.data import mauna_loa_co2  # noqa: E402
from retrograde.integrations.lightning import MonitorCallback  # noqa: E402

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")

WINDOW, HORIZON = 104, 12


def series() -> pd.DataFrame:
    """The weekly CO2 of Mauna Loa, in the form that neuralforecast takes."""
    record = mauna_loa_co2()
    return pd.DataFrame(
        {"unique_id": "co2", "ds": pd.to_datetime(list(record.dates)), "y": record.ppm.numpy()}
    )


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_the_callback_in_their_trainer(kind, layers, tmp_path):
    model = kind(
        h=HORIZON,
        input_size=WINDOW,
        encoder_n_layers=layers,
        encoder_hidden_size=16,
        windows_batch_size=16,
        max_steps=7,
        scaler_type="robust",
        accelerator="cpu",
        callbacks=[MonitorCallback(every=3)],
        logger=CSVLogger(tmp_path),
        val_check_steps=7,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    forecaster = neuralforecast.NeuralForecast(models=[model], freq="7D")
    forecaster.fit(series())

    (metrics,) = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(metrics.read_text().splitlines()))
    rows = [row for row in rows if row.get("retrograde/hist_encoder/reach")]
    assert [int(row["step"]) for row in rows] == [0, 3, 6]
    for row in rows:
        assert 0 <= float(row["retrograde/hist_encoder/reach"]) < WINDOW
        assert math.isfinite(float(row["retrograde/hist_encoder/rate"]))
        assert float(row["retrograde/hist_encoder/nonfinite"]) == 0
        assert float(row["retrograde/unrecorded"]) == 0

    callback = forecaster.models[0].trainer_kwargs["callbacks"][0]  # they copy what they are given
    (recorded,) = callback.monitor.recording.values()  # of the last of the seven batches
    assert recorded.x.shape[0] == WINDOW
    assert retrograde.decompose(recorded).residual < 1e-5  # float32
    assert not forecaster.predict().isna().any().any()


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_record_on_their_module(kind):
    """A pass of one's own through a model of theirs, nothing in it changed."""
    torch.manual_seed(0)
    model = kind(h=HORIZON, input_size=WINDOW, encoder_hidden_size=16).double()
    batch = {
        "insample_y": standardised_windows(),
        "futr_exog": None,
        "hist_exog": None,
        "stat_exog": None,
    }
    with retrograde.record(model) as recording:
        model(batch).square().mean().backward()
    flow = retrograde.decompose(recording)
    assert flow.residual < 1e-12  # float64
    assert flow.recorded.name == "hist_encoder"
    assert flow.steps == WINDOW


def standardised_windows() -> torch.Tensor:
    windows = mauna_loa_co2().ppm.unfold(0, WINDOW, 400).unsqueeze(-1)
    return (windows - windows.mean(1, keepdim=True)) / windows.std(1, keepdim=True)
