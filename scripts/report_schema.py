"""Writes docs/report.schema.json, the JSON Schema of what `diagnose --json` writes.

python scripts/report_schema.py
"""

import json
from pathlib import Path

from retrograde.report import Report
from retrograde.report.json import schema

PATH = Path(__file__).parent.parent / "docs" / "report.schema.json"


def render() -> str:
    """The schema as it stands in the file."""
    return json.dumps(schema(Report), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
