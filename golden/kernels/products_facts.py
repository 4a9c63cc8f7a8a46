"""What the fast products need to know of a format: the integers behind its values, and their sizes.

A refined element is an integer times ``2^unit``, a scale a significand times a power of two. Both
integers are small, so a group's sum of products is one too: below 2^24 it is exact in float32 and
on tensor cores that accumulate in float32, whatever the order of its terms.
"""

from dataclasses import dataclass
from functools import cache

from m2xfp.formats import BlockFormat, FloatElement

__all__ = ["NAN_EXPONENT", "Operand", "describe", "limits", "sum_bound"]

NAN_EXPONENT = 16384
"""What CUDA kernels note as the exponent of a group whose scale is NaN: above every other."""

_SCALES = {"e8m0": 0, "e4m3": 1, "e4m3-480": 2}
_METADATA = {"none": 0, "elem-em": 1, "sg-em": 2, "pair": 3}


@dataclass(frozen=True)
class Operand:
    """A format as the kernels take it.

    Members
    -------
    group, subgroup
        Values that share a scale, and a metadata field (8 without metadata).
    bits, mantissa, bias
        The element; a two's-complement one has the mantissa -1 and its fraction bits as bias.
    nan_code
        The magnitude code that is NaN, or -1.
    scale
        0: E8M0; 1: E4M3; 2: E4M3 whose code 127 is 480.
    metadata, metadata_bits
        0 none, 1 Elem-EM, 2 Sg-EM, 3 pair; bits of a field.
    unit
        A refined element is an integer times 2^unit.
    largest, total
        Bounds of such an integer and of the sum of a group of them, by magnitude.
    significand
        Largest significand of a scale.
    width
        Significant bits that element times scale can need.
    """

    group: int
    subgroup: int
    bits: int
    mantissa: int
    bias: int
    nan_code: int
    scale: int
    metadata: int
    metadata_bits: int
    unit: int
    largest: int
    total: int
    significand: int
    width: int

    @property
    def recipe(self) -> tuple[int, ...]:
        """What decodes the planes, as one argument of a kernel."""
        return (
            self.group,
            self.subgroup,
            self.bits,
            self.mantissa,
            self.bias,
            self.nan_code,
            self.scale,
            self.metadata,
            self.metadata_bits,
        )

    @property
    def small_range(self) -> bool:
        """Whether every value fits a normal float16 number, if it has the bits."""
        return self.scale > 0 and self.bits == 4

    def type(self) -> str | None:
        """Return the 16-bit type that holds every element times scale, or None."""
        if self.width <= 8:
            return "bf16"
        return "fp16" if self.width <= 11 and self.small_range else None


def _odd_bits(value: int) -> int:
    return (value // (value & -value)).bit_length() if value else 0


@cache
def describe(block: BlockFormat) -> Operand | None:
    """Return the facts of a format; None if the fast products do not know its parts."""
    element, metadata = block.element, block.metadata
    if block.scaling != "symmetric" or block.scale.name not in _SCALES:
        return None
    if metadata.choice != "lowest":
        return None
    kind = _METADATA[metadata.name]
    subgroup = metadata.subgroup if metadata.bits else 8
    nan_code = -1
    if isinstance(element, FloatElement):
        top = (1 << (element.bits - 1)) - 1
        if element.max_code < top - 1:
            return None  # E5M2 has infinities, and groups whose sum no float64 holds
        if element.max_code < top:
            nan_code = top
        unit = 1 - element.bias - element.mantissa_bits
        values = {int(element.magnitude(c) / 2**unit) for c in range(element.max_code + 1)}
        mantissa, bias = element.mantissa_bits, element.bias
    else:
        unit = -element.fraction_bits
        values = set(range((1 << (element.bits - 1)) + 1))
        mantissa, bias = -1, element.fraction_bits
    plain = max(values)
    if kind == 1:
        # Codes of the element with two more mantissa bits, 4 c - 1 .. 4 c + 2.
        if not isinstance(element, FloatElement) or nan_code >= 0:
            return None
        unit -= 2
        fine = _finer(element)
        values = {int(fine.magnitude(c) / 2**unit) for c in range(4 * element.max_code + 3)}
        total = block.subgroups * (max(values) + (subgroup - 1) * 4 * plain)
    else:
        if kind == 2:
            unit -= 2
            values = {v * m for v in values for m in range(4, 8)}
        elif kind == 3:
            unit -= 1
            values = {v * m for v in values for m in (1, 2)}
        total = block.group * max(values)
    significand = 1 if block.scale.name == "e8m0" else 15
    width = max(_odd_bits(v * m) for v in values for m in range(1, significand + 1))
    return Operand(
        block.group,
        subgroup,
        element.bits,
        mantissa,
        bias,
        nan_code,
        _SCALES[block.scale.name],
        kind,
        max(1, metadata.bits),
        unit,
        max(values),
        total,
        significand,
        width,
    )


def _finer(element: FloatElement) -> FloatElement:
    return FloatElement(
        element.name,
        element.exponent_bits,
        element.mantissa_bits + 2,
        element.bias,
        4 * element.max_code + 3,
    )


def sum_bound(a: Operand, w: Operand, lanes: int) -> int:
    """Bound the sum of products of so many lanes: integers of elements times significands."""
    both = a.significand * w.significand
    if lanes == a.group:
        return both * min(a.total * w.largest, a.largest * w.total)
    return both * lanes * a.largest * w.largest


def limits(a: Operand, w: Operand, lanes: int) -> tuple[int, int, int]:
    """Return between which exponents of values the sums of a group are normal float32 numbers.

    The lowest sum and the highest sum of two values' exponents, and the lowest of either's.
    """
    return -128 + a.width + w.width, 125 - (lanes - 1).bit_length(), -126
