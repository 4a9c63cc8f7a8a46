"""Static timing of a mapped netlist with OpenSTA: critical path, slack, and its ends in RTL names.

Ideal clock, before and behind clock gates; no wires (the library's wire-load model is removed),
every data input driven by the library's buffer and arriving at the clock edge, every output loaded
with four NAND2 inputs and required at the next edge. OpenSTA goes on after an error with what is
left of the netlist and still exits with 0, so its log is read: any error or warning fails the run.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import MissingToolError
from m2xfp.files import read_sealed, write_atomic, write_sealed
from m2xfp.processes import run
from m2xfp.rtl.verilog.beside.constraints import TimingBudget, sdc_of_ports
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import BUILD, Netlist, SynthesisError, prepared_liberty

__all__ = ["Stage", "Timing", "find_sta", "time_netlist"]

_DONE = "timing script is done"
_SLEW_NS = 0.0  # of the clock


@dataclass(frozen=True)
class Stage:
    """One output pin on the critical path.

    Members
    -------
    cell, name
        Library cell; the register or net of the RTL that it gives, empty for one that synthesis
        made.
    time_ns
        Arrival at its output.
    """

    cell: str
    name: str
    time_ns: float


@dataclass(frozen=True)
class Timing:
    """The slowest path of a netlist.

    Members
    -------
    critical_path_ns
        Shortest clock period: the clock less the worst slack, setup time included.
    fmax_mhz
        Its inverse.
    slack_ns
        Worst slack at the clock target.
    start, end
        Register or port of the RTL where the path begins and ends; "enable of" a register if it
        ends at a clock gate.
    stages
        The path.
    """

    critical_path_ns: float
    fmax_mhz: float
    slack_ns: float
    start: str
    end: str
    stages: tuple[Stage, ...]


def tcl_word(text: str) -> str:
    """Return ``text`` as one word of Tcl: nothing in it is substituted, executed or split.

    Every character but letters, digits and a few harmless ones gets a backslash, which is the
    character itself in Tcl. Raises ValueError for control characters, which stand for others there.
    """
    if not text or not text.isprintable():
        raise ValueError(f"{text!r} cannot be a word of a Tcl script")
    return re.sub(r"[^A-Za-z0-9_./-]", r"\\\g<0>", text)


def _constraints(netlist: Netlist, ports: Mapping[str, Any], clock: str | None) -> str:
    """Return the SDC of a netlist: its clock, and no delays outside of it."""
    words = ((name, port["direction"], len(port["bits"])) for name, port in ports.items())
    budget = TimingBudget(netlist.options.clock_ns, 0, 0)
    return sdc_of_ports(words, clock, budget)


def _script(netlist: Netlist, pdk: Pdk, build: Path, clock: str | None, sdc: str) -> str:
    """Return the script; it runs in the netlist's folder, so no path of the user is in it."""
    lines = [
        *(
            f"read_liberty {os.path.relpath(prepared_liberty(path, build), netlist.folder)}"
            for path in pdk.liberty
        ),
        f"read_verilog {netlist.verilog.name}",
        f"link_design {tcl_word(netlist.top)}",
        "set_cmd_units -time ns -capacitance fF",
        f"read_sdc {sdc}",
        "set inputs {}",
        "foreach port [all_inputs] {",
        f'  if {{[get_full_name $port] ne "{clock or ""}"}} {{lappend inputs $port}}',
        "}",
        f"set_driving_cell -lib_cell {tcl_word(pdk.driver_cell.name)} $inputs",
        f"set_load {pdk.load_ff:.6g} [all_outputs]",
        "report_worst_slack -digits 6",
        "report_checks -path_delay max -format full -digits 6",
        f'puts "{_DONE}"',
    ]
    return "\n".join(lines) + "\n"


_POINT = re.compile(r"^\s+-?[\d.]+\s+(-?[\d.]+) [v^] (\S+)/(\S+) \((\S+)\)$", re.MULTILINE)


def _rtl_name(instance: str) -> str:
    """Return the RTL's name within the name of an instance, empty if synthesis made it.

    The flow names an instance <wire><separator><cell>, where separator is a backslash for a
    library cell and $ for an internal flip-flop.
    """
    if re.fullmatch(r"_\d+_|\$.*|\\?\$.*", instance):
        return ""
    return re.split(r"\\|\$_", instance)[0]


def find_sta() -> str:
    """Return the path of OpenSTA; MissingToolError if it is not installed."""
    program = shutil.which("sta")
    if program is None:
        raise MissingToolError(
            "OpenSTA (program sta)", "apt-get install opensta (Debian 12 and 13 have it)"
        )
    return program


def time_netlist(netlist: Netlist, pdk: Pdk, build: Path = BUILD) -> Timing:
    """Return the slowest path of a mapped netlist.

    Raises
    ------
    MissingToolError
        OpenSTA is not installed.
    SynthesisError
        OpenSTA reported an error or a warning, or no path.
    """
    program = find_sta()
    build = Path(build).absolute()
    ports = json.loads(netlist.json.read_text())["modules"][netlist.top]["ports"]
    clock = "clk" if "clk" in ports and netlist.flops else None
    log = netlist.folder / f"timing-{netlist.options.clock_ns!r}.log"
    kept = read_sealed(log)
    if kept is None:
        sdc = write_atomic(log.with_suffix(".sdc"), _constraints(netlist, ports, clock))
        script = _script(netlist, pdk, build, clock, sdc.name)
        source = write_atomic(log.with_suffix(".tcl"), script)
        done = run([program, "-exit", "-no_splash", source.name], cwd=netlist.folder)
        complaints = [
            line for line in done.stdout.splitlines() if re.match(r"\s*(Error|Warning)", line)
        ]
        if done.returncode or complaints or _DONE not in done.stdout:
            failed = write_atomic(log.with_suffix(".failed.log"), done.stdout)
            told = "; ".join(complaints[:3]) or f"exit {done.returncode} before the end"
            raise SynthesisError(f"OpenSTA on {netlist.top}: {told} (log: {failed})")
        write_sealed(log, done.stdout)
        kept = done.stdout.encode()
    return _parse(kept.decode(), netlist, pdk)


def _end_name(instance: str, netlist: Netlist, pdk: Pdk) -> str:
    """Return what a path ends at: a register, a port, or the enable of registers."""
    module = json.loads(netlist.json.read_text())["modules"][netlist.top]
    kind = module["cells"].get(instance, {}).get("type")
    gate = pdk.library.cells[kind].clock_gate if kind in pdk.library.cells else None
    if not gate:
        return _rtl_name(instance) or instance
    clock = module["cells"][instance]["connections"][gate.gated]
    registers = [
        _rtl_name(name)
        for name, cell in module["cells"].items()
        if clock in cell["connections"].values() and name != instance
    ]
    return f"enable of {min(registers, key=lambda name: (len(name), name))}"


def _parse(text: str, netlist: Netlist, pdk: Pdk) -> Timing:
    worst = re.search(r"^worst slack (-?[\d.]+)$", text, re.MULTILINE)
    start = re.search(r"^Startpoint: (\S+)", text, re.MULTILINE)
    end = re.search(r"^Endpoint: (\S+)", text, re.MULTILINE)
    if not (worst and start and end):
        raise SynthesisError(f"OpenSTA found no path in {netlist.top}; nothing to report")
    slack = float(worst[1])
    path = netlist.options.clock_ns - slack
    if path <= 0:
        raise SynthesisError(f"{netlist.top}: its longest path takes no time; nothing to report")
    stages = tuple(
        Stage(cell, _rtl_name(instance), float(time))
        for time, instance, _, cell in _POINT.findall(text.split("data arrival time")[0])
    )
    return Timing(
        critical_path_ns=round(path, 6),
        fmax_mhz=round(1e3 / path, 3),
        slack_ns=slack,
        start=_rtl_name(start[1]) or start[1],
        end=_end_name(end[1], netlist, pdk),
        stages=stages,
    )
