"""Codes of any element in packed groups, for stimulus: ones, largest values, changed signs."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.formats import BlockFormat, FloatElement
from m2xfp.tb.fields import Bytes

__all__ = [
    "largest_code",
    "negated",
    "one_code",
    "packed_codes",
    "unpacked_codes",
    "without_specials",
]

Codes = NDArray[np.int64]


def unpacked_codes(plane: Bytes, block: BlockFormat) -> Codes:
    """Return the codes of planes [..., bytes]: int64 [..., group]."""
    bits = np.unpackbits(plane, axis=-1, bitorder="little")
    each = bits.reshape(*plane.shape[:-1], block.group, block.element.bits).astype(np.int64)
    return (each << np.arange(block.element.bits)).sum(-1)


def packed_codes(codes: Codes, block: BlockFormat) -> Bytes:
    """Invert ``unpacked_codes``; bits beyond an element are cut off."""
    bits = (codes[..., None] >> np.arange(block.element.bits)) & 1
    # The size is written out, since numpy cannot work it out where there are no groups.
    plane = bits.reshape(*codes.shape[:-1], codes.shape[-1] * block.element.bits).astype(np.uint8)
    return np.packbits(plane, axis=-1, bitorder="little")


def negated(codes: Codes, block: BlockFormat) -> Codes:
    """Return the codes of the negative values."""
    if isinstance(block.element, FloatElement):
        return codes ^ (1 << (block.element.bits - 1))
    return -codes


def one_code(block: BlockFormat) -> int:
    """Return the code of 1."""
    element = block.element
    if isinstance(element, FloatElement):
        return element.bias << element.mantissa_bits
    return 1 << element.fraction_bits


def largest_code(block: BlockFormat) -> int:
    """Return the code of the largest value."""
    return block.element.max_code


def without_specials(plane: Bytes, block: BlockFormat) -> Bytes:
    """Return planes in which NaN and infinity have become the largest values below them."""
    element = block.element
    count = (1 << (element.bits - 1)) - 1 - element.max_code
    if not isinstance(element, FloatElement) or not count or element.bits < 8:
        return plane
    return np.where((plane & 0x7F) > element.max_code, plane & (0xFF ^ count), plane).astype(
        np.uint8
    )
