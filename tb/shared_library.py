"""Verilog as a shared library: compiled with Verilator behind a C interface, loaded with ctypes.

What a model is driven by is C++ of its own (bulk/simulator.cpp; a board's serial line and a chip's
pins in fpga/): a few functions with a common prefix, the first of which make and free a model.
"""

import ctypes
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError, tool_failure
from m2xfp.plain import check_module_name
from m2xfp.tb.cache import BUILD_DIR, cached_build
from m2xfp.tb.verilator import find_verilator, require_headers

__all__ = ["Signatures", "build_library", "load_library"]

# Several models live in one process, all with a class of one name: nothing of one may bind to
# another.
CXX_FLAGS = "-fPIC -fvisibility=hidden -fno-gnu-unique"
LINK_FLAGS = "-shared -Wl,-Bsymbolic"

# Headers that a model with waveforms needs, and the Debian packages that have them.
TRACE_HEADERS = {"lz4.h": "liblz4-dev", "zlib.h": "zlib1g-dev"}

Signatures = Mapping[str, tuple[Any, ...]]
"""Result type and argument types of C functions, by name without the prefix."""


def build_library(
    verilog: Path,
    top: str,
    sources: Sequence[Path],
    *,
    name: str,
    prefix: str = "Vtop",
    undefined: str = "unique",
    options: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    trace: bool = False,
    build_dir: Path = BUILD_DIR,
) -> Path:
    """Return the shared library of a design, building it unless it is there already.

    Parameters
    ----------
    verilog, top
        The design and its top module.
    sources
        C++ that drives it, and other Verilog that goes with it.
    name
        Start of the build folder's name, and the name of the library.
    prefix
        Class of the model.
    undefined
        What undefined bits and registers are before reset: ``unique``, chosen by each model, or
        ``0``.
    options
        More options of Verilator.
    headers
        Text of headers that the sources include, by file name; ``obj/`` is where Verilator writes,
        whose sources find what is there before their own headers.
    trace
        Build it so that it can write waveforms.
    build_dir
        Folder of the build cache; the key is a hash of everything that goes into the build.

    Raises
    ------
    InputError
        If ``top`` or the file's name is more than a name to Verilator or make.
    MissingToolError
        If Verilator or a program or header that it needs is missing.
    ToolError
        If it fails; FileError if the file system refused it something.
    """
    check_module_name(top)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.]*", verilog.name):
        raise InputError(f"{verilog}: Verilator takes a file whose name has no special characters")
    verilator, headers = find_verilator(), headers or {}
    library = f"{name}.so"
    arguments = [
        *("--cc", "--exe", "--build", "-O3", "--x-assign", undefined, "--x-initial", undefined),
        *("--prefix", prefix, "--top-module", top, "-Wno-fatal", *options),
        *("-CFLAGS", CXX_FLAGS, "-LDFLAGS", LINK_FLAGS, "-j", "0"),
        *("-Mdir", "obj", "-o", f"../{library}", *(["--trace-fst"] if trace else [])),
        *(verilog.name, *(source.name for source in sources)),
    ]

    def build(folder: Path) -> None:
        if trace:
            require_headers(TRACE_HEADERS)
        for file, text in headers.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)
        for source in sources:
            shutil.copy(source, folder)
        done = verilator.run(arguments, folder)
        if done.returncode:
            raise tool_failure("Verilator", verilog, done.stdout, done.returncode, build_dir)
        shutil.rmtree(folder / "obj")

    texts = [source.read_text() for source in sources]
    facts = [*headers.values(), *texts, verilator.version, *arguments]
    return cached_build(build_dir, f"{top}-{name}", verilog, facts, build) / library


def load_library(path: Path, prefix: str, signatures: Signatures) -> ctypes.CDLL:
    """Load a library and declare its functions, which are called ``<prefix>_<name>``."""
    library = ctypes.CDLL(str(path.resolve()))
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, f"{prefix}_{name}")
        function.restype, function.argtypes = result, arguments
    return library
