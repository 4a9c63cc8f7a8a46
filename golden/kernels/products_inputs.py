# ruff: noqa: N803 - compile-time parameters are in capitals
"""Inputs that are quantized only to be multiplied: from bfloat16 to operands of tensor cores.

What a format makes of a value is the operand, so no planes are written and decoded again. Only
rows some of whose tiles are not safe (``is_safe`` of products_decode) are packed as well, for the
kernel that multiplies those; which they are is decided on the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from m2xfp.golden.formats.format import Format
from m2xfp.golden.kernels.plan import plan_of
from m2xfp.golden.kernels.products_decode import ROWS_A_RANGE
from m2xfp.golden.kernels.products_facts import Operand
from m2xfp.golden.kernels.triton_kernels import (
    as_words,
    takes_words,
    word_offsets,
    words_faked,
    words_quantized,
)

__all__ = ["operand_of", "pack_unsafe", "takes_inputs"]

_VALUES = 1024
"""Of a program; a row has a multiple of them."""
_SHARES = 16
"""Programs that pack the rows of a range between them."""


@triton.jit
def _operand_kernel(
    x, out, seen_by, count, plan: tl.constexpr, rows: tl.constexpr
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    exists = group < count
    mask = exists[:, None, None]
    offsets = word_offsets(group, plan)
    value, good = words_faked(tl.load(x + offsets, mask=mask, other=0), plan)
    tl.store(out + offsets, tl.where(good[:, None, None], value, 0x7FC07FC0), mask=mask)
    # Between which exponents the values lie: the largest, and the least that is not 0.
    value = tl.where(good[:, None, None], value, 0)
    low, high = value & 0x7FFF, (value >> 16) & 0x7FFF
    most = tl.max(tl.max(tl.max(tl.maximum(low, high), 2), 1), 0)
    low, high = tl.where(low == 0, 0x7FFF, low), tl.where(high == 0, 0x7FFF, high)
    least = tl.min(tl.min(tl.min(tl.minimum(low, high), 2), 1), 0)
    place = seen_by + 2 * tl.program_id(0)
    tl.store(place, tl.where(most > 0, (least >> 7) - 127, 1 << 20))
    tl.store(place + 1, tl.where(most > 0, 127 - (most >> 7), 1 << 20))


@triton.jit
def _pack_kernel(
    x, codes, scales, meta, ranges_a, ranges_w, count, groups_a_range, blocks_w,
    plan: tl.constexpr, rows: tl.constexpr, LIMITS: tl.constexpr, SHARES: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Pack a share of the rows of a range, unless all tiles of these rows are safe."""
    block = tl.program_id(0)
    low_w = tl.full((BLOCKS,), 1 << 20, tl.int32)
    high_w = low_w
    for start in range(0, blocks_w, BLOCKS):
        at = start + tl.arange(0, BLOCKS)
        low_w = tl.minimum(low_w, tl.load(ranges_w + 2 * at, at < blocks_w, 1 << 20))
        high_w = tl.minimum(high_w, tl.load(ranges_w + 2 * at + 1, at < blocks_w, 1 << 20))
    least_w, most_w = tl.min(low_w, 0), tl.min(high_w, 0)
    least, most = tl.load(ranges_a + 2 * block), tl.load(ranges_a + 2 * block + 1)
    safe = (least + least_w >= LIMITS[0]) & (tl.minimum(least, least_w) >= LIMITS[2])
    safe = safe & (most + most_w >= -LIMITS[1]) & (tl.minimum(most, most_w) >= -127)
    if safe:
        return
    start = block.to(tl.int64) * groups_a_range
    stop = tl.minimum(start + groups_a_range, count)
    for at in range(tl.program_id(1) * rows, groups_a_range, SHARES * rows):
        group = start + at + tl.arange(0, rows)
        words_quantized(x, codes, scales, meta, group, group < stop, plan, rows)


def takes_inputs(x: Tensor, fmt: Format) -> bool:
    """Whether rows x [M, K] of a format become operands at once."""
    return takes_words(plan_of(fmt), x) and x.is_contiguous() and x.shape[1] % _VALUES == 0


def operand_of(x: Tensor, fmt: Format, facts: Operand) -> tuple[Tensor, Tensor, int]:
    """Return the values of x in the format, in bfloat16, and what programs saw of their exponents.

    The last is of how many programs that is, of the rows of a range.
    """
    out = torch.empty_like(x)
    count, rows = x.numel() // facts.group, _VALUES // facts.group
    programs = triton.cdiv(count, rows)
    seen = torch.empty(programs, 2, dtype=torch.int32, device=x.device)
    _operand_kernel[(programs,)](
        as_words(x), as_words(out), seen, count, plan_of(fmt), rows, num_warps=2
    )
    return out, seen, ROWS_A_RANGE * x.shape[1] // _VALUES


def pack_unsafe(
    x: Tensor,
    fmt: Format,
    facts: Operand,
    planes: tuple[Tensor, Tensor, Tensor],
    ranges_a: Tensor,
    ranges_w: Tensor,
    bounds: tuple[int, int, int],
) -> None:
    """Pack the rows of x that have unsafe tiles into planes of the format."""
    count, groups = x.numel() // facts.group, x.shape[1] // facts.group
    _pack_kernel[(len(ranges_a), _SHARES)](
        as_words(x), *planes, ranges_a, ranges_w, count, groups * ROWS_A_RANGE, len(ranges_w),
        plan_of(fmt), _VALUES // facts.group, LIMITS=bounds, SHARES=_SHARES, BLOCKS=128,
        num_warps=2,
    )  # fmt: skip
