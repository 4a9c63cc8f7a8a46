"""The page of ``m2xfp demo --report``: one HTML file with pictures of what ran.

It holds everything itself, pictures and figures: nothing is loaded when it is opened, and it can be
mailed. The same run gives the same bytes: there is no date in it, and no path but those of the
Verilog.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FIGURES", "demo_page", "read_page", "shades", "tones"]

FIGURES = '<script type="application/json" id="figures">'
"""What opens the figures in the page, for programs; `</script>` closes them."""

_COLORS = {"mxfp4": "#cf7a1f", "m2xfp-act": "#1b66a6"}
_INK, _QUIET, _LINE = "#1c2630", "#5c6b78", "#d5dce2"
_NAMES = {"mxfp4": "MXFP4", "m2xfp-act": "M2XFP"}

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2630; background: #fbfcfd;
       max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { max-width: 46rem; }
table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums;
        display: block; max-width: 100%; overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #d5dce2; text-align: right; }
th { font-weight: 600; color: #5c6b78; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:not(:first-child), td:not(:first-child) { white-space: nowrap; }
.verdict { font-size: 1.1rem; padding: .7rem 1rem; background: #e8f3ec;
           border-left: 4px solid #2c8a52; }
.quiet { color: #5c6b78; font-size: .9rem; }
.wrong { background: #fbeaea; border-color: #b3352f; }
.row { display: flex; flex-wrap: wrap; gap: 1.25rem; }
figure { margin: 0; }
figcaption { color: #5c6b78; font-size: .9rem; }
img { image-rendering: pixelated; width: 18rem; border: 1px solid #d5dce2; display: block; }
svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: #5c6b78; }
code { font-size: .92em; overflow-wrap: anywhere; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 .9em; }
"""


# --- pictures -------------------------------------------------------------------------------------


def tones(values: NDArray[Any], limit: float) -> NDArray[np.uint8]:
    """Return values as colours uint8 [..., 3]: blue below 0, white at 0, orange above.

    ``limit`` is the size that gets the full colour.
    """
    import numpy as np

    ends = np.array([[27, 102, 166], [207, 122, 31]], float)
    share = np.clip(np.abs(values) / limit, 0, 1)[..., None] ** 0.5
    full = np.where(values[..., None] < 0, ends[0], ends[1])
    colors: NDArray[np.uint8] = np.rint(255 + share * (full - 255)).astype(np.uint8)
    return colors


def shades(errors: NDArray[Any], limit: float) -> NDArray[np.uint8]:
    """Return sizes of errors as colours uint8 [..., 3], from white at 0 to ink at ``limit``."""
    import numpy as np

    share = np.clip(np.abs(errors) / limit, 0, 1)[..., None]
    colors: NDArray[np.uint8] = np.rint(255 + share * (np.array([28, 38, 48]) - 255.0)).astype(
        np.uint8
    )
    return colors


def _png(colors: NDArray[np.uint8]) -> str:
    """Return colours [height, width, 3] as a PNG in a data URL."""
    height, width, _ = colors.shape
    rows = b"".join(b"\0" + row.tobytes() for row in colors)

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    image += chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = "") -> str:
    fill = f' style="fill:{color}"' if color else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str = _LINE, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        f'stroke-width="{width:g}"/>'
    )


def _rect(x: float, y: float, width: float, height: float, color: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"/>'
    )


def _group_picture(group: Mapping[str, Any]) -> str:
    """Draw the 32 values of a group, and what each format makes of them."""
    values = group["values"]
    formats = [name for name in _COLORS if name in group]
    width, height, left, step = 900, 250, 46, 26
    largest = max(abs(x) for name in ("values", *formats) for x in group[name]) or 1.0

    def y(value: float) -> float:
        return height / 2 - value / largest * (height / 2 - 18)

    parts = [_line(left, y(0), width - 10, y(0))]
    parts += [_text(left - 8, y(v) + 4, f"{v:.3g}", "end") for v in (largest, 0.0, -largest)]
    for subgroup in range(1, len(values) // 8):
        border = left + step * 8 * subgroup
        parts.append(f'<g stroke-dasharray="3 3">{_line(border, 8, border, height - 8)}</g>')
    for index, value in enumerate(values):
        x = left + step * (index + 0.5)
        parts.append(_line(x, y(0), x, y(value), _INK, 2))
        parts.append(f'<circle cx="{x:.1f}" cy="{y(value):.1f}" r="3" fill="{_INK}"/>')
        for place, name in enumerate(formats):
            at = x + (-9, 2)[place]
            level = y(group[name][index])
            parts.append(_line(at, level, at + 7, level, _COLORS[name], 3))
    return _svg(width, height, "A group of 32 values in MXFP4 and M2XFP", parts)


def _bits_picture(group: Mapping[str, Any]) -> str:
    """Draw the bits of a packed group: scale, codes, metadata."""
    cell, gap, left = 11, 6, 76
    codes = bytes.fromhex(group["codes"])
    nibbles = [code >> shift & 15 for code in codes for shift in (0, 4)]
    width = left + 16 * (4 * cell + gap) + 10
    parts: list[str] = []

    def bits(x: float, y: float, value: int, count: int, color: str) -> None:
        for place in range(count):
            on = value >> (count - 1 - place) & 1
            fill = color if on else "#ffffff"
            parts.append(
                f'<rect x="{x + cell * place:.1f}" y="{y:.1f}" width="{cell}" height="{cell}" '
                f'fill="{fill}" stroke="{_LINE}"/>'
            )

    parts.append(_text(0, 22, "scale"))
    bits(left, 12, group["scale"], 8, "#2c8a52")
    parts.append(_text(left + 8 * cell + 10, 22, f"{group['scale']:#04x}"))
    for index, nibble in enumerate(nibbles):
        line, column = divmod(index, 16)
        if not column:
            parts.append(_text(0, 54 + 22 * line, f"{index} .. {index + 15}"))
        bits(left + column * (4 * cell + gap), 44 + 22 * line, nibble, 4, _INK)
    parts.append(_text(0, 106, "metadata"))
    for subgroup in range(4):
        bits(
            left + subgroup * (2 * cell + gap),
            96,
            group["meta"] >> 2 * subgroup & 3,
            2,
            _COLORS["m2xfp-act"],
        )
    parts.append(_text(left + 4 * (2 * cell + gap) + 10, 106, f"{group['meta']:#04x}"))
    return _svg(width, 116, "The 144 bits of the packed group", parts)


def _bars(rows: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Draw a bar for each format under each title."""
    left, width, thick = 170, 620, 13
    largest = max(value for values in rows.values() for value in values.values())
    parts, y = [], 4.0
    for title, values in rows.items():
        parts.append(_text(left - 10, y + thick + 2, title, "end", _INK))
        for name, value in values.items():
            length = max(0.0, (width - left - 70) * value / largest)
            parts.append(_rect(left, y, length, thick - 2, _COLORS[name]))
            parts.append(_text(left + length + 6, y + thick - 3, f"{value:.2f} {unit}"))
            y += thick
        y += 9
    return _svg(width, int(y), "Signal over quantization error", parts)


def _intervals(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw how much each format's perplexity is above that of the model as it is."""
    left, width, high = 100, 620, 34
    top = max(row["over"]["high"] for row in rows) * 1.1
    low = min(0.0, *(row["over"]["low"] for row in rows))

    def x(value: float) -> float:
        return left + (width - left - 60) * (value - low) / (top - low)

    parts = [_line(x(0), 0, x(0), high * len(rows)), _text(x(0) + 4, high * len(rows) + 14, "fp32")]
    for index, row in enumerate(rows):
        y, color, over = high * (index + 0.5), _COLORS[row["activations"]], row["over"]
        parts.append(_text(left - 10, y + 4, _NAMES[row["activations"]], "end", _INK))
        parts.append(_line(x(over["low"]), y, x(over["high"]), y, color, 3))
        parts.append(f'<circle cx="{x(over["value"]):.1f}" cy="{y:.1f}" r="5" fill="{color}"/>')
        parts.append(_text(x(over["high"]) + 8, y + 4, f"{over['value']:+.2f} %"))
    return _svg(width, high * len(rows) + 20, "Perplexity over that of the model as it is", parts)


def _area_picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the area of each unit, registers and logic."""
    left, width, thick = 230, 720, 22
    largest = max(row["area_um2"] for row in rows)
    y = 4.0
    parts: list[str] = []
    for row in rows:
        scale = (width - left - 120) / largest
        logic, whole = row["logic_area_um2"] * scale, row["area_um2"] * scale
        parts.append(_text(left - 10, y + 15, f"{row['unit']} {row['config']}", "end", _INK))
        parts.append(_rect(left, y, logic, thick - 4, _COLORS["m2xfp-act"]))
        parts.append(_rect(left + logic, y, whole - logic, thick - 4, "#9fc3df"))
        parts.append(_text(left + whole + 8, y + 14, f"{row['area_um2']:.0f} um2"))
        y += thick
    return _svg(width, int(y) + 4, "Area on the standard-cell library", parts)


# --- the page -------------------------------------------------------------------------------------


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _key(names: Iterable[str]) -> str:
    return "".join(
        f'<span class="key" style="background:{_COLORS[name]}"></span>{_NAMES[name]}'
        for name in names
    )


def _comparisons(figures: Mapping[str, Any]) -> str:
    rows: list[tuple[object, ...]] = [
        (
            f"{one['unit']} {one['config']}",
            f"{one['groups']} groups",
            f"{one['groups'] * 32} values",
            one["clocks"],
            one["mismatches"],
        )
        for one in figures["comparisons"]
    ]
    linear = figures["linear"]
    rows.append(
        (
            f"gemm_core {linear['config']}: {linear['layer']}",
            f"[{linear['m']}, {linear['k']}] x [{linear['n']}, {linear['k']}]",
            f"{linear['m'] * linear['n']} results",
            f"{linear['clocks']}, {linear['utilisation']:.1%} of peak",
            linear["mismatches"] + linear["groups_mismatched"],
        )
    )
    rows += [_other_layer(run) for run in (figures["mixed"], *figures["dots"])]
    made = figures["generated"]
    rows.append(
        (
            f"{made['unit']}: {made['text']!r}",
            f"{made['tokens']} tokens",
            f"{made['logits']} logits, {made['cache_bytes']} bytes of cache",
            f"{made['clocks']}, array busy in {made['busy']:.1%}",
            len(made["different"]),
        )
    )
    return _table(("through the Verilog", "", "", "clocks", "mismatches"), rows)


def _other_layer(run: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the row of a linear layer in segments of formats, or by dot products."""
    what = run.get("what") or " + ".join(
        f"{size} {act} x {weight}" for act, weight, size in run["segments"]
    )
    return (
        f"{run.get('unit', 'mixed_gemm')} {run['config']}: {run['layer']} in {what}",
        f"[{run['m']}, {run['k']}] x [{run['n']}, {run['k']}]",
        f"{run['m'] * run['n']} results",
        run["clocks"],
        run["mismatches"] + run.get("groups_mismatched", 0),
    )


def _area(area: Mapping[str, Any]) -> str:
    if "missing" in area:
        return f"<p>{escape(area['missing'])}</p>"
    table = _table(
        ("unit", "area um2", "gate equivalents", "cells", "flip-flops", "path ns", "fmax MHz"),
        [
            (
                f"{row['unit']} {row['config']}",
                f"{row['area_um2']:.0f}",
                f"{row['gate_equivalents']:.0f}",
                row["cells"],
                row["flops"],
                f"{row['critical_path_ns']:.3f}",
                f"{row['fmax_mhz']:.0f}",
            )
            for row in area["rows"]
        ],
    )
    return (
        f"{_area_picture(area['rows'])}"
        f'<p class="quiet">Dark: logic, light: flip-flops. {escape(area["title"])}, '
        f"{escape(area['yosys'])}; no wires, no clock tree.</p>{table}"
    )


def demo_page(figures: Mapping[str, Any], pictures: Mapping[str, NDArray[np.uint8]]) -> str:
    """Return the page.

    Parameters
    ----------
    figures
        What the run gave, as `m2xfp.commands.demo` gathers it; they stand in the page as JSON too.
    pictures
        Colours uint8 [height, width, 3] by caption.
    """
    group, perplexity = figures["group"], figures["perplexity"]
    wrong = sum(one["mismatches"] for one in figures["comparisons"])
    layers = [figures["linear"], figures["mixed"], *figures["dots"]]
    wrong += sum(run["mismatches"] + run.get("groups_mismatched", 0) for run in layers)
    wrong += len(figures["generated"]["different"])
    groups = sum(one["groups"] for one in figures["comparisons"])
    verdict = (
        f"{groups} groups and {sum(run['m'] * run['n'] for run in layers)} results of linear "
        "layers, golden model against emitted Verilog: "
        + ("every bit is equal." if not wrong else f"{wrong} differ.")
    )
    images = "".join(
        f'<figure><img src="{_png(colors)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, colors in pictures.items()
    )
    table = _table(
        ("activations", "perplexity a byte", "over fp32", "95 % interval"),
        [
            (
                row["activations"],
                f"{row['value']:.4f}",
                f"{row['over']['value']:+.2f} %" if "over" in row else "",
                f"{row['over']['low']:+.2f} .. {row['over']['high']:+.2f} %"
                if "over" in row
                else "",
            )
            for row in perplexity
        ],
    )
    paths = ", ".join(f"<code>{escape(path)}</code>" for path in figures["verilog"])
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>m2xfp demo</title>
<style>{_STYLE}</style>
<h1>What ran</h1>
<p class="quiet">m2xfp {escape(figures["version"])}, the bundled language model on held-out text,
activations in {escape(figures["input_type"])}</p>
<p class="verdict{" wrong" * bool(wrong)}">{escape(verdict)}</p>
{_comparisons(figures)}
<p>The Verilog: {paths}</p>

<h2>A group</h2>
<p>32 neighbouring values of what <code>{escape(group["tensor"])}</code> reads share a scale; each
has four bits. The largest value of each eight gets two more bits in M2XFP. Of all groups of this
tensor this is the one in the middle by the error that M2XFP leaves of MXFP4's:
{group["ratio"]:.0%}.</p>
{_group_picture(group)}
<p class="quiet">Points: the values.{_key(name for name in _COLORS if name in group)}</p>
{_bits_picture(group)}
<p class="quiet">Its 144 bits, highest bit first in each field, as the golden model and the Verilog
both give them: 4.5 bits a value.</p>

<h2>A tensor</h2>
<p>What <code>{escape(group["tensor"])}</code> reads: {figures["shown"][0]} tokens from top to
bottom, {figures["shown"][1]} channels from left to right. Both errors have one scale.</p>
<div class="row">{images}</div>

<h2>Error</h2>
<p>Signal over quantization error of all activations, by what the layers read; more is better.
{_key(_COLORS)}</p>
{_bars(figures["sqnr"], "dB")}

<h2>The model</h2>
<p>Perplexity a byte on {figures["bytes"]} bytes of held-out text, with the inputs of every linear
layer in a format; less is better. The intervals are bootstraps over the windows.</p>
{_intervals([row for row in perplexity if "over" in row])}
{table}

<h2>Area</h2>
{_area(figures["area"])}

{FIGURES}
{json.dumps(figures, indent=1).replace("</", "<" + chr(92) + "/")}
</script>
</html>
"""


def read_page(page: str) -> dict[str, Any]:
    """Return the figures that stand in a page."""
    figures: dict[str, Any] = json.loads(page.partition(FIGURES)[2].partition("</script>")[0])
    return figures
