"""Element codecs: scaled values to codes and back, for every element of ``m2xfp.formats``.

One float rounder and one integer rounder serve all elements, from their descriptions. Rounding is
to the nearest, ties to the even code, away from zero or towards zero, saturating at the largest
code.

Sources: OCP Microscaling Formats (MX) v1.0, sections 5.3 and 6; IEEE 754-2019, section 4.3.
"""

import torch
from torch import Tensor

from m2xfp.formats import FloatElement, IntElement
from m2xfp.golden.formats.numeric import ROUNDINGS, exponent, power_of_two

__all__ = ["decode", "decode_magnitude", "encode", "encode_magnitude", "reach"]


def encode_magnitude(y: Tensor, element: FloatElement, ties: str = "even") -> Tensor:
    """Round non-negative float64 values to magnitude codes (int64).

    Parameters
    ----------
    y
        Scaled magnitudes, any shape; infinity saturates.
    element
        The minifloat.
    ties
        ``even``: to the even code; ``away``: to the larger magnitude; ``zero``: to the smaller one.
    """
    y = y.clamp(max=float(element.max_value))
    lowest = 1 - element.bias  # exponent of the smallest normal, and of the subnormals
    e = exponent(y).clamp(min=lowest)
    steps = y * power_of_two(element.mantissa_bits - e)
    rounded = ROUNDINGS[ties](steps)
    # A normal significand holds its hidden bit, so adding the exponent field carries by itself.
    return ((e - lowest) << element.mantissa_bits) + rounded.long()


def decode_magnitude(codes: Tensor, element: FloatElement) -> Tensor:
    """Return the float64 values of magnitude codes; codes above the largest are NaN or infinity.

    Code max_code + 1 is infinity where the element has one (E5M2); all others up there are NaN.
    """
    field = codes >> element.mantissa_bits
    mantissa = codes & ((1 << element.mantissa_bits) - 1)
    significand = mantissa + ((field > 0).long() << element.mantissa_bits)
    scale = power_of_two(field.clamp(min=1) - element.bias - element.mantissa_bits)
    value = significand.double() * scale
    top = (1 << (element.bits - 1)) - 1
    if element.max_code < top:
        first = float("inf") if top - element.max_code > 1 else float("nan")
        value = torch.where(codes == element.max_code + 1, first, value)
        value = torch.where(codes > element.max_code + 1, float("nan"), value)
    return value


def encode(y: Tensor, element: FloatElement | IntElement, ties: str = "even") -> Tensor:
    """Round signed float64 values to codes (int64), saturating.

    A minifloat keeps the sign bit of ``y``, for zeros too. An integer element is two's complement;
    its most negative code is produced only with ``full_range``.
    """
    if isinstance(element, FloatElement):
        negative = torch.signbit(y).long() << (element.bits - 1)
        return encode_magnitude(y.abs(), element, ties) | negative
    limit = float(element.max_code)
    steps = (y * 2.0**element.fraction_bits).clamp(-limit - element.full_range, limit)
    return ROUNDINGS[ties](steps).long() & ((1 << element.bits) - 1)


def decode(codes: Tensor, element: FloatElement | IntElement) -> Tensor:
    """Return the float64 values of codes; a minifloat zero with its sign bit set is -0."""
    if isinstance(element, FloatElement):
        sign = 1.0 - 2.0 * (codes >> (element.bits - 1)).double()
        top = (1 << (element.bits - 1)) - 1
        return decode_magnitude(codes & top, element) * sign
    half = 1 << (element.bits - 1)
    return ((codes ^ half) - half).double() * 2.0**-element.fraction_bits


def reach(element: FloatElement | IntElement, code: int | None = None) -> float:
    """Return half a step more than the value of the largest code, or of ``code``."""
    code = element.max_code if code is None else code
    largest = element.magnitude(code)
    return float(largest + (largest - element.magnitude(code - 1)) / 2)
