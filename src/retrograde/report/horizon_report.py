"""The horizon report that a user holds: the data, and the texts and files that are made of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from retrograde import _checks, _files
from retrograde.errors import ArgumentError
from retrograde.report import horizon_views, json
from retrograde.report.horizon_data import AtWeights, HorizonData
from retrograde.report.settings import Settings
from retrograde.truncation import Horizon
from retrograde.truncation.horizon import DELTA

SCHEMA = "retrograde-horizon/1"


@dataclass(frozen=True)
class HorizonReport(HorizonData):
    """How long a window a model needs, for a person or a script; `retrograde horizon` makes it.

    Attributes:
        kind: of the truncation: "sliding", "chunks" or "window".
        steps: the K, ascending.
        length: T, the steps of the sequence.
        batches: how many batches it rests on.
        delta: the bias that is allowed.
        weights: the horizon at each set of weights, in order of training.
        settings: the model, batch, seed and versions of the run.
        layer: the recurrent layer that was asked about, None for all.
        training_steps: of the training that learnability is judged for, None where it is not.
        batch_size: the samples of its batches; None for those of the batches seen.
        past: what stood in for the past when the forward pass was asked what it uses, None where
            that is not known.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.report import HorizonReport
        >>> model = torch.nn.GRU(1, 4)
        >>> horizon = retrograde.horizon(
        ...     model, torch.ones(9, 2, 1), lambda model, x: model(x)[0].sum()
        ... )
        >>> report = HorizonReport.of(horizon, delta=1.5)
        >>> report.last.window
        1
    """

    @staticmethod
    def of(
        horizon: Horizon | Mapping[str, Horizon],
        delta: float = DELTA,
        settings: Settings | None = None,
    ) -> "HorizonReport":
        """The report of a horizon, or of those of several checkpoints by name.

        Raises:
            ArgumentError: for what is no horizon or none at all, for horizons of different kinds or
                lengths, and if delta is not a number from 0 on.
        """
        several = horizon if isinstance(horizon, Mapping) else {"": horizon}
        for one in several.values():
            _checks.instance("horizon", one, Horizon, "a Horizon, as of retrograde.horizon")
        delta = _checks.number("delta", delta, lambda real: real >= 0, "a number from 0 on")
        forms = dict.fromkeys((one.kind, one.steps, one.length) for one in several.values())
        if len(forms) != 1:
            raise ArgumentError(
                "a report needs horizons of one kind and length; got "
                + (_checks.listed(f"{kind} over {length} steps" for kind, _, length in forms))
            )
        ((kind, steps, length),) = forms
        weights = tuple(
            AtWeights.of_horizon(str(name), one, delta) for name, one in several.items()
        )
        first = next(iter(several.values()))
        return HorizonReport(
            kind,
            steps,
            length,
            first.batches,
            delta,
            weights,
            settings or Settings(),
            first.layer,
            None if first.unexplained is None else first.training_steps,
            first.batch_size,
            None if first.used is None else first.used.past,
        )

    def chart(self) -> Any:
        """The bias over K at the last weights, with its band and the window, in Altair."""
        return horizon_views.curve_chart(self)

    def growth_chart(self) -> Any:
        """Window, reach and learnability horizon from checkpoint to checkpoint, in Altair."""
        return horizon_views.growth_chart(self)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write one self-contained page that opens offline.

        Raises:
            InputError: if the path cannot be written.
        """
        _files.check_writable(path)
        _files.write_text(path, horizon_views.page(self))

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write the numbers as JSON, which `from_json` reads back.

        Raises:
            InputError: if the path cannot be written.
        """
        _files.check_writable(path)
        _files.write_text(path, json.render(self, SCHEMA))

    @staticmethod
    def from_json(path: str | PathLike[str]) -> "HorizonReport":
        """Read a report that `to_json` wrote.

        Raises:
            InputError: if the file cannot be read or is no horizon report of this schema.
        """
        return json.read(path, HorizonReport, SCHEMA)

    def __repr__(self) -> str:
        return f"HorizonReport: {self.last.advice}"

    def __str__(self) -> str:
        return horizon_views.text(self)

    def __rich__(self) -> Any:
        return horizon_views.renderable(self)
