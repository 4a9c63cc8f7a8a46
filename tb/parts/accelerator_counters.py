"""Counters of the accelerator, and its timeout."""

from collections.abc import Iterator, Sequence

from m2xfp.facts import Facts
from m2xfp.rtl.parts.accelerator_map import OFFSETS
from m2xfp.tb.bulk.simulator import Run
from m2xfp.tb.fields import read
from m2xfp.tb.parts.accelerator_faults import product
from m2xfp.tb.parts.accelerator_memory import Descriptor
from m2xfp.tb.parts.accelerator_story import Story, works
from m2xfp.tb.parts.accelerator_tasks import Task, task_results
from m2xfp.tb.regression import Case

__all__ = ["counting"]

# Bursts that the writing bus has under way at most, as docs/accelerator-unit.md says.
WRITES = 15
# Pauses of inputs so long that counters count far in them.
VERY_LONG = 1 - 2**-15


def counting(facts: Facts, seed: int) -> Iterator[Case]:
    """Yield clocks that are counted while a memory lets the accelerator wait, few and many."""
    for name, stall, clocks in (
        ("counters", 0.0, (100, 201)),
        ("counters that count far", VERY_LONG, (1500, 9000)),
    ):
        story = Story(facts, seed)
        for held in ("acts", "weights", "results"):
            _wait(story, held)
        _time_out(story, clocks)
        yield story.case(name, (stall, 0.0))


def _calm(story: Story) -> None:
    """Begin a phase without pauses: each second one is."""
    for _ in range(2 - story.phases % 2):
        story.phase()


def _slow(story: Story) -> None:
    """Let a phase pass that may have long pauses."""
    for _ in range(1 + story.phases % 2):
        story.phase()
    for _ in range(2):
        story.look("id")


def _read(story: Story, *names: str) -> int:
    """Read counters that are not known in a phase of its own; return its number."""
    _calm(story)
    for name in names:
        story.now.ask(OFFSETS[name], mask=0)
    return story.phases - 1


def _answers(story: Story, run: Run) -> list[int]:
    """Return what the registers that were read in a phase held."""
    stream = story.facts.stream("control_r")
    return [int(word) for word in read(stream.field("data"), run.outputs["control_r"].data)]


def _wait(story: Story, held: str) -> None:
    """Tell of a product that waits, while the counters are read."""
    facts = story.facts
    given = facts.parameters
    m, n = 1, 1
    if held == "results":
        # More than are under way, by what the core keeps, a beat that waits for it, and no more, so
        # that all operands have been read.
        m = given["rows"]
        n = given["columns"] * -(-(WRITES + 1 + 3 * m) // m)
    task = product(story, m, n, 1)
    at = story.scatter(task, out=1 << 20, out_pitch=1 << 12)
    results = task_results(task, facts)
    _calm(story)
    owed: dict[str, list[tuple[int, int]]] = {}
    if held == "results":
        story.now.configure(at)
        story.now.fetch(at)
        story.now.write(at, results, slice(WRITES))
    else:
        owed = story.hang(at)
        for side in owed.keys() - {held}:
            story.bring(side, owed[side])
    waits = ("acts", "weights", "results")
    grows = {"cycles": 1, "work": 0, **{f"wait_{each}": int(each == held) for each in waits}}
    first = _read(story, *grows)
    _slow(story)
    second = _read(story, *grows)

    def check(runs: Sequence[Run]) -> str:
        clocks = runs[second].cycles - runs[first].cycles
        words = (_answers(story, runs[phase]) for phase in (first, second))
        for (name, step), before, now in zip(grows.items(), *words, strict=True):
            if now - before != step * clocks:
                return f"{held} held: {name} grew by {now - before} in {clocks} clocks"
        return ""

    story.checks.append(check)
    _calm(story)
    for operand in owed.keys() & {held}:
        story.bring(operand, owed[operand])
    rest = slice(None)
    if held == "results":
        rest = slice(WRITES, None)
        for _ in range(WRITES):
            story.now.respond()
    for _ in range(story.now.write(at, results, rest)):
        story.now.respond()
    story.ended(at.number, work=works(at, facts))
    _calm(story)
    story.look("completed", "work")


def _time_out(story: Story, clocks: Sequence[int]) -> None:
    """Tell of timeouts, which are as far apart as the clocks until they end something."""
    spans = []
    for wait in clocks:
        _calm(story)
        story.tell("timeout", wait)
        task = product(story, 1, 1, 1)
        at = _unhindered(story, task)
        before = _read(story, "cycles")
        _calm(story)
        owed = story.hang(at)
        story.ended(at.number, "timeout")
        _slow(story)
        spans.append((before, _read(story, "cycles")))
        _calm(story)
        story.look("error", "completed")
        for operand, bursts in owed.items():
            story.bring(operand, bursts)
        story.tell("error", 1 << 31)

    def check(runs: Sequence[Run]) -> str:
        ran = [_answers(story, runs[b])[0] - _answers(story, runs[a])[0] for a, b in spans]
        over = [took - wait for took, wait in zip(ran, clocks, strict=True)]
        return "" if len(set(over)) == 1 else f"timeouts of {clocks} ended after {ran} clocks"

    story.checks.append(check)
    _calm(story)
    story.tell("timeout", 0)


def _unhindered(story: Story, task: Task) -> Descriptor:
    """Place a product so that each plane is one burst."""
    planes = [f"{side}_{plane}" for side in "aw" for plane in ("codes", "scales", "meta")]
    return story.scatter(task, **{name: 1 + n << 16 for n, name in enumerate(planes)})
