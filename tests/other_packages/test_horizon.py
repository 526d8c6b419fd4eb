"""The recipes of docs/is-my-window-long-enough.md: how long a window do these packages need?

Each is ten lines in a user's script; what is between `# recipe` and `# end` stands in the page.
"""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import retrograde
from retrograde.data import mauna_loa_co2

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")

PAGE = Path(__file__).parents[2] / "docs" / "is-my-window-long-enough.md"
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)


def weekly(count=400):
    """Weekly changes of CO2, in units of their standard deviation."""
    change = mauna_loa_co2().ppm[: count + 1].diff().numpy().astype(np.float32)
    return (change - change.mean()) / change.std()


def holds(horizon, steps):
    assert horizon.length == steps and horizon.batches > 1
    assert 1 <= horizon.window(delta=0.1) <= steps
    assert horizon.used is not None and horizon.learnable is not None


def test_darts():
    darts = pytest.importorskip("darts", reason="run `make test-integrations`")
    series, quiet = darts.TimeSeries.from_values(weekly()), QUIET
    # recipe
    from darts.models import RNNModel

    forecaster = RNNModel(
        model="LSTM",
        input_chunk_length=52,
        training_length=104,
        n_epochs=2,
        pl_trainer_kwargs=quiet,
    )
    forecaster.fit(series)
    module = forecaster.model
    batches, module.trainer = module.trainer.train_dataloader, None
    horizon = retrograde.horizon(
        module, batches, lambda module, batch: module.training_step(batch, 0)
    )
    print(horizon)
    # end
    holds(horizon, 104)


def test_neuralforecast():
    pytest.importorskip("neuralforecast", reason="run `make test-integrations`")
    import pandas as pd

    dates = pd.date_range("1990-01-07", periods=400, freq="7D")
    series, quiet = pd.DataFrame({"unique_id": "co2", "ds": dates, "y": weekly()}), QUIET
    # recipe
    from neuralforecast import NeuralForecast
    from neuralforecast.models import LSTM
    from neuralforecast.tsdataset import TimeSeriesDataModule

    forecaster = NeuralForecast(
        [LSTM(h=12, input_size=104, max_steps=20, windows_batch_size=32, **quiet)], freq="7D"
    )
    forecaster.fit(series)
    module = forecaster.models[0]
    (batch,) = TimeSeriesDataModule(forecaster.dataset).train_dataloader()
    horizon = retrograde.horizon(
        module,
        lambda seed: batch,
        lambda module, batch: module.training_step(batch, 0),
    )
    print(horizon)
    # end
    holds(horizon, 104)


def test_pytorch_forecasting():
    pytest.importorskip("pytorch_forecasting", reason="run `make test-integrations`")
    import pandas as pd

    series = pd.DataFrame({"name": "co2", "week": range(400), "y": weekly()})
    # recipe
    from pytorch_forecasting import RecurrentNetwork, TimeSeriesDataSet

    data = TimeSeriesDataSet(
        series, "week", "y", ["name"], max_encoder_length=60, max_prediction_length=4,
        min_encoder_length=60, time_varying_unknown_reals=["y"],
    )  # fmt: skip
    model = RecurrentNetwork.from_dataset(data, hidden_size=16)

    def loss_fn(model, batch):
        x, y = batch
        return model.loss(model(x).prediction, y)

    batches = data.to_dataloader(batch_size=32, drop_last=True)
    horizon = retrograde.horizon(model, batches, loss_fn)
    print(horizon)
    # end
    holds(horizon, 60 - 1 + 4)


def test_sb3_contrib():
    pytest.importorskip("sb3_contrib", reason="run `make test-integrations`")
    from test_sb3_contrib import Recall

    environment = Recall()
    # recipe
    from sb3_contrib import RecurrentPPO

    agent = RecurrentPPO("MlpLstmPolicy", environment, n_steps=128, batch_size=32, device="cpu")
    agent.learn(256)

    def loss_fn(policy, some):
        values, log_prob, _ = policy.evaluate_actions(
            some.observations, some.actions, some.lstm_states, some.episode_starts
        )
        losses = (some.returns - values.flatten()) ** 2 - some.advantages * log_prob
        return losses[some.mask > 0].mean()

    horizon = retrograde.horizon(agent.policy, next(agent.rollout_buffer.get(128)), loss_fn)
    print(horizon)
    # end
    assert 1 <= horizon.window(delta=0.1) <= horizon.length


@pytest.mark.parametrize(
    "test",
    [test_darts, test_neuralforecast, test_pytorch_forecasting, test_sb3_contrib],
    ids=lambda test: test.__name__,
)
def test_the_page_shows_these_recipes(test):
    recipe = re.search(r"# recipe\n(.*?)    # end", inspect.getsource(test), re.S)[1]
    assert bare(recipe) in bare(PAGE.read_text())


def bare(code):
    """The code without what depends on the width of a line."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s|# fmt: skip", "", code))
