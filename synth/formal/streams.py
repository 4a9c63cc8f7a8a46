"""The rules of streams as circuits around a unit, from its facts alone.

Each function returns Verilog of a module ``harness`` with one output, ``bad``: high where a rule is
broken. Its inputs, the unit's among them, may have any value in any clock.
"""

from collections.abc import Sequence

from m2xfp.facts import Facts
from m2xfp.synth.formal.netlist import ANY_STATE, Flat

__all__ = [
    "apart",
    "conserved",
    "forgotten",
    "harness",
    "held",
    "live",
    "on_time",
    "ordered",
    "silent",
    "taken_whole",
]


def harness(netlist: Flat, body: Sequence[str], more: Sequence[str] = ()) -> str:
    """Return a harness: a unit or module from any state, ports under their names, and ``body``.

    ``started`` is low in the first clock only. ``clear`` is the unit's reset, ``mark`` an input
    for the body, and ``more`` are declarations of others.
    """
    inputs, pins = [], []
    wires = []
    for name, port in netlist.module["ports"].items():
        shape = f"[{len(port['bits']) - 1}:0] {name}"
        value = {"rst": "clear", ANY_STATE[0]: "~started"}.get(name, name)
        pins.append(f".{name}({value})")
        if port["direction"] == "output":
            wires.append(f"  wire {shape};")
        elif name not in ("clk", ANY_STATE[0]):
            inputs.append(f"input {shape}")
    return "\n".join(
        [
            "module harness(input clk, input [15:0] mark, output bad,",
            f"  {', '.join([*inputs, *more])});",
            *wires,
            "  reg started = 0;",
            "  always @(posedge clk) started <= 1;",
            *body,
            f"  {netlist.top} unit ({', '.join(pins)});",
            "endmodule",
            "",
        ]
    )


def held(facts: Facts, netlist: Flat) -> str:
    """Return: valid does not drop and the payload does not change while the reader is not ready."""
    body, bad = [f"  wire clear = {facts.reset};"], []
    for stream in facts.outputs:
        data, valid, ready, last = stream.ports
        p = stream.prefix
        body += [
            f"  reg {p}_waits = 0;",
            f"  reg [{stream.tdata_width}:0] {p}_was;",
            f"  always @(posedge clk) {p}_waits <= {valid} & ~{ready} & ~clear;",
            f"  always @(posedge clk) {p}_was <= {{{last}, {data}}};",
        ]
        bad.append(f"({p}_waits & (~{valid} | ({{{last}, {data}}} != {p}_was)))")
    return harness(netlist, [*body, f"  assign bad = {' | '.join(bad)};"])


def silent(facts: Facts, netlist: Flat) -> str:
    """Return: nothing is valid in the clock after one clock of reset."""
    valids = " | ".join(stream.ports[1] for stream in facts.outputs)
    body = [
        f"  wire clear = ~started | {facts.reset};",
        f"  assign bad = started & ({valids});",
    ]
    return harness(netlist, body)


def _groups(facts: Facts, waiting: int) -> list[str]:
    """Return what follows whole groups in and results out: ``came``, ``went``, ``inside``.

    ``ends``: the beat at the output is the last one of its group's result.
    """
    [i], [o] = facts.inputs, facts.outputs
    results = facts.results_per_group
    return [
        # One clock of reset in any state; afterwards reset may come at any time again.
        f"  wire clear = ~started | {facts.reset};",
        f"  wire beat = {i.ports[1]} & {i.ports[2]};",
        f"  reg [{max(results.bit_length(), 1)}:0] left = 0;",
        f"  wire ends = left == {results - 1};",
        f"  wire result = {o.ports[1]} & {o.ports[2]};",
        "  wire went = result & ends;",
        *_closing(facts),
        f"  reg [{waiting.bit_length()}:0] inside = 0;",
        "  always @(posedge clk)",
        "    if (clear) begin filled <= 0; inside <= 0; left <= 0; end",
        "    else begin",
        "      if (beat) filled <= came ? 0 : filled + 1'd1;",
        "      inside <= inside + came - went;",
        "      if (result) left <= ends ? 0 : left + 1'd1;",
        "    end",
    ]


def _closing(facts: Facts) -> list[str]:
    """Return ``filled``, the beats of a group so far, and ``came``: this one makes it whole.

    The first beat of a group says how many there are, where that differs.
    """
    beats, long = facts.beats_per_group, facts.long_groups
    if long is None:
        return [
            f"  reg [{max(beats.bit_length(), 1)}:0] filled = 0;",
            f"  wire came = beat & filled == {beats - 1};",
        ]
    stream = facts.stream(long.stream)
    fields = [stream.field(name) for name in long.fields]
    hits = [
        " & ".join(
            f"{stream.ports[0]}[{field.last_bit}:{field.offset}] == {value}"
            for field, value in zip(fields, values, strict=True)
        )
        for values in long.values
    ]
    return [
        f"  reg [{long.beats.bit_length()}:0] filled = 0;",
        f"  wire long_one = {' | '.join(f'({hit})' for hit in hits)};",
        f"  wire came = beat & (filled == 0 ? ~long_one : filled == {long.beats - 1});",
    ]


def conserved(facts: Facts, netlist: Flat, waiting: int, patience: int) -> str:
    """Return: no result without its group; no group without its result while the reader is ready.

    At most ``waiting`` groups are inside. With a reader that is ready, ``patience`` clocks without
    a result mean that none is owed.
    """
    [o] = facts.outputs
    _, valid, ready, _ = o.ports
    body = [
        *_groups(facts, waiting),
        f"  reg [{patience.bit_length()}:0] quiet = 0;",
        "  always @(posedge clk)",
        f"    if (clear | ~{ready} | {valid} | inside == 0) quiet <= 0;",
        f"    else if (quiet < {patience}) quiet <= quiet + 1'd1;",
        f"  wire made = {valid} & inside == 0;",
        f"  wire lost = quiet == {patience};",
        f"  assign bad = started & ~{facts.reset} & (made | lost | inside > {waiting});",
    ]
    return harness(netlist, body)


def ordered(facts: Facts, netlist: Flat, waiting: int) -> str:
    """Return: TLAST of a group leaves with its result: of any one group, chosen by ``mark``.

    Of a result of several beats, with the last one.
    """
    [i], [o] = facts.inputs, facts.outputs
    body = [
        *_groups(facts, waiting),
        f"  reg [{waiting.bit_length()}:0] ahead = 0;",
        "  reg marked = 0, expected = 0;",
        "  always @(posedge clk)",
        "    if (clear) marked <= 0;",
        "    else if (~marked) begin",
        f"      marked <= came & mark[0]; ahead <= inside - went; expected <= {i.ports[3]};",
        "    end else if (went) begin",
        "      if (ahead == 0) marked <= 0;",
        "      ahead <= ahead - 1'd1;",
        "    end",
        f"  assign bad = started & ~{facts.reset} & marked & ahead == 0 & {o.ports[1]}",
        f"    & {o.ports[3]} != (expected & ends);",
    ]
    return harness(netlist, body)


def apart(facts: Facts, netlist: Flat, name: str) -> str:
    """Return: in the clock after a beat of a stream was taken none is valid."""
    _, valid, ready, _ = facts.stream(name).ports
    body = [
        f"  wire clear = ~started | {facts.reset};",
        "  reg went = 0;",
        f"  always @(posedge clk) went <= {valid} & {ready} & ~clear;",
        f"  assign bad = started & went & {valid};",
    ]
    return harness(netlist, body)


def taken_whole(facts: Facts, netlist: Flat) -> str:
    """Return: a unit that has taken a group's first beat takes the others as they come."""
    [i] = facts.inputs
    _, valid, ready, _ = i.ports
    beats = facts.beats_per_group
    body = [
        f"  wire clear = ~started | {facts.reset};",
        f"  reg [{beats.bit_length()}:0] filled = 0;",
        "  always @(posedge clk)",
        "    if (clear) filled <= 0;",
        f"    else if ({valid} & {ready}) filled <= filled == {beats - 1} ? 0 : filled + 1'd1;",
        f"  assign bad = started & ~{facts.reset} & filled != 0 & ~{ready};",
    ]
    return harness(netlist, body)


def live(facts: Facts, netlist: Flat, patience: int) -> str:
    """Return: a unit with a ready reader takes an offered beat within ``patience`` clocks."""
    body, bad = [f"  wire clear = ~started | {facts.reset};"], []
    ready = " & ".join(stream.ports[2] for stream in facts.outputs)
    for stream in facts.inputs:
        p = stream.prefix
        body += [
            f"  reg [{patience.bit_length()}:0] {p}_waits = 0;",
            "  always @(posedge clk)",
            f"    if (clear | ~{stream.ports[1]} | {stream.ports[2]} | ~({ready})) {p}_waits <= 0;",
            f"    else if ({p}_waits < {patience}) {p}_waits <= {p}_waits + 1'd1;",
        ]
        bad.append(f"({p}_waits == {patience})")
    return harness(netlist, [*body, f"  assign bad = {' | '.join(bad)};"])


def on_time(facts: Facts, netlist: Flat, waiting: int) -> str:
    """Return: of a reader always ready, each result is valid ``latency`` clocks after its group.

    Of a result of several beats the last one is, and the others before it, as far apart as what
    they are made of.
    """
    [o] = facts.outputs
    _, valid, ready, _ = o.ports
    n, apart = facts.latency, facts.beats_per_group // facts.results_per_group
    due = " | ".join(f"due[{n - 1 - apart * beat}]" for beat in range(facts.results_per_group))
    body = [
        *_groups(facts, waiting),
        "  reg stalled = 0;",
        f"  reg [{n}:0] due = 0;",
        "  always @(posedge clk)",
        "    if (clear) begin stalled <= 0; due <= 0; end",
        f"    else begin stalled <= stalled | ~{ready}; due <= {{due, came}}; end",
        f"  assign bad = started & ~{facts.reset} & ~stalled & {valid} != ({due});",
    ]
    return harness(netlist, body)


def forgotten(facts: Facts, netlist: Flat) -> str:
    """Return: two of a unit, reset for one clock in any two states, give the same ever after."""
    outputs = {
        name for name, port in netlist.module["ports"].items() if port["direction"] == "output"
    }
    body = ["  wire clear = ~started | rst;"]
    pins, bad = [], []
    for name, port in netlist.module["ports"].items():
        value = {"rst": "clear", ANY_STATE[0]: "~started", ANY_STATE[1]: "other_state"}.get(
            name, f"{name}_2" if name in outputs else name
        )
        pins.append(f".{name}({value})")
        if name in outputs:
            body.append(f"  wire [{len(port['bits']) - 1}:0] {name}_2;")
    for stream in facts.streams:
        data, valid, ready, last = stream.ports
        if stream.is_input:
            bad.append(f"{ready} != {ready}_2")
        else:
            bad += [f"{valid} != {valid}_2"]
            bad += [f"({valid} & {port} != {port}_2)" for port in (data, last)]
    state = len(netlist.ports[ANY_STATE[1]])
    body += [
        f"  {netlist.top} other ({', '.join(pins)});",
        f"  assign bad = started & ~clear & ({' | '.join(bad)});",
    ]
    return harness(netlist, body, [f"input [{state - 1}:0] other_state"])
