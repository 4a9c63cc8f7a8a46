"""What the blocks of units that transform them have gone through."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BF16
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import number, read
from m2xfp.tb.parts.value_cover import GAPS, SIGNS, binades_below, cover_specials
from m2xfp.tb.vectors import TestVectors

__all__ = ["block_operands", "cover_blocks", "cover_sums"]

Numbers = NDArray[np.int64]

ROUNDED = ("exact", "down", "tie, down", "tie, up", "up")
RESULTS = ("zero", "subnormal", "normal", "infinity", "NaN")
_NAN = 0xFF


def cover_blocks(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what the values and signs of some blocks were."""
    x, flips = block_operands(vectors, facts)
    yield from cover_specials(x, BF16)
    points = facts.parameters["points"]
    yield cross(
        "sign flipped in each lane",
        {"sign": SIGNS, "flipped": ("no", "yes"), "lane": range(points)},
        x >> 15,
        flips,
        np.arange(points),
    )
    yield cross(
        "binades below the block's largest",
        {"gap": range(GAPS), "sign": SIGNS},
        binades_below(x & 0x7FFF, BF16),
        (x >> 15) ^ flips,
        where=(x & 0x7FFF > 0) & ((x & 0x7FFF).max(1, keepdims=True) < _NAN << 7),
    )


def cover_sums(vectors: TestVectors, facts: Facts, y: Numbers) -> Iterator[Cross]:
    """Yield what the sums of some blocks were, and how they became the results ``y``.

    Parameters
    ----------
    vectors, facts
        The blocks, and the unit.
    y
        Patterns of the results, [blocks, points].
    """
    points, bits = facts.parameters["points"], facts.parameters["bits"]
    doublings = points.bit_length() - 1
    x, flips = block_operands(vectors, facts)
    exponent = np.maximum(x >> 7 & 0xFF, 1)
    significand = (x & 0x7F) | ((x >> 7 & 0xFF) > 0) << 7
    largest = exponent.max(1, keepdims=True)
    cut = significand << bits - 8 >> np.minimum(largest - exponent, 40)
    sums = np.where((x >> 15) ^ flips == 1, -cut, cut) @ _matrix(points)
    negative, finite = (sums < 0).astype(np.int64), largest < _NAN
    lengths = np.frexp(np.abs(sums).astype(float))[1]
    longest = bits + doublings
    yield cross(
        "length of a sum",
        {"bits": range(longest + 1), "sign": SIGNS},
        lengths,
        negative,
        where=finite,
        # Nothing has one sign.
        possible=[[True, bits > 0] for bits in range(longest + 1)],
    )
    exponents, fractions = y >> 7 & 0xFF, y & 0x7F
    kind = np.select(
        [
            (exponents == _NAN) & (fractions > 0),
            exponents == _NAN,
            exponents > 0,
            fractions > 0,
        ],
        [4, 3, 2, 1],
        0,
    )
    yield cross(
        "result in each lane",
        {"kind": RESULTS, "sign": SIGNS, "lane": range(points)},
        kind,
        y >> 15,
        np.arange(points),
        # A NaN is one pattern.
        possible=np.array([[1, 1]] * 4 + [[1, 0]], bool)[..., None],
    )
    # Few bits each, whose exponents fit a double: what follows is exact.
    exact = np.ldexp(np.abs(sums).astype(float), largest - 126 - bits - doublings + doublings // 2)
    patterns = y & 0x7FFF
    error = exact - _value(patterns)
    half = np.where(
        error > 0,
        _value(patterns + 1) - _value(patterns),
        _value(patterns) - _value(np.maximum(patterns, 1) - 1),
    )
    tie = 2 * np.abs(error) == half
    case = np.where(error > 0, np.where(tie, 2, 1), np.where(tie, 3, 4))
    yield cross(
        "rounding of a sum",
        {"case": ROUNDED, "sign": SIGNS, "kind": RESULTS[1:3]},
        np.where(error == 0, 0, case),
        negative,
        kind - 1,
        where=finite & (sums != 0),
    )


def block_operands(vectors: TestVectors, facts: Facts) -> tuple[Numbers, Numbers]:
    """Return patterns and flips of some blocks, each [blocks, points]."""
    stream, data = facts.stream("i"), vectors.inputs["i"].data
    (flips,) = (field for field in stream.fields if field.name == "flips")
    points = facts.parameters["points"]
    x = np.asarray(read(number(stream, "values."), data), np.int64)
    return x.reshape(-1, points), np.asarray(read(flips, data), np.int64).reshape(-1, points)


def _matrix(points: int) -> Numbers:
    """Return Sylvester's matrix, from its definition by doubling."""
    matrix = np.ones((1, 1), np.int64)
    while len(matrix) < points:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _value(magnitudes: Numbers) -> NDArray[np.float64]:
    """Return what bfloat16 magnitudes are, the one behind the largest as if it were finite."""
    exponent = np.maximum(magnitudes >> 7, 1)
    significand = (magnitudes & 0x7F) + ((magnitudes >> 7 > 0) << 7)
    return np.ldexp(significand.astype(float), exponent - 127 - 7)
