"""Sphinx's configuration of the site; the sources get a copy of this file."""

import re
from typing import Any

from m2xfp import __version__

project = "m2xfp"
author = "the m2xfp authors"
release = __version__
extensions = [
    *("myst_parser", "sphinx_click"),
    *("sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"),
]
html_theme = "furo"
html_title = f"m2xfp {release}"
html_show_copyright = False
smartquotes = False  # two hyphens are an option's
myst_heading_anchors = 6
napoleon_google_docstring = False
napoleon_custom_sections = [("Members", "Attributes"), ("Result", "notes_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_class_signature = "separated"
html_extra_path = ["extra"]
exclude_patterns = ["files", "extra"]


def _as_text(_app: Any, _context: Any, lines: list[str]) -> None:
    """Take asterisks of help texts for what they are, not for emphasis."""
    lines[:] = [line.replace("*", "\\*") for line in lines]


def _as_prose(_app: Any, _what: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:
    """Take what stands under Returns for a text where it names no types."""
    text = "\n".join(lines)
    # A heading of another name is a section of plain text to napoleon.
    prose = r"^Returns\n-+\n(?=(?:\S.*\n?)+(?:\n|\Z))"
    lines[:] = re.sub(prose, "Result\n------\n", text, flags=re.MULTILINE).split("\n")


def setup(app: Any) -> None:
    """Register what changes texts of the command line and of docstrings."""
    app.connect("autodoc-process-docstring", _as_prose, priority=100)
    for part in ("description", "options", "arguments", "epilog"):
        app.connect(f"sphinx-click-process-{part}", _as_text)
