"""Matrix products of packed tensors on CUDA tensor cores, bit for bit those of the plain path.

An element times its scale has few significant bits, so a 16-bit float holds it exactly, and the sum
of a group's products is an integer below 2^24 times a power of two: a tensor core that accumulates
a group from zero in float32 gives it exactly. What rounds is one float32 addition a group, as the
hardware does it.

- ``_decode`` turns packed planes into such operands and records, for each block of rows, between
  which exponents its values lie.
- ``_scaled`` multiplies tiles whose sums stay normal float32 numbers, whatever their groups hold.
- ``_careful`` multiplies all other tiles: integers on tensor cores, the accumulation in float64
  rounded to odd. With ``EXACT`` it adds up in fixed point instead, for any tile.

Which kernel computes a tile is decided on the device, so nothing waits for it.
"""

import os
from functools import cache
from types import ModuleType

import torch
import triton
import triton.language as tl
from torch import Tensor

from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.products_facts import Operand, describe, limits, sum_bound

__all__ = ["few_rows", "matmul", "serves"]

_ROWS_A_RANGE = 128
_EMPTY = 1 << 20  # above every exponent
_NAN_EXPONENT = tl.constexpr(16384)
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Values of an operand that are decoded at a time.
_WORKSPACE = 1 << 28


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
def _decode(
    codes, scales, meta, out, exponents, ranges, other, rows, groups, other_blocks,
    GROUP: tl.constexpr, SUB: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr,
    BIAS: tl.constexpr, NAN_CODE: tl.constexpr, SCALE: tl.constexpr, META: tl.constexpr,
    META_BITS: tl.constexpr, UNIT: tl.constexpr, LANES: tl.constexpr, SLOTS: tl.constexpr,
    INTEGERS: tl.constexpr, LIMBS: tl.constexpr, ONLY_UNSAFE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    LEAST: tl.constexpr, OTHERS: tl.constexpr, R: tl.constexpr, GROUPS: tl.constexpr,
    ROWS_A_RANGE: tl.constexpr,
):  # fmt: skip
    """Decode R rows of GROUPS groups to ``out``, lanes padded to SLOTS.

    Without INTEGERS, element times scale; with it, the integers of both, and their exponents.
    LIMBS cuts the integers in four of 7 bits, each 2^4 times the one before; three of them are 0.
    ONLY_UNSAFE leaves out rows that no unsafe tile has.
    """
    first = tl.program_id(0) * R
    if ONLY_UNSAFE:
        block = first // ROWS_A_RANGE
        lanes = tl.arange(0, OTHERS)
        low, high = 1048576, 1048576
        for start in range(0, other_blocks, OTHERS):
            there = start + lanes < other_blocks
            low = tl.minimum(low, tl.min(tl.load(other + 2 * (start + lanes), there, 1048576)))
            high = tl.minimum(
                high, tl.min(tl.load(other + 2 * (start + lanes) + 1, there, 1048576))
            )
        mine, top = tl.load(ranges + 2 * block), tl.load(ranges + 2 * block + 1)
        safe = (mine + low >= LOW) & (top + high >= -HIGH) & (tl.minimum(mine, low) >= LEAST)
        safe = safe & (tl.minimum(top, high) >= -127)
        if safe:
            return
    row = first + tl.arange(0, R)[:, None, None]
    lane = tl.arange(0, SUB)[None, None, :]
    subs: tl.constexpr = GROUP // SUB
    sub = tl.program_id(1) * GROUPS * subs + tl.arange(0, GROUPS * subs)[None, :, None]
    group = sub // subs
    live = (row < rows) & (group < groups)
    whole = live & (lane >= 0)
    wide = row.to(tl.int64)
    k = sub * SUB + lane
    if BITS == 4 and SUB <= 8:  # one word for the whole subgroup
        words = (codes + wide * (groups * GROUP // 2)).to(tl.pointer_type(tl.int32))
        word = tl.load(words + sub * SUB // 8, live, 0)
        code = word >> (sub * SUB % 8 + lane) * 4 & 15
    else:
        code = _load_code(codes + wide * (groups * GROUP * BITS // 8), k, whole, BITS)
    place: tl.constexpr = 1 << (BITS - 1)
    if MANTISSA < 0:
        value = ((code ^ place) - place).to(tl.float32) * _float((127 - BIAS) << 23 | code * 0)
    else:
        magnitude = code & (place - 1)
        if META == 1:
            key = magnitude * SUB + (SUB - 1 - lane)
            top = tl.max(key, 2)[:, :, None]
        if META != 0:
            size: tl.constexpr = (subs * META_BITS + 7) // 8
            bit = sub % subs * META_BITS
            byte = tl.load(meta + wide * (groups * size) + group * size + bit // 8, live, 0)
            field = byte.to(tl.int32) >> (bit % 8) & ((1 << META_BITS) - 1)
        if META == 1:
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
        factor = _float(tl.where(stored == 0, 0x00400000, stored << 23))
        significand = tl.where(bad, float("nan"), 1.0)
    else:
        mag = stored & 127
        bad = (stored == 255) if SCALE == 2 else (mag == 127)
        exponent = tl.maximum(mag >> 3, 1) - 10
        number = (mag & 7) + tl.where(mag > 7, 8, 0)
        significand = tl.where(bad, float("nan"), number.to(tl.float32))
        factor = significand * _float((exponent + 127) << 23)
    size = (_bits(value) >> 23 & 255) - 127  # exponent of the element
    seen = whole & (value != 0.0) & (value == value) & (bad == 0)
    if INTEGERS:
        raw = value * significand * _float((127 - UNIT) << 23 | code * 0)
        at = exponent + UNIT + lane * 0
        wrong = bad
        if LIMBS and NAN_CODE >= 0:
            lost = tl.max((value != value).to(tl.int32).reshape(R, GROUPS, GROUP), 2)
            lost = tl.broadcast_to(lost[:, :, None], (R, GROUPS, subs)).reshape(R, GROUPS * subs)
            wrong = wrong | (lost[:, :, None] != 0)
        marked = tl.where(wrong, _NAN_EXPONENT, exponent + UNIT)
        if SCALE != 0:
            seen = seen & (significand + lane * 0.0 != 0.0)
        spots = sub % subs == 0
        tl.store(exponents + wide * groups + group, marked.to(tl.int16), live & spots)
    else:
        raw = value * tl.where(bad, float("nan"), factor)
        at = exponent + size
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
    if not (INTEGERS and ONLY_UNSAFE):
        if INTEGERS or SCALE == 0 or BITS != 4:
            low = tl.min(tl.min(tl.min(tl.where(seen, at, 1048576), 2), 1), 0)
            high = tl.min(tl.min(tl.min(tl.where(seen, -at, 1048576), 2), 1), 0)
            block = first // ROWS_A_RANGE
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
def _is_safe(ranges_a, ranges_w, row, column, LOW: tl.constexpr, HIGH: tl.constexpr,
             LEAST: tl.constexpr):  # fmt: skip
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
def _scaled(
    a, w, out, ranges_a, ranges_w, tensor_scale, M, N, K, stride, one,
    SAFE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, LEAST: tl.constexpr,
    LEVELS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SLOTS: tl.constexpr,
    TALL: tl.constexpr, ROWS_A_RANGE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Multiply one safe tile: a group on tensor cores, then one addition."""
    tile_m, tile_n = _place(M, N, BM, BN, TALL)
    if not SAFE:
        safe = _is_safe(ranges_a, ranges_w, tile_m * BM // ROWS_A_RANGE,
                        tile_n * BN // ROWS_A_RANGE, LOW, HIGH, LEAST)  # fmt: skip
        if not safe:
            return
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    lane = tl.arange(0, SLOTS)
    # Rows past the end repeat the last one; they are not stored.
    from_a = a + tl.minimum(row, M - 1).to(tl.int64)[:, None] * K + lane[None, :]
    from_w = w + tl.minimum(column, N - 1).to(tl.int64)[None, :] * K + lane[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    for _ in tl.range(0, K, SLOTS, num_stages=STAGES):
        products = tl.dot(tl.load(from_a), tl.load(from_w))
        # As an fma, so that no compiler moves the addition into the tensor core, which truncates.
        acc = tl.fma(products, one, acc)
        from_a += SLOTS
        from_w += SLOTS
    acc = _finish(acc, tensor_scale, LEVELS)
    target = out + row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), (row < M)[:, None] & (column < N)[None, :])


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
def _directed(a, b):
    """Return a + b in float64 rounded to odd: of its two neighbours the odd one."""
    down, up = tl.inline_asm_elementwise(
        "add.rm.f64 $0, $2, $3; add.rp.f64 $1, $2, $3;",
        "=d,=d,d,d",
        [a, b],
        (tl.float64, tl.float64),
        True,
        1,
    )
    odd = (down.to(tl.int64, bitcast=True) & 1) != 0
    return tl.where(odd, down, up)


@triton.jit
def _add(a, w, acc):
    return tl.dot(a, w, acc, out_dtype=tl.int32)


@triton.jit
def _wide(
    a, w, exponents_a, exponents_w, out, M, N, groups, stride,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DIRECTED: tl.constexpr,
):  # fmt: skip
    """Multiply one tile of integers in four limbs, for sums of a group up to 2^53."""
    tile_m, tile_n = _place(M, N, BM, BN, 8)
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    lane = tl.arange(0, GROUP)
    wide_m = tl.minimum(row, M - 1).to(tl.int64)
    wide_n = tl.minimum(column, N - 1).to(tl.int64)
    from_a = a + wide_m[:, None] * (groups * 4 * GROUP) + lane[None, :]
    from_w = w + wide_n[None, :] * (groups * 4 * GROUP) + lane[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    for group in range(0, groups):
        a0, a1 = tl.load(from_a), tl.load(from_a + GROUP)
        a2, a3 = tl.load(from_a + 2 * GROUP), tl.load(from_a + 3 * GROUP)
        w0, w1 = tl.load(from_w), tl.load(from_w + GROUP)
        w2, w3 = tl.load(from_w + 2 * GROUP), tl.load(from_w + 3 * GROUP)
        from_a += 4 * GROUP
        from_w += 4 * GROUP
        e = tl.load(exponents_a + wide_m * groups + group).to(tl.int32)[:, None]
        e = e + tl.load(exponents_w + wide_n * groups + group).to(tl.int32)[None, :]
        # By Horner's rule, 2^4 a step: the products of limbs 2, 1, 0 and of limbs 6, 5, 4, 3.
        low = _add(a2, w0, _add(a1, w1, tl.dot(a0, w2, out_dtype=tl.int32)))
        low = _add(a1, w0, _add(a0, w1, low * 16))
        low = _add(a0, w0, low * 16)
        high = tl.dot(a3, w3, out_dtype=tl.int32)
        high = _add(a3, w2, _add(a2, w3, high * 16))
        high = _add(a3, w1, _add(a2, w2, _add(a1, w3, high * 16)))
        high = _add(a3, w0, _add(a2, w1, _add(a1, w2, _add(a0, w3, high * 16))))
        bad = e >= 8192
        addend = high.to(tl.float64) * 4096.0 + low.to(tl.float64)
        addend = addend * _power(tl.where(bad, 0, e))
        if DIRECTED:
            total = _directed(acc.to(tl.float64), addend)
        else:
            total = _to_odd(acc.to(tl.float64), addend)
            total = tl.where(tl.abs(acc) == float("inf"), acc.to(tl.float64), total)
        acc = tl.where(addend == 0.0, acc, total.to(tl.float32))
        acc = tl.where(bad, float("nan"), acc)
    acc = _finish(acc, out, False)
    target = out + row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(target, acc, (row < M)[:, None] & (column < N)[None, :])


@triton.jit
def _careful(
    a, w, exponents_a, exponents_w, out, ranges_a, ranges_w, tensor_scale, M, N, groups, stride,
    LOW: tl.constexpr, HIGH: tl.constexpr, LEAST: tl.constexpr, LEVELS: tl.constexpr,
    EXACT: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, SLOTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ROWS_A_RANGE: tl.constexpr,
):  # fmt: skip
    """Multiply one tile of integers, for any exponents.

    EXACT adds, for one window of WIDTH exponents after the other from the lowest, what falls into
    it: float64 holds that sum exactly. What reaches beyond the window moves on to the next.
    """
    tile_m, tile_n = _place(M, N, BM, BN, 8)
    block_a, block_w = tile_m * BM // ROWS_A_RANGE, tile_n * BN // ROWS_A_RANGE
    if not EXACT:
        if _is_safe(ranges_a, ranges_w, block_a, block_w, LOW, HIGH, LEAST):
            return
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    lane = tl.arange(0, SLOTS)
    wide_m = tl.minimum(row, M - 1).to(tl.int64)
    wide_n = tl.minimum(column, N - 1).to(tl.int64)
    K = groups * PARTS * SLOTS
    from_a = a + wide_m[:, None] * K + lane[None, :]
    from_w = w + wide_n[None, :] * K + lane[:, None]
    if not EXACT:
        acc = tl.zeros((BM, BN), tl.float32)
        for block in range(0, groups * PARTS):
            products = tl.dot(tl.load(from_a + block * SLOTS), tl.load(from_w + block * SLOTS))
            e = tl.load(exponents_a + wide_m * groups + block // PARTS).to(tl.int32)[:, None]
            e = e + tl.load(exponents_w + wide_n * groups + block // PARTS).to(tl.int32)[None, :]
            bad = (e >= 8192) | (products != products)
            addend = products.to(tl.float64) * _power(tl.where(bad, 0, e))
            total = _to_odd(acc.to(tl.float64), addend)
            # An infinite acc stays; what the error of its sum is means nothing.
            total = tl.where(tl.abs(acc) == float("inf"), acc.to(tl.float64), total)
            acc = tl.where(products == 0.0, acc, total.to(tl.float32))
            acc = tl.where(bad, float("nan"), acc)
    else:
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
            for block in range(0, groups * PARTS):
                products = tl.dot(tl.load(from_a + block * SLOTS), tl.load(from_w + block * SLOTS))
                e = tl.load(exponents_a + wide_m * groups + block // PARTS).to(tl.int32)[:, None]
                e = e + tl.load(exponents_w + wide_n * groups + block // PARTS).to(tl.int32)[None]
                wrong = wrong | ((e >= 8192) | (products != products)).to(tl.int32)
                place = e - base
                inside = (place >= 0) & (place < WIDTH)
                part = products.to(tl.float64) * _power(tl.where(inside, place, 0))
                total = total + tl.where(inside, part, 0.0)
            carry = tl.floor(total * down + 0.5)
            rest = _to_odd(total - carry * up, rest * down)
        base = low + (windows - 1) * WIDTH
        total = _to_odd(carry * up, rest) * _power(tl.where(high >= low, base, 0))
        acc = total.to(tl.float32)
        acc = tl.where(wrong != 0, float("nan"), acc)
    acc = _finish(acc, tensor_scale, LEVELS)
    target = out + row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), (row < M)[:, None] & (column < N)[None, :])


@triton.jit
def _few(
    x, codes, scales, meta, out, M, N, K, groups,
    GROUP: tl.constexpr, SCALE: tl.constexpr, META: tl.constexpr, ROWS: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Multiply a few rows x [M, K] of 16-bit floats by packed E2M1 weights, decoded on the way.

    Program (n, s) adds up the s-th part of K for BN columns, in float32.
    """
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    live = column < N
    wide = tl.minimum(column, N - 1).to(tl.int64)[:, None]
    row = tl.arange(0, ROWS)
    lane = tl.arange(0, 8)[None, None, :]
    word = tl.arange(0, BK // 8)[None, :]
    depth = tl.arange(0, BK)
    words = (codes + wide * (groups * GROUP // 2)).to(tl.pointer_type(tl.int32)) + word
    # E2M1 fields in the place of bfloat16's are the values times 2^-126.
    restore = tl.full((1,), 0x7E80, tl.int16).to(tl.bfloat16, bitcast=True)
    acc = tl.zeros((ROWS, BN), tl.float32)
    steps = tl.cdiv(groups * GROUP, BK * SPLIT)
    first = tl.program_id(1) * steps * BK
    for start in tl.range(first, first + steps * BK, BK, num_stages=STAGES):
        there = start + word * 8 < groups * GROUP
        packed = tl.load(words + start // 8, there, 0)
        code = packed[:, :, None] >> (4 * lane)
        fields = ((code & 7) << 6 | (code & 8) << 12).to(tl.int16)
        value = fields.to(tl.bfloat16, bitcast=True) * restore[:, None, None]
        group = (start + word * 8) // GROUP
        stored = tl.load(scales + wide * groups + group, there, 0).to(tl.int32)
        if SCALE == 0:
            bits = tl.where(stored == 0, 0x40, tl.where(stored == 255, 0x7FC0, stored << 7))
            factor = bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
        else:
            mag = stored & 127
            number = (
                _float(mag << 20) * 1.329227995784916e36
            )  # 2^120, E4M3's bias against float32's
            factor = tl.where(mag == 127, float("nan"), number).to(tl.bfloat16)
        if META == 2:
            field = tl.load(meta + wide * groups + group, there, 0).to(tl.int32)
            field = field >> (2 * ((start // 8 + word) % (GROUP // 8))) & 3
            factor = factor * ((4 + field).to(tl.float32) * 0.25).to(tl.bfloat16)
        value = (value * factor[:, :, None]).reshape(BN, BK)
        inside = (row < M)[:, None] & (start + depth < K)[None, :]
        left = tl.load(x + row[:, None] * K + start + depth[None, :], inside, 0.0)
        acc = tl.dot(left, tl.trans(value).to(left.dtype), acc)
    target = out + tl.program_id(1) * M * N + row[:, None].to(tl.int64) * N + column[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), (row < M)[:, None] & live[None, :])


def few_rows(x: Tensor, weight: PackedTensor) -> Tensor | None:
    """Return x [M, K] in bfloat16 times the rows of a packed weight, decoded; None if M is large.

    For weights of E2M1 elements without Elem-EM, and up to 16 rows: what is read of the weight are
    its planes.
    """
    facts = describe(weight.format.block)
    m, n = len(x), weight.shape[0]
    if facts is None or not 0 < m <= 16 or x.dtype != torch.bfloat16 or not n or not x.shape[1]:
        return None
    if (facts.bits, facts.mantissa, facts.bias, facts.subgroup) != (4, 1, 1, 8):
        return None
    if facts.metadata not in (0, 2) or weight.tensor_scale is not None or facts.group > 64:
        return None
    if facts.scale == 2 or (facts.metadata == 2 and facts.group > 32):
        return None
    codes, scales, meta = (_aligned(plane) for plane in _planes(weight))
    groups = scales.shape[1]
    bn, split = (32, 1) if n >= 8192 else (32, 4)
    parts = torch.empty(split, m, n, dtype=torch.float32 if split > 1 else x.dtype, device=x.device)
    _few[triton.cdiv(n, bn), split](
        x.contiguous(), codes, scales, meta, parts, m, n, x.shape[1], groups,
        GROUP=facts.group, SCALE=facts.scale, META=facts.metadata, ROWS=16, BN=bn, BK=256,
        SPLIT=split, STAGES=3, num_warps=4,
    )  # fmt: skip
    return parts[0] if split == 1 else parts.sum(0).to(x.dtype)


def _slots(lanes: int) -> int:
    """Return the places that the lanes of an addend take: a tensor core multiplies 16 at least."""
    return max(16, lanes)


def serves(qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int) -> bool:
    """Whether these kernels compute the product."""
    a, w = describe(qa.format.block), describe(qw.format.block)
    if a is None or w is None or lanes == 1:
        return False
    if sum_bound(a, w, lanes) >= 1 << 24:
        return accumulator == "fp32" and _limbs(a) and _limbs(w)
    return accumulator == "exact" or _type(a, w) is not None


def _limbs(side: Operand) -> bool:
    """Whether the integers of a format go into four limbs of 7 bits, each into one."""
    return (
        side.scale == 0
        and side.group in (32, 64)
        and (side.largest < 128 or (side.width <= 4 and side.largest < 1 << 18))
    )


def _type(a: Operand, w: Operand) -> torch.dtype | None:
    """Return the type that holds the values of both operands, or None."""
    found = {side.type() for side in (a, w)}
    if None in found:
        return None
    if found == {"bf16"}:
        return torch.bfloat16
    return torch.float16 if a.small_range and w.small_range else None


class _Rows:
    """Rows of a packed tensor, decoded: what the kernels multiply."""

    def __init__(self, packed: PackedTensor, facts: Operand, lanes: int, rows: slice) -> None:
        self.facts, self.lanes = facts, lanes
        planes = [_aligned(part.flatten(0, -2)[rows]) for part in _planes(packed)]
        self.codes, self.scales, self.meta = planes
        self.count, self.groups = self.scales.shape
        self.blocks = -(-self.count // _ROWS_A_RANGE)
        self.ranges = torch.full((self.blocks, 2), _EMPTY, dtype=torch.int32, device=packed.device)
        self.exponents = self.ranges

    def decode(
        self, dtype: torch.dtype, integers: bool, other: "_Rows | None", bounds: tuple[int, ...]
    ) -> Tensor:
        """Return the operand; with ``other`` only the rows that are unsafe with it."""
        facts, slots = self.facts, _slots(self.lanes)
        limbs = dtype == torch.int8
        parts = 4 if limbs else facts.group // self.lanes
        shape = (self.count, self.groups * parts * slots)
        make = torch.zeros if slots > self.lanes else torch.empty
        out = make(shape, dtype=dtype, device=self.codes.device)
        if integers:
            self.exponents = torch.empty_like(self.scales, dtype=torch.int16)
        across = max(1, 128 // facts.group)
        low, high, least = bounds
        grid = (triton.cdiv(self.count, 16), triton.cdiv(self.groups, across))
        _decode[grid](
            self.codes, self.scales, self.meta, out, self.exponents, self.ranges,
            self.ranges if other is None else other.ranges, self.count, self.groups,
            0 if other is None else other.blocks,
            GROUP=facts.group, SUB=facts.subgroup, BITS=facts.bits, MANTISSA=facts.mantissa,
            BIAS=facts.bias, NAN_CODE=facts.nan_code, SCALE=facts.scale, META=facts.metadata,
            META_BITS=facts.metadata_bits, UNIT=facts.unit, LANES=self.lanes, SLOTS=slots,
            INTEGERS=integers, LIMBS=limbs, ONLY_UNSAFE=other is not None, LOW=low, HIGH=high, LEAST=least,
            OTHERS=256, R=16, GROUPS=across, ROWS_A_RANGE=_ROWS_A_RANGE,
        )  # fmt: skip
        return out


def _aligned(plane: Tensor) -> Tensor:
    """Return a contiguous plane that can be read in words."""
    plane = plane.contiguous()
    return plane if plane.data_ptr() % 16 == 0 else plane.clone()


def _planes(packed: PackedTensor) -> tuple[Tensor, Tensor, Tensor]:
    meta = packed.scales if packed.meta is None else packed.meta
    return packed.codes, packed.scales, meta


def _chunks(count: int, width: int) -> list[slice]:
    step = max(_ROWS_A_RANGE, _WORKSPACE // max(1, width) // _ROWS_A_RANGE * _ROWS_A_RANGE)
    return [slice(start, min(count, start + step)) for start in range(0, count, step)]


def matmul(qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int) -> Tensor:
    """Return the product of the rows of [..., K] and [N, K], float32 [M, N]; see ``serves``."""
    a, w = describe(qa.format.block), describe(qw.format.block)
    assert a is not None
    assert w is not None
    rows = qa.codes.shape[:-1].numel()
    out = torch.empty(rows, qw.shape[0], dtype=torch.float32, device=qa.device)
    level = out
    if qa.tensor_scale is not None and qw.tensor_scale is not None:
        level = qa.tensor_scale * qw.tensor_scale
    width = qa.scales.shape[-1] * a.group // lanes * _slots(lanes)
    for columns in _chunks(qw.shape[0], width):
        right = _Rows(qw, w, lanes, columns)
        for some in _chunks(rows, width):
            _multiply(_Rows(qa, a, lanes, some), right, accumulator, level, out[some, columns])
    return out


def _multiply(a: _Rows, w: _Rows, accumulator: str, level: Tensor, out: Tensor) -> None:
    bounds = limits(a.facts, w.facts, a.lanes)
    low, high, least = bounds
    slots, exact = _slots(a.lanes), accumulator == "exact"
    parts = a.facts.group // a.lanes
    levels = level is not out and level.ndim == 0
    common = {
        "LOW": low,
        "HIGH": high,
        "LEAST": least,
        "LEVELS": levels,
        "SLOTS": slots,
        "ROWS_A_RANGE": _ROWS_A_RANGE,
    }
    m, n = out.shape
    other_a, other_w = None, None
    bits = sum_bound(a.facts, w.facts, a.lanes).bit_length()
    if bits > 24:
        left, right = (side.decode(torch.int8, True, None, bounds) for side in (a, w))
        grid = (triton.cdiv(m, 64) * triton.cdiv(n, 64),)
        _wide[grid](
            left, right, a.exponents, w.exponents, out, m, n, a.groups, out.stride(0),
            GROUP=a.facts.group, BM=64, BN=64, DIRECTED=not _INTERPRETED, num_warps=4,
        )  # fmt: skip
        return
    if not exact:
        dtype = _type(a.facts, w.facts)
        assert dtype is not None
        left, right = (side.decode(dtype, False, None, bounds) for side in (a, w))
        # The exponents of E4M3 scales and E2M1 elements cannot reach the ends of float32.
        safe = a.facts.small_range and w.facts.small_range
        hopper = _hopper(out.device)
        if hopper is not None and m > 64 and slots <= 64:
            hopper.multiply(left, right, out, a.ranges, w.ranges, level, {"SAFE": safe, **common})
        else:
            bm, bn, warps, stages = _tile(m, n, slots)
            grid = (triton.cdiv(m, bm) * triton.cdiv(n, bn),)
            _scaled[grid](
                left, right, out, a.ranges, w.ranges, level, m, n, left.shape[1], out.stride(0),
                1.0, SAFE=safe, **common, BM=bm, BN=bn, TALL=8, STAGES=stages, num_warps=warps,
            )  # fmt: skip
        if safe:
            return
        other_a, other_w = w, a
    left = a.decode(torch.float16, True, other_a, bounds)
    right = w.decode(torch.float16, True, other_w, bounds)
    window = 51 - bits - (a.groups * parts + 1).bit_length()
    grid = (triton.cdiv(m, 64) * triton.cdiv(n, 64),)
    _careful[grid](
        left, right, a.exponents, w.exponents, out, a.ranges, w.ranges, level, m, n, a.groups,
        out.stride(0), **common, EXACT=exact, WIDTH=window, PARTS=parts, BM=64, BN=64,
        num_warps=4,
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


def _tile(m: int, n: int, slots: int) -> tuple[int, int, int, int]:
    """Return rows, columns, warps and stages of a tile of the fast kernel."""
    if slots > 64:
        return 64, 64, 4, 2
    if m <= 16:
        return 16, 64, 4, 4
    return 128, 64, 4, 4
