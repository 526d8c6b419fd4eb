"""How results look in a notebook: their text, and the small chart that fits below it.

Nothing is fetched and no script runs, so that a stored notebook shows the same without a network.
"""

from collections.abc import Callable
from html import escape
from typing import Any

from retrograde import charts
from retrograde.errors import MissingExtraError


def card(text: str, draw: Callable[[], Any] | None = None) -> str:
    """Text, and a chart as a picture where charts can be drawn.

    Args:
        text: some lines.
        draw: makes the Altair chart; None, or a function that returns None, for none.
    """
    shown = f"<pre>{escape(text)}</pre>"
    try:
        chart = None if draw is None else draw()
        picture = "" if chart is None else charts.png(chart)
    except MissingExtraError:
        return shown
    alt = escape(text.partition("\n")[0])
    return f'{shown}<img alt="{alt}" src="data:image/png;base64,{picture}">' if picture else shown
