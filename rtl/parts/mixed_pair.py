"""Pairs of formats with wider elements than E2M1, and the exact numbers of their products."""

from dataclasses import dataclass
from typing import ClassVar

from m2xfp.errors import InputError
from m2xfp.formats import E2M1, BlockFormat, FloatElement, IntElement
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.elements import refined_element

__all__ = ["MixedPair", "largest_integer", "largest_shift", "pair_of", "unit_bits"]


def unit_bits(element: FloatElement | IntElement) -> int:
    """Return u: the values of an element are integers times 2^-u; of subnormals, the last place.

    1, 3, 4, 9 and 16 for E2M1, E2M3, E3M2, E4M3 and E5M2, 6 for INT8.
    """
    if isinstance(element, FloatElement):
        return element.bias + element.mantissa_bits - 1
    return element.fraction_bits


def largest_integer(element: FloatElement | IntElement) -> int:
    """Return the largest magnitude of these integers: sig * 2^(max(e, 1) - 1).

    12, 60, 448, 229376 and 3758096384 (4, 6, 9, 18, 32 bits); 128 for INT8, since the most negative
    code, which no encoder gives, is one of its values too.
    """
    if isinstance(element, IntElement):
        return 1 << (element.bits - 1)
    return int(element.max_value * (1 << unit_bits(element)))


def largest_shift(element: FloatElement | IntElement) -> int:
    """Return the largest power of two that goes with a significand: max(e, 1) - 1."""
    if isinstance(element, IntElement):
        return 0
    return (1 << element.exponent_bits) - 2


@dataclass(frozen=True)
class MixedPair(DotPair):
    """Two MX formats, of which one at least has elements other than E2M1; the other may be M2XFP.

    With x and w the integers of ``unit_bits``, D = sum x w, and the value of a group is
    D * 2^(exponent - bias), bias = 254 + u_x + u_w. Bits of a product and of D over 32, signs
    included: E4M3 x E2M1 23, 28; E4M3 x E3M2 28, 33; E4M3 x E4M3 37, 42; E5M2 x E5M2 65, 70. The
    FP32 addition of a D of more bits than FP32's significand has is as wide as D.

    Metadata puts the last bit of D two places lower, ``bias`` + 2:

    - Sg-EM: D = sum (4 + k) P with P = sum x w over a subgroup, at most 7 times as large and so
      three bits longer: E4M3 x M2XFP 31, E5M2 x M2XFP 45, INT8 x M2XFP 20;
    - Elem-EM: lanes multiply codes of E2M3, 8x' <= 56 of a top-1 element and <= 48 of the others,
      where E2M1 has 2x <= 12. 4 (7 * 48 + 56) is 4.1 times 32 * 12: M2XFP x E4M3 30.

    Members
    -------
    act, weight
        Formats of the operands: floating-point elements or INT8, E8M0 scales, the same group;
        E2M1 elements may have metadata of two bits, activations Elem-EM and weights Sg-EM.

    Raises
    ------
    InputError
        If the formats are not such a pair.
    """

    wide: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what the hardware was not made for."""
        for block, metadata in ((self.act, "elem-em"), (self.weight, "sg-em")):
            known = isinstance(block.element, FloatElement) or block.element.bits == 8
            if not known or block.scale.name != "e8m0" or block.scaling != "symmetric":
                raise InputError(
                    f"{block.name}: elements other than E2M1 are multiplied in MX formats: "
                    "floating-point elements or INT8, one E8M0 scale a group"
                )
            kind = (block.element, block.metadata.name, block.metadata.bits)
            if block.metadata.bits and kind != (E2M1, metadata, 2):
                raise InputError(
                    f"{block.name}: metadata {block.metadata.name!r} of {block.metadata.bits} bits "
                    f"beside {block.element.name} elements; the MAC path takes E2M1 elements with "
                    f"{metadata} of two bits here, or none"
                )
        if self.act.group != self.weight.group:
            raise InputError(f"{self.act.name} x {self.weight.name}: both need the same group size")

    @property
    def elements(self) -> tuple[FloatElement | IntElement, FloatElement | IntElement]:
        """Elements that lanes multiply: refined activations are those of two more mantissa bits."""
        return refined_element(self.act) if self.refined else self.act.element, self.weight.element

    @property
    def lane_bound(self) -> int:
        """Largest magnitude of a product; of refined activations, of the top-1 element."""
        act = 56 if self.refined else largest_integer(self.act.element)
        return act * largest_integer(self.weight.element)

    @property
    def part_bound(self) -> int:
        """Largest magnitude of a part's sum."""
        if self.refined:
            return self.lane_bound + (self.part - 1) * 48 * largest_integer(self.weight.element)
        return self.part * self.lane_bound

    @property
    def bias(self) -> int:
        """The value of a group is D * 2^(exponent - bias)."""
        units = sum(unit_bits(element) for element in self.elements)
        return units + 2 * self.multiplied + 254


def pair_of(act: BlockFormat, weight: BlockFormat) -> DotPair:
    """Return two formats as a pair: ``DotPair`` of E2M1 elements, else ``MixedPair``."""
    both = act.element is E2M1 and weight.element is E2M1
    return DotPair(act, weight) if both else MixedPair(act, weight)
