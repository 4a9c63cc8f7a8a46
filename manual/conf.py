"""Sphinx's configuration of the site; the sources get a copy of this file."""

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
myst_heading_anchors = 6
napoleon_google_docstring = False
napoleon_custom_sections = [("Members", "Attributes")]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_class_signature = "separated"
exclude_patterns = ["files"]


def _as_text(_app: Any, _context: Any, lines: list[str]) -> None:
    """Take asterisks of help texts for what they are, not for emphasis."""
    lines[:] = [line.replace("*", "\\*") for line in lines]


def setup(app: Any) -> None:
    """Register what changes the command line's texts."""
    for part in ("description", "options", "arguments", "epilog"):
        app.connect(f"sphinx-click-process-{part}", _as_text)
