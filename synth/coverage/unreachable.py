"""Points that no input can cover: bits that keep their value, shown by induction and SAT.

The flat netlist is cut at its registers. Assumed is that registers whose bits a simulation never
saw change hold the values that it saw; the others hold anything, and inputs are anything. If every
one of these bits then has its value in the next state too, and every wire that never changed has
its own in this one, neither ever changes. What cannot be shown leaves the set, and so on until all
the rest can. What is left is tried over several clocks, in all but the last of which it is assumed.
Single bits are shown constant by ABC, which simulates and asks SAT.
"""

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from m2xfp.files import write_atomic
from m2xfp.synth.mutants.netlist import run_yosys

__all__ = ["Claim", "Netlist", "proved"]

Net = int | str  # a wire by number, or a constant: "0", "1", "x"

_GATES = "+strash;ifraig;dc2;fraig -C 10000;dc2;fraig -C 100000;map"


@dataclass(frozen=True)
class Claim:
    """What never happens: that all of some bits have these values at once.

    Members
    -------
    bits
        Wires of the netlist, and the value of each.
    """

    bits: tuple[tuple[Net, int], ...]


@dataclass(frozen=True)
class Netlist:
    """A flat unit as words and registers, no name of a wire lost.

    Members
    -------
    module
        As yosys' JSON has it.
    """

    module: Mapping[str, Any]

    @classmethod
    def of(cls, verilog: str, top: str, folder: Path) -> "Netlist":
        """Read emitted Verilog."""
        write_atomic(folder / "unit.v", verilog)
        run_yosys(
            folder,
            "flat",
            f"read_verilog unit.v\nhierarchy -check -top {top}\nproc\nflatten\n"
            "memory_collect\nmemory_map\ndffunmap\nwrite_json unit.json\n",
        )
        return cls(json.loads((folder / "unit.json").read_text())["modules"][top])

    def bits(self, name: str) -> list[Net] | None:
        """Return the bits of a wire; None if there is none of that name."""
        found = self.module["netnames"].get(name)
        return None if found is None else found["bits"]

    def registers(self) -> dict[Net, Net]:
        """Return what each bit of a register holds next, by the bit."""
        return {
            now: then
            for cell in self.module["cells"].values()
            if cell["type"] == "$dff"
            for now, then in zip(cell["connections"]["Q"], cell["connections"]["D"], strict=True)
        }


def proved(
    netlist: Netlist,
    claims: Iterable[Claim],
    folder: Path,
    *,
    depth: int = 0,
    seconds: float = 120,
) -> set[Claim]:
    """Return those of the claims that hold in every clock after all of them did for some.

    Parameters
    ----------
    netlist
        The unit.
    claims
        What a simulation never saw.
    folder
        For the runs of yosys.
    depth
        Clocks that claims are looked back at, at most, where one clock does not show them: what a
        stage holds follows from what the stages before it held.
    seconds
        Time that one run of yosys may take; what it has not shown by then is not shown.
    """
    cut = _Cut(netlist, folder, seconds)
    held = _fixed(set(claims), lambda those: cut.shown(those, those))
    for clocks in range(1, depth + 1):
        rest = set(claims) - held
        if not rest:
            break
        try:
            held |= _fixed(rest, partial(cut.shown, known=held, clocks=clocks))
        except subprocess.TimeoutExpired:
            break
    return held


def _fixed(claims: set[Claim], shown: Callable[[set[Claim]], set[Claim]]) -> set[Claim]:
    """Return the claims that are shown where no others than they are assumed."""
    while claims:
        left = shown(claims)
        if left == claims:
            break
        claims = left
    return claims


class _Cut:
    """A netlist whose registers are inputs, and their next contents outputs."""

    def __init__(self, netlist: Netlist, folder: Path, seconds: float) -> None:
        self._seconds = seconds
        self._module, self._folder = netlist.module, folder
        self._next = netlist.registers()
        self._fresh = 1 + max(_numbers(netlist.module))
        self._logic = {
            name: cell for name, cell in netlist.module["cells"].items() if cell["type"] != "$dff"
        }

    def shown(self, claims: set[Claim], known: set[Claim], clocks: int = 0) -> set[Claim]:
        """Return the claims that hold, a clock after those of ``known`` about registers did.

        With ``clocks`` all claims held for so many clocks before, in which the unit was in any
        state that is known to be possible; else those about registers are about the next clock.
        """
        constant = {
            bit: 1 - value
            for claim in known
            for bit, value in claim.bits
            if len(claim.bits) == 1 and bit in self._next
        }
        order = list(claims)
        step = self._step(order, constant, ahead=not clocks)
        write_atomic(self._folder / "step.json", json.dumps({"modules": {"step": step}}))
        write_atomic(self._folder / "frames.v", self._frames(step, len(order), clocks))
        run_yosys(
            self._folder,
            "claims",
            "read_json step.json\nread_verilog frames.v\nhierarchy -top frames\nproc\nflatten\n"
            "opt_expr\nopt_clean -purge\nopt_merge\nopt_expr\ntechmap\nopt_expr\n"
            f"opt_clean -purge\nabc -g AND -script {_GATES.replace(' ', ',')}\n"
            "opt_expr\nopt_clean\nwrite_json shown.json\n",
            self._seconds,
        )
        found = json.loads((self._folder / "shown.json").read_text())["modules"]["frames"]
        bits = found["ports"]["wrong"]["bits"]
        return {claim for claim, bit in zip(order, bits, strict=True) if bit == "0"}

    def _step(
        self, order: Sequence[Claim], constant: Mapping[Net, int], *, ahead: bool
    ) -> dict[str, Any]:
        """Return one clock: inputs and state in, next state out, and a bit for each claim broken.

        ``ahead`` looks for registers with a constant value in the next state.
        """

        def seen(bit: Net) -> Net:
            return str(constant[bit]) if bit in constant else bit

        gates, broken, fresh = {}, [], self._fresh
        for claim in order:
            terms: list[Net] = []
            for bit, value in claim.bits:
                now = seen(self._next[bit]) if ahead and bit in constant else seen(bit)
                if not value:
                    gates[f"not{fresh}"] = _gate("$_NOT_", {"A": now}, fresh)
                    now, fresh = fresh, fresh + 1
                terms.append(now)
            while len(terms) > 1:
                gates[f"and{fresh}"] = _gate("$_AND_", {"A": terms.pop(), "B": terms.pop()}, fresh)
                terms.append(fresh)
                fresh += 1
            broken.append(terms[0])
        cells = {
            name: {
                **cell,
                "connections": {
                    pin: bits
                    if cell["port_directions"][pin] == "output"
                    else [seen(bit) for bit in bits]
                    for pin, bits in cell["connections"].items()
                },
            }
            for name, cell in self._logic.items()
        }
        ports = {
            name: port
            for name, port in self._module["ports"].items()
            if port["direction"] == "input"
        }
        if self._next:
            ports["state_"] = {"direction": "input", "bits": [*self._next]}
            later = [seen(bit) for bit in self._next.values()]
            ports["next_"] = {"direction": "output", "bits": later}
        ports["broken_"] = {"direction": "output", "bits": broken}
        return {"attributes": {}, "netnames": {}, "ports": ports, "cells": cells | gates}

    def _frames(self, step: Mapping[str, Any], count: int, clocks: int) -> str:
        """Return Verilog: clocks one after the other, and what is broken in the last alone."""
        ports, pins = [f"output [{count - 1}:0] wrong"], []
        for frame in range(clocks + 1):
            given = []
            for name, port in step["ports"].items():
                size = f"[{len(port['bits']) - 1}:0]"
                wire = f"{name}_{frame}"
                given.append(f".{name}({wire})")
                if port["direction"] == "output":
                    pins.append(f"  wire {size} {wire};")
                elif name != "state_" or frame == 0:
                    ports.append(f"input {size} {wire}")
                else:
                    pins.append(f"  wire {size} {wire} = next__{frame - 1};")
            pins.append(f"  step frame_{frame} ({', '.join(given)});")
        earlier = "".join(f" & {{{count}{{~|broken__{n}}}}}" for n in range(clocks))
        pins.append(f"  assign wrong = broken__{clocks}{earlier};")
        return "\n".join([f"module frames({', '.join(ports)});", *pins, "endmodule", ""])


def _gate(kind: str, inputs: Mapping[str, Net], output: int) -> dict[str, Any]:
    return {
        "type": kind,
        "parameters": {},
        "attributes": {},
        "port_directions": {**dict.fromkeys(inputs, "input"), "Y": "output"},
        "connections": {**{pin: [bit] for pin, bit in inputs.items()}, "Y": [output]},
    }


def _numbers(module: Mapping[str, Any]) -> Iterator[int]:
    """Yield the numbers of all wires."""
    for holder in (*module["ports"].values(), *module["netnames"].values()):
        yield from (bit for bit in holder["bits"] if isinstance(bit, int))
    for cell in module["cells"].values():
        for bits in cell["connections"].values():
            yield from (bit for bit in bits if isinstance(bit, int))
