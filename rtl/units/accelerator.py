"""The accelerator: packed matrices in memory, products in memory, descriptors in registers."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from amaranth.hdl import Cat, ClockDomain, ClockSignal, DomainRenamer, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import M2XFP_ACT, M2XFP_WEIGHT
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parameters import Between, Names, checked
from m2xfp.rtl.parts.accelerator_registers import ADDRESS_BITS, AcceleratorRegisters
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
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, DescriptorChecker, first_cause
from m2xfp.rtl.parts.dot_pair import Activations, Weights
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.operand_fetcher import OperandFetcher
from m2xfp.rtl.parts.result_writer import ResultWriter
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.units.gemm_core import GemmCore
from m2xfp.rtl.verilog.component import Component

__all__ = ["Accelerator"]

_BUSES = ("128", "256", "512", "1024")


class Accelerator(Component):
    """Multiply packed matrices in memory, as descriptors in registers say.

    out[i, j] = the product of row i of the activations and row j of the weights, bit for bit that
    of ``GemmCore``. Descriptors run in order, one after the other. A descriptor with an error ends
    with its cause; what it had not written yet is not written, and the next one runs.

    Parameters
    ----------
    act, weight
        Formats of the operands, as of the GEMM core.
    rows, columns
        Shape of its array.
    max_k
        Largest k.
    depth, chains
        Its register stages.
    bus
        Bits of the data of the three memory buses.
    address_bits
        Bits of their addresses.
    chunk
        Groups of a row that are read together: two such chunks of each row of a block are kept.
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
        act: Activations = M2XFP_ACT,
        weight: Weights = M2XFP_WEIGHT,
        rows: Annotated[int, Between(1, 64, usual=(1, 2))] = 1,
        columns: Annotated[int, Between(1, 256, usual=(1, 2, 3))] = 32,
        max_k: Annotated[int, Between(8, (1 << SIZE_BITS) - 1, usual=(32, 64, 512))] = 4096,
        depth: Annotated[int, Between(1, 2)] = 2,
        chains: Annotated[int, Between(1, 3)] = 3,
        bus: Annotated[str, Names(_BUSES)] = "256",
        address_bits: Annotated[int, Between(32, 64, usual=(32, 40))] = 32,
        chunk: Annotated[int, Between(1, 128, usual=(1, 2, 8))] = 64,
        queue: Annotated[int, Between(2, 16, usual=(2, 4))] = 4,
    ) -> None:
        if queue & (queue - 1):
            raise InputError(f"queue={queue}: must be a power of two")
        self.core = GemmCore(
            act=act,
            weight=weight,
            rows=rows,
            columns=columns,
            max_k=max_k,
            depth=depth,
            chains=chains,
            results="fp32",
        )
        self.rows, self.columns, self.max_k = rows, columns, max_k
        self.act, self.weight, self.chains = act, weight, chains
        self.bus_bytes, self.address_bits, self.chunk = int(bus) // 8, address_bits, chunk
        self.queue = queue
        self.latency = self.core.latency + 5
        self.clocks_per_block = self.core.clocks_per_block
        self.groups_per_clock = self.core.groups_per_clock
        self.macs_per_clock = self.core.macs_per_clock
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
        pair, bits, bus = self.core.pair, self.address_bits, self.bus_bytes
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

        core = self.core
        m.submodules.core = DomainRenamer("job")(core)
        acts = OperandFetcher(pair.act, bits, bus, self.rows, self.chains, self.chunk, self.columns)
        weights = OperandFetcher(pair.weight, bits, bus, 1, 1, self.chunk, 1)
        results = ResultWriter(self.columns, bits)
        readers: list[AxiReader] = []
        for name, fetcher in (("acts", acts), ("weights", weights)):
            m.submodules[f"{name}_fetcher"] = DomainRenamer("job")(fetcher)
            reader = AxiReader(bits, bus, fetcher.length_bits, fetcher.tag_bits)
            m.submodules[f"{name}_reader"] = reader
            readers.append(reader)
            wiring.connect(m, fetcher.request, reader.request)
            wiring.connect(m, reader.ar, wiring.flipped(getattr(self, f"{name}_ar")))
            wiring.connect(m, wiring.flipped(getattr(self, f"{name}_r")), reader.r)
            m.d.comb += reader.flush.eq(flush)
            for port in ("valid", "word", "tag", "first", "closes"):
                m.d.comb += getattr(fetcher, port).eq(getattr(reader, port))
        m.submodules.result_writer = DomainRenamer("job")(results)
        m.submodules.writer = writer = AxiWriter(bits, bus, results.most_bytes)
        wiring.connect(m, results.piece, writer.piece)
        wiring.connect(m, writer.aw, wiring.flipped(self.results_aw))
        wiring.connect(m, writer.w, wiring.flipped(self.results_w))
        wiring.connect(m, wiring.flipped(self.results_b), writer.b)
        m.d.comb += writer.flush.eq(flush)

        m.d.comb += [
            core.acts.payload.data.rows.eq(acts.o.payload.data),
            core.acts.payload.last.eq(acts.o.payload.last),
            core.acts.valid.eq(acts.o.valid),
            acts.o.ready.eq(core.acts.ready),
            core.weights.payload.data.group.eq(weights.o.payload.data[0]),
            core.weights.payload.last.eq(weights.o.payload.last),
            core.weights.valid.eq(weights.o.valid),
            weights.o.ready.eq(core.weights.ready),
        ]
        wiring.connect(m, core.o, results.i)
        self._run(m, flush, registers, (acts, weights, results), (readers[0], readers[1], writer))
        return m

    def _constants(self) -> dict[str, dict[str, int]]:
        """Return what the registers say of this build."""
        return {
            "array": {"rows": self.rows, "columns": self.columns},
            "limits": {
                "max_k": self.max_k,
                "group": self.core.pair.group,
            },
            "bus": {
                "bus_bytes": self.bus_bytes,
                "address_bits": self.address_bits,
                "depth": self.queue,
            },
            "features": {
                "quantize_fp32": 0,
                "quantize_bf16": 0,
                "encode_fp32": 0,
                "encode_bf16": 0,
                "packed_results": 0,
            },
        }

    def _run(
        self,
        m: Module,
        flush: Signal,
        registers: AcceleratorRegisters,
        parts: tuple[OperandFetcher, OperandFetcher, ResultWriter],
        masters: tuple[AxiReader, AxiReader, AxiWriter],
    ) -> None:
        """Check a descriptor, start everything, wait for the end or for the first fault."""
        core, (acts, weights, results), (*_, writer) = self.core, parts, masters
        words, bits = registers.descriptor.payload, self.address_bits
        m.submodules.checker = checker = DescriptorChecker(
            bits,
            self.max_k,
            core.pair.group,
            core.pair.group * core.pair.act.element.bits // 8,
            metadata=bool(core.pair.act.subgroups or core.pair.weight.subgroups),
        )
        m.d.comb += checker.descriptor.eq(words)
        for part, side, number, others in (
            (acts, "a", words.m, words.n),
            (weights, "w", words.n, 1),
        ):
            job = part.job.payload
            m.d.comb += [
                job.codes.eq(Cat(words[f"{side}_codes"], words[f"{side}_codes_high"])),
                job.scales.eq(Cat(words[f"{side}_scales"], words[f"{side}_scales_high"])),
                job.meta.eq(Cat(words[f"{side}_meta"], words[f"{side}_meta_high"])),
                job.codes_pitch.eq(words[f"{side}_codes_pitch"]),
                job.scales_pitch.eq(words[f"{side}_scales_pitch"]),
                job.rows.eq(number),
                job.groups.eq(words.k >> (core.pair.group.bit_length() - 1)),
                job.others.eq(others),
            ]
        target, command = results.job.payload, core.cmd.payload.data
        m.d.comb += [
            target.values.eq(Cat(words.out, words.out_high)),
            target.pitch.eq(words.out_pitch),
            target.m.eq(words.m),
            target.n.eq(words.n),
            target.bf16.eq(words.kind == BF16_VALUES),
            command.m.eq(words.m),
            command.n.eq(words.n),
            command.k.eq(words.k),
            core.status.ready.eq(1),
        ]

        running, ending, reported = Signal(), Signal(), Signal()
        starts = (acts.job, weights.job, results.job, core.cmd)
        waiting = Signal(len(starts))  # which of these have not taken their job yet
        cause = Signal(8, reset_less=True)
        quiet = Signal(32)  # clocks in which the bus owed something and nothing moved
        for n, start in enumerate(starts):
            m.d.comb += start.valid.eq(waiting[n])
            with m.If(start.ready):
                m.d.sync += waiting[n].eq(0)

        fault = self._fault(m, registers, parts, masters, quiet)
        fails = named(m, "fails", running & (fault != 0))
        done = named(m, "done", running & reported & (waiting == 0) & ~results.busy & ~writer.busy)
        moved = named(m, "moved", Cat(master.moved for master in masters).any())
        owed = named(m, "owed", Cat(master.owed for master in masters).any())
        m.d.comb += [
            flush.eq(fails),
            registers.descriptor.ready.eq(ending),
            registers.cause.eq(cause),
            registers.runs.eq(running),
            registers.works.eq(running & core.acts.ready & core.acts.valid),
            registers.waits_acts.eq(running & core.acts.ready & ~core.acts.valid),
            registers.waits_weights.eq(running & core.weights.ready & ~core.weights.valid),
            registers.waits_results.eq(running & core.o.valid & ~core.o.ready),
        ]
        m.d.sync += [ending.eq(0), quiet.eq(0)]
        with m.If(running & owed & ~moved):
            m.d.sync += quiet.eq(quiet + 1)
        with m.If(~running & ~ending & registers.descriptor.valid):
            m.d.sync += [cause.eq(checker.cause), reported.eq(0)]
            with m.If(checker.cause == 0):
                m.d.sync += [running.eq(1), waiting.eq(-1)]
            with m.Else():
                m.d.sync += ending.eq(1)
        with m.If(running & core.status.valid):
            m.d.sync += reported.eq(1)
        with m.If(done | fails):
            m.d.sync += [running.eq(0), ending.eq(1), cause.eq(fault), waiting.eq(0)]

    def _fault(
        self,
        m: Module,
        registers: AcceleratorRegisters,
        parts: tuple[OperandFetcher, OperandFetcher, ResultWriter],
        masters: tuple[AxiReader, AxiReader, AxiWriter],
        quiet: Signal,
    ) -> Signal:
        """Return the cause of what goes wrong in this clock, 0 if nothing does."""
        *readers, writer = masters
        patient = registers.timeout == 0
        status = self.core.status
        faults = {
            "read_slverr": Cat(reader.fault == 2 for reader in readers).any(),
            "read_decerr": Cat(reader.fault == 3 for reader in readers).any(),
            "write_slverr": writer.fault == 2,
            "write_decerr": writer.fault == 3,
            "address": Cat(part.wraps for part in parts).any(),
            "timeout": ~patient & (quiet >= registers.timeout),
            "internal": status.valid & status.payload.data.as_value()[:4].any(),
        }
        return named(m, "fault", first_cause(m, faults))
