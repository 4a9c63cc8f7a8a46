"""The loader of the GEMM core: commands checked, weights put into their buffers."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.gemm_layouts import command_layout, job_layout
from m2xfp.rtl.parts.layouts import group_layout
from m2xfp.rtl.parts.streams import SpillRegister, packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["Loader"]


class Loader(Component):
    """Check commands and fill the weight buffers, one panel of columns after the other.

    Parameters
    ----------
    pair
        Formats of the operands.
    columns
        Weight rows (columns of the result) a panel.
    max_groups
        Groups that a buffer holds of each.

    Members
    -------
    cmd : In(stream)
        Commands.
    weights : In(stream)
        Packed groups of the weight matrix [n, k], row by row.
    job : Out(stream)
        Checked commands, in order.
    write : Out(columns)
        One-hot: store the group at ``buffer`` and ``address`` in the column's bank.
    full : In(2)
        Which buffers are filled and not yet used up.
    filled, misframed : Out(1)
        ``buffer`` is complete with this clock; ``last`` was not where it belongs.
    """

    def __init__(self, pair: DotPair, columns: int, max_groups: int) -> None:
        self._pair, self._columns, self._max_groups = pair, columns, max_groups
        super().__init__(
            {
                "cmd": In(packet_stream(command_layout)),
                "weights": In(packet_stream(group_layout(pair.weight))),
                "job": Out(stream.Signature(job_layout)),
                "write": Out(columns),
                "buffer": Out(1),
                "address": Out(range(max_groups)),
                "full": In(2),
                "filled": Out(1),
                "misframed": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the check and the counters."""
        m = Module()
        m.submodules.job_register = register = SpillRegister(job_layout)
        wiring.connect(m, register.o, wiring.flipped(self.job))
        loading = Signal()
        command, job = self.cmd.payload.data, register.i.payload
        bits = (self._pair.group - 1).bit_length()
        accepted = named(m, "accepted", self.cmd.valid & self.cmd.ready)
        m.d.comb += [
            self.cmd.ready.eq(~loading & register.i.ready),
            register.i.valid.eq(self.cmd.valid & ~loading),
            job.m.eq(command.m),
            job.n.eq(command.n),
            job.groups.eq(command.k[bits:]),
            job.status.bad_m.eq(command.m == 0),
            job.status.bad_n.eq(command.n == 0),
            job.status.bad_k.eq(
                (command.k == 0)
                | command.k[:bits].any()
                | (command.k > self._max_groups * self._pair.group)
            ),
        ]

        buffer = Signal()
        column = Signal(self._columns, init=1)  # one-hot
        group = Signal(range(self._max_groups))
        last_group = Signal(range(self._max_groups), reset_less=True)
        left = Signal(SIZE_BITS, reset_less=True)  # weight rows, this one included
        taken = named(m, "taken", self.weights.valid & self.weights.ready)
        row_ends = named(m, "row_ends", group == last_group)
        all_ends = named(m, "all_ends", row_ends & (left == 1))
        panel_ends = named(m, "panel_ends", all_ends | (row_ends & column[-1]))
        wrong = named(m, "wrong", self.weights.payload.last ^ all_ends)
        misframed = Signal()
        m.d.comb += [
            self.weights.ready.eq(loading & ~self.full.bit_select(buffer, 1)),
            self.write.eq(column & taken.replicate(self._columns)),
            self.buffer.eq(buffer),
            self.address.eq(group),
            self.filled.eq(taken & panel_ends),
            self.misframed.eq(misframed | wrong),
        ]
        with m.If(accepted & ~job.status.as_value().any()):
            m.d.sync += [
                loading.eq(1),
                last_group.eq(job.groups - 1),
                left.eq(command.n),
            ]
        with m.If(taken):
            m.d.sync += [
                group.eq(Mux(row_ends, 0, group + 1)),
                misframed.eq((misframed | wrong) & ~panel_ends),
            ]
            with m.If(row_ends):
                m.d.sync += [left.eq(left - 1), column.eq(Cat(column[-1], column[:-1]))]
            with m.If(panel_ends):
                m.d.sync += [buffer.eq(~buffer), column.eq(1), loading.eq(~all_ends)]
        return m
