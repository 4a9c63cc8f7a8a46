"""Sets of format pairs that one unit multiplies, and the numbers that its stream calls them by.

Facts that the golden model and the hardware both read, like those of ``m2xfp.formats``.
"""

from dataclasses import dataclass
from functools import cache

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.formats import (
    BLOCK_FORMATS,
    E2M1,
    M2XFP_ACT,
    M2XFP_WEIGHT,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    BlockFormat,
    FloatElement,
)

__all__ = ["FORMAT_NUMBERS", "PAIR_SETS", "PairSet", "pair_set"]

FORMAT_NUMBERS = {
    block.name: number
    for number, blocks in enumerate(
        (
            (MXFP4,),
            (MXFP6_E2M3,),
            (MXFP6_E3M2,),
            (MXFP8_E4M3,),
            (MXFP8_E5M2,),
            (MXINT8,),
            (M2XFP_ACT, M2XFP_WEIGHT),
        )
    )
    for block in blocks
}
"""The number of a format in the field ``mode``, the same in every unit; M2XFP has two sides."""

PAIR_SETS = {
    "micromix": (
        "mxfp4:mxfp4+mxfp6-e3m2:mxfp6-e3m2+mxfp8-e4m3:mxfp8-e4m3+mxfp8-e4m3:mxfp6-e3m2"
        "+mxfp8-e4m3:mxfp4"
    ),
    "float": "+".join(
        f"{act.name}:{weight.name}"
        for act in (MXFP4, MXFP6_E2M3, MXFP6_E3M2, MXFP8_E4M3)
        for weight in (MXFP4, MXFP6_E2M3, MXFP6_E3M2, MXFP8_E4M3)
    ),
    "all": "+".join(
        f"{act.name}:{weight.name}"
        for act in (MXFP4, MXFP6_E2M3, MXFP6_E3M2, MXFP8_E4M3, MXFP8_E5M2, MXINT8)
        for weight in (MXFP4, MXFP6_E2M3, MXFP6_E3M2, MXFP8_E4M3, MXFP8_E5M2, MXINT8)
    ),
    "m2xfp": (
        "mxfp4:mxfp4+m2xfp-act:m2xfp-weight+m2xfp-act:mxfp4+mxfp4:m2xfp-weight"
        "+mxfp6-e3m2:mxfp6-e3m2+mxfp8-e4m3:mxfp8-e4m3+mxfp8-e4m3:mxfp6-e3m2+mxfp8-e4m3:mxfp4"
    ),
    "m2xfp-fp8": (
        "mxfp4:mxfp4+m2xfp-act:m2xfp-weight+m2xfp-act:mxfp4+mxfp4:m2xfp-weight"
        "+mxfp8-e4m3:mxfp8-e4m3+mxfp8-e4m3:mxfp4+mxfp8-e4m3:m2xfp-weight"
    ),
}
"""Sets by name.

``micromix``: the three segments of MicroMix and MXQuant, with activations of the segment's format
or all FP8. ``float``: every pair of E2M1, E2M3, E3M2 and E4M3. ``all``: E5M2 and INT8 too.
``m2xfp``: micromix and M2XFP. ``m2xfp-fp8``: MXFP4, M2XFP and E4M3, also E4M3 activations with
MXFP4 and M2XFP weights.
"""

_MULTIPLIER_BITS = 2
"""Mantissa bits that Sg-EM adds to a weight: quarters."""


@dataclass(frozen=True)
class PairSet:
    """Pairs (activations, weights) of formats, each at one of two rates.

    Pairs of E2M1 elements run at the full rate, the others at that of wider elements. M2XFP weights
    are in both; M2XFP activations go with E2M1 weights alone, since what refines them is the top-1
    element of FP4 lanes.

    Members
    -------
    name
        The text that it was read from.
    pairs
        Without repetition: at least one of E2M1 elements on both sides, and one other.

    Raises
    ------
    InputError
        Formats that are not multiplied, or pairs of one rate only.
    """

    name: str
    pairs: tuple[tuple[BlockFormat, BlockFormat], ...]

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        for act, weight in self.pairs:
            for block, wrong in ((act, M2XFP_WEIGHT), (weight, M2XFP_ACT)):
                if block.name not in FORMAT_NUMBERS or block is wrong:
                    known = [name for name in FORMAT_NUMBERS if name != wrong.name]
                    side = "activations" if block is act else "weights"
                    raise UnknownNameError(f"format of {side}", block.name, known)
            if act.metadata.bits and (act, weight) not in self.narrow:
                raise InputError(
                    f"{act.name}:{weight.name}: a unit that switches takes {act.name} with E2M1 "
                    f"weights only ({MXFP4.name}, {M2XFP_WEIGHT.name}); for this pair take "
                    "dot_product"
                )
        if len(set(self.pairs)) < len(self.pairs):
            raise InputError(f"{self.name}: a pair occurs twice")
        if not self.narrow or not self.wide:
            raise InputError(
                f"{self.name}: a unit that switches has a pair of E2M1 elements (mxfp4:mxfp4) and "
                "a wider one at least; for pairs of one rate take dot_product"
            )

    @property
    def narrow(self) -> tuple[tuple[BlockFormat, BlockFormat], ...]:
        """The pairs of E2M1 elements."""
        return tuple(p for p in self.pairs if p[0].element is E2M1 and p[1].element is E2M1)

    @property
    def wide(self) -> tuple[tuple[BlockFormat, BlockFormat], ...]:
        """The other pairs."""
        return tuple(pair for pair in self.pairs if pair not in self.narrow)

    @property
    def metadata(self) -> bool:
        """Whether some pair has metadata."""
        return any(block.metadata.bits for pair in self.pairs for block in pair)

    @property
    def narrow_metadata(self) -> bool:
        """Whether some pair of E2M1 elements has metadata."""
        return any(block.metadata.bits for pair in self.narrow for block in pair)

    @property
    def wide_metadata(self) -> bool:
        """Whether weights of wide pairs may have multipliers."""
        return any(weight.metadata.bits for _, weight in self.wide)

    def unit(self, act: BlockFormat, weight: BlockFormat) -> int:
        """Return the power of two of which the unit's sums of a pair are a multiple, unscaled.

        Mantissas of a side are aligned at their upper end, so each format of it has as many bits as
        the longest. Pairs of E2M1 elements are in one unit, that of M2XFP if it is among them.
        """
        if (act, weight) in self.narrow:
            return -6 if self.narrow_metadata else -2
        return sum(
            -(block.element.bias + self.mantissa_bits(side) - 1)
            if isinstance(block.element, FloatElement)
            else -block.element.fraction_bits
            for side, block in enumerate((act, weight))
        )

    def mantissa_bits(self, side: int) -> int:
        """Return the longest mantissa of a side's floating-point elements in wide pairs.

        A multiplier of quarters makes that of a weight two bits longer.
        """
        blocks = [pair[side] for pair in self.wide]
        bits = [
            each.element.mantissa_bits + (_MULTIPLIER_BITS if each.metadata.bits else 0)
            for each in blocks
            if isinstance(each.element, FloatElement)
        ]
        return max(bits, default=0)

    @property
    def lowest_unit(self) -> int:
        """The least of all units."""
        return min(self.unit(*pair) for pair in self.pairs)


@cache
def pair_set(text: str) -> PairSet:
    """Return a set by its name, or from ``ACT:WEIGHT+ACT:WEIGHT...``.

    Raises
    ------
    UnknownNameError
        A format that does not exist or is not multiplied.
    InputError
        A text of another form, or pairs that make no set.
    """
    pairs = []
    for part in PAIR_SETS.get(text, text).split("+"):
        act, colon, weight = part.partition(":")
        if not colon:
            raise InputError(
                f"give one of {', '.join(PAIR_SETS)}, or pairs as "
                "ACT:WEIGHT+ACT:WEIGHT..., such as mxfp4:mxfp4+mxfp8-e4m3:mxfp8-e4m3"
            )
        for name in (act, weight):
            if name not in BLOCK_FORMATS:
                raise UnknownNameError("format", name, FORMAT_NUMBERS)
        pairs.append((BLOCK_FORMATS[act], BLOCK_FORMATS[weight]))
    return PairSet(text, tuple(pairs))
