"""The accelerator's regression: tasks anywhere in memory, wrong ones, and accidents."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from itertools import product as product_of

import numpy as np

from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.rtl.parts.accelerator_map import OFFSETS
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, FP32_VALUES, GEMM
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.tb.parts.accelerator_counters import counting
from m2xfp.tb.parts.accelerator_faults import (
    after,
    late,
    packing,
    product,
    responses,
    silences,
    wraps,
)
from m2xfp.tb.parts.accelerator_long import waits_and_counts
from m2xfp.tb.parts.accelerator_refused import refused
from m2xfp.tb.parts.accelerator_story import PITCHES, Story, works
from m2xfp.tb.parts.accelerator_tasks import (
    Task,
    core_of,
    kinds_of,
    random_tasks,
    task_results,
)
from m2xfp.tb.parts.accelerator_traffic import Descriptor
from m2xfp.tb.parts.gemm_arrays import GemmStreams
from m2xfp.tb.parts.gemm_directed import every_scale, hard_sums
from m2xfp.tb.parts.value_stimulus import DISTRIBUTIONS, groups, lone_values, special_lanes
from m2xfp.tb.regression import Case

__all__ = ["regression"]

ROUNDS = 6
# With seven outputs one is held nearly always where each pauses in nine clocks of ten.
STALLS = ((0.0, 0.0), (0.25, 0.25), (0.0, 0.5), (0.7, 0.0))
# Clocks of traffic before a reset, and its pauses: streams wait and do not, each of them once.
RESETS = (
    *((clocks, (0.5, 0.5)) for clocks in (150, 348, 524, 1118)),
    *((clocks, (0.2, 0.6)) for clocks in (194, 645)),
    *((clocks, (0.8, 0.2)) for clocks in (293, 953)),
)
TEXTS = {FP32_VALUES: "fp32", BF16_VALUES: "bf16"}
# Products of which rows lie in one another.
PLACES = 12
# Words that registers are written with.
WORDS = 24
# Products of many chunks.
MORE = 36
# Of groups with lone values each so many.
LONE = 3
# Rows of a product of hard sums, at most.
HARD_ROWS = 600


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield tasks of sizes at every edge, resets among them, and what can go wrong."""
    yield from mixtures(facts, seed)
    yield from registers(facts, seed)
    yield from refused(facts, seed)
    yield from responses(facts, seed)
    yield from wraps(facts, seed)
    yield from silences(facts, seed)
    yield from counting(facts, seed)
    yield from waits_and_counts(facts, seed)
    yield from far(facts, seed)
    yield from hard_products(facts, seed)
    yield from hard_values(facts, seed)


def _played(facts: Facts, seed: int, tasks: Sequence[Task]) -> Story:
    """Return a phase of tasks that follow one another."""
    story = Story(facts, seed)
    story.phase()
    story.tell("int_enable", 1)
    for task in tasks:
        story.run(task)
    return story


def mixtures(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield tasks of every kind, with each pattern of stalls, and after resets."""
    rng, streams = np.random.default_rng(seed), GemmStreams(core_of(facts))
    most = min(3 * facts.parameters["chunk"], facts.parameters["max_k"] // streams.act.group)
    for number in range(ROUNDS):
        story = _played(facts, seed + number, random_tasks(rng, facts, 8, most))
        story.phase()
        story.look()
        yield replace(story.case(f"tasks {number}", STALLS[number % len(STALLS)]), seed=number)
    shapes = Story(facts, seed)
    for m, n, count in _shapes(facts):
        shapes.phase()
        shapes.run(product(shapes, m, n, count))
    largest = facts.parameters["max_k"] // streams.act.group
    for number in range(MORE):
        shapes.run(product(shapes, 1 + number % 5, 1 + number % 3, min(largest, 2 * most)))
    _across_words(shapes, largest)
    for number in range(PLACES):
        _overlapping(shapes, min(largest, 2), number % 2)
    for number in range(4):  # of least elements, whose sums are odd
        small = product(shapes, 40, 6, min(largest, 1 + number))
        assert small.product is not None
        small.product.acts[..., : shapes.code_bytes] &= 0x99
        small.product.weights[..., : shapes.code_bytes] &= 0x99
        shapes.run(small)
    yield shapes.case("shapes", STALLS[1])
    few = Story(facts, seed)
    few.phase()
    for number in range(3):
        for task in (product(few, 3, 3, min(3, most)), *packing(few, 1 + number, 2)):
            few.run(task)
            few.look(*["id"] * 40)
    for clocks, stall in RESETS:
        yield few.case(f"reset after {clocks}", stall, clocks)


def _shapes(facts: Facts) -> Iterator[tuple[int, int, int]]:
    """Yield rows, columns and groups of one to three blocks, panels and chunks."""
    given = facts.parameters
    height, most = (
        given["rows"] * given["chains"],
        given["max_k"] // block_format(given["act"]).group,
    )
    for blocks, panels, chunks in product_of(range(3), range(3), range(3)):
        count = min(most, chunks * given["chunk"] + 1)
        yield blocks * height + 1, panels * given["columns"] + 1, count


def _across_words(story: Story, most: int) -> None:
    """Run products of which the first or the second chunk of each row ends in another word.

    Rows of codes follow each other closely, a few groups apart.
    """
    given = story.facts.parameters
    bus, chunk, codes = int(given["bus"]) // 8, given["chunk"], story.code_bytes
    for number in range(MORE):
        count = most if number % 3 else 1 + number // 3 % most
        task = product(story, 1 + number % 3, 2, count)
        at = story.scatter(task)
        words = {**at.words, "out": 1 << 30, "out_pitch": 1 << 12}
        for side, rows in (("a", task.sizes[0]), ("w", 2)):
            base = (number << 18) + (side == "w") * (1 << 17)
            first = bus - 1 - (chunk * (number % 2) if chunk < bus else 0)
            apart = 4 * bus if number % 4 else count + number // 4 % 3
            places = {
                "codes": (base + number // 4 % 4 * codes, codes * (count + number % 4), codes),
                "scales": (base + (1 << 15) + first, apart, 1),
                "meta": (base + (1 << 16) + first, apart, 1),
            }
            for plane, (place, pitch, size) in places.items():
                name = f"{side}_{plane}"
                found = story.memory.read_rows(at[name], at[PITCHES[name]], rows, count * size)
                words |= {name: place, PITCHES[name]: pitch}
                story.memory.write_rows(place, pitch, found)
        story.run(task, Descriptor(words, at.number))


def _overlapping(story: Story, count: int, step: int) -> None:
    """Run products of which rows begin ``step`` groups behind one another: 0 is in one place."""
    for side in ("acts", "weights"):
        task = product(story, 4, 3, count)
        assert task.product is not None
        rows = getattr(task.product, side)
        for before, row in pairwise(rows):
            row[: count - step] = before[step:]
        at = story.scatter(task)
        codes, scales = f"{side[0]}_codes_pitch", f"{side[0]}_scales_pitch"
        pitches = {codes: step * story.code_bytes, scales: step}
        found = Descriptor({**at.words, **pitches}, at.number)
        for plane in ("codes", "scales", "meta"):
            name, size = f"{side[0]}_{plane}", story.code_bytes if plane == "codes" else 1
            length, pitch = count * size, step * size
            held = story.memory.read_rows(at[name], at[PITCHES[name]], len(rows), length)
            for number, content in enumerate(held):
                story.memory.write(found[name] + number * pitch, content)
        story.run(task, found)


# --- registers ------------------------------------------------------------------------------------


def registers(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield reads and writes of all addresses and of parts of words, and pushes without room."""
    story = Story(facts, seed)
    kept = ("timeout", "int_enable")
    story.phase()
    story.look()
    story.phase()
    known = {OFFSETS[name]: name for name in OFFSETS}
    for at in range(0, 256, 4):
        name = known.get(at, "")
        if at >= OFFSETS["operation"] or not name:
            story.now.ask(at + at // 4 % 4, 0, 2)
        if name not in (*kept, "push", "error", "int_status") and at < OFFSETS["operation"]:
            story.now.tell(at + at // 4 % 4, int(story.rng.integers(1 << 32)), 2)
    for strobes in range(15):
        for name in (*kept, "push", "m"):
            story.now.tell(OFFSETS[name], 0xFFFFFFFF, 2, strobes)
    for name, at in OFFSETS.items():
        if at >= OFFSETS["operation"] or name in ("error", "int_status"):
            story.now.tell(at, 0xFFFFFFFF, 2, int(story.rng.integers(15)))
    for at in range(0xF8, 256, 4):
        story.now.tell(at, 0xFFFFFFFF, 2)
    story.phase()
    story.look()
    some = [int(word) for word in story.rng.integers(1 << 32, size=WORDS)]
    for number, word in enumerate((0xFFFFFFFF, 0, *(1 << bit for bit in range(32)), *some, 0)):
        for name in kept:
            story.phase()
            story.tell(name, word)
            for _ in range(1 + number % 2):  # reads with pauses, and without
                story.phase()
            story.look(*[name] * 3)
    _full_queue(story)
    yield story.case("registers", (0.3, 0.3))


def _full_queue(story: Story) -> None:
    """Tell of more descriptors than the queue has room for, the first of which hangs."""
    facts, depth = story.facts, story.facts.parameters["queue"]
    for _ in range(2):
        story.phase()
        tasks = [product(story, 1, 1, 1) for _ in range(depth + 2)]
        placed = [story.scatter(task) for task in tasks]
        owed = story.hang(placed[0])
        for at in placed[1:depth]:
            story.now.configure(at)
        *words, push = placed[depth].writes()
        for address, word in words:
            story.now.tell(address, word)
        story.phase()
        story.registers["status"] = 1 | depth << 8
        story.look("status")
        story.phase()
        story.now.tell(*push, answered=False)
        story.phase()
        story.look("status", "completed")
        # Room for the push, and then for the next one.
        story.phase()
        for operand, bursts in owed.items():
            story.bring(operand, bursts)
        story.now.grant()
        for task, at in zip(tasks[: depth + 1], placed, strict=False):
            if at is not placed[0]:
                story.now.fetch(at)
            for _ in range(story.now.write(at, task_results(task, facts))):
                story.now.respond()
            story.ended(at.number, work=works(at, facts))
        story.registers["status"] = 0
        story.phase()
        story.run(tasks[-1], placed[-1])
        story.phase()
        story.look("status", "completed", "work")


# --- sizes ----------------------------------------------------------------------------------------


def far(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield tasks of the largest sizes, that end with their first answer."""
    story = Story(facts, seed)
    group = block_format(facts.parameters["act"]).group
    most = (1 << SIZE_BITS) - 1
    patterns = (most, 0x55555, 0xAAAAA, 1 << SIZE_BITS - 1, 0x33333, 0xCCCCC)
    kinds = kinds_of(facts)
    for number, size in enumerate((*patterns, *patterns[::-1])):
        for operation, kind in kinds:
            if (operation, kind) == (GEMM, 2):
                continue
            story.phase()
            gemm = operation == GEMM
            words = {"operation": operation, "kind": kind, "m": size, "n": most & ~size | 1}
            words["k"] = (
                facts.parameters["max_k"] // group * group if gemm else size // group * group
            )
            for name in ("a_scales", "a_meta", "w_scales", "w_meta", "out_scales", "out_meta"):
                words[name] = int(story.rng.integers(1 << 30))
            for name in ("a_codes", "w_codes", "out"):
                words[name] = int(story.rng.integers(1 << 22)) * 256
            for name in ("a_codes", "a_scales", "w_codes", "w_scales", "out", "out_scales"):
                words[f"{name}_pitch"] = int(story.rng.integers(1 << 20)) * 256
            at = Descriptor(words, story.number())
            owed = story.hang(at)
            story.phase()
            story.look("completed")
            story.phase()
            story.bring("acts", owed["acts"][:1], *[2] * owed["acts"][0][1])
            story.bring("acts", owed["acts"][1:])
            story.ended(at.number, "read_slverr")
            late(story, {name: bursts for name, bursts in owed.items() if name != "acts"})
            after(story, number)
            if number % 2:  # so that each place of the queue has them
                story.phase()
                story.run(product(story, 1, 1, 1))
    yield story.case("largest sizes")


# --- numbers --------------------------------------------------------------------------------------


def hard_products(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield products whose sums are hard to round, of each kind that results may have."""
    core = core_of(facts)
    group = block_format(facts.parameters["act"]).group
    small = min(3 * group, core.parameters["max_k"])
    streams = GemmStreams(replace(core, parameters={**core.parameters, "max_k": small}))
    story = Story(facts, seed)
    for _, hard in hard_sums(streams, seed):
        rows = hard.acts[:: 1 + len(hard.acts) // HARD_ROWS]
        story.phase()
        for kind in (FP32_VALUES, BF16_VALUES):  # each row in another cell
            acts = np.roll(rows, int(kind == BF16_VALUES), axis=0)
            story.run(Task(GEMM, kind, replace(hard, acts=acts)))
    story.run(Task(GEMM, FP32_VALUES, every_scale(streams, seed)))
    yield story.case("hard sums")


def hard_values(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield values of all distributions, special ones in each lane, and a row of the largest k."""
    group = block_format(facts.parameters["act"]).group
    able = [pair for pair in kinds_of(facts) if pair[0] != GEMM]
    if not able:
        return
    story = Story(facts, seed)
    for operation, kind in able:
        name = TEXTS[kind]
        story.phase()
        for distribution in DISTRIBUTIONS:
            x = groups(distribution, name, 64, seed, group)
            story.run(Task(operation, kind, values=x.reshape(8, -1)))
        for largest in (1.0, 6.0, *(2.0**-126 * x * 2.0**n for n in range(6) for x in (1, 1.5))):
            x = lone_values(name, largest, group)[::LONE]
            story.run(Task(operation, kind, values=x.reshape(1, -1)))
        for task in packing(story, 3, 2) * 12:
            if (task.operation, task.kind) == (operation, kind):
                story.run(task)
        x = special_lanes(name, seed, group)
        story.run(Task(operation, kind, values=x.reshape(32, -1)))
    yield story.case("values", (0.1, 0.0))
    operation, kind = able[0]
    x = groups("wide", TEXTS[kind], ((1 << SIZE_BITS) - 1) // group, seed, group)
    story = Story(facts, seed)
    story.phase()
    story.run(Task(operation, kind, values=x.reshape(1, -1)))
    yield story.case("a long row")
