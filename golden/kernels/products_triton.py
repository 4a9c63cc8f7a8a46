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

from functools import cache
from types import ModuleType

import torch
import triton
import triton.language as tl
from torch import Tensor

from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.products_facts import Operand, describe, limits, sum_bound

__all__ = ["matmul", "serves"]

_ROWS_A_RANGE = 128
_EMPTY = 1 << 20  # above every exponent
_NAN_EXPONENT = tl.constexpr(16384)
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
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
    INTEGERS: tl.constexpr, ONLY_UNSAFE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    LEAST: tl.constexpr, OTHERS: tl.constexpr, R: tl.constexpr, GROUPS: tl.constexpr,
    ROWS_A_RANGE: tl.constexpr,
):  # fmt: skip
    """Decode R rows of GROUPS groups to ``out``, lanes padded to SLOTS.

    Without INTEGERS, element times scale; with it, the integers of both, and their exponents.
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
        marked = tl.where(bad, _NAN_EXPONENT, exponent + UNIT)
        if SCALE != 0:
            seen = seen & (significand + lane * 0.0 != 0.0)
        spots = sub % subs == 0
        tl.store(exponents + wide * groups + group, marked.to(tl.int16), live & spots)
    else:
        raw = value * tl.where(bad, float("nan"), factor)
        at = exponent + size
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
    return (low_a + low_w >= LOW) & (high_a + high_w >= -HIGH) & normal


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


def _slots(lanes: int) -> int:
    """Return the places that the lanes of an addend take: a tensor core multiplies 16 at least."""
    return max(16, lanes)


def serves(qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int) -> bool:
    """Whether these kernels compute the product."""
    a, w = describe(qa.format.block), describe(qw.format.block)
    if a is None or w is None or lanes == 1:
        return False
    if sum_bound(a, w, lanes) >= 1 << 24:
        return False
    return accumulator == "exact" or _type(a, w) is not None


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
        parts = facts.group // self.lanes
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
            INTEGERS=integers, ONLY_UNSAFE=other is not None, LOW=low, HIGH=high, LEAST=least,
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
    bits = sum_bound(a.facts, w.facts, a.lanes).bit_length()
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
