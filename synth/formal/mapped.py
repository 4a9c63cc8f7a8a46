"""A unit in library cells against its Verilog, by what the library says that its cells do.

Both are cut at their flip-flops, whose contents become inputs and whose next contents become
outputs; which is which, synthesis tells by the names of the flip-flops' cells. Equal outputs and
equal next contents in every state, for any inputs, is what is proved.
"""

import json
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from m2xfp.synth.flow.pdk import DEFAULT_PDK, find_pdk
from m2xfp.synth.flow.yosys import synthesize
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, never
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import Bit, Flat, ProofError, run_yosys, wires

__all__ = ["JOBS"]

# Bits of state of the units that are compared: what SAT takes minutes for, at most.
MOST = 1100
_FLIP_FLOP = "$_DFF_P_"
# Of a flip-flop of the netlist: the register's name and bit before the kind that synthesis gave it.
_CELL = re.compile(r"\$flatten\\(.*)\$_[A-Z]*DFF[A-Z]*_[A-Z0-9]*_\.")


@dataclass(frozen=True)
class _Side:
    """Gates, with the flip-flop's cell by the name of each register bit."""

    flat: Flat
    registers: dict[str, str]


def _gates(folder: Path, reads: list[str], top: str) -> Flat:
    script = [
        *reads,
        f"hierarchy -check -top {top}",
        "proc\nflatten\nmemory_map\nopt_expr\nsimplemap\ntechmap\nopt_expr",
        # Registers that only ever take one value are that value, as in synthesis.
        "opt_dff\nopt_expr\nopt_dff\nopt_expr\ndffunmap\nopt_expr",
        "setattr -unset init w:*\nopt_clean\nwrite_json out.json",
    ]
    run_yosys(folder, "\n".join(script))
    return Flat(top, json.loads((folder / "out.json").read_text())["modules"][top])


def _netlist(design: Design) -> _Side:
    """Return a unit in library cells."""
    pdk, top = find_pdk(DEFAULT_PDK), design.facts.top
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.v").write_text(design.verilog)
        netlist = synthesize(folder / "in.v", top, pdk, build=folder.absolute())
        (folder / "netlist.v").write_text(netlist.verilog.read_text())
        reads = []
        for number, path in enumerate(pdk.liberty):
            (folder / f"{number}.lib").write_bytes(path.read_bytes())
            reads.append(f"read_liberty -ignore_miss_func {number}.lib")
        flat = _gates(folder, [*reads, "read_verilog netlist.v"], top)
    found = {}
    for cell, facts in flat.module["cells"].items():
        if facts["type"] == _FLIP_FLOP:
            match = _CELL.match(cell)
            if match is None:
                raise ProofError(f"{cell}: no register of the Verilog is known for it")
            found[match[1]] = cell
    return _Side(flat, found)


def _text(design: Design) -> _Side:
    """Return a unit's Verilog, or what a fault has made of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.json").write_text(design.module().text)
        flat = _gates(folder, ["read_json in.json"], design.facts.top)
    driven = {
        facts["connections"]["Q"][0]: cell
        for cell, facts in flat.module["cells"].items()
        if facts["type"] == _FLIP_FLOP
    }
    found = {}
    for name, wire in flat.module["netnames"].items():
        for n, bit in enumerate(wire["bits"]):
            if bit in driven:
                found[f"{name}[{n}]"] = driven[bit]
                if len(wire["bits"]) == 1:
                    found[name] = driven[bit]
    return _Side(flat, found)


def _cut(side: _Side, names: list[str]) -> Flat:
    """Return a side without flip-flops: ``state`` and ``next`` in the order of names.

    Flip-flops that are none of these have contents of their own, ``rest``.
    """
    cells: dict[str, Any] = dict(side.flat.module["cells"])
    state: list[Bit] = []
    following: list[Bit] = []
    for name in names:
        pins = cells.pop(side.registers[name])["connections"]
        state += pins["Q"]
        following += pins["D"]
    others = [name for name, cell in cells.items() if cell["type"] == _FLIP_FLOP]
    rest = [bit for name in others for bit in cells.pop(name)["connections"]["Q"]]
    ports = {
        **side.flat.module["ports"],
        "state": {"direction": "input", "bits": state},
        "next": {"direction": "output", "bits": following},
        "rest": {"direction": "input", "bits": rest or [1 + max(wires(side.flat))]},
    }
    return Flat(side.flat.top, {"attributes": {}, "ports": ports, "cells": cells, "netnames": {}})


def _harness(text: Flat, cells: Flat) -> str:
    """Return Verilog: ``bad`` where an output of the two differs."""
    ports, lines = text.module["ports"], []
    given, outputs = [], []
    for name, port in ports.items():
        shape = f"[{len(port['bits']) - 1}:0] {name}"
        if port["direction"] == "input":
            given.append(f"input {shape}")
        else:
            outputs.append(name)
            lines.append(f"  wire {shape}, {name}_mapped;")
    pins = [f".{name}({name})" for name in ports]
    mapped = [
        f".{name}({name}_mapped)" if name in outputs else f".{name}({name})" for name in ports
    ]
    mapped = [pin for pin in mapped if not pin.startswith(".rest(")] + [
        f".rest({{{len(cells.ports['rest'])}{{1'b0}}}})"
    ]
    bad = " | ".join(f"({name} != {name}_mapped)" for name in outputs)
    return "\n".join(
        [
            f"module harness({', '.join(given)}, output bad);",
            *lines,
            f"  {text.top} text ({', '.join(pins)});",
            f"  mapped cells ({', '.join(mapped)});",
            f"  assign bad = {bad};",
            "endmodule",
            "",
        ]
    )


def _mapped(design: Design) -> Outcome:
    """Compare a unit with its cells."""
    begin = time.perf_counter()
    netlist, text = _netlist(replace(design, broken=None)), _text(design)
    names = sorted(netlist.registers)
    if missing := [name for name in names if name not in text.registers]:
        raise ProofError(f"{missing[0]}: a register of the netlist that the Verilog does not have")
    cells, gates = _cut(netlist, names), _cut(text, names)
    outcome = never(gates.text_with({"mapped": cells.module}), _harness(gates, cells), LIMIT)
    depth = f"{len(names)} registers" if names and outcome.holds else outcome.depth
    return Outcome(outcome.holds, depth, time.perf_counter() - begin)


def _state(design: Design) -> int:
    """Return how many bits of state a unit has."""
    cells = design.module().module["cells"].values()
    return sum(len(cell["connections"]["Q"]) for cell in cells if "dff" in cell["type"])


def _memories(design: Design) -> bool:
    """Return whether a unit has memories, whose words synthesis names in its own way."""
    return any(cell["type"].startswith("$mem") for cell in design.module().module["cells"].values())


def _faults(design: Design) -> Iterator[Design]:
    return design.gate_faults("")


JOBS = (
    Job(
        "mapped",
        f"a unit in cells of {DEFAULT_PDK} is its Verilog: outputs and registers, in every state",
        "SAT sweeping",
        lambda design: _state(design) <= MOST and not _memories(design),
        _mapped,
        _faults,
        slow=lambda design: _state(design) > 0,
    ),
)
