"""Cocotb tests of the accelerator with cocotbext-axi: its memories, its master, and pauses.

The bus models are not this project's. Run by `m2xfp.tb.axi.cocotb_run.run_axi_testbench`.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiRamRead,
    AxiRamWrite,
    AxiReadBus,
    AxiResp,
    AxiWriteBus,
)

from m2xfp.rtl.parts.accelerator_map import OFFSETS

__all__ = ["Bench"]

PATIENCE = 20_000


class Bench:
    """An accelerator whose buses lead to one memory of cocotbext-axi's.

    Parameters
    ----------
    dut
        The module with AXI ports.

    Members
    -------
    memory
        The bytes before and after, from an .npz file: ``before``, ``after``, and ``writes``, the
        registers to write in order.
    """

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        with np.load(Path(os.environ["M2XFP_VECTORS"])) as arrays:
            self.before, self.after, self.writes = (
                arrays[name] for name in ("before", "after", "writes")
            )
        size = len(self.before)
        self.results = AxiRamWrite(
            AxiWriteBus.from_prefix(dut, "m_axi_results"), dut.clk, dut.rst, size=size
        )
        shared = self.results.mem
        self.readers = [
            AxiRamRead(AxiReadBus.from_prefix(dut, f"m_axi_{name}"), dut.clk, dut.rst, mem=shared)
            for name in ("acts", "weights")
        ]
        self.control = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi_control"), dut.clk, dut.rst)
        self.results.write(0, self.before.tobytes())

    async def start(self) -> None:
        """Start the clock and reset."""
        Clock(self.dut.clk, 10, unit="step").start(start_high=False)
        await self.reset()

    async def reset(self) -> None:
        """Reset the accelerator and the models of the buses."""
        self.dut.rst.value = 1
        for _ in range(3):
            await RisingEdge(self.dut.clk)
        self.dut.rst.value = 0
        await RisingEdge(self.dut.clk)

    def pause(self, probability: float) -> None:
        """Let all channels pause at random."""
        random = Random(cocotb.RANDOM_SEED)

        def pauses() -> Iterator[bool]:
            return (random.random() < probability for _ in itertools.count())

        channels = [self.results.write_if.aw_channel, self.results.write_if.w_channel]
        channels += [self.results.write_if.b_channel]
        for reader in self.readers:
            channels += [reader.read_if.ar_channel, reader.read_if.r_channel]
        control = self.control
        channels += [control.write_if.aw_channel, control.write_if.w_channel]
        channels += [control.write_if.b_channel]
        channels += [control.read_if.ar_channel, control.read_if.r_channel]
        for channel in channels:
            channel.set_pause_generator(pauses())

    async def read(self, name: str) -> int:
        """Return a register."""
        answer = await self.control.read(OFFSETS[name], 4)
        assert answer.resp == AxiResp.OKAY
        return int.from_bytes(answer.data, "little")

    async def write(self, address: int, word: int) -> None:
        """Write a register."""
        answer = await self.control.write(address, word.to_bytes(4, "little"))
        assert answer.resp == AxiResp.OKAY

    async def run(self) -> None:
        """Write the descriptors, wait for the last one, and compare all of the memory."""
        await self.write(OFFSETS["int_enable"], 1)
        pushes = 0
        for address, word in self.writes.tolist():
            await self.write(address, word)
            pushes += address == OFFSETS["push"]
        for _ in range(PATIENCE):
            if await self.read("completed") == pushes:
                break
        assert await self.read("error") == 0
        assert int(self.dut.irq.value) == 1
        await self.write(OFFSETS["int_status"], 3)
        assert int(self.dut.irq.value) == 0
        found = np.frombuffer(self.results.read(0, len(self.after)), np.uint8)
        assert np.array_equal(found, self.after), np.flatnonzero(found != self.after)[:8]


@cocotb.test()
@cocotb.parametrize(probability=[0.0, 0.3, 0.7])
async def products(dut: Any, probability: float) -> None:
    """Products in a queue, with pauses on every channel; no other byte of the memory changes."""
    bench = Bench(dut)
    await bench.start()
    bench.pause(probability)
    await bench.run()


@cocotb.test()
async def reset_in_midst(dut: Any) -> None:
    """After a reset while a descriptor runs, everything works as if nothing had been."""
    bench = Bench(dut)
    await bench.start()
    for clocks in (30, 90, 140):
        for address, word in bench.writes.tolist()[: len(OFFSETS)]:
            await bench.write(address, word)
        for _ in range(clocks):
            await RisingEdge(dut.clk)
        await bench.reset()
    bench.results.write(0, bench.before.tobytes())
    await bench.run()


@cocotb.test()
async def nothing_there(dut: Any) -> None:
    """Expect SLVERR where there is no register, of reads and of writes."""
    bench = Bench(dut)
    await bench.start()
    answer = await bench.control.read(0x7C, 4)
    assert answer.resp == AxiResp.SLVERR
    done = await bench.control.write(0x7C, b"abcd")
    assert done.resp == AxiResp.SLVERR
    assert await bench.read("version") == 1
