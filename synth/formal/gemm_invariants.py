"""What is always true inside a GEMM core, written out: its counters, its queues, its buffers.

``induction`` proves it: one clock of reset leads from any state whatever into the invariant, and
from any state in it, whatever the inputs, each clock stays in it. What is claimed follows from it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from amaranth.lib import data

from m2xfp.rtl.parts import gemm_layouts, mixed_layouts
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.mixed_layouts import SEGMENTS
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, within
from m2xfp.synth.formal.job import LIMIT
from m2xfp.synth.formal.netlist import Flat, from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = [
    "SIZE",
    "Core",
    "core_of",
    "counters",
    "fifo",
    "induction",
    "loads",
    "tables",
]

# Wires of the emitted text, by the names of instances and of their ports and signals.
_SEQUENCER = (
    *("running", "failed", "chain", "last_columns", "group_ends", "rows_left", "block_left"),
    *("columns_left", "full", "suspect", "buffer", "address", "job__valid", "job__payload"),
    *("tile", "tile_valid", "released", "stop", "job__ready", "last_group", "read"),
)
_LOADER = ("loading", "resyncing", "left", "column", "filled", "misframed", "write")
_BOTH = ("failed", "buffer", "address", "last_group")
_SPARE = ("spare", "spare_valid")
_FIFO = ("used", "drain", "fill", "report", "status__valid", "moved", "row")
_SLOT = re.compile(r"unit\.result_fifo\.tile_(\d+)(_\d+)?")
_STAGE = re.compile(r"unit\.tile_valid_(\d+)")
_CHECKER = ("stage", "command", "o__payload", "wrong", *(f"beats_{n}" for n in range(SEGMENTS)))
# Its name alone is a keyword of SystemVerilog.
_CHECKED = re.compile(r"(unit\.checker_\d+)\.stage")
# Bits of m and n, which come first in a command and in a job, then its groups.
SIZE = SIZE_BITS


@dataclass(frozen=True)
class Core:
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
    job
        What a job is.
    segments
        Whether the k of a command is cut into segments, each of which gives its results.
    """

    netlist: Flat
    slots: int
    stages: int
    rows: int
    lanes: int
    chains: int
    columns: int
    size: int
    job: data.StructLayout
    segments: bool

    @property
    def faults(self) -> int:
        """The first bit of a job's faults."""
        return self.job["faults"].offset

    @property
    def tag(self) -> int:
        """The first bit of a job's tag, which is behind its faults."""
        return self.job["tag"].offset

    @property
    def resync(self) -> int:
        """The bit of a job that says that it resynchronises."""
        return self.job["resync"].offset

    @property
    def fault_bits(self) -> int:
        """Faults of a job, and of a report."""
        return self.tag - self.faults


def _registers(flat: Flat) -> set[object]:
    """Return the bits that flip-flops drive."""
    cells = flat.module["cells"].values()
    return {bit for cell in cells if "dff" in cell["type"] for bit in cell["connections"]["Q"]}


def core_of(design: Design) -> Core:
    """Find the parts of a core and give them to a harness."""
    flat = design.module()
    names = flat.module["netnames"]
    wires = {name: f"unit.sequencer.{name}" for name in _SEQUENCER}
    wires |= {name: f"unit.loader.{name}" for name in _LOADER}
    wires |= {f"loader_{name}": f"unit.loader.{name}" for name in _BOTH}
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
    checkers = [match[1] for name in names if (match := _CHECKED.fullmatch(name))]
    for path in checkers:
        wires |= {f"checker_{name}": f"{path}.{name}" for name in _CHECKER}
    # What has no bits, since there is one of it, has no wire.
    wires = {port: wire for port, wire in wires.items() if wire in names}
    streams = design.facts.streams
    kept = {stream.ports[2 if stream.is_input else 1] for stream in streams}
    kept |= {design.facts.stream("status").ports[0]}
    given = design.facts.parameters
    rows, columns = int(given["rows"]), int(given["columns"])
    return Core(
        from_any_state(simple(flat.probed(wires | {port: port for port in kept}))),
        len(slots),
        stages,
        rows.bit_length(),
        columns.bit_length(),
        int(given["chains"]),
        columns,
        rows,
        mixed_layouts.job_layout if checkers else gemm_layouts.job_layout,
        bool(checkers),
    )


def induction(core: Core, ghosts: dict[str, int], body: Sequence[str]) -> Outcome:
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


def counters(core: Core) -> list[str]:
    """Return ``counting``: what the sequencer's counters mean to each other, and of whom."""
    m, n = f"[{SIZE - 1}:0]", f"[{2 * SIZE - 1}:{SIZE}]"
    job = "job__payload"
    lines = ["  wire [7:0] chain_now = " + ("chain;" if core.chains > 1 else "0;")]
    for name, valid in ((job, "job__valid"), ("spare", "spare_valid")):
        lines += [
            f"  wire sized_{name} = ~{valid} | {name}[{core.resync}]",
            f"    | ({name}{m} != 0 | {name}[{core.faults}])",
            f"    & ({name}{n} != 0 | {name}[{core.faults + 1}]);",
        ]
    lines += [
        f"  wire refused = failed | {job}[{core.resync}]",
        f"    | {job}[{core.tag - 1}:{core.faults}] != 0;",
        "  wire begun = chain_now != 0 | address != 0;",
        f"  wire counting = sized_{job} & sized_spare & (~spare_valid | job__valid)",
        f"    & chain_now < {core.chains}",
        "    & (~running | (job__valid & ~refused & block_left != 0 & columns_left != 0",
        "      & (chain_now != 0 | rows_left == block_left)",
        "      & (~begun | (full[buffer] & ~suspect[buffer]))))",
        "    & (running | failed | ~begun);",
    ]
    return lines


def fifo(core: Core) -> list[str]:
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


def loads(core: Core) -> list[str]:
    """Return ``loaded``: which panels of which command are in the buffers, and which are to come.

    ``mine`` says of a buffer that it was filled for the first command in the queue, not the second.
    A command is covered if the buffers that are full for it are all that it still needs.
    """
    n, c = f"[{2 * SIZE - 1}:{SIZE}]", core.columns
    column = "".join(f"column[{k}] ? {k} : " for k in range(1, c)) if c > 1 else ""
    one_hot = " | ".join(f"column == {1 << k}" for k in range(c)) if c > 1 else "1'd1"
    lines = [
        f"  wire [23:0] pos = {column}0;",
        *(
            f"  wire {name}_fr = {word}[{core.resync}] | {word}[{core.tag - 1}:{core.faults}] != 0;"
            for name, word in (("front", "job__payload"), ("spare", "spare"))
        ),
        f"  wire [23:0] f = running ? columns_left : job__payload{n};",
        f"  wire [23:0] g = spare{n};",
        "  wire [1:0] ours = full & mine, theirs = full & ~mine;",
        "  wire [23:0] nm = ours[0] + ours[1], ns = theirs[0] + theirs[1];",
        "  wire [1:0] mine_next = job__ready ? 2'd3",
        "    : filled ? (mine & ~(2'd1 << loader_buffer))",
        "      | ((spare_valid ? 2'd0 : 2'd1) << loader_buffer) : mine;",
        f"  wire fits = nm != 0 & f <= {c} * nm & f > {c} * (nm - 1);",
        f"  wire fits_spare = ns != 0 & g <= {c} * ns & g > {c} * (ns - 1);",
        "  wire front_full = front_fr ? nm == 0 : fits;",
        "  wire spare_full = spare_fr ? ns == 0 : fits_spare;",
        "  wire newest_fr = spare_valid ? spare_fr : front_fr;",
        f"  wire progress = left != 0 & pos < {c} & ({one_hot});",
        # A loader that has not failed.
        f"  wire l2 = ns == 0 & progress & ~front_fr & f == left + pos + {c} * nm;",
        f"  wire l3 = front_full & progress & g == left + pos + {c} * ns;",
        "  wire well = loading ? (spare_valid ? l3 : l2)",
        "    : ~job__valid ? full == 0 : front_full & (spare_valid ? spare_full : ns == 0);",
        "  wire ring = loader_buffer == buffer ? full[0] == full[1]",
        "    : full[buffer] & ~full[loader_buffer];",
        # One that has.
        "  wire x1 = ns == 0 | front_full;",
        "  wire x2 = ~job__valid | ~front_fr | nm == 0;",
        f"  wire x3 = ~job__valid | front_fr | nm == 0 | f > {c} * (nm - 1);",
        "  wire x4 = ns == 0 | (spare_valid & ~spare_fr",
        f"    & g > {c} * (ns - 1));",
        "  wire x6 = job__valid | full == 0;",
        "  wire in_turn = (~full[~buffer] | full[buffer])",
        "    & (full != 3 | mine[buffer] | ~mine[~buffer]);",
        # The command that resynchronises is the newest.
        f"  wire sync_front = job__valid & job__payload[{core.resync}];",
        f"  wire sync_spare = spare_valid & spare[{core.resync}];",
        "  wire syncs = resyncing == (spare_valid ? sync_spare : sync_front)",
        "    & (~sync_front | ~spare_valid) & (~resyncing | ~loading);",
        "  wire loaded = (~failed | loader_failed) & (~loader_failed | ~loading) & syncs",
        "    & (~loading | (job__valid & ~newest_fr))",
        "    & (failed | (in_turn & x1 & x2 & x3 & x4 & x6))",
        f"    & (loader_failed | (well & ring{' & (loading | column == 1)' if c > 1 else ''}));",
    ]
    return lines


def _ends(word: str, layout: data.StructLayout) -> list[str]:
    """Return the beats behind each segment of a job's table or a checked command's."""
    at, slots = layout["slots"].offset, layout["slots"].shape
    assert isinstance(slots, data.ArrayLayout)
    slot = slots.elem_shape
    assert isinstance(slot, data.StructLayout)
    size, wide = slot.size, slot["end"].width
    return [f"{word}[{at + n * size} +: {wide}]" for n in range(SEGMENTS)]


def _in_order(word: str, layout: data.StructLayout, depth: int) -> str:
    """Return: segments follow one another, the last one ends with k, and there is room for it."""
    ends, groups = _ends(word, layout), layout["groups"]
    rising = " & ".join(f"{one} <= {other}" for one, other in pairwise(ends))
    whole = f"{word}[{groups.offset} +: {groups.width}]"
    return f"{rising} & {ends[-1]} == {whole} & {whole} != 0 & {whole} <= {depth}"


def tables(core: Core, depth: int) -> list[str]:
    """Return ``tabled``: where segments end, of a command being checked and of those behind.

    So a sum that ends with k ends with a segment. Of a unit without segments there is nothing to
    say.
    """
    if not core.segments:
        return ["  wire tabled = 1;"]
    job, found = core.job, mixed_layouts.checked_layout
    command = mixed_layouts.mixed_command_layout
    tag, other = (
        f"checker_{name}[{layout['tag'].offset} +: {layout['tag'].width}]"
        for name, layout in (("o__payload", found), ("command", command))
    )
    resync = f"checker_command[{command['resync'].offset}]"
    faults = found["faults"]
    wrong = f"checker_o__payload[{faults.offset} +: {faults.width}] != 0"
    whole = " + ".join(f"checker_beats_{n}" for n in range(SEGMENTS))
    lines = [
        f"  wire [23:0] beats = {whole};",
        "  wire measured = checker_stage < 2 | checker_wrong != 0"
        f" | {resync} | (beats != 0 & beats <= {1 << 20});",
        f"  wire stated = checker_stage != 3 | ({tag} == {other}"
        f" & checker_o__payload[{found['resync'].offset}] == {resync}"
        f" & ({wrong} | {resync} | ({_in_order('checker_o__payload', found, depth)})));",
    ]
    parts = ["measured", "stated"]
    for word, valid in (("job__payload", "job__valid"), ("spare", "spare_valid")):
        refused = f"{word}[{core.resync}] | {word}[{core.tag - 1}:{core.faults}] != 0"
        parts.append(f"(~{valid} | {refused} | ({_in_order(word, job, depth)}))")
    bits = len(core.netlist.ports["last_group"])
    last = f"job__payload[{job['groups'].offset} +: {bits}] - {bits}'d1"
    parts.append(f"(~running | last_group == {last})")
    return [*lines, f"  wire tabled = {' & '.join(parts)};"]
