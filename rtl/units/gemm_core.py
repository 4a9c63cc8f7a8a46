"""The GEMM core: packed or floating-point activations times packed weights, any size of matrix."""

from typing import Annotated

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, FP32, M2XFP_ACT, M2XFP_WEIGHT, BlockFormat, InputType
from m2xfp.rtl.parameters import Between, Names, checked
from m2xfp.rtl.parts.dot_pair import Activations, DotPair, Weights
from m2xfp.rtl.parts.fp32_rounding import round_to_bf16
from m2xfp.rtl.parts.gemm_array import GemmArray
from m2xfp.rtl.parts.gemm_buffers import ResultFifo
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.gemm_layouts import command_layout, status_layout, tagged, weights_layout
from m2xfp.rtl.parts.gemm_loader import Loader
from m2xfp.rtl.parts.gemm_sequencer import Sequencer
from m2xfp.rtl.parts.gemm_tags import TagQueue
from m2xfp.rtl.parts.layouts import group_layout, value_layout
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.parts.word_memory import WordMemory
from m2xfp.rtl.units.activation_quantizer import ActivationQuantizer
from m2xfp.rtl.verilog.component import Component

__all__ = ["RESULTS", "GemmCore"]

RESULTS = ("fp32", "bf16", "packed")


def _quantizer(block: BlockFormat, kind: InputType) -> ActivationQuantizer:
    """Return an engine for a whole group a clock."""
    try:
        return ActivationQuantizer(input_type=kind, lanes=block.group, block=block)
    except InputError as error:
        raise InputError(
            f"act={block.name}: the core cannot quantize to it ({error}); set activations=none and "
            "results=fp32 or bf16"
        ) from error


class GemmCore(Component):
    """Multiply activations [m, k] with weights [n, k], results [m, n], sizes at run time.

    out[i, j] = the FP32 accumulation over rising k of the exact group products, one rounding a
    group, bit for bit that of docs/format.md section 7: all rules for NaN, infinities, zeros and
    subnormals are those of ``Fp32Accumulator``. Source: M2XFP (arXiv 2601.19213) Sec. 5.

    Parameters
    ----------
    act
        Format of the activations: E2M1 elements, with Elem-EM metadata of two bits or without.
    weight
        Format of the weights: E2M1 elements, with Sg-EM metadata of two bits or without. Group,
        scale and, where both have one, subgroup are those of the activations.
    rows
        Rows of the array: activation rows that are multiplied at the same time. Every cell takes a
        group of products a clock.
    columns
        Columns of the array: weight rows that are multiplied at the same time, each with a memory
        of its own.
    max_k
        Largest k: the depth of the weight buffers, a multiple of the group.
    depth
        Register stages of a cell's product: 1, at the product, or 2, at the sums of its parts too.
    chains
        Accumulators a cell, used in turn: the register stages of the accumulation.
    activations
        Type in which activations come, for a quantization engine a row; none if they come packed.
    results
        How results leave: as fp32; as bf16, rounded once more, to nearest even; or packed,
        quantized to the activations' format, which takes as many columns as a group has values.
    weight_rows
        Weight rows whose groups come in one beat, a divisor of columns: as many groups a clock
        as memory gives, where loading weights decides.

    Members
    -------
    cmd : In(packet_stream(command_layout))
        m, n, k, each at least 1; k is a multiple of the group and at most ``max_k``. ``tag`` is the
        command's own, best a number that counts up. ``resync`` ends the failure that a misframed
        command began; its sizes are ignored, and it computes nothing. ``last`` is ignored.
    weights : In(packet_stream(tagged("group", group)))
        The packed weight matrix [n, k], row by row, once; ``last`` on the last group, the command's
        ``tag`` in each. With ``weight_rows`` above one ``rows`` instead of ``group``, a group of
        each of so many rows; rows beyond n are ignored.
    acts : In(packet_stream(tagged("rows", ArrayLayout(group or values, rows))))
        The activation matrix, once for each panel of ``columns`` weight rows. Within a panel, for
        each block of ``rows * chains`` rows: for each group of k: the block's rows, ``rows`` a
        beat. A beat's rows beyond m are ignored; beats of nothing but such rows are left out.
        ``last`` on the last beat of the last panel, the command's ``tag`` in each.
    o : Out(packet_stream(ArrayLayout(value, columns) or group))
        Results: for each panel, for each row, a beat; columns beyond n are 0. ``last`` on the last.
    status : Out(packet_stream(status_layout))
        One beat a command, in order, with its tag, when its last row has left the array. ``bad_m``,
        ``bad_n``, ``bad_k``: this size is zero or not supported; nothing was read or computed.
        ``misframed``: an operand had another tag, or ``last`` was not where the command's sizes
        put it; results that were given before it was seen are closed by a row of zeros with
        ``last``. Every command after it is misframed too and gives no results, and operands are
        taken and dropped, until one with ``resync``.
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

    @checked
    def __init__(
        self,
        *,
        act: Activations = M2XFP_ACT,
        weight: Weights = M2XFP_WEIGHT,
        rows: Annotated[int, Between(1, 1024, usual=(1, 2, 3))] = 1,
        columns: Annotated[int, Between(1, 1024, usual=(1, 2, 3, 16))] = 32,
        max_k: Annotated[int, Between(8, (1 << SIZE_BITS) - 1, usual=(32, 64, 512))] = 4096,
        depth: Annotated[int, Between(1, 2)] = 2,
        chains: Annotated[int, Between(1, 3)] = 3,
        activations: InputType | None = None,
        results: Annotated[str, Names(RESULTS)] = "fp32",
        weight_rows: Annotated[int, Between(1, 64, usual=(1,))] = 1,
    ) -> None:
        self.pair = pair = DotPair(act, weight)
        if max_k % pair.group:
            raise InputError(f"max_k={max_k}: must be a multiple of the group of {pair.group}")
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
        if columns % weight_rows:
            raise InputError(f"weight_rows={weight_rows}: must divide the {columns} columns")
        self.activations, self.results, self.weight_rows = activations, results, weight_rows
        self._array = GemmArray(pair, rows, columns, depth, chains)
        self._engines = [_quantizer(act, activations) for _ in range(rows)] if activations else []
        self._requantizer = _quantizer(act, FP32) if results == "packed" else None
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
                "weights": In(packet_stream(weights_layout(weight, weight_rows))),
                "acts": In(packet_stream(tagged("rows", data.ArrayLayout(incoming, rows)))),
                "o": Out(packet_stream(outgoing)),
                "status": Out(packet_stream(status_layout)),
            }
        )

    def build(self) -> Module:
        """Build loader, weight buffers, sequencer, array and result path."""
        m = Module()
        rows, columns = self.rows, self.columns
        max_groups = self.max_k // self.pair.group
        m.submodules.loader = loader = Loader(self.pair, columns, max_groups, self.weight_rows)
        m.submodules.sequencer = sequencer = Sequencer(rows, columns, self.chains, max_groups)
        m.submodules.array = array = self._array
        m.submodules.result_fifo = fifo = ResultFifo(rows, columns, max(2, self.chains))
        wiring.connect(m, wiring.flipped(self.cmd), loader.cmd)
        wiring.connect(m, wiring.flipped(self.weights), loader.weights)
        wiring.connect(m, loader.job, sequencer.job)
        wiring.connect(m, fifo.status, wiring.flipped(self.status))

        full = Signal(2)
        suspect = Signal(2, reset_less=True)
        m.d.comb += [
            loader.full.eq(full),
            sequencer.full.eq(full),
            sequencer.suspect.eq(suspect),
            loader.stop.eq(sequencer.stop),
            loader.resync.eq(sequencer.resync),
        ]
        with m.If(sequencer.released):
            m.d.sync += full.bit_select(sequencer.buffer, 1).eq(0)
        with m.If(loader.filled):
            m.d.sync += [
                full.bit_select(loader.buffer, 1).eq(1),
                suspect.bit_select(loader.buffer, 1).eq(loader.misframed),
            ]
        with m.If(sequencer.resync):
            m.d.sync += full.eq(0)

        self._connect_weights(m, loader, sequencer, array)
        # The array stands still while a result finds no room.
        step = Signal()
        steps = self.array_latency
        ended = delayed(m, step, "tile_valid", sequencer.tile_valid, steps, reset=True)
        tile = sequencer.tile.as_value()
        for n in range(steps):
            tile = register(m, step, f"tile_{n + 1}", tile)
        m.d.comb += [
            step.eq(~ended | fifo.ready),
            sequencer.enable.eq(step),
            array.enable.eq(step),
            array.valid.eq(sequencer.issue),
            array.first.eq(sequencer.first),
            fifo.accs.eq(array.accs),
            fifo.tile.eq(tile),
            fifo.valid.eq(ended),
        ]
        self._take_activations(m, sequencer, array)
        self._give_results(m, fifo)
        return m

    def _connect_weights(
        self, m: Module, loader: Loader, sequencer: Sequencer, array: GemmArray
    ) -> None:
        """Give each column a memory of both weight buffers, their groups in turn."""
        max_groups = self.max_k // self.pair.group
        beat = self.weights.payload.data
        groups = [beat.group] if self.weight_rows == 1 else list(beat.rows)
        for column in range(self.columns):
            m.submodules[f"bank_{column}"] = bank = WordMemory(
                group_layout(self.pair.weight).size, 2 * max_groups
            )
            m.d.comb += [
                bank.write.eq(loader.write[column]),
                bank.write_address.eq(2 * loader.address + loader.buffer),
                bank.write_data.eq(groups[column % len(groups)]),
                bank.read.eq(sequencer.read),
                bank.read_address.eq(2 * sequencer.address + sequencer.buffer),
                array.weights[column].eq(bank.read_data),
            ]

    def _take_activations(self, m: Module, sequencer: Sequencer, array: GemmArray) -> None:
        """Connect the activations with the array, through an engine a row if they need one."""
        acts = self.acts
        if not self._engines:
            m.d.comb += [
                array.acts.eq(acts.payload.data.rows),
                sequencer.act_tag.eq(acts.payload.data.tag),
                sequencer.quiet.eq(1),
                sequencer.act_valid.eq(acts.valid),
                sequencer.act_last.eq(acts.payload.last),
                acts.ready.eq(sequencer.act_ready),
            ]
            return
        # All engines get and give at the same time, so the first one speaks for all.
        for row, engine in enumerate(self._engines):
            m.submodules[f"engine_{row}"] = engine
            m.d.comb += [
                engine.i.payload.data.eq(acts.payload.data.rows[row]),
                engine.i.payload.last.eq(acts.payload.last),
                engine.i.valid.eq(acts.valid),
                engine.o.ready.eq(sequencer.act_ready),
                array.acts[row].eq(engine.o.payload.data),
            ]
        leader = self._engines[0]
        m.submodules.tags = tags = TagQueue(leader.latency)
        m.d.comb += [
            tags.push.eq(acts.valid & leader.i.ready),
            tags.i.eq(acts.payload.data.tag),
            tags.pop.eq(leader.o.valid & sequencer.act_ready),
            sequencer.act_tag.eq(tags.o),
            sequencer.quiet.eq(tags.empty),
            acts.ready.eq(leader.i.ready),
            sequencer.act_valid.eq(leader.o.valid),
            sequencer.act_last.eq(leader.o.payload.last),
        ]

    def _give_results(self, m: Module, fifo: ResultFifo) -> None:
        """Connect the results with the output, rounded or quantized if asked for."""
        if self._requantizer is not None:
            m.submodules.requantizer = requantizer = self._requantizer
            wiring.connect(m, fifo.o, requantizer.i)
            wiring.connect(m, requantizer.o, wiring.flipped(self.o))
            return
        m.d.comb += [
            self.o.valid.eq(fifo.o.valid),
            fifo.o.ready.eq(self.o.ready),
            self.o.payload.last.eq(fifo.o.payload.last),
        ]
        for n in range(self.columns):
            value = fifo.o.payload.data[n]
            if self.results == "bf16":
                value = round_to_bf16(m, value, f"rounded_{n}")
            m.d.comb += self.o.payload.data[n].eq(value)
