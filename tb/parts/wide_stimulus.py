"""Pairs of groups of elements with many binades, whose products have more bits than a sum.

As the distributions of ``pair_stimulus``, for formats whose scales are powers of two. Products of
E2M1 on both sides are shorter than a sum, so that these say nothing of them.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from m2xfp.formats import BlockFormat
from m2xfp.tb.parts.element_codes import largest_code, negated, packed_codes
from m2xfp.tb.parts.pair_stimulus import DISTRIBUTIONS, Formats, Groups, groups, ones

__all__ = ["WIDE", "is_wide", "wide_groups"]

_SUM = 24
"""Bits of a sum's significand."""

_SUBNORMAL = -127, -149
"""Exponents of what is subnormal in FP32."""


def is_wide(blocks: Formats) -> bool:
    """Return whether products of a pair may have more bits than a sum."""
    return blocks[0].scale.name == "e8m0" and any(block.element.bits > 4 for block in blocks)


def _put(
    made: Groups, blocks: Formats, where: NDArray[np.bool_], lanes: tuple[NDArray, NDArray]
) -> None:
    """Give groups [steps, n] these codes, [steps, n, lanes] of both sides."""
    for side, codes, block in zip(made[:2], lanes, blocks, strict=True):
        side[where, : block.group_bytes[0]] = packed_codes(codes[where], block)


def _any_metadata(rng: np.random.Generator, made: Groups, blocks: Formats) -> None:
    """Give groups any metadata, where the format has some."""
    for side, block in zip(made[:2], blocks, strict=True):
        if block.metadata.bits:
            meta = side[..., block.group_bytes[0] + 1 :]
            meta[...] = rng.integers(0, 256, meta.shape, np.uint8)


def long_products(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Add groups of large elements and of least ones; of each three one or two are taken back.

    So products have all the bits that there can be, and what a sum had to round is left alone.
    """
    at, shape = np.arange(steps) % 3, (steps, count, blocks[0].group)
    exponents = rng.integers(-2, 3, (steps, count)) + rng.integers(-60, 60, count)
    made = ones(rng, blocks, exponents)
    _any_metadata(rng, made, blocks)
    # Of one sign, and nearly all of them the largest, so that sums are as long as they can be.
    large = rng.random(shape) < rng.choice([0.3, 0.8, 0.97], (steps, count, 1))
    turned = rng.choice([0.0, 0.0, 0.1], (steps, count, 1))
    lanes = []
    for block in blocks:
        lower = rng.choice([1, 1, 2, 9], (steps, count, 1))
        high = np.maximum(largest_code(block) - rng.integers(0, lower, shape), 1)
        codes = np.where(large, high, rng.integers(0, 5, shape))
        lanes.append(np.where(rng.random(shape) < turned, negated(codes, block), codes))
    _put(made, blocks, np.ones((steps, count), bool), (lanes[0], lanes[1]))
    for step in np.flatnonzero(at != 0):
        # Of half of the sums the second one takes the first one back already.
        columns = np.arange(count)[(step % 3 == 2) | (np.arange(count) % 2 == 0)]
        taken = step - 1 - (step % 3 == 2) * (rng.random(len(columns)) < 0.5)
        for side in made[:2]:
            side[step, columns] = side[taken, columns]
        codes = lanes[1][step, columns] = negated(lanes[1][taken, columns], blocks[1])
        made[1][step, columns, : blocks[1].group_bytes[0]] = packed_codes(codes, blocks[1])
    made[2][at == 0] = True
    return made


@cache
def _halves(blocks: Formats) -> list[tuple[int, int, int, int, int]]:
    """Return how a power of two and half of its sum's last place are made.

    Lanes of the large one, its codes, and the codes of the small one.
    """
    powers = []
    for block in blocks:
        unit = block.element.magnitude(1)
        sizes = {c: int(block.element.magnitude(c) / unit) for c in range(1, largest_code(block))}
        powers.append({size: code for code, size in sizes.items() if size & size - 1 == 0})
    acts, weights = powers
    found = []
    for many in (1 << n for n in range(blocks[0].group.bit_length() - 1)):
        for a, act in acts.items():
            for w, weight in weights.items():
                half, rest = divmod(many * a * w, 1 << _SUM)
                if rest:
                    continue
                for b, small in acts.items():
                    if half % b == 0 and half // b in weights:
                        found.append((many, act, weight, small, weights[half // b]))
    return found


def lone(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Add groups in the middle between two sums to a lone bit far below them.

    The bit, of any sign and subnormal in every other sum, decides how it is rounded.
    """
    at = np.arange(steps) % 2
    below = np.where(
        np.arange(count) % 2 == 0,
        rng.integers(_SUBNORMAL[1], _SUBNORMAL[0] + 1, (steps, count)),
        rng.integers(-110, -20, (steps, count)),
    )
    # A group's one has this exponent; what lies in the middle is larger by some binades.
    above = np.roll(below, 1, 0) + rng.integers(6, 56, (steps, count))
    exponents = np.where((at == 1)[:, None], above, below)
    made = ones(rng, blocks, exponents)
    if halves := _halves(blocks):
        place = rng.integers(0, len(halves), (steps, count))
        many, act, weight, small, other = np.moveaxis(np.array(halves)[place], -1, 0)[..., None]
        lane = np.arange(blocks[0].group)
        # One of the small ones, or three: then the middle is beside an odd last place.
        least = lane >= blocks[0].group - np.where(rng.random((steps, count, 1)) < 0.5, 1, 3)
        turned = rng.random((steps, count, 1)) < 0.5
        acts = np.where(lane < many, act, np.where(least, small, 0))
        acts = np.where(turned, negated(acts, blocks[0]), acts)
        weights = np.where(lane < many, weight, np.where(least, other, 0))
        odd = np.zeros((steps, count), bool)
        odd[at == 1] = True
        _put(made, blocks, odd, (acts, weights))
    made[2][at == 0] = True
    return made


@cache
def _places(block: BlockFormat) -> list[list[int]]:
    """Return the codes of each number of binades above the smallest."""
    unit = block.element.magnitude(1)
    found: dict[int, list[int]] = {}
    for code in range(1, largest_code(block) + 1):
        place = int(block.element.magnitude(code) / unit).bit_length() - 1
        found.setdefault(place, []).append(code)
    return [found[place] for place in sorted(found)]


def tails(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Add groups of lanes that are alike and one of any other value, each taken back by the next.

    Sums are rounded to what is alike; what is left then is the one, of any place below.
    """
    at, shape = np.arange(steps) % 2, (steps, count, blocks[0].group)
    made = ones(rng, blocks, np.repeat(rng.integers(-60, 60, (1, count)), steps, axis=0))
    _any_metadata(rng, made, blocks)
    lane = np.arange(blocks[0].group)
    many = rng.choice([1, 2, 4, 8, 16, 31], (steps, count, 1))
    # The one is of each place as often: that of a product is the sum of its elements' places.
    places = [_places(block) for block in blocks]
    most = [len(codes) - 1 for codes in places]
    place = rng.integers(0, sum(most) + 1, (steps, count))
    first = rng.integers(np.maximum(0, place - most[1]), np.minimum(place, most[0]) + 1)
    longest = rng.random((steps, count, 1)) < 0.7
    lanes = []
    for block, known, at_place in zip(blocks, places, (first, place - first), strict=True):
        top = largest_code(block)
        drawn = [rng.choice(known[n]) for n in at_place.reshape(-1).tolist()]
        other = np.reshape(drawn, (steps, count, 1))
        alike = np.where(longest, top, rng.integers(1, top + 1, (steps, count, 1)))
        lanes.append(np.where(lane < many, alike, np.where(lane == lane[-1], other, 0)))
    lanes[0] = np.where(rng.random(shape) < 0.2, negated(lanes[0], blocks[0]), lanes[0])
    for codes in lanes:
        codes[at == 1] = codes[np.flatnonzero(at == 1) - 1]
    lanes[1][at == 1] = negated(lanes[1][at == 1], blocks[1])
    _put(made, blocks, np.ones((steps, count), bool), (lanes[0], lanes[1]))
    for step in np.flatnonzero(at == 1):
        for side, block in zip(made[:2], blocks, strict=True):
            side[step, :, block.group_bytes[0] :] = side[step - 1, :, block.group_bytes[0] :]
    made[2][at == 0] = True
    return made


WIDE: dict[str, Callable[[np.random.Generator, Formats, int, int], Groups]] = {
    each.__name__: each for each in (long_products, lone, tails)
}


def wide_groups(name: str, blocks: Formats, steps: int, count: int, seed: int) -> Groups:
    """Return ``count`` dot products of ``steps`` groups from distribution ``name``.

    Of pairs whose products are short, and of what is no distribution here, that of
    ``pair_stimulus``.
    """
    if name not in WIDE or not is_wide(blocks):
        return groups(name if name in DISTRIBUTIONS else "near", blocks, steps, count, seed)
    return WIDE[name](np.random.default_rng([seed, *map(ord, name)]), blocks, steps, count)
