"""An accumulator as groups that make it: how a dot product goes on in the next request.

A request knows nothing of those before it, so a dot product that is longer than a buffer must bring
its running sum along. The units have no port for one. It comes in as two groups whose products are
exact: a float32 is m * 2^e with m of 24 bits, a group's product can be any 12-bit number times a
power of two, and adding the low half to the high half needs no rounding.
"""

from functools import cache

import numpy as np

from m2xfp.formats import E2M1, M2XFP_ACT

__all__ = ["PAIR_BYTES", "seed_pairs"]

GROUP_BYTES = sum(M2XFP_ACT.group_bytes)
PAIR_BYTES = 2 * GROUP_BYTES
"""An activation group and a weight group."""

# Twice the magnitudes of E2M1, whose products are whole numbers: 0 1 2 3 4 6 8 12.
_DOUBLED = [int(2 * E2M1.magnitude(code)) for code in range(E2M1.max_code + 1)]
_FACTORS = {a * b: (_DOUBLED.index(a), _DOUBLED.index(b)) for a in _DOUBLED for b in _DOUBLED}

_PLAIN_ACTIVATION = 0b01010101
"""Metadata 1 in each subgroup: the top element is its E2M1 value; docs/format.md, section 4."""

_HALF = 12
"""Bits of the number in one group; two of them hold a float32's significand."""


@cache
def _lanes(number: int) -> tuple[tuple[int, int], ...]:
    """Return codes whose products, doubled on both sides, add up to ``number``: largest first.

    31 lanes at most for numbers of 12 bits: 28 times 144, and at most 4 for a rest below 144.
    """
    lanes = []
    while number:
        product = max(value for value in _FACTORS if value <= number)
        lanes.append(_FACTORS[product])
        number -= product
    return tuple(lanes)


def _pair(number: int, negative: bool, exponent: int) -> bytes:
    """Return a pair of groups whose product is ``number`` * 2^``exponent``, exactly.

    With no refinement on either side, D = sum 4 * 4 * (2x)(2w), times 2^(Ex + Ew - 260): so
    Ex + Ew = exponent + 256, which both scales share.
    """
    codes = np.zeros((2, M2XFP_ACT.group), np.uint8)
    for lane, pair in enumerate(_lanes(number)):
        codes[:, lane] = pair
    codes[1] |= negative << 3
    total = exponent + 256
    scales = (total // 2, total - total // 2)
    sides = zip(codes, scales, (_PLAIN_ACTIVATION, 0), strict=True)
    return b"".join(
        (side[0::2] | side[1::2] << 4).tobytes() + bytes([scale, meta])
        for side, scale, meta in sides
    )


def seed_pairs(pattern: int) -> list[bytes]:
    """Return pairs of groups that take an accumulator from +0 to the float32 ``pattern``.

    Two at most, none for +0. A NaN becomes 0x7FC00000, as in every accumulator.
    """
    negative, field, mantissa = bool(pattern >> 31), pattern >> 23 & 0xFF, pattern & 0x7FFFFF
    if field == 0xFF and mantissa:
        nan = bytearray(_pair(0, False, 0))
        nan[GROUP_BYTES - 2] = 0xFF  # the activations' scale
        return [bytes(nan)]
    if field == 0xFF:
        return [_pair(1, negative, 248)]  # overflows
    if pattern == 0x80000000:
        return [_pair(1, True, -256)]  # rounds to -0
    significand = mantissa | (field != 0) << 23
    exponent = max(field, 1) - 150
    high, low = significand >> _HALF, significand & ((1 << _HALF) - 1)
    halves = ((high, exponent + _HALF), (low, exponent))
    return [_pair(number, negative, at) for number, at in halves if number]
