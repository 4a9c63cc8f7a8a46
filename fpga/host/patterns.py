"""Random values that make units work: what self-tests and checks of bitstreams send."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.tb.bench import Operands

__all__ = ["GROUP", "operands", "patterns"]

GROUP = 32
"""Values of a row of operands."""


def patterns(rng: np.random.Generator, groups: int) -> NDArray[np.uint16]:
    """Return bfloat16 patterns that make a quantizer work, [groups, 32].

    Of twelve groups, six have exponents close together, three of them with values on and beside the
    ties between codes; the others: any exponents, subnormals, the largest exponents with one NaN or
    infinity, zeros of both signs, and two of uniform bit patterns, which mostly give zero codes
    beside one large value.
    """
    shape = (groups, GROUP)
    kind = rng.integers(0, 12, (groups, 1))
    sign = rng.integers(0, 2, shape)
    fraction = rng.integers(0, 128, shape)
    ties = rng.choice([0, 31, 32, 33, 63, 64, 65, 95, 96, 97, 112, 127], shape)
    exponent = rng.integers(1, 250, (groups, 1)) + rng.integers(-6, 1, shape)
    spread = rng.integers(0, 255, shape)
    tiny = rng.integers(0, 4, shape)
    huge = np.where(np.arange(GROUP) == rng.integers(0, GROUP, (groups, 1)), 255, 250 + tiny)
    anything = rng.integers(0, 256, shape)
    exponent = np.select(
        [kind < 6, kind == 6, kind == 7, kind == 8, kind > 9],
        [exponent, spread, tiny, huge, anything],
    )
    fraction = np.select(
        [kind < 3, kind < 6, kind == 8, kind == 9],
        [fraction, ties, fraction * rng.integers(0, 2, shape), 0],
        fraction,
    )
    return (sign << 15 | np.clip(exponent, 0, 255) << 7 | fraction).astype(np.uint16)


def operands(rng: np.random.Generator, groups: int) -> Operands:
    """Return activations and weights with these patterns, a group a lane."""
    from m2xfp.golden.bits import from_bits

    acts, weights = (from_bits("bf16", patterns(rng, groups)).float() for _ in range(2))
    return Operands(groups, 1, acts, weights)
