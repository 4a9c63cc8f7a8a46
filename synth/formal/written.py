"""Jobs about how a unit is written: as Verilog from Amaranth's netlist, and as library cells."""

import re
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from m2xfp.rtl.verilog.component import EmittedModule
from m2xfp.rtl.verilog.emit import yosys_verilog
from m2xfp.rtl.verilog.names import plain_names
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome
from m2xfp.synth.formal.equivalence import NotEqualError, prove_equal, read
from m2xfp.synth.formal.job import Job

__all__ = ["JOBS", "prove_written"]

# Lines of Verilog up to which it was seen to take seconds.
_SHORT = 600


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


JOBS = (
    Job(
        "written",
        "the emitted Verilog is what Amaranth gave, module by module",
        "SAT, registers cut",
        lambda design: True,
        _written,
        _wrong_texts,
        slow=lambda design: design.verilog.count("\n") > _SHORT,
    ),
)
