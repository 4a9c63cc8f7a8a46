"""The checker of segment tables: what is wrong with one, and where its segments lie in beats."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.mixed_layouts import (
    END_BITS,
    SEGMENTS,
    checked_layout,
    mixed_command_layout,
)
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.parts.switch_front import is_mode
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.verilog.component import Component

__all__ = ["SegmentChecker"]


class SegmentChecker(Component):
    """Look at a command's segment table, in three clocks a command.

    Parameters
    ----------
    pair
        Formats that there are, and beats of a wide group.
    tile
        Channels of which a segment has a multiple.
    depth
        Beats that a weight buffer holds of each row.

    Members
    -------
    cmd : In(packet_stream(mixed_command_layout))
        Commands.
    o : Out(stream)
        The same with segments in beats and what is wrong with k and the table. ``bad_segments``:
        an end is before the one of the segment before it or no whole tile, or the last one is not
        that of k. ``bad_pair``: a segment that is not empty has formats that there are not.
        ``bad_k``: k is zero or no number of groups; or, where nothing else is wrong, it takes more
        beats than the buffers hold.
    """

    latency = 3

    def __init__(self, pair: SwitchPair, tile: int, depth: int) -> None:
        self._pair, self._tile, self._depth = pair, tile, depth
        super().__init__(
            {
                "cmd": In(packet_stream(mixed_command_layout)),
                "o": Out(stream.Signature(checked_layout)),
            }
        )

    def build(self) -> Module:
        """Build three steps: take, measure, add up."""
        m = Module()
        command = Signal(mixed_command_layout, reset_less=True)
        found = Signal(checked_layout, reset_less=True)
        stage = Signal(2)
        free = named(m, "free", stage == 0)
        with m.If(free):
            m.d.sync += [command.eq(self.cmd.payload.data), stage.eq(self.cmd.valid)]
        with m.Elif(~(stage.all() & ~self.o.ready)):
            m.d.sync += stage.eq(stage + 1)
        m.d.comb += [
            self.cmd.ready.eq(free),
            self.o.valid.eq(stage.all()),
            self.o.payload.eq(found),
        ]
        sizes, wrong = self._measured(m, command)
        ends: list[Value] = []
        for n, size in enumerate(sizes):
            before = ends[-1] if ends else Const(0, 1)
            width = len(found.groups)
            ends.append(named(m, f"slots_{n}", (before + size)[:width]))
        with m.If(~stage.all()):
            m.d.sync += [
                *(found[name].eq(command[name]) for name in ("m", "n", "k", "tag", "resync")),
                *(slot.end.eq(end) for slot, end in zip(found.slots, ends, strict=True)),
                found.groups.eq(ends[-1]),
                found.faults.eq(wrong),
            ]
            for slot, segment in zip(found.slots, command.segments, strict=True):
                m.d.sync += [
                    slot.act.eq(segment.act),
                    slot.weight.eq(segment.weight),
                    slot.wide.eq(is_mode(segment, self._pair.pairs.wide)),
                ]
        # Too long for the buffers: seen one clock later, of the sum that is there by then.
        room = named(m, "fits", found.groups <= self._depth)
        with m.If(~found.resync & ~found.faults.as_value().any() & ~room):
            m.d.comb += self.o.payload.faults.bad_k.eq(1)
        return m

    def _measured(self, m: Module, command: data.View) -> tuple[list[Value], Value]:
        """Return the beats of each segment and what is wrong, as registers hold them."""
        pair = self._pair
        group_bits = (pair.group - 1).bit_length()
        groups = Cat(command.k[group_bits:])
        part = (self._tile // pair.group - 1).bit_length()
        sizes: list[Value] = []
        disorder: list[Value] = []
        strange: list[Value] = []
        before: Value = Const(0, END_BITS)
        for n, segment in enumerate(command.segments[i] for i in range(SEGMENTS)):
            count = named(m, f"count_{n}", segment.end - before)
            there = named(m, f"there_{n}", count.any())
            wide = is_mode(segment, pair.pairs.wide)
            known = is_mode(segment, pair.pairs.pairs)
            beats = Cat(Const(0, (pair.beats - 1).bit_length()), count[:END_BITS])
            size = Signal(len(beats), name=f"beats_{n}", reset_less=True)
            m.d.sync += size.eq(Mux(wide, beats, count[:END_BITS]))
            sizes.append(size)
            disorder += [count[-1], segment.end[:part].any()]
            strange.append(there & ~known)
            before = segment.end
        wrong = Signal(checked_layout["faults"].shape, reset_less=True)
        bad_k = ~command.k.any() | command.k[:group_bits].any()
        with m.If(command.resync):
            m.d.sync += wrong.eq(0)
        with m.Else():
            m.d.sync += [
                wrong.bad_k.eq(bad_k),
                wrong.bad_segments.eq(Cat(disorder).any() | (before != groups)),
                wrong.bad_pair.eq(Cat(strange).any()),
            ]
        return sizes, wrong
