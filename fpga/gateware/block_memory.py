"""Block RAM behind AXI4: what the masters of a unit read and write on a board without DRAM."""

from collections.abc import Mapping
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.axi_channels import (
    OKAY,
    address_layout,
    read_layout,
    response_layout,
    write_layout,
)
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["DECERR", "BlockMemory", "ByteLane"]

DECERR = 3


class ByteLane(Component):
    """A byte of every word: a write and a read a clock, never of the same word.

    Parameters
    ----------
    depth
        Words.

    Members
    -------
    write, write_address, write_data : In
        Store a byte.
    read, read_address : In
        Fetch a byte; it is at ``read_data`` from the next clock until the next read.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        super().__init__(
            {
                "write": In(1),
                "write_address": In(range(depth)),
                "write_data": In(8),
                "read": In(1),
                "read_address": In(range(depth)),
                "read_data": Out(8),
            }
        )

    def build(self) -> Module:
        """Build the memory."""
        m = Module()
        m.submodules.bytes = content = Memory(shape=8, depth=self._depth, init=[])
        write, read = content.write_port(), content.read_port()
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            read.en.eq(self.read),
            read.addr.eq(self.read_address),
            self.read_data.eq(read.data),
        ]
        return m


class BlockMemory(Component):
    """Memory at address 0 for AXI4 masters with one ID each, and for the host, a byte at a time.

    A write and a read a clock, of words of the bus. The host goes first; masters that read take
    turns, word by word. A word is not read in the clock in which it is written. Bursts must be
    INCR, of whole words, and not cross 4 KB; what lies beyond the memory is answered by DECERR, and
    nothing is written. A master that does not take its words keeps the others waiting: the masters
    that this is for have room for all that they ask for.

    Parameters
    ----------
    size
        Bytes, a power of two and at least 4096.
    bus_bytes, address_bits
        Of the buses.
    buses
        Names of the buses, and the channels that each has: ``r`` those of reading, ``w`` of
        writing; one of them writes.

    Members
    -------
    <bus>_ar, <bus>_r, <bus>_aw, <bus>_w, <bus>_b
        The channels.
    host_write, host_read : In(1)
        Store ``host_data`` in this clock, or fetch the byte at ``host_address``.
    host_address : In, host_data : In(8)
        Where, and what.
    host_taken : Out(1)
        The byte is being fetched: in the next clock it is at ``host_byte``.
    host_byte : Out(8)
    """

    def __init__(
        self, size: int, bus_bytes: int, address_bits: int, buses: Mapping[str, str]
    ) -> None:
        assert size >= 4096
        assert not size & (size - 1)
        assert list(buses.values()).count("w") == 1
        self._size, self._bus, self._buses = size, bus_bytes, dict(buses)
        members: dict[str, Any] = {
            "host_write": In(1),
            "host_read": In(1),
            "host_address": In(range(size)),
            "host_data": In(8),
            "host_taken": Out(1),
            "host_byte": Out(8),
        }
        address = packet_stream(address_layout(address_bits))
        for name, kind in buses.items():
            if kind == "r":
                members[f"{name}_ar"] = In(address)
                members[f"{name}_r"] = Out(packet_stream(read_layout(bus_bytes)))
            else:
                members[f"{name}_aw"] = In(address)
                members[f"{name}_w"] = In(packet_stream(write_layout(bus_bytes)))
                members[f"{name}_b"] = Out(packet_stream(response_layout))
        super().__init__(members)

    def build(self) -> Module:
        """Build the lanes, the bursts under way, and who is next."""
        m = Module()
        depth = self._size // self._bus
        lanes = []
        for n in range(self._bus):
            m.submodules[f"lane_{n}"] = lane = ByteLane(depth)
            lanes.append(lane)
        writes, written = self._writes(m, lanes)
        self._reads(m, lanes, writes, written)
        return m

    @property
    def _shift(self) -> int:
        return (self._bus - 1).bit_length()

    def _word(self, address: Value) -> Value:
        return address[self._shift : (self._size - 1).bit_length()]

    def _beyond(self, address: Value) -> Value:
        return address[(self._size - 1).bit_length() :].any()

    def _writes(self, m: Module, lanes: list[ByteLane]) -> tuple[Value, Value]:
        """Write for the host, or a beat of the burst; return whether, and to which word."""
        (name,) = (bus for bus, kind in self._buses.items() if kind == "w")
        aw, w, b = (getattr(self, f"{name}_{channel}") for channel in ("aw", "w", "b"))
        bursting, answers, beyond = Signal(), Signal(), Signal()
        word = Signal(range(self._size // self._bus), reset_less=True)
        taken = named(m, "w_taken", w.valid & w.ready)
        m.d.comb += [
            aw.ready.eq(~bursting & ~answers),
            w.ready.eq(bursting & ~self.host_write),
            b.valid.eq(answers),
            b.payload.data.resp.eq(Mux(beyond, DECERR, OKAY)),
            b.payload.last.eq(1),
        ]
        with m.If(aw.valid & aw.ready):
            m.d.sync += [
                bursting.eq(1),
                word.eq(self._word(aw.payload.data.addr)),
                beyond.eq(self._beyond(aw.payload.data.addr)),
            ]
        with m.If(taken):
            m.d.sync += [
                word.eq(word + 1),
                bursting.eq(~w.payload.last),
                answers.eq(w.payload.last),
            ]
        with m.If(b.valid & b.ready):
            m.d.sync += answers.eq(0)
        target = named(m, "target", Mux(self.host_write, self._word(self.host_address), word))
        for n, lane in enumerate(lanes):
            mine = self.host_address[: self._shift] == n
            m.d.comb += [
                lane.write.eq(Mux(self.host_write, mine, taken & ~beyond & w.payload.data.strb[n])),
                lane.write_address.eq(target),
                lane.write_data.eq(
                    Mux(self.host_write, self.host_data, w.payload.data.data.word_select(n, 8))
                ),
            ]
        return named(m, "writes", self.host_write | taken), target

    def _reads(self, m: Module, lanes: list[ByteLane], writes: Value, written: Value) -> None:
        """Read for the host, or a word of one of the bursts, when the one before is taken."""
        ports = [name for name, kind in self._buses.items() if kind == "r"]
        word_bits = (self._size // self._bus - 1).bit_length()
        left = [Signal(9, name=f"{name}_left") for name in ports]
        word = [Signal(word_bits, name=f"{name}_word", reset_less=True) for name in ports]
        beyond = [Signal(name=f"{name}_beyond", reset_less=True) for name in ports]
        holds = [Signal(name=f"{name}_holds") for name in ports]  # its word is at the lanes
        final, failed = Signal(reset_less=True), Signal(reset_less=True)
        turn = Signal(len(ports))  # who was served last
        free = named(
            m,
            "free",
            ~Cat(
                held & ~getattr(self, f"{name}_r").ready
                for held, name in zip(holds, ports, strict=True)
            ).any(),
        )
        wants = [
            named(m, f"{name}_wants", count != 0) for name, count in zip(ports, left, strict=True)
        ]
        # Whoever was served last waits for the others.
        chosen = []
        for n in range(len(ports)):
            others = Cat(wants[other] for other in range(len(ports)) if other != n)
            before = Cat(wants[other] & (turn[n] | (turn[other] == turn[n])) for other in range(n))
            waits = Mux(turn[n], others.any(), before.any())
            chosen.append(named(m, f"{ports[n]}_chosen", wants[n] & ~waits))
        source = Signal(word_bits)
        m.d.comb += source.eq(self._word(self.host_address))
        with m.If(~self.host_read):
            for port, at in zip(chosen, word, strict=True):
                with m.If(port):
                    m.d.comb += source.eq(at)
        goes = named(m, "goes", free & ~(writes & (written == source)))
        m.d.comb += self.host_taken.eq(goes & self.host_read)
        for lane in lanes:
            m.d.comb += [
                lane.read.eq(goes & (self.host_read | Cat(chosen).any())),
                lane.read_address.eq(source),
            ]
        place = Signal(range(self._bus), reset_less=True)
        with m.If(self.host_taken):
            m.d.sync += place.eq(self.host_address[: self._shift])
        m.d.comb += self.host_byte.eq(Array([lane.read_data for lane in lanes])[place])
        with m.If(goes & ~self.host_read & Cat(chosen).any()):
            m.d.sync += turn.eq(Cat(chosen))
        for n, name in enumerate(ports):
            ar, r = getattr(self, f"{name}_ar"), getattr(self, f"{name}_r")
            served = named(m, f"{name}_served", goes & ~self.host_read & chosen[n])
            m.d.comb += [
                ar.ready.eq(left[n] == 0),
                r.valid.eq(holds[n]),
                r.payload.data.data.eq(Cat(lane.read_data for lane in lanes)),
                r.payload.data.resp.eq(Mux(failed, DECERR, OKAY)),
                r.payload.last.eq(final),
            ]
            with m.If(r.ready):
                m.d.sync += holds[n].eq(0)
            with m.If(served):
                m.d.sync += [
                    holds[n].eq(1),
                    word[n].eq(word[n] + 1),
                    left[n].eq(left[n] - 1),
                    final.eq(left[n] == 1),
                    failed.eq(beyond[n]),
                ]
            with m.If(ar.valid & ar.ready):
                m.d.sync += [
                    word[n].eq(self._word(ar.payload.data.addr)),
                    beyond[n].eq(self._beyond(ar.payload.data.addr)),
                    left[n].eq(ar.payload.data.len + 1),
                ]
