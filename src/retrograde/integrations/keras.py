"""The monitor as a Keras callback, and the loss of a compiled model, on Keras' torch backend."""

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from retrograde import _checks
from retrograde.errors import ArgumentError, MissingExtraError, UnsupportedModelError
from retrograde.monitor import Monitor


def _keras() -> Any:
    """Keras, which has chosen its backend by the time it is imported."""
    try:
        return import_module("keras")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        how = (
            "which is not installed; install it with pip install 'retrograde[keras]'"
            if missing == "keras"
            else f"which does not load without {missing}, the backend that it was told to use: set "
            "KERAS_BACKEND=torch before it is imported"
        )
        raise MissingExtraError(f"retrograde.integrations.keras needs keras, {how}") from error


class MonitorCallback(_keras().callbacks.Callback):  # type: ignore[misc]
    """Look at every 100th batch of `model.fit` with `retrograde.Monitor`.

    A block is a training batch. Its scalars go to `log`, if there is one, and into
    `monitor.history`; the `History` that `fit` returns has those of the latest look at the end of
    every epoch, under the names of `Monitor`: "retrograde/lstm/reach". Layers have their Keras
    names.

    Args:
        every: how many batches from one that is recorded to the next; the first one is.
        in_logs: put the scalars into the logs of each epoch, too, where the callbacks behind this
            one find them: CSVLogger, TensorBoard, and the progress bar, which prints them.
        settings: more of what `retrograde.Monitor` takes: `log`, `samples`, `entries`,
            `needs_lag`, `delta`, `budget`, `smoothing`, `limits`, `alert`, `trigger` and `cells`.
            The trigger sees norms alone: Keras tells its callbacks the mean loss of an epoch.

    Attributes:
        monitor: the `Monitor` of the latest training, None before the first.

    Raises:
        MissingExtraError: on import, without Keras.
        UnsupportedModelError: where Keras runs on another backend than torch.
        ArgumentError: for settings that can be none; the message says what is expected.

    Example:
        >>> from retrograde.integrations.keras import MonitorCallback  # doctest: +SKIP
        >>> callback = MonitorCallback(every=100)  # doctest: +SKIP
        >>> history = model.fit(x, y, callbacks=[callback])  # doctest: +SKIP
        >>> history.history["retrograde/lstm/reach"]  # doctest: +SKIP
    """

    def __init__(self, every: int = 100, *, in_logs: bool = False, **settings: Any):
        super().__init__()
        backend = _keras().backend.backend()
        if backend != "torch":
            raise UnsupportedModelError(
                f"Keras runs on its {backend} backend, whose gradients torch does not compute; set "
                "KERAS_BACKEND=torch before Keras is imported"
            )
        self._settings = {"every": every, **settings}
        Monitor(nn.Identity(), **self._settings)  # refuses what it does not take, before training
        self.in_logs = _checks.flag("in_logs", in_logs)
        self.monitor: Monitor | None = None
        self._names: tuple[str, ...] = ()

    def on_train_begin(self, logs: Any = None) -> None:
        if self.monitor is not None:  # an interrupted training may have left a block open
            self.monitor.cancel()
        self.monitor, self._names = Monitor(self.model, **self._settings), ()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        assert self.monitor is not None
        self.monitor.start()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        assert self.monitor is not None
        self.monitor.stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert self.monitor is not None
        rows = self.monitor.history[-1:]
        latest = {name: value for row in rows for name, value in row.items() if name != "step"}
        self._names = self._names or tuple(latest)
        found = {name: latest.get(name, math.nan) for name in self._names}
        if self.in_logs and logs is not None:
            logs.update(found)
            return
        history = getattr(getattr(self.model, "history", None), "history", None)
        if isinstance(history, dict):
            for name, value in found.items():
                history.setdefault(name, []).append(value)

    def on_train_end(self, logs: Any = None) -> None:
        assert self.monitor is not None
        self.monitor.cancel()


def compiled_loss(model: Any, batch: Any) -> Tensor:
    """The loss that `fit` minimises, as `diagnose`, `horizon` and `audit` take it.

    Args:
        model: a compiled Keras model.
        batch: (x, y) or (x, y, sample_weight), as `fit` takes them; x alone where there is no y.

    Returns:
        The loss in training mode, with the regularisation that the model adds.

    Raises:
        ArgumentError: for a model that is not compiled.

    Example:
        >>> from retrograde.integrations.keras import compiled_loss  # doctest: +SKIP
        >>> model.compile("adam", "mse")  # doctest: +SKIP
        >>> report = retrograde.diagnose(model, (x, y), compiled_loss)  # doctest: +SKIP
    """
    if not getattr(model, "compiled", False):
        raise ArgumentError("the model has no loss: compile it, or pass a loss_fn of your own")
    if isinstance(batch, Mapping):
        batch = (batch,)
    x, y, sample_weight = _keras().utils.unpack_x_y_sample_weight(batch)
    y_pred = model(x, training=True)
    loss: Tensor = model.compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
    )
    return loss
