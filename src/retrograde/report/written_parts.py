"""Parts as a report keeps them: plain labels, sizes and shares, which JSON has as well."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from retrograde._optional import optional
from retrograde.decomposition import Parts

WrittenLabel = int | str | tuple[int, int] | None
Numbers = list[float] | list[list[float]]


@dataclass(frozen=True)
class WrittenParts:
    """Parts as JSON has them: plain labels, sizes and shares.

    Attributes:
        parameter: null for the whole gradient.
        axes: for each axis the labels of its places, by the name of what it runs over; lags and
            steps that share a place are the first and the last of them.
        log2: log2 of the norm of each part, by place on the axes.
        share: the signed share of each part.
    """

    parameter: str | None
    axes: tuple[dict[str, tuple[WrittenLabel, ...]], ...]
    log2: Numbers
    share: Numbers

    # Read by pydantic: what has another field is no such file.
    __pydantic_config__ = {"extra": "forbid"}

    @staticmethod
    def of(parts: Parts) -> "WrittenParts":
        """The plain numbers of some parts."""
        axes = tuple(
            {name: tuple(map(_written, labels)) for name, labels in axis.items()}
            for axis in parts.axes
        )
        return WrittenParts(parts.parameter, axes, parts.log2.tolist(), parts.share.tolist())

    def read(self) -> Parts:
        """The parts that were written.

        Raises:
            ValueError: where the numbers are not as many as the labels.
        """
        axes = tuple(
            {name: tuple(map(_read, labels)) for name, labels in axis.items()} for axis in self.axes
        )
        if not all(axes) or any(len(set(map(len, axis.values()))) > 1 for axis in axes):
            raise ValueError("an axis needs names, and as many labels for each of them")
        shape = [len(next(iter(axis.values()))) for axis in axes]
        log2, share = _tensor(self.log2), _tensor(self.share)
        if not log2.numel() and not share.numel() and 0 in shape:
            log2, share = log2.reshape(shape), share.reshape(shape)
        if not list(log2.shape) == list(share.shape) == shape:
            raise ValueError(f"log2 and share must have a number for each label, shape {shape}")
        return Parts.measured(axes, self.parameter, log2, share)


class _AsJson:
    """How pydantic writes and reads parts in a report."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        with optional("a report as JSON", "report"):
            from pydantic_core import core_schema

        plain = handler.generate_schema(WrittenParts)
        return core_schema.no_info_after_validator_function(
            WrittenParts.read,
            plain,
            serialization=core_schema.plain_serializer_function_ser_schema(
                WrittenParts.of, return_schema=plain
            ),
        )


Kept = Annotated[Parts, _AsJson]
"""Parts in a report: labels, sizes and shares, which outlive the pass."""


def _written(label: Any) -> WrittenLabel:
    return (label.start, label.stop - 1) if isinstance(label, range) else label


def _read(label: WrittenLabel) -> Any:
    return range(label[0], label[1] + 1) if isinstance(label, tuple) else label


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
