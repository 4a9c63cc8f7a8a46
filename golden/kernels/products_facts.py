"""What the fast products need to know of a format: the integers behind its values, and their sizes.

A refined element is an integer times ``2^unit``, a scale a significand times a power of two. Both
integers are small, so a group's sum of products is one too: below 2^24 it is exact in float32 and
on tensor cores that accumulate in float32, whatever the order of its terms.
"""

from dataclasses import dataclass
from functools import cache

from m2xfp.formats import BlockFormat, FloatElement

__all__ = [
    "NAN_EXPONENT",
    "WORD_BITS",
    "Operand",
    "chunk_of",
    "describe",
    "limb_limits",
    "limits",
    "sum_bound",
]

NAN_EXPONENT = 16384
"""What CUDA kernels note as the exponent of a group whose scale is NaN: above every other."""

WORD_BITS = 18
"""Bits of the three digits of six bits whose products CUDA kernels join in one word."""

_SCALES = {"e8m0": 0, "e4m3": 1, "e4m3-480": 2, "e5m2": 3}
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
        The first magnitude code that is no number, or -1.
    scale
        0: E8M0; 1: E4M3; 2: E4M3 whose code 127 is 480; 3: E5M2.
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
    highest
        Whether Elem-EM refines the highest of equal codes, not the lowest.
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
    highest: bool

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
            self.highest,
        )

    @property
    def limbs(self) -> int:
        """Digits of six bits, of which the last one has up to 7 and a sign, for its integers."""
        count = 1
        while self.largest * self.significand > 127 * 64 ** (count - 1) - (32 if count > 1 else 0):
            count += 1
        return count

    def digits(self) -> list[int]:
        """Return the largest magnitude of each digit."""
        top = 64 ** (self.limbs - 1)
        return [32] * (self.limbs - 1) + [self.largest * self.significand // top + 1]

    @property
    def small_range(self) -> bool:
        """Whether every value fits a normal float16 number, if it has the bits."""
        return self.scale in (1, 2) and self.bits == 4

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
    kind = _METADATA[metadata.name]
    subgroup = metadata.subgroup if metadata.bits else 8
    nan_code = -1
    if isinstance(element, FloatElement):
        top = (1 << (element.bits - 1)) - 1
        if element.max_code < top:
            nan_code = element.max_code + 1
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
    significand = {"e8m0": 1, "e5m2": 7}.get(block.scale.name, 15)
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
        metadata.choice == "highest",
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


def chunk_of(a: Operand, w: Operand, slots: int, words: int | None = None) -> int | None:
    """Return how many of ``slots`` lanes words of 32 bits take, summed at a time; None if none.

    Parameters
    ----------
    a, w
        The operands; their integers are cut into ``limbs``.
    slots
        Lanes of an addend, a multiple of 32.
    words
        Words that a sum is joined in, the last of which has what is left; None for as many as make
        each of three weights.
    """
    sums = [0] * (a.limbs + w.limbs - 1)
    for i, x in enumerate(a.digits()):
        for j, y in enumerate(w.digits()):
            sums[i + j] += x * y
    last = len(sums) if words is None else 3 * words
    found = [sums[at : at + 3] for at in range(0, min(last, len(sums)), 3)]
    found[-1] += sums[last:]
    largest = max(sum(s << 6 * place for place, s in enumerate(word)) for word in found)
    chunks = [size for size in (256, 128, 64, 32) if slots % size == 0]
    return next((size for size in chunks if size <= 64 and size * largest < 1 << 30), None)


def limb_limits(a: Operand, w: Operand, lanes: int, addends: int) -> tuple[int, int, int]:
    """Return what ``limits`` does, for exponents of integers: all sums fit float32's numbers."""
    bits = sum_bound(a, w, lanes).bit_length() + max(1, addends).bit_length()
    return -149, 126 - bits, -1000
