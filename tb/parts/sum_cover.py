"""What running sums have gone through: distances, roundings, results."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import block_format, window
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.parts.accumulation import chains, read_results
from m2xfp.tb.parts.product_stimulus import Range
from m2xfp.tb.vectors import TestVectors

__all__ = [
    "RESULTS",
    "ROUNDED",
    "SIGNS",
    "Sums",
    "cover_running",
    "cover_sums",
    "exact_sum",
    "in_turns",
    "kind_of",
    "rounding_of",
    "unreached",
]

SIGNS = ("+", "-")
GAPS = range(-48, 49)
ROUNDED = ("exact", "down", "tie, down", "tie, up", "up")
RESULTS = ("zero", "subnormal", "normal", "infinity", "NaN")


@dataclass(frozen=True)
class Sums:
    """Some sums, step by step: arrays [sums, steps].

    Members
    -------
    product, exponent, nan, first
        What each step adds, and whether it begins a sum. The value is product * 2^(exponent - one).
    one
        Exponent of a product that counts ones; or one a step.
    after
        FP32 patterns after each step.
    rest
        What products longer than a double add beside.
    """

    product: NDArray[Any]
    exponent: NDArray[np.int64]
    nan: NDArray[np.bool_]
    first: NDArray[np.bool_]
    one: int | NDArray[np.int64]
    after: NDArray[np.uint32]
    rest: NDArray[np.float64] | float = 0.0

    @cached_property
    def addend(self) -> NDArray[np.float64]:
        """What each step adds: products have few bits, so this is exact, and fits a double."""
        return np.ldexp(self.product.astype(float), self.exponent - self.one)

    @cached_property
    def result(self) -> NDArray[np.float64]:
        """Sums after each step."""
        return self.after.view(np.float32).astype(float)

    @cached_property
    def before(self) -> NDArray[np.float64]:
        """Sums before each step, 0 where one begins."""
        held = np.zeros_like(self.result)
        held[:, 1:] = self.result[:, :-1]
        return np.where(self.first, 0.0, held)


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
    raw = read_results(vectors.outputs["o"].data, facts)["acc"].astype(np.uint32)
    turns = chains(facts)
    sums = Sums(
        in_turns(product, turns),
        in_turns(exponent, turns),
        in_turns(nan, turns),
        in_turns(first, turns),
        one,
        in_turns(raw, turns),
    )
    yield from cover_running(sums, facts.parameters.get("window"))


def in_turns(beats: NDArray[Any], turns: int) -> NDArray[Any]:
    """Return beats of sums that take turns as [turns, steps, ...]."""
    return np.ascontiguousarray(beats.reshape(-1, turns, *beats.shape[1:]).swapaxes(0, 1))


def cover_running(
    sums: Sums, limits: str | None = None, told: NDArray[np.bool_] | bool = True
) -> Iterator[Cross]:
    """Yield what some sums were.

    Parameters
    ----------
    sums
        Step by step.
    limits
        The window of an exact accumulation; None for sums in FP32.
    told
        Which steps have results.
    """
    before, addend, nan, one = sums.before, sums.addend, sums.nan, sums.one
    negative = (sums.after >> 31).astype(np.int64)
    finite = np.isfinite(before) & np.isfinite(sums.result) & ~nan & told
    results = np.array([[1, 1]] * 4 + [[1, 0]], bool)
    if limits is not None:
        room = window(limits)
        assert isinstance(one, int)
        results[0, 1] = False  # a sum that is zero is +0
        results[1] = room.lowest - one < -126
        results[3] = room.lowest - one + room.bits > 128
    yield cross(
        "result",
        {"kind": RESULTS, "sign": SIGNS},
        kind_of(sums.after),
        negative,
        where=told,
        possible=results,
    )
    yield cross(
        "begin of a sum",
        {"first": ("no", "yes"), "NaN": ("no", "yes"), "sign": ("-", "0", "+")},
        sums.first,
        nan,
        np.sign(sums.product).astype(np.int64) + 1,
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
        nearest, left = exact_sum(before, addend)
        exact = nearest, left + sums.rest
    else:
        low, high = window(limits).lowest, window(limits).highest
        yield cross(
            "exponent of an addend",
            {"exponent": ("below", *range(low, high + 1), "above"), "sign": SIGNS},
            np.clip(sums.exponent, low - 1, high + 1) - low + 1,
            sums.product < 0,
            where=(sums.product != 0) & ~nan,
        )
        outside = nan | (sums.exponent < low) | (sums.exponent > high)
        exact = _totals(np.where(outside, 0.0, addend), sums.first)
        finite = finite & ~outside
    yield cross(
        "rounding of a sum",
        {"case": ROUNDED, "sign": SIGNS, "signs": ("opposite", "alike")},
        rounding_of(*exact, sums.result),
        negative,
        np.signbit(before) == np.signbit(addend),
        where=(addend != 0) & (before != 0) & finite,
    )


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


def exact_sum(
    one: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sums rounded to a double, and what is left, exactly (Knuth's two-sum)."""
    with np.errstate(invalid="ignore"):  # of infinities, which have no rounding
        high = one + other
        back = high - one
        return high, (one - (high - back)) + (other - back)


def _totals(
    addends: NDArray[np.float64], first: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the exact sums after each step as `exact_sum` does, what is left rounded."""
    high, low = np.zeros((2, *addends.shape))
    for row, (values, begins) in enumerate(zip(addends.tolist(), first.tolist(), strict=True)):
        running = Fraction(0)
        for step, (value, begin) in enumerate(zip(values, begins, strict=True)):
            running = Fraction(value) + (0 if begin else running)
            high[row, step] = float(running)
            low[row, step] = float(running - Fraction(high[row, step]))
    return high, low


def rounding_of(
    high: NDArray[np.float64],
    low: NDArray[np.float64],
    result: NDArray[np.float64],
    dropped: int = 0,
) -> NDArray[np.int64]:
    """Return the number in ``ROUNDED`` of results; -1 where one is not the nearest.

    Parameters
    ----------
    high, low
        Exact values: the nearest double, and what is left of it, of the right sign at least.
    result
        What they were rounded to: FP32 numbers.
    dropped
        Last bits that these do not have: 16 of bf16.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        pattern = np.abs(result).astype(np.float32).view(np.uint32)
        size = pattern.view(np.float32).astype(float)
        above = (pattern + np.uint32(1 << dropped)).view(np.float32).astype(float)
        # Of zero there is none below, and no result of it is larger than the exact value.
        below = np.where(pattern > 0, pattern - np.uint32(1 << dropped), 0)
        under = below.astype(np.uint32).view(np.float32).astype(float)
        sign = np.where(np.signbit(high), -1.0, 1.0)
        # Two numbers so near each other have a difference that a double holds, and what is left of
        # the sum is below its last place.
        error, rest = sign * high - size, sign * low
        more = (error > 0) | ((error == 0) & (rest > 0))
        half = np.where(more, above - size, size - under) / 2
        off, rest = np.where(more, error, -error), np.where(more, rest, -rest)
    exact = (error == 0) & (rest == 0)
    tie = (off == half) & (rest == 0)
    near = (off < half) | ((off == half) & (rest < 0))
    return np.select(
        [exact, more & near, more & tie, ~more & tie, ~more & near], [0, 1, 2, 3, 4], -1
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
