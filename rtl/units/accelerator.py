"""The accelerator: packed matrices in memory, products in memory, descriptors in registers."""

from collections.abc import Mapping
from math import gcd
from types import MappingProxyType
from typing import Annotated

from amaranth.hdl import (
    ClockDomain,
    ClockSignal,
    DomainRenamer,
    Module,
    Mux,
    ResetSignal,
    Signal,
)
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, FP32, M2XFP_ACT, M2XFP_WEIGHT, BlockFormat, InputType
from m2xfp.rtl.parameters import Between, Names, checked
from m2xfp.rtl.parts.accelerator_parts import Masters, Movers
from m2xfp.rtl.parts.accelerator_registers import ADDRESS_BITS, AcceleratorRegisters
from m2xfp.rtl.parts.accelerator_run import run_descriptors
from m2xfp.rtl.parts.axi_channels import (
    address_layout,
    lite_address_layout,
    lite_read_layout,
    lite_write_layout,
    read_layout,
    response_layout,
    write_layout,
)
from m2xfp.rtl.parts.axi_reader import AxiReader
from m2xfp.rtl.parts.axi_writer import AxiWriter
from m2xfp.rtl.parts.descriptor_checker import (
    ENCODE,
    FP32_VALUES,
    GEMM,
    PACKED,
    Abilities,
    DescriptorChecker,
)
from m2xfp.rtl.parts.dot_pair import ByteActivations, ByteWeights
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.operand_fetcher import OperandFetcher
from m2xfp.rtl.parts.packing_engine import Engine, PackingEngine, engine_kinds
from m2xfp.rtl.parts.plane_writer import PlaneWriter
from m2xfp.rtl.parts.result_writer import ResultWriter
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.units.activation_quantizer import ActivationQuantizer
from m2xfp.rtl.units.gemm_core import GemmCore
from m2xfp.rtl.units.weight_encoder import WeightEncoder
from m2xfp.rtl.verilog.component import Component

__all__ = ["Accelerator"]

_BUSES = ("128", "256", "512", "1024")
_VALUE_CHUNK = 16  # beats of values that are read together at most


class Accelerator(Component):
    """Multiply packed matrices in memory, and pack values, as descriptors in registers say.

    GEMM: out[i, j] = the product of row i of the activations and row j of the weights, bit for bit
    that of ``GemmCore``. QUANTIZE and ENCODE: the planes of a packed matrix, those of
    ``ActivationQuantizer`` and ``WeightEncoder``. Descriptors run in order, one after the other. A
    descriptor with an error ends with its cause; what it had not written yet is not written, and
    the next one runs.

    Parameters
    ----------
    act, weight
        Formats of the operands, as of the GEMM core.
    rows, columns
        Shape of its array.
    max_k
        Largest k of a product.
    depth, chains
        Its register stages.
    quantizer, encoder
        Types of the values that are packed in the format of activations, and of weights: with fp32
        bf16 is taken too. None leaves the engine out. With quantizer fp32 and as many columns
        as a group has values, results can be packed.
    bus
        Bits of the data of the three memory buses.
    address_bits
        Bits of their addresses.
    chunk
        Groups of a row that are read together at most. Where it is more than the bytes of the bus,
        longer rows are read in multiples of these.
    slots
        Such chunks, of each row of a block, that are read ahead or kept, a power of two: what hides
        the memory's latency. Activations of one block that fit them are read once.
    outstanding
        Bursts that each reading bus has under way at most, a power of two.
    queue
        Descriptors that wait at most, a power of two.

    Members
    -------
    control_aw, control_w, control_b, control_ar, control_r
        AXI4-Lite: the registers of docs/accelerator-registers.md.
    acts_ar, acts_r, weights_ar, weights_r, results_aw, results_w, results_b
        AXI4: two masters that read, and one that writes.
    irq : Out(1)
        An enabled interrupt is pending.
    latency
        Clocks from the last word of a result's activations to the address that it is written to,
        when nothing stalls.
    macs_per_clock, groups_per_clock
        Of the array, at most.

    Raises
    ------
    InputError
        If the formats do not go together or a parameter is out of range.
    """

    beats_per_group = 1
    # AXI4 buses, and whether the accelerator is their master (`m2xfp.rtl.verilog.axi_ports`).
    axi_buses: Mapping[str, bool] = MappingProxyType(
        {"control": False, "acts": True, "weights": True, "results": True}
    )

    @checked
    def __init__(
        self,
        *,
        act: ByteActivations = M2XFP_ACT,
        weight: ByteWeights = M2XFP_WEIGHT,
        rows: Annotated[int, Between(1, 64, usual=(1, 2))] = 1,
        columns: Annotated[int, Between(1, 256, usual=(1, 2, 3))] = 32,
        max_k: Annotated[int, Between(8, (1 << SIZE_BITS) - 1, usual=(32, 64, 512))] = 4096,
        depth: Annotated[int, Between(1, 2)] = 2,
        chains: Annotated[int, Between(1, 3)] = 3,
        quantizer: InputType | None = FP32,
        encoder: InputType | None = BF16,
        bus: Annotated[str, Names(_BUSES)] = "256",
        address_bits: Annotated[int, Between(32, 64, usual=(32, 40))] = 32,
        chunk: Annotated[int, Between(1, 256, usual=(1, 2, 8))] = 64,
        slots: Annotated[int, Between(2, 32, usual=(2, 4))] = 4,
        outstanding: Annotated[int, Between(4, 64, usual=(4, 16))] = 32,
        queue: Annotated[int, Between(2, 16, usual=(2, 4))] = 4,
    ) -> None:
        for name, number in (("queue", queue), ("slots", slots), ("outstanding", outstanding)):
            if number & (number - 1):
                raise InputError(f"{name}={number}: must be a power of two")
        for name, kind in (("quantizer", quantizer), ("encoder", encoder)):
            if kind not in (None, FP32, BF16):
                raise InputError(f"{name}={kind.name}: memory has values of fp32 or bf16")
        for block in (act, weight):
            if block.group_bytes[1] > 1 or block.group_bytes[2] > 1:
                raise InputError(
                    f"{block.name}: a group has more than a byte of scale or of metadata, which is "
                    "what the accelerator moves; take larger subgroups"
                )
        self.bus_bytes, self.address_bits, self.chunk = int(bus) // 8, address_bits, chunk
        self.code_bytes = act.group_bytes[0]
        # As many weight rows come at the same time as a word of the bus has groups.
        weight_rows = gcd(columns, max(1, self.bus_bytes // self.code_bytes))
        self.core = GemmCore(
            act=act,
            weight=weight,
            rows=rows,
            columns=columns,
            max_k=max_k,
            depth=depth,
            chains=chains,
            weight_rows=weight_rows,
        )
        self.rows, self.columns, self.max_k, self.weight_rows = rows, columns, max_k, weight_rows
        self.act, self.weight, self.chains = act, weight, chains
        self.quantizer, self.encoder, self.slots, self.queue = quantizer, encoder, slots, queue
        self.outstanding = outstanding
        self.latency = self.core.latency + 5
        self.clocks_per_block = self.core.clocks_per_block
        self.groups_per_clock = self.core.groups_per_clock
        self.macs_per_clock = self.core.macs_per_clock
        self.abilities = Abilities(
            max_k=max_k,
            group=act.group,
            code_bytes=self.code_bytes,
            quantize=engine_kinds(quantizer),
            encode=engine_kinds(encoder),
            packed_results=quantizer is FP32 and columns == act.group,
            metadata=bool(act.subgroups or weight.subgroups),
        )
        # A beat of values is a word of the bus, or a group of bf16.
        self.unit_bytes = min(self.bus_bytes, 2 * act.group)
        self._engine = (
            PackingEngine(
                self.code_bytes,
                _engine("quantizer", act, quantizer, self.unit_bytes // 2),
                _engine("encoder", weight, encoder, self.unit_bytes // 2),
                self.unit_bytes // 2,
                columns if self.abilities.packed_results else 0,
            )
            if quantizer or encoder
            else None
        )
        address, read = address_layout(address_bits), read_layout(self.bus_bytes)
        super().__init__(
            {
                "control_aw": In(packet_stream(lite_address_layout(ADDRESS_BITS))),
                "control_w": In(packet_stream(lite_write_layout)),
                "control_b": Out(packet_stream(response_layout)),
                "control_ar": In(packet_stream(lite_address_layout(ADDRESS_BITS))),
                "control_r": Out(packet_stream(lite_read_layout)),
                "acts_ar": Out(packet_stream(address)),
                "acts_r": In(packet_stream(read)),
                "weights_ar": Out(packet_stream(address)),
                "weights_r": In(packet_stream(read)),
                "results_aw": Out(packet_stream(address)),
                "results_w": Out(packet_stream(write_layout(self.bus_bytes))),
                "results_b": In(packet_stream(response_layout)),
                "irq": Out(1),
            }
        )

    def build(self) -> Module:
        """Build registers, masters, fetchers and core, and what starts and ends descriptors."""
        m = Module()
        flush = Signal()
        # What an error ends is in a domain of its own, which is reset then. The masters are not:
        # what they have begun on the bus has to come to its end.
        m.domains.job = ClockDomain("job", local=True)
        m.d.comb += [
            ClockSignal("job").eq(ClockSignal()),
            ResetSignal("job").eq(ResetSignal() | flush),
        ]
        m.submodules.registers = registers = AcceleratorRegisters(self._constants(), self.queue)
        for channel in ("aw", "w", "ar"):
            wiring.connect(
                m, wiring.flipped(getattr(self, f"control_{channel}")), getattr(registers, channel)
            )
        for channel in ("b", "r"):
            wiring.connect(
                m, getattr(registers, channel), wiring.flipped(getattr(self, f"control_{channel}"))
            )
        m.d.comb += self.irq.eq(registers.irq)

        m.submodules.core = DomainRenamer("job")(self.core)
        movers = self._movers(m)
        masters = self._masters(m, movers, registers, flush)
        core, acts, weights = self.core, movers.acts, movers.weights
        groups = core.weights.payload.data
        m.d.comb += [
            core.acts.payload.data.rows.eq(acts.o.payload.data),
            core.acts.payload.last.eq(acts.o.payload.last),
            core.acts.valid.eq(acts.o.valid),
            acts.o.ready.eq(core.acts.ready),
            core.weights.payload.last.eq(weights.o.payload.last),
            core.weights.valid.eq(weights.o.valid),
            weights.o.ready.eq(core.weights.ready),
        ]
        if self.weight_rows == 1:
            m.d.comb += groups.group.eq(weights.o.payload.data[0])
        else:
            m.d.comb += groups.rows.eq(weights.o.payload.data)
        self._connect_engine(m, movers, registers)
        m.submodules.checker = checker = DescriptorChecker(self.address_bits, self.abilities)
        run_descriptors(m, flush, checker, registers, core, movers, masters)
        return m

    def _constants(self) -> dict[str, dict[str, int]]:
        """Return what the registers say of this build."""
        bus = {"bus_bytes": self.bus_bytes, "address_bits": self.address_bits, "depth": self.queue}
        return {
            "array": {"rows": self.rows, "columns": self.columns},
            "limits": {"max_k": self.max_k, "group": self.core.pair.group},
            "bus": bus,
            "features": self.abilities.features(),
        }

    def _movers(self, m: Module) -> Movers:
        """Return what moves data between the masters and the core."""
        pair, job = self.core.pair, DomainRenamer("job")
        bits, bus, slots = self.address_bits, self.bus_bytes, self.slots
        sizes, rows = (self.chunk, self.max_k // pair.group), self.weight_rows
        movers = Movers(
            acts=OperandFetcher(
                pair.act, bits, bus, self.rows, self.chains, *sizes, self.columns, slots
            ),
            weights=OperandFetcher(pair.weight, bits, bus, rows, 1, *sizes, None, slots),
            results=ResultWriter(self.columns, bits),
        )
        m.submodules.acts_fetcher = job(movers.acts)
        m.submodules.weights_fetcher = job(movers.weights)
        m.submodules.result_writer = job(movers.results)
        if self._engine is not None:
            chunk = min(_VALUE_CHUNK, self.chunk * slots)
            values = ((1 << SIZE_BITS) - 1) * FP32.width // 8 // self.unit_bytes
            movers.values = OperandFetcher(
                self.unit_bytes, bits, bus, 1, 1, chunk, values, None, slots
            )
            gather, down = 4 if bus < 64 else 8, self.abilities.packed_results
            movers.planes = PlaneWriter(self.code_bytes, gather, bits, down=down)
            m.submodules.values_fetcher = job(movers.values)
            m.submodules.plane_writer = job(movers.planes)
            m.submodules.packing = job(self._engine)
        return movers

    def _masters(
        self, m: Module, movers: Movers, registers: AcceleratorRegisters, flush: Signal
    ) -> Masters:
        """Build the masters, and connect them with what they serve."""
        bits, bus = self.address_bits, self.bus_bytes
        gemm = registers.descriptor.payload.operation == GEMM
        readers: list[AxiReader] = []
        served = (("acts", [movers.acts, movers.values]), ("weights", [movers.weights, None]))
        for name, (fetcher, other) in served:
            parts = [each for each in (fetcher, other) if each is not None]
            length = max(each.length_bits for each in parts)
            tag = max(each.tag_bits for each in parts)
            words = max(each.most_words for each in parts)
            reader = AxiReader(bits, bus, length, tag, words, self.outstanding)
            m.submodules[f"{name}_reader"] = reader
            readers.append(reader)
            wiring.connect(m, reader.ar, wiring.flipped(getattr(self, f"{name}_ar")))
            wiring.connect(m, wiring.flipped(getattr(self, f"{name}_r")), reader.r)
            m.d.comb += reader.flush.eq(flush)
            for each in parts:
                chosen = 1 if other is None else gemm if each is fetcher else ~gemm
                m.d.comb += [
                    each.request.ready.eq(reader.request.ready & chosen),
                    each.valid.eq(reader.valid & chosen),
                ]
                with m.If(chosen):
                    m.d.comb += reader.request.valid.eq(each.request.valid)
                    for part in ("address", "length", "skips", "tag"):
                        m.d.comb += reader.request.payload[part].eq(each.request.payload[part])
                for port in ("word", "tag", "first", "closes"):
                    m.d.comb += getattr(each, port).eq(getattr(reader, port))
        writers = [each for each in (movers.results, movers.planes) if each is not None]
        most = max(each.most_bytes for each in writers)
        writer = AxiWriter(bits, bus, most, max(each.most_words(bus) for each in writers))
        m.submodules.writer = writer
        wiring.connect(m, writer.aw, wiring.flipped(self.results_aw))
        wiring.connect(m, writer.w, wiring.flipped(self.results_w))
        wiring.connect(m, wiring.flipped(self.results_b), writer.b)
        m.d.comb += writer.flush.eq(flush)
        # At most one of them has a job.
        for each in writers:
            m.d.comb += each.piece.ready.eq(writer.piece.ready)
            with m.If(each.piece.valid):
                m.d.comb += writer.piece.valid.eq(1)
                for part in ("address", "length", "data"):
                    m.d.comb += writer.piece.payload[part].eq(each.piece.payload[part])
        return Masters(readers[0], readers[1], writer)

    def _connect_engine(self, m: Module, movers: Movers, registers: AcceleratorRegisters) -> None:
        """Lead values, or results, through the engines; without any results go to memory alone."""
        core, words = self.core, registers.descriptor.payload
        if self._engine is None or movers.values is None or movers.planes is None:
            wiring.connect(m, core.o, movers.results.i)
            return
        engine, values = self._engine, movers.values
        packs = Signal(name="packs_results")
        m.d.comb += [
            packs.eq((words.operation == GEMM) & (words.kind == PACKED)),
            engine.wide.eq(words.kind == FP32_VALUES),
            engine.encode.eq(words.operation == ENCODE),
            engine.packs_results.eq(packs),
            engine.i.valid.eq(values.o.valid),
            engine.i.payload.data.eq(values.o.payload.data[0].codes),
            engine.i.payload.last.eq(values.o.payload.last),
            values.o.ready.eq(engine.i.ready),
        ]
        wiring.connect(m, engine.o, movers.planes.i)
        m.d.comb += [
            movers.results.i.payload.eq(core.o.payload),
            movers.results.i.valid.eq(core.o.valid & ~packs),
            core.o.ready.eq(movers.results.i.ready),
        ]
        if self.abilities.packed_results:
            m.d.comb += [
                engine.results.payload.eq(core.o.payload),
                engine.results.valid.eq(core.o.valid & packs),
                core.o.ready.eq(Mux(packs, engine.results.ready, movers.results.i.ready)),
            ]


def _engine(name: str, block: BlockFormat, kind: InputType | None, lanes: int) -> Engine | None:
    """Return what packs values of a type in a format; a search takes a clock an offset."""
    if kind is None:
        return None
    try:
        if block.metadata.name != "sg-em":
            return ActivationQuantizer(input_type=kind, lanes=lanes, block=block)
        clocks = 3 * block.group // lanes
        return WeightEncoder(input_type=kind, clocks_per_group=clocks, block=block)
    except InputError as error:
        raise InputError(f"{name}={kind.name}: {error}; or leave it out: {name}=none") from error
