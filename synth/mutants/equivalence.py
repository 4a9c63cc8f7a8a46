"""Whether a fault can be seen at all: proofs by SAT for mutants that a regression lets live.

The flattened unit is cut at its registers, whose contents become inputs and whose next contents
become outputs. Two copies of what is left, one with the fault, get the same inputs and the same
state; the state is what the unit itself reaches from any state whatever in some clocks, with any
inputs. If then no output and no next state differs, the fault changes nothing in any state that is
reached so many clocks after any other: the mutant is equivalent. With no clock before it, in any
state whatever; with some, in the states of a unit that works at full rate, of which pauses only
keep some for longer. A mutant that no such proof is found for is compared from a reset on, seen
from its ports, as far as time allows.
"""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from m2xfp.facts import Facts
from m2xfp.files import write_atomic
from m2xfp.synth.mutants.netlist import PORT, MutatedUnit, YosysError, run_yosys

__all__ = ["Prover"]

_PROVED, _DIFFERS = "no model found: SUCCESS", "model found: FAIL"
_STATEFUL = re.compile(r"ff|sr|latch|mem")


def _cut(module: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module, as ``write_json`` puts it, with ports in the place of its registers."""
    logic = dict(module["cells"])
    contents: dict[str, list[Any]] = {"Q": [], "D": []}
    for name, cell in module["cells"].items():
        if cell["type"] == "$dff":
            del logic[name]
            for pin, bits in contents.items():
                bits += cell["connections"][pin]
        elif _STATEFUL.search(cell["type"]):
            raise YosysError(f"{name} is a {cell['type']}, which proofs of mutants do not know")
    ports = dict(module["ports"])
    if contents["Q"]:
        ports |= {
            "state_": {"direction": "input", "bits": contents["Q"]},
            "next_": {"direction": "output", "bits": contents["D"]},
        }
    return {"attributes": {}, "ports": ports, "cells": logic, "netnames": {}}


class Prover:
    """Proofs about the mutants of a unit.

    Parameters
    ----------
    mutated
        The unit with its faults.
    seconds
        Time that a proof may take.
    """

    def __init__(self, mutated: MutatedUnit, seconds: int = 30) -> None:
        self._seconds, self._folder = seconds, mutated.folder
        self._facts = Facts.load(mutated.unit.json)
        script = ("memory_map", "opt_expr", "dffunmap", "opt_clean -purge", "write_json whole.json")
        run_yosys(self._folder, "cut", "\n".join(["read_rtlil mutated.il", *script, ""]))
        (module,) = json.loads((self._folder / "whole.json").read_text())["modules"].values()
        logic = _cut(module)
        write_atomic(self._folder / "cut.json", json.dumps({"modules": {"cut": logic}}))
        self._ports = {
            name: (port["direction"], len(port["bits"])) for name, port in logic["ports"].items()
        }

    def prove(self, number: int, clocks: int = 0) -> bool | None:
        """Say whether a mutant equals the unit; None if there was no time to find out.

        Parameters
        ----------
        number
            Of the mutant.
        clocks
            Clocks that the unit has run at full rate, without a pause or a reset, when the two are
            compared; 0 for a comparison in every state, with any input.
        """
        name = f"prove_{number}_{clocks}"
        write_atomic(self._folder / f"{name}.v", self._bench(number))
        pins = {stream.ports[1]: 1 for stream in self._facts.inputs}
        pins |= {stream.ports[2]: 1 for stream in self._facts.outputs} | {self._facts.reset: 0}
        rate = " ".join(f"-set {pin} {bit}" for pin, bit in pins.items() if pin) if clocks else ""
        script = (
            *("read_json cut.json", f"read_verilog {name}.v", "hierarchy -top bench", "proc"),
            *("flatten", "opt_expr", "opt_merge", "opt_clean"),
            # Only the last clock is compared: what came before led to the state.
            f"sat -prove same 1 -prove-skip {clocks} -seq {clocks + 1} {rate} -set-def-inputs "
            f"-set-init-def -timeout {self._seconds} bench",
        )
        return self._same(name, script)

    def seen(self, number: int, clocks: int) -> bool | None:
        """Say whether a mutant can give something else within some clocks of a reset.

        The reset is in the first of them, and the registers hold anything before it. TDATA and
        TLAST count where TVALID is high; inputs follow the stream rules. None if there was no time.
        """
        name = f"seen_{number}_{clocks}"
        write_atomic(self._folder / f"{name}.v", self._sequence(number))
        start = f"-set-at 1 {self._facts.reset} 1 -set-init apart 0" if self._facts.reset else ""
        start += " -set-init stalled_ 0" if self._facts.inputs else ""
        script = (
            *("read_json cut.json", f"read_verilog {name}.v", "hierarchy -top bench", "proc"),
            *("flatten", "opt_expr", "opt_merge", "opt_clean"),
            f"sat -prove same 1 -set lawful 1 {start} "
            f"-seq {clocks} -set-def-inputs -set-init-def -timeout {self._seconds} bench",
        )
        same = self._same(name, script)
        return None if same is None else not same

    def _same(self, name: str, script: Sequence[str]) -> bool | None:
        """Run a proof; its time does not count what yosys needs to set it up, so there is more."""
        try:
            log = run_yosys(self._folder, name, "\n".join([*script, ""]), 3 * self._seconds)
        except subprocess.TimeoutExpired:
            return None
        if _PROVED in log:
            return True
        return False if _DIFFERS in log else None

    def _copies(self, number: int) -> tuple[list[str], list[str]]:
        """Return the head of a bench, and the unit and a mutant in it, whose state is given.

        Outputs of the copies are called ``right_...`` and ``wrong_...``.
        """
        special = {PORT, "state_"}
        sizes = {name: f"[{width - 1}:0]" for name, (_, width) in self._ports.items()}
        ways = {name: direction for name, (direction, _) in self._ports.items()}
        inputs = [name for name in ways if ways[name] == "input" and name not in special]
        outputs = [name for name in ways if ways[name] == "output"]
        head = ["module bench(input clk_,"]
        head += [f"  input {sizes[name]} {name}," for name in inputs]
        head += ["  output same, lawful);"]
        copies = []
        for copy, selected in (("right", 0), ("wrong", number)):
            copies += [f"  wire {sizes[name]} {copy}_{name};" for name in outputs]
            pins = [f".{name}({name})" for name in inputs]
            pins += [f".{name}({copy}_{name})" for name in outputs]
            pins.append(f".{PORT}({self._ports[PORT][1]}'d{selected})")
            if "state_" in ways:
                copies.append(f"  wire {sizes['state_']} {copy}_state;")
                pins.append(f".state_({copy}_state)")
            copies.append(f"  cut {copy} ({', '.join(pins)});")
        return head, copies

    def _bench(self, number: int) -> str:
        """Return Verilog: the unit and a mutant in the state that the unit reaches."""
        head, copies = self._copies(number)
        outputs = [name for name, (direction, _) in self._ports.items() if direction == "output"]
        lines = [*head, *copies, "  assign lawful = 1;"]
        if "state_" in self._ports:
            lines += [
                f"  reg [{self._ports['state_'][1] - 1}:0] held;",
                "  always @(posedge clk_) held <= right_next_;",
                "  assign right_state = held;",
                "  assign wrong_state = held;",
            ]
        equal = " & ".join(f"(right_{name} == wrong_{name})" for name in outputs)
        return "\n".join([*lines, f"  assign same = {equal};", "endmodule", ""])

    def _sequence(self, number: int) -> str:
        """Return Verilog: the unit and a mutant, each in a state of its own, seen from outside."""
        head, copies = self._copies(number)
        lines = [*head, *copies]
        if "state_" in self._ports:
            lines += [
                f"  reg [{self._ports['state_'][1] - 1}:0] held, apart;",
                "  assign right_state = held;",
                "  assign wrong_state = held ^ apart;",
                "  always @(posedge clk_) begin",
                "    held <= right_next_;",
                "    apart <= right_next_ ^ wrong_next_;",
                "  end",
            ]
        equal, lawful = [], []
        inputs = self._facts.inputs
        if inputs:
            lines.append(f"  reg [{len(inputs) - 1}:0] stalled_;")
        for at, stream in enumerate(inputs):
            data, valid, ready, last = stream.ports
            equal.append(f"(right_{ready} == wrong_{ready})")
            lines += [
                f"  reg [{stream.tdata_width}:0] offered_{at};",
                "  always @(posedge clk_) begin",
                f"    stalled_[{at}] <= {valid} & ~right_{ready};",
                f"    offered_{at} <= {{{last}, {data}}};",
                "  end",
            ]
            held = f"{valid} & (offered_{at} == {{{last}, {data}}})"
            lawful.append(f"(~stalled_[{at}] | ({held}))")
        for stream in self._facts.outputs:
            data, valid, _, last = stream.ports
            alike = " & ".join(f"(right_{name} == wrong_{name})" for name in (data, last))
            equal.append(f"(right_{valid} == wrong_{valid}) & (~right_{valid} | ({alike}))")
        for port in self._facts.signals:
            if not port.is_input:
                equal.append(f"(right_{port.name} == wrong_{port.name})")
        lines.append(f"  assign same = {' & '.join(equal)};")
        lines.append(f"  assign lawful = {' & '.join(lawful) or 1};")
        return "\n".join([*lines, "endmodule", ""])
