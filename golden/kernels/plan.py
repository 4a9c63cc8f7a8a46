"""What a fused path computes, as plain numbers: one description serves Triton and C++.

``plan_of(format)`` turns a format into the constants that both kernel sources are specialised by.
Nothing in them knows a format's name.
"""

from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache
from math import ceil, floor, isqrt
from typing import TYPE_CHECKING

from m2xfp.formats import FloatElement, IntElement
from m2xfp.golden.formats.coder import AffineCoder
from m2xfp.golden.formats.metadata import ElementMantissa, SubgroupScale
from m2xfp.golden.formats.scales import MinifloatScale, PowerOfTwoScale

if TYPE_CHECKING:
    from m2xfp.golden.formats.format import Format

__all__ = ["METADATA", "Grid", "Plan", "plan_of", "unserved"]

METADATA = {"none": 0, "elem-em": 1, "sg-em": 2, "pair": 3}
_SINGLE = 23  # fraction bits of float32


@dataclass(frozen=True)
class Grid:
    """The non-negative numbers that an element or a scale can be.

    Members
    -------
    bits
        Bits of a code, sign included.
    integer
        Codes are two's complement; else sign and magnitude.
    fixed
        All steps are equal; else they double from binade to binade.
    mantissa, bias
        Fields as in FloatElement; an integer has its fraction bits and bias 0.
    max_code, largest
        The largest finite magnitude: its code, its value.
    specials
        Codes above: 0 there are none, 1 NaN, 2 one infinity and then NaN.
    least
        The power of two at and below which steps no longer shrink.
    ratio
        1.5 * 2^23 steps over that power: y + ratio * power is a float32 whose last bit weighs one
        step, so that the adder rounds, to nearest, ties to even.
    """

    bits: int
    integer: bool
    fixed: bool
    mantissa: int
    bias: int
    max_code: int
    largest: float
    specials: int
    least: float
    ratio: float


@dataclass(frozen=True)
class Plan:
    """One composition of element, scale and metadata.

    Members
    -------
    element, fine
        The element, and the one with two more mantissa bits that Elem-EM refines into.
    scale
        The minifloat of the shared scale; a grid of 0 bits for E8M0.
    scale_bytes, nan, zero_is_one
        Bytes of one stored scale, its NaN pattern, and whether a scale of zero becomes 1.
    emax, up, down
        The E8M0 rule: with amax = sig * 2^(f - 23), sig a whole number of 24 bits, the byte is
        f - emax + 127, one more if sig > up, one less if sig < down.
    group, subgroup, subgroups, metadata, metadata_bits
        Layout; ``metadata`` numbers METADATA. Without metadata the group is one subgroup.
    away, split, affine, two_level, adaptive
        As the format has them.
    view
        Fraction bits of the fixed-point weight search, 0 for the exact one.
    significant
        Bits of element times scale, below the tensor scale.
    lowest
        Exponent of the last bit of the smallest such product.
    """

    element: Grid
    fine: Grid
    scale: Grid
    scale_bytes: int
    nan: int
    zero_is_one: bool
    emax: int
    up: int
    down: int
    group: int
    subgroup: int
    subgroups: int
    metadata: int
    metadata_bits: int
    away: bool
    split: bool
    affine: bool
    two_level: bool
    adaptive: bool
    view: int
    significant: int
    lowest: int

    @property
    def e8m0(self) -> bool:
        """Whether scales are powers of two."""
        return not self.scale.bits

    @property
    def wide_scale(self) -> bool:
        """Whether scales are float32."""
        return self.scale.mantissa == _SINGLE

    @property
    def limit(self) -> float:
        """Quotients above this round like this."""
        return max(self.element.largest, self.fine.largest)

    @property
    def finite(self) -> bool:
        """Whether a NaN can come from the scale of a group alone, for all its values."""
        level = self.two_level or self.split or self.scale.specials == 2
        return not (level or self.element.specials)

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of a group."""
        return self.group * self.element.bits // 8

    @property
    def meta_bytes(self) -> int:
        """Bytes of the metadata of a group."""
        return -(-self.subgroups * self.metadata_bits // 8)

    def exact_in(self, mantissa: int, lowest: int) -> bool:
        """Whether every value is a number of ``mantissa`` fraction bits and that least exponent."""
        one_level = not (self.two_level or self.wide_scale)
        return one_level and self.significant <= mantissa + 1 and self.lowest >= lowest

    def numbers(self) -> list[float]:
        """Return all facts as float64 in the order of their declaration, grids spread out."""
        found: list[float] = []
        for field in fields(self):
            value = getattr(self, field.name)
            parts = [value] if not isinstance(value, Grid) else vars(value).values()
            found += [float(part) for part in parts]
        return found


_NO_GRID = Grid(0, False, True, 0, 0, 0, 0.0, 0, 0.0, 0.0)


def _grid(element: FloatElement | IntElement) -> Grid:
    if isinstance(element, IntElement):
        step = 2.0**-element.fraction_bits
        return Grid(
            element.bits,
            True,
            True,
            element.fraction_bits,
            0,
            element.max_code,
            float(element.max_value),
            0,
            step,
            1.5 * 2.0**_SINGLE,
        )
    top = (1 << (element.bits - 1)) - 1
    return Grid(
        element.bits,
        False,
        not element.exponent_bits,
        element.mantissa_bits,
        element.bias,
        element.max_code,
        float(element.max_value),
        min(2, top - element.max_code),
        2.0 ** (1 - element.bias - (0 if element.exponent_bits else element.mantissa_bits)),
        1.5 * 2.0 ** (_SINGLE - (element.mantissa_bits if element.exponent_bits else 0)),
    )


def _rule(scale: PowerOfTwoScale) -> tuple[int, int]:
    """Return ``up`` and ``down``: the decisions of a rule as comparisons of whole numbers."""
    one = 1 << _SINGLE
    top = scale.element.max_value / Fraction(2) ** scale.element.emax
    if scale.rule == "ceil":
        return floor(top * one), 0
    if scale.rule == "rtn1":
        above, below = 2 * top * top * one * one, top * top * one * one / 2
        return isqrt(floor(above)), isqrt(ceil(below) - 1) + 1
    if scale.rule == "rtn2":
        return isqrt(2 * one * one), 0
    if scale.rule in ("even", "even-e2m1"):
        return 2 * one - (one >> (scale.precision + 1)) - 1, 0
    return 2 * one, 0


def _last_bit(grid: Grid) -> int:
    """Return the exponent of the smallest step of a grid."""
    return -grid.mantissa if grid.integer else 1 - grid.bias - grid.mantissa


def unserved(fmt: "Format") -> str | None:
    """Return what of a format the fused paths do not compute, in words, or None."""
    if fmt.level == "token":
        return f"the fused paths take one tensor scale, {fmt.name} has one for each row"
    block, coder = fmt.block, fmt.coder
    scale, refinement = (
        (None, None) if isinstance(coder, AffineCoder) else (coder.scale, coder.refinement)
    )
    if isinstance(scale, PowerOfTwoScale) and scale.zero:  # MicroMix's segments
        return (
            f"the fused paths give a group of zeros the scale byte 0, this {fmt.name} {scale.zero}"
        )
    for what, served in (
        ("ties=zero", block.ties != "zero"),
        ("choice=highest", block.metadata.choice == "lowest"),
        ("full_range", not (isinstance(block.element, IntElement) and block.element.full_range)),
        ("scale_floor", not (isinstance(scale, MinifloatScale) and scale.least)),
        ("quotient=reciprocal", getattr(scale, "quotient", "exact") == "exact"),
        ("candidates=octaves", not getattr(refinement, "octaves", False)),
    ):
        if not served:
            return f"the fused paths do not compute {what}, as {fmt.name} has it here"
    return None


@cache
def plan_of(fmt: "Format") -> Plan:
    """Return the constants of a format."""
    block, coder = fmt.block, fmt.coder
    element = _grid(block.element)
    fine, scale = _NO_GRID, _NO_GRID
    up = down = view = 0
    zero_is_one = adaptive = False
    extra, lower = 0, 0  # bits that metadata adds to an element, and how far they reach below it
    if isinstance(coder, AffineCoder):
        nan = block.scale.nan
    else:
        nan = coder.scale.nan
        if isinstance(coder.scale, MinifloatScale):
            scale, zero_is_one = _grid(coder.scale.grid), coder.scale.zero_is_one
        else:
            up, down = _rule(coder.scale)
        if isinstance(coder.refinement, ElementMantissa):
            fine, extra, lower = _grid(coder.refinement.fine), 2, 2
        elif isinstance(coder.refinement, SubgroupScale):
            adaptive, extra, lower = coder.refinement.adaptive, 3, 2
            if coder.refinement.search == "fixed" and coder.refinement.fraction_bits is not None:
                view = coder.refinement.fraction_bits
        elif block.metadata.name == "pair":
            lower = 1
    significand = element.bits - 1 if element.fixed else element.mantissa + 1
    return Plan(
        element,
        fine,
        scale,
        block.scale.bits // 8,
        nan,
        zero_is_one,
        block.element.emax,
        up,
        down,
        block.group,
        block.metadata.subgroup if block.metadata.bits else block.group,
        block.subgroups if block.metadata.bits else 1,
        METADATA[block.metadata.name],
        block.metadata.bits,
        block.ties == "away",
        block.scaling == "split",
        block.scaling == "affine",
        fmt.level is not None,
        adaptive,
        view,
        significand + extra + (scale.mantissa + 1 if scale.bits else 0),
        _last_bit(element) - lower + (_last_bit(scale) if scale.bits else -127),
    )
