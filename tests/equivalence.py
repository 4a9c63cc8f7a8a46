"""Proof by yosys that two netlists of the same modules do the same, register by register.

Each module is cut at what holds state: flip-flops, memories and instances of other modules give
their outputs to the logic as inputs of the module, and take its results as outputs. What is left is
combinational, and ``sat`` proves the outputs of both sides equal for all inputs, wherever the
first side is defined. With equal state before a clock edge, both then have equal state after it,
and equal outputs. Which register is which is a claim to start from: a wrong pair makes the proof
fail.
"""

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from m2xfp.synth.flow.yosys import yosys_command

__all__ = ["Netlist", "NotEqualError", "prove_equal", "read"]

# Flip-flops of one bit with enable and reset as logic, memories with the registers of their reads
# outside. What no output depends on goes and equal registers become one on both sides, as in the
# emission. No initial values: a chip has none.
_PREPARE = """
proc
setattr -unset init w:*
memory_nordff
memory_collect
opt_expr
opt_merge -share_all
opt_clean
opt_dff
opt_expr
opt_merge -share_all
opt_clean
wreduce
simplemap
dffunmap
opt_clean
"""
_FLIP_FLOP = "$_DFF_P_"
_MEMORY = "$mem_v2"
# Parameters of a memory that decide what it does if no read of it is clocked; the last tells that.
_OF_MEMORY = """
    ABITS OFFSET SIZE WIDTH RD_PORTS RD_WIDE_CONTINUATION WR_CLK_ENABLE WR_CLK_POLARITY WR_PORTS
    WR_PRIORITY_MASK WR_WIDE_CONTINUATION RD_CLK_ENABLE
""".split()
_OF_STATE = re.compile(r"dff|sr|latch|mem", re.IGNORECASE)

Module = dict[str, Any]
"""A module as yosys' write_json puts it."""

Netlist = dict[str, Module]


class NotEqualError(AssertionError):
    """Two modules differ, or may; the text says where."""


def _yosys(folder: Path, script: str) -> None:
    (folder / "run.ys").write_text(script)
    command, _ = yosys_command()
    done = subprocess.run(
        [*command, "run.ys"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotEqualError(done.stdout[-3000:] + done.stderr[-2000:])


def read(folder: Path, command: str, flatten: bool = False) -> Netlist:
    """Return the modules that a yosys command reads, as logic and the cells that hold state."""
    flat = "flatten\n" if flatten else ""
    _yosys(folder, f"{command}\nhierarchy -auto-top\nproc\n{flat}{_PREPARE}write_json read.json\n")
    modules: Netlist = json.loads((folder / "read.json").read_text())["modules"]
    return modules


def prove_equal(
    folder: Path, gold: Netlist, gate: Netlist, names: Callable[[str, str], str]
) -> None:
    """Prove each module of ``gold`` equal to the one of that name in ``gate``.

    ``names`` turns a module and a name in it, of either side, into one that both sides share.

    Raises
    ------
    NotEqualError
        A register, memory, instance or port has no counterpart, or a proof fails.
    """
    if gold.keys() != gate.keys():
        raise NotEqualError(f"modules {sorted(gold)} and {sorted(gate)}")
    logic: Netlist = {}
    script = ["read_json logic.json"]
    for number, module in enumerate(gold):
        pairs = _pairs(module, gold[module], gate[module], lambda raw, m=module: names(m, raw))
        logic[f"gold_{number}"] = _cut(gold, module, [cell for cell, _ in pairs])
        logic[f"gate_{number}"] = _cut(gate, module, [cell for _, cell in pairs])
        script += [
            f"log {module}",
            "miter -equiv -flatten -make_assert -ignore_gold_x "
            f"gold_{number} gate_{number} both_{number}",
            f"select both_{number}",
            "opt_merge",
            "opt_clean",
            f"sat -verify -prove-asserts -set-def-inputs both_{number}",
            "select -clear",
        ]
    (folder / "logic.json").write_text(json.dumps({"modules": logic}))
    _yosys(folder, "\n".join(script) + "\n")


def _pairs(
    where: str, gold: Module, gate: Module, name: Callable[[str], str]
) -> list[tuple[str, str]]:
    """Return the cells that hold state in both modules, as pairs that share a name and a kind."""
    owners = defaultdict(set)
    cells_of_gate = _named_cells(gate, name)
    for cell, known_as in cells_of_gate.items():
        for key in known_as:
            owners[key].add(cell)
    pairs = []
    for cell, known_as in _named_cells(gold, name).items():
        same = set().union(*(owners[key] for key in known_as))
        if len(same) != 1:
            raise NotEqualError(f"{where}: {sorted(known_as)} has {len(same)} counterparts")
        pairs.append((cell, *same))
    if len({other for _, other in pairs}) != len(cells_of_gate) or len(pairs) != len(cells_of_gate):
        raise NotEqualError(f"{where}: {len(pairs)} for {len(cells_of_gate)}")
    return pairs


def _named_cells(module: Module, name: Callable[[str], str]) -> dict[str, set[tuple[str, ...]]]:
    """Return the cells that hold state by their name, each with all it is known as.

    A flip-flop is a bit of every wire that it drives, a memory has the name of its array.
    """
    cells: dict[str, set[tuple[str, ...]]] = {}
    driver = {}
    for cell, facts in module["cells"].items():
        kind = facts["type"]
        if kind == _FLIP_FLOP:
            cells[cell] = set()
            driver[facts["connections"]["Q"][0]] = cell
        elif kind == _MEMORY:
            facts = facts["parameters"]
            # No contents and zeros, Amaranth's default, are the same.
            kind_of_memory = (facts["INIT"].strip("0x"), *(facts[key] for key in _OF_MEMORY))
            cells[cell] = {(kind, name(facts["MEMID"].removeprefix("\\")), *kind_of_memory)}
        elif not kind.startswith("$"):
            cells[cell] = {(kind, name(cell))}
        elif _OF_STATE.search(kind):
            raise NotEqualError(f"{cell} is a {kind}")
    for wire, facts in module["netnames"].items():
        for index, bit in enumerate(facts["bits"]):
            if bit in driver:
                cells[driver[bit]].add((_FLIP_FLOP, name(wire), str(index)))
    return cells


def _cut(modules: Netlist, module: str, cells: Sequence[str]) -> Module:
    """Return a module with ports in the place of ``cells``: what they take goes out of it."""
    whole = modules[module]
    ports = dict(whole["ports"])
    for number, cell in enumerate(cells):
        facts = whole["cells"][cell]
        given = {"Q", "RD_DATA"}
        if facts["type"] in modules:
            inner = modules[facts["type"]]["ports"]
            given = {port for port in inner if inner[port]["direction"] == "output"}
        for pin, bits in facts["connections"].items():
            direction = "input" if pin in given else "output"
            ports[f"{number}_{pin}"] = {"direction": direction, "bits": bits}
    logic = {cell: facts for cell, facts in whole["cells"].items() if cell not in set(cells)}
    return {"attributes": {}, "ports": ports, "cells": logic, "netnames": {}}
