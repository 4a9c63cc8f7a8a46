"""A unit's netlist with many faults, of which a port of its own selects one.

yosys' ``mutate`` chooses the places, evenly over the flattened design, AXI shell and stream parts
among it: a bit of a cell's port is inverted, constant, or inverted where another bit is 0 or 1. One
build of a simulation serves all mutants, and number 0 is the unit itself.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from m2xfp.errors import InputError, M2xfpError
from m2xfp.facts import EmittedFiles, Facts, Port
from m2xfp.files import write_atomic
from m2xfp.processes import run
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.flow.yosys import yosys_command

__all__ = ["PORT", "Mutant", "MutatedUnit", "mutate", "run_yosys"]

PORT = "mutant"
"""Name of the port that selects a fault."""

# Below a flip-flop or memory there is no logic whose fault a clock of its own would be.
_CLOCKS = re.compile(r" -port \S*CLK ")
# What a memory holds at first is no logic either.
_CONTENTS = re.compile(r" -cell \S*\$meminit\$")
_LINE = re.compile(
    r"mutate -ctrl \S+ \d+ \d+ (?P<fault>-mode (?P<mode>\S+) -module \S+ -cell (?P<cell>\S+) "
    r"-port (?P<port>\S+) -portbit (?P<bit>\d+)(?: -ctrlbit (?P<other>\d+))?)(?P<rest>.*)"
)
_SOURCE = re.compile(r" -src \S*:(\d+)\.")
_WIRE = re.compile(r" -wire (\S+) -wirebit (\d+)")


class YosysError(M2xfpError, RuntimeError):
    """A script did not run; the text is the end of its log."""


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Members
    -------
    number
        What selects it.
    fault
        Options of ``mutate`` that make it.
    mode
        ``inv``, ``const0``, ``const1``, ``cnot0``, ``cnot1``.
    place
        The wire and its bit, or the cell's port and its bit.
    line
        Line of the emitted Verilog, from 1.
    text
        That line.
    """

    number: int
    fault: str
    mode: str
    place: str
    line: int
    text: str


@dataclass(frozen=True)
class MutatedUnit:
    """A unit with faults.

    Members
    -------
    emitted
        Its Verilog with the port ``mutant``, for a simulator.
    unit
        The files of the unit itself.
    mutants
        The faults.
    folder
        Holds ``mutated.il``, the same as RTLIL.
    """

    emitted: EmittedFiles
    unit: EmittedFiles
    mutants: list[Mutant]
    folder: Path


def run_yosys(folder: Path, name: str, script: str, seconds: float | None = None) -> str:
    """Run a script in a folder, where its files are, and return the log.

    Raises
    ------
    YosysError
        It failed.
    subprocess.TimeoutExpired
        It took more than ``seconds``, if there is a limit.
    """
    write_atomic(folder / f"{name}.ys", script)
    command, _ = yosys_command()
    done = run([*command, f"{name}.ys"], cwd=folder, merged=False, seconds=seconds)
    if done.returncode:
        raise YosysError(f"yosys {name}.ys in {folder}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def _parse(text: str, count: int, verilog: list[str]) -> list[Mutant]:
    """Return the first ``count`` faults of a list that are in logic, and in none of a clock."""
    found: list[Mutant] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or len(found) == count:
            continue
        if _CLOCKS.search(line) or _CONTENTS.search(line):
            continue
        wire = _WIRE.search(match["rest"])
        sources = [int(number) for number in _SOURCE.findall(match["rest"])]
        # That of the cell comes last, behind that of the wire's declaration.
        at = sources[-1] if sources else 0
        place = f"{wire[1]}[{wire[2]}]" if wire else f"{match['port']}[{match['bit']}]"
        condition = f" by bit {match['other']}" if match["other"] else ""
        found.append(
            Mutant(
                number=len(found) + 1,
                fault=match["fault"],
                mode=match["mode"] + condition,
                place=place.replace("\\", ""),
                line=at,
                text=verilog[at - 1].strip() if at else "",
            )
        )
    return found


def mutate(instance: Instance, count: int, seed: int, folder: Path) -> MutatedUnit:
    """Emit a unit and a copy of it with ``count`` faults, or as many as there are places.

    Parameters
    ----------
    instance
        The unit.
    count, seed
        Number of faults, and seed of their places.
    folder
        For all files.

    Raises
    ------
    InputError
        No fault is asked for.
    """
    if count < 1:
        raise InputError(f"count={count}: give a number of mutants from 1")
    unit = emit(instance, folder)
    top, width = unit.top, count.bit_length()
    run_yosys(
        folder,
        "list",
        "\n".join(
            [
                f"read_verilog {unit.verilog.name}",
                f"hierarchy -check -top {top}",
                "proc",
                "flatten",
                # A table of constants cannot depend on a port; the logic that it is can.
                "memory_map -rom-only",
                "opt_expr",
                "opt_merge",
                "opt_clean",
                "write_rtlil unit.il",
                # Some of them are of clocks, or of what memories hold at first.
                f"mutate -list {count + count // 4 + 8} -seed {seed} -ctrl {PORT} 1 1 -o list.txt",
                "",
            ]
        ),
    )
    verilog = unit.verilog.read_text().splitlines()
    mutants = _parse((folder / "list.txt").read_text(), count, verilog)
    applied = [f"mutate -ctrl {PORT} {width} {each.number} {each.fault}" for each in mutants]
    mutated = EmittedFiles(
        top, *(folder / f"mutated{suffix}" for suffix in (".v", ".json", ".core"))
    )
    script = ["read_rtlil unit.il", *applied, "opt_clean", "write_rtlil mutated.il"]
    run_yosys(folder, "mutate", "\n".join([*script, "write_verilog -noattr mutated.v", ""]))
    facts = Facts.load(unit.json)
    port = Port(PORT, "input", width)
    write_atomic(mutated.json, replace(facts, signals=(*facts.signals, port)).to_json())
    return MutatedUnit(mutated, unit, mutants, folder)
