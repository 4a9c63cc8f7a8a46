"""The fused CUDA path: Triton kernels for groups of 32, subgroups of 8.

The same numbers as golden/formats/format.py, from the same definition, in float32 and integers; the
tests hold one against the other. A thread holds one subgroup of 8 neighbouring values and four
threads a group, so subgroup maxima and sums stay in registers.

Rounding to E2M1 adds and subtracts a number whose last bit weighs one step of the grid, so the
adder rounds, to nearest with ties to even. y / multiplier has to be the correctly rounded quotient
there: one fma gives the residual of the product with the reciprocal, a second corrects it
(Markstein).

bfloat16 without a search has kernels of its own (``_words_...``), which keep two values in a 32-bit
word and compute on both at once: there the eight bits of a bfloat16 significand hold every
intermediate value exactly, or round it as E2M1 wants.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["dequantize", "fake_quantize", "quantize"]

_METADATA = {"none": 0, "elem-em": 1, "sg-em": 2}
_GROUPS_A_PROGRAM = 32
_ELEM_EM = tl.constexpr(1)
_SG_EM = tl.constexpr(2)


@triton.jit
def _nan_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _float(b):
    return b.to(tl.float32, bitcast=True)


@triton.jit
def _widen(x):
    """Return float32 of loaded input; bfloat16 comes as its bits, int16."""
    if x.dtype == tl.int16:
        return _float(x.to(tl.int32) << 16)
    return x.to(tl.float32)


@triton.jit
def _narrow(value, kind: tl.constexpr):
    """Return float32 values as stored: rounded once, for bfloat16 exact, so its upper bits."""
    if kind == tl.int16:
        return (_bits(value) >> 16).to(tl.int16)
    elif kind == tl.float16:
        # The conversion has a NaN of its own.
        half = tl.where(value == value, value.to(kind).to(tl.int16, bitcast=True), 0x7E00)
        return half.to(tl.int16).to(kind, bitcast=True)
    else:
        return value.to(kind)


@triton.jit
def _e2m1(y):
    """Return the E2M1 value nearest to 0 <= y, ties to even, saturating at 6."""
    # Steps are 1/2 below 2, then 1, then 2: half of the power of two at or below max(y, 1).
    power = tl.maximum(_float(_bits(y) & 0x7F800000), 1.0)
    pivot = power * 6291456.0  # 1.5 * 2^22: the last bit of y + pivot weighs power / 2
    return tl.minimum((y + pivot) - pivot, 6.0)


@triton.jit
def _e2m3_code(y):
    """Return the E2M3 code nearest to 0 <= y < 8, ties to even, saturating at 31."""
    b = _bits(y)
    normal = ((b + 0x7FFFF + ((b >> 20) & 1)) >> 20) - 1008
    small = _bits(y * 8.0 + 8388608.0) - 0x4B000000
    return tl.minimum(tl.where(y < 1.0, small, normal), 31)


@triton.jit
def _e2m3_value(code):
    return tl.where(code < 8, code.to(tl.float32) * 0.125, _float((code + 1008) << 20))


@triton.jit
def _quotient(y, multiplier, reciprocal):
    """Return y / multiplier, correctly rounded where it is not tiny."""
    q = y * reciprocal
    return tl.fma(tl.fma(-q, multiplier, y), reciprocal, q)


@triton.jit
def _scaled(x):
    """Return |x| / 2^(E - 127), sign bits, E and which groups are finite, of x [B, 4, 8].

    In the other groups they mean nothing.
    """
    wide = _widen(x)
    magnitude = tl.abs(wide)
    largest = tl.reduce(tl.reduce(magnitude, 2, _nan_max), 1, _nan_max)  # [B]
    good = largest < float("inf")
    fitted = tl.where(good, tl.maximum((_bits(largest) >> 23) - 2, 0), 0)
    inverse = _float((254 - fitted) << 23)
    y = magnitude * inverse[:, None, None]
    sign = _bits(wide) & -2147483648
    return y, sign, fitted, good


@triton.jit
def _top_key(q):
    """Return, for each subgroup of q [B, 4, 8], a key that holds its first largest element.

    The last 3 bits of these floats are free: they take 7 - index, so keys of equal values order by
    the lowest index, and keys of a subgroup all differ.
    """
    order = 7 - tl.arange(0, 8)[None, None, :]
    keys = _bits(q) | order
    return keys, tl.max(keys, 2)


@triton.jit
def _refined(q_top, field):
    """Return the E2M3 value that ``field`` makes of the E2M1 value ``q_top``."""
    return _e2m3_value(tl.maximum(_coarse(q_top) + field - 1, 0))


@triton.jit
def _coarse(q):
    """Return 4 times the magnitude code of the E2M1 value q."""
    return 4 * tl.where(q < 1.0, (q * 2.0).to(tl.int32), (_bits(q) >> 22) - 252)


@triton.jit
def _elem_em(y, q):
    """Return which lanes are top-1 and, [B, 4], their E2M1 values and metadata fields."""
    keys, top = _top_key(q)
    is_top = keys == top[:, :, None]
    y_top = tl.max(tl.where(is_top, y, 0.0), 2)
    q_top = _float(top & -8)
    coarse = _coarse(q_top)
    fine = tl.minimum(tl.maximum(_e2m3_code(y_top) + 1 - coarse, 0), 3)
    return is_top, q_top, fine


@triton.jit
def _error(y, q, exact: tl.constexpr):
    """Return sum q (q - 2y) over each subgroup, [B, 4]: the squared error less sum y^2.

    Exact in float32 for bfloat16 input (22 bits), in float64 for the others (44 bits).
    """
    wide = q.to(exact)
    return tl.sum(wide * (wide - 2.0 * y.to(exact)), 2)


@triton.jit
def _best_multiplier(y, base, exact: tl.constexpr):
    """Return the least error and its k, [B, 4], for the exponent bias that ``base`` = 2^b means."""
    scaled = y * (1.0 / base)
    best = _error(y, _e2m1(scaled) * base, exact)
    field = tl.zeros_like(best).to(tl.int32)
    for k in tl.static_range(1, 4):
        # 1.25, 1.5, 1.75 and the nearest float32 of their reciprocals
        multiplier = 1.0 + 0.25 * k
        reciprocal = 0.8 if k == 1 else (0.6666666865348816 if k == 2 else 0.5714285969734192)
        q = _e2m1(_quotient(scaled, multiplier, reciprocal))
        error = _error(y, q * (multiplier * base), exact)
        field = tl.where(error < best, k, field)
        best = tl.minimum(error, best)
    return best, field


@triton.jit
def _search(y, fitted, adaptive: tl.constexpr, exact: tl.constexpr):
    """Return the exponent bias [B] and the multiplier indices [B, 4] of least squared error."""
    best, field = _best_multiplier(y, 1.0, exact)
    bias = tl.zeros_like(fitted)
    if adaptive:
        least = tl.sum(best, 1)
        low, low_field = _best_multiplier(y, 0.5, exact)
        low_total = tl.sum(low, 1)
        lower = (low_total <= least) & (fitted > 0)  # a tie goes to the lower scale
        least = tl.where(lower, low_total, least)
        bias = tl.where(lower, -1, bias)
        field = tl.where(lower[:, None], low_field, field)
        high, high_field = _best_multiplier(y, 2.0, exact)
        higher = tl.sum(high, 1) < least
        bias = tl.where(higher, 1, bias)
        field = tl.where(higher[:, None], high_field, field)
    return bias, field


@triton.jit
def _chosen(y, bias, field):
    """Return the E2M1 values under the chosen scale and the multipliers [B, 4, 1]."""
    multiplier = 1.0 + 0.25 * field.to(tl.float32)
    reciprocal = tl.where(field == 0, 1.0, 0.8)
    reciprocal = tl.where(field == 2, 0.6666666865348816, reciprocal)
    reciprocal = tl.where(field == 3, 0.5714285969734192, reciprocal)
    down = _float((127 - bias) << 23)[:, None, None]
    q = _e2m1(_quotient(y * down, multiplier[:, :, None], reciprocal[:, :, None]))
    return q, multiplier[:, :, None]


@triton.jit
def _restored(value, sign, scale, good):
    """Return value * 2^(scale - 127) with its sign, the quiet NaN in groups that are not good."""
    power = _float(tl.where(scale > 0, scale << 23, 0x00400000))  # 2^-127 is a subnormal
    result = _float(_bits(value) | sign) * power[:, None, None]
    return _float(tl.where(good[:, None, None], _bits(result), 0x7FC00000))


@triton.jit
def _offsets(count, rows: tl.constexpr):
    """Return group numbers [B], element offsets [B, 4, 8] and the mask of groups that exist."""
    group = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    inner = tl.arange(0, 4)[:, None] * 8 + tl.arange(0, 8)[None, :]
    return group, group[:, None, None] * 32 + inner[None, :, :], group < count


@triton.jit
def _fake_kernel(
    x_ptr, out_ptr, count,
    metadata: tl.constexpr, adaptive: tl.constexpr, exact: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    _, offsets, exists = _offsets(count, rows)
    mask = exists[:, None, None]
    x = tl.load(x_ptr + offsets, mask=mask, other=0)
    y, sign, scale, good = _scaled(x)
    if metadata == _SG_EM:
        bias, field = _search(y, scale, adaptive, exact)
        q, multiplier = _chosen(y, bias, field)
        value = q * multiplier
        scale += bias
    else:
        value = _e2m1(y)
        if metadata == _ELEM_EM:
            is_top, q_top, fine = _elem_em(y, value)
            value = tl.where(is_top, _refined(q_top, fine)[:, :, None], value)
    value = _restored(value, sign, scale, good)
    tl.store(out_ptr + offsets, _narrow(value, x.dtype), mask=mask)


@triton.jit
def _quantize_kernel(
    x_ptr, codes_ptr, scales_ptr, meta_ptr, count,
    metadata: tl.constexpr, adaptive: tl.constexpr, exact: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    group, offsets, exists = _offsets(count, rows)
    x = tl.load(x_ptr + offsets, mask=exists[:, None, None], other=0)
    y, sign, scale, good = _scaled(x)
    if metadata == _SG_EM:
        bias, field = _search(y, scale, adaptive, exact)
        q, _ = _chosen(y, bias, field)
        scale += bias
    else:
        q = _e2m1(y)
        if metadata == _ELEM_EM:
            _, _, field = _elem_em(y, q)
    if metadata != 0:
        fields = tl.sum(field << (2 * tl.arange(0, 4)[None, :]), 1)
        tl.store(meta_ptr + group, tl.where(good, fields, 0).to(tl.uint8), mask=exists)
    scale = tl.where(good, scale, 0xFF)
    tl.store(scales_ptr + group, scale.to(tl.uint8), mask=exists)
    code = (_coarse(q) >> 2) | ((sign >> 28) & 8)
    code = tl.where(good[:, None, None], code, 0)
    even, odd = tl.split(tl.reshape(code, [rows, 4, 4, 2]))
    pairs = (
        group[:, None, None] * 16
        + (tl.arange(0, 4)[:, None] * 4 + tl.arange(0, 4)[None, :])[None, :, :]
    )
    tl.store(codes_ptr + pairs, (even | (odd << 4)).to(tl.uint8), mask=exists[:, None, None])


@triton.jit
def _dequantize_kernel(
    codes_ptr, scales_ptr, meta_ptr, out_ptr, count,
    metadata: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    group, offsets, exists = _offsets(count, rows)
    mask = exists[:, None, None]
    inner = tl.arange(0, 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    pairs = tl.load(
        codes_ptr + group[:, None, None] * 16 + inner[None, :, :], mask=mask, other=0
    ).to(tl.int32)
    code = tl.reshape(tl.join(pairs & 15, pairs >> 4), [rows, 4, 8])
    scale = tl.load(scales_ptr + group, mask=exists, other=0).to(tl.int32)
    magnitude = code & 7
    halves = magnitude + (magnitude > 4) + (magnitude > 5) + 3 * (magnitude > 6).to(tl.int32)
    value = halves.to(tl.float32) * 0.5
    if metadata != 0:
        meta = tl.load(meta_ptr + group, mask=exists, other=0).to(tl.int32)
        field = (meta[:, None] >> (2 * tl.arange(0, 4)[None, :])) & 3
        if metadata == _SG_EM:
            value = value * (1.0 + 0.25 * field.to(tl.float32))[:, :, None]
        else:
            keys, top = _top_key(value)
            refined = _refined(_float(top & -8), field)[:, :, None]
            value = tl.where(keys == top[:, :, None], refined, value)
    value = _restored(value, (code & 8) << 28, scale, scale != 0xFF)
    tl.store(out_ptr + offsets, _narrow(value, out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _fma2(a, b, c):
    """Return a b + c of both bfloat16 halves of int32 words, rounded once; subnormals are kept."""
    return tl.inline_asm_elementwise(
        "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _max2(a, b):
    return tl.inline_asm_elementwise(
        "max.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _min2(a, b):
    return tl.inline_asm_elementwise(
        "min.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


# Both halves of a word: -0, 1, 6, 96, -96 and 2^-126 as bfloat16.
_MINUS_ZERO2 = tl.constexpr(-0x7FFF8000)
_ONE2 = tl.constexpr(0x3F803F80)
_SIX2 = tl.constexpr(0x40C040C0)
_PIVOT2 = tl.constexpr(0x42C042C0)
_MINUS_PIVOT2 = tl.constexpr(-0x3D3F3D40)
_LEAST_NORMAL2 = tl.constexpr(0x00800080)


@triton.jit
def _larger_half(words):
    """Return the largest half along the last axis, in the upper half; halves are not negative.

    A word orders by its upper half first; what its lower half adds to that order is masked.
    """
    return tl.maximum(tl.max(words, 2) & 0x7FFF0000, tl.max(words << 16, 2))


@triton.jit
def _words_scaled(words):
    """Return |x| / 2^(E - 127) of words [B, 4, 4], E and which groups are finite."""
    magnitude = words & 0x7FFF7FFF
    largest = tl.max(_larger_half(magnitude), 1)  # NaN orders above infinity
    good = largest < 0x7F800000
    fitted = tl.where(good, tl.maximum((largest >> 23) - 2, 0), 0)
    inverse = (254 - fitted) * 0x00800080
    y = _fma2(magnitude, inverse[:, None, None], _MINUS_ZERO2)
    return y, fitted, good


@triton.jit
def _words_e2m1(y):
    """Return the E2M1 values nearest to 0 <= y < 8, ties to even.

    96 times the power of two at or below max(y, 1): the last bit of y + pivot weighs power / 2,
    the step of the grid there, so the sum is rounded as E2M1 is.
    """
    power = _max2(y & 0x7F807F80, _ONE2)
    return _min2(_fma2(power, _MINUS_PIVOT2, _fma2(power, _PIVOT2, y)), _SIX2)


@triton.jit
def _words_top(y, q):
    """Return top-1 of each subgroup: its lane, E2M1 value and metadata field [B, 4], word mask."""
    word = tl.arange(0, 4)[None, None, :]
    # The last 3 bits of a half of q take 7 - lane, so the lowest index of equals is the largest.
    top = _larger_half(q | (0x00060007 - 0x00020002 * word))
    lane = 7 - ((top >> 16) & 7)
    hit = word == (lane >> 1)[:, :, None]
    pair = tl.sum(tl.where(hit, y, 0), 2)
    y_top = _float(tl.where((lane & 1) == 1, pair & -65536, pair << 16))
    q_top = _float(top & -0x80000)
    fine = tl.minimum(tl.maximum(_e2m3_code(y_top) + 1 - _coarse(q_top), 0), 3)
    return lane, q_top, fine, hit


@triton.jit
def _words_fake_kernel(x_ptr, out_ptr, count, metadata: tl.constexpr, rows: tl.constexpr):
    _, offsets, exists = _word_offsets(count, rows)
    mask = exists[:, None, None]
    words = tl.load(x_ptr + offsets, mask=mask, other=0)
    y, scale, good = _words_scaled(words)
    value = _words_e2m1(y)
    if metadata == _ELEM_EM:
        lane, q_top, fine, hit = _words_top(y, value)
        change = _bits(_refined(q_top, fine)) ^ _bits(q_top)  # in the upper half
        change = tl.where((lane & 1) == 1, change, change >> 16)
        value ^= tl.where(hit, change[:, :, None], 0)
    power = tl.where(scale > 0, scale << 7, 0x40) * 0x00010001  # 2^-127 is a subnormal
    value = _fma2(value | (words & -0x7FFF8000), power[:, None, None], _MINUS_ZERO2)
    tl.store(out_ptr + offsets, tl.where(good[:, None, None], value, 0x7FC07FC0), mask=mask)


@triton.jit
def _words_quantize_kernel(
    x_ptr, codes_ptr, scales_ptr, meta_ptr, count, metadata: tl.constexpr, rows: tl.constexpr
):  # fmt: skip
    group, offsets, exists = _word_offsets(count, rows)
    mask = exists[:, None, None]
    words = tl.load(x_ptr + offsets, mask=mask, other=0)
    y, scale, good = _words_scaled(words)
    q = _words_e2m1(y)
    if metadata == _ELEM_EM:
        _, _, field, _ = _words_top(y, q)
        fields = tl.sum(field << (2 * tl.arange(0, 4)[None, :]), 1)
        tl.store(meta_ptr + group, tl.where(good, fields, 0).to(tl.uint8), mask=exists)
    tl.store(scales_ptr + group, tl.where(good, scale, 0xFF).to(tl.uint8), mask=exists)
    # As subnormals and small numbers of bfloat16, E2M1 values are their codes, 6 bits up.
    code = _fma2(q, _LEAST_NORMAL2, _MINUS_ZERO2)
    low = ((code >> 6) & 7) | ((words >> 12) & 8)
    high = ((code >> 18) & 0x70) | ((words >> 24) & 0x80)
    byte = tl.where(good[:, None, None], low | high, 0)
    tl.store(codes_ptr + offsets, byte.to(tl.uint8), mask=mask)


@triton.jit
def _word_offsets(count, rows: tl.constexpr):
    """Return group numbers [B], offsets of words [B, 4, 4] and the mask of groups that exist."""
    group = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    inner = tl.arange(0, 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    return group, group[:, None, None] * 16 + inner[None, :, :], group < count


def _grid(count: int) -> tuple[int]:
    return (triton.cdiv(count, _GROUPS_A_PROGRAM),)


def _in_words(groups: Tensor, metadata: str) -> bool:
    """Whether the kernels that hold two values a word serve: Ampere and later have the adder."""
    return (
        groups.dtype == torch.bfloat16
        and metadata != "sg-em"
        and groups.data_ptr() % 4 == 0
        and torch.cuda.get_device_capability(groups.device) >= (8, 0)
    )


def _raw(x: Tensor) -> Tensor:
    """Return bfloat16 as int16 bits, other types as they are."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def _exact(dtype: torch.dtype) -> tl.dtype:
    """Return the type in which the sums of the weight search are exact."""
    return tl.float32 if dtype == torch.bfloat16 else tl.float64


def quantize(
    groups: Tensor, codes: Tensor, scales: Tensor, meta: Tensor, metadata: str, adaptive: bool
) -> None:
    """Quantize contiguous groups [n, 32] into contiguous planes [n, 16], [n, 1], [n, 0 or 1]."""
    count = len(groups)
    if not count:
        return
    with torch.cuda.device_of(groups):
        if _in_words(groups, metadata):
            _words_quantize_kernel[_grid(count)](
                groups.view(torch.int32), codes, scales, meta, count, _METADATA[metadata],
                _GROUPS_A_PROGRAM, num_warps=2,
            )  # fmt: skip
        else:
            _quantize_kernel[_grid(count)](
                _raw(groups), codes, scales, meta, count, _METADATA[metadata], adaptive,
                _exact(groups.dtype), _GROUPS_A_PROGRAM, num_warps=2,
            )  # fmt: skip


def fake_quantize(groups: Tensor, values: Tensor, metadata: str, adaptive: bool) -> None:
    """Quantize and dequantize contiguous groups [n, 32] into ``values`` of the same type."""
    count = len(groups)
    if not count:
        return
    with torch.cuda.device_of(groups):
        if _in_words(groups, metadata):
            _words_fake_kernel[_grid(count)](
                groups.view(torch.int32), values.view(torch.int32), count, _METADATA[metadata],
                _GROUPS_A_PROGRAM, num_warps=2,
            )  # fmt: skip
        else:
            _fake_kernel[_grid(count)](
                _raw(groups), _raw(values), count, _METADATA[metadata], adaptive,
                _exact(groups.dtype), _GROUPS_A_PROGRAM, num_warps=2,
            )  # fmt: skip


def dequantize(codes: Tensor, scales: Tensor, meta: Tensor, values: Tensor, metadata: str) -> None:
    """Dequantize contiguous planes into ``values`` [n, 32]."""
    count = len(values)
    if count:
        with torch.cuda.device_of(values):
            _dequantize_kernel[_grid(count)](
                codes, scales, meta, _raw(values), count, _METADATA[metadata], _GROUPS_A_PROGRAM,
                num_warps=2,
            )  # fmt: skip
