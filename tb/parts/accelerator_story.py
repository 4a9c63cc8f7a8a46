"""What an accelerator is given phase by phase, and what its registers must say then.

A phase begins when nothing has moved for long: so what waits for an answer of a memory, and what
came before an error, follows from descriptors alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.rtl.parts.accelerator_map import OFFSETS
from m2xfp.rtl.parts.descriptor_checker import (
    BF16_VALUES,
    CAUSES,
    ENCODE,
    FP32_VALUES,
    GEMM,
    QUANTIZE,
)
from m2xfp.tb.bulk.simulator import Run
from m2xfp.tb.parts.accelerator_tasks import Task, kinds_of, place, task_results
from m2xfp.tb.parts.accelerator_traffic import IDENTIFICATION, PAGE, Descriptor, Memory, Traffic
from m2xfp.tb.regression import Case

__all__ = ["PITCHES", "Story", "constants", "joined", "planes_of", "scattered", "spans", "works"]

ALL_ONES = 0xFFFFFFFF
IRQ = "irq"
# Planes of a descriptor, and the words that say how far apart their rows are.
PITCHES = {
    **{f"{side}_codes": f"{side}_codes_pitch" for side in "aw"},
    **{f"{side}_{plane}": f"{side}_scales_pitch" for side in "aw" for plane in ("scales", "meta")},
    **{"out": "out_pitch", "out_scales": "out_scales_pitch", "out_meta": "out_scales_pitch"},
}

Plane = tuple[int, int, int]
"""Rows, bytes of a row, and what its address and pitch are multiples of."""


def constants(facts: Facts) -> dict[str, int]:
    """Return what the registers say that describe a build."""
    given = facts.parameters
    kinds = dict.fromkeys(kinds_of(facts), True)
    names = ((QUANTIZE, FP32_VALUES), (QUANTIZE, BF16_VALUES), (ENCODE, FP32_VALUES))
    bits = dict(zip((*names, (ENCODE, BF16_VALUES), (GEMM, 2)), (0, 1, 8, 9, 16), strict=True))
    group = block_format(given["act"]).group
    return {
        "id": IDENTIFICATION,
        "version": 2,
        "array": given["rows"] | given["columns"] << 16,
        "limits": given["max_k"] | group << 24,
        "bus": int(given["bus"]) // 8 | given["address_bits"] << 16 | given["queue"] << 24,
        "features": sum(1 << bit for pair, bit in bits.items() if pair in kinds),
    }


def works(descriptor: Descriptor, facts: Facts) -> int:
    """Return the clocks in which the array takes activations for a product."""
    if descriptor["operation"] != GEMM:
        return 0
    given = facts.parameters
    panels = -(-descriptor["n"] // given["columns"])
    groups = descriptor["k"] // block_format(given["act"]).group
    return panels * groups * -(-descriptor["m"] // given["rows"])


def planes_of(descriptor: Mapping[str, int], facts: Facts) -> dict[str, Plane]:
    """Return the planes that a descriptor reads and writes, by their words."""
    m, n, k = descriptor["m"], descriptor.get("n", 1), descriptor["k"]
    given, whole = facts.parameters, Descriptor(descriptor)
    act, weight = block_format(given["act"]), block_format(given["weight"])
    group, size = act.group, whole.value_bytes
    codes = act.group_bytes[0]
    found: dict[str, Plane] = {}
    if descriptor["operation"] == GEMM:
        for side, block, rows in (("a", act, m), ("w", weight, n)):
            names = ("codes", "scales", "meta")
            for plane, each in zip(names, block.group_bytes, strict=True):
                if each:
                    step = codes if plane == "codes" else 1
                    found[f"{side}_{plane}"] = (rows, k // group * each, step)
    else:
        found["a_codes"] = (m, k * size, group * size)
    if not whole.packed:
        return found | {"out": (m, n * size, size)}
    block = weight if descriptor["operation"] == ENCODE else act
    count = (n if descriptor["operation"] == GEMM else k) // group
    for name, each in zip(("out", "out_scales", "out_meta"), block.group_bytes, strict=True):
        if each:
            step = codes if name == "out" else 1
            found[name] = (m, count * each, step)
    return found


def scattered(
    rng: np.random.Generator,
    task: Task,
    facts: Facts,
    memory: Memory,
    number: int,
    taken: Iterable[tuple[int, int]] = (),
) -> Descriptor:
    """Store a task's operands anywhere, rows near each other or far apart, across pages or not.

    No row lies in the bytes that are ``taken``, spans without overlaps. Words that the task has no
    use for are anything.
    """
    m, n, k = task.sizes
    space = 1 << facts.parameters["address_bits"]
    words = {
        name.removesuffix("_high"): int(rng.integers(1 << 63)) * 2 + int(rng.integers(2))
        for name in OFFSETS
        if OFFSETS[name] >= OFFSETS["operation"] and name != "push"
    }
    words |= {"operation": task.operation, "m": m, "k": k, "kind": task.kind}
    if task.operation == GEMM:
        words["n"] = n
    planes = planes_of(words, facts)
    _spread(rng, words, planes, space)
    while _overlap([*spans(words, planes), *taken]):
        _spread(rng, words, planes, space)
    found = Descriptor(words, number)
    _store(task, found, planes, facts, memory)
    return found


def _spread(
    rng: np.random.Generator, words: dict[str, int], planes: Mapping[str, Plane], space: int
) -> None:
    """Choose a base for each plane, and a pitch for those that share it."""
    for pitch in dict.fromkeys(PITCHES[name] for name in planes):
        mine = [name for name in planes if PITCHES[name] == pitch]
        rows, _, step = planes[mine[0]]
        length = max(planes[name][1] for name in mine)
        if rows > 1:
            most = min(ALL_ONES, (space - length) // (rows - 1))
            least = -(-length // step) * step
            high = max(least, min(most, least << int(rng.integers(0, 33))))
            words[pitch] = int(rng.integers(least, high + 1)) // step * step
        words[pitch] = words[pitch] % (1 << 32) // step * step
        for name in mine:
            _, length, step = planes[name]
            last = space - length - (rows - 1) * words[pitch]
            base = int(rng.integers(last, endpoint=True, dtype=np.uint64))
            if rng.random() < 0.5:  # a page ends in its first row, perhaps with its first byte
                back = 1 if rng.random() < 0.5 else int(rng.integers(1, length + 1))
                base = (base // PAGE + 1) * PAGE - back
            words[name] = min(base, last) // step * step


def spans(words: Mapping[str, int], planes: Mapping[str, Plane]) -> Iterator[tuple[int, int]]:
    """Yield start and end of every row of planes."""
    for name, (rows, length, _) in planes.items():
        for row in range(rows):
            start = words[name] + row * words[PITCHES[name]]
            yield start, start + length


def joined(rows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans of bytes in order, those that touch as one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(rows):
        if found and found[-1][1] >= start:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _overlap(rows: Iterable[tuple[int, int]]) -> bool:
    """Return whether rows lie in each other."""
    return any(end > start for (_, end), (start, _) in pairwise(sorted(rows)))


def _store(
    task: Task,
    descriptor: Descriptor,
    planes: Mapping[str, Plane],
    facts: Facts,
    memory: Memory,
) -> None:
    """Copy a task's operands to where a descriptor has them, from where they are placed near."""
    source = Memory()
    near = place(task, facts, source, 0)
    for name, (rows, length, _) in planes.items():
        if name.startswith("out"):
            continue
        pitch = PITCHES[name]
        found = source.read_rows(near[name], near[pitch], rows, length)
        memory.write_rows(descriptor[name], descriptor[pitch], found)


class Story:
    """Phases of traffic, with what the registers hold.

    Parameters
    ----------
    facts
        The accelerator.
    seed
        Of addresses, numbers and contents.
    """

    def __init__(self, facts: Facts, seed: int) -> None:
        self.facts, self.memory = facts, Memory(seed)
        self.rng = np.random.default_rng(seed)
        self.registers = {
            **constants(facts),
            **dict.fromkeys(("completed", "error", "timeout", "int_enable"), 0),
            **dict.fromkeys(("int_status", "work", "status"), 0),
        }
        self.checks: list[Callable[[Sequence[Run]], str]] = []
        self._phases: list[Traffic] = []
        self._irq: list[int] = []

    @property
    def code_bytes(self) -> int:
        """Bytes of a group's codes."""
        return block_format(self.facts.parameters["act"]).group_bytes[0]

    @property
    def irq(self) -> int:
        """Whether an enabled interrupt is pending."""
        return int(bool(self.registers["int_status"] & self.registers["int_enable"]))

    @property
    def now(self) -> Traffic:
        """The phase that is being told."""
        return self._phases[-1]

    @property
    def phases(self) -> int:
        """How many there are."""
        return len(self._phases)

    def phase(self) -> Traffic:
        """Begin a phase."""
        if self._phases:
            self._irq.append(self.irq)
        self._phases.append(Traffic(self.facts, self.memory))
        return self.now

    def tell(self, name: str, word: int) -> None:
        """Write one of the registers that keep what is written, or are cleared by ones."""
        self.now.tell(OFFSETS[name], word)
        if name == "error":
            self.registers["error"] *= not word >> 31
        elif name == "int_status":
            self.registers["int_status"] &= ~word
        else:
            self.registers[name] = word & 3 if name == "int_enable" else word

    def look(self, *names: str) -> None:
        """Read registers, or all that are known."""
        for name in names or self.registers:
            self.now.read_register(name, self.registers[name])

    def ended(self, number: int, cause: str = "", work: int = 0) -> None:
        """Let a descriptor have ended."""
        held = self.registers
        held["completed"] += 1
        held["work"] += work
        held["int_status"] |= 3 if cause else 1
        if cause and not held["error"]:
            held["error"] = 1 << 31 | (number & 0xFFFF) << 8 | CAUSES[cause]

    def number(self) -> int:
        """Return a descriptor's number."""
        return int(self.rng.integers(1 << 32))

    def scatter(self, task: Task, **changes: int) -> Descriptor:
        """Place a task anywhere; some words changed afterwards."""
        found = scattered(self.rng, task, self.facts, self.memory, self.number())
        return Descriptor({**found.words, **changes}, found.number)

    def run(self, task: Task, descriptor: Descriptor | None = None) -> None:
        """Run a task."""
        at = descriptor or self.scatter(task)
        self.now.configure(at)
        self.now.run(at, task_results(task, self.facts))
        self.ended(at.number, work=works(at, self.facts))

    def hang(self, descriptor: Descriptor) -> dict[str, list[tuple[int, int]]]:
        """Push a descriptor to which no memory answers; return what is owed."""
        self.now.configure(descriptor)
        owed = self.now.first_bursts(descriptor)
        for operand, bursts in owed.items():
            for burst in bursts:
                self.now.issue(operand, *burst)
        return owed

    def bring(self, operand: str, bursts: Sequence[tuple[int, int]], *responses: int) -> None:
        """Answer bursts; responses of the first beats of the first one."""
        for burst in bursts:
            self.now.bring(operand, *burst, *responses)
            responses = ()

    def case(self, name: str, stall: tuple[float, float] = (0.0, 0.0), before: int = 0) -> Case:
        """Return the phases, and looks at the interrupt at the end of each."""
        irqs = [*self._irq, self.irq]
        checks = list(self.checks)

        def story(runs: Sequence[Run], facts: Facts) -> str:
            found = [run.signals[IRQ] for run in runs]
            if found != irqs:
                return f"{IRQ} is {found}, not {irqs}"
            return next((said for check in checks if (said := check(runs))), "")

        vectors = tuple(phase.vectors() for phase in self._phases)
        return Case(name, vectors, stall, before=before, story=story)
