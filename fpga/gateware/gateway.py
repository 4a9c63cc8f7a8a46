"""Between the bytes of a request and the streams of a unit."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from m2xfp.facts import Stream
from m2xfp.rtl.verilog.axi import streams_of
from m2xfp.rtl.verilog.component import Component

__all__ = ["ByteRom", "Gateway", "sinks", "sources"]


def sinks(unit: Component) -> list[Stream]:
    """Return the input streams of ``unit``; records number them in this order."""
    return [port for port in streams_of(unit) if port.is_input]


def sources(unit: Component) -> list[Stream]:
    """Return the output streams of ``unit``; records number them in this order."""
    return [port for port in streams_of(unit) if not port.is_input]


class Gateway(Component):
    """Play the records of a request through a unit and make records of what it gives.

    A record is a tag byte, the number of the stream and its ``last`` in the top bit, and a beat,
    little-endian, padded to whole bytes (``protocol.Record``). Beats go in one after the other, in
    the order of the request; what several outputs give comes in any order.

    Parameters
    ----------
    unit
        Any unit; all its inputs are streams.

    Members
    -------
    i, o
        Records as bytes.
    idle : Out(1)
        No record is incomplete, and the unit has taken every beat.
    """

    def __init__(self, unit: Component) -> None:
        self.unit = unit
        self._sinks, self._sources = sinks(unit), sources(unit)
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(8)),
                "idle": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the registers that a beat goes through, in and out."""
        m = Module()
        m.submodules.unit = self.unit
        self._take_records(m)
        self._give_records(m)
        return m

    def _take_records(self, m: Module) -> None:
        """Shift bytes in from the top; a beat of fewer bytes than the widest stands at the top."""
        widths = [port.tdata_width for port in self._sinks]
        beat = Signal(max(widths), reset_less=True)
        left = Signal(range(max(widths) // 8 + 1))  # bytes still missing
        tag = Signal(8, reset_less=True)
        tagged, complete, taken = Signal(), Signal(), Signal()
        m.d.comb += [
            complete.eq(tagged & (left == 0)),
            self.idle.eq(~tagged),
            self.i.ready.eq(~complete),
        ]
        with m.If(self.i.valid & ~complete):
            with m.If(tagged):
                m.d.sync += [beat.eq(Cat(beat[8:], self.i.payload)), left.eq(left - 1)]
            with m.Else():
                m.d.sync += [tag.eq(self.i.payload), tagged.eq(1)]
                # An unknown stream gets a beat that nobody takes.
                with m.Switch(self.i.payload[:7]):
                    for n, width in enumerate(widths):
                        with m.Case(n):
                            m.d.sync += left.eq(width // 8)
                    with m.Default():
                        m.d.sync += left.eq(0)
        for n, port in enumerate(self._sinks):
            member = getattr(self.unit, port.name)
            mine = Signal(name=f"for_{port.name}")
            bits = beat[-port.tdata_width :][: port.data_width]
            m.d.comb += [
                mine.eq(complete & (tag[:7] == n)),
                member.valid.eq(mine),
                Value.cast(member.payload).eq(Cat(bits, tag[7])),
            ]
            with m.If(mine & member.ready):
                m.d.comb += taken.eq(1)
        with m.If(taken):
            m.d.sync += tagged.eq(0)

    def _give_records(self, m: Module) -> None:
        """Take a beat of the first output that has one and shift its record out from the bottom."""
        widths = [port.tdata_width for port in self._sources]
        record = Signal(8 + max(widths), reset_less=True)
        left = Signal(range(max(widths) // 8 + 2))  # bytes still to be given
        free = Signal()
        m.d.comb += [
            free.eq(left == 0),
            self.o.valid.eq(~free),
            self.o.payload.eq(record[:8]),
        ]
        with m.If(self.o.ready & ~free):
            m.d.sync += [record.eq(record[8:]), left.eq(left - 1)]
        earlier: Value = Const(0, 1)
        for n, port in enumerate(self._sources):
            member = getattr(self.unit, port.name)
            payload = Value.cast(member.payload)
            mine = Signal(name=f"from_{port.name}")
            m.d.comb += [mine.eq(free & ~earlier), member.ready.eq(mine)]
            with m.If(mine & member.valid):
                m.d.sync += [
                    record.eq(Cat(Const(n, 7), payload[-1], payload[:-1])),
                    left.eq(1 + port.tdata_width // 8),
                ]
            earlier = earlier | member.valid


class ByteRom(Component):
    """Give the same bytes, once after each reset.

    Parameters
    ----------
    content
        The bytes, at least one.

    Members
    -------
    o : Out(stream.Signature(8))
        The bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        super().__init__({"o": Out(stream.Signature(8))})

    def build(self) -> Module:
        """Build memory and counter."""
        m = Module()
        size = len(self._content)
        m.submodules.memory = memory = Memory(shape=8, depth=size, init=self._content)
        read = memory.read_port()
        address = Signal(range(size + 1))
        here = Signal()  # the byte before `address` is at the port
        step, more = Signal(), Signal()
        m.d.comb += [
            more.eq(address != size),
            step.eq(~here | self.o.ready),
            read.en.eq(step),
            read.addr.eq(address),
            self.o.valid.eq(here),
            self.o.payload.eq(read.data),
        ]
        with m.If(step):
            m.d.sync += [here.eq(more), address.eq(Mux(more, address + 1, address))]
        return m
