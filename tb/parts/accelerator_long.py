"""Tasks of the accelerator that wait, and tasks of many rows: what fills up and counts far."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product as product_of

from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.tb.parts.accelerator_faults import packing, product
from m2xfp.tb.parts.accelerator_story import Story, works
from m2xfp.tb.parts.accelerator_tasks import core_of, task_results
from m2xfp.tb.parts.accelerator_traffic import Descriptor, Traffic
from m2xfp.tb.parts.gemm_arrays import GemmStreams
from m2xfp.tb.regression import STALLS, Case

__all__ = ["waits_and_counts"]

# Products, and rows of values, for a memory that pauses in so many clocks.
SLOW, SLOW_STALL = 8, (0.0, 0.9)
# Clocks of such traffic before a reset.
SLOW_RESETS = range(300, 4200, 300)
# Pauses of a few thousand clocks, and beats that have left for a memory that takes none.
LONG, LEFT = 1 - 2**-13, 2
# Rows or columns of products, to the upper bits of counters.
MANY = 20000
# Rows of a product that lie in one place: the last but one bit of what counts rows.
MOST = 1 << SIZE_BITS - 2
# Clocks of a timeout, fewer than from a product's last operand to its result.
SOON = 10


def waits_and_counts(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield results and operands that wait long, resets among them, and tasks of many rows."""
    slow = slow_memory(facts, seed)
    yield slow
    for clocks in SLOW_RESETS:
        yield replace(slow, name=f"slow memory, reset after {clocks}", before=clocks, seed=clocks)
    yield from stopped_pieces(facts, seed)
    yield held_operands(facts, seed)
    yield short_timeout(facts, seed)
    yield many_rows(facts, seed)
    yield rows_in_one_place(facts, seed)


def slow_memory(facts: Facts, seed: int) -> Case:
    """Return results that wait long, so that everything fills up behind them."""
    story = Story(facts, seed)
    story.phase()
    streams = GemmStreams(core_of(facts))
    most = min(3, facts.parameters["max_k"] // streams.act.group)
    for number in range(SLOW):
        for task in (product(story, 9, 5, 1 + number % most), *packing(story, 2, 9)):
            story.run(task)
    return story.case("slow memory", SLOW_STALL)


def stopped_pieces(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield values of which codes are being written when a timeout ends their descriptor.

    The address waits, and with it the beats of the burst: two that have left have strobes, the
    others get none.
    """
    story = Story(facts, seed)
    traffic = Traffic(facts, story.memory)
    if traffic.gather * story.code_bytes <= LEFT * traffic.bus:
        return
    for task in packing(story, 1, traffic.gather):
        story.phase()
        story.phase()  # without pauses
        story.tell("timeout", 2 * max(256, 2 * facts.clocks_per_block))
        at = story.scatter(task, out=1 << 20, out_scales=2 << 20, out_meta=3 << 20)
        under_way = len(story.hang(at)["acts"])
        requests = story.now.value_requests(at)
        bursts = [burst for request in requests for burst in story.now.bursts(*request)]
        for burst in bursts[under_way:]:
            story.now.issue("acts", *burst)
        story.bring("acts", bursts[:-1])
        story.phase()  # with pauses that are longer than that
        story.bring("acts", bursts[-1:])
        codes = task_results(task, facts)[0, :, : story.code_bytes].reshape(-1)
        count = story.now.store_piece(at["out"], codes, LEFT)
        story.ended(at.number, "timeout")
        story.phase()
        for _ in range(count):
            story.now.respond()
        story.look("error", "completed", "status")
        story.tell("timeout", 0)
        story.tell("error", 1 << 31)
        story.phase()
        story.phase()
        story.run(product(story, 1, 1, 1))
    if story.phases:
        yield story.case("stopped pieces", (0.0, LONG))


def held_operands(facts: Facts, seed: int) -> Case:
    """Return products of a block and a panel of which one operand waits for the other one."""
    story, given = Story(facts, seed), facts.parameters
    most = min(given["chunk"] + 1, given["max_k"] // block_format(given["act"]).group)
    height = given["rows"] * given["chains"]
    for held, m, count in product_of(("acts", "weights"), range(1, 1 + height), range(1, 1 + most)):
        story.phase()
        task = product(story, m, given["columns"], count)
        at = story.scatter(task)
        under_way = story.hang(at)
        for operand in (*(under_way.keys() - {held}), held):
            for number, burst in enumerate(_bursts(story, operand, at)):
                if number >= len(under_way[operand]):
                    story.now.issue(operand, *burst)
                story.bring(operand, [burst])
            if operand != held:
                story.phase()
        for _ in range(story.now.write(at, task_results(task, facts))):
            story.now.respond()
        story.ended(at.number, work=works(at, facts))
    return story.case("held operands", STALLS[1])


def _bursts(story: Story, operand: str, at: Descriptor) -> Iterator[tuple[int, int]]:
    """Yield the bursts of an operand of a product."""
    for request in story.now.requests(operand[0], at):
        yield from story.now.bursts(*request)


def many_rows(facts: Facts, seed: int) -> Case:
    """Return products of many rows or columns, of one chunk and of more, and rows of values."""
    story = Story(facts, seed)
    most = facts.parameters["max_k"] // block_format(facts.parameters["act"]).group
    for size, count in ((MANY, 1), (MANY // 4, min(most, facts.parameters["chunk"] + 1))):
        for m, n in ((1, size), (size, 1)):
            story.phase()
            story.run(product(story, m, n, count))
            story.phase()
            story.look("work")
    for task in packing(story, MANY // 4, 3) * 6:
        story.phase()
        story.run(task)
    for bit in range(MANY.bit_length() - 2):
        story.phase()
        story.run(product(story, 1 + (1 << bit), 2, 1))
        story.run(product(story, 2, 1 + (1 << bit), 1))
        story.phase()
        story.look("work")
    story.phase()
    story.look()
    return story.case("many rows", (0.1, 0.1))


def rows_in_one_place(facts: Facts, seed: int) -> Case:
    """Return a product of a quarter of a million rows, all of which are read from one place.

    Its results go to one place too, so that it moves what one block does, again and again.
    """
    story, given = Story(facts, seed), facts.parameters
    height = given["rows"] * given["chains"]
    story.phase()
    story.run(product(story, 1, 1, 1))
    count = min(2, given["max_k"] // block_format(given["act"]).group)
    task = product(story, height, 2 * given["columns"], count)
    assert task.product is not None
    task.product.acts[:] = task.product.acts[0]
    pitches = dict.fromkeys(("a_codes_pitch", "a_scales_pitch", "out_pitch"), 0)
    block, results = story.scatter(task, **pitches), task_results(task, facts)
    blocks = MOST // height + 1
    whole = Descriptor({**block.words, "m": blocks * height}, block.number)
    now = story.phase()
    now.configure(whole)
    now.fetch(block, "weights")
    with now.channels.repeated(2 * blocks):
        now.fetch(block, "acts")
    for panel in range(2):
        with now.channels.repeated(blocks):
            pieces = slice(panel * height, (panel + 1) * height)
            for _ in range(now.write(block, results, pieces)):
                now.respond()
    story.ended(whole.number, work=works(whole, facts))
    story.phase()
    story.look()
    return story.case("rows in one place")


def short_timeout(facts: Facts, seed: int) -> Case:
    """Return tasks with a timeout that is over sooner than their results are there.

    While they are on their way a bus owes nothing.
    """
    story = Story(facts, seed)
    story.phase()
    story.tell("timeout", SOON)
    story.phase()
    for task in (product(story, 1, 1, 1), product(story, 3, 3, 2), *packing(story, 2, 2)):
        story.run(task)
    story.phase()
    story.look("error", "completed", "timeout")
    return story.case("short timeout")
