"""The vocabulary of number formats: elements, scales, metadata and the blocks made of them.

Descriptions only: frozen dataclasses of facts that the golden model and the hardware both read.
Nothing here rounds, encodes or decodes a tensor; that code is written twice, once in PyTorch and once
in gates, so that each can be held against the other. No torch and no Amaranth is imported.

Sources: OCP Microscaling Formats (MX) v1.0; M2XFP, ASPLOS 2026, arXiv 2601.19213; IEEE 754-2019.
"""

from dataclasses import dataclass
from fractions import Fraction

from m2xfp.errors import UnknownNameError

__all__ = [
    "BF16",
    "BLOCK_FORMATS",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "E8M0",
    "FP16",
    "FP32",
    "INPUT_TYPES",
    "INT8",
    "M2XFP_ACT",
    "M2XFP_WEIGHT",
    "MXFP4",
    "NO_METADATA",
    "BlockFormat",
    "FloatElement",
    "InputType",
    "IntElement",
    "Metadata",
    "Scale",
    "block_format",
    "input_type",
]


@dataclass(frozen=True)
class InputType:
    """A binary floating-point type that tensors arrive in (IEEE 754 layout, sign on top).

    Members
    -------
    name
        ``bf16``, ``fp16`` or ``fp32``.
    exponent_bits, mantissa_bits
        Widths of the fields; an exponent field of all ones is infinity or NaN.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int

    @property
    def width(self) -> int:
        """Bits of one value."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """Exponent bias, 2^(exponent_bits - 1) - 1."""
        return (1 << (self.exponent_bits - 1)) - 1


BF16 = InputType("bf16", exponent_bits=8, mantissa_bits=7)
FP16 = InputType("fp16", exponent_bits=5, mantissa_bits=10)
FP32 = InputType("fp32", exponent_bits=8, mantissa_bits=23)

INPUT_TYPES = {kind.name: kind for kind in (BF16, FP16, FP32)}


@dataclass(frozen=True)
class FloatElement:
    """A sign-magnitude minifloat; magnitude codes are monotonic in value.

    Members
    -------
    name
        Name as the OCP specification writes it, in lower case.
    exponent_bits, mantissa_bits, bias
        Layout: value = m * 2^(1 - bias - mantissa_bits) for exponent field 0, else
        (1 + m / 2^mantissa_bits) * 2^(e - bias).
    max_code
        The largest finite magnitude code; codes above it (E4M3, E5M2) are infinity or NaN.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    max_code: int

    @property
    def bits(self) -> int:
        """Bits of one code, sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    def magnitude(self, code: int) -> Fraction:
        """Return the exact value of a finite magnitude code."""
        if not 0 <= code <= self.max_code:
            raise ValueError(f"magnitude code {code} of {self.name}; finite codes: 0..{self.max_code}")
        exponent, mantissa = divmod(code, 1 << self.mantissa_bits)
        significand = mantissa + ((1 << self.mantissa_bits) if exponent else 0)
        return Fraction(significand) * Fraction(2) ** (
            max(exponent, 1) - self.bias - self.mantissa_bits
        )

    @property
    def max_value(self) -> Fraction:
        """The largest finite magnitude (M in the scale rules)."""
        return self.magnitude(self.max_code)

    @property
    def emax(self) -> int:
        """Exponent of the largest power of two that the element holds."""
        return (self.max_code >> self.mantissa_bits) - self.bias


@dataclass(frozen=True)
class IntElement:
    """A symmetric two's-complement element: code * 2^-fraction_bits, most negative code unused.

    Members
    -------
    name
        ``int8``.
    bits
        Bits of one code.
    fraction_bits
        Weight of the least significant bit is 2^-fraction_bits.
    """

    name: str
    bits: int
    fraction_bits: int

    @property
    def max_code(self) -> int:
        """The largest magnitude code."""
        return (1 << (self.bits - 1)) - 1

    def magnitude(self, code: int) -> Fraction:
        """Return the exact value of a magnitude code."""
        if not 0 <= code <= self.max_code:
            raise ValueError(f"magnitude code {code} of {self.name}; codes: 0..{self.max_code}")
        return Fraction(code, 1 << self.fraction_bits)

    @property
    def max_value(self) -> Fraction:
        """The largest magnitude (M in the scale rules)."""
        return self.magnitude(self.max_code)

    @property
    def emax(self) -> int:
        """Exponent of the largest power of two that the element holds."""
        return self.bits - 2 - self.fraction_bits


E2M1 = FloatElement("e2m1", exponent_bits=2, mantissa_bits=1, bias=1, max_code=7)
E2M3 = FloatElement("e2m3", exponent_bits=2, mantissa_bits=3, bias=1, max_code=31)
E3M2 = FloatElement("e3m2", exponent_bits=3, mantissa_bits=2, bias=3, max_code=31)
E4M3 = FloatElement("e4m3", exponent_bits=4, mantissa_bits=3, bias=7, max_code=126)
E5M2 = FloatElement("e5m2", exponent_bits=5, mantissa_bits=2, bias=15, max_code=123)
INT8 = IntElement("int8", bits=8, fraction_bits=6)


@dataclass(frozen=True)
class Scale:
    """The scale that the values of a group share.

    Members
    -------
    name
        ``e8m0``: 2^(byte - 127), byte 0xFF is NaN.
    bits
        Stored bits a group.
    bias
        Exponent bias.
    nan
        The stored pattern of a NaN group.
    """

    name: str
    bits: int
    bias: int
    nan: int


E8M0 = Scale("e8m0", bits=8, bias=127, nan=0xFF)


@dataclass(frozen=True)
class Metadata:
    """Bits beside codes and scale that refine a subgroup.

    Members
    -------
    name
        ``none``; ``elem-em``: extra mantissa bits for the largest element of a subgroup; ``sg-em``:
        extra mantissa bits for the scale of a subgroup.
    bits
        Bits a subgroup.
    subgroup
        Values that share one metadata field.
    """

    name: str
    bits: int = 0
    subgroup: int = 0


NO_METADATA = Metadata("none")


@dataclass(frozen=True)
class BlockFormat:
    """A block format: an element, a shared scale and metadata.

    Members
    -------
    name
        Name as ``golden.get_format`` takes it.
    element
        Element of the codes.
    scale
        Shared scale of a group.
    group
        Values that share one scale.
    metadata
        Refinement, or ``NO_METADATA``.
    """

    name: str
    element: FloatElement | IntElement
    scale: Scale
    group: int
    metadata: Metadata = NO_METADATA

    def __post_init__(self) -> None:
        """Refuse a subgroup that does not divide the group."""
        if self.metadata.bits and self.group % self.metadata.subgroup:
            raise ValueError(
                f"format {self.name}: subgroup {self.metadata.subgroup} does not divide "
                f"the group of {self.group}"
            )

    @property
    def subgroups(self) -> int:
        """Number of metadata fields a group."""
        return self.group // self.metadata.subgroup if self.metadata.bits else 0

    @property
    def group_bits(self) -> int:
        """Stored bits a group."""
        return (
            self.group * self.element.bits
            + self.scale.bits
            + self.subgroups * self.metadata.bits
        )

    @property
    def bits_per_value(self) -> Fraction:
        """Equivalent bits per value (EBW)."""
        return Fraction(self.group_bits, self.group)


MXFP4 = BlockFormat("mxfp4", E2M1, E8M0, 32)
M2XFP_ACT = BlockFormat("m2xfp-act", E2M1, E8M0, 32, Metadata("elem-em", bits=2, subgroup=8))
M2XFP_WEIGHT = BlockFormat("m2xfp-weight", E2M1, E8M0, 32, Metadata("sg-em", bits=2, subgroup=8))

BLOCK_FORMATS = {block.name: block for block in (MXFP4, M2XFP_ACT, M2XFP_WEIGHT)}


def input_type(name: str) -> InputType:
    """Return the input type called ``name``; UnknownNameError lists those that exist."""
    if name not in INPUT_TYPES:
        raise UnknownNameError("input type", name, INPUT_TYPES)
    return INPUT_TYPES[name]


def block_format(name: str) -> BlockFormat:
    """Return the block format called ``name``; UnknownNameError lists those that exist."""
    if name not in BLOCK_FORMATS:
        raise UnknownNameError("format", name, BLOCK_FORMATS)
    return BLOCK_FORMATS[name]
