"""A unit's regression: cases that every build of it must pass, and playing them.

``Bench.regression`` gives the cases: random and directed values, stalls, and what the unit's
streams can get into. The tests play them through the emitted Verilog, and `m2xfp mutate` through
Verilog with a fault, to see which faults they notice.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m2xfp.facts import Facts
from m2xfp.tb.bench import Arrays
from m2xfp.tb.bulk.simulator import BulkSimulator, Run
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["RESETS", "STALLS", "WARM", "Case", "check_case", "steady_cases"]

# None, both sides now and then, and a reader so slow that everything fills up behind it.
STALLS = ((0.0, 0.0), (0.25, 0.25), (0.0, 0.9))

# Clocks of traffic that leave something in every register, before a reset in its midst.
WARM = 100
# Pauses of both ends of traffic that is reset, each clock later: a slow reader, a slow writer, and
# both slow for a unit that takes some beats a group.
RESETS = ((0.8, 0.9), (0.9, 0.5)) * 8 + ((0.85, 0.97),) * 8

Timing = Callable[[Run, Facts], str]
"""What is wrong with the clocks of a run without stalls; nothing if they are as stated."""

Story = Callable[[Sequence[Run], Facts], str]
"""What is wrong with some runs beside the beats that came; nothing if all is well."""


@dataclass(frozen=True)
class Case:
    """What is played from one reset, and what must come out.

    Members
    -------
    name
        What is special about it.
    phases
        Beats in and out; each set begins when everything before it has come to rest.
    stall
        Probability that a stream pauses in a clock, of the inputs and of the outputs; in every
        other phase none does, so that its beats come as close together as they can.
    seed
        Of the stalls, and of what registers hold before the reset.
    timing
        Looks at the clocks of a case of one phase without stalls.
    before
        Clocks of traffic, the first of the beats, that the reset is in the midst of.
    story
        Looks at the runs of all phases together, and says what is wrong with them.
    """

    name: str
    phases: tuple[TestVectors, ...]
    stall: tuple[float, float] = (0.0, 0.0)
    seed: int = 0
    timing: Timing | None = None
    before: int = 0
    story: Story | None = None


def check_case(
    simulator: BulkSimulator, case: Case, settings: Mapping[str, int] | None = None
) -> list[Run]:
    """Play a case, and return its runs, one a phase.

    Parameters
    ----------
    simulator
        The unit.
    case
        One of its cases.
    settings
        Values of ports that the case knows nothing of.

    Raises
    ------
    AssertionError
        Beats that differ, are missing or too many, or clocks that are not as stated.
    SimulationError
        A stream rule is broken, or the unit takes no more.
    """
    runs = []
    for vectors, run in zip(case.phases, _runs(simulator, case, settings or {}), strict=True):
        runs.append(run)
        for name, wanted in vectors.outputs.items():
            found = run.outputs[name]
            assert len(found) == len(wanted), f"{case.name}: {name} gave {len(found)} beats"
            wrong = vectors.differing(name, found)
            assert not len(wrong), f"{case.name}: {name} differs in beat {wrong[0]}"
        if case.timing is not None:
            assert not (complaint := case.timing(run, simulator.facts)), f"{case.name}: {complaint}"
    if case.story is not None:
        assert not (complaint := case.story(runs, simulator.facts)), f"{case.name}: {complaint}"
    return runs


def _runs(simulator: BulkSimulator, case: Case, settings: Mapping[str, int]) -> Iterator[Run]:
    facts = simulator.facts
    if not facts.streams:
        for vectors in case.phases:
            words = dict(vectors.inputs)
            for port in facts.signals:
                if port.name in settings:
                    row = settings[port.name].to_bytes(port.bytes, "little")
                    words[port.name] = Beats(
                        np.tile(np.frombuffer(row, np.uint8), (_clocks(words), 1))
                    )
            yield simulator.run(words, seed=case.seed)
        return
    stall = {stream.name: case.stall[not stream.is_input] for stream in facts.streams}
    if len(case.phases) == 1:
        yield simulator.run(
            case.phases[0].inputs,
            stall=stall,
            seed=case.seed,
            settings=settings,
            before=case.before,
            stamps=simulator.coverage or case.timing is not None,
        )
        return
    yield from simulator.run_phases(
        [vectors.inputs for vectors in case.phases],
        stalls=[stall if number % 2 == 0 else 0.0 for number in range(len(case.phases))],
        seed=case.seed,
        settings=settings,
        before=case.before,
    )


def _clocks(words: Mapping[str, Beats]) -> int:
    return len(next(iter(words.values())))


def _steady(run: Run, facts: Facts) -> str:
    """Look for a group that came later than stated, or a beat that had to wait."""
    beats = facts.beats_per_group
    groups = np.arange(len(run.stamps["i"])) // beats
    rest = facts.clocks_per_group - beats
    late = run.stamps["i"].astype(np.int64) - np.arange(len(groups)) - groups * rest
    if (late > 0).any():
        return f"beat {int((late > 0).argmax())} had to wait"
    # Units that answer each beat have as many results as beats.
    ends = run.stamps["i"].reshape(len(run.stamps["o"]), -1)[:, -1]
    wrong = run.stamps["o"] != ends + np.uint64(facts.latency)
    return f"result {int(wrong.argmax())} is not on time" if wrong.any() else ""


def steady_cases(
    named: Iterable[tuple[str, Arrays]],
    vectors: Callable[[Arrays, Facts, int], TestVectors],
    facts: Facts,
    seed: int,
) -> Iterator[Case]:
    """Yield a case for each of some arrays, with the stalls in turn, and resets in their midst.

    Those without stalls of a unit of one input stream look at the clocks too. The last cases are of
    a few groups each, reset in one clock after the other of traffic that pauses at both ends.
    """
    timing = _steady if len(facts.inputs) == 1 else None
    few: TestVectors | None = None
    for number, (name, arrays) in enumerate(named):
        stall = STALLS[number % len(STALLS)]
        made = vectors(arrays, facts, seed + number)
        few = few or made.part(0, min(made.groups, 40))
        yield Case(
            name,
            (made,),
            stall,
            seed + number,
            None if any(stall) else timing,
            WARM + 5 * number,
        )
    if few is not None and facts.streams:
        for clock, stall in enumerate(RESETS):
            yield Case(f"reset {clock}", (few,), stall, seed + clock, before=WARM + clock)
