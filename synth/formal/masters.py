"""Jobs about masters of AXI4 buses: nothing is lost or made, and they go on.

Each is of one module, for any neighbours that keep their side. A reader makes bursts of requests
(``requests-split``) and brings the words of each in order (``words-brought``), whatever the memory
does; with all partners willing, what is owed to a bus moves on (``masters-move``).
"""

from collections.abc import Iterator
from itertools import chain

from m2xfp.synth.formal.axi import (
    READER,
    WRITER,
    copies,
    each_module,
    fields_of,
    has,
    module_job,
    request_fields,
    word_of,
)
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always, within
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import Flat, from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

QUEUE = "ring_queue"
# Clocks in which a master with willing partners moves a beat: for an address, its data, a response.
MOVES = 4
# Wires inside a reader: what it keeps of a burst, and when that is stored.
_BURSTS = {"record": "bursts.i", "push": "bursts.push"}


def _split(design: Design, netlist: Flat) -> list[str]:
    """Return: a request's bursts have the words that its bytes lie in, but for a skipped one.

    Each has its tag; the first and the last one are marked as such.
    """
    word = word_of(design)
    fields = fields_of("request", request_fields(design, netlist.ports))
    tag, size = len(netlist.ports["tag"]), len(netlist.ports["record"])
    return [
        f"  wire [31:0] place = {fields['address']} & {word - 1};",
        f"  wire [31:0] bytes = place + {fields['length']} + {word - 1};",
        "  wire came = request__valid & request__ready & ~flush;",
        "  reg open = 0, begun = 0;",
        "  reg [31:0] left = 0;",
        f"  reg [{tag - 1}:0] own_tag;",
        f"  wire [31:0] beats = record[{size - 1}:{tag + 2}] + 1;",
        f"  wire ends = record[{tag + 1}];",
        "  always @(posedge clk) begin",
        "    if (clear | flush) open <= 0;",
        "    else open <= came | (open & ~(push & ends));",
        "    if (came) begin",
        f"      begun <= 0; own_tag <= {fields['tag']};",
        f"      left <= bytes / {word} - {fields['skips']};",
        "    end else if (push) begin begun <= 1; left <= left - beats; end",
        "  end",
        f"  wire wrong = ~open | record[{tag - 1}:0] != own_tag | record[{tag}] == begun",
        "    | beats > left | ends != (beats == left);",
        "  assign bad = started & ~rst & fine & ((push & wrong) | (came & open));",
    ]


def _queued(design: Design, module: str) -> Outcome:
    """Prove of a queue of bursts that they leave as they came and in order, by induction.

    In any state in which its level is the distance of its ends: of any place, chosen by ``mark``,
    what it holds and how far it is from the way out follow in each clock from the one before.
    """
    flat = design.module(module)
    depth = 1 << (len(flat.ports["level"]) - 1)
    words = [f"word_{n}" for n in range(depth)]
    names = ["level", "o", "pushed", "popped", *words]
    netlist = from_any_state(simple(flat.probed({name: name for name in names})))
    low, wide = len(netlist.ports["pushed"]), len(netlist.ports["o"])
    choices = " : ".join(f"p == {n} ? {word}" for n, word in enumerate(words))
    body = [
        "  wire clear = rst;",
        f"  reg [{low - 1}:0] chosen;",
        f"  wire [{low - 1}:0] p = started ? chosen : mark;",
        f"  wire [{low - 1}:0] place = p - popped, length = pushed - popped;",
        f"  wire fine = level <= {depth} & level[{low - 1}:0] == length;",
        f"  wire law = ~(push & level == {depth}) & ~(pop & level == 0);",
        "  wire inside = place < level;",
        f"  wire [{wide - 1}:0] held = {choices} : 0;",
        "  reg follows = 0, stays = 0, comes = 0;",
        f"  reg [{low}:0] due;",
        f"  reg [{wide - 1}:0] was;",
        "  always @(posedge clk) begin",
        "    chosen <= p;",
        "    follows <= rst | (fine & law);",
        "    stays <= ~rst & inside & ~(pop & place == 0);",
        "    comes <= ~rst & push & pushed == p;",
        "    was <= push & pushed == p ? i : held;",
        "    due <= push & pushed == p ? level - pop : place - pop;",
        "  end",
        "  wire changed = ~inside | place != due | held != was;",
        "  wire wrong = ~fine | ((stays | comes) & changed) | (stays & comes);",
        "  wire out = fine & inside & place == 0 & o != held;",
        "  assign bad = out | (started & follows & wrong);",
    ]
    return within(netlist.text, harness(netlist, body), 2, LIMIT)


def _taken_in_turn(design: Design, module: str) -> Outcome:
    """Prove what a reader makes of the beats of the oldest burst, whatever that is.

    They are as many as its record says; words of a burst that was flushed are none. The queue is
    one by what `_queued` shows: its level counts, and its head stays until it is dropped.
    """
    netlist = from_any_state(simple(design.shell(module)))
    tag, size = len(netlist.ports["tag"]), len(netlist.ports["bursts__o"])
    level = len(netlist.ports["bursts__level"])
    body = [
        "  wire clear = ~started | rst;",
        f"  reg [{level - 1}:0] held = 0, stale = 0;",
        f"  reg [{size - 1}:0] was;",
        "  reg stays = 0, fine_before = 1;",
        "  wire same = bursts__level == held & (~stays | bursts__o == was);",
        "  wire fine = fine_before & (clear | same);",
        "  wire push = bursts__push, pop = bursts__pop;",
        f"  reg [{size - tag - 3}:0] count = 0;",
        "  wire beat = r__valid & r__ready;",
        "  always @(posedge clk) begin",
        "    fine_before <= fine; was <= bursts__o; stays <= ~clear & held != 0 & ~pop;",
        "    if (clear) begin held <= 0; stale <= 0; count <= 0; end",
        "    else begin",
        "      held <= held + push - pop;",
        "      stale <= flush ? held + push - pop : stale - (stale != 0 & pop);",
        "      count <= pop ? 0 : count + beat;",
        "    end",
        "  end",
        f"  wire ends = count == bursts__o[{size - 1}:{tag + 2}];",
        "  wire wrong = pop != (beat & ends) | valid != (beat & stale == 0)",
        f"    | (valid & (tag != bursts__o[{tag - 1}:0] | first != (bursts__o[{tag}] & count == 0)",
        f"    | closes != (bursts__o[{tag + 1}] & ends)));",
        "  wire early = beat & held == 0 | push & held == 1 << " + f"{level - 1};",
        "  assign bad = started & ~rst & fine & (wrong | early);",
    ]
    return always(netlist.text, harness(netlist, body), LIMIT)


def _words_faults(design: Design) -> Iterator[Design]:
    [reader, *_], [queue, *_] = copies(design, READER), copies(design, QUEUE)
    near = ["valid", "tag", "first", "closes", "bursts__pop"]
    yield from chain(design.shell_faults(reader, near), design.module_faults(queue, ["o"]))


def _masters_move(design: Design, netlist: Flat) -> list[str]:
    """Return: with all partners willing, a beat moves while a master owes the bus something."""
    del design
    names = ("ar__ready", "r__valid", "aw__ready", "w__ready", "b__valid")
    willing = " & ".join(name for name in names if name in netlist.ports)
    return [
        f"  wire still = owed & ~moved & ~flush & {willing};",
        f"  reg [{MOVES.bit_length()}:0] since = 0;",
        f"  always @(posedge clk) since <= clear | ~still ? 0 : since + (since < {MOVES});",
        f"  assign bad = started & ~rst & fine & since == {MOVES};",
    ]


_words_brought = each_module({READER: (_taken_in_turn,), QUEUE: (_queued,)})

JOBS = (
    module_job(
        "requests-split",
        "a request becomes bursts of just the words that its bytes lie in, under its tag",
        _split,
        {"request__ready": "request__ready", "tag": "tag", **_BURSTS},
        READER,
    ),
    Job(
        "words-brought",
        "a burst brings its words in its turn, under its tag, a request's first and last marked",
        "IC3",
        has(READER),
        _words_brought,
        _words_faults,
    ),
    module_job(
        "masters-move",
        "with all partners willing, a master that owes the bus something moves a beat in 4 clocks",
        _masters_move,
        {"owed": "owed", "moved": "moved"},
        WRITER,
        READER,
    ),
)
