"""The callback in Lightning's own trainer, of either package, with its own loggers."""

import csv
import logging
import warnings
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from retrograde.clipping import AutoClip, ByGroup, GlobalNorm, chain
from retrograde.errors import ArgumentError
from retrograde.integrations.lightning import ClippingCallback, MonitorCallback
from support.processes import run

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]


def module_of(pl, training_step=None, manual=False):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 1)
            self.automatic_optimization = not manual

        def training_step(self, batch, batch_idx):
            if training_step is not None:
                return training_step(self, batch, batch_idx)
            return self.loss(batch[0])

        def loss(self, x):
            return self.head(self.rnn(x)[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    return Module()


def fit(pl, folder, module, callbacks, loggers=(), batches=6, **options):
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(3 * batches, 9, 2, generator=generator))
    logging.getLogger(pl.__name__).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The data is in memory; few batches; Lightning 2.6 calls pytree as torch 2.13 deprecates.
        for message in (
            ".*does not have many workers",
            ".*number of training batches",
            ".*LeafSpec",
        ):
            warnings.filterwarnings("ignore", message=message)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=list(loggers),
            callbacks=callbacks,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            **options,
        )
        trainer.fit(module, DataLoader(data, batch_size=3))
    return trainer


def hooks(module):
    return [len(m._forward_hooks) for m in module.modules()] + [
        len(p._backward_hooks or {}) for p in module.parameters()
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_scalars_and_charts_reach_the_loggers(package, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pl, module = import_module(package), None
    loggers = import_module(f"{package}.loggers")
    module = module_of(pl)
    both = loggers.CSVLogger(tmp_path, "csv"), loggers.TensorBoardLogger(tmp_path, "board")
    callback = MonitorCallback(every=2, images_every=2)
    fit(pl, tmp_path, module, [callback], both)

    with open(f"{both[0].log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["retrograde/rnn/reach"]]
    assert [int(row["step"]) for row in rows] == [0, 2, 4]
    events = EventAccumulator(both[1].log_dir, size_guidance={"images": 0}).Reload()
    for name in ("reach", "rate", "share_near", "share_carousel", "growth", "gradient_norm"):
        name = f"retrograde/rnn/{name}"
        found = events.Scalars(name)
        assert [event.step for event in found] == [0, 2, 4]
        for event, row in zip(found, rows, strict=True):
            assert event.value == pytest.approx(float(row[name]))
    pictures = events.Images("retrograde/rnn/by_lag")
    assert [picture.step for picture in pictures] == [0, 4]
    for picture in pictures:
        assert picture.encoded_image_string.startswith(b"\x89PNG") and picture.width > 400
    assert not any(hooks(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_training_is_bit_identical(package, tmp_path):
    pl, results = import_module(package), []
    for callbacks in ([], [MonitorCallback(every=2)]):
        module = module_of(pl)
        fit(pl, tmp_path, module, callbacks)
        results.append((module.state_dict(), torch.get_rng_state()))
    for name, value in results[0][0].items():
        assert value.equal(results[1][0][name])
    assert results[0][1].equal(results[1][1])


def manual(module, batch, batch_idx):
    optimiser = module.optimizers()
    optimiser.zero_grad()
    module.manual_backward(module.loss(batch[0]))
    optimiser.step()


@pytest.mark.parametrize("how", ["plain", "accumulation", "manual", "clipped"])
def test_every_kind_of_optimisation(how, tmp_path):
    """The gradient of this very batch, neither accumulated nor clipped."""
    pl = import_module("lightning.pytorch")
    loggers = import_module("lightning.pytorch.loggers")
    options = {
        "accumulation": {"accumulate_grad_batches": 3},
        "clipped": {"gradient_clip_val": 1e-3},
    }
    module = module_of(pl, manual if how == "manual" else None, how == "manual")
    expected = module_of(pl)
    logger = loggers.CSVLogger(tmp_path)
    fit(pl, tmp_path, module, [MonitorCallback(every=2)], [logger], **options.get(how, {}))
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["retrograde/rnn/reach"]]
    assert len(rows) == 3
    assert all(float(row["retrograde/unrecorded"]) == 0 for row in rows)
    steps = [0, 0, 1] if how == "accumulation" else [0, 2, 4]
    assert [int(row["step"]) for row in rows] == steps
    x = torch.randn(18, 9, 2, generator=torch.Generator().manual_seed(1))
    # While three batches accumulate the weights stay, and Lightning divides each loss by three.
    recorded, times = (2, 3) if how == "accumulation" else (1, 1)
    for row, batch in list(zip(rows, (x[:3], x[6:9]), strict=False))[:recorded]:
        expected.zero_grad()
        expected.loss(batch).backward()
        norm = torch.cat([p.grad.flatten() for p in expected.rnn.parameters()]).norm()
        found = float(row["retrograde/rnn/gradient_norm"])
        assert times * found == pytest.approx(float(norm), rel=1e-5)


def test_an_exception_leaves_no_hooks(tmp_path):
    def fails(module, batch, batch_idx):
        module.loss(batch[0])
        raise ZeroDivisionError("in the user's training step")

    pl = import_module("lightning.pytorch")
    module = module_of(pl, fails)
    with pytest.raises(ZeroDivisionError, match="in the user's training step"):
        fit(pl, tmp_path, module, [MonitorCallback(every=1)])
    assert not any(hooks(module))


def test_a_chart_that_fails_is_said_once(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError("no chart")

    pl = import_module("lightning.pytorch")
    logger = import_module("lightning.pytorch.loggers").TensorBoardLogger(tmp_path)
    monkeypatch.setattr("retrograde.charts.shares_by_lag", fails)
    with pytest.warns(UserWarning, match="no chart of 'rnn' was logged: no chart"):
        fit(pl, tmp_path, module_of(pl), [MonitorCallback(every=1, images_every=1)], [logger])


def test_loggers_with_log_image_get_the_picture(tmp_path):
    pl = import_module("lightning.pytorch")
    base = import_module("lightning.pytorch.loggers").CSVLogger
    pictures = []

    class Takes(base):
        def log_image(self, key, images, step=None):
            pictures.append((key, images[0].size, step))

    fit(pl, tmp_path, module_of(pl), [MonitorCallback(every=3, images_every=1)], [Takes(tmp_path)])
    assert [(key, step) for key, _, step in pictures] == [
        ("retrograde/rnn/by_lag", 0),
        ("retrograde/rnn/by_lag", 3),
    ]


@pytest.mark.parametrize("name", ["every", "images_every", "samples", "entries"])
def test_numbers_are_positive_integers(name):
    with pytest.raises(ArgumentError, match=f"{name} must be a positive integer"):
        MonitorCallback(**{name: 0})


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=["", "accumulated"])
def test_clipping_is_that_of_the_trainer(package, options, tmp_path):
    pl, results = import_module(package), []
    for callbacks, more in (
        ([], {"gradient_clip_val": 1e-3}),
        ([ClippingCallback(GlobalNorm(1e-3))], {}),
        ([], {}),
    ):
        module = module_of(pl)
        fit(pl, tmp_path, module, callbacks, **options, **more)
        results.append(module.state_dict())
    for name, value in results[0].items():
        assert value.equal(results[1][name])
    assert not results[1]["rnn.weight_hh_l0"].equal(results[2]["rnn.weight_hh_l0"])


@pytest.mark.parametrize("package", PACKAGES)
def test_scalars_of_clipping_reach_the_loggers(package, tmp_path):
    pl = import_module(package)
    logger = import_module(f"{package}.loggers").CSVLogger(tmp_path)
    norms, module = [], module_of(pl)

    class Norms(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            norms.append(float(nn.utils.get_total_norm([p.grad for p in pl_module.parameters()])))

    callback = ClippingCallback(ByGroup({"all": GlobalNorm(1e-3)}), every=3)
    fit(pl, tmp_path, module, [Norms(), callback], [logger])
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["retrograde/clipping/all/norm"]]
    assert [int(row["step"]) for row in rows] == [2, 5]
    for row, part in zip(rows, (norms[:3], norms[3:]), strict=True):
        assert float(row["retrograde/clipping/all/norm"]) == pytest.approx(sorted(part)[1])
        assert float(row["retrograde/clipping/recurrent/clip_rate"]) == 1
        assert float(row["retrograde/clipping/output/cosine"]) == pytest.approx(1)
        shares = [float(row[f"retrograde/clipping/{g}/share"]) for g in callback.clipper.groups]
        assert len(shares) == 3 and sum(shares) == pytest.approx(1)
        assert float(row["retrograde/clipping/skipped"]) == 0
    assert callback.clipper.norms()["all"].tolist() == pytest.approx(norms, rel=1e-6)


def test_a_checkpoint_holds_what_clipping_remembers(tmp_path):
    pl = import_module("lightning.pytorch")
    policy = chain(AutoClip(50.0), GlobalNorm(1.0))
    first, whole = ClippingCallback(policy), ClippingCallback(policy)
    trainer = fit(pl, tmp_path, module_of(pl), [first], batches=6, limit_train_batches=3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=False)["callbacks"]["ClippingCallback"]
    resumed = ClippingCallback(policy)
    resumed.load_state_dict(state)
    fit(pl, tmp_path, module_of(pl), [resumed], batches=6)
    fit(pl, tmp_path, module_of(pl), [whole], batches=6)
    norms = resumed.clipper.norms()["all"]
    assert len(norms) == 9 and norms[:3].equal(first.clipper.norms()["all"])
    assert len(resumed.state_dict()["memory"]["0"]["norms"]) == 9
    assert len(whole.clipper.norms()["all"]) == 6


def test_batches_without_a_loss_and_with_a_broken_one(tmp_path):
    def gives(module, batch, batch_idx):
        factor = {2: None, 4: float("nan")}.get(batch_idx, 1.0)
        return None if factor is None else factor * module.loss(batch[0])

    pl = import_module("lightning.pytorch")
    callback = ClippingCallback(GlobalNorm(1.0), nonfinite="skip")
    module = module_of(pl, gives)
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        fit(pl, tmp_path, module, [callback])
    assert (callback.clipper.statistics().steps, callback.clipper.skipped) == (4, 1)
    assert all(p.isfinite().all() for p in module.parameters())


def test_what_clips_twice_or_for_several_optimisers_is_refused(tmp_path):
    pl = import_module("lightning.pytorch")
    with pytest.raises(ArgumentError, match="the trainer clips as well.*gradient_clip_val=1.0"):
        callbacks = [ClippingCallback(GlobalNorm(1.0))]
        fit(pl, tmp_path, module_of(pl), callbacks, gradient_clip_val=1.0)
    module = module_of(pl, manual, manual=True)
    module.configure_optimizers = lambda: [
        torch.optim.SGD(part.parameters(), 0.1) for part in (module.rnn, module.head)
    ]
    with pytest.raises(ArgumentError, match="for one optimiser; this model has 2"):
        fit(pl, tmp_path, module, [ClippingCallback(GlobalNorm(1.0))])
    with pytest.raises(ArgumentError, match="every must be a positive integer"):
        ClippingCallback(GlobalNorm(1.0), every=0)


def test_without_lightning_it_says_how_to_install_it(tmp_path):
    code = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import retrograde.integrations.lightning"
    )
    (tmp_path / "program.py").write_text(code)
    done = run(tmp_path / "program.py")
    assert done.returncode == 1
    assert "MissingExtraError" in done.stderr and "retrograde[lightning]" in done.stderr
