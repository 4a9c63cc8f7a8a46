"""The loader of the GEMM core: commands checked, weights put into their buffers."""

from abc import abstractmethod

from amaranth.hdl import Cat, Module, Mux, ShapeLike, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.gemm_layouts import TAG_BITS, command_layout, job_layout, words_layout
from m2xfp.rtl.parts.layouts import group_layout
from m2xfp.rtl.parts.streams import SpillRegister, packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["Loader", "PanelLoader"]


class PanelLoader(Component):
    """Fill the weight buffers, one panel of columns after the other, as commands say.

    A weight with another tag than its command, or ``last`` at the wrong place, ends the loading:
    the buffer counts as filled, but misframed. From then on, and from ``stop`` on, weights are
    taken and dropped and commands handed on with a fault, until ``resync``.

    Parameters
    ----------
    columns
        Weight rows (columns of the result) a panel.
    depth
        Words that a buffer holds of each.
    command, job
        Layouts of commands, and of what is handed on, whose ``groups`` are the words of a row.
    word
        Name and shape of a word of weights.
    rows
        Weight rows whose words come in one beat, a divisor of ``columns``.

    Members
    -------
    cmd : In(stream)
        Commands.
    weights : In(stream)
        The words of the weight matrix, row by row, with the tag of their command.
    job : Out(stream)
        Checked commands, in order. Behind one that resynchronises none follows before ``resync``.
    write : Out(columns)
        Store the beat's groups at ``buffer`` and ``address`` in these columns' banks: one, or
        ``rows`` side by side.
    full : In(2)
        Which buffers are filled and not yet used up.
    filled, misframed : Out(1)
        ``buffer`` is complete with this clock; or not, and never will be.
    stop : In(1)
        The command that runs, or one before, has failed: load no more.
    resync : In(1)
        All is well again, and no command or weight under way.
    """

    def __init__(
        self,
        columns: int,
        depth: int,
        command: data.StructLayout,
        job: data.StructLayout,
        word: tuple[str, ShapeLike],
        rows: int = 1,
    ) -> None:
        self._columns, self._max_groups, self._job = columns, depth, job
        self._rows = rows
        super().__init__(
            {
                "cmd": In(packet_stream(command)),
                "weights": In(packet_stream(words_layout(*word, rows))),
                "job": Out(stream.Signature(job)),
                "write": Out(columns),
                "buffer": Out(1),
                "address": Out(range(depth)),
                "full": In(2),
                "filled": Out(1),
                "misframed": Out(1),
                "stop": In(1),
                "resync": In(1),
            }
        )

    @abstractmethod
    def check(self, m: Module, command: data.View, job: data.View) -> None:
        """Say of a job how many words a row has, and what is wrong with its command."""

    def build(self) -> Module:
        """Build the check and the counters."""
        m = Module()
        m.submodules.job_register = register = SpillRegister(self._job)
        wiring.connect(m, register.o, wiring.flipped(self.job))
        loading = Signal()
        failed = Signal()
        resyncing = Signal()  # until the sequencer has come to it, nothing can be said of the next
        command, job = self.cmd.payload.data, register.i.payload
        accepted = named(m, "accepted", self.cmd.valid & self.cmd.ready)
        m.d.comb += [
            self.cmd.ready.eq(~loading & ~resyncing & register.i.ready),
            register.i.valid.eq(self.cmd.valid & ~loading & ~resyncing),
            job.m.eq(command.m),
            job.n.eq(command.n),
            job.tag.eq(command.tag),
            job.resync.eq(command.resync),
        ]
        self.check(m, command, job)
        with m.If(~command.resync):
            m.d.comb += [
                job.faults.bad_m.eq(command.m == 0),
                job.faults.bad_n.eq(command.n == 0),
                job.faults.misframed.eq(failed),
            ]
        starts = named(m, "starts", accepted & ~command.resync & ~job.faults.as_value().any())

        buffer = Signal()
        rows = self._rows
        column = Signal(self._columns // rows, init=1)  # one-hot: which columns are filled
        group = Signal(range(self._max_groups))
        last_group = Signal(range(self._max_groups), reset_less=True)
        left = Signal(SIZE_BITS, reset_less=True)  # weight rows, this one included
        tag = Signal(TAG_BITS, reset_less=True)
        weight = self.weights.payload
        room = named(m, "room", loading & ~self.full.bit_select(buffer, 1))
        taken = named(m, "taken", self.weights.valid & room)
        row_ends = named(m, "row_ends", group == last_group)
        all_ends = named(m, "all_ends", row_ends & ((left == 1) if rows == 1 else (left <= rows)))
        panel_ends = named(m, "panel_ends", all_ends | (row_ends & column[-1]))
        wrong = named(m, "wrong", taken & ((weight.last ^ all_ends) | (weight.data.tag != tag)))
        m.d.comb += [
            self.weights.ready.eq(room | failed),
            self.write.eq(
                Cat(each.replicate(rows) for each in column) & taken.replicate(self._columns)
            ),
            self.buffer.eq(buffer),
            self.address.eq(group),
            self.filled.eq(wrong | (taken & panel_ends)),
            self.misframed.eq(wrong),
        ]
        with m.If(starts):
            m.d.sync += [
                loading.eq(1),
                last_group.eq(job.groups - 1),
                left.eq(command.n),
                tag.eq(command.tag),
            ]
        with m.If(accepted):
            m.d.sync += resyncing.eq(command.resync)
        with m.If(taken):
            m.d.sync += group.eq(Mux(row_ends, 0, group + 1))
            with m.If(row_ends):
                m.d.sync += [left.eq(left - rows), column.eq(column.rotate_left(1))]
            with m.If(panel_ends):
                m.d.sync += [buffer.eq(~buffer), column.eq(1), loading.eq(~all_ends)]
        with m.If(wrong | self.stop):
            m.d.sync += [failed.eq(1), loading.eq(0)]
        with m.If(self.resync):
            m.d.sync += [
                failed.eq(0),
                resyncing.eq(0),
                buffer.eq(0),
                column.eq(1),
                group.eq(0),
            ]
        return m


class Loader(PanelLoader):
    """Check commands and fill the weight buffers, one panel of columns after the other.

    Parameters
    ----------
    pair
        Formats of the operands.
    columns
        Weight rows (columns of the result) a panel.
    max_groups
        Groups that a buffer holds of each.
    rows
        Weight rows whose groups come in one beat, a divisor of ``columns``.
    """

    def __init__(self, pair: DotPair, columns: int, max_groups: int, rows: int = 1) -> None:
        self._pair = pair
        word = ("group", group_layout(pair.weight))
        super().__init__(columns, max_groups, command_layout, job_layout, word, rows)

    def check(self, m: Module, command: data.View, job: data.View) -> None:
        """Refuse a k that is no number of groups, or more than there is room for."""
        bits = (self._pair.group - 1).bit_length()
        m.d.comb += job.groups.eq(command.k[bits:])
        with m.If(~command.resync):
            m.d.comb += job.faults.bad_k.eq(
                (command.k == 0)
                | command.k[:bits].any()
                | (command.k > self._max_groups * self._pair.group)
            )
