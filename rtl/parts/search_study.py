"""Searches of one subgroup as single modules, to hold one way against another.

No unit is made of these: they show what the search in ``multiplier_search`` saves, and check it.
Registers stand between their stages as in the encoder: without them synthesis tries for hours to
share logic along the whole chain.
"""

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Signal, Value, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named, one_hot_mux
from m2xfp.rtl.parts.code_ladder import Ladder
from m2xfp.rtl.parts.multiplier_search import (
    BestMultiplier,
    CandidateGains,
    CoarseGains,
    SubgroupSums,
    at_least,
    first_largest,
    total,
)
from m2xfp.rtl.parts.registers import register
from m2xfp.rtl.verilog.component import Component

__all__ = ["LATENCY", "GainSearch", "SquareSearch"]

LATENCY = 3
"""Clocks from a subgroup to its multipliers."""

ALWAYS = Const(1, 1)


class GainSearch(Component):
    """The stages of the encoder's search, one after the other.

    Parameters
    ----------
    ladder
        The numbers.

    Members
    -------
    u : In(ArrayLayout(width, subgroup))
        The magnitudes.
    k : Out
        The best multiplier for each offset, lowest first.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        size = ladder.block.metadata.subgroup
        super().__init__(
            {
                "u": In(data.ArrayLayout(unsigned(ladder.width), size)),
                "k": Out(data.ArrayLayout(unsigned(ladder.block.metadata.bits), ladder.offsets)),
            }
        )

    def build(self) -> Module:
        """Build the stages."""
        m = Module()
        m.submodules.sums = sums = SubgroupSums(self._ladder)
        m.submodules.coarse = coarse = CoarseGains(self._ladder)
        m.submodules.gains = gains = CandidateGains(self._ladder)
        m.submodules.best = best = BestMultiplier(self._ladder)
        m.d.comb += [
            sums.u.eq(self.u),
            coarse.sums.eq(register(m, ALWAYS, "held_sums", sums.sums)),
            gains.coarse.eq(register(m, ALWAYS, "held_coarse", coarse.gains)),
            best.gains.eq(register(m, ALWAYS, "held_gains", gains.gains)),
        ]
        for offset in range(self._ladder.offsets):
            m.d.comb += self.k[offset].eq(best.best[f"k_{offset}"])
        return m


class SquareSearch(Component):
    """The search as it is written down: every candidate's codes, differences and their squares.

    Parameters
    ----------
    ladder
        The numbers.

    Members
    -------
    u : In(ArrayLayout(width, subgroup))
        The magnitudes, in units of the highest offset.
    k : Out
        The best multiplier for each offset, lowest first.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        size = ladder.block.metadata.subgroup
        super().__init__(
            {
                "u": In(data.ArrayLayout(unsigned(ladder.width), size)),
                "k": Out(data.ArrayLayout(unsigned(ladder.block.metadata.bits), ladder.offsets)),
            }
        )

    def build(self) -> Module:
        """Build the candidates and the comparison trees."""
        m = Module()
        ladder = self._ladder
        size = ladder.block.metadata.subgroup
        for offset in range(ladder.offsets):
            lower = ladder.offsets - 1 - offset
            entries: list[Value] = []
            for multiplier in reversed(ladder.multipliers):
                k = multiplier - min(ladder.multipliers)
                name = f"{offset}_{k}"
                squares = [
                    self._square(m, f"{name}_{n}", self.u[n], multiplier, lower)
                    for n in range(size)
                ]
                error = register(m, ALWAYS, f"error_{name}", total(squares))
                # The first of the smallest is the first of the largest complements.
                entries.append(Cat(~error, Const(k, ladder.block.metadata.bits)))
            bits = len(entries[0]) - ladder.block.metadata.bits
            best = first_largest(m, entries, bits, f"best_{offset}")
            m.d.comb += self.k[offset].eq(best[bits:])
        return m

    def _square(self, m: Module, name: str, u: Value, multiplier: int, lower: int) -> Signal:
        """Return (u - q)^2, two clocks later; q is the nearest value ``lower`` offsets down."""
        ladder = self._ladder
        unit = multiplier << (ladder.shift - lower)  # half of a step
        values = [multiple * 2 * unit for multiple in ladder.multiples]
        marks = [(a + b) // 2 for a, b in pairwise(values)]
        marks = [mark for mark in marks if mark < 1 << ladder.width]
        reached = [named(m, f"at_{name}_{n}", at_least(u, mark)) for n, mark in enumerate(marks)]
        chosen = [a & ~b for a, b in zip(reached, [*reached[1:], Const(0, 1)], strict=True)]
        q = named(
            m, f"q_{name}", one_hot_mux(chosen, [Const(v) for v in values[1 : len(marks) + 1]])
        )
        away = register(m, ALWAYS, f"away_{name}", u - q).as_signed()
        return register(m, ALWAYS, f"square_{name}", (away * away)[: 2 * ladder.width])
