"""Matrix products of packed tensors on a CPU: compiles ``products_native.cpp`` and calls it.

Needs a C++ compiler; without one the plain path serves. Compiled once a machine and kept like the
library of ``native``.
"""

import ctypes
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from m2xfp.errors import NoFusedPathError
from m2xfp.golden.formats.numeric import joint_scale, round_product
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.library import Library
from m2xfp.golden.kernels.products_facts import (
    LARGEST,
    describe,
    double_bits,
    limits,
    sum_bound,
)
from m2xfp.golden.kernels.threads import share

__all__ = ["LIBRARY", "matmul", "missing", "serves"]

# Values of weights that are decoded at a time.
_WORKSPACE = 1 << 25
# Columns that a thread takes at a time.
_COLUMNS = 256


# Multiplications of a call, some hundred milliseconds: interrupts are noticed between calls.
_WORK_A_CALL = 1 << 31


def _declare(library: ctypes.CDLL) -> None:
    """Give the functions their types."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for kind in ("float", "double"):
        function = getattr(library, f"m2xfp_multiply_{kind}")
        function.argtypes = [*[pointer] * 3, *[size] * 4, ctypes.c_int, pointer]
        function.restype = None
    library.m2xfp_panel_bytes.argtypes = [ctypes.c_int]
    library.m2xfp_panel_bytes.restype = size
    library.m2xfp_scale.argtypes = [pointer, size, pointer]
    library.m2xfp_scale.restype = None
    library.m2xfp_exponents.argtypes = [pointer, size, size, pointer, pointer]
    library.m2xfp_exponents.restype = None


LIBRARY = Library(
    Path(__file__).with_name("products_native.cpp"),
    ("-mprefer-vector-width=512", "-ffp-contract=fast"),
    _declare,
)


def missing() -> NoFusedPathError | None:
    """Return what is missing for these kernels, or None."""
    try:
        LIBRARY.load()
    except NoFusedPathError as error:
        return error
    return None


def serves(qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int) -> bool:
    """Whether these kernels compute the product."""
    a, w = describe(qa.format.block), describe(qw.format.block)
    if a is None or w is None or accumulator == "exact":
        return False
    return double_bits(a, w, lanes) <= 53


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
    out = torch.empty(rows, columns, dtype=torch.float32, device="cpu")
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
    product = torch.empty(len(left), len(right), dtype=torch.float32, device="cpu")
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
    return fmt.decoded(PackedTensor.from_planes(fmt, planes, shape), dtype)


def _scale_bytes(packed: PackedTensor) -> int:
    return packed.format.block.group_bytes[1]


def _exponents(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest exponent of each row; above all and below all for none."""
    low, high = (torch.empty(len(values), dtype=torch.int32, device="cpu") for _ in range(2))
    function, width = LIBRARY.load().m2xfp_exponents, values.shape[1]

    def part(start: int, stop: int) -> None:
        pointers = (low[start:].data_ptr(), high[start:].data_ptr())
        function(values[start:].data_ptr(), stop - start, width, *pointers)

    share(len(values), part, max(1, (1 << 16) // max(1, width)), unit=64)
    return low, high


def _unsafe_rows(
    a: tuple[Tensor, Tensor], w: tuple[Tensor, Tensor], bounds: tuple[int, int, int]
) -> Tensor:
    """Return which rows of ``a`` float32 cannot multiply with all rows of ``w``."""
    low, high, least = bounds
    lowest, highest = int(w[0].min()), int(w[1].max())
    bad = (a[0] + lowest < low) | (a[1] + highest > high)
    bad |= (a[0] < least) | (a[1] > LARGEST)  # an infinity times nothing would be NaN
    return bad | (lowest < least or highest > LARGEST)


def _multiply(a: Tensor, w: Tensor, out: Tensor, lanes: int) -> None:
    """Multiply decoded operands, on as many threads as PyTorch has."""
    library = LIBRARY.load()
    function = getattr(
        library, "m2xfp_multiply_float" if a.dtype == torch.float32 else "m2xfp_multiply_double"
    )
    size = library.m2xfp_panel_bytes(lanes)
    m, k, stride = a.shape[0], a.shape[1], out.stride(0)

    def part(start: int, stop: int) -> None:
        panel = torch.empty(size, dtype=torch.uint8, device="cpu")
        target = out[:, start:].data_ptr()
        function(
            a.data_ptr(), w[start:].data_ptr(), target, m, stop - start, k, stride, lanes,
            panel.data_ptr(),
        )  # fmt: skip

    share(len(w), part, 64, _WORK_A_CALL // max(1, m * k), unit=64)


def _finish(out: Tensor, qa: PackedTensor, qw: PackedTensor) -> Tensor:
    """Apply the tensor scales, and give every NaN its one pattern."""
    level = joint_scale(qa.tensor_scale, qw.tensor_scale)
    if level is not None:
        scale = LIBRARY.load().m2xfp_scale
        columns = out.shape[1]

        def part(start: int, stop: int) -> None:
            scale(out[start:].data_ptr(), (stop - start) * columns, level.data_ptr())

        share(len(out), part, max(1, (1 << 17) // max(1, columns)))
    return out.masked_fill_(out.isnan(), float("nan"))
