# ruff: noqa: N803, N806 - compile-time parameters are in capitals
"""Matrix products of packed tensors on CUDA tensor cores, bit for bit those of the plain path.

An element times its scale has few significant bits, so a 16-bit float holds it exactly, and the sum
of a group's products is an integer below 2^24 times a power of two: a tensor core that accumulates
a group from zero in float32 gives it exactly. What rounds is one float32 addition a group, as the
hardware does it.

- ``_decode`` turns packed planes into such operands and records, for each block of rows, between
  which exponents its values lie.
- ``_scaled`` multiplies tiles whose sums stay normal float32 numbers, whatever their groups hold.
- ``_careful`` multiplies all other tiles: integers on tensor cores, the accumulation in float64
  rounded to odd.
- ``_fixed`` adds up exactly, in windows of fixed point.
- ``_wide`` cuts wider integers (E4M3 elements) in limbs for int8 tensor cores.

Which kernel computes a tile is decided on the device, so nothing waits for it.
"""

from functools import cache
from math import prod
from types import ModuleType

import torch
import triton
import triton.language as tl
from torch import Tensor

from m2xfp.golden.formats.numeric import joint_scale
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.assembly import ADD_ROUNDED_TO_ODD
from m2xfp.golden.kernels.products_facts import NAN_EXPONENT, Operand, describe, limits, sum_bound

__all__ = ["matmul", "serves"]

_ROWS_A_RANGE = 128
_EMPTY = 1 << 20  # above every exponent
_NAN_EXPONENT = tl.constexpr(NAN_EXPONENT)
# Values of an operand that are decoded at a time.
_WORKSPACE = 1 << 28
_WIDE_TILE = (32, 64, 4)  # rows, columns and warps of a tile of ``_wide``


@triton.jit
def _bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _float(b):
    return b.to(tl.float32, bitcast=True)


@triton.jit
def _power(e):
    """Return 2^e as float64, exactly."""
    return ((e.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _minifloat(code, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """Return the value of magnitude codes: the fields in place of float32's, then its bias."""
    return _float(code << (23 - MANTISSA)) * _float((254 - BIAS) << 23 | code * 0)


@triton.jit
def _load_code(plane, k, live, BITS: tl.constexpr):
    """Return element k of rows that start at ``plane``: codes of BITS bits without gaps."""
    if BITS == 8:
        return tl.load(plane + k, live, 0).to(tl.int32)
    bit = k * BITS
    low = tl.load(plane + bit // 8, live, 0).to(tl.int32)
    if BITS != 4:
        over = live & (bit % 8 + BITS > 8)
        low = low | tl.load(plane + bit // 8 + 1, over, 0).to(tl.int32) << 8
    return low >> (bit % 8) & ((1 << BITS) - 1)


@triton.jit
def _values(codes, scales, meta, wide, sub, lane, live, groups, F: tl.constexpr):
    """Return elements [R, S, lanes] as float32, exact, and facts of their scales, [R, S, 1].

    The facts are the significand, the exponent and whether it is NaN.

    ``F`` is a format, see ``Operand.recipe``; subgroups ``sub`` count along rows ``wide`` (int64).
    """
    GROUP: tl.constexpr = F[0]
    SUB: tl.constexpr = F[1]
    BITS: tl.constexpr = F[2]
    MANTISSA: tl.constexpr = F[3]
    BIAS: tl.constexpr = F[4]
    NAN_CODE: tl.constexpr = F[5]
    SCALE: tl.constexpr = F[6]
    META: tl.constexpr = F[7]
    META_BITS: tl.constexpr = F[8]
    subs: tl.constexpr = GROUP // SUB
    group = sub // subs
    if BITS == 4 and SUB <= 8:  # one word for the whole subgroup
        words = (codes + wide * (groups * GROUP // 2)).to(tl.pointer_type(tl.int32))
        word = tl.load(words + sub * SUB // 8, live, 0)
        code = word >> (sub * SUB % 8 + lane) * 4 & 15
    else:
        whole = live & (lane >= 0)
        plane = codes + wide * (groups * GROUP * BITS // 8)
        code = _load_code(plane, sub * SUB + lane, whole, BITS)
    place: tl.constexpr = 1 << (BITS - 1)
    if MANTISSA < 0:
        value = ((code ^ place) - place).to(tl.float32) * _float((127 - BIAS) << 23 | code * 0)
    else:
        magnitude = code & (place - 1)
        if META != 0:
            size: tl.constexpr = (subs * META_BITS + 7) // 8
            bit = sub % subs * META_BITS
            byte = tl.load(meta + wide * (groups * size) + group * size + bit // 8, live, 0)
            field = byte.to(tl.int32) >> (bit % 8) & ((1 << META_BITS) - 1)
        if META == 1:
            key = magnitude * SUB + (SUB - 1 - lane)
            top = tl.max(key, 2)[:, :, None]
            fine = 4 * magnitude
            fine = tl.where(key == top, tl.maximum(fine + field - 1, 0), fine)
            value = _minifloat(fine, MANTISSA + 2, BIAS)
        else:
            value = _minifloat(magnitude, MANTISSA, BIAS)
        if NAN_CODE >= 0:
            value = tl.where(magnitude == NAN_CODE, float("nan"), value)
        if META == 2:
            value = value * (4 + field).to(tl.float32) * 0.25
        if META == 3:
            value = value * (2 - field).to(tl.float32) * 0.5
        value = _float(_bits(value) | ((code & place) << (32 - BITS)))
    stored = tl.load(scales + wide * groups + group, live, 0).to(tl.int32)
    if SCALE == 0:
        bad = stored == 255
        exponent = stored - 127
        significand = tl.where(bad, float("nan"), 1.0)
    else:
        mag = stored & 127
        bad = (stored == 255) if SCALE == 2 else (mag == 127)
        exponent = tl.maximum(mag >> 3, 1) - 10
        number = (mag & 7) + tl.where(mag > 7, 8, 0)
        significand = tl.where(bad, float("nan"), number.to(tl.float32))
    return value, significand, exponent, bad


@triton.jit
def _decode(
    codes, scales, meta, out, exponents, ranges, rows, groups,
    F: tl.constexpr, UNIT: tl.constexpr, LANES: tl.constexpr, SLOTS: tl.constexpr,
    INTEGERS: tl.constexpr, LIMBS: tl.constexpr, TRACK: tl.constexpr, R: tl.constexpr,
    GROUPS: tl.constexpr, ROWS_A_RANGE: tl.constexpr,
):  # fmt: skip
    """Decode R rows of GROUPS groups to ``out``, lanes padded to SLOTS; one matrix a program_id(2).

    Without INTEGERS, element times scale; with it, the integers of both, and their exponents.
    LIMBS cuts the integers in four of 7 bits, each 2^4 times the one before; three of them are 0.
    TRACK records the exponents that the rows have.
    """
    GROUP: tl.constexpr = F[0]
    SUB: tl.constexpr = F[1]
    subs: tl.constexpr = GROUP // SUB
    first = tl.program_id(0) * R
    local = first + tl.arange(0, R)[:, None, None]
    lane = tl.arange(0, SUB)[None, None, :]
    sub = tl.program_id(1) * GROUPS * subs + tl.arange(0, GROUPS * subs)[None, :, None]
    group = sub // subs
    live = (local < rows) & (group < groups)
    whole = live & (lane >= 0)
    wide = local.to(tl.int64) + tl.program_id(2).to(tl.int64) * rows
    value, significand, exponent, bad = _values(
        codes, scales, meta, wide, sub, lane, live, groups, F
    )
    seen = whole & (value != 0.0) & (value == value) & (bad == 0)
    if INTEGERS:
        raw = value * significand * _float((127 - UNIT) << 23 | lane * 0)
        at = exponent + UNIT + lane * 0
        seen = seen & (raw != 0.0)
        wrong = bad
        if LIMBS and F[5] >= 0:
            lost = tl.max((value != value).to(tl.int32).reshape(R, GROUPS, GROUP), 2)
            lost = tl.broadcast_to(lost[:, :, None], (R, GROUPS, subs)).reshape(R, GROUPS * subs)
            wrong = wrong | (lost[:, :, None] != 0)
        marked = tl.where(wrong, _NAN_EXPONENT, exponent + UNIT)
        spots = sub % subs == 0
        tl.store(exponents + wide * groups + group, marked.to(tl.int16), live & spots)
    else:
        # 2^-127 is subnormal.
        factor = _float(tl.where(exponent < -126, 0x00400000, (exponent + 127) << 23))
        raw = value * (significand * factor)
        at = exponent + (_bits(value) >> 23 & 255) - 127
    k = sub * SUB + lane
    if LIMBS:
        limb = tl.maximum((_bits(raw) >> 23 & 255) - 130, 0) >> 2
        number = tl.where(raw == raw, raw, 0.0).to(tl.int32)
        for place in tl.static_range(4):
            part = tl.where(limb == place, number >> (4 * place), 0)
            target = out + wide * (groups * 4 * GROUP) + group * 4 * GROUP + place * GROUP
            tl.store(target + k % GROUP, part.to(tl.int8), whole)
        return
    if LANES != SLOTS:
        k = k // LANES * SLOTS + k % LANES
    target = out + wide * (groups * (GROUP // LANES) * SLOTS) + k
    tl.store(target, raw.to(out.dtype.element_ty), whole)
    if TRACK:
        low = tl.min(tl.min(tl.min(tl.where(seen, at, 1048576), 2), 1), 0)
        high = tl.min(tl.min(tl.min(tl.where(seen, -at, 1048576), 2), 1), 0)
        block = tl.program_id(2) * tl.cdiv(rows, ROWS_A_RANGE) + first // ROWS_A_RANGE
        tl.atomic_min(ranges + 2 * block, low)
        tl.atomic_min(ranges + 2 * block + 1, high)


@triton.jit
def _place(M, N, BM: tl.constexpr, BN: tl.constexpr, TALL: tl.constexpr):
    """Return the tile of this program; programs go down TALL tiles, then right."""
    program = tl.program_id(0)
    down, across = tl.cdiv(M, BM), tl.cdiv(N, BN)
    band = program // (TALL * across)
    height = tl.minimum(down - band * TALL, TALL)
    inside = program % (TALL * across)
    return band * TALL + inside % height, inside // height


@triton.jit
def _is_safe(ranges_a, ranges_w, tile_m, tile_n, M, N, BM: tl.constexpr, BN: tl.constexpr,
             LIMITS: tl.constexpr, ROWS_A_RANGE: tl.constexpr):  # fmt: skip
    """Whether the sums of a tile are normal float32 numbers."""
    LOW: tl.constexpr = LIMITS[0]
    HIGH: tl.constexpr = LIMITS[1]
    LEAST: tl.constexpr = LIMITS[2]
    batch = tl.program_id(1)
    row = batch * tl.cdiv(M, ROWS_A_RANGE) + tile_m * BM // ROWS_A_RANGE
    column = batch * tl.cdiv(N, ROWS_A_RANGE) + tile_n * BN // ROWS_A_RANGE
    low_a, high_a = tl.load(ranges_a + 2 * row), tl.load(ranges_a + 2 * row + 1)
    low_w, high_w = tl.load(ranges_w + 2 * column), tl.load(ranges_w + 2 * column + 1)
    normal = tl.minimum(low_a, low_w) >= LEAST
    finite = tl.minimum(high_a, high_w) >= -127  # an infinity times nothing would be NaN
    return (low_a + low_w >= LOW) & (high_a + high_w >= -HIGH) & normal & finite


@triton.jit
def _finish(acc, tensor_scale, LEVELS: tl.constexpr):
    """Apply the tensor scale, and give every NaN its one pattern."""
    if LEVELS:
        acc = acc * tl.load(tensor_scale)
    return tl.where(acc == acc, acc, _float(_bits(acc) * 0 + 0x7FC00000))


@triton.jit
def _store(acc, out, tensor_scale, tile_m, tile_n, M, N, stride, span, LEVELS: tl.constexpr,
           BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """Write a tile of the result, see ``_finish``, rounded to the type of ``out``."""
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    acc = _finish(acc, tensor_scale, LEVELS)
    kind: tl.constexpr = out.dtype.element_ty
    if kind != tl.float32:  # the conversion has a NaN of its own
        quiet: tl.constexpr = 0x7FC0 if kind == tl.bfloat16 else 0x7E00
        nan = tl.full((BM, BN), quiet, tl.int16).to(kind, bitcast=True)
        acc = tl.where(acc == acc, acc.to(kind), nan)
    out += tl.program_id(1).to(tl.int64) * span
    target = out + row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(target, acc, (row < M)[:, None] & (column < N)[None, :])


@triton.jit
def _scaled(
    a, w, out, ranges_a, ranges_w, tensor_scale, M, N, K, stride, span, one,
    SAFE: tl.constexpr, LIMITS: tl.constexpr, LEVELS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, SLOTS: tl.constexpr, TALL: tl.constexpr, ROWS_A_RANGE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Multiply one safe tile: a group on tensor cores, then one addition."""
    tile_m, tile_n = _place(M, N, BM, BN, TALL)
    if not SAFE:
        safe = _is_safe(ranges_a, ranges_w, tile_m, tile_n, M, N, BM, BN, LIMITS, ROWS_A_RANGE)
        if not safe:
            return
    batch = tl.program_id(1).to(tl.int64)
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    lane = tl.arange(0, SLOTS)
    # Rows past the end repeat the last one; they are not stored.
    wide_m, wide_n = batch * M + tl.minimum(row, M - 1), batch * N + tl.minimum(column, N - 1)
    from_a = a + wide_m[:, None] * K + lane[None, :]
    from_w = w + wide_n[None, :] * K + lane[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    for _ in tl.range(0, K, SLOTS, num_stages=STAGES):
        products = tl.dot(tl.load(from_a), tl.load(from_w))
        # As an fma, so that no compiler moves the addition into the tensor core, which truncates.
        acc = tl.fma(products, one, acc)
        from_a += SLOTS
        from_w += SLOTS
    _store(acc, out, tensor_scale, tile_m, tile_n, M, N, stride, span, LEVELS, BM, BN)


@triton.jit
def _to_odd(a, b):
    """Return a + b in float64 rounded to odd, see golden/formats/numeric.py; finite a and b."""
    total = a + b
    shadow = total - a
    error = (a - (total - shadow)) + (b - shadow)
    word = total.to(tl.int64, bitcast=True)
    outward = (error > 0) == (total > 0)
    moved = word + tl.where(outward, 1, -1)
    moved = tl.where(total == 0, tl.where(error > 0, 1, -9223372036854775807), moved)
    inexact = (error != 0) & (error == error) & ((word & 1) == 0)
    return tl.where(inexact, moved, word).to(tl.float64, bitcast=True)


@triton.jit
def _added(acc, high, low, power):
    """Return acc + (2^12 high + low) 2^e rounded once to float32; see ``assembly``."""
    return tl.inline_asm_elementwise(
        ADD_ROUNDED_TO_ODD,
        "=d,d,r,r,r",
        [acc, high, low, power],
        dtype=tl.float64,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _add(a, w, acc):
    return tl.dot(a, w, acc, out_dtype=tl.int32)


@triton.jit
def _wide(
    a, w, exponents_a, exponents_w, out, M, N, groups, stride, span,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Multiply one tile of integers in four limbs, for sums of a group up to 2^53."""
    tile_m, tile_n = _place(M, N, BM, BN, 8)
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    lane = tl.arange(0, GROUP)
    batch = tl.program_id(1).to(tl.int64)
    wide_m, wide_n = batch * M + tl.minimum(row, M - 1), batch * N + tl.minimum(column, N - 1)
    from_a = a + wide_m[:, None] * (groups * 4 * GROUP) + lane[None, :]
    from_w = w + wide_n[None, :] * (groups * 4 * GROUP) + lane[:, None]
    acc = tl.zeros((BM, BN), tl.float64)  # of float32 numbers
    bad_m, bad_n = tl.zeros((BM,), tl.int32), tl.zeros((BN,), tl.int32)
    for group in range(0, groups):
        a0, a1 = tl.load(from_a), tl.load(from_a + GROUP)
        a2, a3 = tl.load(from_a + 2 * GROUP), tl.load(from_a + 3 * GROUP)
        w0, w1 = tl.load(from_w), tl.load(from_w + GROUP)
        w2, w3 = tl.load(from_w + 2 * GROUP), tl.load(from_w + 3 * GROUP)
        from_a += 4 * GROUP
        from_w += 4 * GROUP
        # A NaN scale is NaN for the whole row.
        e_m = tl.load(exponents_a + wide_m * groups + group).to(tl.int32)
        e_n = tl.load(exponents_w + wide_n * groups + group).to(tl.int32)
        bad_m |= (e_m == _NAN_EXPONENT).to(tl.int32)
        bad_n |= (e_n == _NAN_EXPONENT).to(tl.int32)
        up_m = tl.where(e_m == _NAN_EXPONENT, 0, e_m) << 20
        up_n = tl.where(e_n == _NAN_EXPONENT, 0, e_n) + 1023 << 20
        # Limbs i and j weigh 2^(4 (i + j)). Sums of the same weight first, so that no product waits
        # for another; then by Horner's rule.
        s6 = tl.dot(a3, w3, out_dtype=tl.int32)
        s5 = tl.dot(a3, w2, out_dtype=tl.int32)
        s4 = tl.dot(a3, w1, out_dtype=tl.int32)
        s3 = tl.dot(a3, w0, out_dtype=tl.int32)
        s2 = tl.dot(a2, w0, out_dtype=tl.int32)
        s1 = tl.dot(a1, w0, out_dtype=tl.int32)
        s0 = tl.dot(a0, w0, out_dtype=tl.int32)
        s5, s4, s3 = _add(a2, w3, s5), _add(a2, w2, s4), _add(a2, w1, s3)
        s2, s1 = _add(a1, w1, s2), _add(a0, w1, s1)
        s4, s3 = _add(a1, w3, s4), _add(a1, w2, s3)
        s2 = _add(a0, w2, s2)
        s3 = _add(a0, w3, s3)
        low = s0 + 16 * (s1 + 16 * s2)
        high = s3 + 16 * (s4 + 16 * (s5 + 16 * s6))
        acc = _added(acc, high, low, up_m[:, None] + up_n[None, :])
    bad = (bad_m[:, None] | bad_n[None, :]) != 0
    acc = tl.where(bad, float("nan"), acc.to(tl.float32))
    _store(acc, out, out, tile_m, tile_n, M, N, stride, span, False, BM, BN)


@triton.jit
def _integers(codes, scales, meta, wide, group, groups, F: tl.constexpr, UNIT: tl.constexpr,
              ROWS: tl.constexpr):  # fmt: skip
    """Return the integers of one group of ROWS rows, float16 [ROWS, group], and its exponents."""
    subs: tl.constexpr = F[0] // F[1]
    lane = tl.arange(0, F[1])[None, None, :]
    sub = group * subs + tl.arange(0, subs)[None, :, None]
    rows = wide[:, None, None]
    value, significand, exponent, bad = _values(
        codes, scales, meta, rows, sub, lane, rows >= 0, groups, F
    )
    raw = value * significand * _float((127 - UNIT) << 23 | lane * 0)
    marked = tl.max(tl.where(bad, _NAN_EXPONENT, exponent + UNIT), 2)
    return raw.reshape(ROWS, F[0]).to(tl.float16), tl.max(marked, 1)


@triton.jit
def _careful(
    codes_a, scales_a, meta_a, codes_w, scales_w, meta_w, out, ranges_a, ranges_w, tensor_scale,
    M, N, groups, stride, span,
    A: tl.constexpr, W: tl.constexpr, UNIT_A: tl.constexpr, UNIT_W: tl.constexpr,
    LIMITS: tl.constexpr, LEVELS: tl.constexpr, LANES: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, ROWS_A_RANGE: tl.constexpr,
):  # fmt: skip
    """Multiply one tile that is not safe, from its planes: float64 rounded to odd, then once."""
    tile_m, tile_n = _place(M, N, BM, BN, 8)
    if _is_safe(ranges_a, ranges_w, tile_m, tile_n, M, N, BM, BN, LIMITS, ROWS_A_RANGE):
        return
    batch = tl.program_id(1).to(tl.int64)
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    wide_m, wide_n = batch * M + tl.minimum(row, M - 1), batch * N + tl.minimum(column, N - 1)
    acc = tl.zeros((BM, BN), tl.float32)
    lane = tl.arange(0, A[0])[None, :]
    for group in range(0, groups):
        left, e_a = _integers(codes_a, scales_a, meta_a, wide_m, group, groups, A, UNIT_A, BM)
        right, e_w = _integers(codes_w, scales_w, meta_w, wide_n, group, groups, W, UNIT_W, BN)
        e = e_a[:, None] + e_w[None, :]
        right = tl.trans(right)
        for part in range(0, A[0] // LANES):
            mine = left if A[0] == LANES else tl.where(lane // LANES == part, left, 0.0)
            products = tl.dot(mine.to(tl.float16), right)
            bad = (e >= 8192) | (products != products)
            addend = products.to(tl.float64) * _power(tl.where(bad, 0, e))
            total = _to_odd(acc.to(tl.float64), addend)
            # An infinite acc stays; what the error of its sum is means nothing.
            total = tl.where(tl.abs(acc) == float("inf"), acc.to(tl.float64), total)
            acc = tl.where(products == 0.0, acc, total.to(tl.float32))
            acc = tl.where(bad, float("nan"), acc)
    _store(acc, out, tensor_scale, tile_m, tile_n, M, N, stride, span, LEVELS, BM, BN)


@triton.jit
def _fixed(
    a, w, exponents_a, exponents_w, out, ranges_a, ranges_w, tensor_scale,
    M, N, groups, stride, span,
    LEVELS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, ROWS_A_RANGE: tl.constexpr,
):  # fmt: skip
    """Add up one tile of integers exactly, whatever their exponents; the ``exact`` accumulator.

    One window of WIDTH exponents after the other, from the lowest: float64 holds exactly what
    falls into it. What reaches beyond the window moves on to the next.
    """
    tile_m, tile_n = _place(M, N, BM, BN, 8)
    batch = tl.program_id(1)
    block_a = batch * tl.cdiv(M, ROWS_A_RANGE) + tile_m * BM // ROWS_A_RANGE
    block_w = batch * tl.cdiv(N, ROWS_A_RANGE) + tile_n * BN // ROWS_A_RANGE
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    lane = tl.arange(0, SLOTS)
    batch = batch.to(tl.int64)
    wide_m, wide_n = batch * M + tl.minimum(row, M - 1), batch * N + tl.minimum(column, N - 1)
    from_a = a + wide_m[:, None] * (groups * SLOTS) + lane[None, :]
    from_w = w + wide_n[None, :] * (groups * SLOTS) + lane[:, None]
    low = tl.load(ranges_a + 2 * block_a) + tl.load(ranges_w + 2 * block_w)
    high = -tl.load(ranges_a + 2 * block_a + 1) - tl.load(ranges_w + 2 * block_w + 1)
    windows = tl.where(high >= low, (high - low) // WIDTH + 1, 1)
    carry = tl.zeros((BM, BN), tl.float64)
    rest = tl.zeros((BM, BN), tl.float64)
    wrong = tl.zeros((BM, BN), tl.int32)
    down = _power(low * 0 - WIDTH)
    up = _power(low * 0 + WIDTH)
    for window in range(0, windows):
        base = low + window * WIDTH
        total = carry
        for group in range(0, groups):
            products = tl.dot(tl.load(from_a + group * SLOTS), tl.load(from_w + group * SLOTS))
            e = tl.load(exponents_a + wide_m * groups + group).to(tl.int32)[:, None]
            e = e + tl.load(exponents_w + wide_n * groups + group).to(tl.int32)[None, :]
            wrong = wrong | ((e >= 8192) | (products != products)).to(tl.int32)
            place = e - base
            inside = (place >= 0) & (place < WIDTH)
            part = products.to(tl.float64) * _power(tl.where(inside, place, 0))
            total = total + tl.where(inside, part, 0.0)
        carry = tl.floor(total * down + 0.5)
        rest = _to_odd(total - carry * up, rest * down)
    base = low + (windows - 1) * WIDTH
    total = _to_odd(carry * up, rest) * _power(tl.where(high >= low, base, 0))
    acc = tl.where(wrong != 0, float("nan"), total.to(tl.float32))
    _store(acc, out, tensor_scale, tile_m, tile_n, M, N, stride, span, LEVELS, BM, BN)


def _slots(lanes: int) -> int:
    """Return the places that the lanes of an addend take: a tensor core multiplies 16 at least."""
    return max(16, lanes)


def serves(qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int) -> bool:
    """Whether these kernels compute the product."""
    a, w = describe(qa.format.block), describe(qw.format.block)
    if a is None or w is None or lanes == 1 or a.group < 16:
        return False
    if sum_bound(a, w, lanes) >= 1 << 24:
        return accumulator == "fp32" and _limbs(a) and _limbs(w)
    return accumulator == "exact" or _type(a, w) is not None


def _limbs(side: Operand) -> bool:
    """Whether the integers of a format go into four limbs of 7 bits, each into one."""
    small = side.largest < 128 or (side.width <= 4 and side.largest < 1 << 18)
    return side.scale == 0 and side.group in (32, 64) and small


def _type(a: Operand, w: Operand) -> torch.dtype | None:
    """Return the type that holds the values of both operands, or None."""
    found = {side.type() for side in (a, w)}
    if None in found:
        return None
    if found == {"bf16"}:
        return torch.bfloat16
    return torch.float16 if a.small_range and w.small_range else None


class _Matrices:
    """Packed matrices [batch, rows, K], and their values as the kernels multiply them."""

    def __init__(self, planes: list[Tensor], facts: Operand, lanes: int) -> None:
        self.facts, self.lanes = facts, lanes
        self.codes, self.scales, self.meta = (_aligned(plane) for plane in planes)
        self.batch, self.rows, self.groups = self.scales.shape
        self.blocks = self.batch * -(-self.rows // _ROWS_A_RANGE)
        self.exponents = self.scales

    def decode(
        self, ranges: Tensor, dtype: torch.dtype, integers: bool, pad: bool = True
    ) -> Tensor:
        """Return the operand, rows of all matrices after each other, and note its exponents.

        With ``pad`` each addend takes the places that a tensor core multiplies.
        """
        facts = self.facts
        lanes = self.lanes if pad else facts.group
        slots = _slots(lanes)
        limbs = dtype == torch.int8
        parts = 4 if limbs else facts.group // lanes
        shape = (self.batch * self.rows, self.groups * parts * slots)
        make = torch.zeros if slots > lanes else torch.empty
        out = make(shape, dtype=dtype, device=self.codes.device)
        if integers:
            self.exponents = torch.empty_like(self.scales, dtype=torch.int16)
        # Long runs along a row are written in whole lines.
        across = min(2048 // facts.group, triton.next_power_of_2(self.groups))
        down = 2048 // (across * facts.group)
        down = min(down, _ROWS_A_RANGE)
        grid = (-(-self.rows // down), -(-self.groups // across), self.batch)
        _decode[grid](
            self.codes, self.scales, self.meta, out, self.exponents, ranges, self.rows,
            self.groups, F=facts.recipe, UNIT=facts.unit, LANES=lanes, SLOTS=slots,
            INTEGERS=integers, LIMBS=limbs, TRACK=not limbs and (integers or not facts.small_range),
            R=down, GROUPS=across, ROWS_A_RANGE=_ROWS_A_RANGE,
        )  # fmt: skip
        return out


def _aligned(plane: Tensor) -> Tensor:
    """Return a contiguous plane that can be read in words."""
    plane = plane.contiguous()
    return plane if plane.data_ptr() % 16 == 0 else plane.clone()


def _planes(packed: PackedTensor) -> tuple[Tensor, Tensor, Tensor]:
    meta = packed.scales if packed.meta is None else packed.meta
    return packed.codes, packed.scales, meta


def _chunks(count: int, width: int, unit: int = 1) -> list[slice]:
    step = max(unit, _WORKSPACE // max(1, width) // unit * unit)
    return [slice(start, min(count, start + step)) for start in range(0, count, step)]


def matmul(
    qa: PackedTensor,
    qw: PackedTensor,
    accumulator: str,
    lanes: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the product of the rows of [B, M, K] and [B, N, K], in ``dtype``: [B, M, N].

    Leading dimensions are flattened: those of ``qa`` to M rows if ``qw`` has two dimensions, else
    those of both to B; see ``serves``.
    """
    a, w = describe(qa.format.block), describe(qw.format.block)
    assert a is not None
    assert w is not None
    batch, n = (1 if len(qw.shape) == 2 else prod(qw.shape[:-2])), qw.shape[-2]
    left, right = (
        [plane.reshape(batch, -1, plane.shape[-1]) for plane in _planes(packed)]
        for packed in (qa, qw)
    )
    m, width = left[0].shape[1], left[1].shape[-1] * a.group // lanes * _slots(lanes)
    out = torch.empty(batch, m, n, dtype=dtype, device=qa.device)
    level = joint_scale(qa.tensor_scale, qw.tensor_scale)
    for some in _chunks(batch, max(m, n) * width):
        for columns in _chunks(n, width, _ROWS_A_RANGE):
            weights = _Matrices([p[some, columns] for p in right], w, lanes)
            for rows in _chunks(m, width, _ROWS_A_RANGE):
                inputs = _Matrices([p[some, rows] for p in left], a, lanes)
                _multiply(inputs, weights, accumulator, level, out[some, rows, columns])
    return out


def _multiply(
    a: _Matrices, w: _Matrices, accumulator: str, level: Tensor | None, out: Tensor
) -> None:
    """Multiply into ``out`` [batch, M, N]."""
    lanes, slots = a.lanes, _slots(a.lanes)
    bits = sum_bound(a.facts, w.facts, lanes).bit_length()
    batch, m, n = out.shape
    sizes = (m, n, a.groups, out.stride(1), out.stride(0))
    scale, levels = (out, False) if level is None else (level, True)

    def grid(bm: int, bn: int) -> tuple[int, int]:
        return -(-m // bm) * -(-n // bn), batch

    if bits > 24:
        left, right = (side.decode(out, torch.int8, True) for side in (a, w))
        hopper = _hopper(out.device) if m > 32 and lanes == 32 else None
        if hopper is not None:
            hopper.multiply_limbs(left, right, a.exponents, w.exponents, out)
            return
        bm, bn, warps = _WIDE_TILE
        _wide[grid(bm, bn)](
            left, right, a.exponents, w.exponents, out, *sizes, GROUP=lanes, BM=bm, BN=bn,
            num_warps=warps,
        )  # fmt: skip
        return
    ranges = torch.full((a.blocks + w.blocks, 2), _EMPTY, dtype=torch.int32, device=out.device)
    ranges_a, ranges_w = ranges[: a.blocks], ranges[a.blocks :]
    if accumulator == "exact":
        left, right = (
            side.decode(part, torch.float16, True) for side, part in ((a, ranges_a), (w, ranges_w))
        )
        window = 51 - bits - (a.groups + 1).bit_length()
        _fixed[grid(64, 64)](
            left, right, a.exponents, w.exponents, out, ranges_a, ranges_w, scale, *sizes,
            LEVELS=levels, WIDTH=window, SLOTS=slots, BM=64, BN=64, ROWS_A_RANGE=_ROWS_A_RANGE,
            num_warps=4,
        )  # fmt: skip
        return
    dtype = _type(a.facts, w.facts)
    assert dtype is not None
    hopper = _hopper(out.device) if m > 64 and slots <= 64 else None
    pad = hopper is None
    left, right = (
        side.decode(part, dtype, False, pad) for side, part in ((a, ranges_a), (w, ranges_w))
    )
    bounds = limits(a.facts, w.facts, lanes)
    # The exponents of E4M3 scales and E2M1 elements cannot reach the ends of float32.
    safe = a.facts.small_range and w.facts.small_range
    common = {
        "SAFE": safe,
        "LIMITS": bounds,
        "LEVELS": levels,
        "SLOTS": slots,
        "ROWS_A_RANGE": _ROWS_A_RANGE,
    }
    if hopper is not None:
        hopper.multiply(left, right, out, ranges_a, ranges_w, scale, lanes, common)
    else:
        bm, bn, warps, stages = _tile(m, slots)
        _scaled[grid(bm, bn)](
            left, right, out, ranges_a, ranges_w, scale, m, n, left.shape[1], *sizes[3:], 1.0,
            **common, BM=bm, BN=bn, TALL=8, STAGES=stages, num_warps=warps,
        )  # fmt: skip
    if not safe:
        _careful[grid(64, 64)](
            a.codes, a.scales, a.meta, w.codes, w.scales, w.meta, out, ranges_a, ranges_w, scale,
            *sizes, A=a.facts.recipe, W=w.facts.recipe, UNIT_A=a.facts.unit, UNIT_W=w.facts.unit,
            LIMITS=bounds, LEVELS=levels, LANES=lanes, BM=64, BN=64,
            ROWS_A_RANGE=_ROWS_A_RANGE, num_warps=4,
        )  # fmt: skip


@cache
def _hopper(device: torch.device) -> ModuleType | None:
    """Return the kernel for Hopper GPUs, where this is one and Triton has what it is written in."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return None
    try:
        from m2xfp.golden.kernels import products_gluon
    except ImportError:
        return None
    return products_gluon


def _tile(m: int, slots: int) -> tuple[int, int, int, int]:
    """Return rows, columns, warps and stages of a tile of the fast kernel."""
    if slots > 64:
        return 64, 64, 4, 2
    if m <= 16:
        return 16, 64, 4, 4
    return 128, 64, 4, 4
