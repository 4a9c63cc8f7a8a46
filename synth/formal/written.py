"""Jobs about how a unit is written: as Verilog from Amaranth's netlist, and as library cells."""

import json
import re
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from m2xfp.rtl.verilog.component import EmittedModule
from m2xfp.rtl.verilog.emit import yosys_verilog
from m2xfp.rtl.verilog.writer import plain_names
from m2xfp.synth.flow.pdk import DEFAULT_PDK, find_pdk
from m2xfp.synth.flow.yosys import synthesize
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, never
from m2xfp.synth.formal.equivalence import NotEqualError, prove_equal, read
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import Flat, from_any_state, run_yosys, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS", "prove_written"]


def prove_written(
    raw: str,
    modules: Mapping[str, EmittedModule],
    text: str,
    folder: Path,
    proved: Collection[str] = (),
) -> None:
    """Prove a text equal to what Amaranth gives, module by module.

    Parameters
    ----------
    raw, modules
        As ``yosys_verilog`` returns them.
    text
        What the writer made of them, or something else that is to be equal.
    folder
        For the files of yosys.
    proved
        Modules to leave out.

    Raises
    ------
    NotEqualError
        A module differs.
    """
    design = "\n".join(module.rtlil for module in modules.values())
    (folder / "amaranth.il").write_text(design)
    (folder / "written.v").write_text(text)
    names = plain_names(raw, modules)

    def name_in_text(module: str, name: str) -> str:
        bare = name.removeprefix("\\")
        return names[module].get(bare) or names[module].get(f"\\{bare}") or f"not written: {name}"

    prove_equal(
        folder,
        read(folder, "read_rtlil amaranth.il", name_in_text),
        read(folder, "read_verilog -sv written.v"),
        proved=proved,
    )


def _written(design: Design) -> Outcome:
    begin = time.perf_counter()
    raw, modules = yosys_verilog(design.instance.component, design.instance.top)
    with tempfile.TemporaryDirectory() as name:
        try:
            prove_written(raw, modules, design.verilog, Path(name))
        except NotEqualError as error:
            told = str(error).splitlines()[0]
            return Outcome(False, f"fails: {told}"[:80], time.perf_counter() - begin)
    return Outcome(True, f"{len(modules)} modules", time.perf_counter() - begin)


def _wrong_texts(design: Design) -> Iterator[Design]:
    """Yield the unit with an inversion at one place of its text, a place after the other."""
    for found in re.finditer(r"(?<== )(~?)(\w+)( [&|] )?", design.verilog):
        # The first operand of an assignment, inverted.
        text = design.verilog
        line = text[: found.start()].count("\n") + 1
        inverted = found[2] if found[1] else f"~{found[2]}"
        text = text[: found.start()] + inverted + (found[3] or "") + text[found.end() :]
        fault = f"{found[2]} is inverted, line {line}"
        yield replace(design, fault=fault, verilog=text, _modules={})


def _cells(design: Design) -> Flat:
    """Return the netlist of a unit in library cells, by what the library says that they do."""
    pdk = find_pdk(DEFAULT_PDK)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.v").write_text(design.verilog)
        netlist = synthesize(folder / "in.v", design.facts.top, pdk, build=folder.absolute())
        text = netlist.verilog.read_text()
        reads = []
        for number, path in enumerate(pdk.liberty):
            (folder / f"{number}.lib").write_bytes(path.read_bytes())
            reads.append(f"read_liberty -ignore_miss_func {number}.lib")
        (folder / "netlist.v").write_text(text)
        run_yosys(
            folder,
            "\n".join(
                [
                    *reads,
                    "read_verilog netlist.v",
                    f"hierarchy -check -top {design.facts.top}",
                    "flatten\nopt_clean -purge\nwrite_json out.json",
                ]
            ),
        )
        modules = json.loads((folder / "out.json").read_text())["modules"]
    return Flat(design.facts.top, modules[design.facts.top])


def _mapped(design: Design) -> Outcome:
    """Compare a combinational unit with its cells: both side by side in a harness."""
    begin = time.perf_counter()
    gates = from_any_state(simple(_cells(replace(design, broken=None))))
    text = from_any_state(simple(design.module()))
    outputs = [port.name for port in design.facts.signals if not port.is_input]
    body = [f"  wire [{len(text.ports[name]) - 1}:0] {name}_mapped;" for name in outputs]
    pins = [f".{name}({name}_mapped)" for name in outputs]
    pins += [f".{port.name}({port.name})" for port in design.facts.signals if port.is_input]
    body += [f"  mapped cells ({', '.join(pins)});"]
    body += ["  assign bad = " + " | ".join(f"{name} != {name}_mapped" for name in outputs) + ";"]
    both = text.text_with({"mapped": gates.module})
    outcome = never(both, harness(text, body), LIMIT)
    return replace(outcome, seconds=time.perf_counter() - begin)


JOBS = (
    Job(
        "written",
        "the emitted Verilog is what Amaranth gave, module by module",
        "SAT, registers cut",
        lambda design: True,
        _written,
        _wrong_texts,
        slow=True,
    ),
    Job(
        "mapped",
        f"a unit without state in cells of {DEFAULT_PDK} is its Verilog",
        "SAT sweeping",
        lambda design: not design.facts.clock,
        _mapped,
        lambda design: design.gate_faults(""),
    ),
)
