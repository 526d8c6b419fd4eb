"""Recurrent models of pytorch-forecasting, as they are: a ragged batch, packed, twice.

`RecurrentNetwork` and `DeepAR` read the past with one call of their layer and the future with
another that gets the state; every sample goes on at its own length.
"""

import pytest
import torch

pytorch_forecasting = pytest.importorskip(
    "pytorch_forecasting", reason="run `make test-integrations` (pytorch-forecasting)"
)

import lightning.pytorch as lightning  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from plain_loop import FLOAT32, agrees, plain_loop  # noqa: E402
from pytorch_forecasting import (  # noqa: E402
    DeepAR,
    RecurrentNetwork,
    TemporalFusionTransformer,
    TimeSeriesDataSet,
)
from pytorch_forecasting.metrics import MAE, NormalDistributionLoss  # noqa: E402

import retrograde  # noqa: E402
from retrograde.integrations.lightning import MonitorCallback  # noqa: E402

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")

PAST, FUTURE, H = 7, 3, 4


def series(shortest):
    """Series of several lengths, so that the pasts of a batch are of several lengths."""
    random = np.random.default_rng(0)
    frames = [
        pd.DataFrame({"name": name, "week": np.arange(length), "y": random.normal(size=length) + 5})
        for name, length in zip("abcd", (16, 13, 12, 11), strict=True)
    ]
    return TimeSeriesDataSet(
        pd.concat(frames, ignore_index=True),
        time_idx="week",
        target="y",
        group_ids=["name"],
        min_encoder_length=shortest,
        max_encoder_length=PAST,
        min_prediction_length=1,
        max_prediction_length=FUTURE,
        time_varying_known_reals=["week"],
        time_varying_unknown_reals=["y"],
    )


def batch_of(data, samples=6):
    torch.manual_seed(5)
    return next(iter(data.to_dataloader(train=True, batch_size=samples, num_workers=0)))


def double(values):
    if isinstance(values, torch.Tensor):
        return values.double() if values.is_floating_point() else values
    if isinstance(values, dict):
        return {name: double(value) for name, value in values.items()}
    return type(values)(map(double, values)) if isinstance(values, list | tuple) else values


def model_of(kind, data, **options):
    torch.manual_seed(0)
    if kind is TemporalFusionTransformer:
        options |= {"hidden_continuous_size": 2, "attention_head_size": 1, "loss": MAE()}
        options |= {"output_size": 1, "lstm_layers": 1, "dropout": 0.0}
    else:
        options = {"rnn_layers": 1, "cell_type": "LSTM"} | options
    if kind is DeepAR:
        options["loss"] = NormalDistributionLoss()
    return kind.from_dataset(data, hidden_size=H, learning_rate=0.01, **options)


CASES = [
    (RecurrentNetwork, {}),
    (RecurrentNetwork, {"cell_type": "GRU"}),
    (RecurrentNetwork, {"rnn_layers": 2, "dropout": 0.0}),
    (DeepAR, {}),
    (DeepAR, {"cell_type": "GRU", "rnn_layers": 2, "dropout": 0.0}),
    (TemporalFusionTransformer, {}),
]


# With a past of 1 the layer gets none of it, and their own mask puts a state of zero in its place.
@pytest.mark.parametrize("shortest", [PAST, 2, 1])
@pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=lambda v: v.__name__ if isinstance(v, type) else None
)
def test_every_lag_is_that_of_a_plain_loop(kind, options, shortest):
    data = series(shortest)
    model = model_of(kind, data, **options).double()
    x, (y, weight) = double(batch_of(data))
    assert (len(x["encoder_lengths"].unique()) > 1) == (shortest < PAST)

    def run():
        # Their future inputs are written in place; each run gets its own.
        inputs = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in x.items()}
        return model.loss(model(inputs).prediction, (y, weight))

    with retrograde.record(model) as recording:
        run().backward()

    def offsets(call, batch):
        """The second call of a layer that reads both goes on where the sample's past ended."""
        return (x["encoder_lengths"] - 1) * call

    two = kind is TemporalFusionTransformer
    assert set(recording) == ({"lstm_encoder", "lstm_decoder"} if two else {"rnn"})
    for name in recording:
        flow = retrograde.decompose(recording[name])
        if not two:
            assert flow.steps == PAST - 1 + FUTURE
        agrees(flow, plain_loop(model.get_submodule(name), run, offsets))


@pytest.mark.parametrize("kind", [RecurrentNetwork, DeepAR])
def test_the_training_is_the_same_to_the_last_bit(kind, tmp_path, unchecked):
    """200 steps of Lightning, every one of them recorded, and none."""
    data, ends = series(2), []
    for watched in (False, True):
        lightning.seed_everything(0)
        model = model_of(kind, data, rnn_layers=2, dropout=0.2)
        callback = MonitorCallback(every=1, images_every=None)
        trainer = lightning.Trainer(
            max_steps=200,
            accelerator="cpu",
            callbacks=[callback] if watched else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            gradient_clip_val=0.5,
        )
        loader = data.to_dataloader(train=True, batch_size=8, num_workers=0)
        trainer.fit(model, train_dataloaders=loader)
        assert trainer.global_step == 200
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *ends))
    monitor = callback.monitor
    assert monitor.step == 199 and not monitor.problems
    assert monitor.scalars["retrograde/unrecorded"] == 0
    assert monitor.scalars["retrograde/rnn/reach"] >= FUTURE  # so some of it comes from the past
    assert retrograde.decompose(monitor.recording["rnn"]).residual < FLOAT32
