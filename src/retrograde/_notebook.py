"""How results look in a notebook: their text, and the small chart that fits below it.

Nothing is fetched and no script runs, so that a stored notebook shows the same without a network.
"""

from collections.abc import Callable
from html import escape
from typing import Any

from retrograde import charts
from retrograde.errors import MissingExtraError, RetrogradeError


def card(
    text: str, more: Callable[[], str] | None = None, draw: Callable[[], Any] | None = None
) -> str:
    """Text, and a chart as a picture where charts can be drawn.

    Args:
        text: some lines that are always known.
        more: gives further lines; where it fails with an error of ours, the reason stands in their
            place, and nothing is drawn.
        draw: makes the Altair chart; None, or a function that returns None, for none.
    """
    try:
        lines = [text] if more is None else [text, more()]
    except RetrogradeError as error:
        lines, draw = [text, str(error)], None
    shown = '<pre style="white-space: pre-wrap">{}</pre>'.format(escape("\n".join(lines)))
    try:
        chart = None if draw is None else draw()
        return shown if chart is None else shown + charts.picture(chart, text.partition("\n")[0])
    except MissingExtraError:
        return shown
