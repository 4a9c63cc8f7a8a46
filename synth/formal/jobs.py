"""The proof jobs: properties, each with its engine and with faults that must make it fail.

A job says itself which units it is about, from their facts and modules, so that any unit with any
parameters has its jobs. Nothing here lists units.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from m2xfp.errors import UnknownNameError
from m2xfp.facts import Facts
from m2xfp.rtl.catalog import Instance
from m2xfp.synth.formal import streams
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always, within
from m2xfp.synth.formal.netlist import ProofError, cone

__all__ = ["JOBS", "Job", "find_job", "inject", "jobs_of"]

# An engine gives up after so many seconds, which is an error and no result.
LIMIT = 600
# So many faults are tried before a job counts as one that cannot fail.
TRIES = 40


@dataclass(frozen=True)
class Job:
    """A property of units.

    Members
    -------
    name, text
        What it is called; what it says, in one line.
    engine
        What proves it.
    applies
        Whether a unit has it.
    prove
        Runs the engine.
    faults
        Faults of a unit, for the first few of which the property must not hold.
    slow
        More than a few seconds: only when asked for.
    """

    name: str
    text: str
    engine: str
    applies: Callable[[Design], bool]
    prove: Callable[[Design], Outcome]
    faults: Callable[[Design], Iterator[Design]]
    slow: bool = False


def _has_streams(design: Design) -> bool:
    return bool(design.facts.outputs)


def _groups_through(design: Design) -> bool:
    """Whether groups go in at one stream and a result for each leaves at another."""
    facts = design.facts
    return len(facts.inputs) == 1 and len(facts.outputs) == 1


def _room(facts: Facts) -> int:
    """Return a bound of the groups inside: what the pipeline and its buffers can hold."""
    return facts.latency + 4


def _patience(facts: Facts) -> int:
    """Return a bound of the clocks to a result, or to room for a beat, of a unit that moves on."""
    return facts.latency + facts.clocks_per_block + 4


def _valids(design: Design) -> list[str]:
    return [stream.ports[1] for stream in design.facts.outputs]


def _readys(design: Design) -> list[str]:
    return [stream.ports[2] for stream in design.facts.inputs]


def _lasts(design: Design) -> list[str]:
    return [stream.ports[3] for stream in design.facts.outputs]


def _paths(design: Design) -> Outcome:
    """Look for a path without a register from a stream to another, or from any ready to a valid."""
    begin, flat = time.perf_counter(), design.module()
    found = []
    for stream in design.facts.streams:
        tdata, tvalid, tready, tlast = stream.ports
        given = [tready] if stream.is_input else [tdata, tvalid, tlast]
        own = {tdata, tvalid, tlast} if stream.is_input else set()
        allowed = own | {design.facts.clock, design.facts.reset}
        found += [port for port in cone(flat, given)[0] if port not in allowed]
    return Outcome(not found, ", ".join(found) or "all paths", time.perf_counter() - begin)


def _short_circuits(design: Design) -> Iterator[Design]:
    """Yield the unit with a ready that follows the other side's."""
    yield design.with_wire(design.facts.inputs[0].ports[2], design.facts.outputs[0].ports[2])


JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        Job(
            "held",
            "valid does not drop and the payload does not change while a reader is not ready",
            "BMC, any state",
            _has_streams,
            lambda d: within(d.stalls.text, streams.held(d.facts, d.stalls), 2, LIMIT),
            lambda d: d.register_faults(_valids(d)),
        ),
        Job(
            "silent",
            "one clock of reset in any state, and no output is valid",
            "BMC, any state",
            _has_streams,
            lambda d: within(d.control.text, streams.silent(d.facts, d.control), 2, LIMIT),
            lambda d: d.register_faults(_valids(d)),
        ),
        Job(
            "paths",
            "no path without a register from one stream to another, nor from a ready to a valid",
            "search of the netlist",
            _has_streams,
            _paths,
            _short_circuits,
        ),
        Job(
            "conserved",
            "a result for each group and no other, after any reset of one clock",
            "IC3",
            _groups_through,
            lambda d: always(
                d.control.text,
                streams.conserved(d.facts, d.control, _room(d.facts), _patience(d.facts)),
                LIMIT,
            ),
            lambda d: d.register_faults(_valids(d)),
        ),
        Job(
            "ordered",
            "TLAST of any group leaves with the result of that group",
            "IC3",
            _groups_through,
            lambda d: always(
                d.control.text, streams.ordered(d.facts, d.control, _room(d.facts)), LIMIT
            ),
            lambda d: d.register_faults(_lasts(d)),
        ),
        Job(
            "on-time",
            "with a reader always ready, results come exactly the stated latency after their group",
            "IC3",
            _groups_through,
            lambda d: always(
                d.control.text, streams.on_time(d.facts, d.control, _room(d.facts)), LIMIT
            ),
            lambda d: d.register_faults(_valids(d)),
        ),
        Job(
            "live",
            "a unit with a ready reader takes an offered beat within a bound of clocks",
            "IC3",
            _groups_through,
            lambda d: always(
                d.control.text, streams.live(d.facts, d.control, _patience(d.facts)), LIMIT
            ),
            lambda d: d.register_faults(_readys(d)),
        ),
    )
}


def find_job(name: str) -> Job:
    """Return the job called ``name``; UnknownNameError lists those that exist."""
    if name not in JOBS:
        raise UnknownNameError("proof job", name, JOBS)
    return JOBS[name]


def jobs_of(instance: Instance, *, slow: bool = True) -> tuple[Design, list[Job]]:
    """Return an instance as a design, and the jobs that are about it."""
    design = Design.of(instance)
    return design, [job for job in JOBS.values() if (slow or not job.slow) and job.applies(design)]


def inject(job: Job, design: Design) -> tuple[str, Outcome]:
    """Return the first fault for which a job fails, and the outcome.

    Raises
    ------
    ProofError
        None of the first ``TRIES`` faults makes it fail: the job shows nothing.
    """
    for broken in islice(job.faults(design), TRIES):
        outcome = job.prove(broken)
        if not outcome.holds:
            return broken.fault, outcome
    raise ProofError(f"{design.facts.top}, {job.name}: holds with any of the faults injected")
