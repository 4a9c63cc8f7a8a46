"""The codes of a subgroup under the multiplier and offset that a search chose."""

from amaranth.hdl import Array, Const, Module, Signal, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.alignment import shift_right_sticky
from m2xfp.rtl.parts.code_ladder import Ladder
from m2xfp.rtl.parts.multiplier_search import total
from m2xfp.rtl.verilog.component import Component

__all__ = ["SubgroupCodes"]


class SubgroupCodes(Component):
    """Codes of a subgroup under the multiplier and offset that the search chose; combinational.

    Parameters
    ----------
    ladder
        Of the lowest offset, with no more fraction bits than the thresholds need.

    Members
    -------
    magnitudes : In(ArrayLayout(width + 1, subgroup))
        The magnitudes, and below them 1 if anything is left.
    offset : In(2)
        Offset of the shared scale, less the lowest.
    k : In(metadata bits)
        The multiplier is 1 + k/4.
    codes : Out(ArrayLayout(magnitude code, subgroup))
        Nearest codes, ties to the even one, saturating.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        size = ladder.block.metadata.subgroup
        super().__init__(
            {
                "magnitudes": In(data.ArrayLayout(unsigned(ladder.width + 1), size)),
                "offset": In(2),
                "k": In(ladder.block.metadata.bits),
                "codes": Out(data.ArrayLayout(unsigned(ladder.element.bits - 1), size)),
            }
        )

    def build(self) -> Module:
        """Build the thresholds, which all lanes share, and the comparisons."""
        m = Module()
        ladder = self._ladder
        nothing = 2 << ladder.width  # no magnitude is as large
        marks = []
        for code in range(ladder.element.max_code):
            by_k = []
            for multiplier in reversed(ladder.multipliers):
                reach = dict(enumerate(ladder.thresholds(multiplier)))
                # The lowest bit tells a tie, which goes up to an even code only.
                by_k.append(Const(2 * reach[code] + 1 - code % 2 if code in reach else nothing))
            mark = Signal(ladder.width + 2, name=f"mark_{code + 1}")
            m.d.comb += mark.eq(Array(by_k)[self.k])
            marks.append(mark)
        for n in range(ladder.block.metadata.subgroup):
            x = named(m, f"x_{n}", shift_right_sticky(m, self.magnitudes[n], self.offset))
            reached = [named(m, f"reached_{n}_{c + 1}", x >= mark) for c, mark in enumerate(marks)]
            m.d.comb += self.codes[n].eq(total(reached))
        return m
