"""What the values of units whose scales are minifloats have gone through."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.formats import BlockFormat, InputType
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.parts.groups import elements
from m2xfp.tb.parts.value_cover import ROUNDED, SIGNS

__all__ = ["cover_minifloat_groups"]


def cover_minifloat_groups(
    patterns: NDArray[np.int64],
    units: NDArray[np.float32],
    planes: dict[str, NDArray[Any]],
    block: BlockFormat,
    kind: InputType,
) -> Iterator[Cross]:
    """Yield what groups of values became.

    Parameters
    ----------
    patterns, kind
        The values, [n, group], and their type.
    units
        Tensor scales, [n]; 1 where there is none.
    planes, block
        The packed groups, and their format.
    """
    grid = block.scale.grid
    assert grid is not None
    codes = elements(planes["codes"], block.element.bits, block.group).astype(np.int64)
    scales = planes["scales"].reshape(len(codes), -1).astype(np.int64)
    negative = patterns >> kind.width - 1
    sides, there = scales.shape[1], scales[:, :1] != block.scale.nan
    half = 1 << block.element.bits - 1
    lane = np.arange(block.group)
    yield cross(
        "code in each lane",
        {"code": range(2 * half), "lane": lane.tolist()},
        codes,
        lane,
        where=there,
        possible=(np.arange(2 * half) % half <= block.element.max_code)[:, None],
    )
    if block.subgroups:
        meta = elements(planes["meta"], block.metadata.bits, block.subgroups).astype(np.int64)
        yield cross(
            "metadata of each subgroup",
            {"value": range(1 << block.metadata.bits), "subgroup": range(block.subgroups)},
            meta,
            np.arange(block.subgroups),
            where=there,
        )
    byte = np.arange(256)
    possible = (byte <= grid.max_code) | (byte == block.scale.nan)
    possible[0] = sides == 1  # two scales are never zero
    yield cross(
        "scale",
        {"byte": range(256), "sign": SIGNS[:sides]},
        scales,
        np.arange(sides),
        possible=possible[:, None],
    )
    yield _rounding(patterns, units, negative, codes, scales, block, kind)


def _rounding(
    patterns: NDArray[np.int64],
    units: NDArray[np.float32],
    negative: NDArray[np.int64],
    codes: NDArray[np.int64],
    scales: NDArray[np.int64],
    block: BlockFormat,
    kind: InputType,
) -> Cross:
    """Return where values lay between two codes, of groups whose scale is a number above zero.

    All products are exact: a code and a scale have few bits, a tensor scale has 24.
    """
    grid = block.scale.grid
    assert grid is not None
    bits = kind.mantissa_bits
    magnitude = patterns & (1 << kind.width - 1) - 1
    exponent, fraction = magnitude >> bits, magnitude & (1 << bits) - 1
    significand = np.where(exponent > 0, fraction + (1 << bits), fraction).astype(float)
    value = np.ldexp(significand, np.maximum(exponent, 1) - kind.bias - bits)
    known = np.array([float(grid.magnitude(code)) for code in range(grid.max_code + 1)])
    own = np.take_along_axis(scales, negative if scales.shape[1] > 1 else negative * 0, axis=1)
    there = (own != block.scale.nan) & (own <= grid.max_code) & (own > 0)
    unit = np.where(there, known[np.minimum(own, grid.max_code)], 1.0)
    finite = np.isfinite(units) & (units > 0)
    unit = unit * np.where(finite, units, np.float32(1)).astype(float)[:, None]
    steps = np.array([float(block.element.magnitude(n)) for n in range(block.element.max_code + 1)])
    lower = (value >= steps[:, None, None] * unit).sum(0) - 1
    last = lower == len(steps) - 1
    middle = (steps[lower] + steps[np.minimum(lower + 1, len(steps) - 1)]) / 2 * unit
    case = np.select(
        [value == steps[lower] * unit, last, value < middle, value == middle], [0, 3, 1, 2], 3
    )
    possible = np.ones((len(steps), len(ROUNDED), 2), bool)
    possible[-1, 1:3] = False
    return cross(
        "rounding of a value",
        {"code below": range(len(steps)), "case": ROUNDED, "sign": SIGNS},
        lower,
        case,
        negative,
        where=there & finite[:, None] & (codes >= 0),
        possible=possible,
    )
