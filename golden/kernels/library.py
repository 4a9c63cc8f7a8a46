"""Compiled C++ for a level of processors: built once, kept in the user's cache folder, checked.

The best level that this processor runs is chosen when a library is loaded, and a library is named
by its level: machines of different kinds may share a cache folder.

A cache entry is one file, moved into place when it is whole: the library, and behind it its hash.
So processes that build at the same time, or are killed while they do, leave nothing that harms.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from m2xfp.errors import NoFusedPathError
from m2xfp.files import atomic_path
from m2xfp.processes import run

__all__ = ["Library"]

_FLAGS = ("-O3", "-std=c++17", "-Wno-psabi", "-fPIC", "-shared")
_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")
_LEVELS = (
    (*_AVX512, "avx512_vnni"),
    _AVX512,
    (*_AVX2, "avx_vnni"),
    _AVX2,
    (),
)
"""Features of x86 processors as Linux names them, the best first; the last level is any."""
_HASH_BYTES = 32
# A build takes seconds; what an hour old one has left was killed.
_ABANDONED_SECONDS = 3600
_GET_COMPILER = "install one (apt-get install g++), or name another one in CXX"


class Library:
    """The library of one source.

    Parameters
    ----------
    source
        A C++ file.
    flags
        Compiler flags beside the usual ones.
    declare
        Gives the types of the functions to the loaded library.
    headers
        Files beside the source that it includes.
    """

    def __init__(
        self,
        source: Path,
        flags: tuple[str, ...],
        declare: Callable[[ctypes.CDLL], None],
        headers: tuple[str, ...] = (),
    ) -> None:
        self.source, self.flags, self.declare = source, (*_FLAGS, *flags), declare
        self.headers = tuple(source.with_name(name) for name in headers)
        self._found: ctypes.CDLL | NoFusedPathError | None = None

    def load(self) -> ctypes.CDLL:
        """Return the library; NoFusedPathError says what is missing. Both stay until ``forget``."""
        found = self._found
        if found is None:
            try:
                found = self._built()
            except NoFusedPathError as error:
                found = error
            self._found = found
        if isinstance(found, NoFusedPathError):
            raise found.with_traceback(None)
        return found

    def forget(self) -> None:
        """Look for compiler and library again at the next call."""
        self._found = None

    def _built(self) -> ctypes.CDLL:
        """Compile the library if needed, and load it.

        The name in the cache holds all that the machine code depends on: source, flags, among them
        those of the level, the compiler and its version, and the kind of machine. A library that
        does not load is built again.
        """
        compiler = _compiler()
        flags = (*self.flags, *_level_flags())
        texts = (path.read_text() for path in (self.source, *self.headers))
        facts = (*texts, *flags, *compiler, _version(compiler), platform.machine())
        name = hashlib.sha256("\0".join((*facts, sys.byteorder)).encode()).hexdigest()[:24]
        path = _folder() / f"{self.source.stem}-{name}.so"
        for last in (False, True):
            if last or not _is_whole(path):
                self._compile([*compiler, *flags], path)
            try:
                library = ctypes.CDLL(str(path))
                self.declare(library)
                return library
            except (OSError, AttributeError) as error:
                if last:
                    raise NoFusedPathError(
                        "CPU",
                        f"a compiled library that loads ({error})",
                        "set XDG_CACHE_HOME to a folder that code may run from, or CXX to another "
                        "compiler",
                    ) from error
        raise AssertionError

    def _compile(self, compiler: list[str], path: Path) -> None:
        """Build the library; NoFusedPathError says what the compiler or the cache folder lacks."""
        try:
            with atomic_path(path) as temporary:
                command = [*compiler, str(self.source), "-o", str(temporary)]
                done = _run(command)
                if done.returncode:
                    raise _failure(done.stderr)
                built = temporary.read_bytes()
                temporary.write_bytes(built + hashlib.sha256(built).digest())
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            # Of the folder alone: for several libraries there it is one cause, told once.
            raise _no_folder(f"{path.parent}: {cause.strerror or cause}") from error
        _sweep(path.parent)


def _compiler() -> list[str]:
    """Return the command of the C++ compiler; NoFusedPathError if there is none."""
    asked = os.environ.get("CXX") or "g++"
    try:
        words = shlex.split(asked)
    except ValueError:
        words = [asked]
    found = shutil.which(words[0]) if words else None
    if found is None:
        raise NoFusedPathError(
            "CPU", f"a C++ compiler (no program {asked!r} is found)", _GET_COMPILER
        )
    return [found, *words[1:]]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler; NoFusedPathError if it is no program."""
    try:
        return run(command, merged=False)
    except OSError as error:
        lacks = f"a C++ compiler that runs ({error})"
        raise NoFusedPathError("CPU", lacks, _GET_COMPILER) from error


def _version(compiler: list[str]) -> str:
    """Return what the compiler says of itself."""
    return _run([*compiler, "--version"]).stdout


def _failure(said: str) -> NoFusedPathError:
    """Return what a build lacked that failed: room, or another compiler."""
    said = said.strip()[-500:]
    if "No space left" in said or "cannot open output file" in said or "file too large" in said:
        return _no_folder(said)
    return NoFusedPathError("CPU", f"a C++ compiler that builds it ({said})", _GET_COMPILER)


def _no_folder(why: str) -> NoFusedPathError:
    return NoFusedPathError(
        "CPU",
        f"a cache folder that can be written ({why})",
        "set XDG_CACHE_HOME to a folder with room",
    )


def _folder() -> Path:
    """Return the folder of the cache; NoFusedPathError if nothing says where it could be."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(chosen) if chosen else Path.home() / ".cache") / "m2xfp"
    except RuntimeError as error:  # neither HOME nor an entry for this user
        raise _no_folder(str(error)) from error


def _features() -> frozenset[str]:
    """Return the features of this processor by their names in Linux; none where it tells none."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def _level_flags() -> tuple[str, ...]:
    """Return the compiler flags of the best level that this processor runs."""
    here = _features()
    level = next(level for level in _LEVELS if here.issuperset(level))
    return tuple("-m" + name.replace("_", "") for name in level)


def _is_whole(path: Path) -> bool:
    """Whether the library is there as it was built: loading a truncated one can end the process."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data[:-_HASH_BYTES]).digest() == data[-_HASH_BYTES:]


def _sweep(folder: Path) -> None:
    """Remove what builds have left that were killed."""
    for path in folder.glob(".*.so"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
        except OSError:  # another process was faster
            continue
