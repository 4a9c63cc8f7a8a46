"""The sequencer of the GEMM core: which groups meet in which step."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.gemm_layouts import job_layout, tile_layout
from m2xfp.rtl.verilog.component import Component

__all__ = ["Sequencer"]


class Sequencer(Component):
    """Step through a command: panels, blocks of rows, groups, and the chains innermost.

    In each step one group of each of ``rows`` activation rows meets the same weight groups of all
    columns. The next step takes the next rows of the block, whose accumulators are the next chain:
    by the time a chain comes round again its addition is complete, and each weight group serves
    for ``chains`` steps. If activations are late, their step waits until its chain comes round;
    the first step of a block waits for nothing, since the accumulators start anew.

    Parameters
    ----------
    rows, columns, chains
        Size of the array, and accumulators a cell.
    max_groups
        Groups that a weight buffer holds of each row.

    Members
    -------
    job : In(stream)
        Checked commands.
    enable : In(1)
        The array goes on by one step.
    full, suspect : In(2)
        Which weight buffers are filled, and which of them with ``last`` at the wrong place.
    act_valid, act_last : In(1), act_ready : Out(1)
        Handshake of the activations.
    issue, first : Out(1)
        The array gets groups in this step; its chain is cleared before.
    read, buffer, address : Out
        Fetch weight groups.
    released : Out(1)
        ``buffer`` is used up with this clock.
    tile : Out, tile_valid : Out(1)
        What the results of this step are, if it completes any.
    """

    def __init__(self, rows: int, columns: int, chains: int, max_groups: int) -> None:
        self._rows, self._columns, self._chains = rows, columns, chains
        self._max_groups = max_groups
        super().__init__(
            {
                "job": In(stream.Signature(job_layout)),
                "enable": In(1),
                "full": In(2),
                "suspect": In(2),
                "act_valid": In(1),
                "act_last": In(1),
                "act_ready": Out(1),
                "issue": Out(1),
                "first": Out(1),
                "read": Out(1),
                "buffer": Out(1),
                "address": Out(range(max_groups)),
                "released": Out(1),
                "tile": Out(tile_layout(rows, columns)),
                "tile_valid": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the nest of counters."""
        m = Module()
        rows, columns, chains = self._rows, self._columns, self._chains
        job = self.job.payload
        running = Signal()
        buffer = Signal()
        chain = Signal(range(chains))  # position in the block
        turn = Signal(range(chains))  # chain of the block whose accumulator is next
        group = Signal(range(self._max_groups))
        last_group = Signal(range(self._max_groups), reset_less=True)
        columns_left = Signal(SIZE_BITS, reset_less=True)  # this panel included
        block_left = Signal(SIZE_BITS, reset_less=True)  # rows, this block included
        rows_left = Signal(SIZE_BITS, reset_less=True)  # rows, those of this step included
        misframed = Signal(reset_less=True)

        starts = named(m, "starts", (chain == 0) & (group == 0))
        in_turn = named(m, "in_turn", starts | (turn == chain))
        wanted = named(m, "wanted", rows_left != 0)
        may_issue = named(
            m, "may_issue", running & self.enable & in_turn & self.full.bit_select(buffer, 1)
        )
        chain_ends = named(m, "chain_ends", chain == chains - 1)
        group_ends = named(m, "group_ends", group == last_group)
        last_rows = named(m, "last_rows", rows_left <= rows)
        last_columns = named(m, "last_columns", columns_left <= columns)
        block_ends = named(m, "block_ends", chain_ends & group_ends)
        panel_ends = named(m, "panel_ends", block_ends & last_rows)
        remaining = named(m, "remaining", Mux(last_rows, 0, rows_left - rows))
        final = named(m, "final", wanted & group_ends & last_rows & last_columns)
        wrong = named(m, "wrong", wanted & (self.act_last ^ final))
        suspect = named(m, "suspect_now", misframed | wrong | self.suspect.bit_select(buffer, 1))

        refused = named(m, "refused", job.status.as_value().any())
        # A refused command goes through the array as an empty result, so that statuses keep order.
        refusal = named(m, "refusal", ~running & self.job.valid & refused & self.enable)
        m.d.comb += [
            self.act_ready.eq(may_issue & wanted),
            self.issue.eq(may_issue & (self.act_valid | ~wanted)),
            self.first.eq(group == 0),
            self.read.eq(self.issue & (chain == 0)),
            self.buffer.eq(buffer),
            self.address.eq(group),
            self.released.eq(self.issue & panel_ends),
            self.job.ready.eq(refusal | (self.released & last_columns)),
            self.tile.rows.eq(Mux(refused, 0, Mux(last_rows, rows_left, rows))),
            self.tile.lanes.eq(Mux(last_columns, columns_left, columns)),
            self.tile.last.eq(refused | final),
            self.tile.status.eq(job.status),
            self.tile.status.misframed.eq(~refused & suspect),
            self.tile_valid.eq(refusal | (self.issue & group_ends & wanted)),
        ]

        with m.If(self.enable):
            m.d.sync += turn.eq(Mux(turn == chains - 1, 0, turn + 1))
        with m.If(~running):
            m.d.sync += [
                running.eq(self.job.valid & ~refused),
                last_group.eq(job.groups - 1),
                columns_left.eq(job.n),
                block_left.eq(job.m),
                rows_left.eq(job.m),
                misframed.eq(0),
            ]
        with m.If(self.issue):
            m.d.sync += [
                misframed.eq(suspect),
                chain.eq(Mux(chain_ends, 0, chain + 1)),
                rows_left.eq(Mux(chain_ends, block_left, remaining)),
            ]
            with m.If(starts):
                m.d.sync += turn.eq(1 % chains)
            with m.If(chain_ends):
                m.d.sync += group.eq(Mux(group_ends, 0, group + 1))
            with m.If(block_ends):
                m.d.sync += [block_left.eq(remaining), rows_left.eq(remaining)]
            with m.If(panel_ends):
                m.d.sync += [
                    buffer.eq(~buffer),
                    columns_left.eq(columns_left - columns),
                    block_left.eq(job.m),
                    rows_left.eq(job.m),
                    running.eq(~last_columns),
                ]
        return m
