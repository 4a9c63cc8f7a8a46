"""The accelerator's registers: an error that comes while another one is cleared is kept."""

import pytest
from amaranth.sim import Simulator

from m2xfp.rtl.parts.accelerator_map import FIELDS, OFFSETS
from m2xfp.rtl.parts.accelerator_registers import AcceleratorRegisters

EARLIER, CAUSE, NUMBER = 9, 7, 0x1234
CONSTANTS = {
    name: dict.fromkeys(FIELDS[name], 0) for name in ("array", "limits", "bus", "features")
}


@pytest.mark.parametrize("before", [False, True])
def test_an_error_while_another_is_cleared(before: bool) -> None:
    """A write that clears takes a clock after it is taken: it is applied 2 clocks early to 2 late.

    Cleared after the error has come the register is empty, and else it holds the error.
    """
    assert [error_after(before, late) for late in range(-2, 3)] == [
        (1, CAUSE, NUMBER),
        (1, CAUSE, NUMBER),
        (1, CAUSE, NUMBER),
        (0, 0, 0),
        (0, 0, 0),
    ]


def error_after(before: bool, late: int) -> tuple[int, int, int]:
    """Return valid, cause and number of the register after an error and a write that clears it.

    The write is applied ``late`` clocks after the clock in which the descriptor fails; ``before``
    another one has failed.
    """
    dut = AcceleratorRegisters(CONSTANTS, 2)
    found = 0

    async def offer(ctx, name: str, word: int) -> None:
        """Have a write taken, which is applied in the clock that comes then."""
        ctx.set(dut.aw.payload.data.addr, OFFSETS[name])
        ctx.set(dut.w.payload.data, {"data": word, "strb": 15})
        ctx.set(dut.aw.valid, 1)
        ctx.set(dut.w.valid, 1)
        await ctx.tick()
        ctx.set(dut.aw.valid, 0)
        ctx.set(dut.w.valid, 0)

    async def push(ctx, number: int) -> None:
        await offer(ctx, "push", number)
        while not ctx.get(dut.descriptor.valid):
            await ctx.tick()

    async def bench(ctx):
        nonlocal found
        ctx.set(dut.b.ready, 1)
        if before:
            await push(ctx, 1)
            ctx.set(dut.cause, EARLIER)
            ctx.set(dut.descriptor.ready, 1)
            await ctx.tick()
            ctx.set(dut.descriptor.ready, 0)
        await push(ctx, NUMBER)
        ctx.set(dut.cause, CAUSE)
        for clock in range(8):
            ctx.set(dut.descriptor.ready, clock == 4)
            if clock == 4 + late - 1:
                await offer(ctx, "error", 1 << 31)
            else:
                await ctx.tick()
        ctx.set(dut.ar.payload.data.addr, OFFSETS["error"])
        ctx.set(dut.ar.valid, 1)
        await ctx.tick()
        found = ctx.get(dut.r.payload.data.data)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return found >> 31, found & 0xFF, found >> 8 & 0xFFFF
