"""The charts of a page, and the JavaScript that draws them, which is part of the file."""

from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from retrograde._optional import optional

MOST_BYTES = 1_950_000
"""Charts that would make a page larger than this are left out, and the page says which."""


class Pictures:
    """The charts of a page, each kept once wherever it is shown, until there is no more room.

    Attributes:
        specs: what is drawn, by key, as text that may stand in a script.
        captions: title and lines of each, which the page shows as text.
    """

    def __init__(self, room: int = MOST_BYTES):
        self.room = room
        self.specs: dict[str, Any] = {}
        self.captions: dict[str, tuple[str, Sequence[str]]] = {}

    @property
    def javascript(self) -> Any:
        """All specifications as one JavaScript object."""
        markup, written = drawing().Markup, drawing().htmlsafe_json_dumps
        rows = (written(key) + markup(":") + spec for key, spec in self.specs.items())
        return markup("{") + markup(",\n").join(rows) + markup("}")

    def add(self, key: str, make: Callable[[], Any]) -> bool:
        """Keep a chart if there is one and room for it; False if only the room was missing."""
        if key in self.specs:
            return True
        with drawing().altair.utils.schemapi.debug_mode(False):
            chart = make()
            if chart is None:
                return True
            spec = chart.to_dict(validate=False)
        del spec["config"], spec["$schema"]
        title = spec.pop("title")
        caption = (title, ()) if isinstance(title, str) else (title["text"], title["subtitle"])
        text = drawing().htmlsafe_json_dumps(spec, separators=(",", ":"))
        size = len(text.encode()) + 500
        if size > self.room:
            return False
        self.room -= size
        self.specs[key], self.captions[key] = text, caption
        return True


def javascript() -> Any:
    """What draws the charts, as it stands in a page."""
    return drawing().Markup(_javascript())


@cache
def _javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed; bundling them takes a second, once."""
    draw = drawing()
    text: str = draw.vl_convert.javascript_bundle(  # None: the libraries alone
        None, vl_version=".".join(draw.altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    )
    return text


@cache
def drawing() -> Any:
    """The packages that draw a page."""
    with optional("the page of a report", "report"):
        import altair
        import vl_convert
        from jinja2.utils import htmlsafe_json_dumps
        from markupsafe import Markup

    return SimpleNamespace(
        altair=altair,
        vl_convert=vl_convert,
        htmlsafe_json_dumps=htmlsafe_json_dumps,
        Markup=Markup,
    )
