"""Whether a fault does only what arguments allow: the unit cut where such an argument begins.

Behind a word of wires of which some values are said to be alike (`m2xfp.tb.arguments`) the netlist
is cut: everything that reads the word reads an input instead. The unit gets its own word there, and
so does the mutant: the unit's, not its own. If then no output and no next content of any register
differs, and the mutant's word is the unit's or alike, the fault does nothing but what the argument
is about. That is proved in any state, with any inputs, for one clock, which is all clocks; where
wires are said to have some values never, in any state but those in which they have.

A word of registers may hold what is alike next; it is then what else reads it that is cut.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.files import write_atomic
from m2xfp.synth.formal.engines import abc
from m2xfp.synth.formal.netlist import ProofError
from m2xfp.synth.mutants.aig import Aig, Logic, read_logic
from m2xfp.synth.mutants.netlist import PORT, run_yosys
from m2xfp.tb.arguments import Argument, Never

__all__ = ["ArguedLogic"]

_WORD, _READ, _BEHIND, _NEVER = "word_", "read_", "behind_", "never_"
_STATE, _NEXT = "state_", "next_"
_GATES = ("setundef -zero", "proc", "opt_expr", "opt_clean", "techmap", "opt_clean")


def to_logic(folder: Path, name: str, read: str) -> Logic:
    """Return what ``read``, a command of yosys, reads as and-gates."""
    script = [read, *_GATES, "aigmap", "opt_clean", f"write_aiger -ascii -symbols {name}.aag", ""]
    run_yosys(folder, name, "\n".join(script))
    return read_logic(folder / f"{name}.aag")


@dataclass(frozen=True)
class _Place:
    """A word that an argument is about.

    Members
    -------
    argument
        It.
    word, reads
        Bits of its wires in the netlist.
    relation
        Says whether two values are alike.
    """

    argument: Argument
    word: list[Any]
    reads: Mapping[str, list[Any]]
    relation: Logic


@dataclass(frozen=True)
class _Limit:
    """Wires that never have some values.

    Members
    -------
    never
        What is argued.
    reads
        Bits of the wires in the netlist.
    relation
        Says whether they have such values.
    """

    never: Never
    reads: Mapping[str, list[Any]]
    relation: Logic


def instances(names: Iterable[str], argument: Argument | Never) -> list[str]:
    """Return the paths of the instances that an argument is about, from the names of all wires."""
    ending = "." + argument.wires[0]
    paths = [name.removesuffix(ending) for name in names if name.endswith(ending)]
    paths = [path for path in paths if re.fullmatch(argument.instance, path)]
    if not paths:
        raise InputError(f"an argument is about {argument.instance}{ending}, which is no wire")
    return paths


def _limits(nets: Mapping[str, Any], nevers: Sequence[Never], folder: Path) -> list[_Limit]:
    """Find the wires of some arguments in a netlist."""
    found: list[_Limit] = []
    for never in nevers:
        for path in instances(nets, never):
            reads = {name: nets[f"{path}.{wire}"]["bits"] for name, wire in never.reads.items()}
            file = f"never_{len(found)}"
            widths = {name: len(bits) for name, bits in reads.items()}
            write_atomic(folder / f"{file}.sv", never.module(widths))
            relation = to_logic(folder, file, f"read_verilog -sv {file}.sv")
            found.append(_Limit(never, reads, relation))
    return found


def _places(nets: Mapping[str, Any], arguments: Sequence[Argument], folder: Path) -> list[_Place]:
    """Find the words of some arguments in a netlist."""
    found: list[_Place] = []
    for argument in arguments:
        for path in instances(nets, argument):
            word = [bit for wire in argument.word for bit in nets[f"{path}.{wire}"]["bits"]]
            reads = {name: nets[f"{path}.{wire}"]["bits"] for name, wire in argument.reads.items()}
            widths = {"right": len(word), "wrong": len(word)}
            widths |= {name: len(bits) for name, bits in reads.items()}
            file = f"related_{len(found)}"
            write_atomic(folder / f"{file}.sv", argument.module(widths))
            relation = to_logic(folder, file, f"read_verilog -sv {file}.sv")
            found.append(_Place(argument, word, reads, relation))
    return found


class ArguedLogic:
    """A unit's logic, cut at the words of its arguments.

    Parameters
    ----------
    cut
        The netlist in JSON, with ports in the place of registers.
    nets
        Its named wires.
    arguments
        What is argued.
    folder
        For all files.
    """

    def __init__(
        self,
        cut: Mapping[str, Any],
        nets: Mapping[str, Any],
        arguments: Sequence[Argument | Never],
        folder: Path,
    ) -> None:
        self._folder = folder
        self._places = _places(nets, [a for a in arguments if isinstance(a, Argument)], folder)
        self._limits = _limits(nets, [a for a in arguments if isinstance(a, Never)], folder)
        words = [bit for place in self._places for bit in place.word]
        first = 1 + max(_numbers(cut))
        behind = {
            bit: first + n for n, bit in enumerate(dict.fromkeys(words)) if isinstance(bit, int)
        }

        def read(bits: Sequence[Any]) -> list[Any]:
            return [behind.get(bit, bit) for bit in bits]

        cells = {
            name: cell
            | {
                "connections": {
                    pin: read(bits) if cell["port_directions"][pin] == "input" else bits
                    for pin, bits in cell["connections"].items()
                }
            }
            for name, cell in cut["cells"].items()
        }
        ports = {
            name: port | {"bits": read(port["bits"])} if port["direction"] == "output" else port
            for name, port in cut["ports"].items()
        }
        ports[_BEHIND] = {"direction": "input", "bits": list(behind.values())}
        ports[_WORD] = {"direction": "output", "bits": list(behind)}
        for number, place in enumerate(self._places):
            for name, bits in place.reads.items():
                ports[f"{_READ}{number}_{name}"] = {"direction": "output", "bits": bits}
        for number, limit in enumerate(self._limits):
            for name, bits in limit.reads.items():
                ports[f"{_NEVER}{number}_{name}"] = {"direction": "output", "bits": bits}
        module = {"attributes": {}, "ports": ports, "cells": cells, "netnames": {}}
        write_atomic(folder / "argued.json", json.dumps({"modules": {"argued": module}}))
        self._logic = to_logic(folder, "argued", "read_json argued.json")
        self._at = {bit: n for n, bit in enumerate(behind)}

    def why(self, number: int, seconds: int) -> str:
        """Return the arguments by which a mutant makes no difference; nothing if there are none."""
        aig = Aig()
        given = {
            name: aig.add_inputs(len(bits))
            for name, bits in self._logic.inputs.items()
            if name not in (PORT, _BEHIND)
        }
        selected = [
            [of >> n & 1 for n in range(len(self._logic.inputs[PORT]))] for of in (0, number)
        ]
        behind = [0] * len(self._at)
        # A word may be behind another one, or behind a bit of its own that others read too.
        for _ in range(2 * len(self._places) + 2):
            right = aig.add(self._logic, given | {PORT: selected[0], _BEHIND: behind})
            if right.get(_WORD, []) == behind:
                break
            behind = right[_WORD]
        else:
            raise AssertionError("a word of an argument is behind itself")
        wrong = aig.add(self._logic, given | {PORT: selected[1], _BEHIND: behind})
        bad, reasons = list[int](), list[str]()
        registers = {bit: n for n, bit in enumerate(given.get(_STATE, []))}
        kept = set[int]()
        for n, place in enumerate(self._places):
            words = [self._literals(place, results[_WORD]) for results in (right, wrong)]
            reads = {name: right[f"{_READ}{n}_{name}"] for name in place.reads}
            pairs = [(words, reads)]
            if all(bit in registers for bit in words[0]):
                held = [registers[bit] for bit in words[0]]
                kept |= set(held)
                following = {
                    name: [
                        right[_NEXT][registers[bit]] if bit in registers else bit for bit in bits
                    ]
                    for name, bits in reads.items()
                }
                words = [[results[_NEXT][bit] for bit in held] for results in (right, wrong)]
                pairs.append((words, following))
            for words, reads in pairs:
                if words[0] == words[1]:
                    continue
                reasons.append(place.argument.why)
                related = aig.add(place.relation, reads | {"right": words[0], "wrong": words[1]})
                changed = aig.any([aig.differ(*two) for two in zip(*words, strict=True)])
                bad.append(aig.both(changed, related["alike"][0] ^ 1))
        for name, literals in right.items():
            if name != _WORD and not name.startswith((_READ, _NEVER)):
                bad += [
                    aig.differ(*two)
                    for n, two in enumerate(zip(literals, wrong[name], strict=True))
                    if name != _NEXT or n not in kept
                ]
        fault = aig.any(bad)
        if reasons and self._impossible(aig, fault, number, seconds):
            return "; ".join(dict.fromkeys(reasons))
        return self._where_it_counts(aig, right, fault, reasons, number, seconds)

    def _where_it_counts(
        self,
        aig: Aig,
        right: Mapping[str, Sequence[int]],
        fault: int,
        reasons: Sequence[str],
        number: int,
        seconds: int,
    ) -> str:
        """Return the arguments by which a fault never counts, as few as will do."""
        never: dict[str, list[int]] = {}
        for n, limit in enumerate(self._limits):
            reads = {name: right[f"{_NEVER}{n}_{name}"] for name in limit.reads}
            never.setdefault(limit.never.why, []).extend(aig.add(limit.relation, reads)["holds"])

        def counts(whys: Iterable[str]) -> int:
            return aig.both(fault, aig.any([one for why in whys for one in never[why]]) ^ 1)

        if fault == 0 or not never or not self._impossible(aig, counts(never), number, seconds):
            return ""
        for why in never:
            if self._impossible(aig, counts([why]), number, seconds):
                return "; ".join(dict.fromkeys([*reasons, why]))
        return "; ".join(dict.fromkeys([*reasons, *never]))

    def _literals(self, place: _Place, words: Sequence[int]) -> list[int]:
        """Return the literals of a place's word; of a bit that is constant, that."""
        return [words[self._at[bit]] if bit in self._at else int(bit == "1") for bit in place.word]

    def _impossible(self, aig: Aig, bad: int, number: int, seconds: int) -> bool:
        """Return whether a literal is false for all inputs."""
        if bad < 2:
            return bad == 0
        aig.write(self._folder / f"argued_{number}.aig", bad)
        try:
            said = abc(self._folder, f"read_aiger argued_{number}.aig; iprove", seconds)
        except ProofError:
            return False
        return bool(re.search(r"\bUNSATISFIABLE\b", said))


def _numbers(module: Mapping[str, Any]) -> list[int]:
    """Return the numbers of all bits of a module."""
    words = [port["bits"] for port in module["ports"].values()]
    words += [bits for cell in module["cells"].values() for bits in cell["connections"].values()]
    return [bit for bits in words for bit in bits if isinstance(bit, int)]
