"""Jobs about a unit that puts rows into the order of tables: none is lost, and none stands still.

Rows and tables come at streams of their own, and what was dropped is reported at a third one, so
that counting groups in and results out is not enough.
"""

from m2xfp.facts import Stream
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import Flat, from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]


def _applies(design: Design) -> bool:
    return "permutation_check" in design.modules


def _beats(design: Design) -> int:
    """Return the beats of the longest row."""
    given = design.facts.parameters
    return int(given["max_k"]) // int(given["lanes"])


def _taken(stream: Stream) -> str:
    _, valid, ready, _ = stream.ports
    return f"({valid} & {ready})"


# Where the end of a row can be, from the way in to the way out: a register that is in use, and one
# whose highest bit marks the end; and where a report is.
_PLACES = (
    ("entry.o__valid", "entry.o__payload"),
    ("entry.spare_valid", "entry.spare"),
    ("valid_1", "last_1"),
    ("i__valid_1", "i__payload_last"),
    ("skid.spare_valid", "skid.spare"),
)
_FULL = "full"


def _probed(design: Design) -> Flat:
    """Return gates from any state whose outputs are the handshakes, reports and those places."""
    names = [_FULL, *(name for pair in _PLACES for name in pair)]
    wires = {name.replace(".", "_at_"): f"unit.{name}" for name in names}
    status = design.facts.stream("status").ports[0]
    kept = {stream.ports[2 if stream.is_input else 1] for stream in design.facts.streams}
    kept |= {design.facts.stream("o").ports[3], status}
    flat = design.module()
    return from_any_state(simple(flat.probed(wires | {port: port for port in kept})))


def _rows_kept(design: Design) -> Outcome:
    """Prove by counters: what came and has not left or been reported is in a register, one each."""
    facts, netlist = design.facts, _probed(design)
    table, rows, out, status = (facts.stream(name) for name in ("table", "i", "o", "status"))
    field = status.field("bad_row")
    places = [_FULL + "[0]", _FULL + "[1]"]
    for pair in _PLACES:
        used, word = (name.replace(".", "_at_") for name in pair)
        places.append(f"({used} & {word}[{len(netlist.ports[word]) - 1}])")
    report = f"{status.ports[0]}[{field.offset}]"
    places.append(f"({status.ports[1]} & {report})")
    body = [
        f"  wire clear = ~started | {facts.reset};",
        f"  wire row = {_taken(rows)} & {rows.ports[3]};",
        f"  wire given = {_taken(out)} & {out.ports[3]};",
        f"  wire told = {_taken(status)};",
        f"  wire dropped = told & {report};",
        f"  wire asked = {_taken(table)} & {table.ports[3]};",
        f"  wire [3:0] held = {' + '.join(places)};",
        "  reg [3:0] inside = 0;",
        "  reg open = 0;",
        "  always @(posedge clk)",
        "    if (clear) begin inside <= 0; open <= 0; end",
        "    else begin",
        "      inside <= inside + row - given - dropped;",
        "      open <= open + asked - (told & ~dropped);",
        "    end",
        "  assign bad = started & ~clear & (inside != held",
        f"    | open != ({status.ports[1]} & ~{report}));",
    ]
    return always(netlist.text, harness(netlist, body), LIMIT)


def _willing(design: Design) -> Outcome:
    """Prove that with all partners willing a beat is taken or given within some clocks."""
    facts = design.facts
    partners = [stream.ports[1 if stream.is_input else 2] for stream in facts.streams]
    moved = " | ".join(_taken(stream) for stream in facts.streams)
    patience = 2 * _beats(design) + facts.latency
    body = [
        f"  wire clear = ~started | {facts.reset};",
        f"  wire still = {' & '.join(partners)} & ~({moved});",
        f"  reg [{patience.bit_length()}:0] since = 0;",
        "  always @(posedge clk)",
        f"    since <= clear | ~still ? 0 : since < {patience} ? since + 1'd1 : since;",
        f"  assign bad = started & since == {patience};",
    ]
    return always(design.control.text, harness(design.control, body), LIMIT)


def _twice(design: Design) -> Outcome:
    """Prove that a beat of a table that is held is taken in no clock in which it is new."""
    facts = design.facts
    _, valid, ready, _ = facts.stream("table").ports
    body = [
        f"  wire clear = ~started | {facts.reset};",
        "  reg waits = 0;",
        f"  always @(posedge clk) waits <= ~clear & {valid} & ~{ready};",
        f"  assign bad = started & ~clear & {ready} & ~waits;",
    ]
    return always(design.control.text, harness(design.control, body), LIMIT)


JOBS = (
    Job(
        "rows-kept",
        "a row is in one place until it leaves or is reported; each table is reported, once",
        "IC3",
        _applies,
        _rows_kept,
        lambda d: d.register_faults([stream.ports[1] for stream in d.facts.outputs]),
    ),
    Job(
        "willing",
        "with all partners of a unit of tables willing, a beat moves within a bound of clocks",
        "IC3",
        _applies,
        _willing,
        lambda d: d.register_faults([stream.ports[2] for stream in d.facts.inputs]),
    ),
    Job(
        "looked-at",
        "a beat of a table is taken in a clock after the one in which it came, at the earliest",
        "IC3",
        _applies,
        _twice,
        lambda d: d.register_faults([d.facts.stream("table").ports[2]]),
    ),
)
