"""What groups with a scale for each sign have gone through, and their sums."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.golden.units.asymmetric_dot_product import asymmetric_dot_product
from m2xfp.rtl.parts.asymmetric_pair import AsymmetricPair
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import read, read_plane
from m2xfp.tb.parts.accumulation import chains
from m2xfp.tb.parts.class_pairs import beats_of_a_group
from m2xfp.tb.parts.element_codes import unpacked_codes
from m2xfp.tb.parts.pairs import SIDES, formats
from m2xfp.tb.parts.sum_cover import Sums, cover_running, in_turns
from m2xfp.tb.vectors import TestVectors

__all__ = ["cover", "scale_kinds"]

Numbers = NDArray[np.int64]

SCALES = ("zero", "subnormal", "normal", "infinity", "NaN")
LONG = 12  # groups of a sum, the last for all that are longer
_NAMES = {0: "p", 1: "n", None: ""}


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what the operands, the classes and the sums of some beats were.

    Sums are those after each class, whose first ones of a beat do not leave the unit.
    """
    stream, turns, parts = facts.stream("i"), chains(facts), beats_of_a_group(facts)
    # A group's beats follow one another in the sum that they are of.
    data = in_turns(vectors.inputs["i"].data, turns)[:, ::parts]
    count, steps = data.shape[:2]
    flat = data.reshape(count * steps, -1)
    codes, scales, groups = [], [], []
    for side, block in zip(SIDES, formats(facts), strict=True):
        plane = read_plane(stream.field(f"operands.{side}.codes"), flat)
        scale = read_plane(stream.field(f"operands.{side}.scale"), flat)
        codes.append(unpacked_codes(plane, block))
        scales.append(scale.astype(np.int64))
        groups.append(np.concatenate([plane, scale], axis=1).reshape(count, steps, -1))
        yield from _operand(side, block, codes[-1], scales[-1])
    yield cross("pair of codes", {"act": range(16), "weight": range(16)}, *codes)
    product, exponent, nan = _terms(facts, codes, scales)
    classes = ["".join(_NAMES[sign] for sign in each) for each in _pair(facts).classes]
    yield cross(
        "classes with a product",
        dict.fromkeys(classes, ("no", "yes")),
        *(product[:, at] != 0 for at in range(len(classes))),
        where=~nan.any(axis=1),
    )
    first = np.asarray(read(stream.field("first"), flat), bool).reshape(count, steps)
    at = np.arange(steps)
    begun = np.maximum.accumulate(np.where(first | (at == 0), at, 0), axis=1)
    yield cross(
        "groups of a sum",
        {"groups": (*range(1, LONG), f"{LONG} and more")},
        np.minimum(at - begun, LONG - 1),
    )
    given = {name: facts.parameters[name] for name in ("act", "weight", "window")}
    after = asymmetric_dot_product(groups[0], groups[1], first, sums=1, **given)["acc"]
    begins = np.zeros((count, steps, len(classes)), bool)
    begins[..., 0] = first
    told = np.tile(np.arange(len(classes)) % facts.parameters["sums"], steps)
    sums = Sums(
        product.reshape(count, -1),
        exponent.reshape(count, -1),
        nan.reshape(count, -1),
        begins.reshape(count, -1),
        _pair(facts).bias,
        after.reshape(count, -1).astype(np.uint32),
    )
    limits = given["window"]
    yield from cover_running(sums, limits, limits is None or told == facts.parameters["sums"] - 1)


def _pair(facts: Facts) -> AsymmetricPair:
    return AsymmetricPair(*formats(facts), sums=1)


def scale_kinds(block: BlockFormat) -> NDArray[np.int64]:
    """Return the number in ``SCALES`` of each byte as a scale."""
    byte, grid = np.arange(256), block.scale.grid
    if grid is None:
        return np.where(byte == block.scale.nan, 4, 2)
    size = byte & 0x7F  # the sign means nothing, but in a NaN that has it
    lone = (byte == block.scale.nan) | ((size > grid.max_code) & (size != grid.max_code + 1))
    infinite = (size == grid.max_code + 1) & (grid.max_code + 1 < block.scale.nan < 0x80)
    kinds = [lone | (size == block.scale.nan), infinite, size > grid.max_code]
    low = 1 << grid.mantissa_bits
    return np.select([*kinds, size >= low, size > 0], [4, 3, 4, 2, 1], 0)


def _operand(side: str, block: BlockFormat, codes: Numbers, scales: Numbers) -> Iterator[Cross]:
    """Yield what codes [n, group] and scales [n, scales] were."""
    lanes, names = np.arange(codes.shape[1]), ("p", "n") if scales.shape[1] == 2 else ("both",)
    which, kinds = np.arange(len(names)), scale_kinds(block)
    yield cross(
        f"{side} code in each lane",
        {"code": range(1 << block.element.bits), "lane": lanes.tolist()},
        codes,
        lanes,
    )
    yield cross(f"{side} scale", {"byte": range(256), "scale": names}, scales, which)
    there = np.zeros((len(SCALES), len(names)), bool)
    there[np.unique(kinds)] = True
    yield cross(
        f"kind of {side} scale",
        {"kind": SCALES, "scale": names},
        kinds[scales],
        which,
        possible=there,
    )
    if len(names) == 2:
        there = there[:, 0]
        yield cross(
            f"kinds of both {side} scales",
            {"p": SCALES, "n": SCALES},
            *kinds[scales].T,
            possible=there[:, None] & there,
        )


def _terms(
    facts: Facts, codes: list[Numbers], scales: list[Numbers]
) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """Return product, exponent and NaN of each class of groups, each [n, classes]."""
    blocks, found = formats(facts), []
    values = []
    for block, each in zip(blocks, codes, strict=True):
        steps = [int(2 * block.element.magnitude(code)) for code in range(8)]
        values.append(np.array([*steps, *(-step for step in steps)])[each])
    for signs in _pair(facts).classes:
        kept = list(values)
        exponent = np.zeros(len(codes[0]), np.int64)
        significand, nan = exponent + 1, exponent > 0
        for at, (block, sign) in enumerate(zip(blocks, signs, strict=True)):
            if sign is not None:
                kept[at] = np.where(codes[at] >> 3 == sign, values[at], 0)
            byte, grid = scales[at][:, sign or 0], block.scale.grid
            nan = nan | (scale_kinds(block)[byte] > 2)
            if grid is None:
                exponent = exponent + byte
                continue
            field, bits = byte & 0x7F, grid.mantissa_bits
            exponent = exponent + np.maximum(field >> bits, 1)
            hidden = np.where(field >> bits, 1 << bits, 0)
            significand = significand * (field & (1 << bits) - 1 | hidden)
        found.append(((kept[0] * kept[1]).sum(axis=1) * significand, exponent, nan))
    product, exponents, nans = (np.stack(parts, axis=1) for parts in zip(*found, strict=True))
    return product, exponents, nans
