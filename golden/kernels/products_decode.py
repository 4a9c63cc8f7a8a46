# ruff: noqa: N803, N806 - compile-time parameters are in capitals
"""What the kernels of matrix products share: decoding packed planes, tiles, and rounding to odd.

``decode`` turns packed planes into operands of tensor cores and records, for each block of rows,
between which exponents its values lie.
"""

import triton
import triton.language as tl

from m2xfp.golden.kernels.products_facts import NAN_EXPONENT

__all__ = [
    "ROWS_A_RANGE",
    "as_bits",
    "as_float",
    "decode",
    "gather_ranges",
    "is_safe",
    "place_of",
    "power_of_two",
    "store",
    "to_odd",
    "values",
]

ROWS_A_RANGE = 128
"""Rows whose exponents are recorded together."""

_NAN_EXPONENT = tl.constexpr(NAN_EXPONENT)


@triton.jit
def as_bits(x):
    """Return the word of a float32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def as_float(b):
    """Return the float32 of a word."""
    return b.to(tl.float32, bitcast=True)


@triton.jit
def power_of_two(e):
    """Return 2^e as float64, exactly."""
    return ((e.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _minifloat(code, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """Return the value of magnitude codes: the fields in place of float32's, then its bias."""
    return as_float(code << (23 - MANTISSA)) * as_float((254 - BIAS) << 23 | code * 0)


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
def values(codes, scales, meta, wide, sub, lane, live, groups, F: tl.constexpr):
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
        value = ((code ^ place) - place).to(tl.float32) * as_float((127 - BIAS) << 23 | code * 0)
    else:
        magnitude = code & (place - 1)
        if META != 0:
            size: tl.constexpr = (subs * META_BITS + 7) // 8
            bit = sub % subs * META_BITS
            byte = tl.load(meta + wide * (groups * size) + group * size + bit // 8, live, 0)
            field = byte.to(tl.int32) >> (bit % 8) & ((1 << META_BITS) - 1)
        if META == 1:
            key = magnitude * SUB + (lane if F[9] else SUB - 1 - lane)
            top = tl.max(key, 2)[:, :, None]
            fine = 4 * magnitude
            fine = tl.where(key == top, tl.maximum(fine + field - 1, 0), fine)
            value = _minifloat(fine, MANTISSA + 2, BIAS)
        else:
            value = _minifloat(magnitude, MANTISSA, BIAS)
        if NAN_CODE >= 0:
            value = tl.where(magnitude >= NAN_CODE, float("nan"), value)
        if META == 2:
            value = value * (4 + field).to(tl.float32) * 0.25
        if META == 3:
            value = value * (2 - field).to(tl.float32) * 0.5
        value = as_float(as_bits(value) | ((code & place) << (32 - BITS)))
    stored = tl.load(scales + wide * groups + group, live, 0).to(tl.int32)
    if SCALE == 0:
        bad = stored == 255
        exponent = stored - 127
        significand = tl.where(bad, float("nan"), 1.0)
    else:
        mag = stored & 127
        bits: tl.constexpr = 2 if SCALE == 3 else 3
        bad = (stored == 255) if SCALE == 2 else (mag > (123 if SCALE == 3 else 126))
        exponent = tl.maximum(mag >> bits, 1) - (17 if SCALE == 3 else 10)
        number = (mag & ((1 << bits) - 1)) + tl.where(mag >> bits > 0, 1 << bits, 0)
        significand = tl.where(bad, float("nan"), number.to(tl.float32))
    return value, significand, exponent, bad


@triton.jit
def gather_ranges(seen, ranges, each, per_block, COUNT: tl.constexpr):
    """Join what programs noted of the exponents of a block of rows, ``per_block`` at most of them.

    ``each`` programs have a matrix. Atomic operations would do without, but programs wait for them.
    """
    start = tl.program_id(0) * per_block
    stop = tl.minimum(start + per_block, each)
    low = tl.full((COUNT,), 1 << 20, tl.int32)
    high = low
    seen += 2 * tl.program_id(1).to(tl.int64) * each
    for at in range(start, stop, COUNT):
        index = at + tl.arange(0, COUNT)
        low = tl.minimum(low, tl.load(seen + 2 * index, index < stop, 1 << 20))
        high = tl.minimum(high, tl.load(seen + 2 * index + 1, index < stop, 1 << 20))
    target = ranges + 2 * (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0))
    tl.store(target, tl.min(low, 0))
    tl.store(target + 1, tl.min(high, 0))


@triton.jit
def decode(
    codes, scales, meta, out, exponents, seen_by, flags, rows, groups,
    F: tl.constexpr, UNIT: tl.constexpr, LANES: tl.constexpr, SLOTS: tl.constexpr,
    INTEGERS: tl.constexpr, LIMBS: tl.constexpr, RUN: tl.constexpr, TRACK: tl.constexpr,
    R: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Decode R rows of GROUPS groups to ``out``, lanes padded to SLOTS; one matrix a program_id(2).

    Without INTEGERS, element times scale; with it, the integers of both, and their exponents.
    LIMBS cuts the integers in so many digits from -32 to 31, the last one larger, each 2^6 times
    the one before: of RUN addends the first digits, then the second, and so on. Exponents, times
    2^20, are [groups, rows] then, and rows with a NaN are marked in ``flags``; without LIMBS
    exponents are [rows, groups], and a mark is in them. TRACK notes the exponents that a
    program saw.
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
    value, significand, exponent, bad = values(
        codes, scales, meta, wide, sub, lane, live, groups, F
    )
    seen = whole & (value != 0.0) & (value == value) & (bad == 0)
    if INTEGERS:
        raw = value * significand * as_float((127 - UNIT) << 23 | lane * 0)
        at = exponent + UNIT + lane * 0
        seen = seen & (raw != 0.0)
        wrong = bad
        if LIMBS and F[5] >= 0:
            lost = tl.max((value != value).to(tl.int32).reshape(R, GROUPS, GROUP), 2)
            lost = tl.broadcast_to(lost[:, :, None], (R, GROUPS, subs)).reshape(R, GROUPS * subs)
            wrong = wrong | (lost[:, :, None] != 0)
        spots = live & (sub % subs == 0)
        if LIMBS:
            places = exponents + group * (tl.num_programs(2).to(tl.int64) * rows) + wide
            tl.store(places, tl.where(wrong, 0, exponent + UNIT) << 20, spots)
            tl.store(flags + wide + group * 0, (wide * 0 + 1).to(tl.int8), spots & wrong)
        else:
            marked = tl.where(wrong, _NAN_EXPONENT, exponent + UNIT)
            tl.store(exponents + wide * groups + group, marked.to(tl.int16), spots)
    else:
        # 2^-127 is subnormal.
        factor = as_float(tl.where(exponent < -126, 0x00400000, (exponent + 127) << 23))
        raw = value * (significand * factor)
        at = exponent + (as_bits(value) >> 23 & 255) - 127
    if TRACK:
        low = tl.min(tl.min(tl.min(tl.where(seen, at, 1048576), 2), 1), 0)
        high = tl.min(tl.min(tl.min(tl.where(seen, -at, 1048576), 2), 1), 0)
        program = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        place = seen_by + 2 * (program * tl.num_programs(1) + tl.program_id(1))
        tl.store(place, low)
        tl.store(place + 1, high)
    k = sub * SUB + lane
    if LIMBS:
        number = tl.where(raw == raw, raw, 0.0).to(tl.int64 if LIMBS > 5 else tl.int32)
        runs = tl.cdiv(groups * (GROUP // LANES), RUN)
        addend = k // LANES
        target = out + wide * (runs * (RUN * LIMBS * SLOTS)) + k % LANES
        target += addend // RUN * (RUN * LIMBS * SLOTS) + addend % RUN * SLOTS
        for place in tl.static_range(LIMBS - 1):
            digit = ((number + 32) & 63) - 32
            tl.store(target + place * RUN * SLOTS, digit.to(tl.int8), whole)
            number = (number - digit) >> 6
        tl.store(target + (LIMBS - 1) * RUN * SLOTS, number.to(tl.int8), whole)
        return
    if LANES != SLOTS:
        k = k // LANES * SLOTS + k % LANES
    target = out + wide * (groups * (GROUP // LANES) * SLOTS) + k
    tl.store(target, raw.to(out.dtype.element_ty), whole)


@triton.jit
def place_of(M, N, BM: tl.constexpr, BN: tl.constexpr, TALL: tl.constexpr):
    """Return the tile of this program; programs go down TALL tiles, then right."""
    program = tl.program_id(0)
    down, across = tl.cdiv(M, BM), tl.cdiv(N, BN)
    band = program // (TALL * across)
    height = tl.minimum(down - band * TALL, TALL)
    inside = program % (TALL * across)
    return band * TALL + inside % height, inside // height


@triton.jit
def is_safe(ranges_a, ranges_w, tile_m, tile_n, M, N, BM: tl.constexpr, BN: tl.constexpr,
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
    return tl.where(acc == acc, acc, as_float(as_bits(acc) * 0 + 0x7FC00000))


@triton.jit
def store(acc, out, tensor_scale, tile_m, tile_n, M, N, stride, span, LEVELS: tl.constexpr,
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
def to_odd(a, b):
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
