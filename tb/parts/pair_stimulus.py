"""Pairs of packed groups for the MAC units: random and directed, one function a distribution.

Each returns (act, weight, first): uint8 [T, n, bytes a group] twice and bool [T, n], for n dot
products of T groups. All bytes are legal input, so random bytes are the base of everything; what is
directed is the scales, which set the distance between accumulator and addend.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.tb.bench import Arrays
from m2xfp.tb.parts.accumulation import chains, from_reset
from m2xfp.tb.parts.element_codes import (
    largest_code,
    negated,
    one_code,
    packed_codes,
    unpacked_codes,
    without_specials,
)
from m2xfp.tb.parts.pairs import formats, pairs, vectors
from m2xfp.tb.regression import Case, steady_cases
from m2xfp.tb.vectors import TestVectors

__all__ = [
    "DISTRIBUTIONS",
    "Formats",
    "Groups",
    "cancellations",
    "groups",
    "last_places",
    "ones",
    "pair_arrays",
    "pair_vectors",
    "regression",
]

Groups = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]
Formats = tuple[BlockFormat, BlockFormat]


def _bytes(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Return any bytes; of elements that have NaNs, one group in twenty may hold some."""
    act, weight = (
        rng.integers(0, 256, (steps, count, sum(block.group_bytes)), np.uint8) for block in blocks
    )
    for groups, codes, block in zip((act, weight), _scales(blocks), blocks, strict=True):
        if block.element.bits == 8:
            plane = groups[..., :codes]
            rare = rng.random((steps, count, 1)) < 0.05
            groups[..., :codes] = np.where(rare, plane, without_specials(plane, block))
    first = np.zeros((steps, count), bool)
    first[0] = True
    return act, weight, first


def _scales(blocks: Formats) -> tuple[int, int]:
    return blocks[0].group_bytes[0], blocks[1].group_bytes[0]


# Products of elements of four bits have no more bits, which is as far as a sum is from them.
_NEAR = 14


def _reach(blocks: Formats) -> int:
    """Return how far apart accumulator and addend are of interest: all bits of both."""
    return 48 if all(block.element.bits == 4 for block in blocks) else 110


def _raised(blocks: Formats) -> int:
    """Return the powers of two by which products may be larger than those of E2M1."""
    return sum(block.element.emax for block in blocks) - 4


def _split(rng: np.random.Generator, total: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Split sums of two E8M0 bytes, 0..508, into two bytes of 0..254."""
    low, high = np.maximum(0, total - 254), np.minimum(254, total)
    one = rng.integers(low, high + 1)
    return one, total - one


def _sparse(rng: np.random.Generator, groups: NDArray[np.uint8], codes: int, keep: float) -> None:
    """Clear most code bytes, so that products have few bits and cancel exactly now and then."""
    mask = rng.random((*groups.shape[:2], codes)) < keep
    groups[..., :codes] *= mask


def random_bytes(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """All bytes uniform: NaN scales now and then, exponents far apart."""
    return _bytes(rng, blocks, steps, count)


def near(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Scales within a few powers of two of each other: alignment, cancellation, rounding."""
    act, weight, first = _bytes(rng, blocks, steps, count)
    a, w = _scales(blocks)
    if blocks[0].scale.name == "e8m0":
        centre = rng.integers(0, 500, count)
        total = np.clip(centre + rng.integers(-9, 10, (steps, count)), 0, 508)
        act[..., a], weight[..., w] = _split(rng, total)
    return act, weight, first


def gaps(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Every distance between accumulator and addend that matters, in falling and rising order."""
    act, weight, first = _bytes(rng, blocks, steps, count)
    a, w = _scales(blocks)
    if blocks[0].scale.name == "e8m0":
        jumps = rng.integers(-_reach(blocks), _reach(blocks) + 1, (steps, count))
        total = np.clip(rng.integers(120, 400, count) + np.cumsum(jumps, axis=0), 0, 508)
        act[..., a], weight[..., w] = _split(rng, total)
    _sparse(rng, act, a, 0.3)
    return act, weight, first


def cancelling(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Each second group is the one before it with all weight signs turned, some one step away."""
    act, weight, first = near(rng, blocks, steps, count)
    _sparse(rng, act, _scales(blocks)[0], 0.5)
    w = _scales(blocks)[1]
    odd = np.arange(1, steps, 2)
    act[odd], weight[odd] = act[odd - 1], weight[odd - 1]
    weight[odd, :, :w] = _turned(weight[odd, :, :w], blocks[1])
    nudge = rng.random((len(odd), count)) < 0.5
    position = rng.integers(0, w, (len(odd), count))
    i, j = np.nonzero(nudge)
    weight[odd[i], j, position[i, j]] ^= rng.integers(1, 256, len(i)).astype(np.uint8)
    return act, weight, first


def tiny(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Around the smallest FP32 numbers: subnormal results, sums that round to zero, lone signs."""
    act, weight, first = _bytes(rng, blocks, steps, count)
    a, w = _scales(blocks)
    if blocks[0].scale.name == "e8m0":
        total = np.maximum(0, rng.integers(80, 150, (steps, count)) - _raised(blocks))
        act[..., a], weight[..., w] = _split(rng, total)
    _sparse(rng, act, a, 0.15)
    first |= rng.random(first.shape) < 0.2
    return act, weight, first


def huge(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Around the largest FP32 numbers: overflow, differences that stay finite, infinity and NaN."""
    act, weight, first = _bytes(rng, blocks, steps, count)
    a, w = _scales(blocks)
    if blocks[0].scale.name == "e8m0":
        total = rng.integers(355, 385, (steps, count)) - _raised(blocks)
        act[..., a], weight[..., w] = _split(rng, total)
        act[..., a] |= np.where(rng.random((steps, count)) < 0.02, 0xFF, 0).astype(np.uint8)
    else:
        act[..., a] = rng.integers(0x70, 0x80, (steps, count))
    _sparse(rng, act, a, 0.3)
    first |= rng.random(first.shape) < 0.1
    return act, weight, first


def zeros(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Products that are zero by their codes or by cancelling within the group, between others."""
    act, weight, first = tiny(rng, blocks, steps, count)
    codes = _scales(blocks)[0]
    blank = rng.random((steps, count)) < 0.5
    act[..., :codes] *= ~blank[..., None]
    return act, weight, first


def extremes(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """All lanes at the largest magnitude, one sign: the bounds of the widths."""
    act, weight, first = near(rng, blocks, steps, count)
    a, w = _scales(blocks)
    plus, minus = _largest(blocks[1])
    act[..., :a] = _largest(blocks[0])[0]
    weight[..., :w] = np.where(rng.random((steps, count, 1)) < 0.5, plus, minus)
    some = rng.random((steps, count)) < 0.5
    for groups, codes in ((act, a), (weight, w)):
        groups[some, codes + 1 :] = 0xFF
    return act, weight, first


def cancellations(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Add a product of two elements to one at every distance from it, and take it back.

    What is left tells whether the bits that were shifted out were kept: 2^-23, then +1, then -1.
    The element is another one in each dot product.
    """
    act, weight, first = _bytes(rng, blocks, steps, count)
    a, w = _scales(blocks)
    at = np.arange(steps) % 3
    lane = rng.integers(0, blocks[0].group, count)
    for groups, codes, block in ((act, a, blocks[0]), (weight, w, blocks[1])):
        lanes = np.zeros((steps, count, block.group), np.int64)
        code = rng.integers(1, largest_code(block) + 1, (steps, count))
        sign = rng.integers(0, 2, (steps, count))
        lanes[:, np.arange(count), lane] = np.where(sign == 1, negated(code, block), code)
        groups[..., :codes] = packed_codes(lanes, block)
    back = np.flatnonzero(at == 2)
    reach = _reach(blocks)
    gap = (np.arange(count) % (2 * reach + 1) - reach) * (at != 0)[:, None]
    if blocks[0].scale.name == "e8m0":
        total = np.clip(rng.integers(140, 360, count) + gap, 0, 508)
        act[..., a], weight[..., w] = _split(rng, total)
    act[back], weight[back] = act[back - 1], weight[back - 1]
    weight[back, :, :w] = _turned(weight[back, :, :w], blocks[1])
    first[at == 0] = True
    return act, weight, first


def ties(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Add two ones far apart, then a group for which the larger is about half a last place.

    The smaller one, wherever it is, decides how the sum is rounded. The group is a one too, or any.
    """
    act, weight, first = _bytes(rng, blocks, steps, count)
    at, ones = np.arange(steps) % 3, rng.random((steps, count)) < 0.6
    ones[at != 2] = True
    _set_ones(rng, blocks, (act, weight), ones)
    apart = rng.integers(1, 24, (steps, count))
    larger = 24 + np.where(ones, rng.integers(-1, 2, ones.shape), rng.integers(-9, 3, ones.shape))
    move = np.where((at == 1)[:, None], -apart, np.where((at == 2)[:, None], larger, 0))
    _place(rng, blocks, (act, weight), rng.integers(180, 300, (steps, count))[0] + move)
    first[at == 0] = True
    return act, weight, first


def borrows(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Add two groups to a sum of all bits, then a one of any larger size and any sign.

    What the alignment keeps of the sum below the last place is rounded.
    """
    act, weight, first = _bytes(rng, blocks, steps, count)
    at, ones = np.arange(steps) % 3, np.zeros((steps, count), bool)
    ones[at == 2] = True
    _set_ones(rng, blocks, (act, weight), ones)
    apart = rng.integers(1, 9, (steps, count))
    larger = rng.integers(4, 34, (steps, count))
    move = np.where((at == 1)[:, None], -apart, np.where((at == 2)[:, None], larger, 0))
    _place(rng, blocks, (act, weight), rng.integers(180, 300, (steps, count))[0] + move)
    first[at == 0] = True
    return act, weight, first


def nans(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """NaN scales on either side, on both and on none, and sums that begin with them."""
    act, weight, first = near(rng, blocks, steps, count)
    for side, block, place in zip((act, weight), blocks, _scales(blocks), strict=True):
        side[rng.random((steps, count)) < 0.3, place] = block.scale.nan
    _sparse(rng, act, _scales(blocks)[0], 0.1)
    first |= rng.random(first.shape) < 0.4
    return act, weight, first


def fine(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Large products of all lanes but those of one part, which adds a small element's last bits.

    Refinement reaches furthest down in an element that is small and the largest of its part.
    """
    act, weight, first = extremes(rng, blocks, steps, count)
    lanes, part = blocks[0].group, 8
    begin = part * rng.integers(0, lanes // part, (steps, count))
    for groups, codes in zip((act, weight), _scales(blocks), strict=True):
        # A few lanes less, so that the sum has any length.
        kept = rng.random((steps, count, codes)) < rng.random((steps, count, 1))
        groups[..., :codes] *= kept
        inside = np.arange(codes) // (part // 2) == begin[..., None] // part
        groups[..., :codes] *= ~inside
        nibble = rng.integers(1, 4, (steps, count)) | rng.integers(0, 2, (steps, count)) << 3
        row, column = np.indices((steps, count)).reshape(2, -1)
        groups[row, column, begin.reshape(-1) // 2] = nibble.reshape(-1)
        groups[..., codes + 1 :] = rng.integers(0, 256, groups[..., codes + 1 :].shape, np.uint8)
    return act, weight, first


def dense(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Lanes at the largest magnitude with a few of any other beside them: long sums, last bits."""
    act, weight, first = extremes(rng, blocks, steps, count)
    for groups, codes in zip((act, weight), _scales(blocks), strict=True):
        other = rng.random((steps, count, codes)) < 0.15
        groups[..., :codes] = np.where(
            other, rng.integers(0, 256, other.shape), groups[..., :codes]
        )
        groups[..., codes + 1 :] = rng.integers(0, 256, groups[..., codes + 1 :].shape, np.uint8)
    return act, weight, first


def uppers(rng: np.random.Generator, blocks: Formats, steps: int, count: int) -> Groups:
    """Add two groups to a sum of all bits, then one of any length that is larger by some binades.

    Every other one is a power of two, so that a difference has a bit less: what was shifted out
    decides the rounding, and an addend that is not normalised has shifted out a bit more.
    """
    act, weight, first = fine(rng, blocks, steps, count)
    at = np.arange(steps) % 3
    for side, other in zip((act, weight), _bytes(rng, blocks, steps, count)[:2], strict=True):
        side[at != 2] = other[at != 2]
    powers = (at == 2)[:, None] & (rng.random((steps, count)) < 0.7)
    shorter = _set_powers(rng, blocks, (act, weight), powers)
    apart = rng.integers(4, 14, (steps, count))
    larger = rng.integers(-6, 9, (steps, count)) + shorter
    move = np.where((at == 1)[:, None], -apart, np.where((at == 2)[:, None], larger, 0))
    _place(rng, blocks, (act, weight), rng.integers(180, 300, (steps, count))[0] + move)
    first[at == 0] = True
    return act, weight, first


def _set_powers(
    rng: np.random.Generator,
    blocks: Formats,
    groups: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    chosen: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Make the products of chosen groups powers of two, of any sign: equal ones in some lanes.

    Or the largest in seven of each eight lanes, if one more then makes a power of two. Return by
    how many binades each is below the largest, where these are more than a sum is near.
    """
    shorter = np.zeros(chosen.shape, np.int64)
    if not chosen.any():
        return shorter
    sizes = [_steps(block) for block in blocks]
    number, lanes = int(chosen.sum()), np.arange(blocks[0].group)
    # Each power as often, by all the ways to make it.
    ways: dict[int, list[tuple[int, int, int]]] = {}
    for many in (1 << n for n in range(len(lanes).bit_length())):
        for one, size in enumerate(sizes[0], 1):
            for other, step in enumerate(sizes[1], 1):
                if (total := many * size * step) & total - 1 == 0:
                    ways.setdefault(total, []).append((many, one, other))
    drawn = rng.random((number, 2))
    powers = list(ways)
    totals = [powers[int(a * len(powers))] for a in drawn[:, 0]]
    made = [ways[total] for total in totals]
    most = max(powers).bit_length()
    if most > _NEAR:
        shorter[chosen] = [most - total.bit_length() for total in totals]
    many, *codes = np.array(
        [way[int(b * len(way))] for way, b in zip(made, drawn[:, 1], strict=True)]
    ).T
    planes = [np.where(lanes < many[:, None], code[:, None], 0) for code in codes]
    seven = 7 * sizes[0][-1] * sizes[1][-1]
    missing = (1 << seven.bit_length()) - seven
    rows = rng.random(number) < 0.2
    if missing % sizes[1][1] == 0 and missing // sizes[1][1] in sizes[0]:
        last = sizes[0].index(missing // sizes[1][1]) + 1, 2
        for plane, steps, code in zip(planes, sizes, last, strict=True):
            plane[rows] = np.where(lanes % 8 == 7, code, len(steps))
    negative = (rng.integers(0, 2, number)[:, None] == 1) & (planes[0] > 0)
    planes[0] = np.where(negative, negated(planes[0], blocks[0]), planes[0])
    # Two products that cancel, whose last places carry into a sum that has none.
    beside = np.flatnonzero((many <= len(lanes) // 2) & ~rows & (rng.random(number) < 0.3))
    for plane, block in zip(planes, blocks, strict=True):
        plane[beside, -1] = plane[beside, -2] = rng.integers(
            1, largest_code(block) + 1, len(beside)
        )
    planes[0][beside, -1] = negated(planes[0][beside, -1], blocks[0])
    neutral = 0x55, 0  # metadata that leaves activations as they are, and weights
    for side, plane, end, meta, block in zip(
        groups, planes, _scales(blocks), neutral, blocks, strict=True
    ):
        side[chosen, :end] = packed_codes(plane, block)
        side[chosen, end + 1 :] = meta
    return shorter


def _steps(block: BlockFormat) -> list[int]:
    """Return the magnitudes of codes from 1 to the largest in units of the smallest."""
    unit = block.element.magnitude(1)
    return [int(block.element.magnitude(code) / unit) for code in range(1, largest_code(block) + 1)]


def _set_ones(
    rng: np.random.Generator,
    blocks: Formats,
    groups: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    chosen: NDArray[np.bool_],
    signs: NDArray[np.int64] | None = None,
) -> None:
    """Make chosen groups zeros, but for a 1 in a lane of both.

    ``signs`` are those of the products, 1 for a negative one; None for any.
    """
    lane = rng.integers(0, blocks[0].group, chosen.shape)
    neutral = 0x55, 0  # metadata that leaves activations as they are, and weights
    for side, codes, meta, block in zip(groups, _scales(blocks), neutral, blocks, strict=True):
        side[chosen, codes + 1 :] = meta
        one = np.full(chosen.shape, one_code(block))
        turned = rng.integers(0, 2, chosen.shape)
        if signs is not None:
            turned = signs * (side is groups[0]) + np.zeros_like(turned)
        one = np.where(turned == 1, negated(one, block), one)
        lanes = np.zeros((*chosen.shape, block.group), np.int64)
        np.put_along_axis(lanes, lane[..., None], one[..., None], -1)
        side[chosen, :codes] = packed_codes(lanes[chosen], block)


def _turned(plane: NDArray[np.uint8], block: BlockFormat) -> NDArray[np.uint8]:
    """Return planes of codes with all signs turned."""
    return packed_codes(negated(unpacked_codes(plane, block), block), block)


def _largest(block: BlockFormat) -> list[NDArray[np.uint8]]:
    """Return planes of a group at the largest value, and at the one below zero."""
    codes = np.full(block.group, largest_code(block))
    return [packed_codes(each, block) for each in (codes, negated(codes, block))]


def _place(
    rng: np.random.Generator,
    blocks: Formats,
    groups: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    total: NDArray[np.int64],
) -> None:
    """Give groups scales of these sums, where scales are powers of two."""
    if blocks[0].scale.name == "e8m0":
        (act, weight), (a, w) = groups, _scales(blocks)
        act[..., a], weight[..., w] = _split(rng, np.clip(total, 0, 508))


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, Formats, int, int], Groups]] = {
    made.__name__: made
    for made in (
        random_bytes,
        near,
        gaps,
        cancelling,
        tiny,
        huge,
        zeros,
        extremes,
        cancellations,
        ties,
        borrows,
        nans,
        fine,
        dense,
        uppers,
    )
}


def groups(name: str, blocks: Formats, steps: int, count: int, seed: int) -> Groups:
    """Return ``count`` dot products of ``steps`` groups from distribution ``name``."""
    rng = np.random.default_rng([seed, list(DISTRIBUTIONS).index(name)])
    return DISTRIBUTIONS[name](rng, blocks, steps, count)


def pair_arrays(
    facts: Facts, act: NDArray[np.uint8], weight: NDArray[np.uint8], first: NDArray[np.bool_]
) -> Arrays:
    """Return dot products one after the other as a user's arrays, see ``m2xfp.tb.parts.pairs``."""
    acts, weights = (side.swapaxes(0, 1).reshape(-1, side.shape[2]) for side in (act, weight))
    return pairs(acts, weights, facts) | {"first": first.T.reshape(-1)}


def pair_vectors(
    facts: Facts,
    act: NDArray[np.uint8],
    weight: NDArray[np.uint8],
    first: NDArray[np.bool_],
    seed: int = 0,
) -> TestVectors:
    """Return dot products as vectors; as many as the unit has chains are a piece."""
    return vectors(pair_arrays(facts, act, weight, first), facts, seed)


def last_places(facts: Facts) -> Arrays:
    """Return 2^-23, then +1, then -1, in every chain: the last place of a one is left.

    Of formats whose scales are powers of two; of a random fault this alone told once.
    """
    blocks, count = formats(facts), 2 * chains(facts)
    rng = np.random.default_rng(0)
    act, weight, first = _bytes(rng, blocks, 3, count)
    _set_ones(rng, blocks, (act, weight), np.ones((3, count), bool), np.array([[0], [0], [1]]))
    exponents = np.repeat([[-23], [0], [0]], count, axis=1)
    _place(rng, blocks, (act, weight), 2 * blocks[0].scale.bias + exponents)
    return pair_arrays(facts, act, weight, first)


def ones(rng: np.random.Generator, blocks: Formats, exponents: NDArray[np.int64]) -> Groups:
    """Return dot products of these powers of two, [steps, n], of any sign: a one in a lane each.

    Of formats whose scales are powers of two; of others they are any.
    """
    act, weight, first = _bytes(rng, blocks, *exponents.shape)
    _set_ones(rng, blocks, (act, weight), np.ones(exponents.shape, bool))
    _place(rng, blocks, (act, weight), 2 * blocks[0].scale.bias + exponents)
    return act, weight, first


def regression(
    facts: Facts, seed: int = 0, more: Iterable[tuple[str, Groups]] = ()
) -> Iterator[Case]:
    """Yield all distributions of pairs, as dot products, and ``more``."""
    blocks = formats(facts)

    def stimulus() -> Iterator[tuple[str, Arrays]]:
        for name in DISTRIBUTIONS:
            yield name, pair_arrays(facts, *groups(name, blocks, 12, 300, seed))
        yield "last places", last_places(facts)
        for name, made in more:
            yield name, pair_arrays(facts, *made)

    yield from steady_cases(stimulus(), vectors, facts, seed)
    if any(field.name == "first" for field in facts.stream("i").fields):
        arrays = pair_arrays(facts, *groups("near", blocks, 12, 6, seed))
        yield Case("from reset", (from_reset(vectors(arrays, facts, seed), facts),))
