"""Jobs about whole commands of a GEMM core: a status for each, and all of its results, for ever.

Proved by induction over one clock, with the invariant written out: it says where a command can be
in the core, and what the counters of the sequencer mean. One clock of reset leads from any state
whatever into the invariant; from any state in it, whatever the inputs, each clock stays in it. What
is claimed follows from it. So nothing is assumed of how states are reached, and no bound of clocks
or sizes is left.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, within
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import Flat, from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

# Wires of the emitted text, by the names of instances and of their ports and signals.
_SEQUENCER = (
    *("running", "failed", "chain", "last_columns", "group_ends", "rows_left", "block_left"),
    *("columns_left", "full", "suspect", "buffer", "address", "job__valid", "job__payload"),
    *("tile", "tile_valid", "released", "stop", "job__ready"),
)
_SPARE = ("spare", "spare_valid")
_FIFO = ("used", "drain", "fill", "report", "status__valid", "moved", "row")
_SLOT = re.compile(r"unit\.result_fifo\.tile_(\d+)(_\d+)?")
_STAGE = re.compile(r"unit\.tile_valid_(\d+)")
# Bits of a job, which has m, n, groups, four faults, a tag and whether it resynchronises.
_SIZE, _FAULTS, _TAG, _RESYNC = 20, 60, 64, 67


@dataclass(frozen=True)
class _Core:
    """Where things are in a core.

    Members
    -------
    netlist
        Gates from any state, with wires inside as outputs.
    slots, stages
        Entries of the result FIFO; steps of the array that a tile goes beside.
    rows, lanes
        Bits of a tile's number of rows and of columns.
    chains, columns, size
        Accumulators a cell; columns and rows of the array.
    """

    netlist: Flat
    slots: int
    stages: int
    rows: int
    lanes: int
    chains: int
    columns: int
    size: int


def _registers(flat: Flat) -> set[object]:
    """Return the bits that flip-flops drive."""
    cells = flat.module["cells"].values()
    return {bit for cell in cells if "dff" in cell["type"] for bit in cell["connections"]["Q"]}


def _core(design: Design) -> _Core:
    """Find the parts of a core and give them to a harness."""
    flat = design.module()
    names = flat.module["netnames"]
    wires = {name: f"unit.sequencer.{name}" for name in _SEQUENCER}
    wires |= {name: f"unit.loader.job_register.{name}" for name in _SPARE}
    wires |= {name: f"unit.result_fifo.{name}" for name in _FIFO}
    wires |= {"reported": wires.pop("status__valid")}
    state = _registers(flat)
    slots = sorted(
        name for name in names if _SLOT.fullmatch(name) and names[name]["bits"][0] in state
    )
    stages = sum(_STAGE.fullmatch(name) is not None for name in names)
    wires |= {f"slot_{n}": name for n, name in enumerate(slots)}
    for n in range(1, stages + 1):
        wires |= {f"stage_valid_{n}": f"unit.tile_valid_{n}"}
        wires |= {f"stage_{n}": f"unit.tile_{n}" if n < stages else "unit.result_fifo.tile"}
    # What has no bits, since there is one of it, has no wire.
    wires = {port: wire for port, wire in wires.items() if wire in names}
    kept = {stream: stream for stream in ("s_axis_cmd_tready", "m_axis_status_tvalid")}
    kept |= {"m_axis_status_tdata": "m_axis_status_tdata"}
    given = design.facts.parameters
    rows, columns = int(given["rows"]), int(given["columns"])
    return _Core(
        from_any_state(simple(flat.probed(wires | kept))),
        len(slots),
        stages,
        rows.bit_length(),
        columns.bit_length(),
        int(given["chains"]),
        columns,
        rows,
    )


def _induction(core: _Core, ghosts: dict[str, int], body: Sequence[str]) -> Outcome:
    """Prove ``claim`` in all clocks, by an invariant ``inv``: of ``ghosts``, too, registers beside.

    The body gives ``inv``, ``claim``, and of each ghost ``x`` its next value ``x_next``; of those
    that are 0 after a reset it needs no more. ``lawful`` is what may be assumed of the inputs.
    """
    lines = ["  wire base = mark[0];", "  wire clear = rst | (~started & base);"]
    for name, width in ghosts.items():
        lines += [
            f"  reg [{width - 1}:0] {name}_held;",
            f"  wire [{width - 1}:0] {name} = started ? {name}_held : {name}_any;",
            f"  always @(posedge clk) {name}_held <= clear ? 0 : {name}_next;",
        ]
    lines += [
        *body,
        "  reg good = 0;",
        "  always @(posedge clk) good <= ~started & (base | (inv & lawful));",
        "  assign bad = (~started & ~base & inv & lawful & ~clear & ~claim) | (good & ~inv);",
    ]
    free = [f"input [{width - 1}:0] {name}_any" for name, width in ghosts.items()]
    text = harness(core.netlist, lines, free)
    outcome = within(core.netlist.text, text, 2, LIMIT)
    return Outcome(outcome.holds, "induction" if outcome.holds else "fails", outcome.seconds)


def _counters(core: _Core) -> list[str]:
    """Return ``counting``: what the sequencer's counters mean to each other, and of whom."""
    m, n = f"[{_SIZE - 1}:0]", f"[{2 * _SIZE - 1}:{_SIZE}]"
    job = "job__payload"
    lines = ["  wire [7:0] chain_now = " + ("chain;" if core.chains > 1 else "0;")]
    for name, valid in ((job, "job__valid"), ("spare", "spare_valid")):
        lines += [
            f"  wire sized_{name} = ~{valid} | {name}[{_RESYNC}]",
            f"    | ({name}{m} != 0 | {name}[{_FAULTS}])",
            f"    & ({name}{n} != 0 | {name}[{_FAULTS + 1}]);",
        ]
    lines += [
        f"  wire refused = failed | {job}[{_RESYNC}] | {job}[{_TAG - 1}:{_FAULTS}] != 0;",
        "  wire begun = chain_now != 0 | address != 0;",
        f"  wire counting = sized_{job} & sized_spare & (~spare_valid | job__valid)",
        f"    & chain_now < {core.chains}",
        "    & (~running | (job__valid & ~refused & block_left != 0 & columns_left != 0",
        "      & (chain_now != 0 | rows_left == block_left)",
        "      & (~begun | (full[buffer] & ~suspect[buffer]))))",
        "    & (running | failed | ~begun);",
    ]
    return lines


def _fifo(core: _Core) -> list[str]:
    """Return ``queued``: the FIFO's pointers; ``queue_0``, ``held_0`` and on: entries, in order."""
    slots, width = core.slots, len(core.netlist.ports["slot_0"])
    chosen = "slot_0"
    lines, parts = [], [f"drain < {slots}", f"fill < {slots}"]
    for n in range(slots):
        lines.append(
            f"  wire [7:0] at_{n} = drain + {n} < {slots} ? drain + {n} : drain + {n - slots};"
        )
        chosen = "".join(f"at_{n} == {k} ? slot_{k} : " for k in range(slots - 1))
        lines += [
            f"  wire [{width - 1}:0] queue_{n} = {chosen}slot_{slots - 1};",
            f"  wire held_{n} = used[at_{n}];",
        ]
        if n:
            parts.append(f"(~held_{n} | held_{n - 1})")
            parts.append(f"(held_{n} | ~held_{n - 1} | fill == at_{n})")
    parts += [f"(held_0 | fill == drain) & (~held_{slots - 1} | fill == drain)"]
    return [*lines, f"  wire queued = {' & '.join(parts)};"]


def _answered(design: Design) -> Outcome:
    """Prove by two marked commands, told by their tags, that statuses neither fail nor stray."""
    core = _core(design)
    last, tag = core.rows + core.lanes, core.rows + core.lanes + 5
    # Where a command's status can be, the oldest first: condition, and the tag there.
    places = [("reported", "report[5:4]")]
    places += [
        (f"held_{n} & queue_{n}[{last}]", f"queue_{n}[{tag + 1}:{tag}]") for n in range(core.slots)
    ]
    places += [
        (f"stage_valid_{n} & stage_{n}[{last}]", f"stage_{n}[{tag + 1}:{tag}]")
        for n in range(core.stages, 0, -1)
    ]
    places += [
        ("job__valid & ~counted", f"job__payload[{_TAG + 1}:{_TAG}]"),
        ("spare_valid", f"spare[{_TAG + 1}:{_TAG}]"),
    ]
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
        *_counters(core),
        *_fifo(core),
        *lines,
        "  wire came = s_axis_cmd_tvalid & s_axis_cmd_tready;",
        "  wire went = m_axis_status_tvalid & m_axis_status_tready;",
        "  wire [1:0] asked = s_axis_cmd_tdata[61:60], told = m_axis_status_tdata[5:4];",
        # The first mark is on any command, the second on any later one.
        "  wire lawful = ~came | asked == 0 | asked == 3 | (asked == 1 & ~a_came)",
        "    | (asked == 2 & a_came & ~b_came);",
        "  wire a_came_next = a_came | (came & asked == 1);",
        "  wire b_came_next = b_came | (came & asked == 2);",
        "  wire a_open_next = (a_open & ~(went & told == 1)) | (came & asked == 1);",
        "  wire b_open_next = (b_open & ~(went & told == 2)) | (came & asked == 2);",
        f"  wire [7:0] of_a = {sums['a']}, of_b = {sums['b']};",
        "  wire inv = counting & queued & of_a == a_open & of_b == b_open & (~a_open | a_came)",
        f"    & (~b_open | b_came) & (~b_came | a_came) & (~a_open | ({' & '.join(order)}));",
        "  wire claim = ~went | ((told != 1 | a_open) & (told != 2 | (b_open & ~a_open)));",
    ]
    return _induction(core, dict.fromkeys(("a_came", "b_came", "a_open", "b_open"), 1), body)


def _delivered(design: Design) -> Outcome:
    """Prove that a command's tiles cover its matrix, and that each row of a tile leaves once."""
    core = _core(design)
    top, m, n = (
        core.rows - 1,
        f"job__payload[{_SIZE - 1}:0]",
        f"job__payload[{2 * _SIZE - 1}:{_SIZE}]",
    )
    inside = [f"(held_{k} ? queue_{k}[{top}:0] : 0)" for k in range(core.slots)]
    inside += [f"(stage_valid_{k} ? stage_{k}[{top}:0] : 0)" for k in range(1, core.stages + 1)]
    tiles = [(f"held_{k}", f"queue_{k}") for k in range(core.slots)]
    tiles += [(f"stage_valid_{k}", f"stage_{k}") for k in range(1, core.stages + 1)]
    few = " & ".join(f"(~{here} | {tile}[{top}:0] <= {core.size})" for here, tile in tiles)
    row = "row" if "row" in core.netlist.ports else "1'd0"
    wide = _SIZE + 1
    body = [
        *_counters(core),
        *_fifo(core),
        f"  wire [15:0] row_now = {row};",
        "  wire goes_on = tile_valid & ~stop & running;",
        f"  wire [{wide}:0] added = given + (goes_on ? tile[{top}:0] : 0);",
        f"  wire [{wide}:0] given_next = running & ~released & ~stop ? added : 0;",
        f"  wire [{wide}:0] before_next = ~running | stop | job__ready ? 0",
        f"    : released ? before + {core.columns} : before;",
        f"  wire [15:0] owed_next = owed + (tile_valid ? tile[{top}:0] : 0) - moved;",
        f"  wire [15:0] total = {' + '.join(inside)};",
        f"  wire [{wide}:0] rest = group_ends ? rows_left : block_left;",
        f"  wire inv = counting & queued & {few} & owed + row_now == total",
        f"    & (held_0 ? row_now == 0 | row_now < queue_0[{top}:0] : row_now == 0)",
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
    return _induction(core, {"given": wide + 1, "before": wide + 1, "owed": 16}, body)


def _faults(*near: str) -> Callable[[Design], Iterator[Design]]:
    return lambda design: design.probe_faults({name: f"unit.{name}" for name in near})


def _applies(design: Design) -> bool:
    return {"loader", "sequencer", "result_fifo"} <= set(design.modules)


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
)
