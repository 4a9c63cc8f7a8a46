"""Exact products for the accumulators: random and directed, one function a distribution.

Each returns products and exponents, [count, steps], of ``count`` sums of ``steps`` products. What
the accumulators do depends on the distance between accumulator and addend, and on which bits of
either are set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import window
from m2xfp.rtl.catalog import Instance
from m2xfp.tb.bench import Arrays

__all__ = ["DISTRIBUTIONS", "leaving", "products"]

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Range:
    """What products a unit takes.

    Members
    -------
    bound
        Largest magnitude.
    low, high
        Exponents that it adds exactly; of an accumulation in FP32 all.
    top
        Largest exponent there is.
    one
        Exponent of a product that counts ones.
    """

    bound: int
    low: int
    high: int
    top: int
    one: int

    @classmethod
    def of(cls, facts: Facts) -> "Range":
        """Return the range of a unit."""
        component: Any = Instance.of(facts).component
        pair = component.pair
        top = 2 * 254 if pair.act.scale.name == "e8m0" else (1 << pair.exponent_bits) - 1
        given = facts.parameters.get("window")
        low, high = (window(given).lowest, window(given).highest) if given else (0, top)
        return cls(pair.product_bound, low, high, top, pair.bias)

    def middle(self, bits: int) -> tuple[int, int]:
        """Return the bounds of exponents around which there is room, as far as there is any."""
        low, high = max(self.low, 60) + bits, min(self.high, self.top - 60) - bits
        return (low, high) if low < high else (self.low, self.high)


Maker = Callable[[np.random.Generator, Range, int, int], tuple[Numbers, Numbers]]


def _sized(rng: np.random.Generator, bound: int, shape: tuple[int, ...]) -> Numbers:
    """Return products of all lengths and both signs."""
    size = rng.integers(0, 1 << rng.integers(0, bound.bit_length() + 1, shape))
    return np.minimum(size, bound) * rng.choice([-1, 1], shape)


def walk(rng: np.random.Generator, of: Range, count: int, steps: int) -> tuple[Numbers, Numbers]:
    """Exponents that wander over the whole range, some products at the bound."""
    shape = (count, steps)
    product = _sized(rng, of.bound, shape)
    product[rng.random(shape) < 0.05] = of.bound
    jumps = np.cumsum(rng.integers(-20, 21, shape), axis=1)
    exponent = of.low + (rng.integers(0, of.high - of.low + 1, (count, 1)) + jumps) % (
        of.high - of.low + 1
    )
    return product, np.where(rng.random(shape) < 0.5, exponent, np.roll(exponent, 1, axis=1))


def anything(
    rng: np.random.Generator, of: Range, count: int, steps: int
) -> tuple[Numbers, Numbers]:
    """Exponents without any order, outside a window too, and all that the port takes."""
    shape = (count, steps)
    return _sized(rng, (1 << of.bound.bit_length()) - 1, shape), rng.integers(0, of.top + 1, shape)


def near(rng: np.random.Generator, of: Range, count: int, steps: int) -> tuple[Numbers, Numbers]:
    """Exponents within a few steps of one another, every fourth taking back the one before it."""
    shape = (count, steps)
    product = _sized(rng, of.bound, shape)
    centre = rng.integers(of.low, of.high + 1, (count, 1))
    exponent = np.clip(centre + rng.integers(-9, 10, shape), of.low, of.high)
    back = np.arange(3, steps, 4)
    nudge = rng.integers(-1, 2, (count, len(back))) * (rng.random((count, len(back))) < 0.5)
    product[:, back] = np.clip(nudge - product[:, back - 1], -of.bound, of.bound)
    exponent[:, back] = exponent[:, back - 1]
    return product, exponent


def tiny(rng: np.random.Generator, of: Range, count: int, steps: int) -> tuple[Numbers, Numbers]:
    """Around the smallest FP32 numbers: subnormal sums, and sums that round to zero."""
    shape = (count, steps)
    exponent = of.one - 149 + rng.integers(-25, 40, shape)
    return _sized(rng, of.bound, shape), np.clip(exponent, 0, of.top)


def underflow(
    rng: np.random.Generator, of: Range, count: int, steps: int
) -> tuple[Numbers, Numbers]:
    """Cancel by any number of bits around the smallest normal FP32 number: one side of it or other.

    Products of their largest length come in pairs of one exponent, and then another one of the sums
    that are left.
    """
    shape = (count, len(range(0, steps, 3)))
    bits = of.bound.bit_length() - 1
    first = rng.integers(0, 1 << bits - 1, shape) | 1 << bits - 1
    left = rng.integers(0, 1 << rng.integers(0, bits + 1, shape)) * rng.choice([-1, 1], shape)
    # So that the sum has an FP32 exponent from 1 to 32.
    place = np.clip(of.one - 127 - (bits - 1) + rng.integers(1, 33, shape), of.low, of.high)
    sign = rng.choice([-1, 1], shape)
    product, exponent = np.zeros((count, steps), np.int64), np.zeros((count, steps), np.int64)
    for at, number in enumerate((first, left - first, left)):
        here = product[:, at::3].shape[1]
        product[:, at::3] = np.clip(number * sign, -of.bound, of.bound)[:, :here]
        exponent[:, at::3] = place[:, :here]
    return product, exponent


def huge(rng: np.random.Generator, of: Range, count: int, steps: int) -> tuple[Numbers, Numbers]:
    """Around the largest FP32 numbers: overflow, and differences that stay finite."""
    shape = (count, steps)
    exponent = of.one + 127 - rng.integers(-4, 30, shape)
    return _sized(rng, of.bound, shape), np.clip(exponent, 0, of.top)


def cancellations(
    rng: np.random.Generator, of: Range, count: int, steps: int
) -> tuple[Numbers, Numbers]:
    """Add a product to one at every distance from it, and take it back, over and over.

    What is left of the first tells whether the bits that were shifted out were kept: 2^-23, then
    +1, then -1. Both have few bits, or are at most half a unit of the last place of each other.
    """
    few = np.array(
        [1, 2, 3, 5, of.bound, of.bound - 1, (of.bound + 1) // 2, 1 << 12, (1 << 12) + 1]
    )
    product = np.zeros((count, steps), np.int64)
    exponent = np.zeros((count, steps), np.int64)
    shape = (count, len(range(0, steps, 3)))
    first, second = rng.choice(few, shape), rng.choice(few, shape)
    gap = np.arange(shape[0] * shape[1]).reshape(shape) % 97 - 48
    centre = rng.integers(of.low, of.high + 1, shape)
    for at in range(3):
        here = product[:, at::3].shape[1]
        number = first * rng.choice([-1, 1], shape) if at == 0 else second
        product[:, at::3] = number[:, :here] * (-1 if at == 2 else 1)
        exponent[:, at::3] = np.clip(centre + gap * (at != 0), of.low, of.high)[:, :here]
    return product, exponent


def ties(rng: np.random.Generator, of: Range, count: int, steps: int) -> tuple[Numbers, Numbers]:
    """Add two bits far apart, then one product for which the upper is about half a last place.

    The lower one, wherever it is, decides how the sum is rounded. Every other time it is the
    product that has the two bits.
    """
    shape = (count, len(range(0, steps, 3)))
    bits = of.bound.bit_length() - 1
    top = rng.integers(*of.middle(bits), shape)
    one, most = np.ones(shape, np.int64), 1 << bits - 1
    any_bits = rng.integers(0, most, shape) | most
    two_bits = most | 1 << rng.integers(0, bits - 1, shape)
    # The sum has its upper bit at `top`, and so has a product of `most` at `top` - bits + 1.
    turned, sign = rng.random(shape) < 0.5, rng.choice([-1, 1], (*shape, 3))
    numbers = [one, one, np.where(turned, two_bits, any_bits)]
    apart = np.where(turned, -24, 24) + rng.integers(-2, 3, shape)
    places = [top, top - rng.integers(1, 24, shape), top + apart - (bits - 1)]
    product, exponent = np.zeros((count, steps), np.int64), np.zeros((count, steps), np.int64)
    for at, (number, place) in enumerate(zip(numbers, places, strict=True)):
        here = product[:, at::3].shape[1]
        product[:, at::3] = (number * sign[..., at])[:, :here]
        exponent[:, at::3] = np.clip(place, 0, of.top)[:, :here]
    return product, exponent


def borrows(rng: np.random.Generator, of: Range, count: int, steps: int) -> tuple[Numbers, Numbers]:
    """Take a sum of all bits from a power of two that is larger, or the other way round.

    The difference has a bit less than the larger one, so what the alignment keeps of the smaller
    one below the last place is rounded, and a product that was normalised by a place too few shows.
    """
    shape = (count, len(range(0, steps, 3)))
    bits = of.bound.bit_length() - 1
    top = rng.integers(*of.middle(bits), shape)
    sign, turned = rng.choice([-1, 1], shape), rng.random(shape) < 0.3
    power = rng.integers(0, bits + 1, shape)
    apart = rng.integers(-1, 28, shape)
    upper, lower = (rng.integers(0, 1 << bits, shape) for _ in range(2))
    last = np.where(turned, upper | 1 << bits - 1, 1 << power)
    numbers = [
        np.where(turned, 1 << power, upper | 1 << bits - 1),
        np.where(turned, 0, lower),
        -last,
    ]
    # `top` is where the upper bit of the first one is.
    places = [
        np.where(turned, top - power, top - bits + 1),
        top - bits + 1 - rng.integers(1, 9, shape),
        np.where(turned, top - apart - bits + 1, top + apart - power),
    ]
    product, exponent = np.zeros((count, steps), np.int64), np.zeros((count, steps), np.int64)
    for at, (number, place) in enumerate(zip(numbers, places, strict=True)):
        here = product[:, at::3].shape[1]
        product[:, at::3] = np.minimum(number * sign, of.bound)[:, :here]
        exponent[:, at::3] = np.clip(place, 0, of.top)[:, :here]
    return product, exponent


def far_bits(
    rng: np.random.Generator, of: Range, count: int, steps: int
) -> tuple[Numbers, Numbers]:
    """Add four single bits: an upper one, half a last place, one anywhere below, and the lowest.

    The last two decide how the sum is rounded; of a negative one whose digits are complements they
    clear or set all digits in between.
    """
    shape = (count, len(range(0, steps, 4)))
    low, high = max(of.low, of.one - 100), min(of.high, of.one + 60)
    upper = rng.integers(min(low + 26, high), high + 1, shape)
    below = np.arange(upper.size).reshape(shape) % 72  # every distance in turn
    between = np.maximum(upper - 25 - below, low)
    places = [upper, np.maximum(upper - 24, low), between, np.full(shape, low)]
    sign = rng.choice([-1, 1], shape)
    product, exponent = np.zeros((count, steps), np.int64), np.zeros((count, steps), np.int64)
    for at, place in enumerate(places):
        here = product[:, at::4].shape[1]
        bit = rng.choice([-1, 0, 0, 1, 1], shape) if at > 1 else np.ones(shape, np.int64)
        product[:, at::4] = (bit * sign)[:, :here]
        exponent[:, at::4] = place[:, :here]
    return product, exponent


def growing(rng: np.random.Generator, of: Range, count: int, steps: int) -> tuple[Numbers, Numbers]:
    """Add up the largest products, with small ones between, through all bits above the largest."""
    shape = (count, steps)
    large = rng.random(shape) < 0.9
    sign = np.where(np.arange(count) < count // 2, 1, -1)[:, None]
    product = np.where(large, of.bound, _sized(rng, of.bound, shape)) * sign
    return product, np.where(large, of.high, rng.integers(of.low, of.high + 1, shape))


def beginnings(
    rng: np.random.Generator, of: Range, count: int, steps: int
) -> tuple[Numbers, Numbers]:
    """Products of which some are zero, for sums that begin often and are NaN now and then."""
    product, exponent = near(rng, of, count, steps)
    product[rng.random(product.shape) < 0.3] = 0
    return product, exponent


def leaving(facts: Facts, most: int = 1 << 17) -> Arrays:
    """Return a sum that grows by the largest products until no bit holds it, and a short one.

    No products, if that takes more than ``most``.
    """
    of, room = Range.of(facts), window(facts.parameters["window"])
    count = 3 + (1 << room.bits - 1) // (of.bound << of.high - of.low)
    if count > most:
        count = -4
    short = 4
    return {
        "product": np.full(count + short, of.bound),
        "exponent": np.full(count + short, of.high),
        "nan": np.zeros(count + short, bool),
        "first": np.isin(np.arange(count + short), (0, count)),
    }


# Products from one beginning to the next, where that is what matters.
_PERIODS = {"cancellations": 3, "ties": 3, "borrows": 3, "underflow": 3, "far_bits": 4}

# Shares of NaN, and of products that begin a sum.
_NANS = {"walk": 0.002, "anything": 0.002, "beginnings": 0.2}
_FIRSTS = {"tiny": 0.25, "beginnings": 0.4}

DISTRIBUTIONS: dict[str, Maker] = {
    made.__name__: made
    for made in (
        walk,
        near,
        cancellations,
        ties,
        borrows,
        far_bits,
        growing,
        tiny,
        underflow,
        huge,
        anything,
        beginnings,
    )
}


def products(name: str, facts: Facts, count: int, steps: int, seed: int) -> Arrays:
    """Return ``count`` sums of ``steps`` products, one after the other, as a user's arrays."""
    rng = np.random.default_rng([seed, list(DISTRIBUTIONS).index(name)])
    product, exponent = DISTRIBUTIONS[name](rng, Range.of(facts), count, steps)
    shape = (count, steps)
    nan = rng.random(shape) < _NANS.get(name, 0.0)
    first = rng.random(shape) < _FIRSTS.get(name, 0.02)
    if name in _PERIODS:
        first[:] = np.arange(steps) % _PERIODS[name] == 0
    first[:, 0] = True
    if name == "growing":  # as few sums as all chains need, one half of each sign
        first[:] = False
        first[:: count // 6, 0] = True
    fields = {"product": product, "exponent": exponent, "nan": nan, "first": first}
    return {name: array.reshape(-1) for name, array in fields.items()}
