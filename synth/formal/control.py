"""Jobs about the control of a core that fills buffers with weights while it uses others."""

from collections.abc import Callable, Iterator, Sequence

from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always, within
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

# Wires of the emitted text, by the names of instances and of their ports.
PROBES = {
    "write": "unit.loader.write",
    "into": "unit.loader.buffer",
    "at": "unit.loader.address",
    "filled": "unit.loader.filled",
    "full": "unit.sequencer.full",
    "read": "unit.sequencer.read",
    "out_of": "unit.sequencer.buffer",
    "from_where": "unit.sequencer.address",
    "released": "unit.sequencer.released",
}


# Clocks of the proof that is bounded.
CLOCKS = 16


def _applies(design: Design) -> bool:
    return {"loader", "sequencer"} <= set(design.modules)


def _prove(
    design: Design, names: Sequence[str], streams: Sequence[str], body: list[str], clocks: int = 0
) -> Outcome:
    """Prove a body about wires inside and ports: for some clocks, or for ever if 0."""
    wires = {name: PROBES[name] for name in names} | {name: name for name in streams}
    netlist = from_any_state(simple(design.module().probed(wires)))
    text = harness(netlist, ["  wire clear = ~started | rst;", *body])
    if clocks:
        return within(netlist.text, text, clocks, LIMIT)
    return always(netlist.text, text, LIMIT)


def _handed_over(design: Design) -> Outcome:
    return _prove(
        design,
        ("write", "into", "filled", "full", "read", "out_of", "released"),
        (),
        [
            "  wire unfilled = read & ~full[out_of];",
            "  wire in_use = write != 0 & full[into];",
            "  wire twice = (filled & full[into]) | (released & ~full[out_of]);",
            "  assign bad = started & ~rst & (unfilled | in_use | twice);",
        ],
    )


def _written(design: Design) -> Outcome:
    return _prove(
        design,
        ("write", "into", "at", "read", "out_of", "from_where", "released"),
        (),
        [
            "  reg here; reg [15:0] place; reg written = 0;",
            "  always @(posedge clk) begin",
            "    if (~started) begin here <= mark[0]; place <= mark[15:1]; end",
            "    if (clear | (released & out_of == here)) written <= 0;",
            "    else if (write[0] & into == here & at == place) written <= 1;",
            "  end",
            "  wire reads = read & out_of == here & from_where == place;",
            "  assign bad = started & ~rst & reads & ~written;",
        ],
        CLOCKS,
    )


def _faults(*near: str) -> Callable[[Design], Iterator[Design]]:
    return lambda design: design.probe_faults({name: PROBES.get(name, name) for name in near})


JOBS = (
    Job(
        "buffers",
        "no read of a buffer that is not filled, no write to one in use, each handed over once",
        "IC3",
        _applies,
        _handed_over,
        _faults("full", "read"),
    ),
    Job(
        "weights-there",
        "no read of a place of the first column that was not written for this panel",
        "BMC",
        _applies,
        _written,
        _faults("read", "write"),
        slow=True,
    ),
)
