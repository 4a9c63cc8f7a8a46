"""Pairs of formats between which a unit switches, and the numbers of its one datapath."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from amaranth.hdl import Shape, signed, unsigned
from amaranth.lib import data

from m2xfp.formats import MXFP4, BlockFormat, FloatElement, IntElement
from m2xfp.pairs import PairSet, pair_set
from m2xfp.rtl.arith.fixed_point import signed_bits
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.mixed_pair import largest_integer, largest_shift

__all__ = ["SwitchPair", "SwitchSide", "mode_layout"]

Element = FloatElement | IntElement

_BLOCK_ROWS = 8
"""Rows of an adder tree: products of wide elements, or as many products of a subgroup."""

_SUBGROUPS = 4
"""Fields of FP4: a group of 32 in the subgroups that M2XFP has."""

# The field ``mode``: the numbers of both formats, see ``m2xfp.pairs``.
mode_layout = data.StructLayout({"act": 3, "weight": 3})


@dataclass(frozen=True)
class SwitchSide:
    """The elements of one side in wide pairs, and the form that they are brought to.

    A floating-point code becomes sign, exponent field and mantissa of the longest of each, the
    mantissa at its upper end; the value is sig * 2^(max(e, 1) - 1 - u) with the ``u`` of the
    element, bias + mantissa bits - 1. INT8 stays as it is.

    E2M1 codes of M2XFP weights are multiplied by 4 + k quarters first: sig <= 3 * 7 = 21, which is
    a bit more than sig <= 15 of the longest mantissa, while the whole is small: 84 where E4M3 has
    up to 229376. So the lane's multiplier is a bit wider, and nothing behind it is.

    Members
    -------
    elements
        Of the side, each once.
    mantissa_bits
        Of the longest mantissa.
    multiplied
        Whether E2M1 codes may have multipliers.
    """

    elements: tuple[Element, ...]
    mantissa_bits: int
    multiplied: bool = False

    @property
    def floats(self) -> tuple[FloatElement, ...]:
        """The floating-point elements."""
        return tuple(each for each in self.elements if isinstance(each, FloatElement))

    @property
    def integer(self) -> bool:
        """Whether INT8 is among them."""
        return len(self.floats) < len(self.elements)

    @property
    def exponent_bits(self) -> int:
        """Of the longest exponent."""
        return max((each.exponent_bits for each in self.floats), default=0)

    def largest_significand(self, block: BlockFormat) -> int:
        """Return the largest magnitude that goes into a multiplier."""
        element = block.element
        if isinstance(element, IntElement):
            return largest_integer(element)
        return self._aligned((2 << element.mantissa_bits) - 1, block)

    def largest(self, block: BlockFormat) -> int:
        """Return the largest magnitude in units of the last place."""
        return self._aligned(largest_integer(block.element), block)

    def _aligned(self, magnitude: int, block: BlockFormat) -> int:
        """Return a magnitude of an element at the upper end, by the largest multiplier."""
        element = block.element
        if isinstance(element, IntElement):
            return magnitude
        places = self.mantissa_bits - element.mantissa_bits
        return 7 * magnitude << places - 2 if block.metadata.bits else magnitude << places


@dataclass(frozen=True)
class SwitchPair(DotPair):
    """What both rates of a switching unit have in common, as its accumulators see it.

    A wide group of 32 comes in 32 / ``lanes`` beats of ``lanes`` products; each is a row of an
    adder tree of eight. An FP4 group comes in one beat, and its 32 products, offset so that they
    are not negative, are fields of the same rows: eight rows of four fields of 12 bits, or two
    trees of eight rows of two fields. So each field sums a subgroup of eight.

    A beat of wide lanes has its own part of the codes and of the metadata, from the first on.

    The value of a group is D * 2^(exponent - bias) with the bias of the finest pair and an exponent
    that makes up for it.

    Members
    -------
    pairs
        The pairs that there are.
    lanes
        Wide products a beat: 8 or 16.
    """

    act: BlockFormat = MXFP4
    weight: BlockFormat = MXFP4
    pairs: PairSet = field(default_factory=lambda: pair_set("micromix"))
    lanes: int = 16

    wide: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Leave all checks to ``PairSet``."""

    @property
    def beats(self) -> int:
        """Beats of a wide group."""
        return self.group // self.lanes

    @property
    def blocks(self) -> int:
        """Adder trees."""
        return self.lanes // _BLOCK_ROWS

    @property
    def rows(self) -> int:
        """Rows of a tree."""
        return _BLOCK_ROWS

    @property
    def merged(self) -> int:
        """FP4 products that are added before they are part of a row: those of a subgroup.

        With 8 rows there are four products a row, and two sums take fewer registers than four
        products; M2XFP needs the sum of each subgroup alone.
        """
        return 2 if self.blocks == 1 and not self.pairs.narrow_metadata else 1

    @property
    def fields(self) -> int:
        """FP4 products, or sums of two, in a row."""
        return _SUBGROUPS // self.blocks // self.merged

    @property
    def field_bits(self) -> int:
        """Bits of one, sign included: products of at most 144."""
        return signed_bits(-144 * self.merged, 144 * self.merged)

    @property
    def field_sum_bits(self) -> int:
        """Bits of the sum of a field: the offset of eight rows is the weight of its sign."""
        return self.field_bits + 3

    @cached_property
    def sides(self) -> tuple[SwitchSide, SwitchSide]:
        """The elements of both sides."""
        act, weight = (
            SwitchSide(
                tuple(dict.fromkeys(pair[side].element for pair in self.pairs.wide)),
                self.pairs.mantissa_bits(side),
                side == 1 and self.pairs.wide_metadata,
            )
            for side in (0, 1)
        )
        return act, weight

    @property
    def significand_bound(self) -> int:
        """Largest magnitude of a product of significands."""
        return max(
            self.sides[0].largest_significand(act) * self.sides[1].largest_significand(weight)
            for act, weight in self.pairs.wide
        )

    @property
    def largest_amount(self) -> int:
        """Largest shift of such a product."""
        return max(
            largest_shift(act.element) + largest_shift(weight.element)
            for act, weight in self.pairs.wide
        )

    @property
    def row_bound(self) -> int:
        """Largest magnitude of a wide product."""
        return max(
            self.sides[0].largest(act) * self.sides[1].largest(weight)
            for act, weight in self.pairs.wide
        )

    @property
    def row_bits(self) -> int:
        """Bits of a wide product, sign included: 37 for E4M3 x E4M3."""
        return signed_bits(-self.row_bound, self.row_bound)

    @property
    def product_bound(self) -> int:
        """Largest |D|."""
        return max(self.group * self.row_bound, 131712 if self.pairs.narrow_metadata else 4608)

    @property
    def product_shape(self) -> Shape:
        """Shape of D: 42 bits for E4M3 x E4M3."""
        return signed(signed_bits(-self.product_bound, self.product_bound))

    @property
    def bias(self) -> int:
        """The value of a group is D * 2^(exponent - bias)."""
        return 254 - self.pairs.lowest_unit

    def raised(self, act: BlockFormat, weight: BlockFormat) -> int:
        """Return what is added to the sum of both scales' exponents of a pair."""
        return self.pairs.unit(act, weight) - self.pairs.lowest_unit

    @property
    def exponent_bits(self) -> int:
        """Bits of ``exponent``."""
        return (2 * 254 + max(self.raised(*pair) for pair in self.pairs.pairs)).bit_length()

    @cached_property
    def operand_layout(self) -> data.StructLayout:
        """Codes of a beat as bytes from the group's planes, scale and, if there is any, metadata.

        A beat of a wide group holds its part of the codes from bit 0 on, and of the metadata.
        """
        widest = max(each.bits for side in self.sides for each in side.elements)
        size = max(16, self.lanes * widest // 8)
        fields: dict[str, object] = {
            "codes": data.ArrayLayout(unsigned(8), size),
            "scale": unsigned(8),
        }
        if self.pairs.metadata:
            fields["meta"] = data.ArrayLayout(unsigned(2), _SUBGROUPS)
        side = data.StructLayout(fields)
        return data.StructLayout({"act": side, "weight": side, "mode": mode_layout})
