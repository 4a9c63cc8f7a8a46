"""Area and path of units with memories: logic by module, memories by `sram.py`'s model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.progress import track
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.timing import time_netlist
from m2xfp.synth.flow.yosys import BUILD, FlowOptions, SynthesisError, synthesize
from m2xfp.synth.studies.sram import SRAMS
from m2xfp.tables import aligned_table

__all__ = ["CONFIGS", "Cut", "area_table", "measure_area", "measure_units", "memories_cut"]

CONFIGS = ("m2xfp-2x2", "m2xfp-1x32")

_MODULE = re.compile(r"^module (\w+)\b.*?^endmodule$", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"\b(input|output)\s+(?:wire\b|reg\b)?\s*(?:\[(\d+):0\])?\s*(\w+)")
_MEMORY = re.compile(r"^  reg \[(\d+):0\] \w+ \[0:(\d+)\];$", re.MULTILINE)


@dataclass(frozen=True)
class Cut:
    """A module that was a memory.

    Members
    -------
    bits
        What it held.
    flops
        Flip-flops that stand for it.
    """

    bits: int
    flops: int


def memories_cut(text: str) -> tuple[str, dict[str, Cut]]:
    """Return Verilog whose memories hold nothing, and the modules that were memories.

    A module with an array of words gives the word that was written a clock before: so nothing
    behind it is a constant, and all around it stays. What goes in ends in flip-flops of its own:
    so paths begin and end at a memory as they do at these.
    """
    cut: dict[str, Cut] = {}

    def without(found: re.Match[str]) -> str:
        module, name = found[0], found[1]
        memory = _MEMORY.search(module)
        if memory is None:
            return module
        head = module[: module.index(");") + 2]
        ports = {(way, port): int(high or 0) + 1 for way, high, port in _PORT.findall(head)}
        others = [
            port
            for way, port in ports
            if way == "input" and port not in ("clk", "rst", "write_data")
        ]
        (read,) = (port for way, port in ports if way == "output")
        words = ports["output", read]
        width = words + sum(ports["input", port] for port in others)
        cut[name] = Cut((int(memory[1]) + 1) * (int(memory[2]) + 1), width)
        head = re.sub(r"\boutput reg\b", "output", head)
        body = (
            f"  (* keep *) reg [{width - 1}:0] given;\n"
            f"  assign {read} = given[{words - 1}:0];\n"
            f"  always @(posedge clk) given <= {{{', '.join((*others, 'write_data'))}}};\n"
        )
        return f"{head}\n{body}endmodule"

    return _MODULE.sub(without, text), cut


def _instances(text: str, top: str, wanted: Mapping[str, int]) -> int:
    """Return the sum of what is wanted of modules, over all instances below a module."""
    bodies = {found[1]: found[0] for found in _MODULE.finditer(text)}
    names = set(bodies)
    below = {
        name: [kind for kind in re.findall(r"^  (\w+) \w+ \(", body, re.MULTILINE) if kind in names]
        for name, body in bodies.items()
    }

    def count(name: str) -> int:
        return wanted.get(name, 0) + sum(count(kind) for kind in below[name])

    return count(top)


def measure_area(pdk: Pdk, configs: Sequence[str] = CONFIGS, build: Path = BUILD) -> dict[str, Any]:
    """Map configurations of the accelerator, without their memories; return their figures."""
    instances = [find_unit("accelerator").instance(name) for name in configs]
    figures = measure_units(instances, pdk, build)
    if any(not row["memory_bits"] for row in figures["rows"]):
        raise SynthesisError("accelerator: no memory was found, and there are some")
    return figures


def measure_units(instances: Sequence[Instance], pdk: Pdk, build: Path = BUILD) -> dict[str, Any]:
    """Map units without their memories; return their figures.

    Raises
    ------
    InputError
        There is no model of memories for the library.
    """
    if pdk.name not in SRAMS:
        raise InputError(
            f"library {pdk.name}: no published memory to model others by; take one of: "
            f"{', '.join(SRAMS)}"
        )
    rows = []
    for instance in track(list(instances), desc="synthesis", unit="configuration"):
        files = emit(instance, build / "accelerator-area")
        whole = files.verilog.read_text()
        text, cut = memories_cut(whole)
        source = build / "accelerator-area" / f"{files.top}_without_memories.v"
        source.write_text(text)
        netlist = synthesize(source, files.top, pdk, FlowOptions(flatten=False), build)
        timing = time_netlist(netlist, pdk, build)
        modules = {name: area for name, area in netlist.module_area_um2.items() if name not in cut}
        memory = _instances(whole, files.top, {name: each.bits for name, each in cut.items()})
        stand_in = _instances(whole, files.top, {name: each.flops for name, each in cut.items()})
        largest = sorted(modules.items(), key=lambda item: -item[1])
        rows.append(
            {
                "config": instance.config,
                "logic_um2": round(sum(modules.values()), 1),
                "flops": netlist.flops - stand_in,
                "path_ns": timing.critical_path_ns,
                "path": [timing.start, timing.end],
                "memory_bits": memory,
                "memory_um2_model": round(SRAMS[pdk.name].area(1) * memory / 8, 1),
                "modules": dict(largest[:12]),
            }
        )
    return {"pdk": pdk.name, "pdk_title": pdk.title, "rows": rows}


def area_table(figures: Mapping[str, Any]) -> str:
    """Return the areas as markdown; those of memories are a model."""
    model = SRAMS[figures["pdk"]]
    table: list[tuple[str, ...]] = [
        (
            *("configuration", "logic um2", "flip-flops", "path ns", "from", "to"),
            *("memories KB", "memories um2, model"),
        )
    ]
    for row in figures["rows"]:
        table.append(
            (
                row["config"],
                f"{row['logic_um2']:.0f}",
                str(row["flops"]),
                f"{row['path_ns']:.3f}",
                *(f"`{end}`" for end in row["path"]),
                f"{row['memory_bits'] / 8192:.1f}",
                f"{row['memory_um2_model']:.0f}",
            )
        )
    return (
        f"{figures['pdk_title']}, module by module. Memories are not mapped: "
        f"{model.area_um2 / model.bits:.4g} um2 a bit, {model.what} ({model.source}).\n\n"
        f"{aligned_table(table)}"
    )
