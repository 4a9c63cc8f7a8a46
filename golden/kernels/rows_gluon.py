# ruff: noqa: N803 - compile-time parameters are in capitals
"""A few rows of bfloat16 times packed E2M1 weights, on tensor cores, from the planes.

What such a product costs is reading the weights, so nothing is decoded to memory and nothing passes
through shared memory: a thread decodes the words that it has loaded to the registers in which its
tensor core wants them. The order of K inside of 128 values does not matter to a sum, so it is
chosen such that this needs no exchange between threads. Written in Gluon, Triton's lower level,
where layouts are said in so many words.
"""

from functools import cache
from math import log2
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.products_facts import Operand, describe
from m2xfp.golden.kernels.products_fused import MOST_ROWS

__all__ = ["few_rows"]


@gluon.jit
def _mul2(a, b):
    """Return a b of both bfloat16 halves of int32 words, rounded once; subnormals are kept."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 z; mov.b32 z, 0x80008000; fma.rn.bf16x2 $0, $1, $2, z; }",
        "=r,r,r",
        [a, b],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _pair(word, factor, UP: gl.constexpr, SIGN: gl.constexpr):
    """Return two codes of a word that are 16 bits apart as bfloat16, times ``factor``.

    UP and SIGN are the shifts to the left that bring the three bits of the magnitude in the place
    of bfloat16's least exponents, which makes it the value times 2^-126, and the sign in its place.
    """
    magnitude = word << UP if UP >= 0 else word >> -UP
    value = (magnitude & 0x01C001C0) | ((word << SIGN) & -0x7FFF8000)
    return _mul2(_mul2(value, value * 0 + 0x7E807E80), factor)


@gluon.jit
def _apart(pair):
    """Return the bfloat16 halves of words in a last dimension, the low one first."""
    low, high = pair.to(gl.int16), (pair >> 16).to(gl.int16)
    return gl.join(low, high).to(gl.bfloat16, bitcast=True)


@gluon.jit
def _factors(stored, field, SCALE: gl.constexpr):
    """Return scale times (4 + field) / 4 as bfloat16, exactly, in both halves of a word."""
    if SCALE == 0:
        bits = gl.where(stored == 0, 0x40 + (field << 4), (stored << 7) + (field << 5))
        bits = gl.where(stored == 255, 0x7FC0, bits)
    else:
        code = stored & 127
        value = (code << 20).to(gl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
        value = value * (field.to(gl.float32) * 0.25 + 1.0)
        bits = value.to(gl.int32, bitcast=True) >> 16
        bits = gl.where(code == 127, 0x7FC0, bits)
    return bits | (bits << 16)


@gluon.jit
def _fetch(
    x, codes, scales, meta, column, group, lane, row, k, M, K, groups, last,
    EACH: gl.constexpr, META: gl.constexpr,
):  # fmt: skip
    """Load scales, fields, words and inputs of a turn; nothing past the last group."""
    at = column * groups + group
    live = group < last
    plane = codes.to(gl.pointer_type(gl.int32))
    stored = gl.load(scales + at, live, 0).to(gl.int32)
    fields = stored
    if META == 2:
        fields = gl.load(meta + at, live, 0).to(gl.int32)
    word = gl.load(plane + gl.expand_dims(at, 3) * EACH + lane, gl.expand_dims(live, 3), 0)
    inputs = gl.load(x + row.to(gl.int64) * K + k, (row < M) & (k < K), 0.0)
    return stored, fields, word, inputs


@gluon.jit
def _multiply(
    x, codes, scales, meta, out, M, N, K, groups, share,
    GROUP: gl.constexpr, SCALE: gl.constexpr, META: gl.constexpr, ROWS: gl.constexpr,
    WORDS: gl.constexpr, INPUTS: gl.constexpr, SUMS: gl.constexpr, SLICES: gl.constexpr,
    BN: gl.constexpr, BW: gl.constexpr,
):  # fmt: skip
    """Multiply M <= ROWS rows of x [M, K] by BN rows of weights.

    Each warp has a slice of K, ``share`` words of a row (a multiple of BW), and takes BW of them a
    turn, which it has loaded in the turn before. WORDS, INPUTS and SUMS are the layouts of words
    [slices, BN, groups, words of a group], of x [slices, K, rows], and of the sums [slices, BN,
    rows]: such that tensor cores take what a thread has, without an exchange between threads.
    """
    each: gl.constexpr = GROUP // 8
    turn: gl.constexpr = BW // each
    for_group: gl.constexpr = gl.SliceLayout(3, WORDS)
    by_slice: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, for_group))
    by_row: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, for_group))
    by_group: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, for_group))
    by_lane: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, WORDS)))
    left: gl.constexpr = gl.DotOperandLayout(0, SUMS, 8)
    right: gl.constexpr = gl.DotOperandLayout(1, SUMS, 8)
    column = gl.program_id(0) * BN + gl.arange(0, BN, by_row)
    column = gl.minimum(column, N - 1).to(gl.int64)[None, :, None]
    first = gl.arange(0, SLICES, by_slice)[:, None, None] * (share // each)
    group = first + gl.arange(0, turn, by_group)[None, None, :]
    lane = gl.arange(0, each, by_lane)[None, None, None, :]
    row = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(1, INPUTS)))[None, None, :]
    k = gl.arange(0, BW * 8, gl.SliceLayout(0, gl.SliceLayout(2, INPUTS)))[None, :, None]
    k += gl.arange(0, SLICES, gl.SliceLayout(1, gl.SliceLayout(2, INPUTS)))[:, None, None] * (
        share * 8
    )
    last = gl.minimum(first + share // each, groups)
    acc = gl.zeros([SLICES, BN, ROWS], gl.float32, SUMS)
    stored, fields, word, inputs = _fetch(
        x, codes, scales, meta, column, group, lane, row, k, M, K, groups, last, each, META
    )
    for _ in range(0, share, BW):
        group += turn
        k += BW * 8
        next_stored, next_fields, next_word, next_inputs = _fetch(
            x, codes, scales, meta, column, group, lane, row, k, M, K, groups, last, each, META
        )
        field = gl.expand_dims(fields, 3) >> (2 * lane) & 3
        if META == 0:
            field = field * 0
        factor = _factors(gl.expand_dims(stored, 3), field, SCALE)
        even = gl.join(_apart(_pair(word, factor, 6, 12)), _apart(_pair(word, factor, -2, 4)))
        odd = gl.join(_apart(_pair(word, factor, 2, 8)), _apart(_pair(word, factor, -6, 0)))
        # Of a code's number in its word: the high bit, the middle one, the low one.
        weights = gl.reshape(gl.join(even, odd), [SLICES, BN, BW // 16, 4, 4, 2, 2, 2])
        weights = gl.permute(weights, (0, 1, 2, 4, 3, 6, 7, 5))
        weights = gl.reshape(weights, [SLICES, BN, BW * 8])
        weights = gl.convert_layout(weights, left, assert_trivial=True)
        inputs = gl.reshape(inputs, [SLICES, BW // 16, 4, 4, 2, 4, ROWS])
        inputs = gl.permute(inputs, (0, 1, 3, 2, 5, 4, 6))
        inputs = gl.reshape(inputs, [SLICES, BW * 8, ROWS])
        inputs = gl.convert_layout(inputs, right, assert_trivial=True)
        acc = mma_v2(weights, inputs, acc)
        stored, fields, word, inputs = next_stored, next_fields, next_word, next_inputs
    total = gl.sum(acc, 0)
    flat: gl.constexpr = gl.SliceLayout(0, SUMS)
    n = gl.program_id(0) * BN + gl.arange(0, BN, gl.SliceLayout(1, flat))[:, None]
    m = gl.arange(0, ROWS, gl.SliceLayout(0, flat))[None, :]
    target = out + m.to(gl.int64) * N + n
    gl.store(target, total.to(out.dtype.element_ty), (n < N) & (m < M))


def few_rows(x: Tensor, weight: PackedTensor) -> Tensor | None:
    """Return x [M, K] in bfloat16 times the rows of a packed weight; None where this is no gain.

    That is with more than 16 rows, and weights that are not E2M1 elements without Elem-EM. What is
    read of the weight are its planes. Sums are float32; their order is not that of ``F.linear``.
    """
    facts = describe(weight.format.block)
    m, n = len(x), weight.shape[0]
    if facts is None or not _serves(facts) or weight.tensor_scale is not None:
        return None
    if not 0 < m <= MOST_ROWS or x.dtype != torch.bfloat16 or not n or not x.shape[1]:
        return None
    codes, scales = (_aligned(plane) for plane in (weight.codes, weight.scales))
    meta = scales if weight.meta is None else weight.meta.contiguous()
    groups = scales.shape[1]
    tile, slices, words = _shape(m, n)
    share = triton.cdiv(groups * facts.group, 8 * slices * words) * words
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    _multiply[(triton.cdiv(n, tile),)](
        x.contiguous(), codes, scales, meta, out, m, n, x.shape[1], groups, share,
        **_layouts(facts.group, 8 if m <= 8 else 16, tile, slices, words),
        GROUP=facts.group, SCALE=facts.scale, META=facts.metadata, num_warps=slices,
    )  # fmt: skip
    return out


def _shape(m: int, n: int) -> tuple[int, int, int]:
    """Return rows of weights, slices of K and words a turn of a program: the fastest on an H100.

    Few rows of weights leave few programs, which then have more slices; many rows of x are read
    again by each program, which then has more rows of weights.
    """
    if n >= 8192:
        return (32, 4, 16) if m <= 8 else (64, 4, 16)
    return (32, 8, 16) if n >= 2048 else (16, 8, 32)


def _serves(facts: Operand) -> bool:
    e2m1 = (facts.bits, facts.mantissa, facts.bias, facts.subgroup) == (4, 1, 1, 8)
    return e2m1 and facts.metadata in (0, 2) and facts.scale < 2 and facts.group in (16, 32)


def _bits(count: int) -> range:
    return range(int(log2(count)))


@cache
def _layouts(group: int, rows: int, tile: int, slices: int, words: int) -> dict[str, Any]:
    """Return the compile-time parameters of ``_multiply`` that say which thread has what.

    Four threads share a row of weights: each has 4 words after each other of every 16, and in a
    tensor core the values 8 t to 8 t + 7 of 32, for which its words take turns.
    """
    each = group // 8
    place = [[0, 0, 0, 1 << bit] for bit in _bits(each)]
    place += [[0, 0, 1 << bit, 0] for bit in _bits(words // each)]
    more = [[0, 16 << bit, 0, 0] for bit in _bits(tile // 16)]
    word = gl.DistributedLinearLayout(
        reg_bases=[*place[:2], [0, 8, 0, 0], *place[4:], *more],
        lane_bases=[*place[2:4], [0, 1, 0, 0], [0, 2, 0, 0], [0, 4, 0, 0]],
        warp_bases=[[1 << bit, 0, 0, 0] for bit in _bits(slices)],
        block_bases=[],
        shape=[slices, tile, words // each, each],
    )
    along = [[0, 1 << bit, 0] for bit in _bits(8 * words)]
    inputs = gl.DistributedLinearLayout(
        reg_bases=[*along[:5], *([[0, 0, 8]] if rows == 16 else []), *along[7:]],
        lane_bases=[*along[5:7], [0, 0, 1], [0, 0, 2], [0, 0, 4]],
        warp_bases=[[1 << bit, 0, 0] for bit in _bits(slices)],
        block_bases=[],
        shape=[slices, 8 * words, rows],
    )
    return {
        "ROWS": rows,
        "WORDS": word,
        "INPUTS": inputs,
        "SUMS": gl.NVMMADistributedLayout([2, 0], [slices, 1, 1], [1, 16, 8]),
        "SLICES": slices,
        "BN": tile,
        "BW": words,
    }


def _aligned(plane: Tensor) -> Tensor:
    """Return a contiguous plane that can be read in words."""
    plane = plane.contiguous()
    return plane if plane.data_ptr() % 16 == 0 else plane.clone()
