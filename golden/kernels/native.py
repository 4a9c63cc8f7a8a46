"""The fused CPU path: compiles ``native.cpp`` once a machine and calls it on tensors.

Needs a C++ compiler (``CXX``, else ``g++``); without one the plain path serves. One library serves
every format: what a format is comes at run time (``plan``). It is kept in the user's cache folder.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from m2xfp.errors import MissingToolError
from m2xfp.files import atomic_path, write_atomic
from m2xfp.golden.kernels.plan import Plan
from m2xfp.processes import run

__all__ = ["NativeKernels", "forget", "kernels_of", "load"]

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-ffp-contract=off",
    "-Wno-psabi",
    "-fPIC",
    "-shared",
)
_TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
_QUANTIZE, _FAKE, _DEQUANTIZE = range(3)
# Below this many values a thread a call in the caller's own thread is faster.
_VALUES_A_THREAD = 1 << 17


def _processor() -> str:
    """Return what -march=native depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2xfp"


def _digest(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    """Whether the library is there as it was built: loading a truncated one can end the process."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _digest(path).read_text()
    except OSError:
        return False


def _compile(compiler: str, path: Path) -> None:
    """Build the library; MissingToolError says what the compiler or the cache folder lacks."""
    try:
        with atomic_path(path) as temporary:
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(temporary)]
            done = run(command, merged=False)
            if done.returncode:
                raise MissingToolError(
                    f"a C++ compiler that builds {_SOURCE.name} ({done.stderr.strip()[-500:]})",
                    "apt-get install g++",
                )
            digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        write_atomic(_digest(path), digest)
    except OSError as error:
        raise MissingToolError(
            f"a cache folder that can be written for the fused CPU path ({error})",
            "set XDG_CACHE_HOME to a folder with room",
        ) from error


def load() -> ctypes.CDLL:
    """Return the library; MissingToolError says what is missing. Both stay until ``forget``."""
    found = _load()
    if isinstance(found, MissingToolError):
        raise found
    return found


def forget() -> None:
    """Look for compiler and library again at the next call."""
    _load.cache_clear()
    kernels_of.cache_clear()


@cache
def _load() -> ctypes.CDLL | MissingToolError:
    """Try once to find or make the library."""
    try:
        return _built()
    except MissingToolError as error:
        return error


def _built() -> ctypes.CDLL:
    """Compile the library if needed, and load it; MissingToolError says what is missing.

    The name in the cache holds all that the machine code depends on: source, flags, the compiler
    and its version, and the processor. A library that does not load is built once more.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise MissingToolError("a C++ compiler for the fused CPU path", "apt-get install g++")
    facts = (_SOURCE.read_text(), *_FLAGS, compiler, _version(compiler), _processor())
    name = hashlib.sha256("\0".join((*facts, sys.byteorder)).encode()).hexdigest()[:24]
    path = _folder() / f"native-{name}.so"
    for last in (False, True):
        if last or not _is_whole(path):
            _compile(compiler, path)
        try:
            return _declared(ctypes.CDLL(str(path)))
        except (OSError, AttributeError) as error:
            if last:
                raise MissingToolError(
                    f"a C++ compiler whose libraries load ({error})", "apt-get install g++"
                ) from error
    raise AssertionError


def _version(compiler: str) -> str:
    """Return what the compiler says of itself."""
    done = run([compiler, "--version"], merged=False)
    return done.stdout


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Return the library with the types of its functions."""
    pointer, whole = ctypes.c_void_p, ctypes.c_int
    library.m2xfp_run.argtypes = [pointer, whole, whole, ctypes.c_int64, *[pointer] * 6]
    library.m2xfp_run.restype = None
    library.m2xfp_largest.argtypes = [whole, ctypes.c_int64, pointer]
    library.m2xfp_largest.restype = ctypes.c_float
    return library


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="m2xfp")


def _spread(count: int, group: int, part: Callable[[int, int], object]) -> list[object]:
    """Call ``part(start, stop)`` on the groups, split over PyTorch's number of threads."""
    threads = max(1, min(torch.get_num_threads(), count * group // _VALUES_A_THREAD))
    step = max(1, -(-count // threads))
    ranges = [(start, min(start + step, count)) for start in range(0, count, step)]
    if len(ranges) < 2:
        return [part(*both) for both in ranges]
    # ctypes lets go of the interpreter lock during the call
    return [done.result() for done in [_pool().submit(part, *both) for both in ranges]]


class NativeKernels:
    """The compiled functions of one plan; see ``Kernels``."""

    name = "native"

    def __init__(self, plan: Plan) -> None:
        self.library = load()
        self.group = plan.group
        numbers = plan.numbers()
        self.plan = (ctypes.c_double * len(numbers))(*numbers)

    def largest(self, groups: Tensor) -> Tensor:
        """Return the largest finite magnitude, a float32 scalar."""
        kind = _TYPES[groups.dtype]

        def part(start: int, stop: int) -> object:
            return self.library.m2xfp_largest(
                kind, (stop - start) * self.group, groups[start:].data_ptr()
            )

        return torch.tensor(
            [0.0, *_spread(len(groups), self.group, part)], dtype=torch.float32
        ).amax()

    def _run(
        self, what: int, dtype: torch.dtype, unit: Tensor | None, planes: list[Tensor | None]
    ) -> None:
        """Call the library on planes [n, bytes a group]."""
        count = next(len(plane) for plane in planes if plane is not None)
        kind = _TYPES[dtype]
        level = None if unit is None else unit.data_ptr()

        def part(start: int, stop: int) -> None:
            pointers = [None if plane is None else plane[start:].data_ptr() for plane in planes]
            self.library.m2xfp_run(self.plan, what, kind, stop - start, level, *pointers)

        _spread(count, self.group, part)

    def quantize(
        self, groups: Tensor, codes: Tensor, scales: Tensor, meta: Tensor, unit: Tensor | None
    ) -> None:
        """Quantize contiguous groups [n, group] into contiguous planes [n, bytes]."""
        self._run(_QUANTIZE, groups.dtype, unit, [groups, codes, scales, meta, None])

    def fake_quantize(self, groups: Tensor, values: Tensor, unit: Tensor | None) -> None:
        """Quantize and dequantize contiguous groups [n, group] into ``values``."""
        self._run(_FAKE, groups.dtype, unit, [groups, None, None, None, values])

    def dequantize(
        self, codes: Tensor, scales: Tensor, meta: Tensor, values: Tensor, unit: Tensor | None
    ) -> None:
        """Dequantize contiguous planes into ``values`` [n, group]."""
        self._run(_DEQUANTIZE, values.dtype, unit, [None, codes, scales, meta, values])


@cache
def kernels_of(plan: Plan) -> NativeKernels:
    """Return the kernels of a plan; MissingToolError says what is missing."""
    return NativeKernels(plan)
