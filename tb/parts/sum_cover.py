"""What running sums have gone through: distances, roundings, results."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import block_format, window
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.parts.accumulation import chains, read_results
from m2xfp.tb.parts.product_stimulus import Range
from m2xfp.tb.vectors import TestVectors

__all__ = ["RESULTS", "SIGNS", "cover_sums", "kind_of", "unreached"]

SIGNS = ("+", "-")
GAPS = range(-48, 49)
ROUNDED = ("exact", "down", "tie, down", "tie, up", "up")
RESULTS = ("zero", "subnormal", "normal", "infinity", "NaN")


def cover_sums(
    vectors: TestVectors,
    facts: Facts,
    product: NDArray[np.int64],
    exponent: NDArray[np.int64],
    nan: NDArray[np.bool_],
    first: NDArray[np.bool_],
    one: int,
) -> Iterator[Cross]:
    """Yield what the sums of some beats were.

    Parameters
    ----------
    vectors, facts
        The beats, whose results are the sums after each, and the unit.
    product, exponent, nan, first
        What each beat adds, and whether it begins a sum.
    one
        Exponent of a product that counts ones.
    """
    turns = chains(facts)
    raw = read_results(vectors.outputs["o"].data, facts)["acc"].astype(np.uint32)
    after = raw.view(np.float32).astype(float)
    before = np.concatenate([np.zeros(turns), after])[: len(after)]
    before[first] = 0.0
    # Products have few bits, so this is exact, and exponents fit a double.
    addend = np.ldexp(product.astype(float), exponent - one)
    negative = (raw >> 31).astype(np.int64)
    finite = np.isfinite(before) & np.isfinite(after) & ~nan
    limits, totals = facts.parameters.get("window"), None
    results = np.array([[1, 1]] * 4 + [[1, 0]], bool)
    if limits is not None:
        room = window(limits)
        results[0, 1] = False  # a sum that is zero is +0
        results[1] = room.lowest - one < -126
        results[3] = room.lowest - one + room.bits > 128
    yield cross(
        "result",
        {"kind": RESULTS, "sign": SIGNS},
        kind_of(raw),
        negative,
        possible=results,
    )
    yield cross(
        "begin of a sum",
        {"first": ("no", "yes"), "NaN": ("no", "yes"), "sign": ("-", "0", "+")},
        first,
        nan,
        np.sign(product) + 1,
    )
    if limits is None:
        there = (before != 0) & (addend != 0) & np.isfinite(before) & ~nan
        yield cross(
            "binades from addend to sum",
            {"gap": GAPS, "signs": ("alike", "opposite")},
            np.clip(_binade(before) - _binade(addend), -48, 48) + 48,
            np.signbit(before) != np.signbit(addend),
            where=there,
        )
    else:
        low, high = window(limits).lowest, window(limits).highest
        yield cross(
            "exponent of an addend",
            {"exponent": ("below", *range(low, high + 1), "above"), "sign": SIGNS},
            np.clip(exponent, low - 1, high + 1) - low + 1,
            product < 0,
            where=(product != 0) & ~nan,
        )
        inside = np.where((exponent >= low) & (exponent <= high) & ~nan, addend, 0.0)
        totals = _totals(inside, first, turns)
        finite = finite & ~(nan | (exponent < low) | (exponent > high))
    yield _rounding(before, addend, after, negative, finite, totals)


def kind_of(raw: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the number in ``RESULTS`` of FP32 patterns."""
    exponent, fraction = raw >> 23 & 0xFF, raw & 0x7FFFFF
    return np.select(
        [(exponent == 255) & (fraction > 0), exponent == 255, exponent > 0, fraction > 0],
        [4, 3, 2, 1],
        0,
    )


def _binade(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.frexp(values)[1].astype(np.int64)


def _totals(addends: NDArray[np.float64], first: NDArray[np.bool_], turns: int) -> list[Fraction]:
    """Return the exact sums after each beat."""
    running, found = [Fraction(0)] * turns, []
    for number, (addend, begins) in enumerate(zip(addends.tolist(), first.tolist(), strict=True)):
        chain = number % turns
        running[chain] = (0 if begins else running[chain]) + Fraction(addend)
        found.append(running[chain])
    return found


def _rounding(
    before: NDArray[np.float64],
    addend: NDArray[np.float64],
    after: NDArray[np.float64],
    negative: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    totals: list[Fraction] | None,
) -> Cross:
    """Return how sums were rounded; the exact ones are ``totals``, or the sums of both."""
    case = np.full(len(after), -1)
    spacing = np.spacing(np.abs(after).astype(np.float32)).astype(float)
    inner = np.abs(np.nextafter(after.astype(np.float32), np.float32(0)).astype(float) - after)
    for at in np.flatnonzero(chosen).tolist():
        result = Fraction(after[at])
        exact = totals[at] if totals is not None else Fraction(before[at]) + Fraction(addend[at])
        error = abs(exact) - abs(result)
        if not error:
            case[at] = 0
            continue
        half = Fraction(spacing[at] if error > 0 else inner[at]) / 2
        if abs(error) <= half:
            tie = abs(error) == half
            case[at] = (2 if tie else 1) if error > 0 else (3 if tie else 4)
    alike: Any = np.signbit(before) == np.signbit(addend)
    return cross(
        "rounding of a sum",
        {"case": ROUNDED, "sign": SIGNS, "signs": ("opposite", "alike")},
        case,
        negative,
        alike,
        where=(addend != 0) & (before != 0),
    )


def unreached(facts: Facts) -> dict[str, str]:
    """Return what follows from the bounds of products."""
    if facts.parameters.get("window"):
        return {}
    bits = Range.of(facts).bound.bit_length()
    found = {
        rf"unit[.].*u_addend[.]t1\[{bits}\]:.*": f"no legal product is -2^{bits}, whose magnitude "
        "alone has that bit"
    }
    codes = [f for f in facts.stream("i").fields if f.name == "operands.act.codes"]
    metadata = block_format(facts.parameters["act"]).metadata
    if codes and metadata.name == "elem-em":
        alone = codes[0].shape[0] == metadata.subgroup
        last = (
            r"normalised_1\[[0-2]|normalised_2\[[01]|normalised_4\[0"
            if alone
            else (r"normalised_1\[0")
        )
        found[rf"unit[.].*u_addend[.]({last})\]:.*"] = (
            "a refined element adds last bits only where it is small, and so is the sum of its "
            "subgroup, of which it is the largest"
        )
        found[r"unit[.]accumulator[.]accumulator[.]normalise[.]t1[04]\[9\]:.*"] = (
            "proved of the FP32 accumulator, which is the same from the addend on; here the proof "
            "does not end in its time"
        )
    return found
