"""What the values of units that quantize groups have gone through."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat, InputType, block_format, input_type
from m2xfp.tb.bench import golden_of
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import number, read
from m2xfp.tb.parts.groups import elements, planes_of_beats, user_planes
from m2xfp.tb.parts.value_stimulus import special_magnitudes
from m2xfp.tb.vectors import TestVectors

__all__ = ["cover", "unreached"]

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
    codes = elements(planes["codes"], block.element.bits, block.group).astype(np.int64)
    scales = planes["scales"].astype(np.int64)
    magnitude, sign = patterns & (1 << kind.width - 1) - 1, patterns >> kind.width - 1
    lanes = range(block.group)
    lane = np.arange(block.group)
    for at, special in enumerate(special_magnitudes(kind)):
        yield cross(
            f"{SPECIAL[at]} in each lane",
            {"sign": SIGNS, "lane": lanes},
            sign,
            lane,
            where=magnitude == special,
        )
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
    yield cross("scale", {"byte": range(256)}, scales, possible=_possible_scales(facts))
    exponent = np.maximum(magnitude >> kind.mantissa_bits, 1)
    gap = np.minimum(exponent.max(1, keepdims=True) - exponent, GAPS - 1)
    yield cross(
        "binades below the largest",
        {"gap": range(GAPS), "sign": SIGNS},
        gap,
        sign,
        where=(magnitude > 0) & (scales != block.scale.nan)[:, None],
    )
    yield _rounding(block, kind, magnitude, sign, planes)


def _possible_scales(facts: Facts) -> NDArray[np.bool_]:
    """Return which scales a group can have: those of groups of equal values, and of lone ones."""
    key = facts.to_json()
    if key not in _SCALES:
        block = block_format(facts.parameters["block"])
        kind = input_type(facts.parameters["input_type"])
        step = max(kind.mantissa_bits - 4, 0)
        lone = np.arange(1 << kind.exponent_bits + min(kind.mantissa_bits, 4)) << step
        low = np.arange(1 << min(kind.mantissa_bits, 10))  # subnormals below those
        raw = np.concatenate([lone, low]).astype(f"uint{kind.width}")
        groups = np.zeros((2 * len(raw), block.group), raw.dtype)
        groups[: len(raw), 0] = raw
        groups[len(raw) :] = raw[:, None]
        found = user_planes(golden_of(facts)(groups), block)["scales"]
        possible = np.zeros(256, bool)
        possible[found] = True
        _SCALES[key] = possible
    return _SCALES[key]


_SCALES: dict[str, NDArray[np.bool_]] = {}


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


def unreached(facts: Facts) -> dict[str, str]:
    """Return what follows from how groups go through these units."""
    beats, clocks = facts.beats_per_group, facts.clocks_per_group
    found: dict[str, str] = {}
    if beats > 1:
        found |= {
            r"unit[.]u_scale[.]t1\[[89]\]:.*": "the largest exponent of a group begins at 2, so "
            "that no scale is below 0",
            rf"beats of i: [1-{min(beats, 10) - 1}], (no ready|both)": "a unit waits before a "
            "group, for the group before it, and not within one",
        }
    if clocks > 1:
        found["beats of o: 0, (none|no ready)"] = "results are at least two clocks apart"
    return found
