# ruff: noqa: N803 - compile-time parameters are in capitals
"""The fast product for Hopper GPUs: the same arithmetic as ``_scaled``, its steps overlapped.

Tiles come through the tensor memory accelerator; while the tensor cores multiply one group, the
other units add the group before it. Written in Gluon, Triton's lower level, which is what lets two
products be in flight; without it ``_scaled`` computes the same.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from m2xfp.golden.kernels.assembly import ADD_ROUNDED_TO_ODD
from m2xfp.golden.kernels.products_facts import NAN_EXPONENT

__all__ = ["multiply", "multiply_limbs"]

_ROWS, _COLUMNS = 128, 128
_STAGES = {True: (64, 4), False: (128, 3)}
"""Values along K that a stage holds, and stages: for groups, and for addends of fewer lanes."""
_WARPS = 8
_LIMB_TILE = (64, 32, 3, 4)  # rows, columns, stages and warps of a tile of ``_limbs``
_LIMB_GROUP = 32
_NAN_EXPONENT = gl.constexpr(NAN_EXPONENT)


@gluon.jit
def _fetch(a, w, row, column, step, steps, a_tiles, w_tiles, ready, STAGES: gl.constexpr,
           BK: gl.constexpr):  # fmt: skip
    """Start to fetch both tiles of a step into its stage; nothing past the last step."""
    stage, there = step % STAGES, step < steps
    mbarrier.expect(ready.index(stage), a.block_type.nbytes + w.block_type.nbytes, pred=there)
    tma.async_copy_global_to_shared(
        a, [row, step * BK], ready.index(stage), a_tiles.index(stage), pred=there
    )
    tma.async_copy_global_to_shared(
        w, [column, step * BK], ready.index(stage), w_tiles.index(stage), pred=there
    )


@gluon.jit
def _scaled(
    a, w, out, ranges_a, ranges_w, tensor_scale, M, N, K, stride, span,
    SAFE: gl.constexpr, LIMITS: gl.constexpr, LEVELS: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr, LANES: gl.constexpr,
    TALL: gl.constexpr, ROWS_A_RANGE: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Multiply one safe tile: an addend's LANES on tensor cores, then one addition.

    A tensor core multiplies 16 lanes at least: if an addend has fewer, the others are zeros in the
    left operand, which comes from registers then. No lane beside it is NaN where its group is not.
    """
    program = gl.program_id(0)
    down, across = gl.cdiv(M, BM), gl.cdiv(N, BN)
    band = program // (TALL * across)
    height = gl.minimum(down - band * TALL, TALL)
    inside = program % (TALL * across)
    tile_m, tile_n = band * TALL + inside % height, inside // height
    row, column, batch = tile_m * BM, tile_n * BN, gl.program_id(1)
    above_a, above_w = batch * M + row, batch * N + column
    safe = True
    if not SAFE:
        at_a = 2 * (batch * gl.cdiv(M, ROWS_A_RANGE) + row // ROWS_A_RANGE)
        at_w = 2 * (batch * gl.cdiv(N, ROWS_A_RANGE) + column // ROWS_A_RANGE)
        low_a, low_w = gl.load(ranges_a + at_a), gl.load(ranges_w + at_w)
        high_a, high_w = gl.load(ranges_a + at_a + 1), gl.load(ranges_w + at_w + 1)
        safe = (low_a + low_w >= LIMITS[0]) & (gl.minimum(low_a, low_w) >= LIMITS[2])
        safe = safe & (high_a + high_w >= -LIMITS[1]) & (gl.minimum(high_a, high_w) >= -127)
    if safe:
        a_tiles = gl.allocate_shared_memory(a.dtype, [STAGES, BM, BK], a.layout)
        w_tiles = gl.allocate_shared_memory(w.dtype, [STAGES, BN, BK], w.layout)
        ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        for early in gl.static_range(STAGES):
            mbarrier.init(ready.index(early), count=1)
        fence_async_shared()
        steps = gl.cdiv(K, BK)
        for early in gl.static_range(STAGES):
            _fetch(a, w, above_a, above_w, early, steps, a_tiles, w_tiles, ready, STAGES, BK)
        layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BN, 16])
        zero = gl.zeros([BM, BN], gl.float32, layout)
        acc = gl.zeros([BM, BN], gl.float32, layout)
        inputs: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
        lane = gl.arange(0, SLOTS, gl.SliceLayout(0, inputs))[None, :]
        # The assembler lets products run on only if all are done at the end of a turn of the loop.
        for step in range(0, steps):
            stage = step % STAGES
            mbarrier.wait(ready.index(stage), step // STAGES & 1)
            before = zero
            for group in gl.static_range(BK // SLOTS):
                here = a_tiles.index(stage).slice(group * SLOTS, SLOTS, dim=1)
                there = w_tiles.index(stage).slice(group * SLOTS, SLOTS, dim=1).permute((1, 0))
                if LANES < SLOTS:
                    values = here.load(inputs)
                    for part in gl.static_range(SLOTS // LANES):
                        products = warpgroup_mma(
                            gl.where(lane // LANES == part, values, 0.0), there, zero,
                            use_acc=False, is_async=True,
                        )  # fmt: skip
                        if group + part > 0:
                            acc = acc + warpgroup_mma_wait(num_outstanding=1, deps=(before,))
                        before = products
                else:
                    products = warpgroup_mma(here, there, zero, use_acc=False, is_async=True)
                    if group > 0:
                        acc = acc + warpgroup_mma_wait(num_outstanding=1, deps=(before,))
                    before = products
            acc = acc + warpgroup_mma_wait(num_outstanding=0, deps=(before,))
            gl.thread_barrier()
            _fetch(
                a, w, above_a, above_w, step + STAGES, steps, a_tiles, w_tiles, ready, STAGES, BK
            )
        for early in gl.static_range(STAGES):
            mbarrier.invalidate(ready.index(early))
        if LEVELS:
            acc = acc * gl.load(tensor_scale)
        nan = gl.full([BM, BN], 0x7FC00000, gl.int32, layout).to(gl.float32, bitcast=True)
        acc = gl.where(acc == acc, acc, nan)
        rows = row + gl.arange(0, BM, gl.SliceLayout(1, layout))
        columns = column + gl.arange(0, BN, gl.SliceLayout(0, layout))
        _write(acc, out, batch, rows, columns, M, N, stride, span, BM, BN, layout)


@gluon.jit
def _exponents(plane, rows, groups, group):
    """Return exponents of a group, that of 1 where the scale is NaN, and where that is."""
    e = gl.load(plane + rows * groups + gl.minimum(group, groups - 1)).to(gl.int32)
    bad = e == _NAN_EXPONENT
    return gl.where(bad, 0, e), bad.to(gl.int32)


@gluon.jit
def _limbs(
    a, w, exponents_a, exponents_w, out, M, N, groups, stride, span,
    BM: gl.constexpr, BN: gl.constexpr, GROUP: gl.constexpr, TALL: gl.constexpr,
    STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Multiply one tile of integers in four limbs: what ``_wide`` of products_triton computes."""
    program = gl.program_id(0)
    down, across = gl.cdiv(M, BM), gl.cdiv(N, BN)
    band = program // (TALL * across)
    height = gl.minimum(down - band * TALL, TALL)
    inside = program % (TALL * across)
    tile_m, tile_n = band * TALL + inside % height, inside // height
    row, column, batch = tile_m * BM, tile_n * BN, gl.program_id(1)
    above_a, above_w = batch * M + row, batch * N + column
    depth: gl.constexpr = 4 * GROUP
    a_tiles = gl.allocate_shared_memory(a.dtype, [STAGES, BM, depth], a.layout)
    w_tiles = gl.allocate_shared_memory(w.dtype, [STAGES, BN, depth], w.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for early in gl.static_range(STAGES):
        mbarrier.init(ready.index(early), count=1)
    fence_async_shared()
    for early in gl.static_range(STAGES):
        _fetch(a, w, above_a, above_w, early, groups, a_tiles, w_tiles, ready, STAGES, depth)
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BN, 32])
    inputs: gl.constexpr = gl.DotOperandLayout(0, layout, 4)
    zero = gl.zeros([BM, BN], gl.int32, layout)
    acc = gl.zeros([BM, BN], gl.float64, layout)  # of float32 numbers
    rows = row + gl.arange(0, BM, gl.SliceLayout(1, layout))
    columns = column + gl.arange(0, BN, gl.SliceLayout(0, layout))
    wide_m = batch.to(gl.int64) * M + gl.minimum(rows, M - 1)
    wide_n = batch.to(gl.int64) * N + gl.minimum(columns, N - 1)
    e_m, bad_m = _exponents(exponents_a, wide_m, groups, 0)
    e_n, bad_n = _exponents(exponents_w, wide_n, groups, 0)
    for group in range(0, groups):
        stage = group % STAGES
        mbarrier.wait(ready.index(stage), group // STAGES & 1)
        x, y = a_tiles.index(stage), w_tiles.index(stage)
        x0 = x.slice(0, GROUP, dim=1).load(inputs)
        x1 = x.slice(GROUP, GROUP, dim=1).load(inputs)
        x2 = x.slice(2 * GROUP, GROUP, dim=1).load(inputs)
        x3 = x.slice(3 * GROUP, GROUP, dim=1).load(inputs)
        y0 = y.slice(0, GROUP, dim=1).permute((1, 0))
        y1 = y.slice(GROUP, GROUP, dim=1).permute((1, 0))
        y2 = y.slice(2 * GROUP, GROUP, dim=1).permute((1, 0))
        y3 = y.slice(3 * GROUP, GROUP, dim=1).permute((1, 0))
        # Limbs i and j weigh 2^(4 (i + j)): sums of equal weight first, then by Horner's rule.
        s6 = warpgroup_mma(x3, y3, zero, use_acc=False, is_async=True)
        s5 = warpgroup_mma(x3, y2, zero, use_acc=False, is_async=True)
        s4 = warpgroup_mma(x3, y1, zero, use_acc=False, is_async=True)
        s3 = warpgroup_mma(x3, y0, zero, use_acc=False, is_async=True)
        s2 = warpgroup_mma(x2, y0, zero, use_acc=False, is_async=True)
        s1 = warpgroup_mma(x1, y0, zero, use_acc=False, is_async=True)
        s0 = warpgroup_mma(x0, y0, zero, use_acc=False, is_async=True)
        s5 = warpgroup_mma(x2, y3, s5, is_async=True)
        s4 = warpgroup_mma(x2, y2, s4, is_async=True)
        s3 = warpgroup_mma(x2, y1, s3, is_async=True)
        s2 = warpgroup_mma(x1, y1, s2, is_async=True)
        s1 = warpgroup_mma(x0, y1, s1, is_async=True)
        s4 = warpgroup_mma(x1, y3, s4, is_async=True)
        s3 = warpgroup_mma(x1, y2, s3, is_async=True)
        s2 = warpgroup_mma(x0, y2, s2, is_async=True)
        s3 = warpgroup_mma(x0, y3, s3, is_async=True)
        # The next group's exponents come while the products do.
        next_m, wrong_m = _exponents(exponents_a, wide_m, groups, group + 1)
        next_n, wrong_n = _exponents(exponents_w, wide_n, groups, group + 1)
        s0, s1, s2, s3, s4, s5, s6 = warpgroup_mma_wait(
            num_outstanding=0, deps=(s0, s1, s2, s3, s4, s5, s6)
        )
        gl.thread_barrier()
        _fetch(
            a, w, above_a, above_w, group + STAGES, groups, a_tiles, w_tiles, ready, STAGES, depth
        )
        low = s0 + 16 * (s1 + 16 * s2)
        high = s3 + 16 * (s4 + 16 * (s5 + 16 * s6))
        power = (e_m << 20)[:, None] + (e_n + 1023 << 20)[None, :]
        acc = gl.inline_asm_elementwise(
            ADD_ROUNDED_TO_ODD, "=d,d,r,r,r", [acc, high, low, power],
            dtype=gl.float64, is_pure=True, pack=1,
        )  # fmt: skip
        e_m, e_n = next_m, next_n
        bad_m |= wrong_m
        bad_n |= wrong_n
    for early in gl.static_range(STAGES):
        mbarrier.invalidate(ready.index(early))
    bad = (bad_m[:, None] | bad_n[None, :]) != 0
    total = gl.where(bad, float("nan"), acc.to(gl.float32))
    nan = gl.full([BM, BN], 0x7FC00000, gl.int32, layout).to(gl.float32, bitcast=True)
    total = gl.where(total == total, total, nan)
    _write(total, out, batch, rows, columns, M, N, stride, span, BM, BN, layout)


@gluon.jit
def _write(total, out, batch, rows, columns, M, N, stride, span, BM: gl.constexpr,
           BN: gl.constexpr, layout: gl.constexpr):  # fmt: skip
    """Write a tile of the result, rounded to the type of ``out``."""
    kind: gl.constexpr = out.dtype.element_ty
    if kind != gl.float32:  # the conversion has a NaN of its own
        quiet: gl.constexpr = 0x7FC0 if kind == gl.bfloat16 else 0x7E00
        nan = gl.full([BM, BN], quiet, gl.int16, layout).to(kind, bitcast=True)
        total = gl.where(total == total, total.to(kind), nan)
    target = out + batch.to(gl.int64) * span + rows.to(gl.int64)[:, None] * stride
    gl.store(target + columns[None, :], total, (rows < M)[:, None] & (columns < N)[None, :])


def multiply_limbs(
    a: Tensor, w: Tensor, exponents_a: Tensor, exponents_w: Tensor, out: Tensor
) -> None:
    """Multiply integers in limbs, [B * M, 4 K] and [B * N, 4 K] in groups of 32, into ``out``."""
    batch, m, n = out.shape
    rows, columns, stages, warps = _LIMB_TILE
    depth = 4 * _LIMB_GROUP
    left, right = _described(a, rows, depth, gl.int8), _described(w, columns, depth, gl.int8)
    grid = (triton.cdiv(m, rows) * triton.cdiv(n, columns), batch)
    _limbs[grid](
        left, right, exponents_a, exponents_w, out, m, n, exponents_a.shape[-1], out.stride(1),
        out.stride(0), BM=rows, BN=columns, GROUP=_LIMB_GROUP, TALL=8, STAGES=stages, WARPS=warps,
        num_warps=warps,
    )  # fmt: skip


def multiply(
    a: Tensor,
    w: Tensor,
    out: Tensor,
    ranges_a: Tensor,
    ranges_w: Tensor,
    level: Tensor,
    lanes: int,
    common: dict[str, Any],
) -> None:
    """Multiply decoded operands [B * M, K] and [B * N, K] into the safe tiles of ``out``."""
    batch, m, n = out.shape
    kind = gl.bfloat16 if a.dtype == torch.bfloat16 else gl.float16
    depth, stages = _STAGES[lanes >= common["SLOTS"]]
    left, right = _described(a, _ROWS, depth, kind), _described(w, _COLUMNS, depth, kind)
    grid = (triton.cdiv(m, _ROWS) * triton.cdiv(n, _COLUMNS), batch)
    _scaled[grid](
        left, right, out, ranges_a, ranges_w, level, m, n, a.shape[1], out.stride(1), out.stride(0),
        **common,
        BM=_ROWS, BN=_COLUMNS, BK=depth, LANES=lanes, TALL=8, STAGES=stages, WARPS=_WARPS,
        num_warps=_WARPS,
    )  # fmt: skip


def _described(operand: Tensor, rows: int, depth: int, kind: gl.dtype) -> TensorDescriptor:
    """Describe how the tiles of an operand are fetched; what lies outside of it is zero."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, depth], kind)
    return TensorDescriptor.from_tensor(operand, [rows, depth], layout)
