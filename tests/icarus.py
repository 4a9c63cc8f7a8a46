"""Random runs of a mapped netlist, here and in Icarus Verilog with the same stimulus."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2xfp.synth.gate_sim.simulator import ALL, ONE, LevelizedNetlist

__all__ = ["VENDOR", "Icarus", "random_run", "run_icarus"]

VENDOR = Path("/usr/share/qflow/tech/osu018/osu018_stdcells.v")


def random_run(gates: LevelizedNetlist, clocks: int, seed: int):
    """Drive every input of 64 lanes with random bits; reset in the first four clocks."""
    rng = np.random.default_rng(seed)
    values = np.zeros((gates.nets, 1), np.uint64)
    values[ONE] = ALL
    states = {
        kind: rng.integers(0, 1 << 64, (len(batch), 1), np.uint64)
        for kind, batch in gates.batches.items()
        if batch.cell.is_flop
    }
    gates.set_flops(values, states)
    history = []
    for clock in range(clocks):
        for name in gates.inputs:
            if name != "clk":
                size = (len(gates.ports[name]), 1)
                values[gates.ports[name]] = rng.integers(0, 1 << 64, size, np.uint64)
        values[gates.ports["rst"]] = ALL if clock < 4 else 0
        gates.settle(values)
        history.append(values.copy())
        states = gates.next_states(values, states)
        gates.set_flops(values, states)
    return np.array(history)


def vcd_toggles(path: Path) -> dict[str, int]:
    """Count the changes of each bit of each variable after the first dump of values."""
    names: dict[str, tuple[str, int, int]] = {}
    values: dict[str, str] = {}
    counts: dict[str, int] = {}
    for line in path.read_text().splitlines():
        if found := re.match(r"\s*\$var \w+ +(\d+) (\S+) (\S+)(?: \[(\d+):(\d+)\])? \$end", line):
            width, code, name, _, low = found.groups()
            names.setdefault(code, (name.lstrip("\\"), int(width), int(low or 0)))
        elif found := re.match(r"(?:b(\w+) |([01]))(\S+)$", line):
            vector, bit, code = found.groups()
            name, width, low = names[code]
            text = (vector or bit).zfill(width)
            before = values.get(code)
            values[code] = text
            for index in range(width):
                key = name if width == 1 else f"{name}[{low + index}]"
                changed = before is not None and before[-1 - index] != text[-1 - index]
                counts[key] = counts.get(key, 0) + changed
    return counts


def bench_text(gates: LevelizedNetlist, top: str, clocks: int, warm: int, delay: int) -> str:
    """Return a testbench that drives every input from a file and dumps from clock ``warm`` on.

    Inputs change ``delay`` after the clock edge, as flip-flops must, so that every net settles once
    a clock. Prints the outputs when the clock falls.
    """
    inputs = [name for name in gates.inputs if name != "clk"]
    vector = "{" + ", ".join(reversed(inputs)) + "}"
    declared = [f"reg [{len(gates.ports[n]) - 1}:0] {n};" for n in inputs]
    declared += [f"wire [{len(gates.ports[n]) - 1}:0] {n};" for n in gates.outputs]
    ports = ", ".join(f".{n}({n})" for n in (*inputs, "clk", *gates.outputs))
    outputs = "{" + ", ".join(reversed(gates.outputs)) + "}"
    width = sum(len(gates.ports[n]) for n in inputs)
    return f"""
module bench;
  reg clk = 0; integer i = 0;
  reg [{width - 1}:0] stimulus [0:{clocks - 1}];
  {" ".join(declared)}
  {top} dut ({ports});
  always @(posedge clk) begin {vector} <= #{delay} stimulus[i + 1]; i <= i + 1; end
  always @(negedge clk) $display("%b", {outputs});
  initial begin
    $readmemh("stimulus.hex", stimulus);
    {vector} = stimulus[0];
    while (i < {clocks - 1}) begin
      if (i == {warm}) begin $dumpfile("run.vcd"); $dumpvars(1, dut); end
      #5 clk = 1; #5 clk = 0;
    end
    #5 $finish;
  end
endmodule
"""


@dataclass(frozen=True)
class Icarus:
    """What Icarus Verilog saw.

    Members
    -------
    outputs
        All output bits in each clock from the second on, highest bit of the last port first.
    toggles
        Changes of each bit by name from clock ``warm`` on.
    """

    outputs: list[str]
    toggles: dict[str, int]


def run_icarus(
    gates: LevelizedNetlist,
    history: np.ndarray,
    top: str,
    sources: Sequence[Path],
    folder: Path,
    *,
    warm: int,
    delay: int = 0,
) -> Icarus:
    """Give the inputs that lane 0 of ``history`` had to a module with the netlist's ports."""
    assert shutil.which("iverilog"), "apt-get install iverilog"
    nets = np.concatenate([gates.ports[name] for name in gates.inputs if name != "clk"])
    bits = (history[:, nets, 0] & np.uint64(1)).astype(int)
    rows = ("".join(map(str, row[::-1])) for row in bits)
    (folder / "stimulus.hex").write_text("".join(f"{int(row, 2):x}\n" for row in rows))
    (folder / "bench.v").write_text(bench_text(gates, top, len(history), warm, delay))
    files = ["bench.v", *map(str, sources)]
    subprocess.run(["iverilog", "-o", "bench", *files], cwd=folder, check=True, capture_output=True)
    done = subprocess.run(["vvp", "bench"], cwd=folder, check=True, capture_output=True, text=True)
    outputs = re.findall(r"^[01xz]+$", done.stdout, re.MULTILINE)
    return Icarus(outputs, vcd_toggles(folder / "run.vcd"))
