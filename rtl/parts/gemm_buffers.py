"""Storage of the GEMM core: the FIFO of finished results."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FP32
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.gemm_layouts import status_layout, tile_layout
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["ResultFifo"]


class ResultFifo(Component):
    """Take the results of the whole array at once, give them away row by row.

    Parameters
    ----------
    rows, columns
        Size of the array.
    slots
        Array results that wait at most.

    Members
    -------
    accs : In(ArrayLayout(32, rows * columns)), tile : In(tile_layout(rows, columns))
        Results, row by row, and what they are.
    valid : In(1)
        There are results, or the end of a command without results.
    ready : Out(1)
        There is room for them; a function of registers.
    o : Out(packet_stream(ArrayLayout(32, columns)))
        One row a beat; columns outside the matrix are 0; ``last`` on a command's last row.
    status : Out(packet_stream(status_layout))
        One beat a command, with its tag, after its last row was taken.
    """

    def __init__(self, rows: int, columns: int, slots: int) -> None:
        self._rows, self._columns, self._slots = rows, columns, slots
        values = data.ArrayLayout(value_layout(FP32), rows * columns)
        super().__init__(
            {
                "accs": In(values),
                "tile": In(tile_layout(rows, columns)),
                "valid": In(1),
                "ready": Out(1),
                "o": Out(packet_stream(data.ArrayLayout(value_layout(FP32), columns))),
                "status": Out(packet_stream(status_layout)),
            }
        )

    def build(self) -> Module:
        """Build slots and counters."""
        m = Module()
        slots, columns, o, status = self._slots, self._columns, self.o, self.status
        store = Array(
            Signal(self.accs.shape(), name=f"accs_{n}", reset_less=True) for n in range(slots)
        )
        tiles = Array(
            Signal(self.tile.shape(), name=f"tile_{n}", reset_less=True) for n in range(slots)
        )
        used = Signal(slots)
        fill = Signal(range(slots))
        drain = Signal(range(slots))
        row = Signal(range(self._rows))

        def following(pointer: Signal) -> Mux:
            return Mux(pointer == slots - 1, 0, pointer + 1)

        m.d.comb += self.ready.eq(~used.bit_select(fill, 1))
        with m.If(self.valid & self.ready):
            m.d.sync += [
                store[fill].eq(self.accs),
                tiles[fill].eq(self.tile),
                used.bit_select(fill, 1).eq(1),
                fill.eq(following(fill)),
            ]

        # The command's last row waits until the status register is free, so that the two outputs
        # need not see each other's ready.
        tile = Signal(self.tile.shape())
        reported = Signal()
        report = Signal(status_layout, reset_less=True)
        m.d.comb += [
            tile.eq(tiles[drain]),
            status.valid.eq(reported),
            status.payload.data.eq(report),
            status.payload.last.eq(1),
        ]
        waiting = named(m, "waiting", used.bit_select(drain, 1) & ~(tile.last & reported))
        empty = named(m, "empty", tile.rows == 0)
        final = named(m, "final", row + 1 == tile.rows)
        m.d.comb += [
            o.valid.eq(waiting & ~empty),
            o.payload.last.eq(tile.last & final),
        ]
        chosen = named(
            m,
            "chosen",
            store[drain].as_value().word_select(row, columns * len(o.payload.data[0].as_value())),
        )
        width = len(chosen) // columns
        for n in range(columns):
            lane = chosen[n * width : (n + 1) * width]
            m.d.comb += o.payload.data[n].eq(lane & (tile.lanes > n).replicate(width))
        moved = named(m, "moved", o.valid & o.ready)
        done = named(m, "done", (moved & final) | (waiting & empty))
        with m.If(status.ready):
            m.d.sync += reported.eq(0)
        with m.If(moved):
            m.d.sync += row.eq(Mux(final, 0, row + 1))
        with m.If(done):
            m.d.sync += [used.bit_select(drain, 1).eq(0), drain.eq(following(drain))]
            with m.If(tile.last):
                m.d.sync += [reported.eq(1), report.eq(Cat(tile.faults, tile.tag))]
        return m
