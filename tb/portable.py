"""Portable vectors: beats in hexadecimal files, and a testbench in plain Verilog.

Verilog-2005 without any library, so that every simulator runs it. The testbench offers the beats of
the vectors, pauses each stream at random or by a given pattern, resets the unit in the midst of
other traffic, and compares every bit that comes out. What a stream carries while it offers nothing
is x, and so are the inputs of a unit without streams between two words: a simulator with unknown
values shows a result that depends on them. `m2xfp vectors` writes the files, and
`m2xfp.tb.four_state` plays them in Icarus.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from m2xfp.errors import InputError
from m2xfp.facts import Facts, Port, Stream
from m2xfp.files import write_atomic
from m2xfp.rtl.verilog.beside.folding import folded
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["PASSED", "Pauses", "bench_name", "write_bench"]

PASSED = "PASS"
"""What the testbench prints, at the beginning of a line, if every beat was as expected."""

_LONGEST = 1 << 12  # bits of a pattern of pauses


@dataclass(frozen=True)
class Pauses:
    """When the streams of a unit pause, and the reset before the vectors.

    Members
    -------
    stall
        Probability that a stream pauses in a clock, from 0 up to but not with 1.
    seed
        Of the pauses; the same in every simulator, since the testbench makes its own random bits.
    patterns
        By prefix of a stream, such as ``s_axis``, what it does instead of pausing at random: a
        digit a clock, from the left and again from the left, 1 where it pauses.
    before
        Clocks of traffic, the first of the beats, before the reset that the vectors follow. None of
        what comes out then is compared.
    reset
        Clocks that the reset lasts.
    """

    stall: float = 0.3
    seed: int = 0
    patterns: Mapping[str, str] = field(default_factory=dict)
    before: int = 40
    reset: int = 1

    def check(self, facts: Facts) -> None:
        """Raise InputError for a probability, a stream or a pattern that cannot be."""
        if not 0 <= self.stall < 1:
            raise InputError(f"stall {self.stall}: must be from 0 to below 1")
        known = [stream.prefix for stream in facts.streams]
        for name, pattern in self.patterns.items():
            if name not in known:
                there = ", ".join(known) or "none, it is combinational"
                raise InputError(f"pause {name}: no stream of {facts.top}; there are: {there}")
            if not re.fullmatch(f"[01]{{1,{_LONGEST}}}", pattern) or "0" not in pattern:
                raise InputError(
                    f"pause {name}={pattern}: must be 1 to {_LONGEST} digits, 1 in a clock with a "
                    "pause, and at least one 0"
                )


def bench_name(facts: Facts) -> str:
    """Return the name of the testbench's module."""
    return f"{facts.top}_tb"


def write_bench(
    facts: Facts, vectors: TestVectors, folder: Path, pauses: Pauses = Pauses()
) -> list[Path]:
    """Write ``<top>_tb.v`` and its hexadecimal files, and return their paths.

    A simulation of the testbench and the unit, in that folder, ends by itself and prints one line:
    ``PASS: <n> beats compared``, or ``FAIL: `` with what was wrong. Files hold a beat a line, TLAST
    above TDATA, as ``$readmemh`` reads them.

    Parameters
    ----------
    facts
        The unit.
    vectors
        Beats that go in, and those that must come out.
    folder
        Where the files go; what was there under their names is replaced.
    pauses
        When streams pause.

    Raises
    ------
    InputError
        By `Pauses.check`.
    """
    pauses.check(facts)
    text, words = (
        _stream_bench(facts, vectors, pauses) if facts.streams else _port_bench(facts, vectors)
    )
    written = [write_atomic(folder / name, _hex(beats)) for name, beats in words.items()]
    return [write_atomic(folder / f"{bench_name(facts)}.v", folded(text)), *written]


def _hex(beats: Beats) -> str:
    """Return beats as words {last, data} in hexadecimal."""
    last = np.zeros(len(beats), bool) if beats.last is None else beats.last
    return "".join(
        f"{int(end):x}{row[::-1].tobytes().hex()}\n"
        for row, end in zip(beats.data, last, strict=True)
    )


def _head(facts: Facts) -> str:
    """Return the comment that tells how to run it."""
    bench, files = bench_name(facts), f"{bench_name(facts)}.v {facts.top}.v"
    return (
        f"// Testbench of {facts.top}. It ends with a line PASS or FAIL; run it in this folder:\n"
        f"//   $ iverilog -g2005 -s {bench} -o {bench}.vvp {files}\n"
        f"//   $ vvp -n {bench}.vvp\n"
        "// or\n"
        f"//   $ verilator --binary --timing --top-module {bench} {files}\n"
        f"//   $ obj_dir/V{bench}\n"
        f"module {bench};\n"
    )


def _memory(name: str, width: int, count: int, file: str) -> str:
    """Return the memory of a file's words, whose lines have whole digits of hexadecimal."""
    return (
        f"  reg [{4 * -(-width // 4) - 1}:0] {name} [0:{max(count, 1) - 1}];\n"
        f'  initial $readmemh("{file}", {name});\n'
    )


# --- units without streams -----------------------------------------------------------------------


def _port_bench(facts: Facts, vectors: TestVectors) -> tuple[str, dict[str, Beats]]:
    """Return the testbench that plays all ports' words, one after the other, and its files."""
    count = len(next(iter(vectors.outputs.values())))
    words: dict[str, Beats] = {}
    lines, known, unknown, checks = [], [], [], []
    for port in facts.signals:
        given = (vectors.inputs if port.is_input else vectors.outputs)[port.name]
        lines.append(_port_words(facts, port, Beats(given.data), count, words))
        value = f"{port.name}_words[at][{port.width - 1}:0]"
        if port.is_input:
            lines.append(f"  reg [{port.width - 1}:0] {port.name};\n")
            known.append(f"{port.name} = {value};")
            unknown.append(f"{port.name} = {{{port.width}{{1'bx}}}};")
            continue
        lines.append(f"  wire [{port.width - 1}:0] {port.name};\n")
        mask = ""
        if port.name in vectors.compared:
            masks = Beats(vectors.compared[port.name])
            lines.append(_port_words(facts, port, masks, count, words, "_mask"))
            mask = f" & {port.name}_mask[at][{port.width - 1}:0]"
        checks.append(
            f"      if (!failed && ({port.name}{mask}) !== ({value}{mask})) begin\n"
            f'        $display("FAIL: {port.name}, word %0d is %h, expected %h", at, {port.name},\n'
            f"                 {value});\n"
            "        failed = 1'b1;\n      end\n"
        )
    ports = ",\n    ".join(f".{port.name}({port.name})" for port in facts.signals)
    text = (
        f"{_head(facts)}"
        f"  localparam integer COUNT = {count};\n"
        "  integer at;\n"
        "  reg failed = 1'b0;\n"
        f"{''.join(lines)}"
        f"  {facts.top} unit (\n    {ports}\n  );\n"
        "  initial begin\n"
        "    for (at = 0; at < COUNT && !failed; at = at + 1) begin\n"
        f"      {' '.join(unknown)}\n      #1 {' '.join(known)}\n      #1\n"
        f"{''.join(checks)}"
        "    end\n"
        f'    if (!failed) $display("{PASSED}: %0d words compared", COUNT);\n'
        "    $finish;\n"
        "  end\n"
        "endmodule\n"
    )
    return text, words


def _port_words(
    facts: Facts, port: Port, beats: Beats, count: int, words: dict[str, Beats], suffix: str = ""
) -> str:
    """Add the file of a port's words to ``words``, and return the memory that reads it."""
    file = f"{facts.top}_{port.name}{suffix}.hex"
    words[file] = beats
    name = f"{port.name}{suffix or '_words'}"
    return _memory(name, 8 * port.bytes + 4, count, file)


# --- units with streams --------------------------------------------------------------------------


def _pause(stream: Stream, number: int, pauses: Pauses) -> str:
    """Return the Verilog that says in each clock whether a stream pauses."""
    p = stream.prefix
    pattern = pauses.patterns.get(p)
    if pattern is not None:
        size = len(pattern)
        turned = f"{{{p}_pattern[{size - 2}:0], {p}_pattern[{size - 1}]}}"
        return (
            f"  reg [{size - 1}:0] {p}_pattern;\n  initial {p}_pattern = {size}'b{pattern};\n"
            f"  wire {p}_pause = {p}_pattern[{size - 1}];\n"
            f"  always @(posedge clk) {p}_pattern <= {turned if size > 1 else f'{p}_pattern'};\n"
        )
    # Marsaglia's xorshift of 32 bits, never 0; streams begin at different places of its sequence.
    start = (0x9E3779B9 * (2 * (pauses.seed * 64 + number) + 1)) & 0xFFFFFFFF or 1
    return (
        f"  reg [31:0] {p}_noise;\n  initial {p}_noise = 32'h{start:08x};\n"
        f"  wire {p}_pause = {{1'b0, {p}_noise[31:22]}} < stall;\n"
        f"  always @(posedge clk) {p}_noise <= xorshift({p}_noise);\n"
    )


def _driver(stream: Stream, count: int) -> str:
    """Return the Verilog that offers the beats of an input: x while it offers nothing."""
    p, width = stream.prefix, stream.tdata_width
    return f"""\
  integer {p}_sent;
  reg {p}_tvalid;
  wire {p}_tready;
  wire [{width}:0] {p}_beat = {p}_tvalid ? {p}_beats[{p}_sent][{width}:0] : {{{width + 1}{{1'bx}}}};
  wire [{width - 1}:0] {p}_tdata = {p}_beat[{width - 1}:0];
  wire {p}_tlast = {p}_beat[{width}];
  always @(posedge clk) begin
    if (restart) begin
      {p}_sent <= 0;
      {p}_tvalid <= 1'b0;
    end else begin
      if ({p}_tvalid && {p}_tready === 1'b1) {p}_sent <= {p}_sent + 1;
      if (!{p}_tvalid || {p}_tready === 1'b1)
        {p}_tvalid <= {p}_sent + ({p}_tvalid ? 1 : 0) < {count} && !{p}_pause;
    end
  end
"""


def _checker(stream: Stream, count: int, masked: bool) -> str:
    """Return the Verilog that takes the beats of an output and compares them."""
    p, width = stream.prefix, stream.tdata_width
    mask = f" & {{1'b1, {p}_mask[{p}_found][{width - 1}:0]}}" if masked else ""
    return f"""\
  integer {p}_found;
  reg {p}_tready;
  wire {p}_tvalid, {p}_tlast;
  wire [{width - 1}:0] {p}_tdata;
  wire [{width}:0] {p}_beat = {{{p}_tlast, {p}_tdata}};
  always @(posedge clk) begin
    {p}_tready <= !{p}_pause;
    if (restart) {p}_found <= 0;
    else if (compare) begin
      if ({p}_tvalid !== 1'b0 && {p}_tvalid !== 1'b1) begin
        $display("FAIL: {p}, tvalid is unknown before beat %0d", {p}_found);
        failed <= 1'b1;
      end
      if ({p}_tvalid === 1'b1 && {p}_tready) begin
        if ({p}_found >= {count}) begin
          $display("FAIL: {p}, more beats than the %0d expected", {p}_found);
          failed <= 1'b1;
        end else if (({p}_beat{mask}) !== ({p}_beats[{p}_found][{width}:0]{mask})) begin
          $display("FAIL: {p}, beat %0d is %h, expected %h", {p}_found, {p}_beat,
                   {p}_beats[{p}_found][{width}:0]);
          failed <= 1'b1;
        end
        {p}_found <= {p}_found + 1;
      end
    end
  end
"""


def _beside(port: Port) -> str:
    """Return the Verilog of a port beside the streams: 0 goes in, and what comes out is known."""
    span = f"[{port.width - 1}:0] " if port.width > 1 else ""
    if port.is_input:
        return f"  wire {span}{port.name} = {port.width}'d0;\n"
    return f"""\
  wire {span}{port.name};
  always @(posedge clk) begin
    if (compare && ^{port.name} === 1'bx) begin
      $display("FAIL: {port.name} is unknown");
      failed <= 1'b1;
    end
  end
"""


def _stream_bench(
    facts: Facts, vectors: TestVectors, pauses: Pauses
) -> tuple[str, dict[str, Beats]]:
    """Return the testbench of a unit with streams, and its files."""
    words: dict[str, Beats] = {}
    parts = []
    counts = {}
    for number, stream in enumerate(facts.streams):
        given = (vectors.inputs if stream.is_input else vectors.outputs)[stream.name]
        file, p = f"{facts.top}_{stream.prefix}.hex", stream.prefix
        words[file] = given
        counts[p] = len(given)
        parts.append(_memory(f"{p}_beats", stream.tdata_width + 4, len(given), file))
        parts.append(_pause(stream, number, pauses))
        masked = stream.name in vectors.compared
        if masked:
            file = f"{facts.top}_{p}_mask.hex"
            words[file] = Beats(vectors.compared[stream.name])
            parts.append(_memory(f"{p}_mask", stream.tdata_width + 4, len(given), file))
        parts.append(
            _driver(stream, len(given)) if stream.is_input else _checker(stream, len(given), masked)
        )
    ports = [f".{facts.clock}(clk)", f".{facts.reset}(rst)"]
    ports += [f".{port}({port})" for stream in facts.streams for port in stream.ports]
    parts += map(_beside, facts.signals)
    ports += [f".{port.name}({port.name})" for port in facts.signals]
    found = [stream.prefix for stream in facts.outputs]
    done = " && ".join(f"{p}_found == {counts[p]}" for p in found)
    total = " + ".join(f"{p}_found" for p in found)
    busiest = max(1 / (1 - _share(stream, pauses)) for stream in facts.streams)
    # Far more clocks than any unit takes for as many beats.
    patience = 400 + int(64 * max(counts.values()) * busiest)
    text = f"""\
{_head(facts)}\
  localparam integer PATIENCE = {patience};  // clocks
  wire [10:0] stall = 11'd{round(1024 * pauses.stall)};  // of 1024 clocks, how many are pauses
  reg clk;
  reg rst;
  reg restart;
  reg compare;
  reg failed;
  integer clocks;
  initial clk = 1'b0;
  initial failed = 1'b0;
  always #1 clk = ~clk;
  function automatic [31:0] xorshift(input reg [31:0] state);
    begin
      xorshift = state ^ (state << 13);
      xorshift = xorshift ^ (xorshift >> 17);
      xorshift = xorshift ^ (xorshift << 5);
    end
  endfunction
{"".join(parts)}\
  {facts.top} unit (
    {f",{chr(10)}    ".join(ports)}
  );
  // All changes here come half a clock after the edge at which anything is looked at.
  initial begin
    restart = 1'b1;
    compare = 1'b0;
    rst = 1'b1;
    @(posedge clk);
    @(negedge clk);
    rst = 1'b0;
    restart = 1'b0;
    repeat ({pauses.before}) @(posedge clk);
    @(negedge clk);
    rst = 1'b1;
    restart = 1'b1;
    repeat ({pauses.reset}) @(posedge clk);
    @(negedge clk);
    rst = 1'b0;
    restart = 1'b0;
    compare = 1'b1;
    clocks = 0;
    while (!failed && !({done}) && clocks < PATIENCE) begin
      @(negedge clk);
      clocks = clocks + 1;
    end
    if (!failed && !({done}))
      $display("FAIL: beats are missing after %0d clocks", clocks);
    else begin
      repeat (64) @(negedge clk);
      if (!failed) $display("{PASSED}: %0d beats compared", {total});
    end
    $finish;
  end
endmodule
"""
    return text, words


def _share(stream: Stream, pauses: Pauses) -> float:
    """Return the share of clocks in which a stream pauses."""
    pattern = pauses.patterns.get(stream.prefix)
    return pauses.stall if pattern is None else pattern.count("1") / len(pattern)
