"""Area of units with memories: logic mapped module by module, memories by `sram.py`'s model."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.progress import track
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import BUILD, FlowOptions, SynthesisError, synthesize
from m2xfp.synth.studies.sram import SRAMS
from m2xfp.tables import aligned_table

__all__ = ["CONFIGS", "area_table", "measure_area", "measure_units", "memories_cut"]

CONFIGS = ("m2xfp-2x2", "m2xfp-1x32")

_MODULE = re.compile(r"^module (\w+)\b.*?^endmodule$", re.MULTILINE | re.DOTALL)
_MEMORY = re.compile(r"^  reg \[(\d+):0\] \w+ \[0:(\d+)\];$", re.MULTILINE)


def memories_cut(text: str) -> tuple[str, dict[str, int]]:
    """Return Verilog whose memories hold nothing, and the bits of each module that is a memory.

    A module with an array of words gives constants instead: what is mapped of it is nothing, and
    all around it stays.
    """
    bits: dict[str, int] = {}

    def cut(found: re.Match[str]) -> str:
        module, name = found[0], found[1]
        memory = _MEMORY.search(module)
        if memory is None:
            return module
        width, depth = int(memory[1]) + 1, int(memory[2]) + 1
        bits[name] = width * depth
        head = module[: module.index(");") + 2]
        ports = re.findall(r"output\s+(?:wire\b|reg\b)?\s*(?:\[\d+:\d+\])?\s*(\w+)", head)
        head = re.sub(r"\boutput reg\b", "output", head)
        # A word that was written and comes out at once: nothing behind it is a constant.
        body = "".join(f"  assign {port} = write_data;\n" for port in ports)
        return f"{head}\n{body}endmodule"

    return _MODULE.sub(cut, text), bits


def _instances(text: str, top: str, wanted: Mapping[str, int]) -> int:
    """Return the bits of all memories below a module."""
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
        text, bits = memories_cut(files.verilog.read_text())
        source = build / "accelerator-area" / f"{files.top}_without_memories.v"
        source.write_text(text)
        netlist = synthesize(source, files.top, pdk, FlowOptions(flatten=False), build)
        logic = sum(area for name, area in netlist.module_area_um2.items() if name not in bits)
        memory = _instances(files.verilog.read_text(), files.top, bits)
        rows.append(
            {
                "config": instance.config,
                "logic_um2": round(logic, 1),
                "flops": netlist.flops,
                "memory_bits": memory,
                "memory_um2_model": round(SRAMS[pdk.name].area(1) * memory / 8, 1),
                "modules": {
                    name: area
                    for name, area in sorted(
                        netlist.module_area_um2.items(), key=lambda item: -item[1]
                    )[:12]
                    if name not in bits
                },
            }
        )
    return {"pdk": pdk.name, "pdk_title": pdk.title, "rows": rows}


def area_table(figures: Mapping[str, Any]) -> str:
    """Return the areas as markdown; those of memories are a model."""
    model = SRAMS[figures["pdk"]]
    table: list[tuple[str, ...]] = [
        ("configuration", "logic um2", "flip-flops", "memories KB", "memories um2, model")
    ]
    for row in figures["rows"]:
        table.append(
            (
                row["config"],
                f"{row['logic_um2']:.0f}",
                str(row["flops"]),
                f"{row['memory_bits'] / 8192:.1f}",
                f"{row['memory_um2_model']:.0f}",
            )
        )
    return (
        f"{figures['pdk_title']}, module by module. Memories are not mapped: "
        f"{model.area_um2 / model.bits:.4g} um2 a bit, {model.what} ({model.source}).\n\n"
        f"{aligned_table(table)}"
    )
