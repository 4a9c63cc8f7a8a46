"""What testbenches argue that wires never are: the regression watches them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from m2xfp.facts import EmittedFiles, Facts, Port
from m2xfp.results import read_figures
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.mutants.arguments import instances
from m2xfp.synth.mutants.netlist import run_yosys
from m2xfp.tb.arguments import Never
from m2xfp.tb.bench import Cover, find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.regression import check_case

# What the table of mutants is of: a regression of seconds.
ROWS = read_figures(Path(__file__).parents[2] / "docs" / "results" / "mutants.json")["rows"]
CONFIGS = [row["config"] for row in ROWS if row["unit"] == "accelerator"]
WATCH = "never"


def watched(files: EmittedFiles, nevers: list[Never], folder: Path) -> tuple[EmittedFiles, int]:
    """Return a unit with an output that has a bit for each never of each instance, and how many.

    A bit stays high once what it watches was seen in a clock that ends without reset.
    """
    script = [f"read_verilog {files.verilog.name}", f"hierarchy -top {files.top}", "proc"]
    run_yosys(folder, "flat", "\n".join([*script, "flatten", "write_json flat.json", ""]))
    (module,) = json.loads((folder / "flat.json").read_text())["modules"].values()
    nets: Mapping[str, Any] = module["netnames"]
    facts = Facts.load(files.json)
    parts, bits = list[str](), list[str]()
    for never in nevers:
        for path in instances(nets, never):
            number = len(bits)
            widths = {
                name: len(nets[f"{path}.{wire}"]["bits"]) for name, wire in never.reads.items()
            }
            parts.append(never.module(widths).replace("module never(", f"module never_{number}("))
            pins = ", ".join(f".{name}(whole.{path}.{wire})" for name, wire in never.reads.items())
            bits.append(f"  never_{number} watch_{number}({pins}, .holds(seen[{number}]));")
    ports = [
        f"{port['direction']} [{len(port['bits']) - 1}:0] {name}"
        for name, port in module["ports"].items()
    ]
    top = f"{files.top}_watched"
    text = [
        *parts,
        f"module {top}({', '.join(ports)}, output reg [{len(bits) - 1}:0] {WATCH});",
        f"  wire [{len(bits) - 1}:0] seen;",
        f"  {files.top} whole({', '.join(f'.{name}({name})' for name in module['ports'])});",
        *bits,
        f"  always @(posedge {facts.clock}) {WATCH} <= {facts.reset} ? 0 : {WATCH} | seen;",
        "endmodule",
    ]
    verilog, given = folder / "watched.v", folder / "watched.json"
    verilog.write_text("\n".join([files.verilog.read_text(), *text, ""]))
    signals = (*facts.signals, Port(WATCH, "output", len(bits)))
    given.write_text(replace(facts, top=top, signals=signals).to_json())
    return replace(files, top=top, verilog=verilog, json=given), len(bits)


@pytest.mark.parametrize("config", CONFIGS)
def test_nevers_of_the_accelerator(config: str, tmp_path: Path, sim_dir: Path) -> None:
    """None is seen in any case of the regression; what does happen is."""
    unit = find_unit("accelerator")
    instance = unit.labelled(config)
    nevers = [each for each in Cover(unit).argued(instance.facts) if isinstance(each, Never)]
    assert len(nevers) > 10
    happens = Never(
        "unit[.]acts_fetcher", {"valid": "job__valid"}, "assign holds = valid;", "it has jobs"
    )
    files, bits = watched(emit(instance, tmp_path), [*nevers, happens], tmp_path)
    simulator = BulkSimulator(files, build_dir=sim_dir)
    found = 0
    for case in find_bench(unit).regression(instance.facts):
        for run in check_case(simulator, case):
            found |= run.signals[WATCH]
    assert found == 1 << bits - 1
