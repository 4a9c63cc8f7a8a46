"""The floating-point elements of block formats, as the hardware asks for them."""

from m2xfp.errors import InputError
from m2xfp.formats import E2M3, M2XFP_ACT, BlockFormat, FloatElement, IntElement

__all__ = ["float_element", "magnitude_element", "refined_element"]


def float_element(block: BlockFormat) -> FloatElement:
    """Return the element of ``block``; InputError if it is no floating-point one."""
    if not isinstance(block.element, FloatElement):
        raise InputError(f"format {block.name}: the element must be a floating-point one")
    return block.element


def magnitude_element(block: BlockFormat) -> FloatElement:
    """Return the element, or of an integer one the minifloat without exponent of its magnitudes."""
    element = block.element
    if not isinstance(element, IntElement):
        return element
    # A minifloat without exponent field is code * 2^(1 - bias - mantissa bits).
    bits = element.bits - 1
    bias = 1 + element.fraction_bits - bits
    return FloatElement(f"{element.name} magnitude", 0, bits, bias, element.max_code)


def refined_element(block: BlockFormat) -> FloatElement:
    """Return the element with the metadata's extra mantissa bits (E2M3 for E2M1 and two bits)."""
    base = magnitude_element(block)
    if block.metadata.name not in ("elem-em", "sg-em"):
        return base
    extra = block.metadata.bits
    return FloatElement(
        f"{base.name}+{extra}",
        base.exponent_bits,
        base.mantissa_bits + extra,
        base.bias,
        ((base.max_code + 1) << extra) - 1,
    )


assert refined_element(M2XFP_ACT).magnitude(31) == E2M3.max_value
