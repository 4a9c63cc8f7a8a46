"""The mixed GEMM: products whose k is cut into segments of different formats."""

from typing import Annotated

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, FP32
from m2xfp.pairs import pair_set
from m2xfp.rtl.parameters import Among, Between, Names, PairTexts, checked
from m2xfp.rtl.parts.fp32_rounding import round_to_bf16
from m2xfp.rtl.parts.gemm_buffers import ResultFifo
from m2xfp.rtl.parts.gemm_layouts import tagged
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.mixed_layouts import (
    mixed_command_layout,
    mixed_status_layout,
    word_layout,
)
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.parts.segment_checker import SegmentChecker
from m2xfp.rtl.parts.segment_sums import SegmentSums
from m2xfp.rtl.parts.slot_array import SlotArray
from m2xfp.rtl.parts.slot_sequencer import SlotLoader, SlotSequencer
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.parts.word_memory import WordMemory
from m2xfp.rtl.verilog.component import Component

__all__ = ["RESULTS", "MixedGemm"]

RESULTS = ("segments", "fp32", "bf16")


class MixedGemm(Component):
    """Multiply activations [m, k] with weights [n, k] whose k is cut into segments by format.

    A command's segment table says which pair of formats each segment has. A group of E2M1 elements
    on both sides is a **beat**, one of wider elements on either side is several: ``fp8_lanes``
    values each, packed as they are in the group, with their part of the metadata. The array takes a
    beat a clock. Sources: MicroMix and MXQuant, as docs/format.md has them.

    Parameters
    ----------
    pairs
        The pairs of formats: a name or ACT:WEIGHT+ACT:WEIGHT..., see m2xfp/pairs.py.
    fp8_lanes
        Products a cell and clock of elements wider than E2M1.
    rows
        Rows of the array: activation rows that are multiplied at the same time.
    columns
        Columns of the array: weight rows that are multiplied at the same time, each with a memory
        of its own.
    max_k
        Largest k of groups of several beats alone, a multiple of 32; of FP4 groups twice or four
        times as much fits.
    chains
        Accumulators a cell, used in turn: the register stages of the accumulation, whose sums are
        split as well with 4.
    tile
        Channels of which every segment has a multiple.
    results
        How results come about: segments, each segment accumulated in FP32 from zero, and the
        result so far plus the segment rounded once to bf16; fp32, one FP32 accumulation
        throughout; bf16, that rounded once more.

    Members
    -------
    cmd : In(packet_stream(mixed_command_layout))
        m, n, k, each at least 1, ``tag`` and ``resync`` as for ``GemmCore``, and ``segments``: for
        each the number of the group behind it (``end``) and the formats of its groups. Ends do not
        fall, are whole tiles, and the last one is that of k. ``last`` is ignored.
    weights : In(packet_stream(tagged("beat", word)))
        The beats of the weight matrix, row by row, once; ``last`` on the last one, the command's
        ``tag`` in each. Bits of ``codes`` beyond a beat's values are ignored.
    acts : In(packet_stream(tagged("rows", ArrayLayout(word, rows))))
        The beats of the activation matrix, once for each panel of ``columns`` weight rows. Within a
        panel, for each block of ``rows * chains`` rows: for each beat of k: the block's rows,
        ``rows`` a beat, as for ``GemmCore``.
    o : Out(packet_stream(ArrayLayout(value, columns)))
        Results: for each panel, for each row, a beat; columns beyond n are 0. ``last`` on the last.
    status : Out(packet_stream(mixed_status_layout))
        One beat a command, in order, with its tag. ``bad_m``, ``bad_n``, ``bad_k``,
        ``bad_segments``, ``bad_pair``: nothing was read or computed, see ``SegmentChecker``.
        ``misframed`` as for ``GemmCore``.
    latency
        Clocks from the acceptance of a result's last activation beat to the result at ``o``, when
        nothing stalls.
    macs_per_clock
        Multiplications of FP4 a clock at most.
    groups_per_clock
        Pairs of FP4 groups that are multiplied in a clock, at most.
    clocks_per_block
        Clocks that a block of rows takes at the most beats.

    Raises
    ------
    InputError
        If the pairs make no set or ``max_k`` is no number of groups.

    Notes
    -----
    The control is that of ``GemmCore``, and counts beats of k where that counts groups. Beats of a
    group are ``chains`` steps apart, so a cell keeps the exact sum of as many groups at a time.
    """

    beats_per_group = 1

    @checked
    def __init__(
        self,
        *,
        pairs: Annotated[str, PairTexts()] = "micromix",
        fp8_lanes: Annotated[int, Among((8, 16))] = 16,
        rows: Annotated[int, Between(1, 1024, usual=(1, 2, 3))] = 1,
        columns: Annotated[int, Between(1, 1024, usual=(1, 2, 3))] = 32,
        max_k: Annotated[int, Between(32, 1 << 18, usual=(128, 256, 512))] = 4096,
        chains: Annotated[int, Between(1, 4)] = 4,
        tile: Annotated[int, Among((32, 64, 128))] = 128,
        results: Annotated[str, Names(RESULTS)] = "segments",
    ) -> None:
        known = pair_set(pairs)
        act, weight = known.wide[0]
        self.pair = pair = SwitchPair(act, weight, known, fp8_lanes)
        if max_k % pair.group:
            raise InputError(f"max_k={max_k}: must be a multiple of the group of {pair.group}")
        self.rows, self.columns, self.chains, self.tile = rows, columns, chains, tile
        self.results = results
        self.depth = max_k // fp8_lanes
        self._array = SlotArray(pair, rows, columns, chains)
        self.array_latency = self._array.latency
        self.output_latency = SegmentSums.latency if results == "segments" else 0
        self.latency = self.array_latency + 1 + self.output_latency
        self.groups_per_clock = rows * columns
        self.macs_per_clock = self.groups_per_clock * pair.group
        self.clocks_per_block = chains * self.depth
        word = word_layout(pair)
        value = value_layout(FP32 if results == "fp32" else BF16)
        super().__init__(
            {
                "cmd": In(packet_stream(mixed_command_layout)),
                "weights": In(packet_stream(tagged("beat", word))),
                "acts": In(packet_stream(tagged("rows", data.ArrayLayout(word, rows)))),
                "o": Out(packet_stream(data.ArrayLayout(value, columns))),
                "status": Out(packet_stream(mixed_status_layout)),
            }
        )

    def build(self) -> Module:
        """Build checker, loader, weight buffers, sequencer, array and result path."""
        m = Module()
        rows, columns, chains, depth = self.rows, self.columns, self.chains, self.depth
        m.submodules.checker = checker = SegmentChecker(self.pair, self.tile, depth)
        m.submodules.loader = loader = SlotLoader(self.pair, columns, depth)
        m.submodules.sequencer = sequencer = SlotSequencer(
            rows, columns, chains, depth, self.pair, self.results == "segments"
        )
        m.submodules.array = array = self._array
        m.submodules.result_fifo = fifo = ResultFifo(
            rows, columns, max(2, chains), sequencer.tile.shape(), mixed_status_layout
        )
        wiring.connect(m, wiring.flipped(self.cmd), checker.cmd)
        m.d.comb += [
            loader.cmd.payload.data.eq(checker.o.payload),
            loader.cmd.valid.eq(checker.o.valid),
            checker.o.ready.eq(loader.cmd.ready),
        ]
        wiring.connect(m, wiring.flipped(self.weights), loader.weights)
        wiring.connect(m, loader.job, sequencer.job)
        wiring.connect(m, fifo.status, wiring.flipped(self.status))
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
            sequencer.quiet.eq(1),
            sequencer.act_tag.eq(self.acts.payload.data.tag),
            sequencer.act_valid.eq(self.acts.valid),
            sequencer.act_last.eq(self.acts.payload.last),
            self.acts.ready.eq(sequencer.act_ready),
            array.enable.eq(step),
            array.acts.eq(self.acts.payload.data.rows),
            array.kind.eq(sequencer.kind),
            array.valid.eq(sequencer.issue),
            array.first.eq(sequencer.first),
            fifo.accs.eq(array.accs),
            fifo.tile.eq(tile),
            fifo.valid.eq(ended),
        ]
        self._give_results(m, fifo)
        return m

    def _connect_weights(
        self, m: Module, loader: SlotLoader, sequencer: SlotSequencer, array: SlotArray
    ) -> None:
        """Give each column a memory of both weight buffers, and say which of these are full."""
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
        for column in range(self.columns):
            m.submodules[f"bank_{column}"] = bank = WordMemory(
                word_layout(self.pair).size, 2 * self.depth
            )
            m.d.comb += [
                bank.write.eq(loader.write[column]),
                bank.write_address.eq(2 * loader.address + loader.buffer),
                bank.write_data.eq(self.weights.payload.data.beat),
                bank.read.eq(sequencer.read),
                bank.read_address.eq(2 * sequencer.address + sequencer.buffer),
                array.weights[column].eq(bank.read_data),
            ]

    def _give_results(self, m: Module, fifo: ResultFifo) -> None:
        """Connect the results with the output, added up by segment or rounded if asked for."""
        if self.results == "segments":
            m.submodules.sums = sums = SegmentSums(self.columns, self.rows * self.chains)
            wiring.connect(m, fifo.o, sums.i)
            wiring.connect(m, sums.o, wiring.flipped(self.o))
            m.d.comb += [
                sums.place.eq(fifo.now.chain * self.rows + fifo.row),
                sums.begins.eq(fifo.now.begins | (fifo.now.lanes == 0)),
                sums.given.eq(fifo.now.given),
            ]
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
