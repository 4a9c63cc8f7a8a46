"""Pictures of the pages in docs/, each drawn from what it shows: `m2xfp docs --pictures`.

They stand in the repository, where a reader of the pages sees them, on white, since such a reader's
page may be dark.
"""

from collections.abc import Callable
from html import escape
from pathlib import Path

import torch

from m2xfp.files import write_atomic
from m2xfp.formats import E2M1
from m2xfp.golden import PackedTensor, get_format
from m2xfp.manual.datapaths import DATAPATHS

__all__ = ["PICTURES", "write_pictures"]

_FONT = 'font-family="sans-serif" font-size="13"'
_MARKS = ("#1f4e79", "#c55a11", "#548235", "#7030a0")


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, more: str = 'text-anchor="middle"') -> str:
    return f'<text x="{x:g}" y="{y:g}" {_FONT} {more}>{escape(text)}</text>'


# --- the chain ------------------------------------------------------------------------------------

# What each step is, what it gives, and the command that makes it; a line of boxes a row.
_CHAIN = (
    (
        ("PyTorch tensor", "bfloat16, FP16, FP32", ""),
        ("golden model", "every format, bit for bit", "m2xfp eval"),
        ("unit in Amaranth", "any parameters", "rtl/units"),
        ("Verilog", "AXI4-Stream, JSON, FuseSoC", "m2xfp verilog"),
    ),
    (
        ("simulation", "every bit = golden", "m2xfp check"),
        ("proofs, mutants", "all inputs and states", "m2xfp prove"),
        ("silicon", "area, timing, energy", "m2xfp synth"),
        ("FPGA bitstream", "read back, = golden", "m2xfp fpga build"),
    ),
)


def _chain() -> str:
    """Return the chain from a tensor to a bitstream."""
    width, height, gap = 190, 74, 34
    parts = []
    for row, boxes in enumerate(_CHAIN):
        for column, (title, what, command) in enumerate(boxes):
            x, y = 8 + column * (width + gap), 10 + row * (height + 46)
            parts.append(
                f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="#eef3f8" '
                f'stroke="{_MARKS[row]}"/>'
            )
            middle = x + width / 2
            parts.append(_text(middle, y + 22, title, 'text-anchor="middle" font-weight="bold"'))
            parts.append(_text(middle, y + 42, what))
            if command:
                more = 'text-anchor="middle" fill="#555" style="font-family: monospace"'
                parts.append(_text(middle, y + 62, command, more))
            if row == 0 and column < len(boxes) - 1:
                parts.append(_arrow(x + width + 3, y + height / 2, gap - 8, 0))
    # All of the second row start from the Verilog.
    source, line = 8 + 3 * (width + gap) + width / 2, 10 + height
    around = f"M {source:g} {line} v 20 H {8 + width / 2:g}"
    parts.append(f'<path d="{around}" fill="none" stroke="#555"/>')
    parts += [_arrow(8 + n * (width + gap) + width / 2, line + 20, 0, 22) for n in range(4)]
    return _svg(16 + 4 * width + 3 * gap, 10 + 2 * height + 56, "From a tensor to a chip", parts)


def _arrow(x: float, y: float, dx: float, dy: float) -> str:
    head = "m -7 -4 l 7 4 l -7 4" if dx else "m -4 -7 l 4 7 l 4 -7"
    return f'<path d="M {x:g} {y:g} l {dx:g} {dy:g} {head}" fill="none" stroke="#555"/>'


# --- number lines ---------------------------------------------------------------------------------

_LEFT, _WIDTH, _STEP = 150, 780, 46
_TITLE = 'text-anchor="start" fill="#555"'


def _unit(last: int) -> float:
    """Return the pixels between whole numbers on a line that ends behind ``last``."""
    return (_WIDTH - _LEFT - 20) / (last + 0.5)


def _line(
    y: float, last: int, values: list[float], label: str, colour: str, large: list[float]
) -> list[str]:
    """Return a number line: its name, all values as small marks, some as large ones."""
    unit = _unit(last)
    end = _LEFT + unit * (last + 0.5)
    parts = [
        _text(_LEFT - 14, y + 5, label, 'text-anchor="end"'),
        f'<path d="M {_LEFT:g} {y:g} H {end:g}" stroke="#999" fill="none"/>',
    ]
    for value in values:
        x, size = _LEFT + unit * value, 6 if value in large else 3
        parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{size}" fill="{colour}"/>')
    return parts


def _axis(y: float, last: int) -> list[str]:
    return [_text(_LEFT + _unit(last) * n, y, str(n)) for n in range(last + 1)]


def _decoded(name: str, code: int, meta: int) -> list[float]:
    """Return a decoded group of scale 1 whose first value has a code; the others are 0."""
    fmt = get_format(name)
    codes = torch.zeros((1, 16), dtype=torch.uint8)
    codes[0, 0] = code
    planes = {
        "codes": codes,
        "scales": torch.full((1, 1), 127, dtype=torch.uint8),
        "meta": torch.full((1, 1), meta * 0x55, dtype=torch.uint8),
    }
    decoded: list[float] = PackedTensor.from_planes(fmt, planes, (1, 32)).dequantize()[0].tolist()
    return decoded


def _values() -> list[float]:
    """Return the magnitudes of E2M1."""
    return [float(E2M1.magnitude(code)) for code in range(8)]


def _elem_em() -> str:
    """Return what metadata adds to the largest value of eight."""
    parts = [_text(_LEFT, 24, "values of a group whose scale is 1", _TITLE)]
    plain = _values()
    refined = sorted(
        {_decoded("m2xfp-act", code, meta)[0] for code in range(1, 8) for meta in range(4)}
    )
    parts += _line(56, 7, plain, "seven of eight", _MARKS[0], plain)
    parts += _line(56 + _STEP, 7, refined, "the largest one", _MARKS[1], plain)
    parts += _axis(56 + _STEP + 32, 7)
    return _svg(_WIDTH, 56 + _STEP + 48, "Elem-EM: the largest of eight has two more bits", parts)


def _sg_em() -> str:
    """Return what metadata does to the scale of eight weights."""
    parts = [_text(_LEFT, 24, "values of eight weights whose group's scale is 1", _TITLE)]
    y = 56.0
    for meta in range(4):
        values = [_decoded("m2xfp-weight", code, meta)[0] for code in range(8)]
        label = f"metadata {meta}: x {values[2]:g}"
        parts += _line(y, 10, values, label, _MARKS[meta], values)
        y += _STEP
    parts += _axis(y - 14, 10)
    return _svg(_WIDTH, int(y) + 2, "Sg-EM: four scales for each eight weights", parts)


PICTURES: dict[str, Callable[[], str]] = {
    "chain": _chain,
    "elem-em": _elem_em,
    "sg-em": _sg_em,
    **DATAPATHS,
}


def write_pictures(folder: Path) -> list[Path]:
    """Write every picture into ``folder`` and return the files."""
    return [write_atomic(folder / f"{name}.svg", draw()) for name, draw in PICTURES.items()]
