"""The formats of a dot product, and the exact numbers that their products are."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar

from amaranth.hdl import Shape, signed, unsigned
from amaranth.lib import data

from m2xfp.errors import InputError
from m2xfp.formats import E2M1, E8M0, M2XFP_ACT, M2XFP_WEIGHT, BlockFormat, block_format
from m2xfp.rtl.arith.fixed_point import signed_bits
from m2xfp.rtl.parameters import Formats
from m2xfp.rtl.parts.layouts import group_layout

__all__ = [
    "Activations",
    "AnyActivations",
    "AnyWeights",
    "ByteActivations",
    "ByteWeights",
    "DotPair",
    "PowerScaledActivations",
    "PowerScaledWeights",
    "Weights",
]


_OPTIONS = ("group", "subgroup")
_POWER_SCALED_ACTIVATIONS = (
    "m2xfp-act",
    "m2xfp-act:subgroup=4",
    "m2xfp-act:subgroup=16",
    "m2xfp-act:group=16",
    "mxfp4",
    "mxfp4:group=16",
)
_POWER_SCALED_WEIGHTS = (
    "m2xfp-weight",
    "m2xfp-weight:subgroup=4",
    "m2xfp-weight:subgroup=16",
    "m2xfp-weight:group=16",
    "mxfp4",
    "mxfp4:group=16",
)

# What parameters of units are annotated with. A pair of formats must go together besides.
PowerScaledActivations = Annotated[BlockFormat, Formats(_POWER_SCALED_ACTIVATIONS, _OPTIONS)]
PowerScaledWeights = Annotated[BlockFormat, Formats(_POWER_SCALED_WEIGHTS, _OPTIONS)]
Activations = Annotated[
    BlockFormat, Formats((*_POWER_SCALED_ACTIVATIONS, "nvfp4", "m2nvfp4-act"), _OPTIONS)
]
Weights = Annotated[
    BlockFormat, Formats((*_POWER_SCALED_WEIGHTS, "nvfp4", "m2nvfp4-weight"), _OPTIONS)
]


def _of_bytes(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if max(block_format(name).group_bytes[1:]) <= 1)


# Those of which a group has a byte of scale and of metadata at most, as the accelerator moves them.
ByteActivations = Annotated[
    BlockFormat, Formats((*_of_bytes(_POWER_SCALED_ACTIVATIONS), "nvfp4", "m2nvfp4-act"), _OPTIONS)
]
ByteWeights = Annotated[
    BlockFormat, Formats((*_of_bytes(_POWER_SCALED_WEIGHTS), "nvfp4", "m2nvfp4-weight"), _OPTIONS)
]

# Elements other than E2M1 as well, see ``MixedPair``.
_WIDER = ("mxfp8-e4m3", "mxfp6-e3m2", "mxfp6-e2m3", "mxint8", "mxfp8-e5m2")
_MINIFLOAT_SCALED = ("mxfp4:scale_mode=e5m2", "mxfp4:scale_mode=e4m3")
AnyActivations = Annotated[
    BlockFormat,
    Formats(
        (*_POWER_SCALED_ACTIVATIONS, "nvfp4", "m2nvfp4-act", *_MINIFLOAT_SCALED, *_WIDER), _OPTIONS
    ),
]
AnyWeights = Annotated[
    BlockFormat,
    Formats(
        (*_POWER_SCALED_WEIGHTS, "nvfp4", "m2nvfp4-weight", *_MINIFLOAT_SCALED, *_WIDER), _OPTIONS
    ),
]


@dataclass(frozen=True)
class DotPair:
    """An activation format and a weight format, and the exact numbers of their products.

    With 2x and 2w, integers of at most 12 that E2M1 codes stand for, and 8x' = 4(2x) + r, where
    the refinement r of a top-1 element is at most 8 in magnitude and 8x' at most 56:

    - a part of the group (a subgroup, where there is metadata) sums to
      P = sum 4(2x)(2w) + r 2w(top), without Elem-EM P = sum (2x)(2w);
    - the group is D = sum (4 + k) P, without Sg-EM D = sum P, times the significands of the scales
      if they have some (E4M3: m * 2^(max(e, 1) - 10), m <= 15; E5M2: m <= 7).

    The value of the group is D * 2^(exponent - bias), with ``exponent`` the sum of the exponent
    fields of both scales (E8M0: the byte; E4M3, E5M2: max(e, 1)).

    Members
    -------
    act, weight
        Formats of the operands: E2M1 elements, one scale for both, of eight bits, the same group;
        metadata none or Elem-EM on activations, none or Sg-EM on weights, two bits a subgroup.

    Raises
    ------
    InputError
        If the formats are not such a pair.
    """

    act: BlockFormat = M2XFP_ACT
    weight: BlockFormat = M2XFP_WEIGHT

    # Whether D may have more bits than the significand of FP32; the addition is wider then.
    wide: ClassVar[bool] = False

    @property
    def windowed(self) -> bool:
        """Whether the exact accumulation takes its scales."""
        return self.act.scale is E8M0

    def __post_init__(self) -> None:
        """Refuse what the hardware was not made for."""
        act, weight = self.act, self.weight
        for block, metadata in ((act, "elem-em"), (weight, "sg-em")):
            if block.element is not E2M1 or block.scaling != "symmetric":
                raise InputError(f"{block.name}: the MAC path takes E2M1 elements with one scale")
            if block.metadata.name not in ("none", metadata) or block.metadata.bits not in (0, 2):
                raise InputError(
                    f"{block.name}: metadata {block.metadata.name!r}; the MAC path takes none or "
                    f"{metadata} of two bits here"
                )
        if act.group != weight.group or act.scale != weight.scale:
            raise InputError(
                f"{act.name} x {weight.name}: both need the same group size and the same scale type"
            )
        if act.scale.bits != 8:
            raise InputError(
                f"{act.name}: scale {act.scale.name}; the MAC path takes e8m0, e4m3 or e5m2"
            )
        if len({block.metadata.subgroup for block in (act, weight) if block.metadata.bits}) > 1:
            raise InputError(f"{act.name} x {weight.name}: both need the same subgroup size")

    def narrowed(self, lanes: int) -> "DotPair":
        """Return the pair with groups cut into pieces of ``lanes`` values.

        Raises InputError if they do not divide the group or are not whole subgroups.
        """
        step = self.act.metadata.subgroup or self.weight.metadata.subgroup or 1
        if self.group % lanes or lanes % step:
            raise InputError(
                f"lanes={lanes}: must divide the group of {self.group} and be a multiple of the "
                f"subgroup of {step}"
            )
        act, weight = replace(self.act, group=lanes), replace(self.weight, group=lanes)
        return replace(self, act=act, weight=weight)

    @property
    def refined(self) -> bool:
        """Whether activations have Elem-EM metadata."""
        return self.act.metadata.bits > 0

    @property
    def multiplied(self) -> bool:
        """Whether weights have Sg-EM metadata."""
        return self.weight.metadata.bits > 0

    @property
    def group(self) -> int:
        """Products a group."""
        return self.act.group

    @property
    def part(self) -> int:
        """Products that are added up before the multipliers: the subgroup, or half a group."""
        return self.act.metadata.subgroup or self.weight.metadata.subgroup or min(16, self.group)

    @property
    def parts(self) -> int:
        """Parts a group."""
        return self.group // self.part

    @property
    def part_bound(self) -> int:
        """Largest |P|: 4704 for M2XFP, 7 lanes of 48 * 12 and one of 56 * 12; 16 * 144 = 2304."""
        return (self.part - 1) * 48 * 12 + 56 * 12 if self.refined else self.part * 12 * 12

    @property
    def significands(self) -> tuple[int, int]:
        """Largest significands of the scales: 15 for E4M3, 7 for E5M2, 1 for E8M0, which has none.

        Of the side of the activations, and of that of the weights.
        """
        grids = self.act.scale.grid, self.weight.scale.grid
        one, other = ((2 << grid.mantissa_bits) - 1 if grid else 1 for grid in grids)
        return one, other

    @property
    def scale_bound(self) -> int:
        """Largest product of both significands."""
        return self.significands[0] * self.significands[1]

    @property
    def product_bound(self) -> int:
        """Largest |D|: M2XFP 4 * 4704 * 7 = 131712, MXFP4 4608, NVFP4 16 * 144 * 225 = 518400."""
        return self.parts * self.part_bound * (7 if self.multiplied else 1) * self.scale_bound

    @property
    def product_shape(self) -> Shape:
        """Shape of D: 19 bits for M2XFP, 14 for MXFP4, 20 for NVFP4."""
        return signed(signed_bits(-self.product_bound, self.product_bound))

    @property
    def exponent_bits(self) -> int:
        """Bits of ``exponent``."""
        grids = self.act.scale.grid, self.weight.scale.grid
        return sum((1 << (g.exponent_bits if g else 8)) - 1 for g in grids).bit_length()

    @property
    def bias(self) -> int:
        """The value of a group is D * 2^(exponent - bias)."""
        fraction = 2 + 2 * self.refined + 2 * self.multiplied
        scales = self.act.scale, self.weight.scale
        return fraction + sum(s.bias + (s.grid.mantissa_bits if s.grid else 0) for s in scales)

    @cached_property
    def product_layout(self) -> data.StructLayout:
        """The exact product of a group: D, ``exponent``, and whether a scale is NaN."""
        return data.StructLayout(
            {"product": self.product_shape, "exponent": self.exponent_bits, "nan": 1}
        )

    @cached_property
    def scale_layout(self) -> data.StructLayout:
        """What is needed of both scales: the sum of exponents, significands, NaN."""
        act, weight = (each.bit_length() if each > 1 else 0 for each in self.significands)
        return data.StructLayout(
            {"exponent": self.exponent_bits, "act": act, "weight": weight, "nan": 1}
        )

    @cached_property
    def operand_layout(self) -> data.StructLayout:
        """A packed group of activations beside one of weights."""
        return data.StructLayout(
            {"act": group_layout(self.act), "weight": group_layout(self.weight)}
        )

    @cached_property
    def sums_layout(self) -> data.StructLayout:
        """Sums of the parts, the multipliers that they wait for, and the scales."""
        bits = signed_bits(-self.part_bound, self.part_bound)
        return data.StructLayout(
            {
                "sums": data.ArrayLayout(signed(bits), self.parts),
                "multipliers": data.ArrayLayout(unsigned(self.weight.metadata.bits), self.parts),
                "scales": self.scale_layout,
            }
        )
