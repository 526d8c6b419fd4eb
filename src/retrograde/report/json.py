"""A report for a script: strict JSON that is read back without loss.

The dataclasses of the report are the schema; pydantic writes, checks and describes them. A number
that JSON has no word for is one of the strings "NaN", "Infinity" and "-Infinity".
"""

import json
from collections.abc import Callable
from functools import cache
from os import PathLike
from typing import Any, TypeVar

from retrograde import _files
from retrograde._json import strict
from retrograde._optional import optional
from retrograde.errors import InputError
from retrograde.report.data import ReportData

SCHEMA = "retrograde-report/6"

SHOWN = 3
"""Maximum number of complaints about a file that are shown."""

Kind = TypeVar("Kind")


def schema(kind: type[ReportData]) -> dict[str, Any]:
    """The JSON Schema of a written report of this class, as in docs/report.schema.json."""
    with optional("a report as JSON", "report"):
        from pydantic.json_schema import GenerateJsonSchema

    class Schema(GenerateJsonSchema):
        def float_schema(self, schema: Any) -> dict[str, Any]:
            """Numbers, and the strings for those that JSON cannot hold."""
            strings = {"enum": ["NaN", "Infinity", "-Infinity"]}
            return {"anyOf": [super().float_schema(schema), strings]}

    found = _adapter(kind).json_schema(schema_generator=Schema, mode="serialization")
    for part in (found, *found["$defs"].values()):  # examples of Python help no reader of JSON
        if "description" in part:
            part["description"] = part["description"].partition("\n\nExample:")[0]
    found["properties"] = {"schema": {"const": SCHEMA}, **found["properties"]}
    found["required"] = ["schema", *found["required"]]
    return {"$schema": GenerateJsonSchema.schema_dialect, **found}


def render(report: Any, schema: str = SCHEMA) -> str:
    """The report as a JSON text."""
    document = {"schema": schema, **_adapter(type(report)).dump_python(report)}
    return json.dumps(strict(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: str | PathLike[str], kind: type[Kind], schema: str = SCHEMA) -> Kind:
    """Read a report back, as one of this class.

    Raises:
        InputError: if the file cannot be read or is no report of this schema.
    """
    with optional("a report as JSON", "report"):
        from pydantic import ValidationError

    path = _files.check_readable(path, "a file that to_json wrote")
    shown = _files.named(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        what = _files.kind(path)
        why = f"it is {what}" if what else str(error)
        raise InputError(f"cannot read {shown}: {why}; give a file that to_json wrote") from None
    found = document.pop("schema", None) if isinstance(document, dict) else None
    if found != schema:
        other = isinstance(found, str) and found.startswith(schema.rpartition("/")[0])
        advice = "another version of retrograde wrote it; make it once more"
        raise InputError(
            f"{shown} is no report: expected schema {schema!r}, got {found!r} "
            f"({advice if other else 'give a file that to_json wrote'})"
        )
    try:
        read: Kind = _adapter(kind).validate_python(document)
    except ValidationError as error:
        raise InputError(
            f"{shown} is no report of schema {schema!r}: {_complaints(error)}"
        ) from None
    return read


def _made(kind: type[Any]) -> Any:
    with optional("a report as JSON", "report"):
        from pydantic import TypeAdapter

    return TypeAdapter(kind)


_adapter: Callable[[Any], Any] = cache(_made)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _complaints(error: Any) -> str:
    """The first few things that are wrong, each with its place."""
    found = [
        ": ".join(filter(None, (".".join(map(str, each["loc"])), _plain(each["msg"]))))
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _plain(message: str) -> str:
    """A complaint of ours without the name that pydantic gives to it."""
    return message.removeprefix("Value error, ")
