"""What memories answer wrongly, late or not at all, and planes that go beyond the last address."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, ENCODE, FP32_VALUES, GEMM
from m2xfp.tb.parts.accelerator_story import Story, works
from m2xfp.tb.parts.accelerator_tasks import Task, core_of, kinds_of, task_results
from m2xfp.tb.parts.accelerator_traffic import PAGE, Descriptor, Traffic
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product
from m2xfp.tb.parts.value_stimulus import groups
from m2xfp.tb.regression import Case

__all__ = ["after", "packing", "product", "responses", "silences", "wraps"]

RESPONSES = {2: "slverr", 3: "decerr"}
TEXTS = {FP32_VALUES: "fp32", BF16_VALUES: "bf16"}
PLANES = ("codes", "scales", "meta")
# Clocks without movement: such as a phase has at its end, and many more.
SHORT = 100

Owed = Mapping[str, Sequence[tuple[int, int]]]


def product(story: Story, m: int, n: int, count: int, kind: int = FP32_VALUES) -> Task:
    """Return a product of any bytes, with scales near each other."""
    streams = GemmStreams(core_of(story.facts))
    sides = []
    for rows, block in ((m, streams.act), (n, streams.weight)):
        found = story.rng.integers(0, 256, (rows, count, sum(block.group_bytes)), "uint8")
        found[..., block.group_bytes[0]] = 127 + story.rng.integers(-3, 4, (rows, count))
        sides.append(found)
    return Task(GEMM, kind, Product(sides[0], sides[1], count * streams.act.group))


def packing(story: Story, m: int, count: int) -> list[Task]:
    """Return a task of each operation that packs values, and of each kind of these."""
    group = block_format(story.facts.parameters["act"]).group
    found = []
    for operation, kind in kinds_of(story.facts):
        if operation != GEMM:
            seed = int(story.rng.integers(1 << 30))
            values = groups("wide", TEXTS[kind], m * count, seed, group)
            found.append(Task(operation, kind, values=values.reshape(m, -1)))
    return found


def after(story: Story, number: int) -> None:
    """Look at the registers after an error, clear some of them, and run a product."""
    story.phase()
    story.look("error", "completed", "int_status", "status", "work")
    story.phase()
    story.tell("error", (1 << 31, 0x7FFFFFFF, 0xFFFFFFFF)[number % 3])
    story.tell("int_status", (3, 1, 2, 0, 3)[number % 5])
    story.phase()
    story.look("error", "int_status")
    story.phase()
    story.run(product(story, 1 + number % 3, 1 + number % 2, 1 + number % 2))


def late(story: Story, owed: Owed) -> None:
    """Answer what nothing waits for any more."""
    story.phase()
    for operand, bursts in owed.items():
        story.bring(operand, bursts)


# --- responses ------------------------------------------------------------------------------------


def responses(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield each response to each burst that is read, and to bursts that are written.

    What else is owed is answered later, and dropped. After each a product is right.
    """
    story = Story(facts, seed)
    for number, (task, operand, index, response) in enumerate(_reads(story)):
        story.phase()
        story.tell("int_enable", (3, 1, 2, 0)[number % 4])
        at = story.scatter(task)
        owed = story.hang(at)
        for other, bursts in owed.items():
            if other != operand:
                story.bring(other, bursts)
        story.phase()
        bursts = owed[operand]
        index = min(index, len(bursts) - 1)
        story.bring(operand, bursts[:index])
        # In the last beat of the burst; those of the bursts behind it are dropped.
        story.bring(operand, bursts[index:], *[0] * (bursts[index][1] - 1), response)
        story.ended(at.number, f"read_{RESPONSES[response]}")
        after(story, number)
    yield story.case("read responses", (0.3, 0.3))
    story = Story(facts, seed + 1)
    for number, (response, index) in enumerate((r, n) for r in RESPONSES for n in range(3)):
        # Each has three bursts: of rows, or of planes.
        one = product(story, 3, 1, 1, (FP32_VALUES, BF16_VALUES)[number % 2])
        for task in (one, *packing(story, 1, 1)):
            story.phase()
            places = {"out_scales": 128, "out_meta": 192} if task.packed else {}
            at = story.scatter(task, out=64, out_pitch=64, **places)
            story.now.configure(at)
            story.now.fetch(at)
            count = story.now.write(at, task_results(task, facts))
            story.phase()
            for n in range(count):
                story.now.respond(response if n == index else 0)
            failed = f"write_{RESPONSES[response]}" if index < count else ""
            story.ended(at.number, failed, works(at, facts))
            after(story, number)
    yield story.case("write responses", (0.3, 0.3))


def _reads(story: Story) -> Iterator[tuple[Task, str, int, int]]:
    """Yield a small task, an operand that it reads, and a burst of it, with a response."""
    for response in RESPONSES:
        for operand in ("acts", "weights"):
            for index in range(3):
                yield product(story, 1, 1, 1), operand, index, response
        for task in packing(story, 1, 1):
            yield task, "acts", 0, response


# --- beyond the last address ----------------------------------------------------------------------


def wraps(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield tasks whose planes end with the last address, and such as go beyond it.

    How many bursts have left when a later plane is found beyond follows from a reader's clocks: one
    that takes a request and one that gives its address. So these phases have no stalls.
    """
    story, top = Story(facts, seed), 1 << facts.parameters["address_bits"]
    block = GemmStreams(core_of(facts)).act
    group = block.group
    sizes = {name: size for name, size in zip(PLANES, block.group_bytes, strict=True) if size}
    order = [*list(sizes)[1:], "codes"]
    for side, operand in (("a", "acts"), ("w", "weights")):
        for number, plane in enumerate(order):
            task = product(story, 1, 1, 1)
            at = story.scatter(task)
            name, last = f"{side}_{plane}", top - sizes[plane]
            story.memory.write(last, story.memory.read(at[name], sizes[plane]))
            story.phase()
            story.run(task, Descriptor({**at.words, name: last}, at.number))
            if facts.parameters["chunk"] > 1:
                at = _plain(story, product(story, 1, 1, 2), **{name: last})
                left = max(0, number - 1)
                _beyond(story, at, {"acts": left, "weights": left})
            if _chunk_is_a_burst(story):
                # The first chunk ends with the last address, and the second one is beyond.
                count = facts.parameters["chunk"]
                start = top - count * sizes[plane]
                at = _plain(story, product(story, 1, 1, count + 1), **{name: start})
                left = min(len(order) + number - 1, facts.parameters["outstanding"])
                _beyond(story, at, {"acts": left, "weights": left})
            # A second row is beyond, whose pitch is shared by scales and metadata.
            wide = (1 << 32) - 64
            if len(order) == 3 and plane != "meta":
                one = product(story, *((2, 1) if side == "a" else (1, 2)), 1)
                pitch = f"{side}_{plane}_pitch"
                at = _plain(story, one, **{name: last, pitch: wide})
                left, other = (2, 2) if plane == "scales" else (4, 3)
                _beyond(story, at, {"acts": other, "weights": other, operand: left})
    _second_block(story)
    for task in packing(story, 1, 1):
        size = task.sizes[2] * (4 if task.kind == FP32_VALUES else 2)
        at = story.scatter(task)
        story.memory.write(top - size, story.memory.read(at["a_codes"], size))
        story.phase()
        story.run(task, Descriptor({**at.words, "a_codes": top - size}, at.number))
    chunk = Traffic(facts, story.memory).value_chunk
    count = 1 + chunk // (2 * group)
    for task in packing(story, 1, count):  # more than a chunk, and the second one is beyond
        size = group * (4 if task.kind == FP32_VALUES else 2)
        if chunk >= size:
            _beyond(story, story.scatter(task, a_codes=top - chunk // size * size), {})
    for task in packing(story, 2, 1):
        size = task.sizes[2] * (4 if task.kind == FP32_VALUES else 2)
        for step in (size, 1 << 31, (1 << 32) - size):
            at = story.scatter(task, a_codes=top - size, a_codes_pitch=step)
            _beyond(story, at, {})
    yield story.case("beyond the last address")
    story = Story(facts, seed + 1)
    _results_beyond(story, top)
    _planes_beyond(story, top)
    yield story.case("results beyond the last address", (0.2, 0.2))


def _plain(story: Story, task: Task, **changes: int) -> Descriptor:
    """Return a descriptor whose planes begin in words of their own, one a burst."""
    planes = [f"{side}_{plane}" for side in "aw" for plane in PLANES]
    words = {name: 1 + n << 16 for n, name in enumerate((*planes, "out"))}
    pitches = {f"{side}_{plane}_pitch": 256 for side in "aw" for plane in PLANES[:2]}
    return story.scatter(task, **{**words, **pitches, "out_pitch": 64, **changes})


def _beyond(story: Story, at: Descriptor, left: Mapping[str, int]) -> None:
    """Push what goes beyond, when so many bursts of each operand have left; answer them later."""
    story.phase()
    story.now.configure(at)
    owed = {}
    for operand, count in left.items():
        owed[operand] = story.now.first_bursts(at)[operand][:count]
        for burst in owed[operand]:
            story.now.issue(operand, *burst)
    story.ended(at.number, "address")
    late(story, owed)
    after(story, story.phases)


def _chunk_is_a_burst(story: Story) -> bool:
    """Return whether a chunk is read by a burst a plane, and a row may have more groups."""
    given = story.facts.parameters
    chunk = given["chunk"]
    return (
        chunk <= int(given["bus"]) // 8
        and chunk * story.code_bytes <= PAGE
        and (chunk + 1) * block_format(given["act"]).group <= given["max_k"]
    )


def _second_block(story: Story) -> None:
    """Push a product of whose activations the second block begins beyond, in all planes."""
    given = story.facts.parameters
    height, under_way = given["rows"] * given["chains"], given["outstanding"]
    task = product(story, height + 1, 1, 1)
    pitch = -(-(1 << given["address_bits"]) // (64 * height)) * 64
    if pitch >> 32 or height == 1:
        return
    pitches = {"a_codes_pitch": pitch, "a_scales_pitch": pitch}
    at = _plain(story, task, **{f"a_{name}": 1 << 19 - n for n, name in enumerate(PLANES)})
    at = Descriptor({**at.words, **pitches}, at.number)
    whole = Descriptor({**at.words, "m": height}, at.number)
    # Of the first block all leave but the last, which the end comes before.
    acts = [burst for each in story.now.requests("a", whole) for burst in story.now.bursts(*each)]
    weights = story.now.first_bursts(at)["weights"]
    story.phase()
    story.now.configure(at)
    for burst in weights:
        story.now.issue("weights", *burst)
    for burst in acts[: min(under_way, len(acts) - 1)]:
        story.now.issue("acts", *burst)
    taken = max(0, len(acts) - under_way)
    if taken:
        story.phase()
        story.bring("acts", acts[:taken])
        for burst in acts[under_way:-1]:
            story.now.issue("acts", *burst)
    story.ended(at.number, "address")
    late(story, {"acts": acts[taken:-1], "weights": weights})
    after(story, story.phases)


def _results_beyond(story: Story, top: int) -> None:
    """Tell of products of which the last row, or panel, is beyond; what comes before is written."""
    facts = story.facts
    given = facts.parameters
    columns, height = given["columns"], given["rows"] * given["chains"]
    for kind, size in ((FP32_VALUES, 4), (BF16_VALUES, 2)):
        task = product(story, 1, columns, 1, kind)
        story.phase()
        story.run(task, story.scatter(task, out=top - columns * size))
        tall = product(story, height + 1, 1, 1, kind)
        pitch = min((1 << 32) - 16, (top - size) // max(1, height - 1) // 16 * 16)
        out = top - size - (height - 1) * pitch
        for task, held, words in (
            (product(story, 1, columns + 1, 1, kind), "weights", {"out": top - columns * size}),
            (tall, "acts", {"out": out, "out_pitch": pitch}),
        ):
            at = story.scatter(task, **words)
            m, n, _ = task.sizes
            first = Descriptor({**at.words, "m": min(m, height), "n": min(n, columns)}, at.number)
            story.phase()
            story.now.configure(at)
            bursts = [
                b for each in story.now.requests(held[0], at) for b in story.now.bursts(*each)
            ]
            story.now.fetch(at, *({"acts", "weights"} - {held}))
            for burst in bursts:
                story.now.issue(held, *burst)
            story.bring(held, bursts[:-1])
            results = task_results(task, facts)[: first["m"], : first["n"]]
            for _ in range(story.now.write(first, results)):
                story.now.respond()
            story.phase()
            story.bring(held, bursts[-1:])
            story.ended(at.number, "address", works(at, facts))
            after(story, story.phases)


def _planes_beyond(story: Story, top: int) -> None:
    """Tell of packed planes that end with the last address, and that go beyond."""
    for task in packing(story, 1, 2):
        results = task_results(task, story.facts)
        code_bytes = block_format(story.facts.parameters["act"]).group_bytes[0]
        sizes = {"out": code_bytes, "out_scales": 1, "out_meta": 1}
        whole = story.scatter(task, out=1 << 16, out_scales=2 << 16, out_meta=3 << 16)
        for number, (name, size) in enumerate(sizes.items()):
            story.phase()
            story.run(task, Descriptor({**whole.words, name: top - 2 * size}, story.number()))
            at = Descriptor({**whole.words, name: top - size}, story.number())
            story.phase()
            story.now.configure(at)
            story.now.fetch(at)
            if number == 2:  # the codes are on their way when metadata is found to be beyond
                content = results[0, :, :code_bytes].reshape(-1)
                for _ in range(story.now.store_piece(at["out"], content)):
                    story.now.respond()
            story.ended(at.number, "address")
            after(story, number)
    for task in packing(story, 2, 1):
        results = task_results(task, story.facts)
        block = story.facts.parameters["weight" if task.operation == ENCODE else "act"]
        ends = [0, *itertools.accumulate(block_format(block).group_bytes)]
        # A second row of which each plane in turn is beyond; those before it have left.
        for number, name in enumerate(("out", "out_scales", "out_meta")):
            size = ends[number + 1] - ends[number]
            pitch = "out_pitch" if name == "out" else "out_scales_pitch"
            for step in ((1 << 32) - 256, 256):
                words = {"out": 1 << 16, "out_scales": 0, "out_meta": 128}
                words |= {"out_pitch": 256, "out_scales_pitch": 256}
                at = story.scatter(task, **{**words, name: top - size, pitch: step})
                _second_row(story, at, results, ends, number)


def _second_row(
    story: Story, at: Descriptor, results: NDArray[Any], ends: Sequence[int], plane: int
) -> None:
    """Push what packs two rows, of the second one a plane is beyond, and give that one later."""
    story.phase()
    story.now.configure(at)
    requests = list(story.now.value_requests(at))
    bursts = [burst for request in requests for burst in story.now.bursts(*request)]
    for burst in bursts:
        story.now.issue("acts", *burst)
    half = len(bursts) // 2
    story.bring("acts", bursts[:half])
    for _ in range(story.now.write(Descriptor({**at.words, "m": 1}), results[:1])):
        story.now.respond()
    story.phase()
    story.bring("acts", bursts[half:])
    if plane == 2:  # codes are on their way when metadata is found to be beyond
        for _ in range(
            story.now.store_piece(at["out"] + at["out_pitch"], results[1, 0, : ends[1]])
        ):
            story.now.respond()
    story.ended(at.number, "address")
    after(story, story.phases)


# --- timeouts -------------------------------------------------------------------------------------


def silences(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield timeouts: none, some that are not over, one that is, and a beat now and then."""
    story = Story(facts, seed)
    rest = max(256, 2 * facts.clocks_per_block)  # clocks in which nothing moves, between phases
    for number, task in enumerate((product(story, 1, 1, 1), *packing(story, 1, 1))):
        story.phase()
        story.look()
        at = story.scatter(task)
        owed = story.hang(at)
        story.phase()
        story.registers["status"] = 1 | 1 << 8
        story.look("status", "completed")
        for bit in range((4 * rest).bit_length(), 32):
            story.tell("timeout", 1 << bit)
        story.tell("timeout", 0xFFFFFFFF)
        story.phase()
        story.look("timeout", "status")
        story.phase()
        story.tell("timeout", SHORT)
        story.registers["status"] = 0
        story.ended(at.number, "timeout")
        late(story, owed)
        after(story, number)
        # It is there before, and ends what hangs by itself.
        story.phase()
        at = story.scatter(task)
        owed = story.hang(at)
        story.ended(at.number, "timeout")
        late(story, owed)
        after(story, number)
        # A beat a phase is enough.
        story.phase()
        story.tell("timeout", rest + 44)
        story.phase()
        at = story.scatter(task)
        owed = story.hang(at)
        for operand, bursts in owed.items():
            for burst in bursts:
                story.phase()
                story.bring(operand, [burst])
        for _ in range(story.now.write(at, task_results(task, facts))):
            story.phase()
            story.now.respond()
        story.ended(at.number, work=works(at, facts))
        story.phase()
        story.tell("timeout", 0)
    story.phase()
    story.look()
    yield story.case("silences")
