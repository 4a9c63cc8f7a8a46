"""Groups with a scale for each sign: random and directed, one function a distribution.

Each returns the operands of ``count`` dot products of ``steps`` groups: codes [steps, count, group]
and exponent fields [steps, count, scales] of both sides, which `_stored` makes scales of with any
mantissa. What accumulators do depends on the distance between sum and term, on the classes that
have a sum at all, and on which bits are set.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat, window
from m2xfp.rtl.parts.asymmetric_pair import AsymmetricPair
from m2xfp.tb.bench import Arrays
from m2xfp.tb.parts.accumulation import chains, from_reset
from m2xfp.tb.parts.class_pairs import vectors
from m2xfp.tb.parts.element_codes import packed_codes
from m2xfp.tb.parts.pairs import SIDES, formats, pairs
from m2xfp.tb.regression import Case, steady_cases

__all__ = [
    "DISTRIBUTIONS",
    "class_groups",
    "distances",
    "every_scale",
    "outgrown",
    "regression",
]

# Dot products of a distribution of which few show that a term was not normalised.
MANY = 18000

Numbers = NDArray[np.int64]
Formats = tuple[BlockFormat, BlockFormat]


@dataclass
class Operands:
    """Both sides of some groups.

    Members
    -------
    codes, places
        Codes, and exponent fields of the scales.
    mantissas
        Whether scales have any mantissa, or which groups' have, [steps, count, 1]; else none, so
        that they are powers of two.
    nan
        Share of scales that are NaN or infinite.
    first
        Share of groups that begin a sum, beside the first ones.
    period
        Groups from one beginning to the next; 0 for those of ``first``.
    """

    codes: list[Numbers]
    places: list[Numbers]
    mantissas: bool | NDArray[np.bool_] = True
    nan: float = 0.0
    first: float = 0.05
    period: int = 0


def _scales(block: BlockFormat) -> int:
    return 2 if block.scaling == "split" else 1


def _top(block: BlockFormat) -> int:
    """Return the largest exponent field of a number."""
    grid = block.scale.grid
    return 254 if grid is None else grid.max_code >> grid.mantissa_bits


def _codes(
    rng: np.random.Generator, blocks: Formats, shape: tuple[int, int], share: float | None = None
) -> list[Numbers]:
    """Return any codes, of which a share is not zero; None for another share in each group."""
    found = []
    for block in blocks:
        codes = rng.integers(0, 16, (*shape, block.group))
        kept = rng.random((*shape, 1)) if share is None else share
        found.append(codes * (rng.random(codes.shape) < kept))
    return found


def _around(
    rng: np.random.Generator, blocks: Formats, shape: tuple[int, int], reach: int
) -> list[Numbers]:
    """Return exponent fields within ``reach`` of one another in each dot product."""
    found = []
    for block in blocks:
        top = _top(block)
        centre = rng.integers(0, top + 1, (1, shape[1], 1))
        if block.scale.grid is None:  # so that sums are neither subnormal nor infinite all the time
            centre = rng.integers(70, 190, centre.shape)
        moves = rng.integers(-reach, reach + 1, (*shape, _scales(block)))
        found.append(np.clip(centre + moves, 0, top))
    return found


def anything(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """All bytes uniform, NaN scales now and then."""
    places = [rng.integers(0, _top(b) + 1, (*shape, _scales(b))) for b in blocks]
    return Operands(_codes(rng, blocks, shape), places, nan=0.01, first=0.2)


def near(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """Scales within a few powers of two of each other."""
    return Operands(_codes(rng, blocks, shape), _around(rng, blocks, shape, 4))


def gaps(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """Few bits, at any distance from one another."""
    return Operands(_codes(rng, blocks, shape, 0.08), _around(rng, blocks, shape, 26), first=0.15)


def cancelling(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """Each second group takes back the one before it, or all but a lane of it."""
    made = Operands(_codes(rng, blocks, shape, 0.2), _around(rng, blocks, shape, 3), first=0.0)
    odd = np.arange(1, shape[0], 2)
    for codes, places in zip(made.codes, made.places, strict=True):
        codes[odd], places[odd] = codes[odd - 1], places[odd - 1]
    # Signs of weights, and with them their classes.
    made.codes[1][odd] ^= 8
    made.places[1][odd] = made.places[1][odd][..., ::-1]
    lane = rng.integers(0, blocks[1].group, (len(odd), shape[1], 1))
    turn = rng.integers(0, 8, lane.shape) * (rng.random(lane.shape) < 0.5)
    changed = np.take_along_axis(made.codes[1][odd], lane, -1) ^ turn
    rows = made.codes[1][odd]
    np.put_along_axis(rows, lane, changed, -1)
    made.codes[1][odd] = rows
    return made


def one_sign(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """Classes without a product: groups of one sign, and zeros of either."""
    made = near(rng, blocks, shape)
    for codes in made.codes:
        sign = rng.integers(0, 3, (*shape, 1))  # of all: +, -, any
        codes[:] = np.where(sign < 2, (codes & 7) | sign << 3, codes)
        codes *= rng.random((*shape, 1)) < 0.8
    made.first = 0.2
    return made


def extremes(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """All lanes at the largest magnitude, and a few of any other: the bounds of the widths."""
    made = near(rng, blocks, shape)
    signs = [rng.integers(0, 2, (*shape, 1)) << 3 for _ in blocks]
    # Of a product of last places both sides are small: beside the largest value any is even.
    last = rng.random((*shape, blocks[0].group)) < 0.05 * rng.integers(0, 2, (*shape, 1))
    for codes, sign in zip(made.codes, signs, strict=True):
        other = rng.random(codes.shape) < 0.1 * rng.integers(0, 2, (*shape, 1))
        codes[:] = np.where(other | last, codes, 7 | sign)
    return made


def powers(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """Terms that are powers of two, or one lane's product: ties, and what lies below them."""
    made = Operands(
        [np.zeros((*shape, b.group), np.int64) for b in blocks],
        _around(rng, blocks, shape, 28),
        mantissas=False,
        period=3,
    )
    for sign in (0, 8):
        lane = rng.integers(0, blocks[0].group, (*shape, 1))
        for number, codes in enumerate(made.codes):
            ones = rng.choice([1, 2, 2, 2, 4, 6, 3], lane.shape) * (rng.random(lane.shape) < 0.8)
            other = rng.integers(0, 2, lane.shape) << 3
            np.put_along_axis(
                codes, lane, np.where(ones > 0, ones | (other if number else sign), 0), -1
            )
    return made


def borrows(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """Add two groups, then a single product that is larger by some binades, of any sign."""
    made = near(rng, blocks, shape)
    large = np.arange(shape[0]) % 3 == 2
    alone = powers(rng, blocks, shape)
    for number in range(2):
        made.codes[number][large] = alone.codes[number][large]
        raised = made.places[number] + rng.integers(2, 15, made.places[number].shape)
        raised = np.clip(raised, 0, _top(blocks[number]))
        made.places[number] = np.where(large[:, None, None], raised, made.places[number])
    made.period = 3
    return made


def uppers(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """Add two groups, then one whose sum is a power of two, larger by some binades, of any sign.

    A difference has a bit less then: what was shifted out decides the rounding, and a term that was
    not normalised has shifted out a bit more.
    """
    made = near(rng, blocks, shape)
    large = (np.arange(shape[0]) % 3 == 2)[:, None, None]
    group = np.arange(blocks[0].group)
    many = 1 << rng.integers(0, len(group).bit_length(), (*shape, 1))
    # 7 of each 8 lanes at 144 and the last one at 16 are a power of two as well.
    full = rng.random((*shape, 1)) < 0.3
    for number, last in enumerate((4, 4)):
        one = rng.choice([1, 2, 4, 6], (*shape, 1))
        codes = np.where(full, np.where(group % 8 == 7, last, 7), np.where(group < many, one, 0))
        codes |= np.where(codes > 0, rng.integers(0, 2, (*shape, 1)) << 3, 0)
        made.codes[number] = np.where(large, codes, made.codes[number])
        top = _top(blocks[number])
        raised = made.places[number] + rng.integers(0, 9, made.places[number].shape)
        made.places[number] = np.where(large, np.clip(raised, 0, top), made.places[number])
    made.mantissas, made.period = ~large, 3
    return made


def taken_back(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """Add a group, one smaller by any number of binades, and take the first away again."""
    made = Operands(_codes(rng, blocks, shape), [], period=3)
    at = np.arange(shape[0]) % 3
    for block in blocks:
        top = _top(block)
        low = 100 if block.scale.grid is None else top // 2
        high = rng.integers(low, min(low + 60, top) + 1, (*shape, _scales(block)))
        made.places.append(
            high - np.where((at == 1)[:, None, None], rng.integers(0, low, high.shape) % 16, 0)
        )
    back = np.flatnonzero(at == 2)
    for codes, places in zip(made.codes, made.places, strict=True):
        codes[back], places[back] = codes[back - 2], places[back - 2]
    made.codes[1][back] ^= 8  # and with the signs of weights their classes
    made.places[1][back] = made.places[1][back][..., ::-1]
    made.mantissas = False
    return made


def nans(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """NaN and infinite scales of each class, and sums that begin with them."""
    made = near(rng, blocks, shape)
    made.nan, made.first = 0.12, 0.4
    return made


def ends(rng: np.random.Generator, blocks: Formats, shape: tuple[int, int]) -> Operands:
    """Around the smallest FP32 numbers, and around the largest, as far as scales reach there."""
    made = near(rng, blocks, shape)
    low = rng.integers(0, 2, (1, shape[1], 1)) == 0
    for number, block in enumerate(blocks):
        top, span = _top(block), (30 if block.scale.grid is None else 3)
        other = blocks[1 - number]
        if block.scale.grid is None and other.scale.grid is None:
            centre = np.where(low, 55, 190)
        else:
            centre = np.where(low, 0, top)
        moves = rng.integers(-span // 2, span // 2 + 1, made.places[number].shape)
        made.places[number] = np.clip(centre + moves, 0, top)
    for codes in made.codes:
        codes *= rng.random(codes.shape) < 0.3
    made.first = 0.2
    return made


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, Formats, tuple[int, int]], Operands]] = {
    made.__name__: made
    for made in (
        anything,
        near,
        gaps,
        cancelling,
        one_sign,
        extremes,
        powers,
        borrows,
        uppers,
        taken_back,
        nans,
        ends,
    )
}


def _stored(
    rng: np.random.Generator,
    places: Numbers,
    block: BlockFormat,
    mantissas: bool | NDArray[np.bool_],
    nan: float,
) -> Numbers:
    """Return stored scales of exponent fields; some are NaN or infinite, or have a sign bit."""
    grid = block.scale.grid
    bad = rng.random(places.shape) < nan
    if grid is None:
        return np.where(bad, block.scale.nan, places)
    mantissa = rng.integers(0, 1 << grid.mantissa_bits, places.shape)
    stored = places << grid.mantissa_bits | np.where(mantissas, mantissa, 0)
    stored = np.minimum(stored, grid.max_code)
    # The sign bit means nothing, but where it makes the NaN of E4M3 up to 480.
    sign = (rng.random(places.shape) < 0.1) & ((stored | 0x80) != block.scale.nan)
    infinite = (grid.max_code + 1 < block.scale.nan < 0x80) & (rng.random(places.shape) < 0.5)
    return np.where(bad, np.where(infinite, grid.max_code + 1, block.scale.nan), stored | sign << 7)


def class_groups(name: str, facts: Facts, steps: int, count: int, seed: int) -> Arrays:
    """Return ``count`` dot products of ``steps`` groups, one after the other, as user's arrays."""
    blocks = formats(facts)
    rng = np.random.default_rng([seed, list(DISTRIBUTIONS).index(name)])
    made = DISTRIBUTIONS[name](rng, blocks, (steps, count))
    first = rng.random((steps, count)) < made.first
    if made.period:
        first[:] = (np.arange(steps) % made.period == 0)[:, None]
    first[0] = True
    return _arrays(facts, rng, made, first)


def _arrays(
    facts: Facts, rng: np.random.Generator, made: Operands, first: NDArray[np.bool_]
) -> Arrays:
    groups = []
    for codes, places, block in zip(made.codes, made.places, formats(facts), strict=True):
        scales = _stored(rng, places, block, made.mantissas, made.nan)
        whole = np.concatenate([packed_codes(codes, block), scales.astype(np.uint8)], -1)
        groups.append(whole.swapaxes(0, 1).reshape(-1, whole.shape[2]))
    return pairs(groups[0], groups[1], facts) | {"first": first.T.reshape(-1)}


def outgrown(facts: Facts, seed: int) -> Arrays:
    """Return sums of the largest products that outgrow a window, the first from reset on."""
    blocks, given = formats(facts), window(facts.parameters["window"])
    bound = AsymmetricPair(*blocks, sums=1).product_bound
    most = 1 << given.bits - 1 - (given.highest - given.lowest)
    steps = most // bound // int(facts.parameters["sums"]) + 30
    made = Operands(
        [np.full((steps, 2, b.group), 7) for b in blocks],
        [np.full((steps, 2, _scales(b)), _top(b)) for b in blocks],
    )
    rng = np.random.default_rng(seed)
    # Half of each side for each class of it that is added in a beat; the second sum is negative.
    for number, block in enumerate(blocks):
        if block.scaling == "split":
            made.codes[number][..., ::2] |= 8
    made.codes[1][:, 1] ^= 8
    first = np.zeros((steps, 2), bool)
    first[0, 1] = True
    return _arrays(facts, rng, made, first)


def every_scale(facts: Facts, seed: int) -> Arrays:
    """Return dot products with each byte there is in each scale, the others near one another."""
    arrays = class_groups("near", facts, 4, 300, seed)
    at = 0
    for side, block in zip(SIDES.values(), formats(facts), strict=True):
        scales = arrays[f"{side}scales"].reshape(len(arrays["first"]), -1)
        for number in range(_scales(block)):
            scales[at : at + 256, number] = np.arange(256)
            at += 256
    return arrays


def distances(facts: Facts, seed: int) -> Arrays:
    """Return sums of a power of two and one at each distance from it, of either sign.

    As far as scales that are powers of two reach.
    """
    blocks, count, reach = formats(facts), 1200, 48
    rng = np.random.default_rng(seed)
    lowest = [1 if block.scale.grid else 30 for block in blocks]
    highest = [_top(block) if block.scale.grid else 224 for block in blocks]
    gap = np.resize(np.arange(-reach, reach + 1), count)
    least, most = sum(lowest), sum(highest)
    first = rng.integers(np.minimum(least + np.maximum(gap, 0), most), most + 1)
    first = np.minimum(first, np.maximum(most + np.minimum(gap, 0), least))
    made = Operands([], [], mantissas=False, period=2)
    left = np.clip(np.stack([first, first - gap]), least, most)
    lane = rng.integers(0, blocks[0].group, (2, count, 1))
    for block, low, high, rest in zip(blocks, lowest, highest, (lowest[1], 0), strict=True):
        # As much of the exponent as this side can have, so that the other has what is left of it.
        field = np.clip(left - rest, low, high)
        left = left - field
        codes = np.zeros((2, count, block.group), np.int64)
        sign = rng.integers(0, 2, lane.shape) << 3
        np.put_along_axis(codes, lane, 2 | sign, -1)
        made.codes.append(codes)
        made.places.append(np.repeat(field[..., None], _scales(block), axis=-1))
    begins = np.zeros((2, count), bool)
    begins[0] = True
    return _arrays(facts, rng, made, begins)


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield all distributions of pairs, as dot products."""

    def stimulus() -> Iterator[tuple[str, Arrays]]:
        for name in DISTRIBUTIONS:
            yield name, class_groups(name, facts, 12, 300, seed)
        yield "every scale", every_scale(facts, seed)
        yield "distances", distances(facts, seed)

    yield from steady_cases(stimulus(), vectors, facts, seed)
    for name in ("gaps", "borrows"):
        arrays = class_groups(name, facts, 12, MANY - MANY % chains(facts), seed + 1)
        yield Case(f"many {name}", (vectors(arrays, facts, seed),))
    arrays = class_groups("near", facts, 12, 2 * chains(facts), seed)
    arrays["first"] = np.arange(len(arrays["first"])) % 12 == 0
    yield Case("from reset", (from_reset(vectors(arrays, facts, seed), facts),))
    if facts.parameters.get("window"):
        yield Case("outgrown", (vectors(outgrown(facts, seed), facts, seed),))
