"""The monitor and clipping as Lightning callbacks, for whatever loggers the trainer has."""

import warnings
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
from torch import Tensor, nn

from retrograde import _checks
from retrograde.clipping import AbstractPolicy, Clipper
from retrograde.clipping.clipper import check_nonfinite
from retrograde.clipping.groups import check_own
from retrograde.clipping.policies import is_policy
from retrograde.errors import ArgumentError, MissingExtraError
from retrograde.monitor import Monitor


def _callbacks() -> tuple[type[Any], ...]:
    """The base class of a callback in each of Lightning's two packages that is installed.

    `lightning` and `pytorch_lightning` hold the same code twice, and know each other's classes not.
    """
    found = []
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found.append(import_module(package).Callback)
        except ImportError:
            continue
    if not found:
        raise MissingExtraError(
            "retrograde.integrations.lightning needs lightning, which is not installed; install it "
            "with pip install 'retrograde[lightning]' (or pytorch-lightning)"
        )
    return tuple(found)


class MonitorCallback(*_callbacks()):  # type: ignore[misc]
    """Log the scalars of `retrograde.Monitor` to all loggers of a trainer, and now and then charts.

    A block is a training batch, from before its forward pass until its optimiser step is done; with
    manual optimisation it may hold one forward and one backward pass through each layer. Metrics
    are logged at the `trainer.global_step` at which the batch began. Loggers that take images
    (TensorBoard, and those with `log_image`, such as Weights & Biases) also get the chart by lag of
    every layer; others, such as CSV, the scalars alone. Works with `lightning` and with
    `pytorch_lightning`.

    Args:
        every: how many batches from one that is recorded to the next; the first one is.
        images_every: how many recorded batches from one with charts to the next; None for
            none. A chart takes longer than the scalars.
        settings: more of what `retrograde.Monitor` takes: `samples`, `entries`, `needs_lag`,
            `budget`, `smoothing`, `limits`, `alert`, `trigger` and `cells`. The trigger sees the
            loss that `training_step` returned.

    Attributes:
        monitor: the `Monitor` of the latest training, None before the first.

    Raises:
        MissingExtraError: on import, without Lightning.
        ArgumentError: for settings that can be none; the message says what is expected.

    Example:
        >>> from retrograde.integrations.lightning import MonitorCallback
        >>> callback = MonitorCallback(every=100)  # lightning.Trainer(callbacks=[callback])
    """

    def __init__(
        self,
        every: int = 100,
        *,
        images_every: int | None = 10,
        **settings: Any,
    ):
        super().__init__()
        self._settings = {"every": every, **settings}
        Monitor(nn.Identity(), **self._settings)  # refuses what it does not take, before training
        self.images_every = _checks.optional_whole("images_every", images_every)
        self.monitor: Monitor | None = None
        self._step = 0
        self._warned = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.monitor = Monitor(pl_module, **self._settings)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.monitor is not None
        self._step = trainer.global_step
        self.monitor.start()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.monitor is not None
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self.monitor.loss(loss)
        self.monitor.stop()
        if not self.monitor.scalars:
            return
        for logger in trainer.loggers:
            logger.log_metrics(self.monitor.scalars, step=self._step)
        before = self.monitor.looks - 1
        if self.images_every is not None and before % self.images_every == 0:
            takers = [take for logger in trainer.loggers if (take := _image_taker(logger))]
            for layer in self.monitor.recording if takers else ():
                image = self._chart(layer)
                for take in takers if image is not None else ():
                    take(f"retrograde/{layer}/by_lag", image, self._step)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self.monitor is not None:
            self.monitor.cancel()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.monitor is not None:
            self.monitor.cancel()

    def _chart(self, layer: str) -> Any:
        """The chart by lag as a picture, or None, with a warning the first time."""
        assert self.monitor is not None
        try:
            from PIL import Image

            buffer = BytesIO()
            self.monitor.flow(layer).by_lag().chart().save(buffer, format="png", scale_factor=2)
            return Image.open(buffer).convert("RGB")
        except Exception as error:  # whatever it is, training must not pay for it
            if not self._warned:
                self._warned = True
                warnings.warn(f"no chart of {layer!r} was logged: {error}", stacklevel=2)
            return None


class ClippingCallback(*_callbacks()):  # type: ignore[misc]
    """Clip by a policy before every step of the optimiser, and log what that did.

    It takes the place of the trainer's `gradient_clip_val`, which has to be None: both would clip.
    With 16-bit precision Lightning unscales the gradients first; take `nonfinite="skip"` there.
    Every `every` steps all loggers get `retrograde/clipping/<group>/norm` (median before clipping),
    `.../clip_rate`, `.../cosine` and `.../share` for every group and for "all", over the last
    `every` steps that were not skipped, and `retrograde/clipping/skipped`, the count so far. The
    state of policy and statistics is part of Lightning's checkpoints. A step without a new
    gradient, after a batch that the model gave no loss for, is left alone. Works with `lightning`
    and with `pytorch_lightning`, and with one optimiser.

    Args:
        policy, groups, nonfinite, keep: as for `retrograde.clipping.Clipper`.
        every: how many steps of the optimiser from one log to the next.

    Attributes:
        clipper: the `Clipper` of the latest training, None before the first.

    Raises:
        MissingExtraError: on import, without Lightning.
        ArgumentError: for arguments that are none for any model; when training starts, for a
            policy or groups that do not fit the model, a trainer that clips, and several
            optimisers.

    Example:
        >>> from retrograde.clipping import GlobalNorm
        >>> from retrograde.integrations.lightning import ClippingCallback
        >>> callback = ClippingCallback(GlobalNorm(1.0))  # lightning.Trainer(callbacks=[callback])
    """

    def __init__(
        self,
        policy: AbstractPolicy,
        *,
        groups: Mapping[str, Any] | None = None,
        nonfinite: Any = "raise",
        keep: int | None = None,
        every: int = 50,
    ):
        super().__init__()
        self.every = _checks.whole("every", every)
        is_policy(policy)
        check_own(groups)
        check_nonfinite(nonfinite)
        keep = _checks.optional_whole("keep", keep)
        self.clipper: Clipper | None = None
        self._resumed: dict[str, Any] | None = None
        self._steps = 0
        self._new = partial(Clipper, policy=policy, groups=groups, nonfinite=nonfinite, keep=keep)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.gradient_clip_val is not None:
            raise ArgumentError(
                f"the trainer clips as well (gradient_clip_val={trainer.gradient_clip_val}); "
                "remove that setting or the ClippingCallback"
            )
        if len(trainer.optimizers) > 1:
            raise ArgumentError(
                f"ClippingCallback clips for one optimiser; this model has "
                f"{len(trainer.optimizers)}. Use a retrograde.clipping.Clipper for each module"
            )
        self.clipper, self._steps = self._new(pl_module), 0
        if self._resumed is not None:
            self.clipper.load_state_dict(self._resumed)
            self._resumed = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        assert self.clipper is not None
        if not self.clipper.fresh:
            return
        self.clipper()
        self._steps += 1
        if self._steps % self.every == 0:
            scalars = self.clipper.scalars(last=self.every)
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {} if self.clipper is None else self.clipper.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint kept; it is put to use when training starts."""
        self._resumed = state_dict or None


def _image_taker(logger: Any) -> Any:
    """A function of name, picture and step that logs a picture there, or None."""
    if hasattr(logger, "log_image"):
        return lambda name, image, step: logger.log_image(key=name, images=[image], step=step)
    if hasattr(logger.experiment, "add_image"):
        return lambda name, image, step: logger.experiment.add_image(
            name, np.asarray(image), step, dataformats="HWC"
        )
    return None
