"""The vocabulary of number formats: elements, scales, metadata and the blocks made of them.

Descriptions only: frozen dataclasses of facts that the golden model and the hardware both read.
Nothing here rounds, encodes or decodes a tensor; that code is written twice, once in PyTorch and
once in gates, so that each can be held against the other. No torch and no Amaranth is imported.

Sources: OCP Microscaling Formats (MX) v1.0; M2XFP, ASPLOS 2026, arXiv 2601.19213; IEEE 754-2019.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from m2xfp.errors import InputError, UnknownNameError

__all__ = [
    "ALL_EXPONENTS",
    "AMXFP4",
    "BF16",
    "BLOCK_FORMATS",
    "CANDIDATES",
    "CHOICES",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E4M3_SCALE",
    "E4M3_WIDE_SCALE",
    "E5M2",
    "E5M2_SCALE",
    "E8M0",
    "FP16",
    "FP32",
    "FP32_SCALE",
    "GROUP_SIZES",
    "INPUT_TYPES",
    "INT4",
    "INT4_ASYM",
    "INT4_SYM",
    "INT8",
    "M2NVFP4_ACT",
    "M2NVFP4_WEIGHT",
    "M2XFP_ACT",
    "M2XFP_WEIGHT",
    "MODE_SCALES",
    "MXFP4",
    "MXFP6_E2M3",
    "MXFP6_E3M2",
    "MXFP8_E4M3",
    "MXFP8_E5M2",
    "MXINT8",
    "NO_METADATA",
    "NVFP4",
    "QUOTIENTS",
    "SCALE_MODES",
    "SCALE_RULES",
    "SM3",
    "SMX4",
    "TIES",
    "USUAL_EXPONENTS",
    "WINDOWS",
    "BlockFormat",
    "FloatElement",
    "InputType",
    "IntElement",
    "Metadata",
    "Scale",
    "Window",
    "block_format",
    "input_type",
    "window",
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
            raise ValueError(
                f"magnitude code {code} of {self.name}; finite codes: 0..{self.max_code}"
            )
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
        if not self.exponent_bits:
            return self.max_code.bit_length() - self.bias - self.mantissa_bits
        return (self.max_code >> self.mantissa_bits) - self.bias

    @property
    def fraction_bits_at_top(self) -> int:
        """Fraction bits of the significand in the binade of 2^emax."""
        if not self.exponent_bits:
            return self.max_code.bit_length() - 1
        return self.mantissa_bits


@dataclass(frozen=True)
class IntElement:
    """A two's-complement element: code * 2^-fraction_bits.

    Members
    -------
    name
        ``int8`` or ``int4``.
    bits
        Bits of one code.
    fraction_bits
        Weight of the least significant bit is 2^-fraction_bits.
    full_range
        Whether the most negative code is used too; else the element is symmetric.
    """

    name: str
    bits: int
    fraction_bits: int
    full_range: bool = False

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

    @property
    def fraction_bits_at_top(self) -> int:
        """Fraction bits of the significand in the binade of 2^emax."""
        return self.bits - 2


E2M1 = FloatElement("e2m1", exponent_bits=2, mantissa_bits=1, bias=1, max_code=7)
E2M3 = FloatElement("e2m3", exponent_bits=2, mantissa_bits=3, bias=1, max_code=31)
E3M2 = FloatElement("e3m2", exponent_bits=3, mantissa_bits=2, bias=3, max_code=31)
E4M3 = FloatElement("e4m3", exponent_bits=4, mantissa_bits=3, bias=7, max_code=126)
E5M2 = FloatElement("e5m2", exponent_bits=5, mantissa_bits=2, bias=15, max_code=123)
INT8 = IntElement("int8", bits=8, fraction_bits=6)
INT4 = IntElement("int4", bits=4, fraction_bits=2)
# A sign and a magnitude of two bits, 0 0.5 1 1.5: no exponent field, so every code is "subnormal".
SM3 = FloatElement("sm3", exponent_bits=0, mantissa_bits=2, bias=0, max_code=3)


@dataclass(frozen=True)
class Scale:
    """The scale that the values of a group share.

    Members
    -------
    name
        ``e8m0``: 2^(byte - 127), byte 0xFF is NaN. ``e4m3``, ``e4m3-480``, ``e5m2``, ``fp32``: the
        non-negative values of ``grid``, its sign bit unused.
    bits
        Stored bits of one scale.
    bias
        Exponent bias.
    nan
        The stored pattern of a NaN group.
    grid
        The minifloat that holds the scale; None for E8M0, which has no mantissa and no zero.
    """

    name: str
    bits: int
    bias: int
    nan: int
    grid: FloatElement | None = None


E8M0 = Scale("e8m0", bits=8, bias=127, nan=0xFF)
E4M3_SCALE = Scale("e4m3", bits=8, bias=7, nan=0x7F, grid=E4M3)
# MX-QLLM uses code 127 as 480, so NaN takes the pattern with the otherwise unused sign bit.
E4M3_WIDE_SCALE = Scale(
    "e4m3-480",
    bits=8,
    bias=7,
    nan=0xFF,
    grid=FloatElement("e4m3-480", exponent_bits=4, mantissa_bits=3, bias=7, max_code=127),
)
E5M2_SCALE = Scale("e5m2", bits=8, bias=15, nan=0x7F, grid=E5M2)
FP32_SCALE = Scale(
    "fp32",
    bits=32,
    bias=127,
    nan=0x7FC00000,
    grid=FloatElement("fp32", exponent_bits=8, mantissa_bits=23, bias=127, max_code=0x7F7FFFFF),
)

GROUP_SIZES = (8, 16, 32, 64, 128, 256)
"""Values that a group can have."""

MODE_SCALES = {
    "pot": E8M0,
    "pot-r": E8M0,
    "float": FP32_SCALE,
    "e4m3": E4M3_WIDE_SCALE,
    "e5m2": E5M2_SCALE,
}
"""The scale that each of MX-QLLM's scale modes has."""

SCALE_RULES = ("floor", "ceil", "rtn1", "rtn2", "even", "rtne", "even-e2m1")
SCALE_MODES = tuple(MODE_SCALES)
TIES = ("even", "away", "zero")
CHOICES = ("lowest", "highest")
CANDIDATES = ("steps", "octaves")
QUOTIENTS = ("exact", "reciprocal")


@dataclass(frozen=True)
class Metadata:
    """Bits beside codes and scale that refine a subgroup.

    Members
    -------
    name
        ``none``; ``elem-em``: extra mantissa bits for the largest element of a subgroup; ``sg-em``:
        extra mantissa bits for the scale of a subgroup; ``pair``: one bit that halves the scale
        of a subgroup.
    bits
        Bits a subgroup.
    subgroup
        Values that share one metadata field.
    choice
        ``elem-em``: which of equally large codes is refined, the one of the ``lowest`` or of the
        ``highest`` index.
    """

    name: str
    bits: int = 0
    subgroup: int = 0
    choice: str = "lowest"


NO_METADATA = Metadata("none")


@dataclass(frozen=True)
class BlockFormat:
    """A block format: an element, a shared scale and metadata.

    Members
    -------
    name
        Name as ``golden.get_format`` takes it, with ``:option=value`` for another layout.
    element
        Element of the codes.
    scale
        Shared scale of a group.
    group
        Values that share one scale.
    metadata
        Refinement, or ``NO_METADATA``.
    scaling
        ``symmetric``: one scale a group; ``split``: one for positive values, then one for the
        others; ``affine``: a scale, then a zero point of 64 bits (float64).
    ties
        How ties round: ``even``, ``away`` from zero or towards ``zero``.
    """

    name: str
    element: FloatElement | IntElement
    scale: Scale
    group: int
    metadata: Metadata = NO_METADATA
    scaling: str = "symmetric"
    ties: str = "even"

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
    def scale_bits(self) -> int:
        """Stored scale bits a group."""
        return {
            "symmetric": self.scale.bits,
            "split": 2 * self.scale.bits,
            "affine": self.scale.bits + 64,
        }[self.scaling]

    @property
    def group_bits(self) -> int:
        """Information bits a group (planes round each field up to whole bytes)."""
        return (
            self.group * self.element.bits + self.scale_bits + self.subgroups * self.metadata.bits
        )

    @property
    def group_bytes(self) -> tuple[int, int, int]:
        """Bytes of codes, of scales and of metadata that the planes hold a group."""
        return (
            self.group * self.element.bits // 8,
            self.scale_bits // 8,
            -(-self.subgroups * self.metadata.bits // 8),
        )

    @property
    def bits_per_value(self) -> Fraction:
        """Equivalent bits per value (EBW)."""
        return Fraction(self.group_bits, self.group)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that ``golden.get_format`` takes for this format."""
        names = ["group", "ties"]
        if self.scale.name == "e8m0":
            names.append("scale_rule")
        if self.scale.name == "e4m3":
            names += ["tensor_scale", "scale_floor"]
            if self.metadata.name != "sg-em":
                names.append("quotient")
        elif self.scaling != "affine" and self.metadata.name in ("none", "elem-em"):
            names.append("scale_mode")
        if self.metadata.name in ("elem-em", "sg-em"):
            names.append("subgroup")
        if self.metadata.name == "elem-em":
            names.append("choice")
        if self.metadata.name == "sg-em":
            names.append("adaptive")
            names += ["search", "fraction_bits"] if self.scale.name == "e8m0" else ["candidates"]
        if isinstance(self.element, IntElement) and self.scaling != "affine":
            names.append("full_range")
        return tuple(sorted(names))


def _elem_em(subgroup: int) -> Metadata:
    return Metadata("elem-em", bits=2, subgroup=subgroup)


def _sg_em(subgroup: int) -> Metadata:
    return Metadata("sg-em", bits=2, subgroup=subgroup)


MXFP4 = BlockFormat("mxfp4", E2M1, E8M0, 32)
MXFP6_E2M3 = BlockFormat("mxfp6-e2m3", E2M3, E8M0, 32)
MXFP6_E3M2 = BlockFormat("mxfp6-e3m2", E3M2, E8M0, 32)
MXFP8_E4M3 = BlockFormat("mxfp8-e4m3", E4M3, E8M0, 32)
MXFP8_E5M2 = BlockFormat("mxfp8-e5m2", E5M2, E8M0, 32)
MXINT8 = BlockFormat("mxint8", INT8, E8M0, 32)
NVFP4 = BlockFormat("nvfp4", E2M1, E4M3_SCALE, 16)
M2NVFP4_ACT = BlockFormat("m2nvfp4-act", E2M1, E4M3_SCALE, 16, _elem_em(4))
M2NVFP4_WEIGHT = BlockFormat("m2nvfp4-weight", E2M1, E4M3_SCALE, 16, _sg_em(4))
M2XFP_ACT = BlockFormat("m2xfp-act", E2M1, E8M0, 32, _elem_em(8))
M2XFP_WEIGHT = BlockFormat("m2xfp-weight", E2M1, E8M0, 32, _sg_em(8))
SMX4 = BlockFormat("smx4", SM3, E8M0, 16, Metadata("pair", bits=1, subgroup=2))
AMXFP4 = BlockFormat("amxfp4", E2M1, E5M2_SCALE, 32, scaling="split", ties="away")
INT4_SYM = BlockFormat("int4", INT4, E8M0, 32, ties="away")
INT4_ASYM = BlockFormat("int4-asym", INT4, FP32_SCALE, 32, scaling="affine", ties="away")

BLOCK_FORMATS = {
    block.name: block
    for block in (
        MXFP4,
        MXFP6_E2M3,
        MXFP6_E3M2,
        MXFP8_E4M3,
        MXFP8_E5M2,
        MXINT8,
        M2XFP_ACT,
        M2XFP_WEIGHT,
        NVFP4,
        M2NVFP4_ACT,
        M2NVFP4_WEIGHT,
        SMX4,
        AMXFP4,
        INT4_SYM,
        INT4_ASYM,
    )
}


@dataclass(frozen=True)
class Window:
    """What a fixed-point accumulator of group products has room for.

    A group's product is D * 2^(Ex + Ew - 254) in units of its format. The accumulator holds
    integers of ``bits`` bits in two's complement, whose last bit is that of a product with
    Ex + Ew = ``lowest``. Its rules are in docs/format.md, section 7.

    Members
    -------
    name
        For messages and for the description of a unit.
    lowest, highest
        Sums Ex + Ew of two E8M0 bytes, 0..508, that it takes.
    bits
        Bits of the sum. What they have beyond the widest product at ``highest`` is room to grow.

    Raises
    ------
    InputError
        If the exponents are none, or the bits do not even cover them.
    """

    name: str
    lowest: int
    highest: int
    bits: int

    def __post_init__(self) -> None:
        """Refuse what is no window."""
        if not 0 <= self.lowest <= self.highest <= 2 * 254:
            raise InputError(
                f"window {self.lowest}..{self.highest}: sums of two E8M0 bytes are 0..508, the "
                "lowest first"
            )
        if self.bits <= self.highest - self.lowest + 1:
            raise InputError(
                f"window {self.lowest}..{self.highest}: {self.bits} bits do not hold a sign and "
                f"one bit at each of its exponents; give more than "
                f"{self.highest - self.lowest + 1}"
            )


# M2XFP: 508 + 19 bits hold any one group, the other 21 the sum of 2^21 of the largest.
ALL_EXPONENTS = Window("all", 0, 508, 548)
# Scales whose product is 2^-46..2^17: those of language models, with room on both sides. 63 + 19
# bits hold any one M2XFP group, the other 14 the sum of 2^14 of the largest.
USUAL_EXPONENTS = Window("usual", 208, 271, 96)
WINDOWS = {window.name: window for window in (ALL_EXPONENTS, USUAL_EXPONENTS)}


def window(name: str) -> Window:
    """Return a window by its name, or from ``LOWEST..HIGHEST/BITS``.

    Raises
    ------
    UnknownNameError
        A text of neither kind; the message lists the names.
    InputError
        Numbers that make no window.
    """
    if name in WINDOWS:
        return WINDOWS[name]
    if found := re.fullmatch(r"(\d{1,4})\.\.(\d{1,4})/(\d{1,5})", name):
        return Window(name, *map(int, found.groups()))
    raise UnknownNameError("window", name, [*WINDOWS, "LOWEST..HIGHEST/BITS"])


def input_type(name: str) -> InputType:
    """Return the input type called ``name``; UnknownNameError lists those that exist."""
    if name not in INPUT_TYPES:
        raise UnknownNameError("input type", name, INPUT_TYPES)
    return INPUT_TYPES[name]


def block_format(text: str) -> BlockFormat:
    """Return a block format by its name, or by ``NAME:group=N,subgroup=N`` with another layout.

    Of AMXFP4 and MXFP4 ``scale_mode``, what the scales are, is part of it too. The result is called
    by the text, in this order of options and without those that change nothing, so a name says all
    about a format.

    Raises
    ------
    UnknownNameError
        No such format.
    InputError
        An option that is not one of these two, or a value that the format cannot have.
    """
    name, colon, rest = text.partition(":")
    if name not in BLOCK_FORMATS:
        raise UnknownNameError("format", name, BLOCK_FORMATS)
    block = BLOCK_FORMATS[name]
    given: dict[str, int] = {}
    mode = ""
    for part in rest.split(",") if colon else ():
        option, _, value = part.partition("=")
        known = ("group", "subgroup")[: 2 if block.metadata.bits else 1]
        if option == "scale_mode" and block in (AMXFP4, MXFP4):
            if value not in ("pot", "e4m3", "e5m2"):
                raise InputError(
                    f"format {text!r}: scale_mode={value}; give pot, e4m3 or e5m2. Hardware has "
                    "scales of 8 bits; those of FP32 the golden model multiplies"
                )
            mode = value
            continue
        if option not in known or not re.fullmatch(r"[1-9][0-9]{0,5}", value):
            raise InputError(
                f"format {text!r}: {part!r}; {name} takes {' and '.join(known)} here, as OPTION=N"
            )
        given[option] = int(value)
    group = given.get("group", block.group)
    subgroup = given.get("subgroup", block.metadata.subgroup)
    if group not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise InputError(f"format {text!r}: group={group}; a group has one of: {sizes}")
    if block.metadata.bits and (group % subgroup or subgroup & (subgroup - 1)):
        raise InputError(
            f"format {text!r}: subgroup={subgroup}; must be a power of two that divides the group "
            f"of {group}"
        )
    changed: dict[str, int | str] = {
        option: value
        for option, value, usual in (
            ("group", group, block.group),
            ("subgroup", subgroup, block.metadata.subgroup),
        )
        if value != usual
    }
    scale = MODE_SCALES[mode] if mode else block.scale
    if scale is not block.scale:
        changed["scale_mode"] = mode
    if not changed:
        return block
    return replace(
        block,
        name=f"{name}:" + ",".join(f"{option}={value}" for option, value in changed.items()),
        group=group,
        scale=scale,
        metadata=replace(block.metadata, subgroup=subgroup) if block.metadata.bits else NO_METADATA,
    )
