"""The sequencer of the GEMM core: which groups meet in which step."""

from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.gemm_layouts import TAG_BITS, job_layout, tile_layout
from m2xfp.rtl.verilog.component import Component

__all__ = ["Sequencer"]


@dataclass(frozen=True)
class Position:
    """Where the sequencer is in a command: its registers.

    Members
    -------
    running, buffer
        There is a command; the weight buffer of its panel.
    chain, turn
        Position in the block; the chain of the block whose accumulator is next.
    group, last_group
        Group of k.
    columns_left, block_left, rows_left
        Columns, this panel included; rows, this block included; rows, those of this step included.
    failed
        A command was misframed, and none resynchronised since.
    open
        Results of the command were given, and more were to come.
    """

    running: Signal
    buffer: Signal
    chain: Signal
    turn: Signal
    group: Signal
    last_group: Signal
    columns_left: Signal
    block_left: Signal
    rows_left: Signal
    failed: Signal
    open: Signal


@dataclass(frozen=True)
class Ends:
    """Which loops end with this step, and the rows that remain after it."""

    chain: Signal
    group: Signal
    rows: Signal
    columns: Signal
    block: Signal
    panel: Signal
    remaining: Signal


@dataclass(frozen=True)
class Sums:
    """Where sums begin and end.

    Members
    -------
    begins, ends
        The accumulators are cleared before this step; they are results after it.
    kept
        The results are kept, and none leaves; None if all of them leave.
    """

    begins: Value
    ends: Value
    kept: Value | None = None


class Sequencer(Component):
    """Step through a command: panels, blocks of rows, groups, and the chains innermost.

    In each step one group of each of ``rows`` activation rows meets the same weight groups of all
    columns. The next step takes the next rows of the block, whose accumulators are the next chain:
    by the time a chain comes round again its addition is complete, and each weight group serves
    for ``chains`` steps. If activations are late, their step waits until its chain comes round;
    the first step of a block waits for nothing, since the accumulators start anew.

    Activations with another tag than their command, ``last`` at the wrong place, or a misframed
    weight buffer end the command: it gives no further results, but for a row of zeros that closes
    those already given. From then on activations are taken and dropped, and all commands fail,
    until one resynchronises.

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
        Which weight buffers are filled, and which of them misframed.
    act_valid, act_last, act_tag : In, act_ready : Out(1)
        Handshake of the activations.
    quiet : In(1)
        No activations are between the core's port and here.
    issue, first : Out(1)
        The array gets groups in this step; its chain is cleared before.
    read, buffer, address : Out
        Fetch weight groups.
    released : Out(1)
        ``buffer`` is used up with this clock.
    stop, resync : Out(1)
        A command fails in this clock; everything starts anew after this clock.
    tile : Out, tile_valid : Out(1)
        What the results of this step are, if it completes any.
    """

    def __init__(self, rows: int, columns: int, chains: int, max_groups: int) -> None:
        self._set_up(rows, columns, chains, max_groups, job_layout, tile_layout(rows, columns), {})

    def _set_up(
        self,
        rows: int,
        columns: int,
        chains: int,
        max_groups: int,
        job: data.StructLayout,
        tile: data.StructLayout,
        more: dict[str, wiring.Member],
    ) -> None:
        """Make the ports: jobs and tiles of some layouts, and more beside the usual ones."""
        self._rows, self._columns, self._chains = rows, columns, chains
        self._max_groups = max_groups
        super().__init__(
            {
                "job": In(stream.Signature(job)),
                "enable": In(1),
                "full": In(2),
                "suspect": In(2),
                "act_valid": In(1),
                "act_last": In(1),
                "act_tag": In(TAG_BITS),
                "act_ready": Out(1),
                "quiet": In(1),
                "issue": Out(1),
                "first": Out(1),
                "read": Out(1),
                "buffer": Out(1),
                "address": Out(range(max_groups)),
                "released": Out(1),
                "stop": Out(1),
                "resync": Out(1),
                "tile": Out(tile),
                "tile_valid": Out(1),
                **more,
            }
        )

    def build(self) -> Module:
        """Build the nest of counters, and what follows from where they stand."""
        m = Module()
        at, job = self._position(), self.job.payload
        ends = self._ends(m, at)
        sums = self._sums(m, at, ends)
        starts = named(m, "starts", (at.chain == 0) & (at.group == 0))
        in_turn = named(m, "in_turn", starts | (at.turn == at.chain))
        wanted = named(m, "wanted", at.rows_left != 0)
        full = self.full.bit_select(at.buffer, 1)
        may_issue = named(m, "may_issue", at.running & self.enable & in_turn & full)
        final = named(m, "final", wanted & ends.group & ends.rows & ends.columns)
        wrong = named(m, "wrong", wanted & ((self.act_last ^ final) | (self.act_tag != job.tag)))
        spoilt = named(m, "spoilt", full & self.suspect.bit_select(at.buffer, 1))
        fails = named(m, "fails", at.running & self.enable & (spoilt | (self.issue & wrong)))
        # A command without a product goes through the array as an empty result, so that statuses
        # keep order. One that resynchronises waits until nothing old is on its way.
        refused = named(m, "refused", at.failed | job.resync | job.faults.as_value().any())
        held = named(m, "held", at.failed & job.resync & ~self.quiet)
        refusal = named(m, "refusal", ~at.running & self.job.valid & refused & ~held & self.enable)
        m.d.comb += [
            self.act_ready.eq((may_issue & wanted) | at.failed),
            self.issue.eq(may_issue & (self.act_valid | ~wanted)),
            self.first.eq(sums.begins),
            self.read.eq(self.issue & (at.chain == 0)),
            self.buffer.eq(at.buffer),
            self.address.eq(at.group),
            self.released.eq(self.issue & ends.panel),
            self.stop.eq(fails),
            self.resync.eq(refusal & job.resync),
            self.job.ready.eq(refusal | fails | (self.released & ends.columns)),
            self.tile.rows.eq(Mux(ends.rows, at.rows_left, self._rows)),
            self.tile.lanes.eq(Mux(ends.columns, at.columns_left, self._columns)),
            self.tile.last.eq(refused | fails | final),
            self.tile.faults.eq(job.faults),
            self.tile.faults.misframed.eq(fails | (at.failed & ~job.resync)),
            self.tile.tag.eq(job.tag),
            self.tile_valid.eq(refusal | fails | (self.issue & sums.ends & wanted)),
        ]
        with m.If(refused | fails):
            m.d.comb += [self.tile.rows.eq(at.open), self.tile.lanes.eq(0)]
        with m.If(self.enable):
            m.d.sync += at.turn.eq(Mux(at.turn == self._chains - 1, 0, at.turn + 1))
        with m.If(~at.running):
            m.d.sync += [
                at.running.eq(self.job.valid & ~refused),
                at.last_group.eq(job.groups - 1),
                at.columns_left.eq(job.n),
                at.block_left.eq(job.m),
                at.rows_left.eq(job.m),
            ]
        with m.If(self.issue):
            self._go_on(m, at, ends, starts)
        leaves = self.tile_valid
        if sums.kept is not None:
            leaves = named(m, "leaves", leaves & (~sums.kept | self.tile.last))
        with m.If(leaves):
            m.d.sync += at.open.eq(~self.tile.last)
        with m.If(fails):
            m.d.sync += [at.running.eq(0), at.failed.eq(1)]
        with m.If(self.resync):
            m.d.sync += [at.failed.eq(0), at.buffer.eq(0), at.chain.eq(0), at.group.eq(0)]
        return m

    def _position(self) -> Position:
        """Return the counters."""
        return Position(
            running=Signal(name="running"),
            buffer=Signal(name="buffer_now"),
            chain=Signal(range(self._chains), name="chain"),
            turn=Signal(range(self._chains), name="turn"),
            group=Signal(range(self._max_groups), name="group"),
            last_group=Signal(range(self._max_groups), name="last_group", reset_less=True),
            columns_left=Signal(SIZE_BITS, name="columns_left", reset_less=True),
            block_left=Signal(SIZE_BITS, name="block_left", reset_less=True),
            rows_left=Signal(SIZE_BITS, name="rows_left", reset_less=True),
            failed=Signal(name="failed"),
            open=Signal(name="open"),
        )

    def _ends(self, m: Module, at: Position) -> Ends:
        """Return which loops end with this step."""
        chain = named(m, "chain_ends", at.chain == self._chains - 1)
        group = named(m, "group_ends", at.group == at.last_group)
        rows = named(m, "last_rows", at.rows_left <= self._rows)
        columns = named(m, "last_columns", at.columns_left <= self._columns)
        block = named(m, "block_ends", chain & group)
        panel = named(m, "panel_ends", block & rows)
        remaining = named(m, "remaining", Mux(rows, 0, at.rows_left - self._rows))
        return Ends(chain, group, rows, columns, block, panel, remaining)

    def _sums(self, m: Module, at: Position, ends: Ends) -> Sums:
        """Return which groups begin and end a sum: the first and the last one of k."""
        return Sums(at.group == 0, ends.group)

    def _go_on(self, m: Module, at: Position, ends: Ends, starts: Value) -> None:
        """Go to the next step: chains innermost, then groups, blocks of rows, panels."""
        m.d.sync += [
            at.chain.eq(Mux(ends.chain, 0, at.chain + 1)),
            at.rows_left.eq(Mux(ends.chain, at.block_left, ends.remaining)),
        ]
        with m.If(starts):
            m.d.sync += at.turn.eq(1 % self._chains)
        with m.If(ends.chain):
            m.d.sync += at.group.eq(Mux(ends.group, 0, at.group + 1))
        with m.If(ends.block):
            m.d.sync += [at.block_left.eq(ends.remaining), at.rows_left.eq(ends.remaining)]
        with m.If(ends.panel):
            m.d.sync += [
                at.buffer.eq(~at.buffer),
                at.columns_left.eq(at.columns_left - self._columns),
                at.block_left.eq(self.job.payload.m),
                at.rows_left.eq(self.job.payload.m),
                at.running.eq(~ends.columns),
            ]
