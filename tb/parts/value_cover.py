"""What the values of units that quantize groups have gone through."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat, InputType, block_format, input_type
from m2xfp.tb.bench import Arrays, golden_of
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import number, read
from m2xfp.tb.parts.groups import elements, planes_of_beats, user_planes
from m2xfp.tb.parts.value_stimulus import special_magnitudes
from m2xfp.tb.vectors import TestVectors

__all__ = [
    "GAPS",
    "SIGNS",
    "binades_below",
    "cover",
    "cover_groups",
    "cover_specials",
    "half_rate",
]

SIGNS = ("+", "-")
SPECIAL = (
    *("zero", "smallest subnormal", "largest subnormal", "smallest normal", "largest finite"),
    *("infinity", "NaN of one bit", "NaN of all bits"),
)
ROUNDED = ("exact", "below the tie", "tie", "above the tie")
GAPS = 13  # binades below the group's largest, the last for all that are further


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what some groups and their results were."""
    block, kind = (
        block_format(facts.parameters["block"]),
        input_type(facts.parameters["input_type"]),
    )
    values = read(number(facts.stream("i")), vectors.inputs["i"].data)
    patterns = values.reshape(-1, block.group).astype(np.int64)
    planes = planes_of_beats(facts.stream("o"), vectors.outputs["o"].data, block)
    yield from cover_specials(patterns, kind)
    yield from cover_groups(patterns, planes, block, kind, golden_of(facts))


def cover_specials(patterns: NDArray[np.int64], kind: InputType) -> Iterator[Cross]:
    """Yield in which lanes of [n, lanes] patterns special values of each sign were."""
    magnitude, sign = patterns & (1 << kind.width - 1) - 1, patterns >> kind.width - 1
    lane = np.arange(patterns.shape[1])
    for at, special in enumerate(special_magnitudes(kind)):
        yield cross(
            f"{SPECIAL[at]} in each lane",
            {"sign": SIGNS, "lane": lane.tolist()},
            sign,
            lane,
            where=magnitude == special,
        )


def cover_groups(
    patterns: NDArray[np.int64],
    planes: dict[str, NDArray[Any]],
    block: BlockFormat,
    kind: InputType,
    quantize: Callable[..., Arrays],
) -> Iterator[Cross]:
    """Yield what groups of values became.

    Parameters
    ----------
    patterns, kind
        The values, [n, group], and their type.
    planes, block
        The packed groups, and their format.
    quantize
        The golden function that makes planes of patterns.
    """
    codes = elements(planes["codes"], block.element.bits, block.group).astype(np.int64)
    scales = planes["scales"].astype(np.int64)
    magnitude, sign = patterns & (1 << kind.width - 1) - 1, patterns >> kind.width - 1
    lanes = range(block.group)
    lane = np.arange(block.group)
    largest = 1 << block.element.bits - 1
    yield cross(
        "code in each lane",
        {"code": range(2 * largest), "lane": lanes},
        codes,
        lane,
        where=(scales != block.scale.nan)[:, None],
        possible=(np.arange(2 * largest) % largest <= block.element.max_code)[:, None],
    )
    if block.subgroups:
        meta = elements(planes["meta"], block.metadata.bits, block.subgroups).astype(np.int64)
        yield cross(
            "metadata of each subgroup",
            {"value": range(1 << block.metadata.bits), "subgroup": range(block.subgroups)},
            meta,
            np.arange(block.subgroups),
            where=(scales != block.scale.nan)[:, None],
        )
    yield cross(
        "scale", {"byte": range(256)}, scales, possible=_possible_scales(block, kind, quantize)
    )
    yield cross(
        "binades below the largest",
        {"gap": range(GAPS), "sign": SIGNS},
        binades_below(magnitude, kind),
        sign,
        where=(magnitude > 0) & (scales != block.scale.nan)[:, None],
    )
    yield _rounding(block, kind, magnitude, sign, planes)


def binades_below(magnitudes: NDArray[np.int64], kind: InputType) -> NDArray[np.int64]:
    """Return how far below the largest of its row each value is, ``GAPS - 1`` for all beyond."""
    exponent = np.maximum(magnitudes >> kind.mantissa_bits, 1)
    return np.minimum(exponent.max(1, keepdims=True) - exponent, GAPS - 1)


def _possible_scales(
    block: BlockFormat, kind: InputType, quantize: Callable[..., Arrays]
) -> NDArray[np.bool_]:
    """Return which scales a group can have: those of groups of equal values, and of lone ones."""
    key = (block.name, kind.name, repr(quantize))
    if key not in _SCALES:
        step = max(kind.mantissa_bits - 4, 0)
        lone = np.arange(1 << kind.exponent_bits + min(kind.mantissa_bits, 4)) << step
        low = np.arange(1 << min(kind.mantissa_bits, 10))  # subnormals below those
        raw = np.concatenate([lone, low]).astype(f"uint{kind.width}")
        groups = np.zeros((2 * len(raw), block.group), raw.dtype)
        groups[: len(raw), 0] = raw
        groups[len(raw) :] = raw[:, None]
        found = user_planes(quantize(groups), block)["scales"]
        possible = np.zeros(256, bool)
        possible[found] = True
        _SCALES[key] = possible
    return _SCALES[key]


_SCALES: dict[tuple[str, str, str], NDArray[np.bool_]] = {}


def _rounding(
    block: BlockFormat,
    kind: InputType,
    magnitude: NDArray[np.int64],
    sign: NDArray[np.int64],
    planes: dict[str, NDArray[Any]],
) -> Cross:
    """Return where values lay between two codes, of groups that are no NaN.

    In terms of the group's scale, and of the subgroup's factor where metadata refine it.
    """
    scales = planes["scales"].astype(np.int64)
    exponent, fraction = magnitude >> kind.mantissa_bits, magnitude & (1 << kind.mantissa_bits) - 1
    significand = np.where(exponent > 0, fraction + (1 << kind.mantissa_bits), fraction)
    value = np.ldexp(
        significand.astype(float),
        np.maximum(exponent, 1)
        - kind.bias
        - kind.mantissa_bits
        - (scales - block.scale.bias)[:, None],
    )
    grid = np.array([float(block.element.magnitude(n)) for n in range(block.element.max_code + 1)])
    factor = np.ones(value.shape)
    if block.metadata.name == "sg-em":
        meta = elements(planes["meta"], block.metadata.bits, block.subgroups)
        factor = np.repeat(1 + meta / 4, block.metadata.subgroup, axis=1)
    # Both sides times the factor are exact: few bits each.
    steps = grid[:, None, None] * factor
    lower = (value >= steps).sum(0) - 1
    upper = np.minimum(lower + 1, len(grid) - 1)
    middle = (grid[lower] + grid[upper]) / 2 * factor
    last = lower == len(grid) - 1
    case = np.select(
        [value == grid[lower] * factor, last, value < middle, value == middle], [0, 3, 1, 2], 3
    )
    possible = np.ones((len(grid), 4, 2), bool)
    possible[-1, 1:3] = False
    return cross(
        "rounding of a value",
        {"code below": range(len(grid)), "case": ROUNDED, "sign": SIGNS},
        lower,
        case,
        sign,
        where=(scales != block.scale.nan)[:, None],
        possible=possible,
    )


def half_rate(facts: Facts) -> dict[str, str]:
    """Return what is out of reach where results are at least two clocks apart."""
    if facts.clocks_per_group == 1:
        return {}
    return {"beats of o: 0, (none|no ready)": "results are at least two clocks apart (job apart)"}
