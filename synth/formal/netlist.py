"""Emitted Verilog as one flat netlist for proofs: from any state, and with faults on request.

A chip powers up in any state. ``from_any_state`` gives each flip-flop a free value in the first
clock of a proof, so nothing is assumed of what reset does not set.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from m2xfp.errors import M2xfpError
from m2xfp.processes import run
from m2xfp.synth.flow.yosys import yosys_command

__all__ = [
    "ANY_STATE",
    "FREE",
    "Bit",
    "Flat",
    "ProofError",
    "cone",
    "faults",
    "flatten",
    "from_any_state",
    "gate_faults",
    "opened",
    "run_yosys",
    "simple",
    "stalled",
    "wires",
]

Bit = int | str  # a wire by number, or a constant: "0", "1", "x"
Module = dict[str, Any]  # as yosys' write_json puts it

# Ports that `from_any_state` adds: high in the first clock, and the state then.
ANY_STATE = ("begin_any", "any_state")
# Port that `stalled` adds.
FREE = "free_data"
# Memories of so many words and more are cut.
_LARGE_MEMORY = 16
# Cells whose output bits depend on the same bits of their wide inputs.
_BITWISE = ("$mux", "$and", "$or", "$xor", "$xnor", "$not")


class ProofError(M2xfpError, RuntimeError):
    """A proof could not be set up or has not ended; it is no counterexample."""


def run_yosys(folder: Path, script: str) -> str:
    """Run a script in a folder and return what yosys said."""
    (folder / "run.ys").write_text(script)
    done = run([*yosys_command()[0], "run.ys"], cwd=folder, merged=False)
    if done.returncode:
        lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
        said = [line for line in lines if "ERROR" in line]
        raise ProofError("yosys: " + ("; ".join(said) or done.stdout[-500:] + done.stderr[-500:]))
    return done.stdout


@dataclass(frozen=True)
class Flat:
    """A design as one module.

    Members
    -------
    top
        Its name.
    module
        Ports, cells and names of wires, as yosys' JSON has them.
    """

    top: str
    module: Module

    @property
    def text(self) -> str:
        """The JSON that yosys reads."""
        return self.text_with({})

    def text_with(self, others: Mapping[str, Module]) -> str:
        """Return the JSON with other modules beside the design."""
        return json.dumps({"modules": {**others, self.top: self.module}})

    @property
    def ports(self) -> dict[str, list[Bit]]:
        """Bits of each port."""
        return {name: port["bits"] for name, port in self.module["ports"].items()}

    def probed(self, names: Mapping[str, str]) -> "Flat":
        """Return the design with wires inside as its only outputs: port by name of the wire."""
        ports = {
            name: port
            for name, port in self.module["ports"].items()
            if port["direction"] == "input"
        }
        for port, wire in names.items():
            bits = self.module["netnames"][wire]["bits"]
            ports[port] = {"direction": "output", "bits": bits}
        return Flat(self.top, {**self.module, "ports": ports})

    def freed(self, names: Sequence[str]) -> "Flat":
        """Return the design with wires inside, of those that it has, as inputs of any value.

        What drives them drives nothing then. What holds for any value holds for theirs.
        """
        module = deepcopy(self.module)
        fresh = 1 + max(wires(self))
        for name in names:
            if name not in self.module["netnames"]:
                continue
            bits = self.module["netnames"][name]["bits"]
            others = {bit: fresh + n for n, bit in enumerate(bits) if isinstance(bit, int)}
            fresh += len(bits)
            for cell in module["cells"].values():
                for pin, found in cell["connections"].items():
                    if cell["port_directions"][pin] == "output":
                        cell["connections"][pin] = [others.get(bit, bit) for bit in found]
            free = [bit for bit in bits if isinstance(bit, int)]
            if free:
                module["ports"][f"any_{name}"] = {"direction": "input", "bits": free}
        return Flat(self.top, module)


def _through_yosys(files: Mapping[str, str], script: str, top: str) -> Flat:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in files.items():
            (folder / file).write_text(text)
        run_yosys(folder, f"{script}\nwrite_json out.json\n")
        return Flat(top, json.loads((folder / "out.json").read_text())["modules"][top])


def flatten(verilog: str, top: str) -> Flat:
    """Return a design as one module of words: flip-flops with enable and reset, operators."""
    script = (
        f"read_verilog in.v\nhierarchy -check -top {top}\nproc\nflatten\nopt_expr\nopt_dff\n"
        "memory_nordff\nmemory_collect\nopt_clean"
    )
    return _through_yosys({"in.v": verilog}, script, top)


def opened(verilog: str, top: str) -> Flat:
    """Return a module by itself: what its parts give are inputs, what they take are outputs.

    A port of a part is called ``part__port``, so of ports of the same name that is the part's.
    """
    script = f"read_verilog in.v\nhierarchy -check -top {top}\nproc\nopt_expr\nopt_dff\nopt_clean"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.v").write_text(verilog)
        run_yosys(folder, f"{script}\nwrite_json out.json\n")
        modules = json.loads((folder / "out.json").read_text())["modules"]
    module = modules[top]
    parts = {name: cell for name, cell in module["cells"].items() if cell["type"] in modules}
    ports = dict(module["ports"])
    for name, cell in parts.items():
        for pin, bits in cell["connections"].items():
            given = cell["port_directions"][pin] == "output"
            ports[f"{name}__{pin}"] = {"direction": "input" if given else "output", "bits": bits}
    cells = {name: cell for name, cell in module["cells"].items() if name not in parts}
    return Flat(top, {**module, "ports": ports, "cells": cells})


def simple(flat: Flat, *, without: tuple[str, ...] = ()) -> Flat:
    """Return a design as gates and plain flip-flops, without the outputs in ``without``.

    What only those outputs need is gone. Small memories are flip-flops. What is read from a large
    one may be anything at any time, which is sound, and enough for proofs about control.
    """
    outputs = [
        name
        for name, port in flat.module["ports"].items()
        if port["direction"] == "output" and name not in without
    ]
    kept = _search(flat, outputs, through_state=True)
    module = {
        "attributes": {},
        "netnames": {},
        "ports": {name: port for name, port in flat.module["ports"].items() if name not in without},
        "cells": {
            name: _narrowed(flat.module["cells"][name], pins)
            for name, pins in kept.items()
            if name in flat.module["cells"]
        },
    }
    script = (
        "read_json in.json\nopt_clean -purge\n"
        f"select -set large t:$mem_v2 r:SIZE>={_LARGE_MEMORY} %i\ncutpoint @large\n"
        "memory_map\nopt_expr\nsimplemap\ntechmap\ndffunmap\nopt_expr\nopt_merge\n"
        "setattr -unset init w:*\nopt_clean -purge"
    )
    return _through_yosys({"in.json": Flat(flat.top, module).text}, script, flat.top)


def _narrowed(cell: Module, pins: Mapping[tuple[str, int], None]) -> Module:
    """Return a cell with 0 at the inputs that nothing needs."""
    return {
        **cell,
        "connections": {
            pin: bits
            if cell["port_directions"][pin] == "output"
            else [bit if (pin, n) in pins else "0" for n, bit in enumerate(bits)]
            for pin, bits in cell["connections"].items()
        },
    }


def stalled(flat: Flat, control: list[str], data: list[str]) -> Flat:
    """Return a design in which whatever data registers load, while enabled, is any value.

    For proofs that nothing is loaded: a register with an enable that ``control`` does not depend on
    gets free inputs in the place of the logic before it. That is sound, and leaves little of a wide
    datapath.
    """
    keep = cone(flat, control, through_state=True)[1]
    module = deepcopy(flat.module)
    free: list[Bit] = []
    fresh = 1 + max(wires(flat))
    for name in cone(flat, data, through_state=True)[1]:
        cell = module["cells"][name]
        if name not in keep and "EN" in cell["connections"]:
            width = len(cell["connections"]["D"])
            cell["connections"]["D"] = [*range(fresh, fresh + width)]
            free += cell["connections"]["D"]
            fresh += width
    if free:
        module["ports"][FREE] = {"direction": "input", "bits": free}
    return Flat(flat.top, module)


def wires(flat: Flat) -> Iterator[int]:
    """Yield the number of every wire at a pin or port."""
    pins = [cell["connections"].values() for cell in flat.module["cells"].values()]
    for bits in chain(flat.ports.values(), *pins):
        yield from (bit for bit in bits if isinstance(bit, int))


def from_any_state(flat: Flat) -> Flat:
    """Return gates with two more ports: while the first is high, the second is the state."""
    module = deepcopy(flat.module)
    fresh = 2 + max(wires(flat))
    begin, state = fresh - 1, []
    for name, cell in list(module["cells"].items()):
        if cell["type"] != "$_DFF_P_":
            continue
        [out] = cell["connections"]["Q"]
        held, free, fresh = fresh, fresh + 1, fresh + 2
        cell["connections"]["Q"] = [held]
        state.append(free)
        module["cells"][f"{name}$any"] = {
            "type": "$_MUX_",
            "parameters": {},
            "attributes": {},
            "port_directions": {"A": "input", "B": "input", "S": "input", "Y": "output"},
            "connections": {"A": [held], "B": [free], "S": [begin], "Y": [out]},
        }
    for name, bits in zip(ANY_STATE, ([begin], state or [fresh]), strict=True):
        module["ports"][name] = {"direction": "input", "bits": bits}
    return Flat(flat.top, module)


def _drivers(flat: Flat) -> dict[Bit, str]:
    """Return the cell that drives each wire."""
    return {
        bit: name
        for name, cell in flat.module["cells"].items()
        for pin, bits in cell["connections"].items()
        if cell["port_directions"][pin] == "output"
        for bit in bits
    }


def _search(
    flat: Flat, outputs: list[str], *, through_state: bool
) -> dict[str, dict[tuple[str, int], None]]:
    """Return the input pins of cells that outputs depend on, by cell, nearest first.

    Ports are cells with a space before their name. Without ``through_state`` the search ends at
    flip-flops, which are among the cells. Cells that work bit by bit are followed bit by bit.
    """
    cells, drivers = flat.module["cells"], _drivers(flat)
    inputs = {
        bit: f" {name}"
        for name, port in flat.module["ports"].items()
        if port["direction"] == "input"
        for bit in port["bits"]
    }
    found: dict[str, dict[tuple[str, int], None]] = {}
    todo = [bit for name in outputs for bit in flat.ports[name]]
    seen = set(todo)
    for bit in todo:  # grows as it goes
        if bit in inputs:
            found.setdefault(inputs[bit], {})
        if bit not in drivers:
            continue
        name = drivers[bit]
        pins = found.setdefault(name, {})
        cell = cells[name]
        if _is_register(cell) and not through_state:
            continue
        for pin, index in _needed(cell, bit):
            if pin.startswith("WR_") and not through_state:
                continue  # what a memory holds is state
            pins[pin, index] = None
            one = cell["connections"][pin][index]
            if one not in seen:
                seen.add(one)
                todo.append(one)
    return found


def _needed(cell: Module, bit: Bit) -> Iterator[tuple[str, int]]:
    """Yield the input pins of a cell on which one bit of its output depends."""
    directions, connections = cell["port_directions"], cell["connections"]
    pins = [pin for pin in connections if directions[pin] == "input"]
    wide = [pin for pin in pins if pin in ("A", "B", "D")]
    out = connections.get("Q", connections.get("Y", []))
    bitwise = (_is_register(cell) or cell["type"] in _BITWISE) and all(
        len(connections[pin]) == len(out) for pin in wide
    )
    places = [n for n, one in enumerate(out) if one == bit] if bitwise else []
    for pin in pins:
        indices = places if bitwise and pin in wide else range(len(connections[pin]))
        yield from ((pin, index) for index in indices)


def _is_register(cell: Module) -> bool:
    return "dff" in cell["type"].lower()


def cone(
    flat: Flat, outputs: list[str], *, through_state: bool = False
) -> tuple[list[str], list[str]]:
    """Return the input ports and flip-flops that outputs depend on, nearest first.

    Without a clock between, unless ``through_state``.
    """
    cells = flat.module["cells"]
    found = _search(flat, outputs, through_state=through_state)
    ports = [name[1:] for name in found if name not in cells]
    return ports, [name for name in found if name in cells and _is_register(cells[name])]


def _name_of(flat: Flat, cell: str, pin: str = "Q") -> str:
    """Return the name that the Verilog gives to an output of a cell."""
    [first, *_] = flat.module["cells"][cell]["connections"][pin]
    names = [
        name
        for name, wire in flat.module["netnames"].items()
        if first in wire["bits"] and not wire.get("hide_name")
    ]
    return min(names, key=lambda name: (name.count("."), len(name)), default=cell)


def faults(flat: Flat, near: list[str]) -> Iterator[tuple[str, Flat]]:
    """Yield faults in the flip-flops that outputs depend on, nearest first, and what they are.

    Each is the replacement of one pin of one cell: an enable that is always on, a reset that never
    comes, a value that is stuck at 0 or 1.
    """
    _, states = cone(flat, near, through_state=True)
    kinds: dict[str, list[tuple[str, str, list[Bit]]]] = {}
    for name in states:
        pins = flat.module["cells"][name]["connections"]
        for kind, pin, bit in (
            ("always enabled", "EN", "1"),
            ("never reset", "SRST", "0"),
            ("takes 0s", "D", "0"),
            ("takes 1s", "D", "1"),
        ):
            if pin in pins:
                kinds.setdefault(kind, []).append((name, pin, [bit] * len(pins[pin])))
    for alike in zip_longest(*kinds.values()):
        for kind, fault in zip(kinds, alike, strict=True):
            if fault is not None:
                name, pin, bits = fault
                module = deepcopy(flat.module)
                module["cells"][name]["connections"][pin] = bits
                yield f"{_name_of(flat, name)} {kind}", Flat(flat.top, module)


# What an operator becomes.
_EXCHANGED = {
    "$and": "$or",
    "$or": "$and",
    "$xor": "$or",
    "$add": "$sub",
    "$sub": "$add",
    "$mul": "$add",
    "$eq": "$ne",
    "$ne": "$eq",
    "$lt": "$le",
    "$le": "$lt",
    "$gt": "$ge",
    "$ge": "$gt",
    "$not": "$pos",
    "$reduce_or": "$reduce_and",
    "$reduce_and": "$reduce_or",
    "$shl": "$shr",
    "$logic_not": "$reduce_bool",
}


def gate_faults(flat: Flat, outputs: list[str] | None = None) -> Iterator[tuple[str, Flat]]:
    """Yield faults in the operators that outputs depend on, nearest first, and what they are.

    Each replaces one cell: an operator by a similar one, a choice by the opposite one.
    """
    near = outputs or [
        name for name, port in flat.module["ports"].items() if port["direction"] == "output"
    ]
    for name in _search(flat, near, through_state=True):
        cell = flat.module["cells"].get(name)
        if cell is None or not (cell["type"] in _EXCHANGED or cell["type"] == "$mux"):
            continue
        module = deepcopy(flat.module)
        pins = module["cells"][name]["connections"]
        if cell["type"] == "$mux":
            pins["A"], pins["B"] = pins["B"], pins["A"]
            new = "with its choices exchanged"
        else:
            new = module["cells"][name]["type"] = _EXCHANGED[cell["type"]]
        yield f"{_name_of(flat, name, 'Y')}: {cell['type']} is {new}", Flat(flat.top, module)
