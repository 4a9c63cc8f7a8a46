"""Directed and random stimulus: raw bit patterns of the input types, by the name of a distribution.

numpy only, so that simulations can import it without torch. ``groups(name, kind, count, seed)``
gives uint16 (uint32 for fp32) [count, group]; the same arguments give the same patterns anywhere.
"""

from collections.abc import Callable

import numpy as np

from m2xfp.formats import BlockFormat, InputType, input_type

__all__ = [
    "DISTRIBUTIONS",
    "all_patterns",
    "from_float64",
    "groups",
    "lone_values",
    "near_boundaries",
    "packed_groups",
    "special_lanes",
    "special_magnitudes",
]


def from_float64(x: np.ndarray, kind: InputType) -> np.ndarray:
    """Round finite float64 values to raw patterns of ``kind``, nearest even, saturating."""
    fraction = kind.mantissa_bits
    lowest = 1 - kind.bias
    magnitude = np.abs(x)
    e = np.where(magnitude > 0, np.maximum(np.frexp(magnitude)[1] - 1, lowest), lowest)
    steps = np.rint(np.ldexp(magnitude, fraction - e)).astype(np.int64)
    raw = ((e - lowest).astype(np.int64) << fraction) + steps
    raw = np.minimum(raw, (((1 << kind.exponent_bits) - 1) << fraction) - 1)
    raw |= np.signbit(x).astype(np.int64) << (kind.width - 1)
    return raw.astype(f"uint{kind.width}")


Maker = Callable[[np.random.Generator, InputType, int, int], np.ndarray]


def _floats(draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]) -> Maker:
    def make(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
        return from_float64(draw(rng, (count, group)), kind)

    return make


def _spread(rng: np.random.Generator, kind: InputType, count: int) -> np.ndarray:
    """One power of two a group, over the whole exponent range of the type."""
    low, high = 1 - kind.bias - kind.mantissa_bits, kind.bias
    return np.ldexp(1.0, rng.integers(low, high + 1, (count, 1)))


def _random_bits(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    return rng.integers(0, 1 << kind.width, (count, group), dtype=f"uint{kind.width}")


def _finite_bits(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    """Any finite pattern: exponents uniform over the whole range within one group."""
    sign = rng.integers(0, 2, (count, group)) << (kind.width - 1)
    rest = rng.integers(0, ((1 << kind.exponent_bits) - 1) << kind.mantissa_bits, (count, group))
    return (sign | rest).astype(f"uint{kind.width}")


def _ties(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    """Multiples of 1/16 of a power of two: code boundaries of E2M1 and E2M3, ties and equals."""
    steps = rng.integers(-128, 129, (count, group)) / 16.0
    return from_float64(steps * _spread(rng, kind, count), kind)


def _edges(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    """Code boundaries and the patterns next to them, one step either side."""
    marks = np.array([0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 7.5, 8])
    factors = np.array([0.5, 1, 1.25, 1.5, 1.75, 2, 1 / 8])
    shape = (count, group)
    values = rng.choice(marks, shape) * rng.choice(factors, shape) * _spread(rng, kind, count)
    raw = from_float64(values * rng.choice([-1.0, 1.0], shape), kind)
    near = raw.astype(np.int64) + rng.integers(-1, 2, shape)
    return np.where(near < 0, raw, near).astype(raw.dtype)


def _subnormal(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    """Subnormals and the smallest normals, some groups far below each other."""
    top = rng.integers(1, kind.mantissa_bits + 3, (count, 1))
    raw = rng.integers(0, 1 << kind.mantissa_bits + 2, (count, group)) & ((1 << top) - 1)
    return (raw | rng.integers(0, 2, raw.shape) << (kind.width - 1)).astype(f"uint{kind.width}")


def _huge(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    """Draw from the top binades, largest finite value included."""
    limit = ((1 << kind.exponent_bits) - 1) << kind.mantissa_bits
    raw = limit - 1 - rng.integers(0, 5 << kind.mantissa_bits, (count, group))
    raw[rng.random(raw.shape) < 0.05] = limit - 1
    return (raw | rng.integers(0, 2, raw.shape) << (kind.width - 1)).astype(f"uint{kind.width}")


def _zero(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    """Zeros of both signs."""
    return (rng.integers(0, 2, (count, group)) << (kind.width - 1)).astype(f"uint{kind.width}")


def _equal(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    """All magnitudes of a group equal, signs at random in half of the groups."""
    raw = np.repeat(_finite_bits(rng, kind, count, 1), group, axis=1)
    flips = rng.integers(0, 2, raw.shape) * (rng.random((count, 1)) < 0.5)
    return (raw ^ (flips << (kind.width - 1)).astype(raw.dtype)).astype(raw.dtype)


def _one_hot(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    """One value that is not zero, the others zeros of both signs."""
    raw = _zero(rng, kind, count, group)
    lane = rng.integers(0, group, count)
    raw[np.arange(count), lane] = _finite_bits(rng, kind, count, 1)[:, 0]
    return raw


def _special(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    """NaNs of any payload and infinities in some lanes of three groups out of four."""
    raw = _finite_bits(rng, kind, count, group)
    ones = ((1 << kind.exponent_bits) - 1) << kind.mantissa_bits
    payload = rng.integers(0, 1 << kind.mantissa_bits, raw.shape)
    payload[rng.random(raw.shape) < 0.5] = 0
    sign = rng.integers(0, 2, raw.shape) << (kind.width - 1)
    rate = rng.choice([0.0, 1 / group, 0.2, 1.0], (count, 1))
    chosen = rng.random(raw.shape) < rate
    return np.where(chosen, sign | ones | payload, raw).astype(raw.dtype)


def _wide(rng: np.random.Generator, kind: InputType, count: int, group: int) -> np.ndarray:
    """Draw normal values at a power of two of its own for every group."""
    return from_float64(rng.standard_normal((count, group)) * _spread(rng, kind, count), kind)


def _lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    signs = rng.choice([-1.0, 1.0], shape)
    return np.minimum(rng.lognormal(0.0, 3.0, shape), 6e4) * signs


DISTRIBUTIONS: dict[str, Maker] = {
    "normal": _floats(lambda rng, shape: rng.standard_normal(shape)),
    "laplace": _floats(lambda rng, shape: rng.laplace(size=shape)),
    "heavy": _floats(lambda rng, shape: rng.standard_t(3, shape)),
    "lognormal": _floats(_lognormal),
    "wide": _wide,
    "ties": _ties,
    "edges": _edges,
    "subnormal": _subnormal,
    "huge": _huge,
    "zero": _zero,
    "equal": _equal,
    "one-hot": _one_hot,
    "special": _special,
    "finite-bits": _finite_bits,
    "random-bits": _random_bits,
}


def groups(name: str, kind: str, count: int, seed: int, group: int = 32) -> np.ndarray:
    """Return ``count`` groups of raw patterns of input type ``kind`` from distribution ``name``."""
    index = list(DISTRIBUTIONS).index(name)
    rng = np.random.default_rng([seed, index])
    return DISTRIBUTIONS[name](rng, input_type(kind), count, group)


def all_patterns(kind: str, amax: float, group: int = 32) -> np.ndarray:
    """Return all 65 536 patterns of a 16-bit type in groups that hold ``amax`` in one lane.

    In rising magnitude, both signs side by side, finite patterns apart from infinities and NaNs.
    The lane of ``amax`` rotates, so it comes before and after its equals. Patterns above ``amax``
    are the largest of their groups themselves.
    """
    facts = input_type(kind)
    top = from_float64(np.array([amax]), facts)
    infinity = ((1 << facts.exponent_bits) - 1) << facts.mantissa_bits
    rows = []
    for first, last in ((0, infinity), (infinity, 1 << (facts.width - 1))):
        magnitudes = np.arange(first, last)
        patterns = np.stack([magnitudes, magnitudes | 1 << (facts.width - 1)], -1).ravel()
        patterns = np.pad(patterns, (0, -len(patterns) % (group - 1)), mode="edge")
        rows += list(patterns.reshape(-1, group - 1))
    return np.array([np.insert(row, i % group, top) for i, row in enumerate(rows)]).astype(
        f"uint{facts.width}"
    )


def lone_values(kind: str, amax: float, group: int = 32) -> np.ndarray:
    """Return groups with ``amax`` first and one smaller value in each eight behind the first.

    Each value of eight significant bits down to 2^-9 of ``amax`` comes in turn, and the pattern
    above it, in lanes that rotate, with signs that alternate. So each is the largest of its eight,
    ties of every kind among them. What may round to zero is in the first lane: among equals, that
    is the top element.
    """
    facts, parts = input_type(kind), group // 8 - 1
    steps = np.ldexp(1 + np.arange(128) / 128, -np.arange(10)[:, None]).ravel() * amax
    values = from_float64(steps[steps < amax], facts).astype(np.int64)
    values = np.unique(np.concatenate([values, values + 1]))
    small = values < from_float64(np.array([amax / 8]), facts)[0]
    lanes = np.where(small, 0, np.arange(len(values)) // parts % 8)
    values |= (np.arange(len(values)) & 1) << facts.width - 1
    values, lanes = (
        np.pad(each, (0, -len(each) % parts), mode="edge").reshape(-1, parts)
        for each in (values, lanes)
    )
    raw = np.zeros((len(values), group), np.int64)
    raw[:, 0] = from_float64(np.array([amax]), facts)[0]
    rows = np.arange(len(values))
    for part in range(parts):
        raw[rows, 8 * (part + 1) + lanes[:, part]] = values[:, part]
    return raw.astype(f"uint{facts.width}")


def near_boundaries(
    kind: str, count: int, seed: int, block: BlockFormat, units: np.ndarray | None = None
) -> np.ndarray:
    """Return groups with values on the boundaries of codes, of scales of every significand.

    Positive and negative values of a group have scales of their own. One value of each sign is such
    that amax / 6 is a scale, or the boundary to the next one, and all may be beside that.

    ``units`` are tensor scales, float64 [count]; 1 if None.
    """
    facts, rng, group = input_type(kind), np.random.default_rng([seed, 77]), block.group
    grid = block.scale.grid
    assert grid is not None
    values = np.array([float(grid.magnitude(n)) for n in range(grid.max_code + 1)])
    code = rng.integers(1, grid.max_code, (count, 2))
    unit = np.ones((count, 1)) if units is None else units[:, None]
    scale = values[code] * unit
    between = (values[code] + values[code + 1]) / 2 * unit
    marks = np.concatenate([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6], np.arange(1, 32) / 16])
    marks = np.concatenate([marks, np.arange(9, 32, 2) / 8, np.arange(9, 32, 2) / 4])
    x = rng.choice(marks, (count, group))
    negative = rng.random((count, group)) < 0.5
    x = x * np.where(negative, scale[:, 1:], scale[:, :1])
    rows = np.arange(count)
    largest = 6 * np.where(rng.random((count, 2)) < 0.5, scale, between)
    lanes = rng.permuted(np.tile(np.arange(group), (count, 1)), axis=1)[:, :2]
    for side in range(2):
        x[rows, lanes[:, side]] = largest[:, side]
        negative[rows, lanes[:, side]] = side
    with np.errstate(over="ignore"):
        raw = from_float64(np.where(negative, -x, x), facts).astype(np.int64)
    near = raw + rng.integers(-1, 2, raw.shape)
    near = np.where((near < 0) | (near >> facts.width > 0), raw, near)
    return near.astype(f"uint{facts.width}")


def special_magnitudes(kind: InputType) -> list[int]:
    """Return the magnitudes that a unit may take for others.

    Zero, the smallest and largest subnormal, the smallest normal and largest finite value,
    infinity, a NaN of one bit and one of all.
    """
    fractions = 1 << kind.mantissa_bits
    infinity = ((1 << kind.exponent_bits) - 1) << kind.mantissa_bits
    return [
        *(0, 1, fractions - 1, fractions, infinity - 1),
        *(infinity, infinity + fractions // 2, infinity + fractions - 1),
    ]


def special_lanes(kind: str, seed: int, group: int = 32) -> np.ndarray:
    """Return groups with each of ``special_magnitudes`` of both signs in each lane in turn.

    The other values are finite, in every other group small enough to be smaller.
    """
    facts = input_type(kind)
    special = np.array(special_magnitudes(facts))
    sign = facts.width - 1
    cases = np.concatenate([special, special | 1 << sign]).repeat(group)
    rng = np.random.default_rng(seed)
    rows, lanes = np.arange(len(cases)), np.tile(np.arange(group), 2 * len(special))
    raw = _finite_bits(rng, facts, len(cases), group).astype(np.int64)
    raw[::2] = _subnormal(rng, facts, len(cases), group)[::2]
    raw[rows, lanes] = cases
    return raw.astype(f"uint{facts.width}")


def packed_groups(count: int, seed: int, size: int = 18) -> np.ndarray:
    """Return random bytes, uint8 [count, size]: packed groups that no encoder would emit."""
    return np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)
