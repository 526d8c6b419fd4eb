"""What draws the charts of a page is bundled once and kept in build/, for all processes and runs.

Bundling takes some seconds, the most of what a program that writes one page does. (The demo that
the tests run as a user does bundles it itself.)
"""

import os
from functools import cache

from retrograde.report import pictures
from support import ROOT

_bundle = pictures._javascript


@cache
def _kept() -> str:
    import altair
    import vl_convert

    versions = f"{vl_convert.__version__}-{altair.SCHEMA_VERSION}"
    path = ROOT / "build" / f"bundled-{versions}.js"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")
        own.write_text(_bundle(), encoding="utf-8")
        own.replace(path)
    return path.read_text(encoding="utf-8")


def use() -> None:
    """Let pages of this process take it from there."""
    pictures._javascript = _kept
