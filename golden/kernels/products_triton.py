# ruff: noqa: N803 - compile-time parameters are in capitals
"""Matrix products of packed tensors on CUDA tensor cores, bit for bit those of the plain path.

An element times its scale has few significant bits, so a 16-bit float holds it exactly, and the sum
of a group's products is an integer below 2^24 times a power of two: a tensor core that accumulates
a group from zero in float32 gives it exactly. What rounds is one float32 addition a group, as the
hardware does it.

- ``decode`` (products_decode) turns packed planes into such operands and records, for each block of
  rows, between which exponents its values lie.
- ``_scaled`` multiplies tiles whose sums stay normal float32 numbers, whatever their groups hold.
- ``_careful`` multiplies all other tiles: integers on tensor cores, the accumulation in float64
  rounded to odd.
- ``_fixed`` adds up exactly, in windows of fixed point.
- products_limbs has the kernels for wider integers (E4M3 and E5M2 elements).

Which kernel computes a tile is decided on the device, so nothing waits for it.
"""

from functools import cache
from math import prod
from types import ModuleType

import torch
import triton
import triton.language as tl
from torch import Tensor

from m2xfp.golden.formats.format import Format
from m2xfp.golden.formats.numeric import joint_scale
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.products_decode import (
    ROWS_A_RANGE,
    as_float,
    decode,
    gather_ranges,
    is_safe,
    place_of,
    power_of_two,
    store,
    to_odd,
    values,
)
from m2xfp.golden.kernels.products_facts import (
    NAN_EXPONENT,
    Operand,
    chunk_of,
    describe,
    limb_limits,
    limits,
    sum_bound,
)
from m2xfp.golden.kernels.products_inputs import operand_of, pack_unsafe, takes_inputs
from m2xfp.golden.kernels.products_limbs import add_up_limbs, multiply_limbs

__all__ = ["matmul", "multiply_inputs", "serves"]

_NAN_EXPONENT = tl.constexpr(NAN_EXPONENT)
# Values of an operand that are decoded at a time.
_WORKSPACE = 1 << 28
# Rows, columns and warps of a tile of integers in limbs.
_LIMBS_TILE = (32, 64, 4)
# Rows, and lanes, up to and from which on the kernel for Hopper is no gain.
_FEW = 64
# Groups that 64 bits add up exactly.
_MOST_GROUPS = 1 << 12


@triton.jit
def _scaled(
    a, w, out, ranges_a, ranges_w, tensor_scale, M, N, K, stride, span, one,
    SAFE: tl.constexpr, LIMITS: tl.constexpr, LEVELS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, SLOTS: tl.constexpr, TALL: tl.constexpr, ROWS_A_RANGE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Multiply one safe tile: a group on tensor cores, then one addition."""
    tile_m, tile_n = place_of(M, N, BM, BN, TALL)
    if not SAFE:
        safe = is_safe(ranges_a, ranges_w, tile_m, tile_n, M, N, BM, BN, LIMITS, ROWS_A_RANGE)
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
    store(acc, out, tensor_scale, tile_m, tile_n, M, N, stride, span, LEVELS, BM, BN)


@triton.jit
def _integers(codes, scales, meta, wide, group, groups, F: tl.constexpr, UNIT: tl.constexpr,
              ROWS: tl.constexpr):  # fmt: skip
    """Return the integers of one group of ROWS rows, float16 [ROWS, group], and its exponents."""
    subs: tl.constexpr = F[0] // F[1]
    lane = tl.arange(0, F[1])[None, None, :]
    sub = group * subs + tl.arange(0, subs)[None, :, None]
    rows = wide[:, None, None]
    value, significand, exponent, bad = values(
        codes, scales, meta, rows, sub, lane, rows >= 0, groups, F
    )
    raw = value * significand * as_float((127 - UNIT) << 23 | lane * 0)
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
    tile_m, tile_n = place_of(M, N, BM, BN, 8)
    if is_safe(ranges_a, ranges_w, tile_m, tile_n, M, N, BM, BN, LIMITS, ROWS_A_RANGE):
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
            addend = products.to(tl.float64) * power_of_two(tl.where(bad, 0, e))
            total = to_odd(acc.to(tl.float64), addend)
            # An infinite acc stays; what the error of its sum is means nothing.
            total = tl.where(tl.abs(acc) == float("inf"), acc.to(tl.float64), total)
            acc = tl.where(products == 0.0, acc, total.to(tl.float32))
            acc = tl.where(bad, float("nan"), acc)
    store(acc, out, tensor_scale, tile_m, tile_n, M, N, stride, span, LEVELS, BM, BN)


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
    tile_m, tile_n = place_of(M, N, BM, BN, 8)
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
    down = power_of_two(low * 0 - WIDTH)
    up = power_of_two(low * 0 + WIDTH)
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
            part = products.to(tl.float64) * power_of_two(tl.where(inside, place, 0))
            total = total + tl.where(inside, part, 0.0)
        carry = tl.floor(total * down + 0.5)
        rest = to_odd(total - carry * up, rest * down)
    base = low + (windows - 1) * WIDTH
    total = to_odd(carry * up, rest) * power_of_two(tl.where(high >= low, base, 0))
    acc = tl.where(wrong != 0, float("nan"), total.to(tl.float32))
    store(acc, out, tensor_scale, tile_m, tile_n, M, N, stride, span, LEVELS, BM, BN)


def _slots(lanes: int) -> int:
    """Return the places that the lanes of an addend take: a tensor core multiplies 16 at least."""
    return max(16, lanes)


def _limb_slots(lanes: int) -> int:
    """Return the same for int8 tensor cores."""
    return max(32, lanes)


def _takes_limbs(a: Operand, w: Operand, accumulator: str, lanes: int) -> bool:
    """Whether a product is computed with integers in limbs; the other kernels are faster."""
    if a.group < 16 or sum_bound(a, w, lanes) >= 1 << 24:
        return True
    return accumulator != "exact" and _type(a, w) is None


def serves(qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int) -> bool:
    """Whether these kernels compute the product."""
    a, w = describe(qa.format.block), describe(qw.format.block)
    if a is None or w is None or (lanes == 1 and accumulator != "exact"):
        return False
    if accumulator == "exact":
        lanes = a.group  # however the plain path sums
    if not _takes_limbs(a, w, accumulator, lanes):
        return True
    if accumulator == "exact":
        groups = qa.scales.shape[-1]
        return groups <= _MOST_GROUPS and chunk_of(a, w, _limb_slots(lanes)) is not None
    return sum_bound(a, w, lanes) < 1 << 53 and chunk_of(a, w, _limb_slots(lanes), 2) is not None


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
        self.blocks = self.batch * -(-self.rows // ROWS_A_RANGE)
        self.exponents = self.flags = self.seen = self.scales
        self.seen_a_block = 0

    def decode(
        self,
        dtype: torch.dtype,
        integers: bool,
        pad: bool = True,
        run: int = 1,
        track: bool = True,
    ) -> Tensor:
        """Return the operand, rows of all matrices after each other; ``track`` its exponents.

        With ``pad`` each addend takes the places that a tensor core multiplies. Integers in int8
        are cut in limbs: of ``run`` addends the lowest, then the next, and so on.
        """
        facts = self.facts
        lanes = self.lanes if pad else facts.group
        limbs = facts.limbs if dtype == torch.int8 else 0
        slots = _limb_slots(lanes) if limbs else _slots(lanes)
        addends = self.groups * (facts.group // lanes)
        places = -(-addends // run) * run
        shape = (self.batch * self.rows, places * max(1, limbs) * slots)
        make = torch.zeros if slots > lanes or places > addends else torch.empty
        out = make(shape, dtype=dtype, device=self.codes.device)
        if integers:
            self.exponents = torch.empty_like(self.scales, dtype=torch.int16)
        if limbs:
            size = self.scales.numel() + ROWS_A_RANGE  # tiles may reach beyond
            self.exponents = torch.empty(size, dtype=torch.int32, device=out.device)
            self.flags = torch.zeros(shape[0], dtype=torch.int8, device=out.device)
        # Long runs along a row are written in whole lines.
        across = min(2048 // facts.group, triton.next_power_of_2(self.groups))
        down = 2048 // (across * facts.group)
        down = min(down, ROWS_A_RANGE)
        grid = (-(-self.rows // down), -(-self.groups // across), self.batch)
        if track:
            programs = (self.batch, grid[0] * grid[1], 2)
            self.seen = torch.empty(programs, dtype=torch.int32, device=out.device)
            self.seen_a_block = ROWS_A_RANGE // down * grid[1]
        decode[grid](
            self.codes, self.scales, self.meta, out, self.exponents, self.seen, self.flags,
            self.rows, self.groups, F=facts.recipe, UNIT=facts.unit, LANES=lanes, SLOTS=slots,
            INTEGERS=integers, LIMBS=limbs, RUN=run, TRACK=track,
            R=down, GROUPS=across,
        )  # fmt: skip
        return out

    def ranges(self) -> Tensor:
        """Return between which exponents the values of each block of rows lie."""
        out = torch.empty(self.blocks, 2, dtype=torch.int32, device=self.codes.device)
        if self.seen_a_block:
            gather_ranges[(self.blocks // self.batch, self.batch)](
                self.seen, out, self.seen.shape[-2], self.seen_a_block, COUNT=512, num_warps=4
            )
        return out

    def complete(self, ranges: Tensor, others: Tensor, bounds: tuple[int, int, int]) -> None:
        """See that the planes are there, which unsafe tiles are multiplied from."""


class _Inputs(_Matrices):
    """Rows x [M, K] of bfloat16, quantized as they are multiplied, see products_inputs."""

    def __init__(self, x: Tensor, fmt: Format, facts: Operand, lanes: int) -> None:
        rows, groups = x.shape[0], x.shape[1] // facts.group
        empty = [
            torch.empty(1, rows, groups * size, dtype=torch.uint8, device=x.device)
            for size in fmt.block.group_bytes
        ]
        super().__init__(empty, facts, lanes)
        self.x, self.format = x, fmt

    def decode(
        self,
        dtype: torch.dtype,
        integers: bool,
        pad: bool = True,
        run: int = 1,
        track: bool = True,
    ) -> Tensor:
        """Return the operand; its exponents are tracked in any case."""
        out, self.seen, self.seen_a_block = operand_of(self.x, self.format, self.facts)
        return out

    def complete(self, ranges: Tensor, others: Tensor, bounds: tuple[int, int, int]) -> None:
        """Pack the rows that have unsafe tiles."""
        planes = (self.codes, self.scales, self.meta)
        pack_unsafe(self.x, self.format, self.facts, planes, ranges, others, bounds)


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
    if accumulator == "exact":
        lanes = a.group
    batch, n = (1 if len(qw.shape) == 2 else prod(qw.shape[:-2])), qw.shape[-2]
    left, right = (
        [plane.reshape(batch, -1, plane.shape[-1]) for plane in _planes(packed)]
        for packed in (qa, qw)
    )
    m, width = left[0].shape[1], left[1].shape[-1] * a.group // lanes * _slots(lanes)
    if _takes_limbs(a, w, accumulator, lanes):
        width = width // _slots(lanes) * _limb_slots(lanes) * max(a.limbs, w.limbs)
    out = torch.empty(batch, m, n, dtype=dtype, device=qa.device)
    level = joint_scale(qa.tensor_scale, qw.tensor_scale)
    for some in _chunks(batch, max(m, n) * width):
        for columns in _chunks(n, width, ROWS_A_RANGE):
            weights = _Matrices([p[some, columns] for p in right], w, lanes)
            for rows in _chunks(m, width, ROWS_A_RANGE):
                inputs = _Matrices([p[some, rows] for p in left], a, lanes)
                _multiply(inputs, weights, accumulator, level, out[some, rows, columns])
    return out


def multiply_inputs(
    x: Tensor, fmt: Format, qw: PackedTensor, accumulator: str, lanes: int, dtype: torch.dtype
) -> Tensor | None:
    """Return ``fmt.quantize(x)`` [M, K] times the rows of [N, K], in ``dtype``.

    None where this is not served: all but many rows of bfloat16 in E2M1 under powers of two, on
    Hopper.
    """
    a, w = describe(fmt.block), describe(qw.format.block)
    if a is None or w is None or accumulator == "exact" or qw.tensor_scale is not None:
        return None
    m, n = x.shape[0], qw.shape[0]
    if m <= _FEW or _slots(lanes) > _FEW or not takes_inputs(x, fmt) or _hopper(x.device) is None:
        return None
    if _takes_limbs(a, w, accumulator, lanes) or _type(a, w) != torch.bfloat16:
        return None
    if max(m, n) * x.shape[1] > _WORKSPACE:
        return None
    out = torch.empty(1, m, n, dtype=dtype, device=x.device)
    weights = _Matrices([plane.unsqueeze(0) for plane in _planes(qw)], w, lanes)
    _multiply(_Inputs(x, fmt, a, lanes), weights, accumulator, None, out)
    return out[0]


def _multiply(
    a: _Matrices, w: _Matrices, accumulator: str, level: Tensor | None, out: Tensor
) -> None:
    """Multiply into ``out`` [batch, M, N]."""
    lanes, slots = a.lanes, _slots(a.lanes)
    bits = sum_bound(a.facts, w.facts, lanes).bit_length()
    batch, m, n = out.shape
    sizes = (m, n, a.groups, out.stride(1), out.stride(0))
    scale, levels = (out, False) if level is None else (level, True)
    if _takes_limbs(a.facts, w.facts, accumulator, lanes):
        _multiply_limbs(a, w, accumulator, level, out)
        return

    def grid(bm: int, bn: int) -> tuple[int, int]:
        return -(-m // bm) * -(-n // bn), batch

    if accumulator == "exact":
        left, right = (side.decode(torch.float16, True) for side in (a, w))
        ranges_a, ranges_w = a.ranges(), w.ranges()
        window = 51 - bits - (a.groups + 1).bit_length()
        _fixed[grid(64, 64)](
            left, right, a.exponents, w.exponents, out, ranges_a, ranges_w, scale, *sizes,
            LEVELS=levels, WIDTH=window, SLOTS=slots, BM=64, BN=64, ROWS_A_RANGE=ROWS_A_RANGE,
            num_warps=4,
        )  # fmt: skip
        return
    dtype = _type(a.facts, w.facts)
    assert dtype is not None
    hopper = _hopper(out.device) if m > _FEW and slots <= _FEW else None
    pad = hopper is None
    # The exponents of E4M3 scales and E2M1 elements cannot reach the ends of float32.
    safe = a.facts.small_range and w.facts.small_range
    left, right = (side.decode(dtype, False, pad, track=not safe) for side in (a, w))
    ranges_a, ranges_w = a.ranges(), w.ranges()
    bounds = limits(a.facts, w.facts, lanes)
    common = {
        "SAFE": safe,
        "LIMITS": bounds,
        "LEVELS": levels,
        "SLOTS": slots,
        "ROWS_A_RANGE": ROWS_A_RANGE,
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
        a.complete(ranges_a, ranges_w, bounds)
        _careful[grid(64, 64)](
            a.codes, a.scales, a.meta, w.codes, w.scales, w.meta, out, ranges_a, ranges_w, scale,
            *sizes, A=a.facts.recipe, W=w.facts.recipe, UNIT_A=a.facts.unit, UNIT_W=w.facts.unit,
            LIMITS=bounds, LEVELS=levels, LANES=lanes, BM=64, BN=64,
            ROWS_A_RANGE=ROWS_A_RANGE, num_warps=4,
        )  # fmt: skip


def _multiply_limbs(
    a: _Matrices,
    w: _Matrices,
    accumulator: str,
    level: Tensor | None,
    out: Tensor,
) -> None:
    """Multiply integers in limbs into ``out`` [batch, M, N]."""
    lanes, slots, exact = a.lanes, _limb_slots(a.lanes), accumulator == "exact"
    parts = a.facts.group // lanes
    batch, m, n = out.shape
    limbs = (a.facts.limbs, w.facts.limbs)
    bounds = limb_limits(a.facts, w.facts, lanes, a.groups * parts)
    hopper = None
    if not exact and lanes == 32 and level is None and m > 32:
        hopper = _hopper(out.device)
        if hopper is not None and limbs != hopper.LIMBS:
            hopper = None
    run = 1 if hopper is None else hopper.LIMB_RUN
    left, right = (side.decode(torch.int8, True, run=run) for side in (a, w))
    ranges_a, ranges_w = a.ranges(), w.ranges()
    if hopper is not None:
        hopper.multiply_limbs(
            left, right, a.exponents, w.exponents, out, ranges_a, ranges_w, a.flags, w.flags,
            a.groups, bounds, ROWS_A_RANGE,
        )  # fmt: skip
    common = {
        "LEVELS": level is not None,
        "LIMBS_A": limbs[0],
        "LIMBS_W": limbs[1],
        "SLOTS": slots,
        "CHUNK": chunk_of(a.facts, w.facts, slots, None if exact else 2),
        "RUN": run,
        "ROWS_A_RANGE": ROWS_A_RANGE,
    }
    operands = (
        left, right, a.exponents, w.exponents, out, ranges_a, ranges_w, a.flags, w.flags,
        out if level is None else level, m, n, a.groups, out.stride(1), out.stride(0),
    )  # fmt: skip
    bm, bn, warps = _LIMBS_TILE
    grid = (-(-m // bm) * -(-n // bn), batch)
    if exact:
        words = -(-(sum(limbs) - 1) // 3)
        add_up_limbs[grid](*operands, **common, WORDS=words, BM=bm, BN=bn, num_warps=warps)
    else:
        multiply_limbs[grid](
            *operands, **common, LIMITS=bounds, PARTS=parts, SKIP=hopper is not None, BM=bm,
            BN=bn, num_warps=warps,
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
