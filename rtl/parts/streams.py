"""Streams: the payload convention of all units, and the registers that stand between two streams.

Every data port is an ``amaranth.lib.stream`` whose payload is a ``packet``: the data and ``last``,
the end-of-tensor mark that becomes AXI4-Stream TLAST. The rules are those of AXI4-Stream: valid
never waits for ready, the payload holds while stalled, and no unit has a combinational path from
one side's valid or ready to the other side's.
"""

from amaranth.hdl import Module, Mux, Shape, ShapeLike, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.verilog.component import Component

__all__ = ["HalfRateRegister", "Skid", "SpillRegister", "packet", "packet_stream"]


def packet(shape: ShapeLike) -> data.StructLayout:
    """Return the payload layout of a stream of ``shape``: fields ``data`` and ``last``."""
    return data.StructLayout({"data": shape, "last": 1})


def packet_stream(shape: ShapeLike) -> stream.Signature:
    """Return the signature of a stream of ``shape`` with an end-of-tensor mark."""
    return stream.Signature(packet(shape))


class _Stage(Component):
    """A stream in and one out, of the same payload."""

    def __init__(self, shape: ShapeLike) -> None:
        self._shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})


class SpillRegister(_Stage):
    """Two-entry buffer: registered in every direction, one beat a clock.

    The second entry takes the beat that is already under way when the reader stalls, so that
    ``i.ready`` can be a flip-flop.

    Parameters
    ----------
    shape
        Shape of the payload.

    Members
    -------
    i, o
        Input and output stream. Latency 1, throughput one beat a clock.
    """

    latency = 1

    def build(self) -> Module:
        """Build the two entries."""
        m = Module()
        width = Shape.cast(self._shape).width
        front = Signal(width, reset_less=True)  # meaningless until valid
        front_valid = Signal()
        spare = Signal(width, reset_less=True)
        spare_valid = Signal()

        m.d.comb += [
            self.i.ready.eq(~spare_valid),
            self.o.valid.eq(front_valid),
            Value.cast(self.o.payload).eq(front),
        ]
        with m.If(self.o.ready | ~front_valid):
            m.d.sync += [
                front_valid.eq(spare_valid | self.i.valid),
                front.eq(Mux(spare_valid, spare, Value.cast(self.i.payload))),
                spare_valid.eq(0),
            ]
        with m.Elif(~spare_valid):
            m.d.sync += spare_valid.eq(self.i.valid)
        with m.If(~spare_valid):
            m.d.sync += spare.eq(Value.cast(self.i.payload))
        return m


class Skid(_Stage):
    """One spare entry behind a frozen pipeline, so that ``i.ready`` can be a flip-flop.

    The pipeline's last register drives ``i``. While ``i.ready`` is low the pipeline stands still;
    the beat that was under way when the reader stalled waits in the spare entry. Half the
    registers of a ``SpillRegister``, which also cuts the path from ``i`` to ``o``.

    Parameters
    ----------
    shape
        Shape of the payload.

    Members
    -------
    i, o
        Input and output stream. Latency 0, throughput one beat a clock.
    """

    latency = 0

    def build(self) -> Module:
        """Build the skid buffer."""
        m = Module()
        spare = Signal(Shape.cast(self._shape).width, reset_less=True)
        spare_valid = Signal()
        incoming = Value.cast(self.i.payload)
        m.d.comb += [
            self.i.ready.eq(~spare_valid),
            self.o.valid.eq(self.i.valid | spare_valid),
            Value.cast(self.o.payload).eq(Mux(spare_valid, spare, incoming)),
        ]
        with m.If(~spare_valid):
            m.d.sync += spare.eq(incoming)
        m.d.sync += spare_valid.eq(~self.o.ready & self.o.valid)
        return m


class HalfRateRegister(_Stage):
    """One-entry buffer: registered in every direction, a beat every other clock.

    Half the registers of a ``SpillRegister``, for results that are never a clock apart: while one
    is on its way to a reader that is ready, the next cannot be there yet.

    Parameters
    ----------
    shape
        Shape of the payload.

    Members
    -------
    i, o
        Input and output stream. Latency 1, throughput one beat in two clocks.
    """

    latency = 1

    def build(self) -> Module:
        """Build the register."""
        m = Module()
        held = Signal(Shape.cast(self._shape).width, reset_less=True)  # meaningless until full
        full = Signal()
        m.d.comb += [
            self.i.ready.eq(~full),
            self.o.valid.eq(full),
            Value.cast(self.o.payload).eq(held),
        ]
        with m.If(full):
            m.d.sync += full.eq(~self.o.ready)
        with m.Elif(self.i.valid):
            m.d.sync += [full.eq(1), held.eq(Value.cast(self.i.payload))]
        return m
