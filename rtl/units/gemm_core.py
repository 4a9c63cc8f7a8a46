"""The GEMM core: packed or floating-point activations times packed weights, any size of matrix."""

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, FP32, M2XFP_ACT, M2XFP_WEIGHT, BlockFormat, InputType
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.gemm_array import GemmArray
from m2xfp.rtl.parts.gemm_buffers import ResultQueue, WeightBank, status_layout, tile_layout
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.layouts import group_layout, value_layout
from m2xfp.rtl.parts.streams import Queue, packet_stream
from m2xfp.rtl.units.activation_quantizer import ActivationQuantizer
from m2xfp.rtl.units.group_dot import DotPair, delayed, register
from m2xfp.rtl.verilog.component import Component

__all__ = ["RESULTS", "GemmCore", "command_layout"]

RESULTS = ("fp32", "bf16", "packed")

command_layout = data.StructLayout(
    {"m": unsigned(SIZE_BITS), "n": unsigned(SIZE_BITS), "k": unsigned(SIZE_BITS)}
)
"""One command: [m, k] activations times [n, k] weights."""

job_layout = data.StructLayout(
    {"m": SIZE_BITS, "n": SIZE_BITS, "groups": SIZE_BITS, "status": status_layout}
)
"""A checked command; a status other than zero says that nothing is to be done."""


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
        m.submodules.queue = queue = Queue(job_layout)
        wiring.connect(m, queue.o, wiring.flipped(self.job))
        loading = Signal()
        command, job = self.cmd.payload.data, queue.i.payload
        bits = (self._pair.group - 1).bit_length()
        accepted = named(m, "accepted", self.cmd.valid & self.cmd.ready)
        m.d.comb += [
            self.cmd.ready.eq(~loading & queue.i.ready),
            queue.i.valid.eq(self.cmd.valid & ~loading),
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


def round_to_bf16(m: Module, value: data.View, name: str) -> Signal:
    """Return an FP32 value rounded once to bfloat16, to nearest even; NaN gives 0x7FC0.

    Exponent and mantissa stand side by side, so that a carry moves into the next binade, and from
    the largest finite value to infinity, by itself. Source: IEEE 754-2019, 4.3.1, 7.4.
    """
    bits = value.as_value()
    nan = named(m, f"{name}_nan", value.exponent.all() & value.mantissa.any())
    up = bits[15] & (bits[16] | bits[:15].any())
    return named(m, name, Mux(nan, 0x7FC0, (bits[16:] + up)[:16]))


class GemmCore(Component):
    """Multiply activations [m, k] with weights [n, k], results [m, n], sizes at run time.

    out[i, j] = the FP32 accumulation over rising k of the exact group products, one rounding a
    group, bit for bit that of docs/format.md section 7: all rules for NaN, infinities, zeros and
    subnormals are those of ``Fp32Accumulator``. Source: M2XFP (arXiv 2601.19213) Sec. 5.

    Parameters
    ----------
    act, weight
        Formats of the operands, see ``DotPair``.
    rows, columns
        Size of the array; every cell takes a group of products a clock.
    max_k
        Largest k: the depth of the weight buffers, a multiple of the group.
    depth, chains
        Register stages of a cell's product, and accumulators a cell, see ``DotProduct``.
    activations
        Type in which activations come: BF16, FP16 or FP32, through a quantization engine a row, or
        None, packed.
    results
        ``fp32``; ``bf16``, rounded once to nearest even; ``packed``, the FP32 results quantized to
        ``act``, for which ``columns`` must be the group.

    Members
    -------
    cmd : In(packet_stream(command_layout))
        m, n, k, each at least 1; k is a multiple of the group and at most ``max_k``. ``last`` is
        ignored.
    weights : In(packet_stream(group))
        The packed weight matrix [n, k], row by row, once; ``last`` on the last group.
    acts : In(packet_stream(ArrayLayout(group or values, rows)))
        The activation matrix, once for each panel of ``columns`` weight rows. Within a panel, for
        each block of ``rows * chains`` rows: for each group of k: the block's rows, ``rows`` a
        beat. A beat's rows beyond m are ignored; beats of nothing but such rows are left out.
        ``last`` on the last beat of the last panel.
    o : Out(packet_stream(ArrayLayout(value, columns) or group))
        Results: for each panel, for each row, a beat; columns beyond n are 0. ``last`` on the last.
    status : Out(packet_stream(status_layout))
        One beat a command, in order, when its last row has left the array. ``bad_m``, ``bad_n``,
        ``bad_k``: this size is zero or not supported; nothing was read or computed.
        ``misframed``: ``last`` of an input was not where the command's sizes put it; the results
        belong to the wrong data.
    latency
        Clocks from the acceptance of a result's last activation beat to the result at ``o``, when
        nothing stalls.
    macs_per_clock
        Multiplications a clock at most.
    groups_per_clock
        Pairs of groups that are multiplied in a clock, at most.
    clocks_per_block
        Clocks that a block of rows takes at the largest k.

    Raises
    ------
    InputError
        If the formats do not go together or a parameter is out of range.

    Notes
    -----
    Output-stationary, weights resident: the weight rows of a panel stay in one of two buffers
    while all activations stream by, and the next panel is loaded into the other one; that of the
    next command too. docs/gemm.md has the numbers behind this choice.
    """

    beats_per_group = 1

    def __init__(
        self,
        *,
        act: BlockFormat = M2XFP_ACT,
        weight: BlockFormat = M2XFP_WEIGHT,
        rows: int = 1,
        columns: int = 32,
        max_k: int = 4096,
        depth: int = 2,
        chains: int = 3,
        activations: InputType | None = None,
        results: str = "fp32",
    ) -> None:
        self.pair = pair = DotPair(act, weight)
        for name, number, most in (
            ("rows", rows, None),
            ("columns", columns, None),
            ("depth", depth, 2),
            ("chains", chains, 3),
        ):
            if number < 1 or (most and number > most):
                limit = f"from 1 to {most}" if most else "at least 1"
                raise InputError(f"{name}={number}: must be {limit}")
        if not pair.group <= max_k < 1 << SIZE_BITS or max_k % pair.group:
            raise InputError(
                f"max_k={max_k}: must be a multiple of the group of {pair.group}, at least one "
                f"group and below {1 << SIZE_BITS}"
            )
        if results not in RESULTS:
            raise InputError(f"results={results!r}; choose one of: {', '.join(RESULTS)}")
        if results == "packed" and columns != pair.group:
            raise InputError(
                f"columns={columns}: packed results need one column for each of the {pair.group} "
                "values of a group"
            )
        self.rows, self.columns, self.max_k, self.depth, self.chains = (
            rows,
            columns,
            max_k,
            depth,
            chains,
        )
        self.activations, self.results = activations, results
        self._array = GemmArray(pair, rows, columns, depth, chains)
        self._engines = (
            [
                ActivationQuantizer(input_type=activations, lanes=act.group, block=act)
                for _ in range(rows)
            ]
            if activations
            else []
        )
        self._requantizer = (
            ActivationQuantizer(input_type=FP32, lanes=act.group, block=act)
            if results == "packed"
            else None
        )
        self.input_latency = self._engines[0].latency if self._engines else 0
        self.output_latency = self._requantizer.latency if self._requantizer else 0
        self.array_latency = self._array.latency
        self.latency = self.input_latency + self.array_latency + 1 + self.output_latency
        self.groups_per_clock = rows * columns
        self.macs_per_clock = self.groups_per_clock * pair.group
        self.clocks_per_block = chains * max_k // pair.group
        incoming = (
            data.ArrayLayout(value_layout(activations), pair.group)
            if activations
            else group_layout(act)
        )
        outgoing = {
            "fp32": data.ArrayLayout(value_layout(FP32), columns),
            "bf16": data.ArrayLayout(value_layout(BF16), columns),
            "packed": group_layout(act),
        }[results]
        super().__init__(
            {
                "cmd": In(packet_stream(command_layout)),
                "weights": In(packet_stream(group_layout(weight))),
                "acts": In(packet_stream(data.ArrayLayout(incoming, rows))),
                "o": Out(packet_stream(outgoing)),
                "status": Out(packet_stream(status_layout)),
            }
        )

    def build(self) -> Module:
        """Build loader, weight buffers, sequencer, array and result path."""
        m = Module()
        rows, columns = self.rows, self.columns
        max_groups = self.max_k // self.pair.group
        m.submodules.loader = loader = Loader(self.pair, columns, max_groups)
        m.submodules.sequencer = sequencer = Sequencer(rows, columns, self.chains, max_groups)
        m.submodules.array = array = self._array
        m.submodules.queue = queue = ResultQueue(rows, columns, max(2, self.chains))
        wiring.connect(m, wiring.flipped(self.cmd), loader.cmd)
        wiring.connect(m, wiring.flipped(self.weights), loader.weights)
        wiring.connect(m, loader.job, sequencer.job)
        wiring.connect(m, queue.status, wiring.flipped(self.status))

        full = Signal(2)
        suspect = Signal(2, reset_less=True)
        m.d.comb += [
            loader.full.eq(full),
            sequencer.full.eq(full),
            sequencer.suspect.eq(suspect),
        ]
        with m.If(sequencer.released):
            m.d.sync += full.bit_select(sequencer.buffer, 1).eq(0)
        with m.If(loader.filled):
            m.d.sync += [
                full.bit_select(loader.buffer, 1).eq(1),
                suspect.bit_select(loader.buffer, 1).eq(loader.misframed),
            ]

        for column in range(columns):
            m.submodules[f"bank_{column}"] = bank = WeightBank(
                group_layout(self.pair.weight), 2 * max_groups
            )
            m.d.comb += [
                bank.write.eq(loader.write[column]),
                bank.write_address.eq(2 * loader.address + loader.buffer),
                bank.write_data.eq(self.weights.payload.data),
                bank.read.eq(sequencer.read),
                bank.read_address.eq(2 * sequencer.address + sequencer.buffer),
                array.weights[column].eq(bank.read_data),
            ]

        # The array stands still while a result finds no room.
        step = Signal()
        steps = self.array_latency
        ended = delayed(m, step, "tile_valid", sequencer.tile_valid, steps, reset=True)
        tile = sequencer.tile.as_value()
        for n in range(steps):
            tile = register(m, step, f"tile_{n + 1}", tile)
        m.d.comb += [
            step.eq(~ended | queue.ready),
            sequencer.enable.eq(step),
            array.enable.eq(step),
            array.valid.eq(sequencer.issue),
            array.first.eq(sequencer.first),
            queue.accs.eq(array.accs),
            queue.tile.eq(tile),
            queue.valid.eq(ended),
        ]
        self._take_activations(m, sequencer, array)
        self._give_results(m, queue)
        return m

    def _take_activations(self, m: Module, sequencer: Sequencer, array: GemmArray) -> None:
        """Connect the activations with the array, through an engine a row if they need one."""
        acts = self.acts
        if not self._engines:
            m.d.comb += [
                array.acts.eq(acts.payload.data),
                sequencer.act_valid.eq(acts.valid),
                sequencer.act_last.eq(acts.payload.last),
                acts.ready.eq(sequencer.act_ready),
            ]
            return
        # All engines get and give at the same time, so the first one speaks for all.
        for row, engine in enumerate(self._engines):
            m.submodules[f"engine_{row}"] = engine
            m.d.comb += [
                engine.i.payload.data.eq(acts.payload.data[row]),
                engine.i.payload.last.eq(acts.payload.last),
                engine.i.valid.eq(acts.valid),
                engine.o.ready.eq(sequencer.act_ready),
                array.acts[row].eq(engine.o.payload.data),
            ]
        leader = self._engines[0]
        m.d.comb += [
            acts.ready.eq(leader.i.ready),
            sequencer.act_valid.eq(leader.o.valid),
            sequencer.act_last.eq(leader.o.payload.last),
        ]

    def _give_results(self, m: Module, queue: ResultQueue) -> None:
        """Connect the results with the output, rounded or quantized if asked for."""
        if self._requantizer is not None:
            m.submodules.requantizer = requantizer = self._requantizer
            wiring.connect(m, queue.o, requantizer.i)
            wiring.connect(m, requantizer.o, wiring.flipped(self.o))
            return
        m.d.comb += [
            self.o.valid.eq(queue.o.valid),
            queue.o.ready.eq(self.o.ready),
            self.o.payload.last.eq(queue.o.payload.last),
        ]
        for n in range(self.columns):
            value = queue.o.payload.data[n]
            if self.results == "bf16":
                value = round_to_bf16(m, value, f"rounded_{n}")
            m.d.comb += self.o.payload.data[n].eq(value)
