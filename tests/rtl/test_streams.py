"""The stream stages: nothing lost, reordered or changed by stalls, full rate, no paths through."""

import random

import pytest
from amaranth.hdl import Shape
from amaranth.lib import data
from amaranth.sim import Simulator

from m2xfp.rtl.parts.streams import HalfRateRegister, Skid, SpillRegister, packet, packet_stream

STAGES = [SpillRegister, Skid, HalfRateRegister]
CAPACITY = {SpillRegister: 2, Skid: 1, HalfRateRegister: 1}
BEATS = 400


def simulate(stage, bench) -> None:
    simulator = Simulator(stage)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def test_packet() -> None:
    layout = packet(data.StructLayout({"a": 3, "b": 5}))
    assert layout == data.StructLayout({"data": data.StructLayout({"a": 3, "b": 5}), "last": 1})
    assert layout["last"].offset == layout.size - 1 == 8
    assert Shape.cast(packet_stream(8).members["payload"].shape).width == 9


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("feed", "take"), [(1.0, 1.0), (0.5, 0.5), (0.9, 0.1), (0.1, 0.9)])
def test_random_stalls(stage, feed: float, take: float) -> None:
    """Every beat once and in order; valid and payload hold until ready."""
    dut = stage(8)
    rng = random.Random(f"{feed} {take}")

    async def bench(ctx):
        sent, received = [], []
        waiting = None  # what o offered and was not taken
        offered = None
        while len(received) < BEATS:
            if offered is None and rng.random() < feed:
                offered = rng.randrange(256)
            ctx.set(dut.i.valid, offered is not None)
            ctx.set(dut.i.payload, rng.randrange(256) if offered is None else offered)
            ctx.set(dut.o.ready, rng.random() < take)
            ready, valid, payload = (
                ctx.get(signal) for signal in (dut.i.ready, dut.o.valid, dut.o.payload)
            )
            if waiting is not None:
                assert (valid, payload) == (1, waiting)
            waiting = None
            if valid and ctx.get(dut.o.ready):
                received.append(payload)
            elif valid:
                waiting = payload
            if offered is not None and ready:
                sent.append(offered)
                offered = None
            await ctx.tick()
        assert received == sent[: len(received)]
        assert len(sent) - len(received) <= CAPACITY[stage]

    simulate(dut, bench)


@pytest.mark.parametrize(
    ("stage", "period"), [(SpillRegister, 1), (Skid, 1), (HalfRateRegister, 2)]
)
def test_rate_and_latency(stage, period: int) -> None:
    """A beat every ``period`` clocks is taken in its clock and given after the latency."""
    dut = stage(16)

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        for clock in range(50):
            ctx.set(dut.i.valid, clock % period == 0)
            ctx.set(dut.i.payload, clock)
            assert ctx.get(dut.i.ready) or clock % period
            given = clock - stage.latency
            assert ctx.get(dut.o.valid) == (given >= 0 and given % period == 0)
            if ctx.get(dut.o.valid):
                assert ctx.get(dut.o.payload) == given
            await ctx.tick()

    simulate(dut, bench)


@pytest.mark.parametrize("stage", STAGES)
def test_capacity(stage) -> None:
    """A stalled reader leaves room for what is under way and no more."""
    dut = stage(8)

    async def bench(ctx):
        ctx.set(dut.i.valid, 1)
        accepted = []
        for payload in range(1, 10):
            ctx.set(dut.i.payload, payload)
            if ctx.get(dut.i.ready):
                accepted.append(payload)
            await ctx.tick()
        assert accepted == list(range(1, 1 + CAPACITY[stage]))
        ctx.set(dut.i.valid, 0)
        ctx.set(dut.o.ready, 1)
        for payload in accepted:
            assert (ctx.get(dut.o.valid), ctx.get(dut.o.payload)) == (1, payload)
            await ctx.tick()
        assert not ctx.get(dut.o.valid)

    simulate(dut, bench)


@pytest.mark.parametrize("stage", STAGES)
def test_no_path_through(stage) -> None:
    """Within a clock, i.ready does not follow o.ready or i.valid, nor a register's o its i."""
    dut = stage(8)
    rng = random.Random(1)
    states = set()

    async def bench(ctx):
        for _ in range(300):
            seen = set()
            for _ in range(8):
                ctx.set(dut.i.valid, rng.randrange(2))
                ctx.set(dut.i.payload, rng.randrange(256))
                ctx.set(dut.o.ready, rng.randrange(2))
                watched = [dut.i.ready]
                if stage is not Skid:
                    watched += [dut.o.valid, dut.o.payload]
                seen.add(tuple(ctx.get(signal) for signal in watched))
            assert len(seen) == 1
            states.add(ctx.get(dut.i.ready))
            await ctx.tick()

    simulate(dut, bench)
    assert states == {0, 1}
