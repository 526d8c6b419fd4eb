"""The lecture: back-propagation through time, seen, as an app in the browser.

What it teaches is computed here in plain functions; `app.py` lays it out with marimo.
"""

from retrograde.explore.server import serve

__all__ = ["serve"]
