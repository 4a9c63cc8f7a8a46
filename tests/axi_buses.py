"""Cocotb tests of the accelerator behind cocotbext-axi: AXI RAM, AXI-Lite master, stalls, errors.

They run inside the simulator on ``<top>_axi``, the module with the ports of the AXI specification;
`units/test_accelerator_cocotb.py` builds and starts them. The bus models are those of cocotbext-axi
and share nothing with the memory in C++ nor with the streams that the other tests drive.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiReadBus, AxiResp, AxiWriteBus
from cocotbext.axi.axi_ram import AxiRamRead, AxiRamWrite
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.rtl.parts.accelerator_map import FIELDS, OFFSETS
from m2xfp.rtl.parts.descriptor_checker import CAUSES, GEMM, PACKED
from m2xfp.tb.parts.accelerator_story import joined, planes_of
from m2xfp.tb.parts.accelerator_tasks import (
    Task,
    kinds_of,
    place,
    random_tasks,
    read_results,
    task_results,
    written,
)
from m2xfp.tb.parts.accelerator_traffic import IDENTIFICATION, Descriptor, Memory

BYTES, SLOT = 1 << 20, 1 << 17
PATIENCE = 100_000  # clocks
Span = tuple[int, int]


def overlaps(spans: list[Span], start: int, end: int) -> bool:
    return any(first < end and start < last for first, last in spans)


class Contents(Memory):
    """The bytes of the RAM, for what places operands and reads results."""

    def __init__(self, content: bytearray) -> None:
        super().__init__()
        self._bytes = np.frombuffer(content, np.uint8)

    def write(self, address: int, content: NDArray[np.uint8]) -> None:
        self._bytes[address : address + len(content)] = content

    def read(self, address: int, length: int) -> NDArray[np.uint8]:
        return self._bytes[address : address + length]


def answers_with(channel: Any, field: str, bench: "Bench") -> None:
    """Let the errors of a model's channel, which are all SLVERR, be the bench's kind of error."""
    send = channel.send

    async def changed(beat: Any) -> None:
        if getattr(beat, field) == AxiResp.SLVERR:
            setattr(beat, field, bench.response)
        await send(beat)

    channel.send = changed


class Reads(AxiRamRead):
    """A reading port of the RAM; some of it answers with an error."""

    bad: list[Span]

    async def _read(self, address: int, length: int) -> bytes:
        if address + length > BYTES or overlaps(self.bad, address, address + length):
            raise ValueError("this part of the memory is broken")
        return self.read(address, length)  # type: ignore[no-any-return]


class Writes(AxiRamWrite):
    """The writing port of the RAM; it notes what is written where nothing may be."""

    bad: list[Span]
    allowed: list[Span]
    stray: list[int]

    async def _write(self, address: int, data: bytes) -> None:
        if not any(first <= address and address + len(data) <= last for first, last in self.joined):
            self.stray.append(address)
        if overlaps(self.bad, address, address + len(data)):
            raise ValueError("this part of the memory is broken")
        self.write(address, data)

    @property
    def joined(self) -> list[Span]:
        """Spans that touch, as one: rows of results without a gap share words."""
        return joined(self.allowed)


class Bench:
    """The accelerator, a processor on its registers, and a RAM behind its three masters."""

    def __init__(self, dut: Any) -> None:
        # A line for each burst would take longer than the simulation.
        logging.getLogger("cocotb").setLevel(logging.WARNING)
        self.dut, self.facts = dut, Facts.load(Path(os.environ["M2XFP_FACTS"]))
        self.rng = np.random.default_rng(cocotb.RANDOM_SEED)
        self.rounds = int(os.environ["M2XFP_ROUNDS"])
        self.bytes = bytearray(BYTES)
        self.contents = Contents(self.bytes)
        self.response = AxiResp.SLVERR
        self.completed = 0

    async def start(self) -> None:
        """Start clock and models, and reset."""
        dut = self.dut
        dut.rst.value = 1
        cocotb.start_soon(Clock(dut.clk, 10, unit="step").start())
        await ClockCycles(dut.clk, 2)
        ends, mem = (dut.clk, dut.rst), self.bytes
        bus = AxiLiteBus.from_prefix(dut, "s_axi_control")
        self.processor = AxiLiteMaster(bus, *ends)
        self.reads = [
            Reads(AxiReadBus.from_prefix(dut, f"m_axi_{name}"), *ends, mem=mem)
            for name in ("acts", "weights")
        ]
        self.writes = Writes(AxiWriteBus.from_prefix(dut, "m_axi_results"), *ends, mem=mem)
        self.forget()
        for port in self.reads:
            answers_with(port.r_channel, "rresp", self)
        answers_with(self.writes.b_channel, "bresp", self)
        await self.reset()

    def forget(self) -> None:
        """Forget errors and what may be written."""
        for port in (*self.reads, self.writes):
            port.bad = []
        self.writes.allowed, self.writes.stray = [], []

    async def reset(self, clocks: int = 3) -> None:
        """Hold the reset; the models see it too."""
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, clocks)
        self.dut.rst.value = 0
        await ClockCycles(self.dut.clk, 2)
        self.completed = 0
        await self.tell("int_enable", 1)

    def stall(self, probability: float) -> None:
        """Let each channel of each bus pause in so many of its clocks."""

        def pauses(seed: int) -> Iterator[bool]:
            rng = np.random.default_rng(seed)
            while True:
                yield from rng.random(1024) < probability

        control = (self.processor.write_if, self.processor.read_if)
        for port in (*control, *self.reads, self.writes):
            for name in ("aw", "w", "b", "ar", "r"):
                channel = getattr(port, f"{name}_channel", None)
                if channel is not None:
                    channel.clear_pause_generator()
                    channel.pause = False
                    if probability:
                        channel.set_pause_generator(pauses(int(self.rng.integers(1 << 30))))

    async def tell(self, register: str | int, word: int) -> int:
        """Write a register; return the response."""
        at = OFFSETS[register] if isinstance(register, str) else register
        return int((await self.processor.write(at, word.to_bytes(4, "little"))).resp)

    async def ask(self, register: str | int) -> tuple[int, int]:
        """Return a register and the response."""
        at = OFFSETS[register] if isinstance(register, str) else register
        found = await self.processor.read(at, 4)
        return int.from_bytes(found.data, "little"), int(found.resp)

    def prepare(self, task: Task, index: int, number: int) -> Descriptor:
        """Place a task's operands; only its results may be written."""
        descriptor = place(task, self.facts, self.contents, index * SLOT, number)
        self.writes.allowed += list(written(task, self.facts, descriptor))
        return descriptor

    async def push(self, descriptor: Descriptor) -> None:
        """Write a descriptor and push it."""
        for offset, word in descriptor.writes():
            assert await self.tell(offset, word) == 0

    async def end(self, count: int) -> None:
        """Wait until so many descriptors have ended, by interrupts."""
        self.completed += count
        while True:
            for _ in range(PATIENCE):
                if self.dut.irq.value:
                    break
                await RisingEdge(self.dut.clk)
            else:
                raise AssertionError("it hangs")
            await self.tell("int_status", 3)
            if (await self.ask("completed"))[0] == self.completed:
                return

    async def cause(self) -> tuple[int, int]:
        """Return cause and number of the descriptor that failed first, 0 if none, and clear it."""
        word, _ = await self.ask("error")
        await self.tell("error", 1 << 31)
        spans = (FIELDS["error"][name] for name in ("valid", "cause", "descriptor"))
        valid, cause, number = (word >> low & (1 << width) - 1 for low, width in spans)
        assert bool(valid) == bool(cause)
        return cause, number

    def right(self, task: Task, descriptor: Descriptor) -> bool:
        """Whether the RAM has golden's results."""
        found = read_results(task, self.facts, descriptor, self.contents)
        return np.array_equal(found, task_results(task, self.facts))

    def tasks(self, count: int, able: Sequence[tuple[int, int]] | None = None) -> list[Task]:
        """Return small tasks at random, of some operations and kinds."""
        return random_tasks(self.rng, self.facts, count, 3, able)

    def accidents(self) -> Iterator[tuple[tuple[int, int], str, AxiResp]]:
        """Yield operation with kind, place and answer of every error that the bus can give.

        Products with packed results, which have the most places, come first, all others at random.
        """
        found = []
        for pair in kinds_of(self.facts):
            (task,) = self.tasks(1, [pair])
            near = place(task, self.facts, Memory(), 0)
            names = planes_of(near.words, self.facts)
            found += [(pair, n, said) for n in names for said in (AxiResp.SLVERR, AxiResp.DECERR)]
        self.rng.shuffle(found)  # type: ignore[arg-type]
        yield from sorted(found, key=lambda each: each[0] != (GEMM, PACKED))


async def started(dut: Any) -> Bench:
    bench = Bench(dut)
    await bench.start()
    return bench


@cocotb.test()
async def registers_of_the_bus(dut: Any) -> None:
    """Registers answer, holes do not, whatever pauses."""
    bench = await started(dut)
    holes = sorted(set(range(0, 256, 4)) - set(OFFSETS.values()))
    for probability in (0.0, 0.5):
        bench.stall(probability)
        assert await bench.ask("id") == (IDENTIFICATION, 0)
        for word in (0xDEADBEEF, 0x12345678):
            assert await bench.tell("timeout", word) == 0
            assert await bench.ask("timeout") == (word, 0)
        # The words of descriptors can be written alone.
        assert await bench.tell("a_codes", 64) == 0
        assert (await bench.ask("a_codes"))[1] == AxiResp.SLVERR
        assert (await bench.ask(holes[0]))[1] == AxiResp.SLVERR
        assert await bench.tell(holes[-1], 1) == AxiResp.SLVERR


@cocotb.test()
async def every_operation_under_stalls(dut: Any) -> None:
    """All operations and kinds of a build, in queues, with pauses on every channel."""
    bench = await started(dut)
    missing = set(kinds_of(bench.facts))
    for turn in range(bench.rounds + 100):
        bench.forget()
        bench.stall((0.0, 0.3, 0.7)[turn % 3])
        tasks = bench.tasks(4)
        if turn >= bench.rounds:  # what has not been drawn yet
            tasks = [each for each in tasks if (each.operation, each.kind) in missing]
        missing -= {(task.operation, task.kind) for task in tasks}
        placed = [(task, bench.prepare(task, n, n + 1)) for n, task in enumerate(tasks)]
        for _, descriptor in placed:
            await bench.push(descriptor)
        if placed:
            await bench.end(len(placed))
        for task, descriptor in placed:
            assert bench.right(task, descriptor), task
        assert bench.writes.stray == []
        if turn + 1 >= bench.rounds and not missing:
            break
    assert not missing
    assert await bench.cause() == (0, 0)


@cocotb.test()
async def errors_end_a_descriptor_alone(dut: Any) -> None:
    """SLVERR and DECERR of each port: cause, number, and right results of what comes after."""
    bench = await started(dut)
    for turn, accident in enumerate(islice(bench.accidents(), 2 * bench.rounds)):
        bench.forget()
        bench.stall((0.0, 0.4)[turn % 2])
        pair, name, bench.response = accident
        (first, third), (second,) = bench.tasks(2), bench.tasks(1, [pair])
        placed = [bench.prepare(task, n, 70 + n) for n, task in enumerate((first, second, third))]
        bad = placed[1][name]
        for port in (*bench.reads, bench.writes):
            port.bad = [(bad, bad + 1)]
        for descriptor in placed:
            await bench.push(descriptor)
        await bench.end(3)
        way = "write" if name.startswith("out") else "read"
        kind = "slverr" if bench.response == AxiResp.SLVERR else "decerr"
        assert await bench.cause() == (CAUSES[f"{way}_{kind}"], 71), name
        for task, descriptor in ((first, placed[0]), (third, placed[2])):
            assert bench.right(task, descriptor), task
        assert bench.writes.stray == []


@cocotb.test()
async def a_reset_forgets_everything(dut: Any) -> None:
    """A reset at any moment, of both sides; then the same work as ever."""
    bench = await started(dut)
    packed = [pair for pair in kinds_of(bench.facts) if pair == (GEMM, PACKED)]
    for turn in range(2 * bench.rounds):
        bench.forget()
        bench.stall((0.0, 0.3)[turn // 2 % 2])
        (task,) = bench.tasks(1, packed if turn % 2 else None)
        await bench.push(bench.prepare(task, 0, 5))
        await ClockCycles(dut.clk, int(bench.rng.integers(1, 200)))
        await bench.reset()
        again = bench.prepare(task, 1, 6)
        await bench.push(again)
        await bench.end(1)
        assert await bench.cause() == (0, 0)
        assert bench.right(task, again)
        assert bench.writes.stray == []
