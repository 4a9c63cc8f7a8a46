"""The read side of an AXI4 master: requests of any bytes become bursts, their beats come back."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.axi_channels import (
    INCR,
    PAGE,
    address_layout,
    burst_beats,
    read_layout,
    touched_beats,
)
from m2xfp.rtl.parts.ring_queue import RingQueue
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["AxiReader", "request_layout"]


def request_layout(address_bits: int, length_bits: int, tag_bits: int) -> data.StructLayout:
    """Return a request: so many bytes from an address on, for which the asker has room.

    ``skips``: but for their first word, which is not the only one.
    """
    return data.StructLayout(
        {"address": address_bits, "length": length_bits, "skips": 1, "tag": tag_bits}
    )


class AxiReader(Component):
    """Read bytes from memory: INCR bursts of whole words, none across 4 KB, several outstanding.

    All transactions have one ID, so answers come in the order of the requests. Every beat is taken
    when it comes: whoever asks has room. A ``flush`` ends all requests; what is outstanding then is
    taken and dropped, before anything that is asked for later, and AR that waits stays as it is.

    Parameters
    ----------
    address_bits, bus_bytes
        Of the bus.
    length_bits, tag_bits
        Of a request.
    words
        Words of the bus that a request lies in at most.
    outstanding
        Bursts that are under way at most, a power of two.

    Members
    -------
    request : In(stream)
        What to read, at least a byte.
    ar, r
        The channels.
    flush : In(1)
        Forget all requests.
    valid, word, tag, first, closes : Out
        A word of the bus, as it lies in memory, of the request with this tag; its first and its
        last word.
    fault : Out(2)
        Response of a burst that failed, in this clock; 0 if none does.
    owed : Out(1)
        The bus has something to do for a request that was not flushed, or an address waits.
    moved : Out(1)
        A beat moves on one of the channels.
    """

    def __init__(
        self,
        address_bits: int,
        bus_bytes: int,
        length_bits: int,
        tag_bits: int,
        words: int,
        outstanding: int = 16,
    ) -> None:
        self._bus, self._words, self._outstanding = bus_bytes, words, outstanding
        super().__init__(
            {
                "request": In(
                    stream.Signature(request_layout(address_bits, length_bits, tag_bits))
                ),
                "ar": Out(packet_stream(address_layout(address_bits))),
                "r": In(packet_stream(read_layout(bus_bytes))),
                "flush": In(1),
                "valid": Out(1),
                "word": Out(8 * bus_bytes),
                "tag": Out(tag_bits),
                "first": Out(1),
                "closes": Out(1),
                "fault": Out(2),
                "owed": Out(1),
                "moved": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the splitter, the register of AR, and the queue of bursts under way."""
        m = Module()
        bus = self._bus
        lanes = (bus - 1).bit_length()
        request, ar, r = self.request.payload, self.ar, self.r

        # A request becomes bursts.
        working = Signal()
        address = Signal(len(request.address), reset_less=True)  # of the next burst
        left = Signal(range(self._words + 1), reset_less=True)  # beats of the request
        tag = Signal(len(request.tag), reset_less=True)
        begins = Signal(reset_less=True)
        beats = burst_beats(m, address, left, bus)
        # Beats less one: a burst has no more than the request, or a page.
        size = max(1, (min(self._words, PAGE // bus) - 1).bit_length())
        less = named(m, "beats_less", (beats - 1)[:size])
        ends = named(m, "ends", left == beats)

        record = Cat(tag, begins, ends, less)
        m.submodules.bursts = bursts = RingQueue(len(record), self._outstanding)
        waits = Signal()
        burst = Signal(ar.payload.data.shape(), reset_less=True)
        issue = named(
            m, "issue", working & ~waits & (bursts.level != self._outstanding) & ~self.flush
        )
        m.d.comb += [
            self.request.ready.eq(~working),
            bursts.push.eq(issue),
            bursts.i.eq(record),
            ar.valid.eq(waits),
            ar.payload.data.eq(burst),
            ar.payload.last.eq(1),
        ]
        with m.If(~working):
            m.d.sync += [
                working.eq(self.request.valid & ~self.flush),
                address.eq(Cat(request.address[:lanes], request.address[lanes:] + request.skips)),
                left.eq(touched_beats(request.address, request.length, bus) - request.skips),
                tag.eq(request.tag),
                begins.eq(1),
            ]
        with m.If(ar.ready):
            m.d.sync += waits.eq(0)
        with m.If(issue):
            m.d.sync += [
                waits.eq(1),
                burst.addr.eq(Cat(Const(0, lanes), address[lanes:])),
                burst.len.eq(less),
                burst.size.eq(lanes),
                burst.burst.eq(INCR),
                address.eq(Cat(Const(0, lanes), address[lanes:] + beats)),
                left.eq(left - beats),
                begins.eq(0),
                working.eq(~ends),
            ]
        with m.If(self.flush):
            m.d.sync += working.eq(0)

        # Beats come back.
        beat = Signal(size)
        fresh = Signal(len(bursts.level))  # bursts that were not flushed: the youngest ones
        done_tag, done_first, done_final, last = (
            bursts.o[: len(tag)],
            bursts.o[len(tag)],
            bursts.o[len(tag) + 1],
            bursts.o[len(tag) + 2 :],
        )
        taken = named(m, "taken", r.valid & r.ready)
        wanted = named(m, "wanted", bursts.level == fresh)
        burst_ends = named(m, "burst_ends", beat == last)
        m.d.comb += [
            r.ready.eq(bursts.level != 0),
            bursts.pop.eq(taken & burst_ends),
            self.valid.eq(taken & wanted),
            self.word.eq(r.payload.data.data),
            self.tag.eq(done_tag),
            self.first.eq(done_first & (beat == 0)),
            self.closes.eq(done_final & burst_ends),
            self.fault.eq(Mux(self.valid, r.payload.data.resp, 0)),
            self.owed.eq(waits | working | (fresh != 0)),
            self.moved.eq(taken | (waits & ar.ready)),
        ]
        with m.If(taken):
            m.d.sync += beat.eq(Mux(burst_ends, 0, beat + 1))
        m.d.sync += fresh.eq(fresh + issue - (bursts.pop & wanted))
        with m.If(self.flush):
            m.d.sync += fresh.eq(0)
        return m
