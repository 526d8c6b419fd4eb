"""The monitor as a Lightning callback, for whatever loggers the trainer has."""

import warnings
from functools import partial
from importlib import import_module
from io import BytesIO
from typing import Any

from retrograde.errors import MissingExtraError
from retrograde.monitor import Monitor, check_positive


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
            "retrograde.integrations.lightning needs Lightning, which is not installed: "
            "pip install 'retrograde[lightning]' (or pytorch-lightning)"
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
        samples, entries: how much of a pass is looked at, as in `retrograde.Monitor`.

    Attributes:
        monitor: the `Monitor` of the latest training, None before the first.

    Raises:
        MissingExtraError: on import, without Lightning.
        ArgumentError: for a number that is not a positive integer.

    Example:
        >>> from retrograde.integrations.lightning import MonitorCallback
        >>> callback = MonitorCallback(every=100)  # lightning.Trainer(callbacks=[callback])
    """

    def __init__(
        self,
        every: int = 100,
        *,
        images_every: int | None = 10,
        samples: int = 4,
        entries: int = 8,
    ):
        super().__init__()
        check_positive(every=every, samples=samples, entries=entries)
        if images_every is not None:
            check_positive(images_every=images_every)
        self.images_every = images_every
        self.monitor: Monitor | None = None
        self._step = 0
        self._warned = False
        self._new = partial(Monitor, every=every, samples=samples, entries=entries)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.monitor = self._new(pl_module)

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
        self.monitor.stop()
        if not self.monitor.scalars:
            return
        for logger in trainer.loggers:
            logger.log_metrics(self.monitor.scalars, step=self._step)
        recorded = self.monitor.step // self.monitor.every
        if self.images_every is not None and recorded % self.images_every == 0:
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


def _image_taker(logger: Any) -> Any:
    """A function of name, picture and step that logs a picture there, or None."""
    if hasattr(logger, "log_image"):
        return lambda name, image, step: logger.log_image(key=name, images=[image], step=step)
    if hasattr(logger.experiment, "add_image"):
        import numpy as np

        return lambda name, image, step: logger.experiment.add_image(
            name, np.asarray(image), step, dataformats="HWC"
        )
    return None
