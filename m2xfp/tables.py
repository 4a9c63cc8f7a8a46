"""Markdown tables, and their places in pages: the one writer of both.

A page holds a table between two marks, ``<!-- table: NAME -->`` and ``<!-- end -->``. What stands
between them is never written by hand: ``m2xfp report --pages`` puts it there, from the figures.
"""

import re
from collections.abc import Mapping, Sequence

from m2xfp.errors import UnknownNameError

__all__ = ["aligned_table", "embed", "table_names"]

_PLACE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def aligned_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text, the first of them the titles, as a markdown table.

    The columns are aligned, so that the table reads as text too.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def table_names(page: str) -> list[str]:
    """Return the names of the tables that a page has a place for."""
    return [name for _, name, _, _ in _PLACE.findall(page)]


def embed(page: str, tables: Mapping[str, str]) -> str:
    """Return a page with the tables of ``tables`` in their places.

    Raises
    ------
    UnknownNameError
        The page has a place for a table that does not exist.
    """

    def fill(place: re.Match[str]) -> str:
        start, name, _, end = place.groups()
        if name not in tables:
            raise UnknownNameError("table", name, tables)
        return f"{start}\n{tables[name]}\n{end}"

    return _PLACE.sub(fill, page)
