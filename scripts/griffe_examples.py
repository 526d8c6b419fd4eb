"""A griffe extension: the `Example:` of a docstring is code, and not a note with a coloured bar."""

from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """What griffe calls the section is `Examples:`, also where there is one."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Griffe calls this for everything that it read."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = text.replace("\nExample:\n", "\nExamples:\n")
