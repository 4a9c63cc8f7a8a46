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

__all__ = ["multiply"]

_TILE = 128
# Values along K that a stage holds.
_DEPTH = 128


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
    BN: gl.constexpr, BK: gl.constexpr, SLOTS: gl.constexpr, TALL: gl.constexpr,
    ROWS_A_RANGE: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Multiply one safe tile: a group on tensor cores, then one addition."""
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
        # The assembler lets products run on only if all are done at the end of a turn of the loop.
        for step in range(0, steps):
            stage = step % STAGES
            mbarrier.wait(ready.index(stage), step // STAGES & 1)
            before = zero
            for group in gl.static_range(BK // SLOTS):
                products = warpgroup_mma(
                    a_tiles.index(stage).slice(group * SLOTS, SLOTS, dim=1),
                    w_tiles.index(stage).slice(group * SLOTS, SLOTS, dim=1).permute((1, 0)),
                    zero, use_acc=False, is_async=True,
                )  # fmt: skip
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
        kind: gl.constexpr = out.dtype.element_ty
        if kind != gl.float32:  # the conversion has a NaN of its own
            quiet: gl.constexpr = 0x7FC0 if kind == gl.bfloat16 else 0x7E00
            low = gl.full([BM, BN], quiet, gl.int16, layout).to(kind, bitcast=True)
            acc = gl.where(acc == acc, acc.to(kind), low)
        rows = row + gl.arange(0, BM, gl.SliceLayout(1, layout))
        columns = column + gl.arange(0, BN, gl.SliceLayout(0, layout))
        target = (
            out + batch.to(gl.int64) * span + rows.to(gl.int64)[:, None] * stride + columns[None, :]
        )
        gl.store(target, acc, (rows < M)[:, None] & (columns < N)[None, :])


def multiply(
    a: Tensor,
    w: Tensor,
    out: Tensor,
    ranges_a: Tensor,
    ranges_w: Tensor,
    level: Tensor,
    common: dict[str, Any],
) -> None:
    """Multiply decoded operands [B * M, K] and [B * N, K] into the safe tiles of ``out``."""
    batch, m, n = out.shape
    left, right = _tiles(a), _tiles(w)
    grid = (triton.cdiv(m, _TILE) * triton.cdiv(n, _TILE), batch)
    _scaled[grid](
        left, right, out, ranges_a, ranges_w, level, m, n, a.shape[1], out.stride(1), out.stride(0),
        **common,
        BM=_TILE, BN=_TILE, BK=_DEPTH, TALL=8, STAGES=3, WARPS=8, num_warps=8,
    )  # fmt: skip


def _tiles(operand: Tensor) -> TensorDescriptor:
    """Describe how the tiles of an operand are fetched; what lies outside of it is zero."""
    kind = gl.bfloat16 if operand.dtype == torch.bfloat16 else gl.float16
    shape = [_TILE, _DEPTH]
    layout = gl.NVMMASharedLayout.get_default_for(shape, kind)
    return TensorDescriptor.from_tensor(operand, shape, layout)
