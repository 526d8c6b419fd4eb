"""The documentation, built by Sphinx: `make docs`. Nothing on its pages comes from a network.

Pages are Markdown (MyST). The reference is made of docstrings by autodoc, from pages that
`scripts/api_pages.py` writes into `docs/api/` while the documentation is built. Equations become
MathML here, which browsers draw themselves: no script is needed, and the font lies in `_static/`.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.inspect import stringify_signature

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "scripts")]

project = "Retrograde"
author = "The Retrograde authors"
html_title = "Retrograde"
html_short_title = "Retrograde"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

suppress_warnings = ["ref.python"]  # a type that is named like several attributes
default_role = "code"  # what stands in single backticks in a docstring
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # the signature has them
napoleon_use_ivar = True
python_use_unqualified_type_names = True

SECTION = re.compile(r"[A-Z][a-z]+:\n {4}")
CODE = re.compile(r"(`[^`]*`)")
MARK = re.compile(r"(?<![\w*])\*\w[^*\n]*\w\*(?!\w)|[*|]")
"""Emphasis, or a star or bar that stands for itself."""


def as_rest(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are written to be read in a terminal; autodoc takes them for reStructuredText."""
    blocks, in_head = [], True
    for block in "\n".join(lines).split("\n\n"):
        in_head = in_head and not SECTION.match(block)
        if in_head and block.startswith("    "):  # a formula, set apart
            block = f"::\n\n{block}"
        elif ">>> " not in block:
            parts = CODE.split(block)
            parts[::2] = [
                MARK.sub(
                    lambda found: found[0] if len(found[0]) > 1 else f"\\{found[0]}",
                    part,
                )
                for part in parts[::2]
            ]
            block = "".join(parts)
        blocks.append(block.replace("Example:\n", "Examples:\n"))
    lines[:] = "\n\n".join(blocks).split("\n")


def without_private(
    app: Any, what: str, name: str, obj: Any, options: Any, *_: Any
) -> Any:
    """The signature of a class whose fields are not all for its user."""
    try:
        signature = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    shown = [
        each for key, each in signature.parameters.items() if not key.startswith("_")
    ]
    if len(shown) == len(signature.parameters):
        return None
    return stringify_signature(
        signature.replace(parameters=shown), unqualified_typehints=True
    ), ""


def inline_equation(self: Any, node: nodes.math) -> None:
    """An equation in a line of text."""
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def equation(self: Any, node: nodes.math_block) -> None:
    """An equation on lines of its own."""
    self.body.append(
        f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>'
    )
    raise nodes.SkipNode


def write_reference(app: Any, config: Any) -> None:
    """The pages of the reference, before Sphinx looks for pages."""
    if Path(app.srcdir) != HERE:
        return  # a few pages by themselves (tests/test_site.py)
    import api_pages

    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    for page, text in api_pages.render().items():
        if (
            not (folder / page).exists()
            or (folder / page).read_text(encoding="utf-8") != text
        ):
            (folder / page).write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (inline_equation, None), (equation, None))
    app.connect("config-inited", write_reference)
    app.connect("autodoc-process-signature", without_private)
    app.connect("autodoc-process-docstring", as_rest, priority=1)  # before napoleon
