"""Jobs about the control of a core that fills buffers with weights while it uses others."""

from collections.abc import Iterator, Sequence

from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

# Wires of the emitted text, by the names of instances and of their ports.
PROBES = {
    "write": "loader.write",
    "into": "loader.buffer",
    "filled": "loader.filled",
    "full": "sequencer.full",
    "read": "sequencer.read",
    "out_of": "sequencer.buffer",
    "released": "sequencer.released",
}

# Of groups, or of the beats of a group.
KINDS = ("", "slot_")


def _applies(design: Design) -> bool:
    return any({f"{kind}loader", f"{kind}sequencer"} <= set(design.modules) for kind in KINDS)


def _wires(design: Design, names: Sequence[str]) -> dict[str, str]:
    """Return wires by name, of the one core that there is, wherever it is in the unit."""
    inside = PROBES["filled"]
    [path] = [
        name.removesuffix(inside)
        for name in design.module().module["netnames"]
        if name.endswith(f".{inside}")
    ]
    return {name: path + PROBES[name] for name in names}


def _handed_over(design: Design) -> Outcome:
    netlist = from_any_state(simple(design.module().probed(_wires(design, list(PROBES)))))
    body = [
        "  wire clear = ~started | rst;",
        "  wire unfilled = read & ~full[out_of];",
        "  wire in_use = write != 0 & full[into];",
        "  wire twice = (filled & full[into]) | (released & ~full[out_of]);",
        "  assign bad = started & ~rst & (unfilled | in_use | twice);",
    ]
    return always(netlist.text, harness(netlist, body), LIMIT)


def _faults(design: Design) -> Iterator[Design]:
    return design.probe_faults(_wires(design, ("full", "read")))


JOBS = (
    Job(
        "buffers",
        "no read of a buffer that is not filled, no write to one in use, each handed over once",
        "IC3",
        _applies,
        _handed_over,
        _faults,
    ),
)
