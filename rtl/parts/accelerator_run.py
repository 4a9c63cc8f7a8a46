"""How the accelerator runs a descriptor: from its check to its end or its first fault."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.accelerator_parts import Masters, Movers, connect_job, first_fault
from m2xfp.rtl.parts.accelerator_registers import AcceleratorRegisters
from m2xfp.rtl.parts.descriptor_checker import GEMM, DescriptorChecker

__all__ = ["run_descriptors"]


def run_descriptors(
    m: Module,
    flush: Signal,
    checker: DescriptorChecker,
    registers: AcceleratorRegisters,
    core: Any,
    movers: Movers,
    masters: Masters,
) -> None:
    """Check a descriptor, start everything, wait for the end or for the first fault.

    Parameters
    ----------
    m
        Module of the accelerator.
    flush
        High for the clock in which a fault ends a descriptor.
    checker, registers, core, movers, masters
        Its parts; ``core`` is the GEMM core.
    """
    words = registers.descriptor.payload
    m.d.comb += checker.descriptor.eq(words)
    starts = connect_job(m, words, core, movers)

    running, ending, reported = Signal(), Signal(), Signal()
    waiting = Signal(len(starts))  # which of these have not taken their job yet
    cause = Signal(8, reset_less=True)
    quiet = Signal(32)  # clocks in which the bus owed something and nothing moved
    for n, (start, _) in enumerate(starts):
        m.d.comb += start.valid.eq(waiting[n])
        with m.If(start.ready):
            m.d.sync += waiting[n].eq(0)

    fault = first_fault(m, registers, core, movers, masters, quiet)
    fails = named(m, "fails", running & (fault != 0))
    writes = named(m, "writes", Cat(each.busy for each in movers.writers).any())
    done = named(
        m,
        "done",
        running & reported & (waiting == 0) & ~writes & ~masters.writer.busy,
    )
    moved = named(m, "moved", Cat(master.moved for master in masters.all).any())
    owed = named(m, "owed", Cat(master.owed for master in masters.all).any())
    m.d.comb += [
        flush.eq(fails),
        registers.descriptor.ready.eq(ending),
        registers.cause.eq(cause),
        registers.runs.eq(running),
        registers.works.eq(running & core.acts.ready & core.acts.valid),
        registers.waits_acts.eq(running & core.acts.ready & ~core.acts.valid),
        registers.waits_weights.eq(running & core.weights.ready & ~core.weights.valid),
        registers.waits_results.eq(running & core.o.valid & ~core.o.ready),
        core.status.ready.eq(1),
    ]
    m.d.sync += [ending.eq(0), quiet.eq(0)]
    with m.If(running & owed & ~moved):
        m.d.sync += quiet.eq(quiet + 1)
    with m.If(~running & ~ending & registers.descriptor.valid):
        # Only a product has a status, beside the end of what is written.
        m.d.sync += [cause.eq(checker.cause), reported.eq(words.operation != GEMM)]
        with m.If(checker.cause == 0):
            m.d.sync += [running.eq(1), waiting.eq(Cat(needed for _, needed in starts))]
        with m.Else():
            m.d.sync += ending.eq(1)
    with m.If(running & core.status.valid):
        m.d.sync += reported.eq(1)
    with m.If(done | fails):
        m.d.sync += [running.eq(0), ending.eq(1), cause.eq(fault), waiting.eq(0)]
