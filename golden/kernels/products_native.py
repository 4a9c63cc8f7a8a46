"""Matrix products of packed tensors on a CPU: compiles ``products_native.cpp`` and calls it.

Needs a C++ compiler; without one the plain path serves. Compiled once a machine and kept like the
library of ``native``.
"""

import ctypes
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from m2xfp.errors import MissingToolError
from m2xfp.files import atomic_path
from m2xfp.golden.formats.numeric import round_product
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.native import _processor
from m2xfp.golden.kernels.products_facts import (
    LARGEST,
    describe,
    double_bits,
    limits,
    sum_bound,
)
from m2xfp.processes import run

__all__ = ["load", "matmul", "missing", "serves"]

_SOURCE = Path(__file__).with_name("products_native.cpp")
_FLAGS = (
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-std=c++17",
    "-ffp-contract=fast",
    "-Wno-psabi",
    "-fPIC",
    "-shared",
)
# Values of weights that are decoded at a time.
_WORKSPACE = 1 << 25
# Columns that a thread takes at a time.
_COLUMNS = 256


@cache
def load() -> ctypes.CDLL:
    """Compile the library if needed, and load it; MissingToolError where that cannot be done."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise MissingToolError("a C++ compiler for products on the CPU", "apt-get install g++")
    facts = (_SOURCE.read_text(), *_FLAGS, compiler, _processor(), sys.byteorder)
    name = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2xfp"
    path = folder / f"products-{name}.so"
    try:
        if not path.exists():
            _compile(compiler, path)
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # cut short by a full disk, say
            _compile(compiler, path)
            library = ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingToolError(
            f"a cache folder for compiled code ({error})", "another one in XDG_CACHE_HOME"
        ) from error
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for kind in ("float", "double"):
        function = getattr(library, f"m2xfp_multiply_{kind}")
        function.argtypes = [*[pointer] * 3, *[size] * 4, ctypes.c_int, pointer]
    library.m2xfp_panel_bytes.argtypes = [ctypes.c_int]
    library.m2xfp_panel_bytes.restype = size
    library.m2xfp_exponents.argtypes = [pointer, size, size, pointer, pointer]
    return library


def _compile(compiler: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(temporary)]
        done = run(command, merged=False)
        if done.returncode:
            raise MissingToolError(
                f"a C++ compiler that builds {_SOURCE.name} ({done.stderr.strip()[-500:]})",
                "apt-get install g++",
            )


def missing() -> str | None:
    """Return what is missing for these kernels, or None."""
    try:
        load()
    except MissingToolError as error:
        return str(error)
    return None


def serves(qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int) -> bool:
    """Whether these kernels compute the product."""
    a, w = describe(qa.format.block), describe(qw.format.block)
    if a is None or w is None or accumulator == "exact":
        return False
    return double_bits(a, w, lanes) <= 53


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="m2xfp")


def matmul(
    qa: PackedTensor,
    qw: PackedTensor,
    accumulator: str,
    lanes: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the product of the rows of [..., K] and [N, K], in ``dtype``: [M, N]."""
    a, w = describe(qa.format.block), describe(qw.format.block)
    assert a is not None
    assert w is not None
    rows, columns = prod(qa.shape[:-1]), qw.shape[0]
    out = torch.empty(rows, columns, dtype=torch.float32)
    short = sum_bound(a, w, lanes) < 1 << 24
    width = qw.scales.shape[-1] * w.group
    step = max(_COLUMNS, _WORKSPACE // max(1, width))
    left = _decode(qa, slice(None), torch.float32) if short else None
    bounds = None if left is None else _exponents(left)
    for start in range(0, columns, step):
        some = slice(start, min(columns, start + step))
        target = out[:, some]
        if left is None or bounds is None:
            _careful(qa, qw, slice(None), some, target, lanes)
            continue
        right = _decode(qw, some, torch.float32)
        unsafe = _unsafe_rows(bounds, _exponents(right), limits(a, w, lanes))
        if not unsafe.all():
            _multiply(left, right, target, lanes)
        if unsafe.any():
            _careful(qa, qw, unsafe.nonzero().flatten(), some, target, lanes)
    return round_product(_finish(out, qa, qw), dtype)


def _careful(
    qa: PackedTensor,
    qw: PackedTensor,
    rows: slice | Tensor,
    columns: slice,
    out: Tensor,
    lanes: int,
) -> None:
    """Multiply some rows in float64 and write them into ``out``."""
    left, right = _decode(qa, rows, torch.float64), _decode(qw, columns, torch.float64)
    product = torch.empty(len(left), len(right), dtype=torch.float32)
    _multiply(left, right, product, lanes)
    out[rows] = product


def _decode(packed: PackedTensor, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
    """Return element times scale of whole groups, without the tensor scale: [rows, G * group]."""
    planes = {
        name: plane.flatten(0, -2)[rows]
        for name, plane in packed.planes().items()
        if name != "tensor_scale"
    }
    count, groups = len(planes["codes"]), packed.scales.shape[-1] // _scale_bytes(packed)
    shape = (count, groups * packed.format.block.group)
    fmt = replace(packed.format, level=None)
    return PackedTensor.from_planes(fmt, planes, shape).dequantize(dtype).contiguous()


def _scale_bytes(packed: PackedTensor) -> int:
    return packed.format.block.group_bytes[1]


def _exponents(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest exponent of each row; above all and below all for none."""
    low, high = (torch.empty(len(values), dtype=torch.int32) for _ in range(2))
    function, width = load().m2xfp_exponents, values.shape[1]

    def part(start: int, count: int) -> None:
        pointers = (low[start:].data_ptr(), high[start:].data_ptr())
        function(values[start:].data_ptr(), count, width, *pointers)

    _share(len(values), max(1, (1 << 16) // max(1, width)), part)
    return low, high


def _unsafe_rows(
    a: tuple[Tensor, Tensor], w: tuple[Tensor, Tensor], bounds: tuple[int, int, int]
) -> Tensor:
    """Return which rows of ``a`` float32 cannot multiply with all rows of ``w``."""
    low, high, least = bounds
    lowest, highest = int(w[0].min()), int(w[1].max())
    bad = (a[0] + lowest < low) | (a[1] + highest > high)
    bad |= (a[0] < least) | (a[1] > LARGEST)  # an infinity times nothing would be NaN
    return bad | torch.tensor(lowest < least or highest > LARGEST)


def _multiply(a: Tensor, w: Tensor, out: Tensor, lanes: int) -> None:
    """Multiply decoded operands, on as many threads as PyTorch has."""
    library = load()
    function = getattr(
        library, "m2xfp_multiply_float" if a.dtype == torch.float32 else "m2xfp_multiply_double"
    )
    size = library.m2xfp_panel_bytes(lanes)
    m, k, stride = a.shape[0], a.shape[1], out.stride(0)

    def part(start: int, count: int) -> None:
        panel = torch.empty(size, dtype=torch.uint8)
        target = out[:, start:].data_ptr()
        function(
            a.data_ptr(), w[start:].data_ptr(), target, m, count, k, stride, lanes,
            panel.data_ptr(),
        )  # fmt: skip

    _share(len(w), 64, part)


def _share(count: int, least: int, part: Callable[[int, int], None]) -> None:
    """Split ``count`` over threads, at least ``least`` each, in multiples of 64."""
    threads = max(1, min(torch.get_num_threads(), count // least))
    if threads == 1:
        part(0, count)
        return
    step = (-(-count // threads) + 63) // 64 * 64
    starts = range(0, count, step)
    jobs = [_pool().submit(part, start, min(step, count - start)) for start in starts]
    for done in wait(jobs).done:  # ctypes lets go of the interpreter lock during the call
        done.result()


def _finish(out: Tensor, qa: PackedTensor, qw: PackedTensor) -> Tensor:
    """Apply the tensor scales, and give every NaN its one pattern."""
    if qa.tensor_scale is not None and qw.tensor_scale is not None:
        out *= (qa.tensor_scale.double() * qw.tensor_scale.double()).to(torch.float32)
    return out.masked_fill_(out.isnan(), float("nan"))
