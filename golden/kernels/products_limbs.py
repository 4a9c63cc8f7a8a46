# ruff: noqa: N803 - compile-time parameters are in capitals
"""Products on CUDA whose sums of a group leave 24 bits: integers in limbs, on int8 tensor cores.

An integer is cut into digits of six bits (``decode`` of products_decode); products of digits whose
places add up to the same weight are summed in int32, and three neighbouring weights make a word: a
sum is the sum of its words, each 2^18 times the one before.

- ``multiply_limbs`` rounds after each addend to float32, in float64 rounded to odd;
  ``products_gluon`` does the same faster on Hopper, where no sum can leave float32's range.
- ``add_up_limbs`` adds up all addends exactly, in words of 64 bits.
"""

import triton
import triton.language as tl

from m2xfp.golden.kernels.assembly import ADD_ROUNDED_TO_ODD
from m2xfp.golden.kernels.products_decode import (
    is_safe,
    place_of,
    power_of_two,
    store,
    to_odd,
)
from m2xfp.golden.kernels.products_facts import WORD_BITS

__all__ = ["add_up_limbs", "multiply_limbs"]

_WORD_BITS = tl.constexpr(WORD_BITS)


@triton.jit
def _word(
    from_a, from_w, LIMBS_A: tl.constexpr, LIMBS_W: tl.constexpr, PLANE: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Return a word of the products' sum, int32: its weights FIRST to LAST, by Horner's rule."""
    word = tl.zeros((BM, BN), tl.int32)
    for down in tl.static_range(LAST - FIRST + 1):
        total = word * 0
        for i in tl.static_range(LIMBS_A):
            if (LAST - down - i >= 0) and (LAST - down - i < LIMBS_W):
                left = tl.load(from_a + i * PLANE)
                right = tl.load(from_w + (LAST - down - i) * PLANE)
                total = tl.dot(left, right, total, out_dtype=tl.int32)
        word = word * 64 + total
    return word


@triton.jit
def multiply_limbs(
    a, w, exponents_a, exponents_w, out, ranges_a, ranges_w, flags_a, flags_w, tensor_scale,
    M, N, groups, stride, span,
    LIMITS: tl.constexpr, LEVELS: tl.constexpr, LIMBS_A: tl.constexpr, LIMBS_W: tl.constexpr,
    PARTS: tl.constexpr, SLOTS: tl.constexpr, CHUNK: tl.constexpr, RUN: tl.constexpr,
    SKIP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ROWS_A_RANGE: tl.constexpr,
):  # fmt: skip
    """Multiply one tile, for sums up to 2^53 of PARTS addends a group, of SLOTS lanes each.

    CHUNK lanes at a time fit 32 bits. With SKIP, tiles within LIMITS are left to another kernel.
    """
    tile_m, tile_n = place_of(M, N, BM, BN, 8)
    if SKIP and is_safe(ranges_a, ranges_w, tile_m, tile_n, M, N, BM, BN, LIMITS, ROWS_A_RANGE):
        return
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    lane = tl.arange(0, CHUNK)
    batch = tl.program_id(1).to(tl.int64)
    wide_m, wide_n = batch * M + tl.minimum(row, M - 1), batch * N + tl.minimum(column, N - 1)
    runs = tl.cdiv(groups * PARTS, RUN).to(tl.int64)
    from_a = a + wide_m[:, None] * (runs * (RUN * LIMBS_A * SLOTS)) + lane[None, :]
    from_w = w + wide_n[None, :] * (runs * (RUN * LIMBS_W * SLOTS)) + lane[:, None]
    exponents_a += wide_m
    exponents_w += wide_n
    across_a, across_w = tl.num_programs(1).to(tl.int64) * M, tl.num_programs(1).to(tl.int64) * N
    acc = tl.zeros((BM, BN), tl.float64)  # of float32 numbers
    for group in range(0, groups):
        up_m = tl.load(exponents_a + group * across_a)
        up_n = tl.load(exponents_w + group * across_w) + (1023 << 20)
        for part_of in tl.static_range(PARTS):
            addend = group * PARTS + part_of
            there_a = from_a + (addend // RUN * (RUN * LIMBS_A) + addend % RUN) * SLOTS
            there_w = from_w + (addend // RUN * (RUN * LIMBS_W) + addend % RUN) * SLOTS
            low, high = tl.zeros((BM, BN), tl.int32), tl.zeros((BM, BN), tl.int32)
            for chunk in tl.static_range(SLOTS // CHUNK):
                at_a, at_w = there_a + chunk * CHUNK, there_w + chunk * CHUNK
                part = _word(at_a, at_w, LIMBS_A, LIMBS_W, RUN * SLOTS, 0, 2, BM, BN)
                high += _word(
                    at_a, at_w, LIMBS_A, LIMBS_W, RUN * SLOTS, 3, LIMBS_A + LIMBS_W - 2, BM, BN
                )
                if SLOTS > CHUNK:
                    high += part >> _WORD_BITS
                    part = part & ((1 << _WORD_BITS) - 1)
                low += part
            acc = tl.inline_asm_elementwise(
                ADD_ROUNDED_TO_ODD, "=d,d,r,r,r",
                [acc, high, low, up_m[:, None] + up_n[None, :]],
                dtype=tl.float64, is_pure=True, pack=1,
            )  # fmt: skip
    bad = (tl.load(flags_a + wide_m)[:, None] | tl.load(flags_w + wide_n)[None, :]) != 0
    total = tl.where(bad, float("nan"), acc.to(tl.float32))
    store(total, out, tensor_scale, tile_m, tile_n, M, N, stride, span, LEVELS, BM, BN)


@triton.jit
def _carry(digit):
    """Return a word's excess over balanced digits of WORD_BITS."""
    return (digit + (1 << (_WORD_BITS - 1))) >> _WORD_BITS


@triton.jit
def _joined(high, low):
    """Return 2^18 high + low in float64, rounded to odd; ``low`` is half a unit of it at most."""
    return to_odd(high * 262144.0, low)


@triton.jit
def add_up_limbs(
    a, w, exponents_a, exponents_w, out, ranges_a, ranges_w, flags_a, flags_w, tensor_scale,
    M, N, groups, stride, span,
    LEVELS: tl.constexpr, LIMBS_A: tl.constexpr, LIMBS_W: tl.constexpr, WORDS: tl.constexpr,
    SLOTS: tl.constexpr, CHUNK: tl.constexpr, RUN: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, ROWS_A_RANGE: tl.constexpr,
):  # fmt: skip
    """Add up one tile exactly, whatever the exponents of its groups; the ``exact`` accumulator.

    One window of 18 exponents, a word's, after the other, from the lowest. Sums of words fit 64
    bits; what a window leaves moves down by a word, and the rest of the lowest is rounded to odd.
    """
    tile_m, tile_n = place_of(M, N, BM, BN, 8)
    batch = tl.program_id(1)
    block_a = batch * tl.cdiv(M, ROWS_A_RANGE) + tile_m * BM // ROWS_A_RANGE
    block_w = batch * tl.cdiv(N, ROWS_A_RANGE) + tile_n * BN // ROWS_A_RANGE
    row, column = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    lane = tl.arange(0, CHUNK)
    batch = batch.to(tl.int64)
    wide_m, wide_n = batch * M + tl.minimum(row, M - 1), batch * N + tl.minimum(column, N - 1)
    runs = tl.cdiv(groups, RUN).to(tl.int64)
    from_a = a + wide_m[:, None] * (runs * (RUN * LIMBS_A * SLOTS)) + lane[None, :]
    from_w = w + wide_n[None, :] * (runs * (RUN * LIMBS_W * SLOTS)) + lane[:, None]
    exponents_a += wide_m
    exponents_w += wide_n
    across_a, across_w = tl.num_programs(1).to(tl.int64) * M, tl.num_programs(1).to(tl.int64) * N
    low = tl.load(ranges_a + 2 * block_a) + tl.load(ranges_w + 2 * block_w)
    high = -tl.load(ranges_a + 2 * block_a + 1) - tl.load(ranges_w + 2 * block_w + 1)
    windows = tl.where(high >= low, (high - low) // _WORD_BITS + 1, 1)
    top: tl.constexpr = LIMBS_A + LIMBS_W - 2
    none = tl.zeros((BM, BN), tl.int64)
    zero, one, two, three = none, none, none, none
    rest = tl.zeros((BM, BN), tl.float64)
    for window in range(0, windows):
        base = low + window * _WORD_BITS
        for group in range(0, groups):
            e_m = tl.load(exponents_a + group * across_a) >> 20
            e_n = tl.load(exponents_w + group * across_w) >> 20
            there_a = from_a + (group // RUN * (RUN * LIMBS_A) + group % RUN) * SLOTS
            there_w = from_w + (group // RUN * (RUN * LIMBS_W) + group % RUN) * SLOTS
            place = e_m[:, None] + e_n[None, :] - base
            inside = (place >= 0) & (place < _WORD_BITS)
            factor = tl.where(inside, 1 << tl.where(inside, place, 0), 0).to(tl.int64)
            for chunk in tl.static_range(SLOTS // CHUNK):
                at_a, at_w = there_a + chunk * CHUNK, there_w + chunk * CHUNK
                part = _word(
                    at_a, at_w, LIMBS_A, LIMBS_W, RUN * SLOTS, 0, 2 if top > 2 else top, BM, BN
                )
                zero += part * factor
                if WORDS > 1:
                    part = _word(
                        at_a, at_w, LIMBS_A, LIMBS_W, RUN * SLOTS, 3, 5 if top > 5 else top, BM, BN
                    )
                    one += part * factor
                if WORDS > 2:
                    part = _word(
                        at_a, at_w, LIMBS_A, LIMBS_W, RUN * SLOTS, 6, 8 if top > 8 else top, BM, BN
                    )
                    two += part * factor
                if WORDS > 3:
                    part = _word(at_a, at_w, LIMBS_A, LIMBS_W, RUN * SLOTS, 9, top, BM, BN)
                    three += part * factor
        # Balanced digits, from the lowest word up; the highest keeps what is left.
        up = _carry(zero)
        rest = to_odd((zero - (up << _WORD_BITS)).to(tl.float64), rest) * 3.814697265625e-06
        one += up
        up = _carry(one)
        zero = one - (up << _WORD_BITS)
        two += up
        up = _carry(two)
        one = two - (up << _WORD_BITS)
        two = three + up
        three = none
    # ``two`` may have more than 53 bits.
    up = _carry(two)
    total = up.to(tl.float64)
    total = _joined(total, (two - (up << _WORD_BITS)).to(tl.float64))
    total = _joined(total, one.to(tl.float64))
    total = _joined(total, zero.to(tl.float64))
    total = to_odd(total, rest)
    base = low + windows * _WORD_BITS
    total = total * power_of_two(tl.where(high >= low, base, 0))
    bad = (tl.load(flags_a + wide_m)[:, None] | tl.load(flags_w + wide_n)[None, :]) != 0
    acc = tl.where(bad, float("nan"), total.to(tl.float32))
    store(acc, out, tensor_scale, tile_m, tile_n, M, N, stride, span, LEVELS, BM, BN)
