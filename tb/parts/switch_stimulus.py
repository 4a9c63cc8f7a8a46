"""Groups of formats that change, for the regression of a switching unit."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.tb.bench import Arrays
from m2xfp.tb.bulk.simulator import Run
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.parts.accumulation import chains, from_reset
from m2xfp.tb.parts.element_codes import largest_code, negated, packed_codes
from m2xfp.tb.parts.switch_groups import (
    GROUP,
    group_counts,
    pairs_of,
    placed_runs,
    running,
    side_arrays,
    vectors,
    vectors_of,
)
from m2xfp.tb.parts.wide_stimulus import WIDE, wide_groups
from m2xfp.tb.regression import RESETS, STALLS, WARM, Case
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["mixed", "regression", "side_by_side", "tails"]

STEPS, RUNS = 12, 60
# Of products of each length, at each distance from a sum.
LENGTHS, MANY = ("cancelling", "cancellations", "ties", "borrows", "uppers"), 480
KINDS = ("near", "gaps", "random_bytes", "cancelling", "nans", "extremes")

Choice = NDArray[np.int64]


def _chosen(facts: Facts, name: str, choice: Choice, seed: int) -> Arrays:
    """Return groups of a distribution, [steps, runs] each of the pair of that number, by runs."""
    pairs, (steps, runs) = pairs_of(facts).pairs, choice.shape
    arrays: Arrays = {}
    for index, pair in enumerate(pairs):
        act, weight, first = wide_groups(name, pair, steps, runs, seed)
        sides = [side.reshape(-1, side.shape[2]) for side in (act, weight)]
        made = side_arrays(sides[0], pair[0], "a_") | side_arrays(sides[1], pair[1], "w_")
        made["first"] = first.reshape(-1)
        there = (choice == index).reshape(-1)
        for key, array in made.items():
            arrays.setdefault(key, np.zeros_like(array))[there] = array[there]
    arrays["first"].reshape(choice.shape)[0] = True
    order = np.arange(choice.size).reshape(choice.shape).T.reshape(-1)
    return {
        key: array[order]
        for key, array in arrays.items()
        if pairs_of(facts).metadata or not key.endswith("meta")
    }


def side_by_side(facts: Facts, name: str, seed: int, least: int = RUNS) -> Arrays:
    """Return dot products of one pair each, all pairs one beside the other, ``least`` about."""
    count = len(pairs_of(facts).pairs)
    runs = chains(facts) * max(least // chains(facts), count)
    return _chosen(facts, name, np.tile(np.arange(runs) % count, (STEPS, 1)), seed)


def mixed(facts: Facts, name: str, seed: int) -> Arrays:
    """Return dot products whose pairs change from one group to the next, or each second.

    Of ``near`` and ``gaps`` the scales are made anew, so that sums of different pairs are as far
    apart as their names say.
    """
    rng = np.random.default_rng([seed, KINDS.index(name)])
    pairs = pairs_of(facts).pairs
    choice = rng.integers(0, len(pairs), (STEPS, RUNS))
    if name == "cancelling":  # the second takes back the first
        choice[1::2] = choice[::2]
    arrays = _chosen(facts, name, choice, seed)
    if name in ("near", "gaps"):
        reach = 12 if name == "near" else 48
        jumps = rng.integers(-reach, reach + 1, (RUNS, STEPS))
        walk = jumps if name == "near" else np.cumsum(jumps, axis=1)
        place = rng.integers(60, 450, (RUNS, 1)) + walk
        raised = np.array([act.element.emax + weight.element.emax for act, weight in pairs])
        total = np.clip(place - raised[choice.T], 0, 508).reshape(-1)
        low, high = np.maximum(0, total - 254), np.minimum(254, total)
        arrays["a_scales"] = rng.integers(low, high + 1).astype(np.uint8)
        arrays["w_scales"] = (total - arrays["a_scales"]).astype(np.uint8)
    return arrays


def tails(facts: Facts, seed: int) -> Arrays:
    """Return groups of largest products and a small one, each taken back by the next group.

    The sum is rounded to the large ones; what is left then is the small one, in the last bits of
    the addition.
    """
    rng = np.random.default_rng(seed)
    pairs = pairs_of(facts).pairs
    choice = np.repeat(rng.integers(0, len(pairs), (STEPS // 2, RUNS)), 2, axis=0)
    arrays = _chosen(facts, "cancelling", choice, seed)
    chosen = choice.T.reshape(-1)
    back = np.arange(STEPS * RUNS) % 2 == 1
    lane = rng.integers(0, GROUP, STEPS * RUNS // 2).repeat(2)
    small = rng.integers(1, 8, (2, STEPS * RUNS // 2)).repeat(2, axis=1)
    for index, pair in enumerate(pairs):
        rows = np.flatnonzero(chosen == index)
        for side, (block, name) in enumerate(zip(pair, ("a_", "w_"), strict=True)):
            codes = np.full((len(rows), GROUP), largest_code(block))
            codes[np.arange(len(rows)), lane[rows]] = small[side, rows]
            if side:
                codes[back[rows]] = negated(codes[back[rows]], block)
            plane = packed_codes(codes, block)
            arrays[f"{name}codes"][rows, : plane.shape[1]] = plane
    for name in ("a_scales", "w_scales"):  # far from overflow and from subnormal sums
        arrays[name] = rng.integers(100, 135, STEPS * RUNS // 2).repeat(2).astype(np.uint8)
    return arrays | {"first": ~back}


def _refused(facts: Facts, seed: int) -> TestVectors:
    """Return groups with some of any number as format, whether there is such a pair or not."""
    rng = np.random.default_rng(seed)
    arrays = mixed(facts, "near", seed)
    wrong = rng.random(len(arrays["first"])) < 0.15
    for name in ("a_formats", "w_formats"):
        arrays[name] = np.where(wrong, rng.integers(0, 8, len(wrong)), arrays[name]).astype(
            np.uint8
        )
    return vectors(arrays, facts, seed)


def _changed(facts: Facts, seed: int) -> TestVectors:
    """Return groups of which some change their formats before they are whole, by any bit."""
    rng = np.random.default_rng(seed)
    arrays = mixed(facts, "near", seed)
    counts = group_counts(arrays, facts)
    wrong = (rng.random(len(counts)) < 0.2) & (counts > 1)
    # What golden is told: that there is no such pair.
    told = arrays | {"a_formats": np.where(wrong, 7, arrays["a_formats"]).astype(np.uint8)}
    right = vectors_of(arrays, running(told, facts), facts, seed)
    placed, _, _ = placed_runs(arrays, facts, seed)
    at = rng.integers(1, np.maximum(counts, 2))
    data, start = right.inputs["i"].data.copy(), facts.stream("i").field("operands.mode.act").offset
    for beat in np.flatnonzero(wrong[placed.rows] & (placed.beat == at[placed.rows])):
        place = start + int(rng.integers(0, 6))
        data[beat, place // 8] ^= np.uint8(1 << place % 8)
    return TestVectors({"i": Beats(data, right.inputs["i"].last)}, right.outputs, right.groups)


def _without_pauses(run: Run, facts: Facts) -> str:
    """Look for a beat that had to wait, at a switch or anywhere."""
    late = run.stamps["i"].astype(np.int64) - np.arange(len(run.stamps["i"]))
    return f"beat {int((late > 0).argmax())} had to wait" if (late > 0).any() else ""


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield all distributions of all pairs, switches with every stall, refusals and resets."""
    number = 0

    def case(name: str, made: TestVectors, stall: tuple[float, float]) -> Case:
        timing = None if any(stall) else _without_pauses
        return Case(name, (made,), stall, seed + number, timing, WARM + 5 * number)

    for name in pair_stimulus.DISTRIBUTIONS:
        number += 1
        least = MANY if name in LENGTHS else RUNS
        made = vectors(side_by_side(facts, name, seed, least), facts, seed + number)
        yield case(name, made, STALLS[number % len(STALLS)])
    for name in KINDS:
        made = vectors(mixed(facts, name, seed), facts, seed + number)
        for stall in STALLS:
            number += 1
            yield case(f"switched {name}", made, stall)
    for name, made in (
        ("tails", vectors(tails(facts, seed), facts, seed)),
        ("refused", _refused(facts, seed)),
        ("changed", _changed(facts, seed)),
    ):
        for stall in STALLS:
            number += 1
            yield case(name, made, stall)
    for name in WIDE:
        number += 1
        made = vectors(side_by_side(facts, name, seed, MANY), facts, seed + number)
        yield case(name, made, STALLS[number % len(STALLS)])
    pairs = pairs_of(facts).pairs
    narrow = pairs.index(pairs_of(facts).narrow[0])
    uniform = _chosen(facts, "near", np.full((STEPS, 2 * chains(facts)), narrow), seed)
    yield Case("from reset", (from_reset(vectors(uniform, facts, seed), facts),))
    steps = np.arange(4)[:, None] + np.zeros(2 * chains(facts), np.int64)
    few = vectors(_chosen(facts, "near", steps % len(pairs), seed), facts, seed)
    for clock, stall in enumerate(RESETS):
        yield Case(f"reset {clock}", (few,), stall, seed + clock, before=WARM + clock)
