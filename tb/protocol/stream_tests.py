"""Cocotb tests of the stream rules, the same for every unit; run through `harness.run_testbench`.

They know a unit by its JSON and by test vectors: beats for every input stream and those that must
come out. Each clock has one shape: new inputs after the rising edge, everything is read at the
falling edge, when it has settled, and a beat that is valid and ready then moves at the next rising
edge.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge, Timer

from m2xfp.facts import Facts, Stream
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["ProtocolError", "StreamDriver"]

PERIOD = 10  # simulator steps
PATIENCE = 1000  # clocks without any movement after which a unit is called hung
DRAIN = 20  # clocks that a test waits for beats that should not come

Beat = tuple[int, bool]


class ProtocolError(AssertionError):
    """The unit broke a rule of the streams or delivered a wrong beat."""


class StreamDriver:
    """Drives a unit clock by clock, checks the stream rules and what comes out.

    Parameters
    ----------
    dut
        The top of the simulation.

    Members
    -------
    facts, vectors
        The unit, and all beats that a test may use.
    random
        Generator of this test, seeded by cocotb.
    moved
        For each stream the clock in which each of its beats moved, since the latest `load`.
    stalled
        For each output stream the beat that waits for its reader, or None.
    clocks
        Clocks since the latest `load`.
    """

    def __init__(self, dut: Any) -> None:
        self.facts = Facts.load(Path(os.environ["M2XFP_FACTS"]))
        self.vectors = TestVectors.load(Path(os.environ["M2XFP_VECTORS"]))
        self.random = Random(cocotb.RANDOM_SEED)
        self._dut = dut
        self._was_reset = False
        self._port = {
            (stream.name, field): getattr(dut, f"{stream.prefix}_{field}")
            for stream in self.facts.streams
            for field in ("tdata", "tvalid", "tready", "tlast")
        }
        self.load(self.vectors)

    def load(self, vectors: TestVectors) -> None:
        """Take the beats of ``vectors`` as the next to play and to expect."""
        self._to_send = {s.name: _beats(vectors.inputs[s.name]) for s in self.facts.inputs}
        self._to_come = {s.name: _beats(vectors.outputs[s.name]) for s in self.facts.outputs}
        self._presented: dict[str, bool] = dict.fromkeys(self._to_send, False)
        self.stalled: dict[str, Beat | None] = dict.fromkeys(self._to_come)
        self.moved: dict[str, list[int]] = {s.name: [] for s in self.facts.streams}
        self.clocks = 0

    async def start(self) -> None:
        """Start the clock and reset the unit."""
        Clock(self._dut.clk, PERIOD, unit="step").start(start_high=False)
        for port in self.facts.signals:
            if port.is_input:
                getattr(self._dut, port.name).value = 0
        await self.reset()

    async def reset(self) -> None:
        """Reset for one clock, as units promise to need, while the inputs offer noise.

        `clock` looks whether an output is valid in the clock after it.
        """
        self._dut.rst.value = 1
        for stream in self.facts.inputs:
            self._drive(stream, None, valid=bool(self.random.getrandbits(1)))
        for stream in self.facts.outputs:
            self._port[stream.name, "tready"].value = self.random.getrandbits(1)
        await RisingEdge(self._dut.clk)
        self._dut.rst.value = 0
        self._was_reset = True

    async def clock(self, stall: Mapping[str, float], *, probe: bool = False) -> None:
        """Run one clock.

        Parameters
        ----------
        stall
            Probability, by stream name, that a stream pauses in this clock: an input presents
            nothing new, an output is not ready. 0 for those left out.
        probe
            First apply the opposite controls within the same clock: what the unit says on its
            side of each handshake may not depend on them.
        """
        pauses = {
            stream.name: self.random.random() < stall.get(stream.name, 0.0)
            for stream in self.facts.streams
        }
        for stream in self.facts.inputs:
            if not pauses[stream.name] and self._next(stream) is not None:
                self._presented[stream.name] = True
        before = await self._probe(pauses) if probe else None
        for stream in self.facts.inputs:
            beat = self._next(stream) if self._presented[stream.name] else None
            self._drive(stream, beat, valid=beat is not None)
        for stream in self.facts.outputs:
            self._port[stream.name, "tready"].value = not pauses[stream.name]
        await FallingEdge(self._dut.clk)
        if self._was_reset:
            self._check_silence()
        if before is not None and before != (now := self._said()):
            raise ProtocolError(
                f"clock {self.clocks}: the unit's side of a handshake follows the other side "
                f"within the clock: {before} became {now}"
            )
        self._sample(pauses)
        await RisingEdge(self._dut.clk)
        self.clocks += 1

    def _check_silence(self) -> None:
        """ProtocolError if an output is valid in the clock after a reset."""
        self._was_reset = False
        for stream in self.facts.outputs:
            if int(self._port[stream.name, "tvalid"].value):
                raise ProtocolError(f"{stream.prefix}: valid although the unit was reset")

    async def play(
        self, vectors: TestVectors, stall: Mapping[str, float], *, probe: bool = False
    ) -> None:
        """Play ``vectors``; ProtocolError unless all its beats move, exactly once, in order."""
        self.load(vectors)
        await self.finish(stall, probe=probe)

    async def finish(self, stall: Mapping[str, float], *, probe: bool = False) -> None:
        """Play what is left of the loaded vectors; ProtocolError as in `play`."""
        quiet = 0
        while any(map(self._remaining, self.facts.streams)):
            count = sum(map(len, self.moved.values()))
            await self.clock(stall, probe=probe)
            quiet = 0 if sum(map(len, self.moved.values())) > count else quiet + 1
            if quiet > PATIENCE:
                left = {s.name: self._remaining(s) for s in self.facts.streams}
                raise ProtocolError(f"nothing moved for {PATIENCE} clocks; beats left: {left}")
        for _ in range(DRAIN):
            await self.clock({}, probe=probe)

    def _remaining(self, stream: Stream) -> int:
        beats = self._to_send if stream.is_input else self._to_come
        return len(beats[stream.name]) - len(self.moved[stream.name])

    def _next(self, stream: Stream) -> Beat | None:
        beats, done = self._to_send[stream.name], len(self.moved[stream.name])
        return beats[done] if done < len(beats) else None

    def _drive(self, stream: Stream, beat: Beat | None, *, valid: bool) -> None:
        # A payload without a beat is noise: a unit that looks at it is found out.
        data, last = beat or (self.random.getrandbits(8 * stream.bytes), self.random.random() < 0.5)
        self._port[stream.name, "tvalid"].value = valid
        self._port[stream.name, "tdata"].value = data
        self._port[stream.name, "tlast"].value = last

    def _payload(self, stream: Stream) -> Beat:
        data, last = (self._port[stream.name, field].value for field in ("tdata", "tlast"))
        return int(data), bool(int(last))

    def _said(self) -> dict[str, Any]:
        """Return what the unit drives: ready of inputs, valid and payload of outputs."""
        said: dict[str, Any] = {}
        for stream in self.facts.inputs:
            said[stream.name] = int(self._port[stream.name, "tready"].value)
        for stream in self.facts.outputs:
            valid = int(self._port[stream.name, "tvalid"].value)
            said[stream.name] = self._payload(stream) if valid else None
        return said

    async def _probe(self, pauses: Mapping[str, bool]) -> dict[str, Any]:
        """Apply the opposite of the controls that are to come and return what the unit says."""
        for stream in self.facts.inputs:
            self._drive(stream, None, valid=not self._presented[stream.name])
        for stream in self.facts.outputs:
            self._port[stream.name, "tready"].value = pauses[stream.name]
        await Timer(PERIOD // 4, unit="step")
        return self._said()

    def _sample(self, pauses: Mapping[str, bool]) -> None:
        for stream in self.facts.inputs:
            name = stream.name
            if self._presented[name] and int(self._port[name, "tready"].value):
                self._presented[name] = False
                self.moved[name].append(self.clocks)
        for stream in self.facts.outputs:
            name = stream.name
            valid = int(self._port[name, "tvalid"].value)
            beat = self._payload(stream) if valid else None
            if self.stalled[name] not in (None, beat):
                raise ProtocolError(
                    f"{stream.prefix}, clock {self.clocks}: {self.stalled[name]} was stalled and "
                    f"became {beat}"
                )
            self.stalled[name] = beat if pauses[name] else None
            if beat is not None and not pauses[name]:
                self._expect(stream, beat)
                self.moved[name].append(self.clocks)

    def _expect(self, stream: Stream, beat: Beat) -> None:
        done = len(self.moved[stream.name])
        expected = self._to_come[stream.name]
        if done >= len(expected):
            raise ProtocolError(f"{stream.prefix}: {len(expected)} beats expected, one more came")
        if beat != expected[done]:
            raise ProtocolError(
                f"{stream.prefix}, beat {done}: got {beat[0]:#x} last={beat[1]}, "
                f"expected {expected[done][0]:#x} last={expected[done][1]}"
            )


def _beats(beats: Beats) -> list[Beat]:
    last = beats.last if beats.last is not None else [False] * len(beats)
    return [
        (int.from_bytes(row.tobytes(), "little"), bool(end))
        for row, end in zip(beats.data, last, strict=True)
    ]


def _stall(facts: Facts, inputs: float, outputs: float) -> dict[str, float]:
    return {stream.name: inputs if stream.is_input else outputs for stream in facts.streams}


@cocotb.test()
@cocotb.parametrize(
    (("inputs", "outputs"), [(0.5, 0.0), (0.0, 0.5), (0.3, 0.3), (0.9, 0.1), (0.1, 0.9)])
)
async def random_stalls(dut: Any, inputs: float, outputs: float) -> None:
    """Every beat arrives once, in order and unchanged while stalled, whoever pauses."""
    driver = StreamDriver(dut)
    await driver.start()
    await driver.play(driver.vectors, _stall(driver.facts, inputs, outputs))


@cocotb.test()
async def long_stalls(dut: Any) -> None:
    """Stop the reader for long: nothing is lost, and the unit stops taking beats meanwhile."""
    driver = StreamDriver(dut)
    await driver.start()
    driver.load(driver.vectors)
    stopped = _stall(driver.facts, 0.0, 1.0)
    longest = 100 + 4 * driver.facts.clocks_per_block  # what it takes until everything is full
    for _ in range(4):
        for _ in range(driver.random.randrange(1, 20)):
            await driver.clock({})
        for _ in range(longest):
            await driver.clock(stopped)
        counts = {name: len(clocks) for name, clocks in driver.moved.items()}
        for _ in range(100):
            await driver.clock(stopped)
        assert counts == {name: len(clocks) for name, clocks in driver.moved.items()}, (
            f"the unit goes on taking beats although its reader has stopped for {longest} clocks"
        )
    await driver.finish({})


@cocotb.test()
async def full_rate(dut: Any) -> None:
    """Without pauses a beat is taken in every clock, and every group has the stated latency.

    A unit that is slower than its stream gives a group in every so many clocks, as stated.
    """
    driver = StreamDriver(dut)
    await driver.start()
    await driver.play(driver.vectors, {})
    period = driver.facts.clocks_per_group
    if period > driver.facts.beats_per_group:
        for stream in driver.facts.outputs:
            clocks = driver.moved[stream.name]
            beats = len(clocks) // driver.vectors.groups
            gaps = {b - a for a, b in zip(clocks, clocks[beats:], strict=False)}
            assert gaps == {period}, f"{stream.prefix}: a group in {gaps}, stated: {period} clocks"
        return
    for stream in driver.facts.inputs:
        clocks = driver.moved[stream.name]
        assert clocks == list(range(len(clocks))), f"{stream.prefix}: bubbles in {clocks}"
    _check_latency(driver, driver.vectors)


@cocotb.test()
async def latency_of_one_group(dut: Any) -> None:
    """Send one group alone: it has the stated latency too, also if its beats come with pauses."""
    driver = StreamDriver(dut)
    await driver.start()
    for group in range(min(10, driver.vectors.groups)):
        vectors = driver.vectors.part(group, group + 1)
        await driver.play(vectors, _stall(driver.facts, 0.5 * (group % 2), 0.0))
        _check_latency(driver, vectors)


def _check_latency(driver: StreamDriver, vectors: TestVectors) -> None:
    def end(stream: Stream, group: int) -> int:
        """Return the clock in which the last beat of a group moved."""
        clocks = driver.moved[stream.name]
        return clocks[(group + 1) * len(clocks) // vectors.groups - 1]

    for stream in driver.facts.outputs:
        for group in range(vectors.groups):
            complete = max(end(source, group) for source in driver.facts.inputs)
            took = end(stream, group) - complete
            assert took == driver.facts.latency, (
                f"{stream.prefix}, group {group}: {took} clocks after its last beat, "
                f"stated: {driver.facts.latency}"
            )


@cocotb.test()
async def handshakes_are_independent(dut: Any) -> None:
    """No combinational path from valid or ready of one side to the other; valid needs no ready."""
    driver = StreamDriver(dut)
    await driver.start()
    for inputs, outputs in ((0.0, 0.0), (0.4, 0.4), (0.1, 0.8)):
        await driver.play(driver.vectors, _stall(driver.facts, inputs, outputs), probe=True)
    most = 4 * (driver.facts.latency + driver.facts.clocks_per_group)
    for stream in driver.facts.outputs:  # one after the other: one may follow from another's beats
        await driver.reset()
        driver.load(driver.vectors)
        quiet = 0
        while quiet < most and not driver.stalled[stream.name]:
            count = sum(map(len, driver.moved.values()))
            await driver.clock({stream.name: 1.0})
            quiet = 0 if sum(map(len, driver.moved.values())) > count else quiet + 1
        assert driver.stalled[stream.name], f"{stream.prefix}: valid waits for ready"


@cocotb.test()
async def reset_in_midstream(dut: Any) -> None:
    """After a reset at any moment, partial groups and waiting outputs are gone without a trace."""
    driver = StreamDriver(dut)
    await driver.start()
    depth = 3 * (driver.facts.latency + driver.facts.clocks_per_group)
    patterns = [(0.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    for cut in range(depth):
        for inputs, outputs in patterns:
            driver.load(driver.vectors)
            for _ in range(cut):
                await driver.clock(_stall(driver.facts, inputs, outputs))
            await driver.reset()
            start = driver.random.randrange(driver.vectors.groups)
            await driver.play(driver.vectors.part(start, min(start + 3, driver.vectors.groups)), {})
