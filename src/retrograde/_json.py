"""Values that strict JSON has a word for."""

import math
from typing import Any


def strict(value: Any) -> Any:
    """The same with "NaN", "Infinity" and "-Infinity" for numbers that JSON cannot hold.

    Half a surrogate pair, which is no text and which a file name may hold, becomes "?".
    """
    match value:
        case dict():
            return {strict(name): strict(part) for name, part in value.items()}
        case list() | tuple():
            return [strict(part) for part in value]
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case str():
            return value.encode("utf-8", "replace").decode("utf-8")
    return value
