"""Rows of panels that the GEMM core gives become pieces in memory."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FP32
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.axi_writer import piece_layout
from m2xfp.rtl.parts.fp32_rounding import round_to_bf16
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.operand_job import PITCH_BITS
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["ResultWriter", "result_layout"]


def result_layout(address_bits: int) -> data.StructLayout:
    """Return a job: where a matrix [m, n] of results goes, as FP32 or rounded to bf16."""
    return data.StructLayout(
        {
            "values": address_bits,
            "pitch": PITCH_BITS,
            "m": SIZE_BITS,
            "n": SIZE_BITS,
            "bf16": 1,
        }
    )


class ResultWriter(Component):
    """Give each row of a panel its address and its length.

    Parameters
    ----------
    columns
        Of the GEMM core: results a beat.
    address_bits
        Of the bus.

    Members
    -------
    job : In(stream)
        A matrix, at least a row and a column.
    i : In(packet_stream(ArrayLayout(32, columns)))
        FP32: for each panel of columns, for each row, a beat.
    piece : Out(stream)
        To an ``AxiWriter``.
    busy : Out(1)
        Rows are still to come.
    wraps : Out(1)
        A row lies beyond the last address; nothing more is written.
    """

    def __init__(self, columns: int, address_bits: int) -> None:
        self._columns, self._address_bits = columns, address_bits
        self.most_bytes = columns * FP32.width // 8
        values = data.ArrayLayout(value_layout(FP32), columns)
        super().__init__(
            {
                "job": In(stream.Signature(result_layout(address_bits))),
                "i": In(packet_stream(values)),
                "piece": Out(stream.Signature(piece_layout(address_bits, self.most_bytes))),
                "busy": Out(1),
                "wraps": Out(1),
            }
        )

    def most_words(self, bus_bytes: int) -> int:
        """Return the words of a bus that a row lies in at most.

        FP32 values begin at multiples of four bytes; bf16 at even ones, but are half as long.
        """
        return -(-(bus_bytes - 4 + self.most_bytes) // bus_bytes)

    def build(self) -> Module:
        """Build the addresses and counters."""
        m = Module()
        job, piece, bits = self.job.payload, self.piece, self._address_bits
        active = Signal()
        held = Signal(job.shape(), reset_less=True)
        panel = Signal(bits + 1, reset_less=True)  # address of its first row
        here = Signal(bits + 1, reset_less=True)
        rows_left = Signal(SIZE_BITS, reset_less=True)
        columns_left = Signal(SIZE_BITS, reset_less=True)
        last_panel = named(m, "last_panel", columns_left <= self._columns)
        last_row = named(m, "last_row", rows_left == 1)
        count = named(
            m,
            "lanes",
            Mux(last_panel, columns_left, self._columns)[: self._columns.bit_length()],
        )
        length = named(
            m, "length", Mux(held.bf16, count << 1, count << 2)[: len(piece.payload.length)]
        )
        beyond = named(m, "beyond", (here + length) > (1 << bits))
        # The top bit is a carry beyond the last address, from where nothing goes on.
        after = named(m, "after", here[:bits] + held.pitch)
        width = Mux(held.bf16, self.most_bytes // 2, self.most_bytes)
        next_panel = named(m, "next_panel", (panel[:bits] + width)[: bits + 1])
        rounded = Cat(
            round_to_bf16(m, self.i.payload.data[n], f"rounded_{n}") for n in range(self._columns)
        )
        m.d.comb += [
            self.job.ready.eq(~active),
            self.busy.eq(active),
            self.wraps.eq(active & self.i.valid & beyond),
            piece.valid.eq(active & self.i.valid & ~beyond),
            self.i.ready.eq(active & piece.ready & ~beyond),
            piece.payload.address.eq(here),
            piece.payload.length.eq(length),
            piece.payload.data.eq(Mux(held.bf16, rounded, self.i.payload.data.as_value())),
        ]
        with m.If(~active):
            m.d.sync += [
                active.eq(self.job.valid),
                held.eq(job),
                panel.eq(job.values),
                here.eq(job.values),
                rows_left.eq(job.m),
                columns_left.eq(job.n),
            ]
        with m.If(piece.valid & piece.ready):
            m.d.sync += [here.eq(after), rows_left.eq(rows_left - 1)]
            with m.If(last_row):
                m.d.sync += [
                    panel.eq(next_panel),
                    here.eq(next_panel),
                    rows_left.eq(held.m),
                    columns_left.eq(columns_left - self._columns),
                    active.eq(~last_panel),
                ]
        return m
