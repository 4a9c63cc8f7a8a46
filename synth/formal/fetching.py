"""Jobs about fetchers of operands: the slots that they fill are handed over whole, and they go on.

A reader brings the words of each request in order (job ``words-brought``), so the last word of a
chunk says that all of it is there. Where rows lie and how many there are may be anything.
"""

from collections.abc import Iterator

from m2xfp.synth.formal.axi import FETCHER, copies, each_module, fields_of, has, request_fields
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always, within
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import Flat, from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

# Wires of a fetcher that reads a matrix once for many passes: the end of one, the last one.
_PASSES = ("pass_ends", "pass_is_last")
_MATRIX = ("keeps", "last_chunk", "last_row", "last_block")
# Wires that its slots are followed by, and others that may be anything.
_FETCHER = (
    *("full", "slot", "slot_given", "go", "used", "asked", "begins", "active"),
    *_PASSES,
    *_MATRIX,
)
_LEFT = ("rows_left", "block_left", "groups_left")
_ANYTHING = ("address", "passes_left", *_LEFT, "group_ends", "turn_ends")


def _slots(design: Design, module: str) -> tuple[Flat, list[str]]:
    """Return a fetcher from any state, and what follows its slots by what is asked and comes.

    Where rows lie and how many there are may be anything. ``in_use``: slots that a chunk was asked
    for into and that are not used up; ``open``, ``closing``: of these, the ones that words may come
    for, and whose last word was asked for. A job comes when no slot is in use: the descriptor
    before it has ended.
    """
    flat = design.module(module).freed(_ANYTHING)
    known = flat.module["netnames"]
    names = {name: name for name in _FETCHER}
    names |= {name: name for name in flat.ports if name not in ("clk", "rst", "o__payload", "word")}
    outputs = {
        port: wire
        for port, wire in names.items()
        if flat.module["ports"].get(port, {}).get("direction") != "input" and wire in known
    }
    netlist = from_any_state(simple(flat.probed(outputs)))
    size, slots, tag = (len(netlist.ports[name]) for name in ("slot", "full", "tag"))
    fields = fields_of("request", request_fields(design, netlist.ports))
    chunk = f"[{tag - 2 - size} +: {size}]"
    steady = "1"
    body = ["  wire clear = ~started | rst;"]
    if _PASSES[1] in netlist.ports:  # what `_passes_stay` proves
        steady = "pass_may_change | pass_is_last == pass_was_last"
        body += [
            "  reg pass_may_change = 1, pass_was_last;",
            "  always @(posedge clk) begin",
            "    pass_may_change <= clear | pass_ends | (job__valid & job__ready);",
            "    pass_was_last <= pass_is_last;",
            "  end",
        ]
    body += [
        f"  reg [{slots - 1}:0] in_use = 0, open = 0, closing = 0;",
        "  reg fine_before = 1;",
        f"  wire [{tag - 1}:0] request_tag = {fields['tag']};",
        f"  wire [{size - 1}:0] from = tag{chunk};",
        "  wire sent = request__valid & request__ready, claim = asked & begins;",
        f"  wire closed = valid & closes & tag[{tag - 1}];",
        "  wire fine = fine_before & (~valid | open[from]) & (~closed | closing[from])",
        f"    & ~(job__valid & job__ready & in_use != 0) & ({steady});",
        f"  wire [{slots - 1}:0] own = 1 << slot, done = closed << from;",
        f"  wire ends = request_tag[{tag - 1}];",
        "  always @(posedge clk) begin",
        "    fine_before <= fine;",
        "    if (clear) begin in_use <= 0; open <= 0; closing <= 0; end",
        "    else begin",
        f"      in_use <= (in_use | ({{{slots}{{claim}}}} & own)) & ~used;",
        f"      open <= (open & ~done) | ({{{slots}{{sent}}}} & own);",
        f"      closing <= (closing & ~done) | ({{{slots}{{sent & ends}}}} & own);",
        "    end",
        "  end",
    ]
    return netlist, body


def _passes_stay(design: Design, module: str) -> Outcome:
    """Prove that a pass over a matrix that stays is the last one in all its clocks, or in none."""
    flat = design.module(module)
    if _PASSES[1] not in flat.module["netnames"]:
        return Outcome(True, "any", 0.0)
    wires = {name: name for name in (*_PASSES, "job__ready")}
    netlist = from_any_state(simple(flat.probed(wires)))
    body = [
        "  wire clear = rst;",
        "  reg stays = 0, was;",
        "  always @(posedge clk) begin",
        "    stays <= ~rst & ~pass_ends & ~(job__valid & job__ready); was <= pass_is_last;",
        "  end",
        "  assign bad = stays & pass_is_last != was;",
    ]
    return within(netlist.text, harness(netlist, body), 2, LIMIT)


def _chunks_whole(design: Design, module: str) -> Outcome:
    """Prove how the slots of a fetcher are handed over: from free to asked for, filled, and given.

    ``mark`` chooses a chunk of which the turn is followed.
    """
    netlist, body = _slots(design, module)
    size, tag = len(netlist.ports["slot"]), len(netlist.ports["tag"])
    body += [
        f"  reg [{size + 1}:0] ahead = 0;",
        f"  reg [{size - 1}:0] marked_slot;",
        "  reg marked = 0;",
        "  wire leaves = used != 0;",
        "  always @(posedge clk)",
        "    if (clear) marked <= 0;",
        "    else if (~marked) begin",
        "      marked <= claim & mark[0]; marked_slot <= slot;",
        f"      ahead <= {' + '.join(f'in_use[{n}]' for n in range(1 << size))} - leaves;",
        "    end else if (leaves) begin",
        "      marked <= ahead != 0; ahead <= ahead - 1'd1;",
        "    end",
        f"  wire elsewhere = sent & request_tag[{tag - 2 - size} +: {size}] != slot;",
        "  wire claimed_twice = claim & in_use[slot];",
        "  wire too_late = sent & (full[slot] | closing[slot] | ~(in_use[slot] | claim));",
        "  wire overwritten = valid & (full[from] | ~in_use[from]);",
        "  wire too_early = go & (open[slot_given] | ~full[slot_given] | ~in_use[slot_given]);",
        "  wire out_of_turn = marked & leaves & used[marked_slot] != (ahead == 0);",
        "  assign bad = started & ~rst & fine & (elsewhere | claimed_twice | too_late",
        "    | overwritten | too_early | out_of_turn);",
    ]
    return always(netlist.text, harness(netlist, body), LIMIT)


def _fetcher_moves(design: Design, module: str) -> Outcome:
    """Prove that a fetcher goes on while its reader brings what it asked for and beats are taken.

    Until a job is done and given away something is asked for, comes or is given within clocks that
    the rows of a block bound: a row may lie in words that were read before. A matrix that stays is
    one block, and of no more chunks than there are slots: that is when it stays.
    """
    netlist, body = _slots(design, module)
    given = design.facts.parameters
    rows, slots = int(given["rows"]) * int(given["chains"]), len(netlist.ports["full"])
    bound = 3 * rows + 4
    law = "1"
    if "keeps" in netlist.ports:
        law = "keeps_fits"
        body += [
            f"  reg [{slots.bit_length()}:0] chunks = 0;",
            "  reg chunk_was_last;",
            "  always @(posedge clk) begin",
            "    if (job__valid & job__ready) chunks <= 0;",
            f"    else chunks <= chunks + (claim & chunks < {slots});",
            "    if (claim) chunk_was_last <= last_chunk;",
            "  end",
            f"  wire one_block = any_block_left <= {rows} & (~last_row | last_block);",
            f"  wire few = ~claim | chunks < {slots - 1} | last_chunk;",
            "  wire steady = begins | last_chunk == chunk_was_last;",
            "  wire keeps_fits = ~active | ~keeps | (one_block & few & steady);",
        ]
    body += [
        "  reg lawful_before = 1;",
        f"  wire lawful = lawful_before & ({law});",
        "  always @(posedge clk) lawful_before <= lawful;",
        "  wire gives = o__valid & o__ready;",
        "  wire willing = request__ready & o__ready & (closed | closing == 0);",
        "  wire still = (active | in_use != 0) & willing & ~sent & ~valid & ~gives & ~wraps;",
        f"  reg [{bound.bit_length()}:0] since = 0;",
        f"  always @(posedge clk) since <= clear | ~still ? 0 : since + (since < {bound});",
        f"  assign bad = started & ~rst & fine & lawful & since == {bound};",
    ]
    return always(netlist.text, harness(netlist, body), LIMIT)


def _fetcher_faults(design: Design) -> Iterator[Design]:
    [module, *_] = copies(design, FETCHER)
    yield from design.gate_faults(module, ["request__valid", "o__valid"])


def _has_many_slots(design: Design) -> bool:
    """Whether fetchers have so many slots that IC3 takes minutes."""
    return bool(design.facts.parameters["slots"] > 2)


JOBS = (
    Job(
        "chunks-whole",
        "a slot of a fetcher is asked for when it is free, read when it is whole, in its turn",
        "IC3",
        has(FETCHER),
        each_module({FETCHER: (_chunks_whole, _passes_stay)}),
        _fetcher_faults,
        slow=_has_many_slots,
    ),
    Job(
        "fetchers-move",
        "while its reader brings and its beats are taken, a fetcher goes on within some clocks",
        "IC3",
        has(FETCHER),
        each_module({FETCHER: (_fetcher_moves, _passes_stay)}),
        _fetcher_faults,
        slow=_has_many_slots,
    ),
)
