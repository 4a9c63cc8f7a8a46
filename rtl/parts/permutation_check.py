"""The check of a permutation table: every memory and every address of it once."""

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.parts.word_memory import WordMemory
from m2xfp.rtl.verilog.component import Component

__all__ = ["PermutationCheck", "table_layout"]


def table_layout(lanes: int, beats: int) -> data.ArrayLayout:
    """Return a beat of a table: for each lane or memory ``to``, ``source`` and ``address``."""
    lane = Shape.cast(range(lanes)).width
    word = {"to": lane, "source": lane, "address": Shape.cast(range(beats)).width}
    return data.ArrayLayout(data.StructLayout(word), lanes)


class PermutationCheck(Component):
    """Take a table beat by beat, two clocks each, and see whether it is a permutation.

    The lanes of each beat go to memories that are all different, and come from such, and each
    memory is asked for each of its addresses once: what was asked for is kept in a memory of one
    bit an address. Addresses that are all different are those of a row if none is beyond its end.

    Parameters
    ----------
    lanes, beats
        Memories, and beats of the longest row.

    Members
    -------
    table : In(packet_stream(table_layout))
        Tables.
    go : In(1)
        A table may be taken; stays until ``over``.
    store, at : Out
        The beat at ``table`` is to be kept, at this place.
    over, bad : Out(1)
        The table ends with this clock; it is none.
    last_beat : Out
        The last place of the latest table.
    settling : Out(1)
        The memory of the table does not give its first word yet.
    """

    def __init__(self, lanes: int, beats: int) -> None:
        self._lanes, self._beats = lanes, beats
        super().__init__(
            {
                "table": In(packet_stream(table_layout(lanes, beats))),
                "go": In(1),
                "store": Out(1),
                "at": Out(range(beats)),
                "over": Out(1),
                "bad": Out(1),
                "last_beat": Out(range(beats)),
                "settling": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the counter, the comparisons and the memories of what came."""
        m = Module()
        words = [self.table.payload.data[n] for n in range(self._lanes)]
        at, sweep = Signal(range(self._beats)), Signal(range(self._beats))
        last = Signal(range(self._beats))
        clearing, looked, spoilt = Signal(init=1), Signal(), Signal()
        settling = Signal()
        asked = named(m, "asked", self.table.valid & self.go & ~clearing)
        taken = named(m, "taken", asked & looked)
        wrong: list[Value] = []
        for field in ("to", "source"):
            for n in range(self._lanes):
                hit = reduce(or_, [word[field] == n for word in words])
                wrong.append(named(m, f"no_{field}_{n}", ~hit))
        for n, word in enumerate(words):
            m.submodules[f"seen_{n}"] = seen = WordMemory(1, self._beats)
            m.d.comb += [
                seen.read.eq(asked & ~looked),
                seen.read_address.eq(word.address),
                seen.write.eq(clearing | taken),
                seen.write_address.eq(Mux(clearing, sweep, word.address)),
                seen.write_data.eq(~clearing),
            ]
            wrong.append(seen.read_data)
        largest = Signal(range(self._beats), reset_less=True)
        highest: list[Value] = [word.address for word in words]
        while len(highest) > 1:
            highest = [
                Mux(one > other, one, other)
                for one, other in zip(highest[::2], highest[1::2], strict=True)
            ]
        so_far = named(m, "so_far", Mux(at.any() & (largest > highest[0]), largest, highest[0]))
        top = named(m, "at_top", at == self._beats - 1)
        broken = named(m, "broken", spoilt | Cat(wrong).any())
        ends = self.table.payload.last
        m.d.comb += [
            self.table.ready.eq(self.go & ~clearing & looked),
            self.store.eq(taken),
            self.at.eq(at),
            self.over.eq(taken & ends),
            self.bad.eq(broken | (so_far > at)),
            self.last_beat.eq(last),
            self.settling.eq(settling),
        ]
        m.d.sync += [looked.eq(asked & ~looked), settling.eq(self.over)]
        with m.If(taken):
            m.d.sync += [
                largest.eq(so_far),
                at.eq(Mux(ends | top, 0, at + 1)),
                spoilt.eq(~ends & (broken | top)),
            ]
        with m.If(clearing):
            m.d.sync += [
                sweep.eq(Mux(sweep == self._beats - 1, 0, sweep + 1)),
                clearing.eq(sweep != self._beats - 1),
            ]
        with m.If(self.over):
            m.d.sync += [last.eq(at), clearing.eq(1)]
        return m
