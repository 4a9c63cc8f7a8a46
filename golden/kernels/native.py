"""The fused CPU path: compiles ``native.cpp`` once a machine and calls it on tensors.

Needs a C++ compiler (``CXX``, else ``g++``); without one the plain path serves. The library is kept
in the user's cache folder under a name made of source, flags, compiler and processor.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from m2xfp.errors import MissingToolError
from m2xfp.files import atomic_path

__all__ = ["dequantize", "fake_quantize", "load", "quantize"]

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
_METADATA = {"none": 0, "elem-em": 1, "sg-em": 2}
_QUANTIZE, _FAKE, _DEQUANTIZE = range(3)
_GROUP = 32
# Below this many groups a thread a call in the caller's own thread is faster.
_GROUPS_A_THREAD = 1 << 12


def _processor() -> str:
    """Return what -march=native depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")


@cache
def load() -> ctypes.CDLL:
    """Compile the library if needed, and load it; MissingToolError without a compiler that can."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise MissingToolError("a C++ compiler for the fused CPU path", "apt-get install g++")
    facts = (_SOURCE.read_text(), *_FLAGS, compiler, _processor(), sys.byteorder)
    name = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2xfp"
    path = folder / f"native-{name}.so"
    if not path.exists():
        with atomic_path(path) as temporary:
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(temporary)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise MissingToolError(
                    f"a C++ compiler that builds {_SOURCE.name} ({done.stderr.strip()[-500:]})",
                    "apt-get install g++",
                )
    library = ctypes.CDLL(str(path))
    pointer = ctypes.c_void_p
    library.m2xfp_run.argtypes = [
        *[ctypes.c_int] * 4, ctypes.c_int64, pointer, pointer, pointer, pointer, pointer,
    ]  # fmt: skip
    return library


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="m2xfp")


def _run(
    what: int, dtype: torch.dtype, metadata: str, adaptive: bool, *planes: Tensor | None
) -> None:
    """Call the library on planes [n, bytes a group], split over PyTorch's number of threads."""
    count = next(len(plane) for plane in planes if plane is not None)
    function = load().m2xfp_run
    threads = max(1, min(torch.get_num_threads(), count // _GROUPS_A_THREAD))
    step = -(-count // threads)

    def part(start: int) -> None:
        pointers = [None if plane is None else plane[start:].data_ptr() for plane in planes]
        size = min(step, count - start)
        function(what, _TYPES[dtype], _METADATA[metadata], int(adaptive), size, *pointers)

    starts = range(0, count, step) if count else ()
    if len(starts) == 1:
        part(0)
    else:  # ctypes lets go of the interpreter lock during the call
        for done in wait([_pool().submit(part, start) for start in starts]).done:
            done.result()


def quantize(
    groups: Tensor, codes: Tensor, scales: Tensor, meta: Tensor, metadata: str, adaptive: bool
) -> None:
    """Quantize contiguous groups [n, 32] into contiguous planes [n, 16], [n, 1], [n, 0 or 1]."""
    planes = (groups, codes, scales, meta if meta.shape[-1] else None, None)
    _run(_QUANTIZE, groups.dtype, metadata, adaptive, *planes)


def fake_quantize(groups: Tensor, values: Tensor, metadata: str, adaptive: bool) -> None:
    """Quantize and dequantize contiguous groups [n, 32] into ``values`` of the same type."""
    _run(_FAKE, groups.dtype, metadata, adaptive, groups, None, None, None, values)


def dequantize(codes: Tensor, scales: Tensor, meta: Tensor, values: Tensor, metadata: str) -> None:
    """Dequantize contiguous planes into ``values`` [n, 32]."""
    planes = (None, codes, scales, meta if meta.shape[-1] else None, values)
    _run(_DEQUANTIZE, values.dtype, metadata, False, *planes)
