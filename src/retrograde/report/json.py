"""A report for a script: the numbers behind every chart, as strict JSON (no NaN, no infinity)."""

import json
import math
from importlib.metadata import version
from typing import Any

import torch

from retrograde.decompose import Split
from retrograde.report.report import Layer, Report

SCHEMA = "retrograde-report/1"


def render(report: Report) -> str:
    """The report as a JSON text; what is not a finite number becomes null."""
    document = {
        "schema": SCHEMA,
        "title": report.title,
        "versions": {"retrograde": version("retrograde"), "torch": str(torch.__version__)},
        "notes": list(report.notes),
        "horizon": vars(report.horizon) if report.horizon else None,
        "layers": [
            _layer(report, layer, sentence)
            for layer, sentence in zip(report.layers, report.sentences, strict=True)
        ],
    }
    return json.dumps(_strict(document), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _split(split: Split) -> dict[str, Any]:
    """One row for each way, one column for each bin of lags."""
    return {
        "parts": list(split.ways),
        "lags": [[lag.start, lag.stop - 1] for lag in split.lags],
        "log2_norm": split.log2.tolist(),
        "share": split.share.tolist(),
    }


def _layer(report: Report, layer: Layer, sentence: str) -> dict[str, Any]:
    flow, lags, blocks = layer.flow, report.by_lag(layer), layer.flow.by_parameter()
    return {
        "name": layer.name,
        "sentence": sentence,
        "figures": dict(layer.figures),
        "steps": flow.steps,
        "batch": flow.unrolled.x.shape[1],
        "entries": flow.entries.steps.tolist(),
        "resolution": flow.entries.resolution,
        "reach": flow.reach,
        "half_life": flow.half_life,
        "residual": float(flow.residual),
        "residual_note": flow.residual.note,
        "by_lag": [
            {"first": lag.start, "last": lag.stop - 1, "log2_norm": log2, "share": share}
            for lag, log2, share in zip(
                lags.lags, lags.log2.tolist(), lags.share.tolist(), strict=True
            )
        ],
        "log2_mean_by_lag": flow.by_time().log2_mean_by_lag.tolist(),
        "by_parameter": [
            {"parameter": parameter, "gate": gate, "log2_norm": log2, "share": share}
            for (parameter, gate), log2, share in zip(
                blocks.blocks, blocks.log2.tolist(), blocks.share.tolist(), strict=True
            )
        ],
        "by_route": _split(flow.by_route()) if layer.has_carousel else None,
        "by_crossing": _split(layer.by_crossing()) if layer.has_carousel else None,
    }


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_strict(part) for part in value]
    return value
