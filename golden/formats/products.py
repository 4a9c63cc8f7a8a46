"""Dot products and matrix products of packed tensors, with the accumulators of the hardware.

Within a group everything is exact: the elements, refined by their metadata, are small integers
times powers of two, and so is the sum of their products. What rounds is the accumulation.

- ``fp32``: after each group, in rising k, ``acc = RNE_fp32(acc + D * scales)``, one rounding of the
  exact sum.
- ``fp32_subgroup``: the same after each subgroup of the metadata, the PE tile of the paper.
- ``exact``: the exact sum over all of K, rounded once at the end.

A group with two scales (AMXFP4) has the sums of two classes of elements, those above zero and the
others, of which each has one scale with each class of the other side: with (sign of qa, sign of qw)
the terms of a group are pp, pn, np, nn where both sides have two scales, and p, n where one has.
``fp32`` adds them in this order, one rounding each.

Rules of all: a zero addend leaves acc unchanged, bit for bit (``exact``: an exact zero is +0); a
NaN scale on either side, or an element that is NaN or infinity, gives the quiet NaN 0x7FC00000;
overflow gives infinity, which stays until a NaN comes; subnormal results are kept; a non-zero sum
that rounds to zero keeps its sign.

Source: M2XFP, arXiv 2601.19213, section 5.4; the definition in docs/format.md.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.accumulators import DIGITS, accumulate, accumulated
from m2xfp.golden.formats.format import Format, format_of
from m2xfp.golden.formats.numeric import round_product
from m2xfp.golden.formats.operands import (
    ACCUMULATORS,
    check_lanes,
    lanes_of,
    operand_coder,
    operand_of,
    product_bias,
    product_unit,
    wide_scales,
)
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.running import (
    group_sums,
    running_exact,
    running_exact_sum,
    running_fp32,
    running_fp32_sum,
)
from m2xfp.golden.kernels.fused import refuse_forced
from m2xfp.golden.kernels.memory import explained
from m2xfp.golden.kernels.operators import Dims, define, each, in_front, shielded
from m2xfp.golden.kernels.products_fused import fast_inputs, fast_matmul, fast_rows

__all__ = [
    "ACCUMULATORS",
    "accumulate",
    "batched_matmul",
    "dot",
    "group_sums",
    "matmul",
    "packed_linear",
    "product_bias",
    "product_unit",
    "quantized_matmul",
    "running_exact",
    "running_exact_sum",
    "running_fp32",
    "running_fp32_sum",
]

# The matrix product holds this many float64 partial sums at a time.
_CHUNK_SUMS = 1 << 22

# So many values of a packed weight are decoded at a time.
_CHUNK_WEIGHTS = 1 << 26


def dot(
    qa: PackedTensor,
    qw: PackedTensor,
    accumulator: str = "fp32",
    initial: Tensor | None = None,
) -> Tensor:
    """Contract the last dimension row by row: [..., K] x [..., K] -> float32 [...].

    Parameters
    ----------
    qa, qw
        Packed tensors of one shape, of formats of the same group size whose values are elements
        times scales: M2XFP, the MX formats, SMX4, AMXFP4, or NVFP4 and its metadata variants (of
        one level or two; a scale for each row, ``tensor_scale="token"``, is refused).
    accumulator
        ``fp32``, ``fp32_subgroup`` or ``exact``; see the module for the rules.
    initial
        float32 [...] that the fp32 accumulators start from, by default +0.

    Raises
    ------
    TypeError
        An operand is no PackedTensor.
    InputError
        Shapes, formats or the accumulator do not go together.
    """
    lanes = check_lanes(qa, qw, accumulator)
    if qa.shape != qw.shape:
        raise InputError(
            f"qa has shape {tuple(qa.shape)}, qw {tuple(qw.shape)}; dot takes one shape, "
            "matmul combines all rows"
        )
    lead = qa.shape[:-1]
    if initial is not None:
        if accumulator == "exact":
            raise InputError("initial belongs to the fp32 accumulators; leave it out")
        if not isinstance(initial, Tensor) or initial.dtype != torch.float32:
            raise TypeError("initial is no float32 tensor; pass one of shape [...]")
        if initial.shape != lead:
            raise InputError(f"initial has shape {tuple(initial.shape)}; pass {tuple(lead)}")
    operand_coder(qa)
    operand_coder(qw)
    found: Tensor = _DOT(*_parts(qa), *_parts(qw), initial, qa.shape[-1], accumulator, lanes)
    return found


def matmul(
    qa: PackedTensor,
    qw: PackedTensor,
    accumulator: str = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Multiply [..., K] by the rows of [N, K]: [..., N] in ``dtype``.

    Each result equals ``dot`` of its two rows, bit for bit, in float32; another type (bfloat16,
    float16) is that rounded once more. Parameters and errors as there; ``qw`` has two dimensions.
    """
    lanes = check_lanes(qa, qw, accumulator)
    if len(qw.shape) != 2:
        raise InputError(f"qw has shape {tuple(qw.shape)}; matmul takes weights [N, K]")
    return _product(qa, qw, accumulator, lanes, dtype)


def batched_matmul(
    qa: PackedTensor,
    qw: PackedTensor,
    accumulator: str = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Multiply [..., M, K] by the rows of [..., N, K], each with its own: [..., M, N] in ``dtype``.

    The leading dimensions of both are equal; everything else is as for ``matmul``.
    """
    lanes = check_lanes(qa, qw, accumulator)
    if len(qa.shape) < 2 or qw.shape[:-2] != qa.shape[:-2]:
        raise InputError(
            f"qa has shape {tuple(qa.shape)}, qw {tuple(qw.shape)}; batched_matmul takes "
            "[..., M, K] and [..., N, K] with equal leading dimensions"
        )
    return _product(qa, qw, accumulator, lanes, dtype)


def _product(
    qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int, dtype: torch.dtype
) -> Tensor:
    """Multiply operands that go together."""
    if dtype not in _RESULTS:
        raise TypeError(f"dtype is {dtype}; pass float32, bfloat16 or float16")
    operand_coder(qa)
    operand_coder(qw)
    found: Tensor = _MATMUL(*_parts(qa), *_parts(qw), qa.shape[-1], accumulator, lanes, dtype)
    return found


_RESULTS = (torch.float32, torch.bfloat16, torch.float16)


def _parts(packed: PackedTensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, str]:
    """Return what operators take of a packed tensor, beside its last size."""
    return packed.codes, packed.scales, packed.meta, packed.tensor_scale, packed.format.key


def _whole(parts: Sequence[Any], width: int) -> PackedTensor:
    """Invert ``_parts``."""
    codes, scales, meta, tensor_scale, key = parts
    shape = torch.Size((*codes.shape[:-1], width))
    return PackedTensor(format_of(key), codes, scales, meta, shape, tensor_scale)


@explained("dot")
@shielded
def _compute_dot(*given: Any) -> Tensor:
    """Multiply row by row: parts of both, initial, width, accumulator, lanes."""
    *parts, initial, width, accumulator, lanes = given
    refuse_forced("sums row by row; use matmul")
    qa, qw = _whole(parts[:5], width), _whole(parts[5:], width)
    start = None if initial is None else initial.reshape(-1)
    a, w = operand_of(qa), operand_of(qw)
    wide = wide_scales(qa.format.block, qw.format.block)
    found = accumulated(a, w, accumulator, lanes, outer=False, initial=start, wide=wide)
    return found.reshape(qa.shape[:-1])


@explained("matmul")
@shielded
def _compute_matmul(*given: Any) -> Tensor:
    """Multiply all rows with all rows: parts of both, width, accumulator, lanes, dtype."""
    *parts, width, accumulator, lanes, dtype = given
    if parts[0].ndim == 1:  # a vector is one row
        parts[:3] = [None if plane is None else plane.unsqueeze(0) for plane in parts[:3]]
        product: Tensor = _compute_matmul(*parts, *given[-4:])
        return product.squeeze(0)
    qa, qw = _whole(parts[:5], width), _whole(parts[5:], width)
    shape = (*qa.shape[:-1], qw.shape[-2])
    if len(qw.shape) == 2 or qa.device.type == "cuda":
        fast = fast_matmul(qa, qw, accumulator, lanes, dtype)
        if fast is not None:
            return fast.reshape(shape)
    if len(qw.shape) == 2:
        return _plain_matmul(qa, qw, accumulator, lanes, dtype).reshape(shape)
    pairs = zip(_matrices(qa), _matrices(qw), strict=True)
    found = [_compute_matmul(*_parts(a), *_parts(w), *given[-4:]) for a, w in pairs]
    if not found:
        return torch.zeros(shape, dtype=dtype, device=qa.device)
    return torch.stack(found).reshape(shape)


def _plain_matmul(
    qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int, dtype: torch.dtype
) -> Tensor:
    """Multiply the rows of [..., K] by those of [N, K]: [rows, N]."""
    a, w = operand_of(qa), operand_of(qw)
    digits = DIGITS if accumulator == "exact" else 1
    step = max(1, _CHUNK_SUMS // (digits * max(1, len(w.scales))))
    rows = [
        accumulated(
            a.rows(start, start + step),
            w,
            accumulator,
            lanes,
            outer=True,
            wide=wide_scales(qa.format.block, qw.format.block),
        )
        for start in range(0, max(1, len(a.scales)), step)
    ]
    return round_product(torch.cat(rows), dtype)


def _matrices(packed: PackedTensor) -> list[PackedTensor]:
    """Return the matrices [rows, K] that a packed tensor holds along its leading dimensions."""
    if len(packed.shape) == 2:
        return [packed]
    shape = packed.shape[-2:]
    planes = {
        name: plane if name == "tensor_scale" else plane.flatten(0, -3)
        for name, plane in packed.planes().items()
    }
    return [
        PackedTensor.from_planes(
            packed.format,
            {n: plane if n == "tensor_scale" else plane[i] for n, plane in planes.items()},
            tuple(shape),
        )
        for i in range(prod(packed.shape[:-2]))
    ]


def packed_linear(x: Tensor, weight: PackedTensor) -> Tensor:
    """Return x [..., K] times the rows of a packed weight [N, K], both as floats of the type of x.

    The sums are those of ``torch.nn.functional.linear``, or, for a few rows of bfloat16 on CUDA,
    of a kernel that reads the packed weight alone. No gradient passes.
    """
    found: Tensor = _LINEAR(x, *_parts(weight))
    return found


@explained("packed_linear")
@shielded
def _compute_linear(x: Tensor, *parts: Any) -> Tensor:
    """Multiply x with the parts of a packed weight."""
    weight = _whole(parts, x.shape[-1])
    rows, (count, width) = x.reshape(-1, x.shape[-1]), weight.shape
    found = fast_rows(rows, weight)
    if found is None:
        step = max(1, _CHUNK_WEIGHTS // max(1, width))
        products = [
            torch.nn.functional.linear(rows, _decoded_rows(weight, start, start + step, x.dtype))
            for start in range(0, count, step)
        ]
        found = torch.cat(products, -1) if products else rows.new_empty(len(rows), 0)
    return found.reshape(*x.shape[:-1], count)


def _decoded_rows(packed: PackedTensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Return some rows of a packed matrix, decoded."""
    planes = {
        name: plane[start:stop] if plane.ndim else plane for name, plane in packed.planes().items()
    }
    shape = (len(planes["codes"]), packed.shape[-1])
    return packed.format.decoded(PackedTensor.from_planes(packed.format, planes, shape), dtype)


def quantized_matmul(
    x: Tensor,
    fmt: Format,
    qw: PackedTensor,
    accumulator: str = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return ``matmul(fmt.quantize(x), qw, accumulator, dtype)``, bit for bit, in one step.

    Where a GPU can, the packed planes of x, which nothing else needs, are not made. No gradient
    passes.
    """
    if accumulator not in ACCUMULATORS or len(qw.shape) != 2 or x.shape[-1:] != qw.shape[-1:]:
        return matmul(fmt.quantize(x), qw, accumulator, dtype)  # which says what is wrong
    found: Tensor = _INPUTS(x.detach(), fmt.key, *_parts(qw), accumulator, dtype)
    return found


@explained("matmul")
@shielded
def _compute_inputs(x: Tensor, key: str, *given: Any) -> Tensor:
    """Quantize x and multiply: format of x, parts of a packed weight, accumulator, dtype."""
    *parts, accumulator, dtype = given
    fmt, weight = format_of(key), _whole(parts, x.shape[-1])
    if fmt.level is None and fmt.block.group == weight.format.block.group:
        lanes = lanes_of(fmt.block, weight.format.block, accumulator)
        rows = x.reshape(-1, x.shape[-1])
        found = fast_inputs(rows, fmt, weight, accumulator, lanes, dtype)
        if found is not None:
            return found.reshape(*x.shape[:-1], len(weight.codes))
    return matmul(fmt.quantize(x), weight, accumulator, dtype)


def _batched_dot(size: int, dims: Dims, *given: Any) -> tuple[Any, Any]:
    *parts, initial, width, accumulator, lanes = given
    if size and not (dims[3] is None and dims[8] is None):
        return each(_DOT, size, dims, *given)
    a = in_front(size, dims[:3], *parts[:3])
    w = in_front(size, dims[5:8], *parts[5:8])
    (start,) = in_front(size, dims[10:11], initial)
    return _DOT(*a, *parts[3:5], *w, *parts[8:], start, width, accumulator, lanes), 0


def _batched_matmul(size: int, dims: Dims, *given: Any) -> tuple[Any, Any]:
    parts, rest = given[:10], given[10:]
    if size and not (dims[3] is None and dims[8] is None):
        return each(_MATMUL, size, dims, *given)
    a = in_front(size, dims[:3], *parts[:3])
    if all(dim is None for dim in dims[5:8]) and parts[5].ndim == 2:
        return _MATMUL(*a, *parts[3:], *rest), 0
    w = in_front(size, dims[5:8], *parts[5:8])
    assert a[0] is not None
    assert w[0] is not None
    lead = a[0].shape[1:-1]
    if w[0].ndim == 3:  # each has one matrix for all its rows
        a = [None if x is None else x.reshape(size, -1, x.shape[-1]) for x in a]
    found = _MATMUL(*a, *parts[3:5], *w, *parts[8:], *rest)
    return found.reshape(size, *lead, found.shape[-1]), 0


def _batched_inputs(size: int, dims: Dims, x: Tensor, *given: Any) -> tuple[Any, Any]:
    if dims[0] is not None and all(dim is None for dim in dims[1:]):
        fmt = format_of(given[0])
        if fmt.level is None:  # else each has a scale of its own
            return _INPUTS(x.movedim(dims[0], 0), *given), 0
    return each(_INPUTS, size, dims, x, *given)


def _batched_linear(size: int, dims: Dims, x: Tensor, *parts: Any) -> tuple[Any, Any]:
    if dims[0] is not None and all(dim is None for dim in dims[1:]):
        return _LINEAR(x.movedim(dims[0], 0), *parts), 0
    return each(_LINEAR, size, dims, x, *parts)


_PARTS = "Tensor codes{0}, Tensor scales{0}, Tensor? meta{0}, Tensor? level{0}, str format{0}"

_BOTH = f"{_PARTS.format('_a')}, {_PARTS.format('_w')}"

_DOT = define(
    f"dot({_BOTH}, Tensor? initial, SymInt width, str accumulator, int lanes) -> Tensor",
    _compute_dot,
    lambda *given: given[0].new_empty(given[0].shape[:-1], dtype=torch.float32),
    _batched_dot,
)

_MATMUL = define(
    f"matmul({_BOTH}, SymInt width, str accumulator, int lanes, ScalarType dtype) -> Tensor",
    _compute_matmul,
    lambda *given: given[0].new_empty((*given[0].shape[:-1], given[5].shape[-2]), dtype=given[-1]),
    _batched_matmul,
)

_LINEAR = define(
    f"packed_linear(Tensor x, {_PARTS.format('')}) -> Tensor",
    _compute_linear,
    lambda x, codes, *_: x.new_empty((*x.shape[:-1], codes.shape[0])),
    _batched_linear,
)

_INPUTS = define(
    f"quantized_matmul(Tensor x, str format_a, {_PARTS.format('_w')}, str accumulator, "
    "ScalarType dtype) -> Tensor",
    _compute_inputs,
    lambda *given: given[0].new_empty((*given[0].shape[:-1], given[2].shape[0]), dtype=given[-1]),
    _batched_inputs,
)
