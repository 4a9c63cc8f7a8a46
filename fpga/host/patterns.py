"""Random values that make units work: what self-tests and checks of bitstreams send."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import E8M0, BlockFormat, InputType, input_type
from m2xfp.tb.bench import Arrays, Operands

__all__ = ["GROUP", "operands", "patterns", "with_any_codes", "with_any_nan"]

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


def with_any_nan(rng: np.random.Generator, arrays: Arrays, facts: Facts) -> Arrays:
    """Return arrays whose NaN values, ``x`` of the unit's input type, have any sign and payload.

    Rounding to that type gives all of them one pattern, and with it a unit that misses the others
    would pass.
    """
    name = facts.parameters.get("input_type") or facts.parameters.get("activations")
    if "x" not in arrays or name is None:
        return arrays
    return arrays | {"x": _any_nan(rng, arrays["x"], input_type(name))}


def _any_nan(rng: np.random.Generator, raw: NDArray[Any], kind: InputType) -> NDArray[Any]:
    fractions = 1 << kind.mantissa_bits
    infinity = (fractions << kind.exponent_bits) - fractions
    sign = 1 << kind.width - 1
    # A single bit as often as any bits: NaN is an OR over all of them.
    one_bit = 1 << rng.integers(0, kind.mantissa_bits, raw.shape)
    payload = np.where(rng.random(raw.shape) < 0.5, one_bit, rng.integers(1, fractions, raw.shape))
    nan = sign * rng.integers(0, 2, raw.shape) | infinity | payload
    return np.where(raw & (sign - 1) > infinity, nan, raw).astype(raw.dtype)


def with_any_codes(
    rng: np.random.Generator, arrays: Arrays, side: str, block: BlockFormat
) -> Arrays:
    """Return arrays of packed groups, a row a group, half of which have any codes and metadata.

    Quantized values alone would leave most metadata out. Three quarters of the scales are close
    enough for groups to meet in an accumulator.

    Parameters
    ----------
    rng
        Of the choice.
    arrays
        ``codes``, ``scales`` and ``meta`` with ``side`` before their names, and others.
    side
        ``a_``, ``w_``, or nothing.
    block
        The format.
    """
    size = len(arrays[f"{side}scales"])
    anything, near = rng.random(size) < 0.5, rng.random(size) < 0.75
    found = dict(arrays)
    for name in (f"{side}codes", f"{side}meta"):
        if name in found:
            found[name] = found[name].copy()
            found[name][anything] = rng.integers(0, 256, found[name].shape, np.uint8)[anything]
    if block.scale is E8M0:
        scales = found[f"{side}scales"].copy()
        scales[near] = rng.integers(115, 135, scales.shape, np.uint8)[near]
        found[f"{side}scales"] = scales
    return found
