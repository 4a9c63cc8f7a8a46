"""Matrix products of packed tensors on a CPU: compiles ``products_native.cpp`` and calls it.

Needs a C++ compiler; without one the plain path serves. Compiled once and kept like the library of
``native``.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from m2xfp.errors import NoFusedPathError
from m2xfp.golden.formats.numeric import joint_scale, round_product
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.integers import NAN, Integers, Pair, pair_of
from m2xfp.golden.kernels.library import Library
from m2xfp.golden.kernels.threads import share

__all__ = ["LIBRARY", "matmul", "missing", "serves"]

# Values of an operand that are unpacked at a time.
_WORKSPACE = 1 << 25
# Columns that a thread takes at a time.
_COLUMNS = 256
# Multiplications of a call, some hundred milliseconds: interrupts are noticed between calls.
_WORK_A_CALL = 1 << 32
# Those one by one, which take this many times as long.
_SLOWNESS = 32
_SINGLE, _DOUBLE, _EXACT, _ANY = range(4)
_NOWHERE = 1 << 20  # the lowest exponent of a row without numbers; negated the highest


class _Recipe(ctypes.Structure):
    """``Recipe`` of products_unpack.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("limbs", "fine", "special", "scales")),
        *(
            (name, ctypes.c_int32)
            for name in (
                "bits", "group", "subgroup", "elem_em", "field_bits", "code_bytes", "meta_bytes",
                "fine_codes", "planes", "bytes", "lanes", "padded", "offset", "is_right", "unit",
            )
        ),
    ]  # fmt: skip


class _Rows(ctypes.Structure):
    """``Rows`` of products_unpack.h."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in (
                "codes", "scales", "meta", "integers", "out_scales", "corrections", "low", "high",
                "special",
            )
        ),
        ("rows", ctypes.c_int64),
        ("groups", ctypes.c_int64),
    ]  # fmt: skip


class _Job(ctypes.Structure):
    """``Job`` of products_native.cpp."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in (
                "a", "w", "a_scales", "w_scales", "corrections", "a_lows", "w_lows", "out", "panel",
            )
        ),
        *((name, ctypes.c_int64) for name in ("m", "n", "stride", "addends")),
        *((name, ctypes.c_int32) for name in ("padded", "limb", "unit")),
    ]  # fmt: skip


def _declare(library: ctypes.CDLL) -> None:
    """Give the functions their types."""
    pointer, size, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.m2xfp_multiply.argtypes = [pointer, whole, whole, whole]
    library.m2xfp_multiply.restype = None
    library.m2xfp_unpack.argtypes = [pointer, pointer, whole]
    library.m2xfp_unpack.restype = None
    library.m2xfp_panel_bytes.argtypes = [whole, whole, whole, whole, size]
    library.m2xfp_panel_bytes.restype = size
    library.m2xfp_scale.argtypes = [pointer, size, pointer]
    library.m2xfp_scale.restype = None
    for name in ("m2xfp_largest_pair", "m2xfp_has_fma"):
        getattr(library, name).argtypes, getattr(library, name).restype = [], whole


LIBRARY = Library(
    Path(__file__).with_name("products_native.cpp"),
    ("-ffp-contract=off",),
    _declare,
    ("products_vectors.h", "products_unpack.h"),
)


def missing() -> NoFusedPathError | None:
    """Return what is missing for these kernels, or None."""
    try:
        LIBRARY.load()
    except NoFusedPathError as error:
        return error
    return None


def serves(qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int) -> bool:
    """Whether these kernels compute the product; they leave infinite elements to the plain path."""
    pair = _pair(qa, qw, accumulator, lanes)
    return pair is not None and (accumulator == "exact" or pair.is_double)


def _pair(qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int) -> Pair | None:
    if accumulator == "exact":
        lanes = qa.format.block.group
    return pair_of(qa.format.key, qw.format.key, lanes, LIBRARY.load().m2xfp_largest_pair())


@dataclass(frozen=True)
class _Side:
    """Rows of an operand, unpacked.

    Members
    -------
    integers, scales
        As the kernels take them: [rows, bytes].
    corrections
        Minus the sums of the right operand's addends times the left one's offset; None for the left
        operand and for integers of 16 bits.
    low, high
        The lowest and the highest exponent of the scales of each row's groups, int32.
    special
        What is no number in each row, int32.
    """

    integers: Tensor
    scales: Tensor
    corrections: Tensor | None
    low: Tensor
    high: Tensor
    special: Tensor

    def __len__(self) -> int:
        return len(self.low)

    @property
    def spread(self) -> Tensor:
        """How far the exponents of each row spread."""
        return (self.high - self.low).clamp(min=0)

    @property
    def lows(self) -> Tensor:
        """The exponents that shifts start from."""
        return torch.where(self.low == _NOWHERE, 0, self.low).contiguous()

    def some(self, rows: Tensor) -> "_Side":
        """Return some rows."""
        corrections = None if self.corrections is None else self.corrections[rows]
        return _Side(
            self.integers[rows],
            self.scales[rows],
            corrections,
            self.low[rows],
            self.high[rows],
            self.special[rows],
        )


def matmul(
    qa: PackedTensor,
    qw: PackedTensor,
    accumulator: str,
    lanes: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor | None:
    """Return the product of the rows of [..., K] and [N, K], in ``dtype``: [M, N].

    None if an element is infinite.
    """
    pair = _pair(qa, qw, accumulator, lanes)
    assert pair is not None
    rows, columns = prod(qa.shape[:-1]), qw.shape[0]
    out = torch.empty(rows, columns, dtype=torch.float32, device="cpu")
    width = max(1, qw.scales.shape[-1] * pair.w.group * pair.planes * pair.item)
    step = max(_COLUMNS, _WORKSPACE // width)
    fast = pair.is_single and LIBRARY.load().m2xfp_has_fma()
    mode = _EXACT if accumulator == "exact" else _SINGLE if fast else _DOUBLE
    for top in range(0, rows, step):
        left = _unpack(qa, slice(top, min(rows, top + step)), pair, mode, right=False)
        for start in range(0, columns, step):
            some = slice(start, min(columns, start + step))
            right = _unpack(qw, some, pair, mode, right=True)
            if bool(((left.special | right.special.amax()) > NAN).any()):
                return None
            target = out[top : top + step, some]
            if mode == _SINGLE:
                _single(qa, qw, left, right, top, some, pair, target)
            elif mode == _DOUBLE:
                _multiply(left, right, target, pair, mode)
            else:
                _exact(left, right, target, pair)
    return round_product(_finish(out, qa, qw), dtype)


def _single(
    qa: PackedTensor,
    qw: PackedTensor,
    left: _Side,
    right: _Side,
    top: int,
    columns: slice,
    pair: Pair,
    out: Tensor,
) -> None:
    """Multiply in float32, and in float64 the rows with scales that float32 does not multiply."""
    low, high = pair.single_room()
    bad = (left.low + int(right.low.min()) < low) | (left.high + int(right.high.max()) > high)
    if not bad.all():
        _multiply(left, right, out, pair, _SINGLE)
    if bad.any():
        rows = bad.nonzero().flatten()
        careful = _unpack(qa, rows + top, pair, _DOUBLE, right=False)
        others = _unpack(qw, columns, pair, _DOUBLE, right=True)
        product = torch.empty(len(rows), len(others), dtype=torch.float32, device="cpu")
        _multiply(careful, others, product, pair, _DOUBLE)
        out[rows] = product


def _exact(left: _Side, right: _Side, out: Tensor, pair: Pair) -> None:
    """Sum exactly: by 64-bit integers where exponents of row and column spread little enough."""
    room = pair.exact_room(_addends(left, pair))
    near = int(min(right.spread.max(), max(0, room // 2)))
    rows, columns = left.spread <= room - near, right.spread <= near
    if rows.all() and columns.all():
        _multiply(left, right, out, pair, _EXACT)
    else:
        for wanted_rows in (True, False):
            for wanted_columns in (True, False):
                i = (rows == wanted_rows).nonzero().flatten()
                j = (columns == wanted_columns).nonzero().flatten()
                if len(i) and len(j):
                    part = torch.empty(len(i), len(j), dtype=torch.float32, device="cpu")
                    mode = _EXACT if wanted_rows and wanted_columns else _ANY
                    _multiply(left.some(i), right.some(j), part, pair, mode)
                    out[i.unsqueeze(1), j] = part
    out.masked_fill_((left.special != 0).unsqueeze(1), float("nan"))
    out.masked_fill_(right.special != 0, float("nan"))


def _addends(side: _Side, pair: Pair) -> int:
    return side.integers.shape[1] // (pair.planes * pair.padded * pair.item)


@cache
def _tables(side: Integers, pair: Pair) -> tuple[Tensor, ...]:
    """Return the tables of an operand as the library takes them."""
    kinds = (torch.int16, torch.int16, torch.uint8, torch.int32)
    limbs = [[[pair.limbs(n)[p] for n in row] for p in range(pair.planes)] for row in side.table]
    fine = [
        [[sign * pair.limbs(n)[p] for n in side.fine] for sign in (1, -1)]
        for p in range(pair.planes)
    ]
    found = (limbs, fine, side.special, side.scales)
    return tuple(
        torch.tensor(table, dtype=kind, device="cpu")
        for table, kind in zip(found, kinds, strict=True)
    )


def _unpack(
    packed: PackedTensor, rows: slice | Tensor, pair: Pair, mode: int, right: bool
) -> _Side:
    """Return some rows of an operand as integers and scales."""
    side = pair.w if right else pair.a
    limbs, fine, special, scales = _tables(side, pair)
    planes = {
        name: plane.flatten(0, -2)[rows].contiguous()
        for name, plane in packed.planes().items()
        if name != "tensor_scale"
    }
    count, groups = planes["scales"].shape
    addends = groups * (side.group // pair.lanes)
    integers = torch.empty(
        count, addends * pair.planes * pair.padded * pair.item, dtype=torch.uint8, device="cpu"
    )
    each = 4 if mode == _SINGLE else 8
    found = torch.empty(count, addends * each, dtype=torch.uint8, device="cpu")
    low, high, odd = (torch.empty(count, dtype=torch.int32, device="cpu") for _ in range(3))
    corrections = None
    if right and pair.item == 1:
        corrections = torch.empty(count, addends, dtype=torch.int32, device="cpu")
    recipe = _Recipe(
        limbs.data_ptr(),
        fine.data_ptr(),
        special.data_ptr() if any(side.special) else None,
        scales.data_ptr(),
        *(side.bits, side.group, side.subgroup, int(bool(side.fine)), side.field_bits),
        *(side.code_bytes, side.meta_bytes, len(side.fine), pair.planes, pair.item),
        *(pair.lanes, pair.padded, 0 if right else pair.offset, pair.offset, side.unit),
    )
    function = LIBRARY.load().m2xfp_unpack

    def part(start: int, stop: int) -> None:
        given = [planes.get(name) for name in ("codes", "scales", "meta")]
        made = (integers, found, corrections, low, high, odd)
        pointers = [None if x is None else x[start:].data_ptr() for x in (*given, *made)]
        function(ctypes.byref(recipe), ctypes.byref(_Rows(*pointers, stop - start, groups)), mode)

    share(count, part, max(1, (1 << 15) // max(1, groups * side.group)), 1 << 14)
    return _Side(integers, found, corrections, low, high, odd)


def _multiply(a: _Side, w: _Side, out: Tensor, pair: Pair, mode: int) -> None:
    """Multiply unpacked operands, on as many threads as PyTorch has."""
    library = LIBRARY.load()
    addends = _addends(a, pair)
    m, stride = len(a), out.stride(0)
    size = library.m2xfp_panel_bytes(mode, pair.item, pair.planes, pair.padded, addends)
    a_lows, w_lows = a.lows, w.lows

    def part(start: int, stop: int) -> None:
        panel = torch.empty(size, dtype=torch.uint8, device="cpu")
        corrections = None if w.corrections is None else w.corrections[start:].data_ptr()
        job = _Job(
            *(a.integers.data_ptr(), w.integers[start:].data_ptr(), a.scales.data_ptr()),
            *(w.scales[start:].data_ptr(), corrections, a_lows.data_ptr()),
            *(w_lows[start:].data_ptr(), out[:, start:].data_ptr(), panel.data_ptr()),
            *(m, stop - start, stride, addends, pair.padded, pair.limb_bits, 0),
        )
        library.m2xfp_multiply(ctypes.byref(job), mode, pair.item, pair.planes)

    work = max(1, m * addends * pair.padded * pair.planes) * (_SLOWNESS if mode == _ANY else 1)
    share(len(w), part, 32, _WORK_A_CALL // work, unit=32)


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
