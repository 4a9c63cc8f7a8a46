"""The channel permuter: rows of values in, the same in another order of channels out."""

from functools import reduce
from operator import or_
from typing import Annotated

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, InputType
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parameters import Among, Between, checked
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.permutation_check import PermutationCheck, table_layout
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.parts.skid_tail import add_skid, feed_skid
from m2xfp.rtl.parts.streams import SpillRegister, packet_stream
from m2xfp.rtl.parts.word_memory import WordMemory
from m2xfp.rtl.verilog.component import Component

__all__ = ["ChannelPermuter"]


class ChannelPermuter(Component):
    """Put the channels of each row into the order of a table, at a beat a clock.

    The order goes in front of a quantizer: MicroMix and MXQuant sort channels by their importance.
    A row is written to as many memories as there are lanes, and read from all of them in each
    clock. Any order can be had so that no memory is asked for two values at a time: the beats of
    both sides are a graph in which each has ``lanes`` edges, the values, and such a graph's edges
    take ``lanes`` colours (Koenig), a memory each. The table says which; a driver computes it
    (``m2xfp.tb.parts.channel_tables``).

    Parameters
    ----------
    input_type
        Type of the values, which are not looked at.
    lanes
        Values a beat, and memories.
    max_k
        Channels of a row at most, a multiple of lanes.

    Members
    -------
    table : In(packet_stream(table_layout))
        Tables, a packet each. Of beat j: ``to``, the memory of each lane of a row's beat j;
        ``source``, the memory that gives each lane of beat j of the result; ``address``, the beat
        of the row that each memory gives for it.
    i : In(packet_stream(values, fresh))
        Rows, a packet each, of as many beats as the table. ``fresh`` in its first beat: the row is
        the first one with the next table, and waits for it.
    o : Out(packet_stream(values))
        The rows in the table's order, a packet each.
    status : Out(packet_stream(bad_table, bad_row))
        One beat for each table, and one for each row that was dropped. ``bad_table``: it is no
        permutation of whole rows, or longer than ``max_k``; there is none then. ``bad_row``: there
        is no table, or the row has another number of beats.
    latency
        Clocks from the acceptance of a row's last beat to the first one of the result, when nothing
        stalls.
    clocks_per_block
        Clocks that the longest table takes.

    Raises
    ------
    InputError
        If ``max_k`` is no multiple of ``lanes``, or a single beat.

    Notes
    -----
    A table is taken when all rows before are on their way out, and takes two clocks a beat; after
    it, one clock for each beat of the longest row, in which rows pass but no other table.
    """

    beats_per_group = 1

    @checked
    def __init__(
        self,
        *,
        input_type: InputType = BF16,
        lanes: Annotated[int, Among((2, 4, 8, 16, 32))] = 16,
        max_k: Annotated[int, Between(4, 1 << 16, usual=(64, 128, 256))] = 4096,
    ) -> None:
        if max_k % lanes or max_k == lanes:
            raise InputError(
                f"max_k={max_k}: must be a multiple of the {lanes} lanes, two at least"
            )
        self.lanes, self.max_k, self.beats = lanes, max_k, max_k // lanes
        self.latency = 4
        self.clocks_per_block = 2 * self.beats
        values = data.ArrayLayout(value_layout(input_type), lanes)
        super().__init__(
            {
                "table": In(packet_stream(table_layout(lanes, self.beats))),
                "i": In(packet_stream(data.StructLayout({"values": values, "fresh": 1}))),
                "o": Out(packet_stream(values)),
                "status": Out(packet_stream(data.StructLayout({"bad_table": 1, "bad_row": 1}))),
            }
        )

    def build(self) -> Module:
        """Build the framing and the check; crossbars and memories."""
        m = Module()
        m.submodules.check = check = PermutationCheck(self.lanes, self.beats)
        # Whether a row is taken depends on its first beat, and ``ready`` on registers alone.
        m.submodules.entry = entry = SpillRegister(self.i.payload.shape())
        wiring.connect(m, wiring.flipped(self.i), entry.i)
        rows = entry.o
        full = Signal(2)  # which halves of the memories hold a row
        half = Signal()  # which of them is written
        at = Signal(range(self.beats), name="at")
        known = Signal(name="has_table")
        there = Signal(name="table_came")  # the one that the next row asks for
        begun, spoilt = Signal(), Signal()
        reported = Signal()
        report = Signal(self.status.payload.data.shape(), reset_less=True)
        row, beat = rows.payload, rows.payload.data
        asks = named(m, "asks", ~begun & beat.fresh & ~there)
        # A register, so that no path leads from one stream to another.
        go = Signal()
        room = named(m, "room", ~full.bit_select(half, 1))
        here = named(m, "at_last", at == check.last_beat)
        bad = named(m, "row_bad", spoilt | ~known | (here ^ row.last))
        # Any beat waits for a report to leave, since ``ready`` cannot wait for what ends a row.
        open_ = named(m, "may_take", room & ~check.settling & ~reported)
        taken = named(m, "taken", rows.valid & open_ & ~asks)
        over = named(m, "row_over", taken & row.last)
        m.d.comb += [
            check.table.payload.eq(self.table.payload),
            check.table.valid.eq(self.table.valid),
            self.table.ready.eq(check.table.ready),
            check.go.eq(go & ~reported),
            rows.ready.eq(open_ & ~asks),
            self.status.valid.eq(reported),
            self.status.payload.data.eq(report),
            self.status.payload.last.eq(1),
        ]
        m.d.sync += go.eq(rows.valid & asks & ~full.any() & ~reported & ~check.over)
        with m.If(self.status.ready):
            m.d.sync += reported.eq(0)
        with m.If(check.over):
            m.d.sync += [
                there.eq(1),
                known.eq(~check.bad),
                reported.eq(1),
                report.bad_table.eq(check.bad),
                report.bad_row.eq(0),
            ]
        with m.If(taken):
            m.d.sync += [
                begun.eq(~row.last),
                at.eq(Mux(row.last | here, 0, at + 1)),
                spoilt.eq(~row.last & bad),
                there.eq(0),
            ]
        with m.If(over & bad):
            m.d.sync += [reported.eq(1), report.bad_table.eq(0), report.bad_row.eq(1)]
        with m.If(over & ~bad):
            m.d.sync += [full.bit_select(half, 1).eq(1), half.eq(~half)]
        following = named(m, "next_at", Mux(taken, Mux(row.last | here, 0, at + 1), at))
        self._permute(m, check, row.data.values, taken, at, following, half, full)
        return m

    def _permute(
        self,
        m: Module,
        check: PermutationCheck,
        values: data.View,
        taken: Value,
        at: Signal,
        following: Value,
        half: Signal,
        full: Signal,
    ) -> None:
        """Write rows by one part of the table, and read them by the other."""
        skid = add_skid(m, self.o)
        step = skid.i.ready
        table = check.table.payload.data
        width = len(self.o.payload.data[0].as_value())
        into = WordMemory(len(Cat(word.to for word in table)), self.beats)
        out = WordMemory(len(Cat(Cat(word.source, word.address) for word in table)), self.beats)
        m.submodules.into, m.submodules.out_of = into, out
        place, rest = Signal(range(self.beats), name="place"), Signal(name="half_read")
        last = named(m, "place_last", place == check.last_beat)
        issue = named(m, "issue", step & full.bit_select(rest, 1))
        after = named(m, "next_place", Mux(issue, Mux(last, 0, place + 1), place))
        for memory, words, address, moves in (
            (into, Cat(word.to for word in table), following, taken),
            (out, Cat(Cat(word.source, word.address) for word in table), after, issue),
        ):
            m.d.comb += [
                memory.write.eq(check.store),
                memory.write_address.eq(check.at),
                memory.write_data.eq(words),
                memory.read.eq(moves | check.settling),
                memory.read_address.eq(address),
            ]
        with m.If(issue):
            m.d.sync += place.eq(after)
            with m.If(last):
                m.d.sync += [full.bit_select(rest, 1).eq(0), rest.eq(~rest)]
        bits = len(table[0].to)
        size = bits + len(table[0].address)
        sources, given = [], []
        for n in range(self.lanes):
            m.submodules[f"bank_{n}"] = bank = WordMemory(width, 2 * self.beats)
            lanes = [
                into.read_data[bits * lane : bits * (lane + 1)] == n for lane in range(self.lanes)
            ]
            word = out.read_data[size * n : size * (n + 1)]
            m.d.comb += [
                bank.write.eq(taken),
                bank.write_address.eq(2 * at + half),
                bank.write_data.eq(
                    reduce(
                        or_,
                        [
                            values[lane].as_value() & hit.replicate(width)
                            for lane, hit in enumerate(lanes)
                        ],
                    )
                ),
                bank.read.eq(issue),
                bank.read_address.eq(2 * word[bits:] + rest),
            ]
            sources.append(register(m, step, f"source_{n}", word[:bits]))
            given.append(bank.read_data)
        chosen = [
            register(m, step, f"lane_{n}", Array(given)[source]) for n, source in enumerate(sources)
        ]
        feed_skid(
            m,
            skid,
            self.o,
            Cat(chosen),
            last=delayed(m, step, "last", issue & last, 2),
            valid=delayed(m, step, "valid", issue, 2, reset=True),
        )
