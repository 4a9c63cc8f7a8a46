"""The testbench of units that transform blocks of bfloat16 values with random signs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BF16
from m2xfp.tb.bench import Arrays, Operands
from m2xfp.tb.fields import Bytes, number, pack
from m2xfp.tb.parts.files import load_rows
from m2xfp.tb.parts.value_stimulus import (
    DISTRIBUTIONS,
    from_float64,
    groups,
    lone_values,
    special_lanes,
)
from m2xfp.tb.regression import WARM, Case, steady_cases
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "block_arrays",
    "block_beats",
    "encode",
    "four_values",
    "load",
    "low_middles",
    "low_sums",
    "regression_of",
    "sample",
    "two_values",
    "vectors_of",
]

PART = 8
"""Values of a subgroup behind the transform."""

Vectors = Callable[[Arrays, Facts, int], TestVectors]


def load(path: Path, facts: Facts) -> Arrays:
    """Read an .npz file: ``x``, bfloat16 patterns, and ``flips``, which of them to negate first.

    Raises InputError unless both have a row of a block's points for each of n blocks.
    """
    points = (facts.parameters["points"],)
    return load_rows(path, facts, {"x": (np.uint16, points), "flips": (np.bool_, points)})


def block_arrays(x: NDArray[np.uint16], seed: int) -> Arrays:
    """Return blocks with random signs."""
    return {"x": x, "flips": np.random.default_rng(seed).random(x.shape) < 0.5}


def block_beats(arrays: Arrays, facts: Facts) -> Bytes:
    """Cut blocks into beats: lane 0 lowest, first beat the block's first values."""
    stream = facts.stream("i")
    patterns = number(stream, "values.")
    (flips,) = (field for field in stream.fields if field.name == "flips")
    return pack(
        stream,
        {
            patterns: arrays["x"].reshape(-1, *patterns.shape),
            flips: arrays["flips"].reshape(-1, *flips.shape),
        },
    )


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Turn the blocks into one stream with TLAST on its very last beat."""
    data = block_beats(arrays, facts)
    return {"i": Beats(data, np.arange(len(data)) == len(data) - 1)}


def vectors_of(results: Bytes, arrays: Arrays, facts: Facts, seed: int) -> TestVectors:
    """Return beats, and the beats that must come out, a piece a block.

    TLAST is random in every beat: that of a block's last beat must come out with the last one of
    the block's results, the others must have no effect.
    """
    data = block_beats(arrays, facts)
    last = np.random.default_rng(seed).random(len(data)) < 0.5
    blocks = len(arrays["x"])
    out = np.zeros((blocks, len(results) // blocks), np.bool_)
    out[:, -1] = last[facts.beats_per_group - 1 :: facts.beats_per_group]
    return TestVectors({"i": Beats(data, last)}, {"o": Beats(results, out.reshape(-1))}, blocks)


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return the activations, rounded to bfloat16, with random signs.

    Of blocks of more values than they have, they come over again.
    """
    from m2xfp.golden.bits import round_to_bits

    raw = round_to_bits("bf16", operands.activations).reshape(-1)
    points = facts.parameters["points"]
    blocks = np.resize(raw, (operands.lanes * operands.depth, points)).astype(np.uint16)
    return block_arrays(blocks, seed=1)


def regression_of(vectors: Vectors, facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield blocks of all distributions, cancellations, and values beside much larger ones."""
    points = facts.parameters["points"]

    def stimulus() -> Iterator[tuple[str, Arrays]]:
        for name in DISTRIBUTIONS:
            yield name, block_arrays(groups(name, "bf16", 32_000 // points, seed, points), seed)
        for largest in (1.0, 1.9921875, 2.0**-126):
            raw = lone_values("bf16", largest, points)
            yield f"each value beside {largest}", block_arrays(raw, seed)
        special = special_lanes("bf16", seed, points)
        yield "special values in each lane", block_arrays(special, seed)
        yield "near cancellations", block_arrays(_cancelling(points, seed), seed)
        yield "rows of the matrix", _rows(points)
        yield "rows in the lowest binades", _low_rows(points, seed)
        yield "rows below the largest", _high_rows(points)
        yield "rows that carry", _carried_rows(points)
        yield "two results", _two_results(points, seed)
        yield "subnormals in the middle", low_middles(points, seed)
        yield "two values", two_values(points, seed)
        if points >= 4 * PART:
            yield "four values", four_values(points, seed)
        yield "small sums", _small_sums(points, facts.parameters["bits"], seed)
        yield "low sums", low_sums(points, facts.parameters["bits"], seed)
        yield "values far below", _far_values(points, seed)

    yield from steady_cases(stimulus(), vectors, facts, seed)
    if facts.beats_per_group > 1:
        # Blocks as far apart as it happens, so that the unit has to wait at any beat of one.
        late = block_arrays(groups("wide", "bf16", 60, seed, points), seed)
        for number, pauses in enumerate((0.1, 0.3, 0.6)):
            made = vectors(late, facts, seed + number)
            yield Case(f"late reader {number}", (made,), (pauses, 0.95), seed + number)
            # Nearly as slow as the reader, so that it pauses while all is full; reset then.
            stall, before = (0.8, 0.96), 9 * WARM + 13 * number
            yield Case(f"late reset {number}", (made,), stall, seed + number, before=before)


def _cancelling(points: int, seed: int, count: int = 500) -> NDArray[np.uint16]:
    """Return blocks of values that are nearly alike, so that most sums are small differences."""
    rng = np.random.default_rng(seed)
    raw = np.repeat(groups("finite-bits", "bf16", count, seed, 1), points, axis=1).astype(np.int64)
    raw += rng.integers(0, 3, raw.shape) * (rng.random((count, 1)) < 0.7)
    raw -= rng.integers(0, 0x80, raw.shape) * (rng.random(raw.shape) < 0.02)
    return (raw.clip(0, 0xFF80) % 0xFF80).astype(np.uint16)


def _rows(points: int) -> Arrays:
    """Return each row of the matrix as signs of ones: one result is whole, the others are 0.

    A wrong sign anywhere shows; +0 must come out of every cancellation. Then each with its signs
    turned, and both with the largest finite values: the one result is infinite.
    """
    parity = _parity(points)
    flips = np.tile(np.concatenate([parity, 1 - parity]), (2, 1)).astype(bool)
    x = np.repeat(np.array([0x3F80, 0x7F7F], np.uint16), 2 * points)
    return {"x": np.repeat(x[:, None], points, axis=1), "flips": flips}


def _low_rows(points: int, seed: int) -> Arrays:
    """Return rows of the matrix as signs of values of the lowest binades that are nearly alike.

    One result is of a low binade, and the others are subnormals.
    """
    rng = np.random.default_rng(seed)
    rows = np.repeat(_rows(points)["flips"][:points], 6, axis=0)
    binade = np.tile(np.arange(6), points)[:, None]
    return {"x": (binade << 7 | rng.integers(0, 4, rows.shape)).astype(np.uint16), "flips": rows}


def _high_rows(points: int) -> Arrays:
    """Return rows of the matrix whose one result is finite and of each of the largest exponents."""
    rows = _rows(points)["flips"][:points]
    fields = np.arange(249, 253).repeat(points)[:, None]
    x = np.broadcast_to(fields << 7, (len(fields), points)).astype(np.uint16)
    return {"x": x, "flips": np.tile(rows, (4, 1))}


def _carried_rows(points: int) -> Arrays:
    """Return rows of the matrix whose one result carries into the next exponent when it is rounded.

    Its significand is all ones but for its last place; the exponents are the largest ones, so that
    some carry into infinity, or have its exponent before they are rounded.
    """
    rows = np.tile(_rows(points)["flips"][:points], (5, 1))
    fields = np.arange(249, 254).repeat(points)[:, None]
    # Each half a place below the next power of two, or half of that: together less than half.
    upper = np.arange(points) < points // 2 + 1
    x = np.where(upper, fields + 1 << 7, fields << 7 | 0x7F)
    return {"x": x.astype(np.uint16), "flips": rows}


def low_middles(points: int, seed: int) -> Arrays:
    """Return for each result blocks in which it is one subnormal bit, or two, and one other is not.

    The other one is by any power of two larger. So in some blocks the small one lies in the middle
    between zero and the least value of an element, or between two, and only the places below it,
    which are zeros, tell.
    """
    rng = np.random.default_rng(seed)
    results, apart, odd, low = (
        each.ravel() for each in np.meshgrid(np.arange(points), np.arange(7), (1, 3), (-128, -127))
    )
    other = (results + PART * rng.integers(1, points // PART, len(results))) % points
    signs = 1 - 2 * _parity(points)
    small = np.where(rng.random((len(results), 1)) < 0.5, odd[:, None], -odd[:, None])
    sums = (odd << apart)[:, None] * signs[other] + small * signs[results]
    # A sum of all points comes out smaller by the transform's own scale.
    scale = low - (points.bit_length() - 1 - points.bit_length() // 2)
    values = np.ldexp(np.abs(sums).astype(float), scale[:, None])
    return {"x": from_float64(values, BF16), "flips": sums < 0}


def _parity(points: int) -> NDArray[np.int64]:
    """Return which signs of the matrix are negative, [points, points]."""
    lanes = range(points)
    return np.array([[(row & column).bit_count() & 1 for column in lanes] for row in lanes])


def _two_results(points: int, seed: int, count: int = 1500) -> Arrays:
    """Return blocks of which two results are not zero: any, and any smaller one beside it.

    They are whole numbers whose sum has as many bits as a significand, so that values are exact.
    """
    rng = np.random.default_rng(seed)
    large = rng.integers(64, 128, (count, 1))
    small = rng.integers(0, 1 << rng.integers(1, 8, (count, 1)))
    one, other = np.argsort(rng.random((count, points)), axis=1)[:, :2].T
    signs = 1 - 2 * _parity(points)
    sums = large * signs[one] + np.minimum(small, 255 - large) * signs[other]
    # One in four so low that results are subnormals.
    scale = np.where(np.arange(count) % 4 > 0, rng.integers(-110, 100, count), -137)[:, None]
    values = np.ldexp(np.abs(sums).astype(float), scale + rng.integers(0, 8, (count, 1)))
    flips = (sums < 0) ^ (rng.random((count, 1)) < 0.5)
    return {"x": from_float64(values, BF16), "flips": flips}


def two_values(points: int, seed: int, count: int = 1500) -> Arrays:
    """Return blocks of two values that are nearly alike, some with a third one of last places.

    Half of the results are small, and the others as small as they can be beside those.
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(count)
    one = rng.integers(0, points, count)
    other = one ^ 1 << rng.integers(0, points.bit_length() - 1, count)
    third = (one + 1 + rng.integers(0, points - 1, count)) % points
    values = np.zeros((count, points))
    # In units of the fixed point of 12 bits; what is below the largest binade may be odd eights.
    apart = rng.integers(0, 1 << rng.integers(1, 8, count))
    values[rows, third] = rng.integers(0, 16, count) * (rng.random(count) < 0.5)
    values[rows, one] = 2048
    values[rows, other] = 2048 - 8 * apart
    scale = rng.integers(-100, 100, (count, 1))
    flips = rng.random((count, points)) < 0.5
    return {"x": from_float64(np.ldexp(values, scale), BF16), "flips": flips}


def four_values(points: int, seed: int, count: int = 4000) -> Arrays:
    """Return blocks of four values, the largest three times the others, and a small fifth one.

    A quarter of the results, whole subgroups, is as small as the fifth and what the four differ by,
    and the others are all alike. So the largest result is as small as it can be beside small ones,
    and metadata tell as much of these as they can.
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(count)
    # In units of the fixed point of 12 bits: a place of the largest is 16, of the others 4.
    largest = 16 * rng.integers(128, 192, count)
    third = largest // 12 * 4
    rest = rng.integers(0, 1 << rng.integers(1, 9, count))
    others = [third, third, largest - 2 * third - 4 * (rest // 4)]
    small = rng.integers(0, 1 << rng.integers(1, 7, count)) * (rng.random(count) < 0.8)
    one = rng.integers(0, points, count)
    fifth = one ^ rng.integers(1, PART, count)
    quarter = rng.integers(0, 4, count)
    values, flips = np.zeros((count, points)), np.zeros((count, points), bool)
    values[rows, one], values[rows, fifth] = largest, small
    for way, other in zip((1, 2, 3), others, strict=True):
        # In the quarter that is to be small it takes away from the largest.
        lane = one ^ PART * way
        values[rows, lane] = other
        signs = [_parity(4)[quarter, at // PART % 4] for at in (one, lane)]
        flips[rows, lane] = signs[0] ^ signs[1] ^ 1
    flips[rows, fifth] = rng.random(count) < 0.5
    flips ^= rng.random((count, 1)) < 0.5
    scale = rng.integers(-100, 100, (count, 1))
    return {"x": from_float64(np.ldexp(values, scale), BF16), "flips": flips}


def _small_sums(points: int, bits: int, seed: int) -> Arrays:
    """Return for each result blocks in which its sum is one value of each length, of both signs.

    Two of the largest cancel in it, so that the value, alone, may be any number of last places.
    """
    rng = np.random.default_rng(seed)
    lengths, results = np.meshgrid(np.arange(1, bits), np.arange(points).repeat(2))
    length, result = lengths.ravel(), results.ravel()
    rows = np.arange(len(length))
    lanes = np.argsort(rng.random((len(rows), points)), axis=1)[:, :3]
    value, one, other = lanes.T
    largest = rng.integers(bits, 0xFE, len(rows))
    raw = np.zeros((len(rows), points), np.int64)
    # Of a value of a few last places, no more bits than it has.
    fraction = rng.integers(0, 0x80, len(rows)) & ~(0x7F >> np.minimum(length - 1, 7))
    raw[rows, value] = (largest - bits + length) << 7 | fraction
    raw[rows, one] = raw[rows, other] = largest << 7
    parity = _parity(points)
    flips = rng.random(raw.shape) < 0.5
    flips[rows, other] = flips[rows, one] ^ parity[result, one] ^ parity[result, other] ^ 1
    # Of each two rows of a result, one has a negative sum.
    half = np.arange(len(rows)) // (bits - 1) % 2
    flips[rows, value] = parity[result, value] ^ half
    return {"x": raw.astype(np.uint16), "flips": flips}


def low_sums(points: int, bits: int, seed: int, count: int = 8000) -> Arrays:
    """Return blocks of the lowest binades of which half of the results is small.

    Two equal values cancel there, or nearly all do, which come together in one other result. Two
    values are any number of the block's last places. So many results are subnormals of any pattern,
    beside a largest one that is low too.
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(count)
    one, other, third, fourth = np.argsort(rng.random((count, points)), axis=1)[:, :4].T
    largest = rng.integers(1, 12 + bits, count)
    value = 2 ** (bits - 1) + rng.integers(0, 128, count) * 2.0 ** (bits - 8)
    together = np.arange(count) % 2 == 1
    values = np.where(together[:, None], value[:, None], np.zeros((count, points)))
    values[rows, one] = values[rows, other] = value
    for lane in (third, fourth):
        few = rng.integers(0, 256, count) >> rng.integers(0, 8, count)
        values[rows, lane] = few << np.where(together, 0, rng.integers(0, bits - 7, count))
    # In units of a last place, which bfloat16 may not have in the lowest binades of all.
    x = from_float64(np.ldexp(values, (largest - 126 - bits)[:, None]), BF16)
    flips = rng.random((count, points)) < 0.5
    row = _parity(points)[rng.integers(0, points, count)]
    return {"x": x, "flips": np.where(together[:, None], row.astype(bool) ^ flips[:, :1], flips)}


def _far_values(points: int, seed: int, count: int = 1000) -> Arrays:
    """Return blocks of one value and others that are so far below that little or nothing is left.

    The largest one has any exponent. A distance taken too short gives a result wrong by far.
    """
    rng = np.random.default_rng(seed)
    largest = rng.integers(1, 0xFF, (count, 1))
    fields = (largest - rng.integers(9, 48, (count, points))).clip(0)
    lanes = np.arange(points) == rng.integers(0, points, (count, 1))
    x = np.where(lanes, largest, fields) << 7 | rng.integers(0, 128, (count, points))
    return {"x": x.astype(np.uint16), "flips": rng.random((count, points)) < 0.5}
