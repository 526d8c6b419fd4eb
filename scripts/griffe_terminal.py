"""A griffe extension: what docstrings say in a terminal, a page would say otherwise."""

import re
from typing import Any

from griffe import Extension, Object

INNER_PRODUCT = re.compile(r"<([^<>]{1,40},\s[^<>]{1,40})>")
"""<a, b>, which Markdown takes for a tag of HTML."""


class Terminal(Extension):
    """Examples are code and not a note with a coloured bar; inner products are shown."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Griffe calls this for everything that it read."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = INNER_PRODUCT.sub("⟨\\1⟩", text)
