"""A second simulator: test vectors through the emitted Verilog in Icarus, with four-state values.

What is unknown stays unknown there: registers before reset, TDATA and TLAST of a stream that offers
nothing. A result that depends on any of it is x and so differs from what was expected. Before the
vectors, the unit gets other traffic and is reset in the midst of it for a single clock. An
``if`` of an unknown bit takes its else, so a unit is better played with random registers too.
"""

import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from m2xfp.errors import MissingToolError
from m2xfp.facts import EmittedFiles, Facts, Stream
from m2xfp.processes import run
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["FourStateError", "run_four_state"]


class FourStateError(AssertionError):
    """A beat differs, is unknown or did not come; the text says which."""


def run_four_state(
    emitted: EmittedFiles,
    vectors: TestVectors,
    folder: Path,
    *,
    seed: int = 0,
    stall: float = 0.3,
    clocks_before: int = 40,
    reset_clocks: int = 1,
    random_registers: bool = False,
) -> int:
    """Play vectors in Icarus Verilog and return the number of beats that were compared.

    Parameters
    ----------
    emitted
        The unit.
    vectors
        Beats that go in, and those that must come out.
    folder
        For everything that is written.
    seed
        Of the pauses.
    stall
        Probability that a stream pauses in a clock.
    clocks_before
        Clocks of traffic, the first of the beats, before the reset that the vectors follow. None of
        what comes out then is compared.
    reset_clocks
        Clocks that the reset lasts.
    random_registers
        Let registers and memories begin with random values; else they are unknown.

    Raises
    ------
    FourStateError
        A difference, an unknown bit, a missing or an extra beat.
    MissingToolError
        Icarus Verilog is not installed.
    """
    for tool in ("iverilog", "vvp"):
        if shutil.which(tool) is None:
            raise MissingToolError(f"{tool} (Icarus Verilog)", "apt-get install iverilog")
    facts = Facts.load(emitted.json)
    folder.mkdir(parents=True, exist_ok=True)
    for stream in facts.streams:
        given = vectors.inputs if stream.is_input else vectors.outputs
        (folder / f"{stream.prefix}.hex").write_text(_hex(given[stream.name]))
    if facts.streams:
        bench = _bench(facts, vectors, seed, stall, clocks_before, reset_clocks)
    else:
        bench = _port_bench(facts, vectors, folder)
    (folder / "bench.v").write_text(bench)
    text = emitted.verilog.read_text()
    (folder / "unit.v").write_text(_started(text, seed) if random_registers else text)
    for command in (
        ["iverilog", "-g2005", "-o", "bench.vvp", "-s", "bench", "bench.v", "unit.v"],
        ["vvp", "-n", "bench.vvp"],
    ):
        done = run(command, cwd=folder)
        if done.returncode:
            raise FourStateError(f"{facts.top}: {command[0]} failed\n{done.stdout}")
    if "equal\n" not in done.stdout:
        raise FourStateError(f"{facts.top}: {done.stdout.strip() or 'no answer'}")
    return sum(map(len, vectors.outputs.values()))


_REGISTER = re.compile(
    r" *(?:output )?reg +(?:\[(?P<high>\d+):0\] +)?(?P<name>\w+)(?: *\[(?P<last>\d+):0\])?[;,)]?$"
)


def _started(verilog: str, seed: int) -> str:
    """Return Verilog as it is emitted, with an initial value for every register and memory."""
    chosen, lines, starts = random.Random(seed), [], []
    for line in verilog.splitlines():
        if found := _REGISTER.match(line):
            bits, last = int(found["high"] or 0) + 1, found["last"]
            for place in [""] if last is None else [f"[{n}]" for n in range(int(last) + 1)]:
                value = f"{bits}'h{chosen.getrandbits(bits):x}"
                starts.append(f"    {found['name']}{place} = {value};")
        if line == "endmodule" and starts:
            lines += ["  initial begin", *starts, "  end"]
            starts = []
        lines.append(line)
    return "\n".join([*lines, ""])


def _port_bench(facts: Facts, vectors: TestVectors, folder: Path) -> str:
    """Return the testbench of a unit without streams: all ports' words, one after the other.

    Between two words the inputs are unknown.
    """
    count = len(next(iter(vectors.outputs.values())))
    loads, drives, checks = [], [], []
    for port in facts.signals:
        given = (vectors.inputs if port.is_input else vectors.outputs)[port.name]
        rows = {port.name: given.data}
        if not port.is_input:
            mask = vectors.compared.get(port.name, np.full_like(given.data, 0xFF))
            rows[f"{port.name}_mask"] = mask
        for name, words in rows.items():
            (folder / f"{name}.hex").write_text(_hex(Beats(words)))
            loads.append(f"  reg [{8 * port.bytes + 3}:0] {name}_words [0:{count - 1}];")
            loads.append(f'  initial $readmemh("{name}.hex", {name}_words);')
        kind, width = ("reg", "wire")[not port.is_input], port.width
        loads.append(f"  {kind} [{width - 1}:0] {port.name};")
        if port.is_input:
            drives.append((port.name, width))
        else:
            wanted, bits = (
                f"{name}_words[at][{width - 1}:0]" for name in (port.name, f"{port.name}_mask")
            )
            checks.append(
                f"      if (({port.name} & {bits}) !== ({wanted} & {bits})) begin\n"
                f'        $display("{port.name}: word %0d is %h, expected %h", at, {port.name}, '
                f"{wanted});\n        $finish(0);\n      end"
            )
    ports = ", ".join(f".{port.name}({port.name})" for port in facts.signals)
    unknown = " ".join(f"{name} = {width}'bx;" for name, width in drives)
    given_all = " ".join(f"{name} = {name}_words[at][{width - 1}:0];" for name, width in drives)
    return "\n".join(
        [
            "`timescale 1ns/1ns",
            "module bench;",
            "  integer at;",
            *loads,
            f"  {facts.top} unit ({ports});",
            "  initial begin",
            f"    for (at = 0; at < {count}; at = at + 1) begin",
            f"      {unknown} #1 {given_all} #1",
            *checks,
            "    end",
            '    $display("equal");',
            "    $finish(0);",
            "  end",
            "endmodule",
            "",
        ]
    )


def _hex(beats: Beats) -> str:
    """Return beats as words {last, data} in hexadecimal, for $readmemh."""
    last = np.zeros(len(beats), bool) if beats.last is None else beats.last
    return "".join(
        f"{int(end):x}{row[::-1].tobytes().hex()}\n"
        for row, end in zip(beats.data, last, strict=True)
    )


def _driver(stream: Stream, count: int, threshold: int) -> str:
    """Return the Verilog that offers the beats of an input: x while it offers nothing."""
    p, width = stream.prefix, stream.tdata_width
    return f"""
  reg [{width + 3}:0] {p}_beats [0:{count - 1}];
  initial $readmemh("{p}.hex", {p}_beats);
  integer {p}_sent;
  reg {p}_tvalid;
  wire {p}_tready;
  wire [{width - 1}:0] {p}_tdata = {p}_tvalid ? {p}_beats[{p}_sent][{width - 1}:0] : {width}'bx;
  wire {p}_tlast = {p}_tvalid ? {p}_beats[{p}_sent][{width}] : 1'bx;
  always @(posedge clk) begin
    if (restart) begin {p}_sent <= 0; {p}_tvalid <= 0; end
    else begin
      if ({p}_tvalid && {p}_tready === 1) {p}_sent <= {p}_sent + 1;
      if (!{p}_tvalid || {p}_tready === 1)
        {p}_tvalid <= {p}_sent + {p}_tvalid < {count} && $urandom(seed) % 1000 >= {threshold};
    end
  end
"""


def _checker(stream: Stream, count: int, threshold: int) -> str:
    """Return the Verilog that takes the beats of an output and compares them."""
    p, width = stream.prefix, stream.tdata_width
    return f"""
  reg [{width + 3}:0] {p}_beats [0:{max(count, 1) - 1}];
  initial $readmemh("{p}.hex", {p}_beats);
  integer {p}_found;
  reg {p}_tready;
  wire {p}_tvalid, {p}_tlast;
  wire [{width - 1}:0] {p}_tdata;
  always @(posedge clk) begin
    {p}_tready <= $urandom(seed) % 1000 >= {threshold};
    if (restart) {p}_found <= 0;
    else if (compare) begin
      if ({p}_tvalid !== 0 && {p}_tvalid !== 1) fail("{p}: tvalid is unknown", {p}_found);
      if ({p}_tvalid === 1 && {p}_tready) begin
        if ({p}_found >= {count}) fail("{p}: more beats than expected", {p}_found);
        else if ({{{p}_tlast, {p}_tdata}} !== {p}_beats[{p}_found][{width}:0]) begin
          $display("{p}: beat %0d is %h, expected %h", {p}_found, {{{p}_tlast, {p}_tdata}},
                   {p}_beats[{p}_found][{width}:0]);
          $finish(0);
        end
        {p}_found <= {p}_found + 1;
      end
    end
  end
"""


def _bench(
    facts: Facts,
    vectors: TestVectors,
    seed: int,
    stall: float,
    clocks_before: int,
    reset_clocks: int,
) -> str:
    """Return the testbench."""
    counts: Mapping[str, int] = {
        name: len(beats) for name, beats in (*vectors.inputs.items(), *vectors.outputs.items())
    }
    threshold = round(1000 * stall)
    parts = [
        (_driver if stream.is_input else _checker)(stream, counts[stream.name], threshold)
        for stream in facts.streams
    ]
    ports = [f".{facts.clock}(clk)", f".{facts.reset}(rst)"]
    ports += [f".{port}({port})" for stream in facts.streams for port in stream.ports]
    done = " && ".join(f"{x.prefix}_found == {counts[x.name]}" for x in facts.outputs)
    patience = 400 + int(64 * max(counts.values()) / (1 - stall))
    start = random.Random(seed).getrandbits(31)
    return f"""`timescale 1ns/1ns
module bench;
  reg clk = 0, rst = 0, restart = 1, compare = 0;
  integer seed = {start};
  always #1 clk = ~clk;
  task fail(input [8*80-1:0] text, input integer beat);
    begin
      $display("%0s, beat %0d", text, beat);
      $finish(0);
    end
  endtask
{"".join(parts)}
  {facts.top} unit ({", ".join(ports)});
  integer clocks;
  initial begin
    rst = 1;
    @(posedge clk); #1 rst = 0; restart = 0;
    repeat ({clocks_before}) @(posedge clk);
    #1 rst = 1; restart = 1;
    repeat ({reset_clocks}) @(posedge clk);
    #1 rst = 0; restart = 0; compare = 1;
    clocks = 0;
    while (!({done}) && clocks < {patience}) begin
      @(posedge clk); #1 clocks = clocks + 1;
    end
    repeat (64) @(posedge clk);
    if ({done}) $display("equal");
    else $display("beats are missing after %0d clocks", clocks);
    $finish(0);
  end
endmodule
"""
