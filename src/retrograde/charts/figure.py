"""Charts that a notebook shows without a network, whichever notebook it is."""

import base64
import io
from collections.abc import Callable, Iterable
from functools import cache, wraps
from html import escape
from typing import Any, ParamSpec

from retrograde._optional import optional

P = ParamSpec("P")

SCALE, COLOURS = 1.5, 128
"""Pixels of a picture for each of the chart, and colours: sharp enough, and some 20 kB."""

LABELS = "#7f7f7f"
"""Colour of text inside a chart where a notebook draws it, which stands on white or on near black:
themes colour axes, and leave such text black."""


def png(chart: Any) -> str:
    """A small picture of an Altair chart, in base64.

    Raises:
        MissingExtraError: without what draws it; the message says how to install it.
    """
    with optional("a chart in a notebook", "report"):
        from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    chart.save(drawn, format="png", scale_factor=SCALE)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def picture(chart: Any, alt: str) -> str:
    """The same as an image for HTML, as large as the chart, with a text in its place."""
    drawn = png(chart)
    width = int.from_bytes(base64.b64decode(drawn[:32])[16:20], "big")  # as PNG begins
    style = "max-width: 100%; height: auto"
    source = f"data:image/png;base64,{drawn}"
    return f'<img alt="{escape(alt)}" width="{width / SCALE:.0f}" style="{style}" src="{source}">'


def figure(draw: Callable[P, Any]) -> Callable[P, Any]:
    """A function that draws, whose chart offers a notebook its Vega-Lite and a picture of itself.

    Altair's own bundle is a page that fetches its scripts. With this one JupyterLab, VS Code and
    marimo draw the Vega-Lite themselves if they know its version, and show the picture if they do
    not. Where the user has chosen one of Altair's renderers, that one is used.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Any:
        chart = draw(*args, **kwargs)
        # Altair's own __setattr__ would make it a field of the chart.
        object.__setattr__(chart, "__class__", _offline(type(chart).__name__))
        return chart

    return drawn


@cache
def _offline(name: str) -> Any:
    """One of Altair's classes, with another bundle for notebooks."""
    import altair

    kind = getattr(altair, name)

    def bundle(
        chart: Any, include: Iterable[str] | None = None, exclude: Iterable[str] | None = None
    ) -> Any:
        if altair.renderers.active != "default":
            return kind._repr_mimebundle_(chart, include, exclude)
        major = altair.SCHEMA_VERSION.partition(".")[0]
        spec = chart.to_dict()
        spec.setdefault("config", {}).setdefault("text", {"color": LABELS})
        return {
            f"application/vnd.vegalite.{major}+json": spec,
            "image/png": png(chart),
            "text/plain": repr(chart),
        }

    return type(name, (kind,), {"_repr_mimebundle_": bundle, "__module__": __name__})


def __getattr__(name: str) -> Any:
    """The classes of charts, by name, for those who pickle one."""
    if name.endswith("Chart"):
        return _offline(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
