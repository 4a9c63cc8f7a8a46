"""The write side of an AXI4 master: pieces of a few bytes at any address become bursts."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.axi_channels import (
    INCR,
    PAGE,
    address_layout,
    burst_beats,
    response_layout,
    touched_beats,
    write_layout,
)
from m2xfp.rtl.parts.streams import SpillRegister, packet, packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["AxiWriter", "piece_layout"]


def piece_layout(address_bits: int, most_bytes: int) -> data.StructLayout:
    """Return a piece: its first ``length`` bytes go to memory from an address on."""
    return data.StructLayout(
        {
            "address": address_bits,
            "length": most_bytes.bit_length(),
            "data": 8 * most_bytes,
        }
    )


class AxiWriter(Component):
    """Write pieces to memory: INCR bursts, none across 4 KB, no byte beside the piece.

    All transactions have one ID. Bytes beside the piece have no strobe and are 0. A ``flush`` ends
    all pieces: a burst whose address is given gets the beats that it must have, without strobes but
    for those that wait already, and responses to it are dropped.

    Parameters
    ----------
    address_bits, bus_bytes
        Of the bus.
    most_bytes, words
        Bytes of a piece at most, and words of the bus that it lies in at most.
    outstanding
        Bursts that wait for their response at most.

    Members
    -------
    piece : In(stream)
        What to write, at least a byte.
    aw, w, b
        The channels.
    flush : In(1)
        Forget all pieces.
    fault : Out(2)
        Response of a burst that failed, in this clock; 0 if none does.
    busy : Out(1)
        Some piece is not in memory yet.
    owed, moved : Out(1)
        The bus has something to do for a piece that was not flushed, or something waits that cannot
        be taken back; a beat moves on one of the channels.
    """

    def __init__(
        self,
        address_bits: int,
        bus_bytes: int,
        most_bytes: int,
        words: int,
        outstanding: int = 15,
    ) -> None:
        self._bus, self._most, self._words = bus_bytes, most_bytes, words
        self._outstanding = outstanding
        super().__init__(
            {
                "piece": In(stream.Signature(piece_layout(address_bits, most_bytes))),
                "aw": Out(packet_stream(address_layout(address_bits))),
                "w": Out(packet_stream(write_layout(bus_bytes))),
                "b": In(packet_stream(response_layout)),
                "flush": In(1),
                "fault": Out(2),
                "busy": Out(1),
                "owed": Out(1),
                "moved": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the register of the piece, those of the channels, and the count of responses."""
        m = Module()
        bus, most, words = self._bus, self._most, self._words
        lanes = (bus - 1).bit_length()
        piece, aw, b = self.piece.payload, self.aw, self.b

        # The piece moves to the lanes that its address names, and from there out word by word.
        lane = named(m, "lane", piece.address[:lanes])
        kept = named(m, "kept", Cat(piece.length > n for n in range(most)))
        clean = named(
            m,
            "clean",
            Cat(piece.data.word_select(n, 8) & kept[n].replicate(8) for n in range(most)),
        )
        bytes_left = Signal(8 * bus * words, reset_less=True)
        strobes = Signal(bus * words, reset_less=True)
        address = Signal(len(piece.address), reset_less=True)
        left = Signal(range(words + 1))  # beats without an address yet
        burst = Signal(range(min(words, PAGE // bus) + 1))  # of the burst that are to be sent
        stopped = Signal()  # they get no strobes
        beats = burst_beats(m, address, left, bus)
        waits = Signal()
        header = Signal(aw.payload.data.shape(), reset_less=True)
        pending = Signal(range(self._outstanding + 1))
        fresh = Signal.like(pending)  # of these, the ones that were not flushed

        m.submodules.out = out = SpillRegister(packet(write_layout(bus)))
        wiring.connect(m, out.o, wiring.flipped(self.w))
        idle = named(m, "idle", (left == 0) & (burst == 0))
        issue = named(
            m,
            "issue",
            (left != 0) & (burst == 0) & ~waits & (pending != self._outstanding) & ~self.flush,
        )
        sent = named(m, "sent", out.i.valid & out.i.ready)
        m.d.comb += [
            self.piece.ready.eq(idle),
            out.i.valid.eq(burst != 0),
            out.i.payload.data.data.eq(bytes_left[: 8 * bus]),
            out.i.payload.data.strb.eq(strobes[:bus] & (~stopped).replicate(bus)),
            out.i.payload.last.eq(burst == 1),
            aw.valid.eq(waits),
            aw.payload.data.eq(header),
            aw.payload.last.eq(1),
        ]
        with m.If(sent):
            m.d.sync += [
                burst.eq(burst - 1),
                bytes_left.eq(bytes_left >> (8 * bus)),
                strobes.eq(strobes >> bus),
            ]
        with m.If(aw.ready):
            m.d.sync += waits.eq(0)
        with m.If(issue):
            m.d.sync += [
                waits.eq(1),
                stopped.eq(0),
                burst.eq(beats),
                left.eq(left - beats),
                header.addr.eq(Cat(Const(0, lanes), address[lanes:])),
                header.len.eq((beats - 1)[: len(burst)]),
                header.size.eq(lanes),
                header.burst.eq(INCR),
                address.eq(Cat(Const(0, lanes), address[lanes:] + beats)),
            ]
        with m.If(idle):
            m.d.sync += [
                bytes_left.eq(clean << (8 * lane)),
                strobes.eq(kept << lane),
                address.eq(piece.address),
            ]
            with m.If(self.piece.valid & ~self.flush):
                m.d.sync += left.eq(touched_beats(piece.address, piece.length, bus))
        with m.If(self.flush):
            m.d.sync += [left.eq(0), stopped.eq(1)]

        answered = named(m, "answered", b.valid & b.ready)
        wanted = named(m, "wanted", answered & (pending == fresh))
        m.d.comb += [
            b.ready.eq(pending != 0),
            self.fault.eq(Mux(wanted, b.payload.data.resp, 0)),
            self.busy.eq(~idle | (fresh != 0)),
            self.owed.eq(waits | self.w.valid | ~idle | (fresh != 0)),
            self.moved.eq((waits & aw.ready) | (self.w.valid & self.w.ready) | answered),
        ]
        m.d.sync += [pending.eq(pending + issue - answered), fresh.eq(fresh + issue - wanted)]
        with m.If(self.flush):
            m.d.sync += fresh.eq(0)
        return m
