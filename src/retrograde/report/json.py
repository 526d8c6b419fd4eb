"""A report for a script: strict JSON that is read back without loss.

The dataclasses of the report are the schema; pydantic writes, checks and describes them. A number
that JSON has no word for is one of the strings "NaN", "Infinity" and "-Infinity".
"""

import json
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from retrograde.errors import InputError
from retrograde.report.report import Report

SCHEMA = "retrograde-report/2"


class _Schema(GenerateJsonSchema):
    def float_schema(self, schema: Any) -> dict[str, Any]:
        """Numbers, and the strings for those that JSON cannot hold."""
        return {"anyOf": [super().float_schema(schema), {"enum": ["NaN", "Infinity", "-Infinity"]}]}


@cache
def _adapter() -> Any:
    return TypeAdapter(Report)


def schema() -> dict[str, Any]:
    """The JSON Schema of a written report."""
    found: dict[str, Any] = _adapter().json_schema(schema_generator=_Schema, mode="serialization")
    found["properties"] = {"schema": {"const": SCHEMA}, **found["properties"]}
    found["required"] = ["schema", *found["required"]]
    return found


def render(report: Report) -> str:
    """The report as a JSON text."""
    document = _adapter().dump_python(report, mode="json")
    return json.dumps({"schema": SCHEMA, **document}, indent=1, ensure_ascii=False) + "\n"


def read(path: str | PathLike[str]) -> Report:
    """Read a report back.

    Raises:
        InputError: if the file cannot be read or is no report of this schema.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; give a file that to_json wrote") from None
    found = document.pop("schema", None) if isinstance(document, dict) else None
    if found != SCHEMA:
        raise InputError(f"{path} is no report: expected schema {SCHEMA!r}, got {found!r}")
    try:
        report: Report = _adapter().validate_python(document)
        return report
    except ValidationError as error:
        raise InputError(f"{path} is no report of schema {SCHEMA!r}: {error}") from None
