"""What was run, and with what: versions, model, batch, rules and thresholds."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.diagnosis import Threshold


@dataclass(frozen=True)
class Settings:
    """All that is needed to repeat a report.

    Attributes:
        versions: of retrograde, torch and Python.
        model: the model, as it prints itself.
        batch: kind, shape and data type of what it was given.
        device: where it ran.
        seed: of everything random in it.
        needs_lag: the lag that was said to matter.
        rules: the rules that were applied; `Report.checks` says which of them could look.
        thresholds: what they compared with.

    Example:
        >>> import torch, retrograde
        >>> report = retrograde.diagnose(
        ...     torch.nn.GRU(2, 4), torch.ones(20, 3, 2), lambda model, x: model(x)[0].sum(), seed=7
        ... )
        >>> report.settings.seed, report.settings.batch
        (7, '[20, 3, 2] float32')
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    batch: str = ""
    device: str = ""
    seed: int | None = None
    needs_lag: int | None = None
    rules: tuple[str, ...] = ()
    thresholds: tuple[Threshold, ...] = ()

    def of_run(self, model: nn.Module, batch: Any, seed: int) -> "Settings":
        """The same with what was run."""
        device = next((str(p.device) for p in model.parameters()), "")
        return replace(
            self,
            versions=versions(),
            model=str(model),
            batch=_described(batch),
            device=device,
            seed=seed,
        )


def versions() -> dict[str, str]:
    """Those of retrograde, torch and Python."""
    return {
        "retrograde": version("retrograde"),
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
    }


def _described(batch: Any) -> str:
    """Kind, shape and data type of whatever a batch is."""
    if isinstance(batch, Tensor):
        return f"{list(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {_described(part)}" for key, part in batch.items()) + "}"
    if isinstance(batch, list | tuple):
        parts = [_described(part) for part in batch[:8]]
        return "(" + ", ".join(parts + ["..."] * (len(batch) > 8)) + ")"
    return type(batch).__name__
