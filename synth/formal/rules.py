"""Jobs about the rules of streams, of any unit that has some."""

import time
from collections.abc import Iterator

from m2xfp.facts import Facts
from m2xfp.synth.formal import streams
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always, unrolled, within
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import cone, from_any_state, simple

__all__ = ["JOBS"]


def _has_streams(design: Design) -> bool:
    return bool(design.facts.outputs)


def _groups_through(design: Design) -> bool:
    """Whether groups go in at one stream and a result for each leaves at another."""
    facts = design.facts
    return len(facts.inputs) == 1 and len(facts.outputs) == 1


def _steady(design: Design) -> bool:
    """Whether, besides, all groups are of one length: others may hold back what is inside."""
    return _groups_through(design) and design.facts.long_groups is None


def _room(facts: Facts) -> int:
    """Return a bound of the groups inside: what the pipeline and its buffers can hold."""
    return facts.latency + 4


def _patience(facts: Facts) -> int:
    """Return a bound of the clocks to a result, or to room for a beat, of a unit that moves on."""
    longest = facts.long_groups.beats if facts.long_groups else 1
    return longest * facts.latency + facts.clocks_per_block + 4


def _deep(design: Design) -> bool:
    """Whether a pipeline is so deep that IC3 takes minutes to find what it can hold."""
    return design.facts.latency > 6


def _valids(design: Design) -> list[str]:
    return [stream.ports[1] for stream in design.facts.outputs]


def _readys(design: Design) -> list[str]:
    return [stream.ports[2] for stream in design.facts.inputs]


def _lasts(design: Design) -> list[str]:
    return [stream.ports[3] for stream in design.facts.outputs]


def _datas(design: Design) -> list[str]:
    return [stream.ports[0] for stream in design.facts.outputs]


def _forgotten(design: Design) -> Outcome:
    facts, netlist = design.facts, from_any_state(simple(design.module()))
    # Until the first results and as long again: the sums then hold what came after the reset.
    clocks = 2 * facts.latency + facts.clocks_per_group + 3
    return unrolled(netlist.text, streams.forgotten(facts, netlist), clocks, LIMIT)


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


JOBS = (
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
        slow=_deep,
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
        slow=_deep,
    ),
    Job(
        "on-time",
        "with a reader always ready, results come exactly the stated latency after their group",
        "IC3",
        _steady,
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
    Job(
        "forgotten",
        "after one clock of reset nothing depends on the state before it: two of a unit agree",
        "SAT sweeping, two states",
        _groups_through,
        _forgotten,
        lambda d: d.register_faults(_datas(d)),
        # Of units of sums it takes seconds; of none of the others has it come to an end.
        slow=lambda d: not {"act", "weight"} <= set(d.facts.parameters),
    ),
)
