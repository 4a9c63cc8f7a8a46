"""Pairs of formats of which one or both have a scale for each sign, and the numbers of both."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from amaranth.lib import data

from m2xfp.errors import InputError
from m2xfp.formats import AMXFP4, E2M1, BlockFormat, block_format
from m2xfp.rtl.parameters import Formats
from m2xfp.rtl.parts.dot_pair import DotPair

__all__ = ["MXFP4_E5M2", "AsymmetricActivations", "AsymmetricPair", "AsymmetricWeights", "Class"]

_TWO_SCALES = ("amxfp4", "amxfp4:scale_mode=e4m3", "amxfp4:scale_mode=pot", "amxfp4:group=16")
_ONE_SCALE = (
    "mxfp4:scale_mode=e5m2",
    "mxfp4:scale_mode=e4m3",
    "mxfp4",
    "mxfp4:group=16",
    "nvfp4",
)
_OPTIONS = ("group", "scale_mode")

MXFP4_E5M2 = block_format("mxfp4:scale_mode=e5m2")
"""MXFP4 with the scales of AMXFP4."""

AsymmetricActivations = Annotated[BlockFormat, Formats(_TWO_SCALES, _OPTIONS)]
AsymmetricWeights = Annotated[BlockFormat, Formats((*_ONE_SCALE, *_TWO_SCALES), _OPTIONS)]

Class = tuple[int | None, int | None]
"""Signs of activations and weights of which products have their scales in common, 1 for negative;
None where a side has one scale."""


@dataclass(frozen=True)
class AsymmetricPair(DotPair):
    """E2M1 elements of both sides, activations and maybe weights with a scale for each sign.

    The products of a group fall into classes by the signs of their operands: p and n, or pp, pn, np
    and nn, in this order. Each class has one scale of each side, and is what a group is in
    ``DotPair``: D = sum (2x)(2w) of its products, at most 4608 for 32, times the significands of
    both scales. Scales of both sides may be of unlike types.

    Members
    -------
    act, weight
        Formats of the operands, without metadata, of one group size.
    sums
        Classes that are added up in one beat: 1, or as many as share the sign that a beat is of, or
        all.

    Raises
    ------
    InputError
        If the formats are not such a pair, or the classes do not come out even.
    """

    act: BlockFormat = AMXFP4
    weight: BlockFormat = MXFP4_E5M2
    sums: int = 1

    def __post_init__(self) -> None:
        """Refuse what the hardware was not made for."""
        for block in (self.act, self.weight):
            if block.element is not E2M1 or block.metadata.bits or block.scale.bits != 8:
                raise InputError(
                    f"{block.name}: asymmetric products take E2M1 elements without metadata and "
                    "scales of 8 bits: e8m0, e4m3 or e5m2; what has FP32 scales the golden model "
                    "multiplies (m2xfp.golden.matmul)"
                )
        if self.act.scaling != "split":
            raise InputError(
                f"act={self.act.name}: has one scale a group; give activations with two, such as "
                "amxfp4, or take dot_product"
            )
        if self.act.group != self.weight.group:
            raise InputError(f"{self.act.name} x {self.weight.name}: both need the same group size")
        if self.sums not in (1, 2, 4) or self.sums > len(self.classes):
            choices = ", ".join(str(n) for n in (1, 2, 4) if n <= len(self.classes))
            raise InputError(
                f"sums={self.sums}: {self.act.name} x {self.weight.name} has "
                f"{len(self.classes)} sums a group; a beat takes one of: {choices}"
            )

    @property
    def windowed(self) -> bool:
        """Whether the exact accumulation takes its scales: of these, all."""
        return True

    @cached_property
    def classes(self) -> list[Class]:
        """All classes of signs in their order."""
        sides = [(0, 1) if b.scaling == "split" else (None,) for b in (self.act, self.weight)]
        return [(one, other) for one in sides[0] for other in sides[1]]

    @property
    def beats(self) -> int:
        """Beats a group."""
        return len(self.classes) // self.sums

    @property
    def told(self) -> tuple[bool, bool]:
        """Whether a beat tells which sign of activations, and which of weights, it is of."""
        return self.beats > 1, self.beats > 2

    @property
    def sign_bits(self) -> int:
        """Bits that tell it."""
        return sum(self.told)

    @cached_property
    def beat_classes(self) -> list[Class]:
        """The classes of a beat; None where the beat tells the sign, too."""
        act, weight = self.told
        found = [(None if act else a, None if weight else w) for a, w in self.classes]
        return found[: self.sums]

    @property
    def known_signs(self) -> bool:
        """Whether all products of a class have one sign, so that magnitudes are added up."""
        return len(self.classes) == 4

    @cached_property
    def operand_layout(self) -> data.StructLayout:
        """A packed group of each side and, if a group has several beats, the signs of this one."""
        operands = dict(super().operand_layout.members)
        return data.StructLayout(operands | ({"signs": self.sign_bits} if self.sign_bits else {}))
