"""Jobs about the AXI4 and AXI4-Lite buses of a unit, whatever it does with them.

Which streams are channels of which bus the unit says itself (``axi_buses``); fields have the names
of the AMBA specification (IHI 0022). What a master sends follows from the module that makes bursts
alone, for any requests of at least a byte that lie in no more words than it counts, which ``asked``
proves of the module that asks.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product, zip_longest

from amaranth.lib import data

from m2xfp.facts import Stream
from m2xfp.formats import block_format
from m2xfp.rtl.parts.accelerator_registers import descriptor_layout
from m2xfp.rtl.parts.axi_reader import request_layout
from m2xfp.rtl.parts.axi_writer import piece_layout
from m2xfp.rtl.parts.descriptor_checker import GEMM
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.operand_job import fetch_layout
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always, never, within
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import Flat, ProofError, from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = [
    "FETCHER",
    "JOBS",
    "READER",
    "WRITER",
    "copies",
    "each_module",
    "fields_of",
    "has",
    "module_job",
    "request_fields",
    "word_of",
]

PAGE = 4096
READER, WRITER, FETCHER = "axi_reader", "axi_writer", "operand_fetcher"
REGISTERS, CHECKER = "accelerator_registers", "descriptor_checker"
# Clocks to the response of a register: a descriptor may be copied before.
PATIENCE = 40


def _buses(design: Design) -> Mapping[str, bool]:
    """Return the AXI buses of a unit, and whether it is master of each."""
    found: Mapping[str, bool] = getattr(design.instance.component, "axi_buses", {})
    return found


def _channels(design: Design, channel: str, *, master: bool) -> list[Stream]:
    """Return the streams that are this channel of a bus."""
    names = {f"{bus}_{channel}" for bus, own in _buses(design).items() if own == master}
    return [stream for stream in design.facts.streams if stream.name in names]


def copies(design: Design, *kinds: str) -> list[str]:
    """Return the modules of some kinds: equal ones are one, others have a number."""
    return [module for module in design.modules if module.rstrip("0123456789").rstrip("_") in kinds]


def word_of(design: Design) -> int:
    """Return the bytes of a word of the master buses."""
    [*_, data] = _channels(design, "r", master=True) + _channels(design, "w", master=True)
    return data.field("data").width // 8


def _address(design: Design, port: str) -> dict[str, str]:
    """Return the fields of an address channel's payload as Verilog."""
    [stream, *_] = _channels(design, port, master=True)
    return {f.name: f"{port}__payload[{f.offset} +: {f.width}]" for f in stream.fields}


def request_fields(design: Design, ports: Mapping[str, Sequence[object]]) -> data.StructLayout:
    """Return the layout of what a reader of some ports is asked for."""
    bits = _channels(design, "ar", master=True)[0].field("addr").width
    tag = len(ports["tag"])
    return request_layout(bits, len(ports["request__payload"]) - bits - tag - 1, tag)


def _most_words(design: Design, module: str) -> int:
    """Return the words of a request, or of a piece, that a master can count."""
    flat, word = design.module(module), word_of(design)
    wires = flat.module["netnames"]
    if "strobes" in wires:
        return len(wires["strobes"]["bits"]) // word
    less = len(wires["beats_less"]["bits"])  # of a burst, which a page may end
    count = (1 << len(wires["left"]["bits"])) - 1
    return count if 1 << less >= PAGE // word else min(count, 1 << less)


def _lies(word: int, name: str, layout: data.StructLayout) -> str:
    """Return Verilog: the words that the bytes of a request or of a piece lie in."""
    low, address, length = (word - 1).bit_length(), layout["address"], layout["length"]
    inside = f"{name}__payload[{address.offset} +: {low}]"
    bytes_ = f"{name}__payload[{length.offset} +: {length.width}]"
    return f"(({inside} + 32'd0 + {bytes_} + {word - 1}) / {word})"


def _law(design: Design, module: str) -> str:
    """Return Verilog: what is asked for has a byte at least, behind a word that is skipped too.

    And it lies in no more words than there is room for.
    """
    ports = design.module(module).ports
    bits = _channels(design, "ar", master=True)[0].field("addr").width
    if not {"request__payload", "piece__payload"} & set(ports):
        return "1"
    if "request__payload" in ports:
        layout, name, skips = request_fields(design, ports), "request", True
    else:
        size = len(ports["piece__payload"])
        most = next(n for n in range(1, size) if piece_layout(bits, n).size == size)
        layout, name, skips = piece_layout(bits, most), "piece", False
    length = layout["length"]
    some = f"{name}__payload[{length.offset} +: {length.width}] != 0"
    some += f" & {_lies(word_of(design), name, layout)} <= {_most_words(design, module)}"
    if skips:
        some += f" & {_more(word_of(design), name, layout)}"
    return f"~{name}__valid | ({some})"


def _more(word: int, name: str, layout: data.StructLayout) -> str:
    """Return Verilog: a request whose first word is skipped has another one."""
    low, length = (word - 1).bit_length(), layout["length"]
    inside = f"{name}__payload[{layout['address'].offset} +: {low}]"
    bytes_ = f"{name}__payload[{length.offset} +: {length.width}]"
    return f"(~{name}__payload[{layout['skips'].offset}] | {inside} + 32'd0 + {bytes_} > {word})"


def _bursts(design: Design, netlist: Flat) -> list[str]:
    """Return: an address that is offered is that of an INCR burst of whole words within 4 KB."""
    port = "ar" if "ar__valid" in netlist.ports else "aw"
    fields, size = _address(design, port), word_of(design).bit_length() - 1
    return [
        f"  wire [11:0] at = {fields['addr']};",
        f"  wire [12:0] stop = {{1'b0, at}} + (({fields['len']} + 13'd1) << {size});",
        f"  wire wrong = {fields['size']} != {size} | {fields['burst']} != 1",
        f"    | at[{size - 1}:0] != 0 | stop > {PAGE};",
        f"  assign bad = started & ~rst & fine & {port}__valid & wrong;",
    ]


def _counted(design: Design, netlist: Flat) -> list[str]:
    """Return: the beats of a burst are as many as its address said, the last one with WLAST.

    Of any burst, chosen by ``mark``. None comes before its address is offered.
    """
    fields = _address(design, "aw")
    last = f"w__payload[{len(netlist.ports['w__payload']) - 1}]"
    return [
        "  reg offered = 0, marked = 0;",
        "  reg [5:0] inside = 0, ahead = 0;",
        "  reg [8:0] left = 0;",
        "  wire offer = aw__valid & ~offered;",
        f"  wire went = w__valid & w__ready, closed = went & {last};",
        "  wire own = marked & ahead == 0;",
        "  wire [5:0] now = inside + offer, after = now - closed;",
        "  always @(posedge clk)",
        "    if (clear) begin offered <= 0; inside <= 0; marked <= 0; end",
        "    else begin",
        "      offered <= aw__valid & ~aw__ready;",
        "      inside <= after;",
        "      if (~marked) begin",
        "        marked <= offer & mark[0] & ~(now == 1 & closed);",
        f"        ahead <= after - 1; left <= {fields['len']} - (now == 1 & went);",
        "      end else if (own) begin",
        "        marked <= ~closed; left <= left - went;",
        "      end else ahead <= ahead - closed;",
        "    end",
        f"  wire first = ~marked & offer & now == 1 & went & {last} != ({fields['len']} == 0);",
        f"  wire later = own & went & {last} != (left == 0);",
        "  assign bad = started & ~rst & fine & ((went & now == 0) | first | later | now > 32);",
    ]


def _taken(design: Design, netlist: Flat) -> list[str]:
    """Return: a response to a burst whose address was taken is taken in the clock it comes in.

    No other response comes.
    """
    del design, netlist
    return [
        "  reg [5:0] open = 0;",
        "  reg answers_fit = 1;",
        "  wire law = answers_fit & (~b__valid | open != 0);",
        "  always @(posedge clk) begin",
        "    answers_fit <= law;",
        "    if (clear) open <= 0;",
        "    else open <= open + (aw__valid & aw__ready) - (b__valid & b__ready);",
        "  end",
        "  assign bad = started & ~rst & fine & law & open != 0 & ~b__ready;",
    ]


def _register_answers(design: Design, netlist: Flat) -> list[str]:
    """Return: of AXI4-Lite, a response to each address and its data, and no other, in time.

    A write may wait for room among the descriptors, so long as none of them is taken.
    """
    del design, netlist
    body, held = [], {"b": "~descriptor__ready", "r": "1'b0"}
    for answer, parts in (("b", ("aw", "w")), ("r", ("ar",))):
        for part in parts:
            body += [
                f"  reg [2:0] {part}_open = 0;",
                "  always @(posedge clk)",
                f"    if (clear) {part}_open <= 0;",
                f"    else {part}_open <= {part}_open + ({part}__valid & {part}__ready)",
                f"      - ({answer}__valid & {answer}__ready);",
            ]
        due = " & ".join(f"{part}_open != 0" for part in parts)
        many = " | ".join(f"{part}_open > 4" for part in parts)
        body += [
            f"  wire {answer}_due = {due};",
            f"  reg [{PATIENCE.bit_length() - 1}:0] {answer}_quiet = 0;",
            "  always @(posedge clk)",
            f"    if (clear | {answer}__valid | ~{answer}_due | {held[answer]})",
            f"      {answer}_quiet <= 0;",
            f"    else if ({answer}_quiet < {PATIENCE}) {answer}_quiet <= {answer}_quiet + 1'd1;",
            f"  wire {answer}_bad = ({answer}__valid & ~{answer}_due) | {many}",
            f"    | {answer}_quiet == {PATIENCE};",
        ]
    return [*body, "  assign bad = started & ~rst & (b_bad | r_bad);"]


def _fetchers(design: Design) -> dict[str, tuple[int, int]]:
    """Return the fetchers, with the words that their readers count and bytes of their groups."""
    block = block_format(design.facts.parameters["act"])
    found: dict[str, tuple[int, int]] = {}
    for name, reader in (("acts", "acts"), ("weights", "weights"), ("values", "acts")):
        module = _module_of(design, f"{name}_fetcher")
        if not module:
            continue
        granule = 2 * block.group if name == "values" else block.group_bytes[0]
        most = _most_words(design, _module_of(design, f"{reader}_reader"))
        before = found.get(module, (most, granule))
        found[module] = (min(most, before[0]), min(granule, before[1]))
    if missing := set(copies(design, FETCHER)) - set(found):
        raise ProofError(f"nobody has said which reader serves {', '.join(sorted(missing))}")
    return found


def _module_of(design: Design, instance: str) -> str:
    """Return the module of an instance; nothing if there is none."""
    [*found] = re.findall(rf"^  {design.facts.top}_(\w+) {instance} \($", design.verilog, re.M)
    return str(found[0]) if found else ""


def _asked(design: Design) -> Outcome:
    """Prove by induction that a matrix of a row and a group is fetched by bytes, never by none.

    Nor in requests of more words than their reader counts. What is left of a matrix, while there is
    something to do, is a group at least, and its codes begin at whole groups, or words.
    """
    bits, word = _channels(design, "ar", master=True)[0].field("addr").width, word_of(design)
    job = fetch_layout(bits)
    places = (job["codes"].offset, job["codes_pitch"].offset)
    state = ("active", "groups_left", "held", "here_0", "block_0")
    names = (*state, "request__valid", "request__payload")
    seconds = 0.0
    for module, (most, granule) in _fetchers(design).items():
        flat = design.module(module)
        layout = request_fields(design, flat.ports)
        length, more = layout["length"], _more(word, "request", layout)
        count = len(flat.module["netnames"]["groups_left"]["bits"])
        part = f"[{job['groups'].offset} +: {count}]"
        beyond = f"job__payload[{job['groups'].offset} +: {job['groups'].width}] >> {count}"
        low = (min(word, granule) - 1).bit_length()
        netlist = from_any_state(simple(flat.probed({name: name for name in names})))
        off = [f"{name}[{low - 1}:0] != 0" for name in ("here_0", "block_0")]
        held, given = (
            [f"{name}[{place} +: {low}] != 0" for place in places]
            for name in ("held", "job__payload")
        )
        body = [
            "  wire clear = rst;",
            f"  wire off = {' | '.join([*off, *held])};",
            f"  wire some = ~active | (groups_left != 0 & held{part} != 0 & ~off);",
            f"  wire fits = ({beyond}) == 0 & ~({' | '.join(given)});",
            f"  wire law = ~job__valid | (job__payload{part} != 0 & fits);",
            "  reg follows = 0;",
            "  always @(posedge clk) follows <= rst | (some & law);",
            f"  wire long = {_lies(word, 'request', layout)} > {most};",
            "  wire nothing = some & request__valid & (long",
            f"    | request__payload[{length.offset} +: {length.width}] == 0 | ~{more});",
            "  assign bad = nothing | (started & follows & ~some);",
        ]
        outcome = within(netlist.text, harness(netlist, body), 2, LIMIT)
        seconds += outcome.seconds
        if not outcome.holds:
            return Outcome(False, f"fails in {module}", seconds)
    return Outcome(True, "induction", seconds)


def _asked_faults(design: Design) -> Iterator[Design]:
    [module, *_] = copies(design, FETCHER)
    return design.gate_faults(module, ["request__payload"])


def _checked(design: Design) -> Outcome:
    """Prove that what passes has rows and whole groups, begins with one, and is not too large."""
    netlist = from_any_state(simple(design.module(CHECKER)))
    given = design.facts.parameters
    block = block_format(given["act"])
    group, code_bytes = block.group, block.group_bytes[0]
    fields = {
        name: f"descriptor[{field.offset} +: {field.width}]" for name, field in descriptor_layout
    }
    body = [
        f"  wire [31:0] k = {fields['k']};",
        f"  wire [31:0] codes = {fields['a_codes']}, pitch = {fields['a_codes_pitch']};",
        f"  wire [31:0] others = {fields['w_codes']}, other = {fields['w_codes_pitch']};",
        f"  wire gemm = {fields['operation']} == {GEMM};",
        f"  wire part = gemm & ((codes | pitch | others | other) % {code_bytes} != 0)",
        f"    | ~gemm & ((codes | pitch) % {2 * group} != 0);",
        f"  wire large = k >> {SIZE_BITS} != 0 | gemm & k > {given['max_k']};",
        f"  wire wrong = {fields['m']} == 0 | k < {group} | k % {group} != 0 | part | large;",
        "  assign bad = cause == 0 & wrong;",
    ]
    return never(netlist.text, harness(netlist, body), LIMIT)


def fields_of(port: str, layout: data.StructLayout) -> dict[str, str]:
    """Return the fields of a payload as Verilog."""
    return {name: f"{port}__payload[{field.offset} +: {field.width}]" for name, field in layout}


Body = Callable[[Design, Flat], list[str]]


def _gates(design: Design, module: str, outputs: Mapping[str, str]) -> Flat:
    """Return a module from any state, with those wires and outputs that a rule is about."""
    flat = design.module(module)
    known = flat.module["netnames"]
    return from_any_state(
        simple(flat.probed({port: wire for port, wire in outputs.items() if wire in known}))
    )


def module_job(name: str, text: str, body: Body, outputs: Mapping[str, str], *kinds: str) -> Job:
    """Return a job about each module of some kinds: ``outputs`` are ports by names of wires."""

    def prove(design: Design, module: str) -> Outcome:
        netlist = _gates(design, module, outputs)
        lines = [
            "  wire clear = ~started | rst;",
            "  reg fine_before = 1;",
            f"  wire fine = fine_before & ({_law(design, module)});",
            "  always @(posedge clk) fine_before <= fine;",
            *body(design, netlist),
        ]
        return always(netlist.text, harness(netlist, lines), LIMIT)

    def faults(design: Design) -> Iterator[Design]:
        [module, *_] = copies(design, *kinds)
        near = [port for port in outputs.values() if port in design.module(module).ports]
        registers = design.module_faults(module, near)
        for pair in zip_longest(design.gate_faults(module, near), registers):
            yield from (each for each in pair if each is not None)

    proof = each_module(dict.fromkeys(kinds, (prove,)))
    return Job(name, text, "IC3", has(*kinds), proof, faults)


def each_module(
    proofs: Mapping[str, Sequence[Callable[[Design, str], Outcome]]],
) -> Callable[[Design], Outcome]:
    """Return what proves some things of each module, by its kind; the depth is the first one's."""

    def proof(design: Design) -> Outcome:
        seconds, depths = 0.0, []
        for kind, those in proofs.items():
            for module, prove in product(copies(design, kind), those):
                outcome = prove(design, module)
                seconds += outcome.seconds
                depths.append(outcome.depth)
                if not outcome.holds:
                    return Outcome(False, f"fails in {module}", seconds)
        return Outcome(True, depths[0], seconds)

    return proof


def has(*kinds: str) -> Callable[[Design], bool]:
    """Return whether a unit with AXI buses has modules of some kinds."""
    return lambda design: bool(_buses(design)) and bool(copies(design, *kinds))


def _ports(*names: str) -> dict[str, str]:
    return {name: name for name in names}


JOBS = (
    module_job(
        "bursts",
        "an AXI4 master's bursts are whole words of INCR, none across 4 KB",
        _bursts,
        _ports("ar__payload", "ar__valid", "aw__payload", "aw__valid"),
        WRITER,
        READER,
    ),
    module_job(
        "counted",
        "as many beats as a burst's address said, WLAST with the last, none before the address",
        _counted,
        _ports("aw__payload", "aw__valid", "w__payload", "w__valid"),
        WRITER,
    ),
    module_job(
        "taken",
        "a response to a burst is taken in the clock in which it comes",
        _taken,
        _ports("aw__valid", "b__ready"),
        WRITER,
    ),
    module_job(
        "register-answers",
        "AXI4-Lite: a response to each address with its data, and no other, within some clocks",
        _register_answers,
        _ports("aw__ready", "w__ready", "b__valid", "ar__ready", "r__valid"),
        REGISTERS,
    ),
    Job(
        "asked",
        "no request for nothing, nor for more words than its reader counts",
        "induction",
        has(FETCHER),
        _asked,
        _asked_faults,
    ),
    Job(
        "descriptors",
        "a descriptor without rows or whole groups, misaligned or too large is refused",
        "SAT sweeping",
        has(CHECKER),
        _checked,
        lambda d: d.gate_faults(CHECKER),
    ),
)
