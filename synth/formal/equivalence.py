"""Proof by yosys that two netlists of the same modules do the same, register by register.

Each module is cut at what holds state: flip-flops, memories and instances of other modules give
their outputs to the logic as inputs of the module, and take its results as outputs. What is left is
combinational, and ``sat`` proves the outputs of both sides equal for all inputs, wherever the
first side is defined. With equal state before a clock edge, both then have equal state after it,
and equal outputs. Which register is which is a claim to start from: a wrong pair makes the proof
fail. A flip-flop that only one side has may hold anything at any time: the proof is for all its
values, so it holds only where nothing depends on them.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from m2xfp.processes import run
from m2xfp.synth.flow.yosys import yosys_command

__all__ = ["Netlist", "NotEqualError", "prove_equal", "read"]

# No initial values, since a chip has none. Then what the emission does in part: equal registers
# become one, and a register that only ever takes one value becomes that value.
_PREPARE = """
proc
memory_nordff
memory_collect
setattr -unset init w:*
opt -share_all
"""
# Operands no wider than they need be, which shows more bits that only ever take one value. Then
# flip-flops of one bit with enable and reset as logic.
_AS_LOGIC = """
wreduce
opt -share_all
simplemap
dffunmap
opt_clean
"""
# Removes what no output depends on; but it leaves only one of the names of a wire.
_PURGE = "opt_clean -purge"
_FLIP_FLOP = "$_DFF_P_"
_MEMORY = "$mem_v2"
# What decides the meaning of a memory whose reads have no clock (the last one tells that).
_PARAMETERS = (
    *("ABITS", "OFFSET", "SIZE", "WIDTH", "RD_PORTS", "RD_WIDE_CONTINUATION", "WR_PORTS"),
    *("WR_CLK_ENABLE", "WR_CLK_POLARITY", "WR_PRIORITY_MASK", "WR_WIDE_CONTINUATION"),
    "RD_CLK_ENABLE",
)
_PINS = ("RD_ADDR", "RD_DATA", "WR_CLK", "WR_EN", "WR_ADDR", "WR_DATA")  # that mean something then
_OF_STATE = re.compile(r"ff|sr|latch|mem", re.IGNORECASE)

Module = dict[str, Any]  # as yosys' write_json puts it


@dataclass(frozen=True)
class Netlist:
    """A design for ``prove_equal``.

    Members
    -------
    modules
        By name.
    wires
        By module and flip-flop, the bits of wires that it drives.
    name
        Turns a module and a name in it into the name that both sides know.
    """

    modules: dict[str, Module]
    wires: dict[str, dict[str, list[tuple[str, int]]]]
    name: Callable[[str, str], str]


class NotEqualError(AssertionError):
    """Two modules differ, or may; the text says where."""


def _yosys(folder: Path, script: str) -> None:
    (folder / "run.ys").write_text(script)
    command, _ = yosys_command()
    done = run([*command, "run.ys"], cwd=folder, merged=False)
    if done.returncode:
        tried = re.findall(r"^Proving (\S+)$", done.stdout, re.MULTILINE)
        raise NotEqualError(
            "\n".join([*tried[-1:], done.stdout[-3000:].strip(), done.stderr[-2000:].strip()])
        )


def read(
    folder: Path,
    command: str,
    name: Callable[[str, str], str] = lambda module, raw: raw,
    *,
    flatten: bool = False,
) -> Netlist:
    """Return the modules that a yosys command reads, as logic and cells that hold state.

    ``name`` is the netlist's; ``flatten`` makes one module of the design.
    """
    flat = "proc\nflatten\n" if flatten else ""
    _yosys(
        folder,
        f"{command}\nhierarchy -check -auto-top\n{flat}{_PREPARE}{_AS_LOGIC}"
        f"write_json named.json\n{_PURGE}\nwrite_json purged.json\n",
    )
    named, purged = (
        json.loads((folder / file).read_text())["modules"] for file in ("named.json", "purged.json")
    )
    return Netlist(purged, {module: _wires(named[module]) for module in named}, name)


def _wires(module: Module) -> dict[str, list[tuple[str, int]]]:
    """Return the bits of wires that each flip-flop drives."""
    flip_flop_of = {
        facts["connections"]["Q"][0]: cell
        for cell, facts in module["cells"].items()
        if facts["type"] == _FLIP_FLOP
    }
    wires = defaultdict(list)
    for wire, facts in module["netnames"].items():
        for index, bit in enumerate(facts["bits"]):
            if bit in flip_flop_of:
                wires[flip_flop_of[bit]].append((wire, index))
    return wires


def prove_equal(folder: Path, gold: Netlist, gate: Netlist, proved: Collection[str] = ()) -> None:
    """Prove each module of ``gold``, but for those ``proved``, equal to its namesake in ``gate``.

    Raises
    ------
    NotEqualError
        A memory, instance or port has no counterpart, or a proof fails.
    """
    if gold.modules.keys() != gate.modules.keys():
        raise NotEqualError(f"modules {sorted(gold.modules)} and {sorted(gate.modules)}")
    logic: dict[str, Module] = {}
    script = ["read_json logic.json"]
    for number, module in enumerate(gold.modules):
        if module in proved:
            continue
        pairs, only_gold, only_gate = _pairs(module, gold, gate)
        cut_gold = _cut(gold, module, [cell for cell, _ in pairs])
        cut_gate = _cut(gate, module, [cell for _, cell in pairs])
        _let_free("gold_alone", only_gold, cut_gold, cut_gate)
        _let_free("gate_alone", only_gate, cut_gate, cut_gold)
        logic |= {f"gold_{number}": cut_gold, f"gate_{number}": cut_gate}
        script += [
            f"log Proving {module}",
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
    module: str, gold: Netlist, gate: Netlist
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Return the cells that hold state in both modules, in pairs that share a name.

    And the flip-flops that only the first or the second has, such as one that decides nothing,
    which yosys may find out of one text and not of the other.
    """
    names_in_gate = _names(gate, module)
    owners = defaultdict(set)
    for cell, known_as in names_in_gate.items():
        for one in known_as:
            owners[one].add(cell)
    pairs, alone = [], []
    for cell, known_as in _names(gold, module).items():
        same = set().union(*(owners[one] for one in known_as))
        if not same and _is_flip_flop(gold, module, cell):
            alone.append(cell)
            continue
        if len(same) != 1:
            raise NotEqualError(
                f"{module}: {cell}, {sorted(known_as)}, has {len(same)} counterparts"
            )
        pairs.append((cell, same.pop()))
    paired = {cell for _, cell in pairs}
    rest = [cell for cell in names_in_gate if cell not in paired]
    if len(paired) != len(pairs) or not all(_is_flip_flop(gate, module, cell) for cell in rest):
        raise NotEqualError(f"{module}: {len(pairs)} cells hold state, and {len(names_in_gate)}")
    return pairs, alone, rest


def _is_flip_flop(netlist: Netlist, module: str, cell: str) -> bool:
    return bool(netlist.modules[module]["cells"][cell]["type"] == _FLIP_FLOP)


def _let_free(port: str, flip_flops: list[str], owner: Module, other: Module) -> None:
    """Put a port in the place of flip-flops of ``owner``; ``other`` gets it too, and ignores it."""
    if not flip_flops:
        return
    states = [owner["cells"].pop(cell)["connections"]["Q"][0] for cell in flip_flops]
    owner["ports"][port] = {"direction": "input", "bits": states}
    first = 1 + max(_numbers(other), default=1)
    unread = [*range(first, first + len(states))]
    other["ports"][port] = {"direction": "input", "bits": unread}


def _numbers(module: Module) -> Iterator[int]:
    """Yield the number of every wire at a pin or port."""
    pins = [facts["connections"].values() for facts in module["cells"].values()]
    for bits in chain(chain.from_iterable(pins), (p["bits"] for p in module["ports"].values())):
        yield from (bit for bit in bits if isinstance(bit, int))


def _names(netlist: Netlist, module: str) -> dict[str, set[tuple[str, ...]]]:
    """Return all names of each cell that holds state, as a kind and a name, by the cell.

    A flip-flop is a bit of every wire that it drives. The name of a memory includes its shape and
    contents; none are the zeros that Amaranth gives by default.
    """
    cells: dict[str, set[tuple[str, ...]]] = {}
    for cell, facts in netlist.modules[module]["cells"].items():
        kind = facts["type"]
        if kind == _FLIP_FLOP:
            cells[cell] = {
                (kind, netlist.name(module, wire), str(index))
                for wire, index in netlist.wires[module][cell]
            }
        elif kind == _MEMORY:
            value = facts["parameters"]
            shape = (value["INIT"].replace("x", "0"), *(value[key] for key in _PARAMETERS))
            array = netlist.name(module, value["MEMID"].removeprefix("\\"))
            cells[cell] = {(kind, array, *shape)}
        elif not kind.startswith("$"):
            cells[cell] = {(kind, netlist.name(module, cell))}
        elif _OF_STATE.search(kind):
            raise NotEqualError(f"{cell} is a {kind}")
    return cells


def _cut(netlist: Netlist, module: str, cells: Sequence[str]) -> Module:
    """Return a module with ports in the place of ``cells``: what they take goes out of it."""
    modules = netlist.modules
    logic = dict(modules[module]["cells"])
    ports = dict(modules[module]["ports"])
    wires = count(1 + max(_numbers(modules[module])))
    for number, cell in enumerate(cells):
        facts = logic.pop(cell)
        pins, given, owner = facts["connections"], {"Q", "RD_DATA"}, str(number)
        if facts["type"] in modules:
            inner = modules[facts["type"]]["ports"]
            given = {port for port in inner if inner[port]["direction"] == "output"}
        elif facts["type"] == _MEMORY:
            pins = _guard_writes(facts, logic, wires)
        else:
            owner = "state"  # one port for all: yosys is slow with thousands
        for pin, bits in pins.items():
            direction = "input" if pin in given else "output"
            port = ports.setdefault(f"{owner}_{pin}", {"direction": direction, "bits": []})
            port["bits"] = [*port["bits"], *bits]
    return {"attributes": {}, "ports": ports, "cells": logic, "netnames": {}}


def _guard_writes(
    memory: Module, logic: dict[str, Module], wires: Iterator[int]
) -> dict[str, list[Any]]:
    """Return the pins of a memory, with address and data of a write zero where it is not enabled.

    Neither means anything there, and yosys makes it undefined when it reads Verilog. The cells that
    do it join the ``logic``, on new ``wires``.
    """
    pins = {pin: memory["connections"][pin] for pin in _PINS}
    enables, width = pins["WR_EN"], int(memory["parameters"]["WIDTH"], 2)
    address_width = int(memory["parameters"]["ABITS"], 2)

    def guarded(bit: Any, by: list[Any]) -> int:
        enabled, result = next(wires), next(wires)
        logic[f"enabled_{result}"] = _cell("$reduce_or", A=by, Y=[enabled])
        logic[f"guarded_{result}"] = _cell("$and", A=[bit], B=[enabled], Y=[result])
        return result

    data = [guarded(bit, [enable]) for bit, enable in zip(pins["WR_DATA"], enables, strict=True)]
    address = [
        guarded(bit, enables[width * (index // address_width) :][:width])
        for index, bit in enumerate(pins["WR_ADDR"])
    ]
    return pins | {"WR_DATA": data, "WR_ADDR": address}


def _cell(kind: str, **pins: list[Any]) -> Module:
    """Return a cell of unsigned operands as write_json puts it."""
    parameters: dict[str, int] = {f"{pin}_WIDTH": len(bits) for pin, bits in pins.items()}
    parameters |= {f"{pin}_SIGNED": 0 for pin in pins if pin != "Y"}
    directions = {pin: "output" if pin == "Y" else "input" for pin in pins}
    return {
        "type": kind,
        "parameters": parameters,
        "attributes": {},
        "port_directions": directions,
        "connections": pins,
    }
