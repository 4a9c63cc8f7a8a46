"""Drawings of a unit from its facts: its streams, and the fields of its words, as SVG.

They take the colour of the text around them, so they fit a dark page as well as a light one.
"""

from collections.abc import Iterable, Sequence
from html import escape
from math import prod

from m2xfp.facts import Facts, Field

__all__ = ["block", "counted", "packet"]

_FONT = 'font-family="monospace" font-size="12" fill="currentColor"'
_LINE = 'stroke="currentColor" fill="none"'
_CHARACTER = 7.3  # units of a monospace character of that size
_WIDTH = 730  # of a page's text: a wider drawing would be shrunk, and its letters with it
_ROW = 76


def counted(number: int, noun: str) -> str:
    """Return ``1 bit``, ``2 bits``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _svg(width: float, height: float, parts: Iterable[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}" style="max-width: {width:g}px; width: 100%">'
        + "".join(parts)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {_FONT}>{escape(text)}</text>'


def _arrow(x: float, y: float, length: float) -> str:
    end = x + length
    return f'<path d="M {x:g} {y:g} H {end:g} m -6 -4 l 6 4 l -6 4" {_LINE}/>'


def block(facts: Facts) -> str:
    """Return the unit as a box, what goes in on the left, what comes out on the right."""
    words = [(x.prefix, x.data_width, x.is_input) for x in facts.streams]
    words += [(x.name, x.width, x.is_input) for x in facts.signals]
    sides = [
        [f"{name} [{counted(width, 'bit')}]" for name, width, inward in words if inward == side]
        for side in (True, False)
    ]
    margin = 20 + _CHARACTER * max(len(text) for side in sides for text in side)
    inner = max(160, 24 + _CHARACTER * len(facts.unit))
    height = 40 + 34 * max(map(len, sides))
    parts = [
        f'<rect x="{margin:g}" y="4" width="{inner:g}" height="{height - 8:g}" rx="4" {_LINE}/>'
    ]
    parts.append(_text(margin + inner / 2, height / 2 - 2, facts.unit))
    latency = counted(facts.latency, "clock") if facts.clock else "combinational"
    parts.append(_text(margin + inner / 2, height / 2 + 15, latency))
    for number, text in enumerate(sides[0]):
        y = 40 + 34 * number
        parts += [_text(0, y - 6, text, "start"), _arrow(0, y, margin)]
    for number, text in enumerate(sides[1]):
        y = 40 + 34 * number
        start = margin + inner
        parts += [_text(start + 12, y - 6, text, "start"), _arrow(start, y, margin)]
    return _svg(2 * margin + inner, height, parts, f"{facts.unit} with its streams")


def packet(name: str, fields: Sequence[Field], width: int) -> str:
    """Return the fields of a word side by side, the highest bits on the left.

    Boxes are as wide as their labels; the bits stand above them. What does not fit into a page's
    width goes on in the next row.
    """
    boxes = []
    for field in sorted(fields, key=lambda x: x.offset, reverse=True):
        count = prod(field.shape)
        times = f"{count} x " if field.shape else ""
        last = f"{field.last_bit}:{field.offset}" if field.last_bit > field.offset else ""
        # Values that lie among those of other fields have no range of their own.
        apart = count * field.width != field.last_bit + 1 - field.offset
        bits = field.formula.strip("[]") if apart else last or str(field.offset)
        boxes.append((field.title, times + counted(field.width, "bit"), bits))
    used = max((field.last_bit + 1 for field in fields), default=0)
    if used < width:
        boxes.insert(0, ("zero", counted(width - used, "bit"), f"{width - 1}:{used}"))
    parts: list[str] = []
    x, y, right = 1.0, 0, 0.0
    for texts in boxes:
        size = 16 + _CHARACTER * max(map(len, texts))
        if x > 1 and x + size > _WIDTH:
            x, y = 1.0, y + _ROW
        parts.append(f'<rect x="{x:g}" y="{y + 20}" width="{size:g}" height="44" {_LINE}/>')
        for below, text in zip((38, 56, 14), texts, strict=True):
            parts.append(_text(x + size / 2, y + below, text))
        x += size
        right = max(right, x)
    return _svg(right + 1, y + 66, parts, f"fields of {name}")
