"""A unit's FuseSoC core, run as its users do: lint, and vectors in Icarus and in Verilator.

FuseSoC copies the files of a target to a folder of its own, so a target that passes also has every
file that it needs.
"""

import os
import re
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from m2xfp.extras import require
from m2xfp.files import is_plain, plain_folder
from m2xfp.processes import run
from m2xfp.rtl.catalog import Instance
from m2xfp.tb.bench import find_bench, random_operands
from m2xfp.tb.portable import Pauses
from m2xfp.tb.portable_core import write_vectors
from m2xfp.tb.verilator import find_verilator

__all__ = ["SIMULATORS", "CoreError", "check_core", "find_fusesoc", "run_target"]

SIMULATORS = ("icarus", "verilator")
_LANES, _DEPTH = 3, 8  # 24 groups at least: sums of several groups, several sums


class CoreError(AssertionError):
    """A target of a core failed; the text has what the tool said."""


def find_fusesoc() -> None:
    """Raise MissingToolError unless FuseSoC is installed."""
    require("fusesoc")


def run_target(folder: Path, core: str, target: str, tool: str | None = None) -> str:
    """Run a target of a core that lies in ``folder``, and return what the tools said.

    Parameters
    ----------
    folder
        With ``<core>.core`` and its files; FuseSoC builds in it, or in a copy with a plain name.
    core
        Name of the core, a unit's ``top``.
    target
        ``lint`` or ``sim``.
    tool
        One of ``SIMULATORS``, for ``sim``; the core's own choice if left out.

    Raises
    ------
    CoreError
        The target failed.
    MissingToolError
        FuseSoC or Verilator is not installed.
    """
    find_fusesoc()
    tools = find_verilator()
    path = f"{tools.executable.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, "-P", "-m", "fusesoc.main", "--cores-root", "."]
    command += ["run", f"--target={target}", core, *(["--tool", tool] if tool else [])]
    with ExitStack() as stack:
        if not is_plain(folder.resolve()):  # make takes no spaces, and the shell takes the rest
            copy = stack.enter_context(plain_folder(folder.resolve())) / "core"
            folder = Path(shutil.copytree(folder, copy))
        done = run(command, cwd=folder, environment={**tools.environment, "PATH": path})
    if done.returncode or "%Warning" in done.stdout:
        raise CoreError(f"{core}, target {target}, {tool or 'verilator'}:\n{done.stdout}")
    return done.stdout


def check_core(instance: Instance, folder: Path) -> int:
    """Lint a unit's core and play its vectors in both simulators; return the beats compared.

    Parameters
    ----------
    instance
        The unit.
    folder
        Is emptied; the core and what FuseSoC builds lie there afterwards.

    Raises
    ------
    CoreError
        By `run_target`, and if a simulation does not pass.
    """
    shutil.rmtree(folder, ignore_errors=True)
    facts, bench = instance.facts, find_bench(instance.unit)
    arrays = bench.sample(random_operands(_LANES, _DEPTH, 1), facts)
    write_vectors(instance, bench.vectors(arrays, facts, 1), folder, Pauses())
    run_target(folder, facts.top, "lint")
    beats = 0
    for tool in SIMULATORS:
        said = run_target(folder, facts.top, "sim", tool)
        passed = re.search(r"^PASS: (\d+) ", said, re.MULTILINE)
        if passed is None:
            raise CoreError(f"{facts.top}, target sim, {tool}:\n{said}")
        beats += int(passed[1])
    return beats
