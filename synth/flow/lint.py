"""Lint of emitted Verilog with two tools: Verilator with all warnings, yosys' structural checks."""

import tempfile
from pathlib import Path

from m2xfp.files import cache_environment
from m2xfp.plain import check_module_name
from m2xfp.processes import run
from m2xfp.synth.flow.yosys import yosys_command
from m2xfp.tb import verilator as tools

__all__ = ["lint_file"]

# Forms that are harmless, each with its reason; any other warning is a finding.
WAIVERS = Path(tools.__file__).with_name("lint.vlt")


def lint_file(verilog: Path, top: str) -> list[str]:
    """Check one file with both tools.

    Returns
    -------
    What each tool that was not content had to say; empty if both were.

    Raises
    ------
    InputError
        If ``top`` is no name of a module.
    MissingToolError
        If Verilator or yosys is missing.
    """
    check_module_name(top)
    # A copy with a plain path: in file names Verilator expands variables, and yosys ends commands.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{top}.v").write_bytes(verilog.read_bytes())
        return [
            f"{verilog}, {tool}:\n{text}"
            for tool, text in (
                ("Verilator", _verilator(folder, top)),
                ("yosys", _yosys(folder, top)),
            )
            if text
        ]


def _verilator(folder: Path, top: str) -> str:
    """Return Verilator's warnings and errors, or an empty text."""
    (folder / WAIVERS.name).write_bytes(WAIVERS.read_bytes())
    options = ["--lint-only", "-Wall", "--top-module", top, WAIVERS.name, f"{top}.v"]
    done = tools.find_verilator().run(options, folder)
    return done.stdout if done.returncode else ""


def _yosys(folder: Path, top: str) -> str:
    """Return yosys' complaints, or an empty text."""
    script = "\n".join(
        [
            f"read_verilog -noautowire {top}.v",
            f"hierarchy -check -top {top}",
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
