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

from m2xfp.golden.kernels.assembly import ADD_NORMAL

__all__ = ["LIMBS", "LIMB_RUN", "multiply", "multiply_limbs"]

_ROWS, _COLUMNS = 128, 128
_STAGES = {True: (64, 4), False: (128, 3)}
"""Values along K that a stage holds, and stages: for groups, and for addends of fewer lanes."""
_WARPS = 8
LIMBS = (3, 3)
"""Limbs of both operands that ``multiply_limbs`` takes."""
LIMB_RUN = 4
"""Groups whose limbs of one weight stand together."""
_LIMB_TILE = (64, 32, 2, 4, 168)  # rows, columns, stages, warps, registers of a tile of ``_limbs``
_LIMB_GROUP = 32


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
def _fetch_limbs(a, w, row, column, step, steps, a_tiles, w_tiles, ready, STAGES: gl.constexpr,
                 DEPTH: gl.constexpr):  # fmt: skip
    """Start to fetch the three limbs of both tiles of a run; nothing past the last one."""
    stage, there = step % STAGES, step < steps
    bar = ready.index(stage)
    mbarrier.expect(bar, 3 * (a.block_type.nbytes + w.block_type.nbytes), pred=there)
    for limb in gl.static_range(3):
        at = (step * 3 + limb) * DEPTH
        tma.async_copy_global_to_shared(
            a, [row, at], bar, a_tiles.index(stage * 3 + limb), pred=there
        )
        tma.async_copy_global_to_shared(
            w, [column, at], bar, w_tiles.index(stage * 3 + limb), pred=there
        )


@gluon.jit
def _limbs(
    a, w, exponents_a, exponents_w, out, ranges_a, ranges_w, flags_a, flags_w, M, N, groups,
    stride, span,
    LIMITS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, GROUP: gl.constexpr,
    RUN: gl.constexpr, TALL: gl.constexpr, ROWS_A_RANGE: gl.constexpr, STAGES: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """Multiply one safe tile of integers in three limbs, see products_limbs.

    Exponents are read past the last row, up to a tile, and are of no matter there.
    """
    program = gl.program_id(0)
    down, across = gl.cdiv(M, BM), gl.cdiv(N, BN)
    band = program // (TALL * across)
    height = gl.minimum(down - band * TALL, TALL)
    inside = program % (TALL * across)
    tile_m, tile_n = band * TALL + inside % height, inside // height
    row, column, batch = tile_m * BM, tile_n * BN, gl.program_id(1)
    at_a = 2 * (batch * gl.cdiv(M, ROWS_A_RANGE) + row // ROWS_A_RANGE)
    at_w = 2 * (batch * gl.cdiv(N, ROWS_A_RANGE) + column // ROWS_A_RANGE)
    least = gl.load(ranges_a + at_a) + gl.load(ranges_w + at_w)
    most = gl.load(ranges_a + at_a + 1) + gl.load(ranges_w + at_w + 1)
    if (least >= LIMITS[0]) & (most >= -LIMITS[1]):
        above_a, above_w = batch * M + row, batch * N + column
        depth: gl.constexpr = RUN * GROUP
        a_tiles = gl.allocate_shared_memory(a.dtype, [3 * STAGES, BM, depth], a.layout)
        w_tiles = gl.allocate_shared_memory(w.dtype, [3 * STAGES, BN, depth], w.layout)
        ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        for early in gl.static_range(STAGES):
            mbarrier.init(ready.index(early), count=1)
        fence_async_shared()
        steps = gl.cdiv(groups, RUN)
        for early in gl.static_range(STAGES):
            _fetch_limbs(
                a, w, above_a, above_w, early, steps, a_tiles, w_tiles, ready, STAGES, depth
            )
        layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BN, 32])
        inputs: gl.constexpr = gl.DotOperandLayout(0, layout, 4)
        zero = gl.zeros([BM, BN], gl.int32, layout)
        acc = gl.zeros([BM, BN], gl.float64, layout)  # of float32 numbers
        rows = row + gl.arange(0, BM, gl.SliceLayout(1, layout))
        columns = column + gl.arange(0, BN, gl.SliceLayout(0, layout))
        across_m, across_n = gl.num_programs(1) * M, gl.num_programs(1) * N
        exponents_a += batch * M
        exponents_w += batch * N
        e_m, e_n = gl.load(exponents_a + rows), gl.load(exponents_w + columns)
        for step in range(0, steps):
            stage = step % STAGES
            mbarrier.wait(ready.index(stage), step // STAGES & 1)
            for turn in gl.static_range(RUN):
                x0 = a_tiles.index(3 * stage).slice(turn * GROUP, GROUP, dim=1).load(inputs)
                x1 = a_tiles.index(3 * stage + 1).slice(turn * GROUP, GROUP, dim=1).load(inputs)
                x2 = a_tiles.index(3 * stage + 2).slice(turn * GROUP, GROUP, dim=1).load(inputs)
                y0 = w_tiles.index(3 * stage).slice(turn * GROUP, GROUP, dim=1).permute((1, 0))
                y1 = w_tiles.index(3 * stage + 1).slice(turn * GROUP, GROUP, dim=1).permute((1, 0))
                y2 = w_tiles.index(3 * stage + 2).slice(turn * GROUP, GROUP, dim=1).permute((1, 0))
                # Limbs i and j weigh 2^(6 (i + j)): sums of equal weight, then by Horner's rule.
                s2 = warpgroup_mma(x0, y2, zero, use_acc=False, is_async=True)
                s1 = warpgroup_mma(x0, y1, zero, use_acc=False, is_async=True)
                s0 = warpgroup_mma(x0, y0, zero, use_acc=False, is_async=True)
                s4 = warpgroup_mma(x2, y2, zero, use_acc=False, is_async=True)
                s3 = warpgroup_mma(x2, y1, zero, use_acc=False, is_async=True)
                s2 = warpgroup_mma(x1, y1, s2, is_async=True)
                s1 = warpgroup_mma(x1, y0, s1, is_async=True)
                s3 = warpgroup_mma(x1, y2, s3, is_async=True)
                s2 = warpgroup_mma(x2, y0, s2, is_async=True)
                # The next group's exponents come while the products do.
                after = gl.minimum(step * RUN + turn + 1, groups - 1)
                next_m = gl.load(exponents_a + after.to(gl.int64) * across_m + rows)
                next_n = gl.load(exponents_w + after.to(gl.int64) * across_n + columns)
                s0, s1, s2, s3, s4 = warpgroup_mma_wait(
                    num_outstanding=0, deps=(s0, s1, s2, s3, s4)
                )
                if turn == RUN - 1:
                    gl.thread_barrier()
                    _fetch_limbs(
                        a, w, above_a, above_w, step + STAGES, steps, a_tiles, w_tiles, ready,
                        STAGES, depth,
                    )  # fmt: skip
                low = s0 + 64 * (s1 + 64 * s2)
                high = s3 + 64 * s4
                power = (e_m + (1023 << 20))[:, None] + e_n[None, :]
                acc = gl.inline_asm_elementwise(
                    ADD_NORMAL, "=d,d,r,r,r", [acc, high, low, power],
                    dtype=gl.float64, is_pure=True, pack=1,
                )  # fmt: skip
                e_m, e_n = next_m, next_n
        for early in gl.static_range(STAGES):
            mbarrier.invalidate(ready.index(early))
        bad_m = gl.load(flags_a + batch * M + gl.minimum(rows, M - 1))
        bad_n = gl.load(flags_w + batch * N + gl.minimum(columns, N - 1))
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
    a: Tensor,
    w: Tensor,
    exponents_a: Tensor,
    exponents_w: Tensor,
    out: Tensor,
    ranges_a: Tensor,
    ranges_w: Tensor,
    flags_a: Tensor,
    flags_w: Tensor,
    groups: int,
    bounds: tuple[int, int, int],
    rows_a_range: int,
) -> None:
    """Multiply integers in limbs, [B * M, 3 K] and [B * N, 3 K] in groups of 32, into ``out``.

    Only tiles whose exponents lie within ``bounds``; see ``limb_limits`` of products_facts.
    """
    batch, m, n = out.shape
    rows, columns, stages, warps, registers = _LIMB_TILE
    depth = LIMB_RUN * _LIMB_GROUP
    left, right = _described(a, rows, depth, gl.int8), _described(w, columns, depth, gl.int8)
    grid = (triton.cdiv(m, rows) * triton.cdiv(n, columns), batch)
    _limbs[grid](
        left, right, exponents_a, exponents_w, out, ranges_a, ranges_w, flags_a, flags_w, m, n,
        groups, out.stride(1), out.stride(0), LIMITS=bounds, BM=rows, BN=columns,
        GROUP=_LIMB_GROUP, RUN=LIMB_RUN, TALL=8, ROWS_A_RANGE=rows_a_range, STAGES=stages,
        WARPS=warps, num_warps=warps, maxnreg=registers,
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
