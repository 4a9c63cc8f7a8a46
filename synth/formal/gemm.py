"""Jobs about whole commands of a GEMM core: a status for each, all of its results, no standstill.

Proved by induction over one clock, with the invariant of ``gemm_invariants``, so nothing is assumed
of how states are reached, and no bound of clocks or sizes is left.
"""

from collections.abc import Callable, Iterator

from m2xfp.rtl.parts.segment_checker import SegmentChecker
from m2xfp.rtl.parts.segment_sums import SegmentSums
from m2xfp.synth.formal.control import KINDS
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, within
from m2xfp.synth.formal.gemm_invariants import (
    SIZE,
    Core,
    core_of,
    counters,
    fifo,
    induction,
    loads,
    tables,
)
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

# The first bit of a command's tag, behind m, n and k.
ASKED = 3 * SIZE


def _depth(design: Design) -> int:
    """Return the words of a row that a weight buffer holds."""
    return int(getattr(design.instance.component, "depth", 0))


def _answered(design: Design) -> Outcome:
    """Prove by two marked commands, told by their tags, that statuses neither fail nor stray."""
    core = core_of(design)
    last = core.rows + core.lanes
    tag, report = last + 1 + core.fault_bits, core.fault_bits
    # Where a command's status can be, the oldest first: condition, and the tag there.
    places = [("reported", f"report[{report + 1}:{report}]")]
    places += [
        (f"held_{n} & queue_{n}[{last}]", f"queue_{n}[{tag + 1}:{tag}]") for n in range(core.slots)
    ]
    places += [
        (f"stage_valid_{n} & stage_{n}[{last}]", f"stage_{n}[{tag + 1}:{tag}]")
        for n in range(core.stages, 0, -1)
    ]
    places += [
        ("job__valid & ~counted", f"job__payload[{core.tag + 1}:{core.tag}]"),
        ("spare_valid", f"spare[{core.tag + 1}:{core.tag}]"),
    ]
    if core.segments:
        places.append(("checker_stage != 0", f"checker_command[{ASKED + 1}:{ASKED}]"))
    lines = [
        "  wire counted = running & group_ends & last_columns & rows_left == 0;",
        f"  wire [{len(places) - 1}:0] a, b;",
    ]
    for n, (here, found) in enumerate(places):
        lines += [f"  assign a[{n}] = {here} & {found} == 1, b[{n}] = {here} & {found} == 2;"]
    each = range(len(places))
    order = [f"~(b[{n}] & |a[{len(places) - 1}:{n}])" for n in each]
    sums = {name: " + ".join(f"{name}[{n}]" for n in each) for name in "ab"}
    body = [
        *counters(core),
        *fifo(core),
        *tables(core, _depth(design)),
        *lines,
        "  wire came = s_axis_cmd_tvalid & s_axis_cmd_tready;",
        "  wire went = m_axis_status_tvalid & m_axis_status_tready;",
        f"  wire [1:0] asked = s_axis_cmd_tdata[{ASKED + 1}:{ASKED}];",
        f"  wire [1:0] told = m_axis_status_tdata[{report + 1}:{report}];",
        # The first mark is on any command, the second on any later one.
        "  wire lawful = ~came | asked == 0 | asked == 3 | (asked == 1 & ~a_came)",
        "    | (asked == 2 & a_came & ~b_came);",
        "  wire a_came_next = a_came | (came & asked == 1);",
        "  wire b_came_next = b_came | (came & asked == 2);",
        "  wire a_open_next = (a_open & ~(went & told == 1)) | (came & asked == 1);",
        "  wire b_open_next = (b_open & ~(went & told == 2)) | (came & asked == 2);",
        f"  wire [7:0] of_a = {sums['a']}, of_b = {sums['b']};",
        "  wire inv = counting & queued & tabled & of_a == a_open & of_b == b_open",
        "    & (~a_open | a_came) & (~b_open | b_came) & (~b_came | a_came)",
        f"    & (~a_open | ({' & '.join(order)}));",
        "  wire claim = ~went | ((told != 1 | a_open) & (told != 2 | (b_open & ~a_open)));",
    ]
    return induction(core, dict.fromkeys(("a_came", "b_came", "a_open", "b_open"), 1), body)


def _rows(core: Core) -> list[str]:
    """Return ``few``: tiles have the rows of the array at most, and the FIFO is within one."""
    top = core.rows - 1
    tiles = [(f"held_{k}", f"queue_{k}") for k in range(core.slots)]
    tiles += [(f"stage_valid_{k}", f"stage_{k}") for k in range(1, core.stages + 1)]
    parts = [f"(~{here} | {tile}[{top}:0] <= {core.size})" for here, tile in tiles]
    parts.append(f"(held_0 ? row_now == 0 | row_now < queue_0[{top}:0] : row_now == 0)")
    row = "row" if "row" in core.netlist.ports else "1'd0"
    return [f"  wire [15:0] row_now = {row};", f"  wire few = {' & '.join(parts)};"]


def _delivered(design: Design) -> Outcome:
    """Prove that a command's tiles cover its matrix, and that each row of a tile leaves once.

    Where k has segments, it is the tiles of the last one that do; what leaves is at the FIFO then.
    """
    core = core_of(design)
    top, m, n = (
        core.rows - 1,
        f"job__payload[{SIZE - 1}:0]",
        f"job__payload[{2 * SIZE - 1}:{SIZE}]",
    )
    inside = [f"(held_{k} ? queue_{k}[{top}:0] : 0)" for k in range(core.slots)]
    inside += [f"(stage_valid_{k} ? stage_{k}[{top}:0] : 0)" for k in range(1, core.stages + 1)]
    wide = SIZE + 1
    body = [
        *counters(core),
        *fifo(core),
        *_rows(core),
        *tables(core, _depth(design)),
        f"  wire goes_on = tile_valid & ~stop & running{' & group_ends' * core.segments};",
        f"  wire [{wide}:0] added = given + (goes_on ? tile[{top}:0] : 0);",
        f"  wire [{wide}:0] given_next = running & ~released & ~stop ? added : 0;",
        f"  wire [{wide}:0] before_next = ~running | stop | job__ready ? 0",
        f"    : released ? before + {core.columns} : before;",
        f"  wire [15:0] owed_next = owed + (tile_valid ? tile[{top}:0] : 0) - moved;",
        f"  wire [15:0] total = {' + '.join(inside)};",
        f"  wire [{wide}:0] rest = group_ends ? rows_left : block_left;",
        "  wire inv = counting & queued & few & tabled & owed + row_now == total",
        "    & (running | (given == 0 & before == 0))",
        f"    & (~running | (given + rest == {m} & before + columns_left == {n}));",
        "  wire lawful = 1;",
        # All rows of a panel, all columns of the last one, and no beat that is not owed.
        f"  wire [{core.lanes - 1}:0] lanes = tile[{core.rows + core.lanes - 1}:{core.rows}];",
        f"  wire [{wide}:0] wanted_lanes = columns_left < {core.columns}",
        f"    ? columns_left : {core.columns};",
        f"  wire claim = (~moved | owed != 0) & (~released | stop | added == {m})",
        f"    & (~(released & job__ready & ~stop) | before + columns_left == {n})",
        "    & (~goes_on | lanes == wanted_lanes);",
    ]
    return induction(core, {"given": wide + 1, "before": wide + 1, "owed": 16}, body)


def _weights_there(design: Design) -> Outcome:
    """Prove that a read of any place of the first column meets a write of it for this panel."""
    core = core_of(design)
    bits = len(core.netlist.ports["address"])
    groups = f"[{2 * SIZE + bits - 1}:{2 * SIZE}]"
    body = [
        *counters(core),
        *loads(core),
        f"  wire [{bits - 1}:0] place_next = place, front_last = job__payload{groups} - 1;",
        f"  wire [{bits - 1}:0] spare_last = spare{groups} - 1;",
        "  wire here_next = here;",
    ]
    for b in (0, 1):
        body += [
            f"  wire [{bits - 1}:0] depth_{b}_next = filled & loader_buffer == {b}",
            f"    ? loader_last_group : depth_{b};",
        ]
    body += [
        "  wire [1:0] sound = full & ~suspect;",
        "  wire deep = "
        + " & ".join(
            f"(~sound[{b}] | depth_{b} == (mine[{b}] ? front_last : spare_last))" for b in (0, 1)
        )
        + ";",
        f"  wire [{bits - 1}:0] depth = here ? depth_1 : depth_0;",
        "  wire written_next = (written & ~(released & buffer == here))",
        "    | (write[0] & loader_buffer == here & loader_address == place);",
        "  wire filling = loading & loader_buffer == here & (pos != 0 | loader_address > place);",
        "  wire inv = counting & loaded & (failed | deep)",
        "    & (~running | (last_group == front_last & address <= last_group))",
        "    & (~loading | (loader_last_group == (spare_valid ? spare_last : front_last)",
        "      & loader_address <= loader_last_group))",
        "    & (loading | loader_failed | loader_address == 0)",
        "    & (~loading | ~full[loader_buffer] | (pos == 0 & loader_address == 0))",
        "    & (failed | ~sound[here] | place > depth | written)",
        "    & (~filling | place > loader_last_group | written);",
        "  wire lawful = 1;",
        "  wire claim = ~(read & ~stop & buffer == here & address == place) | written;",
    ]
    ghosts = {"mine": 2, "place": bits, "here": 1, "written": 1, "depth_0": bits, "depth_1": bits}
    return induction(core, ghosts, body)


def _moves(design: Design) -> Outcome:
    """Prove that a core with willing partners takes or gives a beat within some clocks.

    Not by induction: from any state of the invariant, whatever led there, so many clocks.
    """
    core, facts = core_of(design), design.facts
    clocks = core.stages + core.slots + 2 * core.chains + 4
    if core.segments:
        # A command is checked, and rows of all tiles that wait go on into the sum of segments.
        clocks += SegmentChecker.latency + core.slots * core.size + SegmentSums.latency
    willing = [stream.ports[1 if stream.is_input else 2] for stream in facts.streams]
    beats = [f"({stream.ports[1]} & {stream.ports[2]})" for stream in facts.streams]
    body = [
        "  wire clear = rst;",
        "  wire [1:0] mine = mark[1:0];",
        *counters(core),
        *fifo(core),
        *_rows(core),
        *loads(core),
        f"  wire still = {' & '.join(willing)} & ~({' | '.join(beats)}) & ~rst;",
        "  reg stuck; reg [7:0] since;",
        "  always @(posedge clk) begin",
        "    stuck <= still & (started ? stuck : counting & queued & few & loaded);",
        "    since <= started ? since + 1'd1 : 8'd1;",
        "  end",
        f"  assign bad = started & stuck & since == {clocks};",
    ]
    return within(core.netlist.text, harness(core.netlist, body), clocks + 1, LIMIT)


def _faults(*near: str) -> Callable[[Design], Iterator[Design]]:
    return lambda design: design.probe_faults({name: f"unit.{name}" for name in near})


def _applies(design: Design) -> bool:
    streams = {stream.name for stream in design.facts.streams}
    if "cmd" not in streams or "result_fifo" not in design.modules:
        return False
    return any({f"{kind}loader", f"{kind}sequencer"} <= set(design.modules) for kind in KINDS)


JOBS = (
    Job(
        "answered",
        "a status for each command, with its tag, in order, and no other",
        "induction",
        _applies,
        _answered,
        _faults("result_fifo.status__valid"),
    ),
    Job(
        "delivered",
        "each command that succeeds gives all rows of all its columns, each once, and no other",
        "induction",
        _applies,
        _delivered,
        _faults("sequencer.tile_valid", "sequencer.tile"),
    ),
    Job(
        "weights-there",
        "no read of a place of the first column that was not written for this panel",
        "induction",
        _applies,
        _weights_there,
        _faults("sequencer.read", "loader.write"),
    ),
    Job(
        "moves",
        "with all partners willing, a beat is taken or given within a bound of clocks",
        "BMC, any state of an invariant",
        _applies,
        _moves,
        _faults("sequencer.issue", "loader.cmd__ready", "loader.weights__ready"),
    ),
)
