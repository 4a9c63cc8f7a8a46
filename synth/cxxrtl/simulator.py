"""A third simulator: CXXRTL, yosys' own, behind the interface of the bulk simulator.

Another parser, another model of time and another code generator than Verilator's, so a fault of
one does not hide in the other. The C++ that drives the streams is the same (tb/bulk/simulator.cpp);
a header gives the model the form that it knows. Registers begin at random.
"""

import shutil
from pathlib import Path

from m2xfp.errors import tool_failure
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.processes import run
from m2xfp.synth.flow.yosys import yosys_command
from m2xfp.tb.bulk.simulator import SOURCE, BulkSimulator, ports_header
from m2xfp.tb.cache import BUILD_DIR, cached_build
from m2xfp.tb.verilator import require_programs

__all__ = ["CxxrtlSimulator"]

_SHIMS = Path(__file__).parent / "shims"
# One level of optimisation: with two, a large unit takes minutes to compile and gains little.
_COMPILER = ("g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden")


class CxxrtlSimulator(BulkSimulator):
    """An emitted unit as a shared library that CXXRTL has made.

    Parameters
    ----------
    emitted
        The emitted files.
    build_dir
        Folder of the build cache.

    Raises
    ------
    MissingToolError
        If yosys or g++ is missing.
    """

    def __init__(self, emitted: EmittedFiles, *, build_dir: Path = BUILD_DIR) -> None:
        facts = Facts.load(emitted.json)
        require_programs("g++")
        command, version = yosys_command()
        texts = {
            "ports.h": ports_header(facts),
            "Vtop.h": _model_header(facts),
            "run.ys": f"read_verilog {emitted.verilog.name}\nhierarchy -check -top {facts.top}\n"
            "write_cxxrtl -g1 -header model.cc\n",
        }
        shims = [SOURCE, *sorted(_SHIMS.glob("*.h"))]

        def build(folder: Path) -> None:
            for name, text in texts.items():
                (folder / name).write_text(text)
            for path in shims:
                shutil.copy(path, folder)
            for step in (
                [*command, "run.ys"],
                [*_COMPILER, "-I.", f"-I{_runtime()}", SOURCE.name, "-o", "cxxrtl.so"],
            ):
                done = run(step, cwd=folder)
                if done.returncode:
                    raise tool_failure(
                        "CXXRTL", emitted.verilog, done.stdout, done.returncode, build_dir
                    )

        facts_of = [*texts.values(), *(path.read_text() for path in shims), version, *_COMPILER]
        folder = cached_build(build_dir, f"{facts.top}-cxxrtl", emitted.verilog, facts_of, build)
        super().__init__(emitted, library=folder / "cxxrtl.so")


def _runtime() -> Path:
    """Return the folder of CXXRTL's headers, which come with pyosys."""
    import importlib.util

    spec = importlib.util.find_spec("pyosys")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "share/include/backends/cxxrtl/runtime"


def _escaped(name: str) -> str:
    """Return what CXXRTL calls a port or module."""
    return "p_" + name.replace("_", "__")


def _model_header(facts: Facts) -> str:
    """Return Vtop.h: the model with its ports as members, as Verilator would have it."""
    members, binds = [], []
    for name, _, _ in facts.ports():
        members.append(f"    uint8_t& {name};")
        binds.append(f"{name}(low_byte(model.{_escaped(name)}))")
    lines = [
        '#include "model.cc"',
        '#include "verilated.h"',
        "",
        "class Vtop {",
        f"    cxxrtl_design::{_escaped(facts.top)} model;",
        "public:",
        *members,
        "    Vtop(VerilatedContext* context, const char*)",
        f"        : {', '.join(binds)} {{ randomise(model, *context); }}",
        "    void eval() { model.step(); }",
        "    void final() {}",
        "};",
        "",
    ]
    return "\n".join(lines)
