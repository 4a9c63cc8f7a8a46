"""What the accelerator is made of, how a descriptor starts it, and what can go wrong."""

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.accelerator_registers import AcceleratorRegisters
from m2xfp.rtl.parts.axi_reader import AxiReader
from m2xfp.rtl.parts.axi_writer import AxiWriter
from m2xfp.rtl.parts.descriptor_checker import (
    BF16_VALUES,
    ENCODE,
    FP32_VALUES,
    GEMM,
    PACKED,
    first_cause,
)
from m2xfp.rtl.parts.operand_fetcher import OperandFetcher
from m2xfp.rtl.parts.plane_writer import PlaneWriter
from m2xfp.rtl.parts.result_writer import ResultWriter

__all__ = ["Masters", "Movers", "connect_job", "first_fault"]


@dataclass(frozen=True)
class Masters:
    """The masters of the three memory buses."""

    acts: AxiReader
    weights: AxiReader
    writer: AxiWriter

    @property
    def all(self) -> tuple[AxiReader | AxiWriter, ...]:
        """All of them."""
        return self.acts, self.weights, self.writer


@dataclass
class Movers:
    """What moves data between the masters, and the core or the engines.

    Members
    -------
    acts, weights, results
        Of the core.
    values, planes
        Of the engines, if there are any.
    """

    acts: OperandFetcher
    weights: OperandFetcher
    results: ResultWriter
    values: OperandFetcher | None = None
    planes: PlaneWriter | None = None

    @property
    def writers(self) -> list[ResultWriter | PlaneWriter]:
        """What writes."""
        return [self.results, *([] if self.planes is None else [self.planes])]

    @property
    def all(self) -> list[OperandFetcher | ResultWriter | PlaneWriter]:
        """All of them."""
        fetchers = [self.acts, self.weights, *([] if self.values is None else [self.values])]
        return [*fetchers, *self.writers]


def _address(words: data.View, name: str) -> Value:
    return Cat(words[name], words[f"{name}_high"])


def connect_job(
    m: Module, words: data.View, core: Any, movers: Movers
) -> list[tuple[stream.Interface, Value]]:
    """Give everything its part of a descriptor; return the streams of jobs, and who has one.

    ``core`` is the GEMM core.
    """
    pair, command = core.pair, core.cmd.payload.data
    group_bits = pair.group.bit_length() - 1
    gemm = named(m, "runs_gemm", words.operation == GEMM)
    packed = named(m, "runs_packed", words.kind == PACKED)
    for part, side, number, others in (
        (movers.acts, "a", words.m, words.n),
        (movers.weights, "w", words.n, 1),
    ):
        job = part.job.payload
        m.d.comb += [
            job.codes.eq(_address(words, f"{side}_codes")),
            job.scales.eq(_address(words, f"{side}_scales")),
            job.meta.eq(_address(words, f"{side}_meta")),
            job.codes_pitch.eq(words[f"{side}_codes_pitch"]),
            job.scales_pitch.eq(words[f"{side}_scales_pitch"]),
            job.rows.eq(number),
            job.groups.eq(words.k >> group_bits),
            job.others.eq(others),
        ]
    target = movers.results.job.payload
    m.d.comb += [
        target.values.eq(_address(words, "out")),
        target.pitch.eq(words.out_pitch),
        target.m.eq(words.m),
        target.n.eq(words.n),
        target.bf16.eq(words.kind == BF16_VALUES),
        command.m.eq(words.m),
        command.n.eq(words.n),
        command.k.eq(words.k),
    ]
    starts = [
        (movers.acts.job, gemm),
        (movers.weights.job, gemm),
        (core.cmd, gemm),
        (movers.results.job, gemm & ~packed),
    ]
    if movers.values is None or movers.planes is None:
        return starts
    source, planes = movers.values.job.payload, movers.planes.job.payload
    # Values of bf16 in a beat; of FP32 there are half as many.
    lane_bits = movers.values.group_bytes.bit_length() - 2
    wide = words.kind == FP32_VALUES
    metadata = [bool(block.subgroups) for block in (pair.act, pair.weight)]
    m.d.comb += [
        source.codes.eq(_address(words, "a_codes")),
        source.codes_pitch.eq(words.a_codes_pitch),
        source.rows.eq(words.m),
        source.groups.eq(Mux(wide, words.k >> (lane_bits - 1), words.k >> lane_bits)),
        source.others.eq(1),
        planes.codes.eq(_address(words, "out")),
        planes.scales.eq(_address(words, "out_scales")),
        planes.meta.eq(_address(words, "out_meta")),
        planes.codes_pitch.eq(words.out_pitch),
        planes.scales_pitch.eq(words.out_scales_pitch),
        planes.rows.eq(words.m),
        planes.groups.eq(Mux(gemm, words.n, words.k) >> group_bits),
        planes.down.eq(gemm),
        planes.metadata.eq(Mux(words.operation == ENCODE, metadata[1], metadata[0])),
    ]
    return [*starts, (movers.values.job, ~gemm), (movers.planes.job, ~gemm | packed)]


def first_fault(
    m: Module,
    registers: AcceleratorRegisters,
    core: Any,
    movers: Movers,
    masters: Masters,
    quiet: Signal,
) -> Value:
    """Return the cause of what goes wrong in this clock, 0 if nothing does.

    ``quiet``: clocks in which the bus owed something and nothing moved; ``core``: the GEMM core.
    """
    readers, writer = (masters.acts, masters.weights), masters.writer
    status = core.status
    faults = {
        "read_slverr": Cat(reader.fault == 2 for reader in readers).any(),
        "read_decerr": Cat(reader.fault == 3 for reader in readers).any(),
        "write_slverr": writer.fault == 2,
        "write_decerr": writer.fault == 3,
        "address": Cat(part.wraps for part in movers.all).any(),
        "timeout": (registers.timeout != 0) & (quiet >= registers.timeout),
        "internal": status.valid & status.payload.data.as_value()[:4].any(),
    }
    return named(m, "fault", first_cause(m, faults))
