"""The fused CUDA path: one set of Triton kernels, specialised by a ``Plan``.

The same numbers as golden/formats/format.py, from the same definition; the tests hold one against
the other, bit for bit. A thread holds neighbouring values, so that most of a group's maxima and
sums stay in registers. Arithmetic is float32 and integers, but for float32 scales, the sums of the
weight search where float32 has too few bits, and the affine format.

**Rounding to a grid** adds and subtracts a number whose last bit weighs one step of the grid, so
the adder rounds, to nearest, ties to even (``_nearest``). What is rounded has to lie on the right
side of every threshold t (half way between two codes), and on t exactly if the exact quotient does:

- Power-of-two scales: x / scale is exact, or so small that it underflows, far below every t.
- ``_SHORT``: x and scale * t have so few bits (8 or 11, and at most 12) that a quotient that is not
  t differs from it by more than 2^-13 of t, while float32 is right to 2^-21; and a quotient that is
  t comes out as t: one fma gives the remainder exactly, a second corrects by it (Markstein).
- ``_SNAP``, anything else: the approximate quotient, right to 2^-20, is rounded to 12 significant
  bits, p. Every t has at most 9, so rounding cannot pass it: x / scale > t gives p >= t, and so
  below. The sign of x - p * scale, which fma gives exactly, then moves p by one bit of the last
  place of float32: this leaves p on its side of all t but the one it is equal to, and puts it on
  the right side of that. A scale of more than 24 bits comes as a sum of two float32; x - p * high
  has 24 bits (p is within 2^-12 of the quotient), so a second fma still sees the right sign.

Ties away: one more bit of the last place lifts a tie above its threshold. Where x has few bits, so
does a factor of 1 + 2^-20, without any of the above.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from m2xfp.golden.kernels.plan import Plan

__all__ = ["TritonKernels"]

_ELEM_EM = tl.constexpr(1)
_SG_EM = tl.constexpr(2)
_PAIR = tl.constexpr(3)
# How a quotient is found.
_POWER = tl.constexpr(0)
_SHORT = tl.constexpr(1)
_SNAP = tl.constexpr(2)
# How a value becomes one of 16 bits: it is one; by the conversion; by an addition.
_FITS = tl.constexpr(0)
_CONVERT = tl.constexpr(1)
_ADD = tl.constexpr(2)
_SIGN = tl.constexpr(-2147483648)
_INFINITE = tl.constexpr(0x7F800000)
_QUIET_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def _nan_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _nan_min(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _float(b):
    return b.to(tl.float32, bitcast=True)


@triton.jit
def _power(code):
    """Return 2^(code - 127) for 0..254; code 0 is a subnormal."""
    return _float(tl.where(code > 0, code << 23, 0x00400000))


@triton.jit
def _nearest(y, grid: tl.constexpr):
    """Return the number of the grid nearest to 0 <= y, ties to even; y is at most the largest."""
    if grid.fixed:
        pivot: tl.constexpr = grid.ratio * grid.least
        return (y + pivot) - pivot
    else:
        power = tl.maximum(_float(_bits(y) & 0x7F800000), grid.least)
        return tl.fma(power, -grid.ratio, tl.fma(power, grid.ratio, y))


@triton.jit
def _code(q, grid: tl.constexpr):
    """Return the magnitude code of a number of the grid.

    A minifloat moved to float32's least exponents, subnormals included, is its code, further up.
    """
    if grid.integer:
        return (q * (1.0 / grid.least)).to(tl.int32)
    else:
        down: tl.constexpr = 2.0 ** (grid.bias - 127)
        return _bits(q * down) >> (23 - grid.mantissa)


@triton.jit
def _decoded(code, grid: tl.constexpr):
    """Return the numbers of magnitude codes, those above the largest included."""
    up: tl.constexpr = 2.0 ** (127 - grid.bias)
    value = _float(code << (23 - grid.mantissa)) * up
    if grid.mantissa < 23:
        if grid.specials == 1:
            value = tl.where(code > grid.max_code, float("nan"), value)
        if grid.specials == 2:
            value = tl.where(code > grid.max_code, float("inf"), value)
            value = tl.where(code > grid.max_code + 1, float("nan"), value)
    return value


@triton.jit
def _snapped(x, near, high, low, two: tl.constexpr, away: tl.constexpr):
    """Return near, to 12 bits, moved by the sign of x - near * (high + low)."""
    p = _float((_bits(near) + 0x800) & -4096)
    rest = tl.fma(-p, high, x)
    if two:
        rest = tl.fma(-p, low, rest)
    side = tl.minimum(tl.maximum(_bits(rest), -1), 1)
    if away:
        side = 2 * side + 1
    return _float(_bits(p) + side)


@triton.jit
def _quotient(
    x, high, low, inverse, largest: tl.constexpr, how: tl.constexpr, two: tl.constexpr,
    away: tl.constexpr, few: tl.constexpr, clamp: tl.constexpr,
):  # fmt: skip
    """Return x / (high + low) for ``_nearest`` to round; at most about ``largest`` if ``clamp``.

    ``few``: x has 11 significant bits or fewer.
    """
    if how == _SNAP:
        return _snapped(x, tl.minimum(x * inverse, largest), high, low, two, away)
    if away and few:
        y = x * (inverse * 1.00000095367431640625)  # 1 + 2^-20
    else:
        y = x * inverse
        if how == _SHORT:
            y = tl.fma(tl.fma(-y, high, x), inverse, y)
        elif away:
            y = _snapped(y, tl.minimum(y, largest), 1.0, 0.0, False, True)
    if clamp:
        y = tl.minimum(y, largest)
    return y


@triton.jit
def _fitted_power(largest, plan: tl.constexpr):
    """Return the E8M0 byte of groups with this largest magnitude."""
    normal = tl.where(largest < 1.1754943508222875e-38, largest * 16777216.0, largest)
    field = (_bits(normal) >> 23) - tl.where(largest < 1.1754943508222875e-38, 24, 0)
    significand = (_bits(normal) & 0x7FFFFF) | 0x800000
    code = field - plan.emax + (significand > plan.up).to(tl.int32)
    code -= (significand < plan.down).to(tl.int32)
    code = tl.minimum(tl.maximum(code, 0), 254)
    return tl.where(largest > 0, code, 0)


@triton.jit
def _fitted_number(largest, unit, plan: tl.constexpr):
    """Return the scale's code and value; largest and unit are those of ``_unit``."""
    grid: tl.constexpr = plan.scale
    top: tl.constexpr = plan.element.largest
    if plan.wide_scale:
        wide = largest.to(tl.float64) / top
        if plan.away:
            wide = (wide.to(tl.int64, bitcast=True) + 1).to(tl.float64, bitcast=True)
        value = wide.to(tl.float32)
        code = _bits(value)
    else:
        high = unit * top
        low = tl.fma(unit, top, -high)
        y = _quotient(
            largest, high, low, 1.0 / high, plan.scale.largest, _SNAP, plan.two_level, plan.away,
            False, True,
        )  # fmt: skip
        value = _nearest(y, grid)
        code = _code(value, grid)
    if plan.zero_is_one:
        one: tl.constexpr = plan.scale.bias << plan.scale.mantissa
        value = tl.where(code == 0, 1.0, value)
        code = tl.where(code == 0, one, code)
    return code, value


@triton.jit
def _unit(unit_ptr, two: tl.constexpr):
    """Return the tensor scale as g * 2^k, 2^-22 <= g < 2, with 2^-k and 2^k."""
    if two:
        unit = tl.load(unit_ptr)
        field = _bits(unit) >> 23
        down = _power(254 - field)
        return unit * down, down, _power(field)
    else:
        return 1.0, 1.0, 1.0


@triton.jit
def _lift(value):
    """Return a power of two that brings a float32 scale where float32 arithmetic is exact."""
    return tl.where(value < 8.67e-19, 2.0**100, tl.where(value > 1.15e18, 2.0**-100, 1.0))


@triton.jit
def _split_scale(value, unit, two: tl.constexpr):
    """Return scale * unit as high + low, and about its inverse; 0 for a scale of zero."""
    if two:
        high = value * unit
        low = tl.fma(value, unit, -high)
    else:
        high = value
        low = value
    return high, low, tl.where(high > 0, 1.0 / high, 0.0)


@triton.jit
def _keys(q, plan: tl.constexpr):
    """Return keys of q [B, S, L] that differ within a subgroup, and the largest of each.

    A fraction of the smallest step, by lane, orders equals by lowest index; ``_code`` drops it.
    """
    step: tl.constexpr = plan.element.least * 2.0 ** (-plan.element.mantissa - 9)
    lane = plan.subgroup - 1 - tl.arange(0, plan.subgroup)
    keys = q + (lane.to(tl.float32) * step)[None, None, :]
    return keys, tl.max(keys, 2)


@triton.jit
def _refined(top, field, plan: tl.constexpr):
    """Return the finer value that ``field`` makes of the element value of the key ``top``."""
    element: tl.constexpr = plan.element
    fine: tl.constexpr = plan.fine
    coarse = 4 * _code(top, element)
    return _decoded(tl.maximum(coarse + field - 1, 0), fine)


@triton.jit
def _elem_em(y, q, plan: tl.constexpr):
    """Return which lanes are top-1 and, [B, S], their keys and metadata fields."""
    element: tl.constexpr = plan.element
    fine: tl.constexpr = plan.fine
    keys, top = _keys(q, plan)
    is_top = keys == top[:, :, None]
    y_top = tl.minimum(tl.sum(tl.where(is_top, y, 0.0), 2), fine.largest)
    fine_code = _code(_nearest(y_top, fine), fine)
    coarse = 4 * _code(top, element)
    field = tl.minimum(tl.maximum(fine_code + 1 - coarse, 0), 3)
    return is_top, top, field


@triton.jit
def _gain(
    y, w, base, unit, factor: tl.constexpr, plan: tl.constexpr, how: tl.constexpr
):  # fmt: skip
    """Return the gain of each subgroup, [B, S], for the scale ``base`` [B, 1, 1] times ``factor``.

    The gain, sum q (2 w - q) over the lanes, is sum w^2 less the squared error. What ties round to
    is of no matter here: at a tie both codes gain the same.
    """
    element: tl.constexpr = plan.element
    scale = base * factor
    high, low, inverse = _split_scale(scale, unit, plan.two_level)
    near = _quotient(
        y, high, low, inverse, element.largest, how, plan.two_level, False, False, True
    )
    code = _nearest(near, element)
    q = (code * scale).to(tl.float64)
    level = q
    if plan.two_level:
        level = q * unit.to(tl.float64)
    return tl.sum(q * (2.0 * w.to(tl.float64) - level), 2)


@triton.jit
def _best_gain(y, w, base, unit, plan: tl.constexpr, how: tl.constexpr):
    """Return the largest gain over the multipliers, and its k, [B, S]."""
    best = _gain(y, w, base, unit, 1.0, plan, how)
    field = tl.zeros_like(best).to(tl.int32)
    for k in tl.static_range(1, 4):
        gain = _gain(y, w, base, unit, 1.0 + 0.25 * k, plan, how)
        field = tl.where(gain > best, k, field)
        best = tl.maximum(gain, best)
    return best, field


@triton.jit
def _fma2(a, b, c):
    """Return a b + c of both bfloat16 halves of int32 words, rounded once; subnormals are kept."""
    return tl.inline_asm_elementwise(
        "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _max2(a, b):
    return tl.inline_asm_elementwise(
        "max.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _min2(a, b):
    return tl.inline_asm_elementwise(
        "min.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _bytes(a, b):
    """Return the low bytes of the four halves of two words."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x6420;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _dot4(a, b):
    """Return the sum of the products of four bytes."""
    return tl.inline_asm_elementwise(
        "dp4a.u32.u32 $0, $1, $2, 0;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _dot2(first, second, b):
    """Return the sum of the products of the halves of two words with four bytes."""
    return tl.inline_asm_elementwise(
        "{ .reg .u32 t; dp2a.lo.u32.u32 t, $1, $3, 0; dp2a.hi.u32.u32 $0, $2, $3, t; }",
        "=r,r,r,r",
        [first, second, b],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _halves(x, rows: tl.constexpr, plan: tl.constexpr):
    """Return words of lanes 0, 1 and of lanes 2, 3 of every four, from their low 16 bits."""
    low, high = tl.split(tl.reshape(x, [rows, plan.subgroups, plan.subgroup // 2, 2]))
    words = (low & 0xFFFF) | (high << 16)
    return tl.split(tl.reshape(words, [rows, plan.subgroups, plan.subgroup // 4, 2]))


@triton.jit
def _whole_gains(y, plan: tl.constexpr, rows: tl.constexpr):
    """Return what ``_power_gains`` does, in whole numbers, four values an instruction.

    For E2M1 and bfloat16. With scale 2^b, b = j - 1, and multiplier M / 4, M = 4 + k, a value is
    q = m M 2^(b-3), m one of 0 1 2 3 4 6 8 12, and u = 2^10 y is whole wherever m is not 0. The
    gain sum q (2 y - q) is M 2^(j-13) (sum m u - M 2^(j+5) sum m^2), two dot products of bytes.

    m comes from bfloat16 arithmetic on pairs: one fma rounds y times an inverse of M / 4 of 8 bits,
    which is off by less than 2^-8.9, to the grid. That is as good as the quotient: y has 8 bits and
    t M / 4 has 6 for a threshold t, so y is either at the threshold, where both codes gain alike,
    or farther than 2^-8 of it. Whether the power of two is that of the quotient does not matter
    either: within 2^-8 of a power of two, both steps round to it.
    """
    first, second = _halves(_bits(y) >> 16, rows, plan)
    whole_first, whole_second = _halves(_bits(y + 8192.0) & 0x1FFF, rows, plan)
    for k in tl.static_range(4):
        inverse = 0x3F803F80 if k == 0 else (
            0x3F4D3F4D if k == 1 else (0x3F2B3F2B if k == 2 else 0x3F123F12)
        )  # fmt: skip
        first_pivot = _fma2(
            _fma2(first, inverse, -0x7FFF8000) & 0x7F807F80, 0x42C042C0, -0x7FFF8000
        )
        second_pivot = _fma2(
            _fma2(second, inverse, -0x7FFF8000) & 0x7F807F80, 0x42C042C0, -0x7FFF8000
        )
        for j in tl.static_range(3):
            if plan.adaptive or j == 1:
                least = 0x42404240 if j == 0 else (0x42C042C0 if j == 1 else 0x43404340)
                unit = 0x40804080 if j == 0 else (0x40004000 if j == 1 else 0x3F803F80)
                pivot = _max2(first_pivot, least)
                q = _fma2(pivot, -0x407F4080, _fma2(first, inverse, pivot))
                low = _fma2(q, unit, 0x43004300)  # 128 + m: m is the low byte
                pivot = _max2(second_pivot, least)
                q = _fma2(pivot, -0x407F4080, _fma2(second, inverse, pivot))
                high = _fma2(q, unit, 0x43004300)
                if j == 0 or (j == 1 and k == 0):
                    low = _min2(low, 0x430C430C)
                    high = _min2(high, 0x430C430C)
                m = _bytes(low, high)
                each = _dot2(whole_first, whole_second, m) - _dot4(m, m) * ((4 + k) * 2 ** (j + 5))
                gain = tl.sum(each, 2) * ((4 + k) * 2**j)
                if j == 0:
                    low_gain = gain
                elif j == 1:
                    mid_gain = gain
                else:
                    high_gain = gain
        if not plan.adaptive:
            low_gain = mid_gain
            high_gain = mid_gain
        if k == 0:
            low_best = low_gain
            mid_best = mid_gain
            high_best = high_gain
            low_field = tl.zeros_like(mid_gain)
            field = low_field
            high_field = low_field
        else:
            low_field = tl.where(low_gain > low_best, k, low_field)
            low_best = tl.maximum(low_gain, low_best)
            field = tl.where(mid_gain > mid_best, k, field)
            mid_best = tl.maximum(mid_gain, mid_best)
            high_field = tl.where(high_gain > high_best, k, high_field)
            high_best = tl.maximum(high_gain, high_best)
    return low_best, mid_best, high_best, low_field, field, high_field


@triton.jit
def _power_gains(y, plan: tl.constexpr):
    """Return the largest gains and their k, [B, S], for power-of-two scales 1/2, 1 and 2.

    In float32, for y below 8, where that is exact. All offsets of a multiplier share the quotient
    by it: what differs is the power of two below which steps no longer shrink, and the largest
    value, which only the lower ones can reach.
    """
    for k in tl.static_range(4):
        w = y * (1.0 / (1.0 + 0.25 * k))
        power = _float(_bits(w) & 0x7F800000)
        if plan.adaptive:
            low_gain = _power_gain(y, w, power, 0.5, k, plan)
            high_gain = _power_gain(y, w, power, 2.0, k, plan)
        gain = _power_gain(y, w, power, 1.0, k, plan)
        if not plan.adaptive:
            low_gain = gain
            high_gain = gain
        if k == 0:
            low = low_gain
            mid = gain
            high = high_gain
            low_field = tl.zeros_like(gain).to(tl.int32)
            field = low_field
            high_field = low_field
        else:
            low_field = tl.where(low_gain > low, k, low_field)
            low = tl.maximum(low_gain, low)
            field = tl.where(gain > mid, k, field)
            mid = tl.maximum(gain, mid)
            high_field = tl.where(high_gain > high, k, high_field)
            high = tl.maximum(high_gain, high)
    return low, mid, high, low_field, field, high_field


@triton.jit
def _power_gain(y, w, power, base: tl.constexpr, k: tl.constexpr, plan: tl.constexpr):
    """Return the gain, [B, S], of scale ``base``; w is about y / (1 + k/4)."""
    ratio: tl.constexpr = plan.element.ratio
    least: tl.constexpr = plan.element.least * base
    top: tl.constexpr = plan.element.largest * base
    power = tl.maximum(power, least)
    q = tl.fma(power, -ratio, tl.fma(power, ratio, w))
    if 8.0 / (1.0 + 0.25 * k) > top + 1.0:  # else y < 8 never rounds to more
        q = tl.minimum(q, top)
    half: tl.constexpr = -0.5 * (1.0 + 0.25 * k)
    return tl.sum(q * tl.fma(q, half, y), 2) * (2.0 + 0.5 * k)


@triton.jit
def _power_search(y, fitted, plan: tl.constexpr, rows: tl.constexpr):
    """Return what ``_search`` returns, for scales and types that ``_power_gains`` serves."""
    if plan.subgroup % 4 == 0:
        low, mid, high, low_field, field, high_field = _whole_gains(y, plan, rows)
    else:
        low, mid, high, low_field, field, high_field = _power_gains(y, plan)
    best = tl.sum(mid, 1)
    code = fitted
    chosen = tl.full(fitted.shape, 1.0, tl.float32)
    if plan.adaptive:
        total = tl.sum(low, 1)
        won = (total >= best) & (fitted > 0)  # a tie goes to the lower scale
        best = tl.where(won, total, best)
        code = tl.where(won, fitted - 1, code)
        chosen = tl.where(won, 0.5, chosen)
        field = tl.where(won[:, None], low_field, field)
        won = (tl.sum(high, 1) > best) & (fitted < 254)
        code = tl.where(won, fitted + 1, code)
        chosen = tl.where(won, 2.0, chosen)
        field = tl.where(won[:, None], high_field, field)
    return code, chosen, field


@triton.jit
def _search(y, fitted, unit, plan: tl.constexpr, few: tl.constexpr):
    """Return the scale code [B], its scale in the units of y and the fields [B, S].

    y is |x| over the fitted scale for E8M0, else |x| in the units of the tensor scale.
    """
    grid: tl.constexpr = plan.scale
    how: tl.constexpr = _POWER if few and not plan.two_level else _SNAP
    w = y
    if plan.view > 0:
        fixed = y * (2.0**plan.view)
        whole = tl.floor(fixed)
        odd = tl.floor(whole * 0.5) * 2.0 + 1.0
        w = tl.where(fixed == whole, fixed, odd) * (2.0**-plan.view)
    code = fitted
    for j in tl.static_range(3):
        if plan.adaptive or j == 1:
            candidate = fitted + (j - 1)
            if plan.e8m0:
                base = tl.zeros_like(fitted).to(tl.float32) + 0.5 * 2.0**j
                allowed = (candidate >= 0) & (candidate <= 254)
            else:
                base = _decoded(tl.maximum(candidate, 0), grid)
                allowed = (fitted > 0) & (candidate > 0) & (candidate <= plan.scale.max_code)
                base = tl.where(allowed, base, 0.0)
                allowed |= (candidate == 0) & (fitted == 0)
            gains, fields = _best_gain(y, w, base[:, None, None], unit, plan, how)
            total = tl.where(allowed, tl.sum(gains, 1), float("-inf"))
            if j == (0 if plan.adaptive else 1):
                best = total
                chosen = base
                code = candidate
                field = fields
            else:
                won = total > best
                best = tl.where(won, total, best)
                chosen = tl.where(won, base, chosen)
                code = tl.where(won, candidate, code)
                field = tl.where(won[:, None], fields, field)
    return code, chosen, field


@triton.jit
def _encode(
    wide, unit, down, plan: tl.constexpr, few: tl.constexpr, kind: tl.constexpr, rows: tl.constexpr
):
    """Quantize [B, G] float32.

    Returns
    -------
    q
        Element values, not negative, the refinement of a subgroup's scale not included [B, G].
    refined
        The same with all refinements, in units of the shared scale.
    first, second, first_value, second_value
        Codes and values of the scales [B]; the second is that of what is not positive, if split.
    field
        Metadata [B, S].
    good
        Which groups are finite [B]; the others hold nothing of use.
    """
    element: tl.constexpr = plan.element
    grid: tl.constexpr = plan.scale
    magnitude = tl.abs(wide)
    if plan.split:
        first_largest = tl.reduce(wide, 1, _nan_max)
        second_largest = -tl.reduce(wide, 1, _nan_min)
        good = (first_largest < float("inf")) & (second_largest < float("inf"))
        first_largest = tl.maximum(first_largest, 0.0)
        second_largest = tl.maximum(second_largest, 0.0)
    else:
        first_largest = tl.reduce(magnitude, 1, _nan_max)
        second_largest = first_largest
        good = first_largest < float("inf")
    if plan.two_level:
        magnitude *= down
        first_largest *= down
        if plan.metadata == _SG_EM:
            # Far beyond the largest scale only the order counts, and an infinite gain has none.
            magnitude = tl.minimum(magnitude, 2.0**100)
    if plan.e8m0:
        first = _fitted_power(tl.where(good, first_largest, 0.0), plan)
        first_value = _power(first)
        inverse = _power(254 - first)
        high = first_value
        low = high
        second = first
        second_value = first_value
        if plan.split:
            second = _fitted_power(tl.where(good, second_largest, 0.0), plan)
            second_value = _power(second)
            positive = wide > 0
            inverse = tl.where(positive, inverse[:, None], _power(254 - second)[:, None])
        else:
            inverse = inverse[:, None]
        y = _quotient(
            magnitude, 1.0, 0.0, inverse, plan.limit, _POWER, False, plan.away, few,
            plan.metadata != _ELEM_EM,
        )  # fmt: skip
    else:
        first, first_value = _fitted_number(first_largest, unit, plan)
        second = first
        second_value = first_value
        if plan.split:
            second, second_value = _fitted_number(second_largest, unit, plan)
        lift = first_value
        lifted = first_value
        if plan.wide_scale:
            lift = _lift(first_value)
            lifted = first_value * lift
        high, low, inverse = _split_scale(lifted, unit, plan.two_level)
        if plan.split:
            other_lift = second_value
            lifted = second_value
            if plan.wide_scale:
                other_lift = _lift(second_value)
                lifted = second_value * other_lift
            other, _, other_inverse = _split_scale(lifted, unit, False)
            positive = wide > 0
            high = tl.where(positive, high[:, None], other[:, None])
            low = high
            inverse = tl.where(positive, inverse[:, None], other_inverse[:, None])
            if plan.wide_scale:
                magnitude *= tl.where(positive, lift[:, None], other_lift[:, None])
        else:
            high = high[:, None]
            low = low[:, None]
            inverse = inverse[:, None]
            if plan.wide_scale:
                magnitude *= lift[:, None]
        short: tl.constexpr = few and not plan.two_level and not plan.wide_scale
        y = magnitude
        if plan.metadata != _SG_EM:
            y = _quotient(
                magnitude, high, low, inverse, plan.limit,
                _SHORT if short else _SNAP, plan.two_level, plan.away, few,
                plan.metadata != _ELEM_EM,
            )  # fmt: skip
    field = first
    if plan.metadata == _SG_EM:
        if plan.e8m0:
            y = magnitude * inverse
        y = tl.reshape(y, [rows, plan.subgroups, plan.subgroup])
        if kind == tl.float32:
            code, base, field = _power_search(y, first, plan, rows)
        else:
            code, base, field = _search(y, first, unit, plan, few)
        multiplier = 1.0 + 0.25 * field.to(tl.float32)
        high, low, inverse = _split_scale(
            (base[:, None] * multiplier)[:, :, None], unit, plan.two_level
        )
        how: tl.constexpr = _SHORT if few and not plan.two_level else _SNAP
        y = _quotient(
            y, high, low, inverse, plan.element.largest, how, plan.two_level, plan.away, few, True
        )
        q = _nearest(y, element)
        refined = tl.reshape(q * multiplier[:, :, None], [rows, plan.group])
        q = tl.reshape(q, [rows, plan.group])
        first = code
        first_value = _power(code) if plan.e8m0 else _decoded(code, grid)
        second = first
        second_value = first_value
    elif plan.metadata == _PAIR:
        y = tl.reshape(y, [rows, plan.subgroups, plan.subgroup])
        # Ties away has moved y up by one bit of the last place, which no 1 may take for more.
        small = tl.max(y, 2) < 1.0
        y = y * tl.where(small, 2.0, 1.0)[:, :, None]
        q = _nearest(tl.minimum(y, plan.element.largest), element)
        refined = tl.reshape(q * tl.where(small, 0.5, 1.0)[:, :, None], [rows, plan.group])
        q = tl.reshape(q, [rows, plan.group])
        field = small.to(tl.int32)
    elif plan.metadata == _ELEM_EM:
        y = tl.reshape(y, [rows, plan.subgroups, plan.subgroup])
        q = _nearest(tl.minimum(y, plan.element.largest), element)
        is_top, top, field = _elem_em(y, q, plan)
        refined = tl.where(is_top, _refined(top, field, plan)[:, :, None], q)
        refined = tl.reshape(refined, [rows, plan.group])
        q = tl.reshape(q, [rows, plan.group])
    else:
        q = _nearest(y, element)
        refined = q
    return q, refined, first, second, first_value, second_value, field, good


@triton.jit
def _scaled_value(
    refined, scale, unit, down, up, original, kind: tl.constexpr, how: tl.constexpr,
    plan: tl.constexpr, finite: tl.constexpr,
):  # fmt: skip
    """Return refined * scale * tensor scale, rounded once to ``kind``, as float32."""
    if how != _ADD:
        value = refined * scale
        if plan.two_level:
            value *= original
        return value
    # 16 bits of a product that float32 may not hold: it is added, unrounded, to a number whose last
    # bit weighs the last bit of the result. Scales are moved where nothing underflows.
    if plan.wide_scale:
        down = _lift(scale)
        up = tl.where(down > 1.0, 2.0**-100, tl.where(down < 1.0, 2.0**100, 1.0))
        factor = scale * down
        near = refined
    else:
        near = refined * scale
        factor = unit
    mantissa: tl.constexpr = 7 if kind == tl.bfloat16 else 10
    least: tl.constexpr = 2.0**-126 if kind == tl.bfloat16 else 2.0**-14
    ratio: tl.constexpr = 1.5 * 2.0 ** (23 - mantissa)
    about = near * factor
    power = tl.maximum(_float(_bits(about) & 0x7F800000), least * down)
    value = tl.fma(power, -ratio, tl.fma(near, factor, power * ratio)) * up
    if not finite:
        value = tl.where(about < float("inf"), value, about)
    return value


@triton.jit
def _store_values(
    out_ptr, group, exists, value, signs, good, kind: tl.constexpr, how: tl.constexpr,
    plan: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """Store values [B, G] with signs; NaN where ``good`` [B] or a value itself says so."""
    bits = _bits(value) | signs
    if kind == tl.float32:
        bits = tl.where(good, bits, _QUIET_NAN)
        offsets = group[:, None] * plan.group + tl.arange(0, plan.group)[None, :]
        tl.store(out_ptr + offsets, bits, mask=exists[:, None])
    else:
        half: tl.constexpr = plan.group // 2
        if how == _FITS:
            low, high = tl.split(tl.reshape(bits, [rows, half, 2]))
            words = ((low >> 16) & 0xFFFF) | (high & -65536)
        else:
            narrow = _float(bits).to(kind).to(tl.int16, bitcast=True).to(tl.int32)
            low, high = tl.split(tl.reshape(narrow, [rows, half, 2]))
            words = (low & 0xFFFF) | (high << 16)
        nan: tl.constexpr = 0x7FC0 if kind == tl.bfloat16 else 0x7E00
        if good.shape[1] == 1:
            words = tl.where(good, words, nan * 0x10001)
        else:
            good_low, good_high = tl.split(tl.reshape(good.to(tl.int32), [rows, half, 2]))
            words = tl.where(good_low != 0, words, (words & -65536) | nan)
            words = tl.where(good_high != 0, words, (words & 0xFFFF) | (nan << 16))
        offsets = group[:, None] * half + tl.arange(0, half)[None, :]
        tl.store(out_ptr + offsets, words, mask=exists[:, None])


@triton.jit
def _store_packed(
    ptr, group, exists, fields, bits: tl.constexpr, count: tl.constexpr, rows: tl.constexpr
):
    """Store fields [B, count] of ``bits`` bits, little-endian, as bytes."""
    if bits == 8:
        offsets = group[:, None] * count + tl.arange(0, count)[None, :]
        tl.store(ptr + offsets, fields.to(tl.uint8), mask=exists[:, None])
    elif bits == 4:
        low, high = tl.split(tl.reshape(fields, [rows, count // 2, 2]))
        offsets = group[:, None] * (count // 2) + tl.arange(0, count // 2)[None, :]
        tl.store(ptr + offsets, (low | (high << 4)).to(tl.uint8), mask=exists[:, None])
    elif bits == 1 or bits == 2:
        each: tl.constexpr = 8 // bits if count * bits >= 8 else count
        lanes = tl.reshape(fields, [rows, count // each, each])
        lanes = tl.sum(lanes << (bits * tl.arange(0, each))[None, None, :], 2)
        offsets = group[:, None] * (count // each) + tl.arange(0, count // each)[None, :]
        tl.store(ptr + offsets, lanes.to(tl.uint8), mask=exists[:, None])
    else:
        # Three or six bits: units of 24 bits, four as three words, two as three half words.
        share: tl.constexpr = 24 // bits
        units: tl.constexpr = count // share
        lanes = tl.reshape(fields, [rows, units, share])
        lanes = tl.sum(lanes << (bits * tl.arange(0, share))[None, None, :], 2)
        if units == 1:
            offsets = group[:, None] * 3 + tl.arange(0, 1)[None, :]
            for i in tl.static_range(3):
                byte = (lanes >> (8 * i)).to(tl.uint8)
                tl.store(ptr + offsets + i, byte, mask=exists[:, None])
        elif units % 4 == 0:
            words = ptr.to(tl.pointer_type(tl.int32))
            even, odd = tl.split(tl.reshape(lanes, [rows, units // 2, 2]))
            first, third = tl.split(tl.reshape(even, [rows, units // 4, 2]))
            second, fourth = tl.split(tl.reshape(odd, [rows, units // 4, 2]))
            offsets = (group[:, None] * (units // 4) + tl.arange(0, units // 4)[None, :]) * 3
            tl.store(words + offsets, first | (second << 24), mask=exists[:, None])
            middle = ((second >> 8) & 0xFFFF) | (third << 16)
            tl.store(words + offsets + 1, middle, mask=exists[:, None])
            last = ((third >> 16) & 0xFF) | (fourth << 8)
            tl.store(words + offsets + 2, last, mask=exists[:, None])
        else:
            words = ptr.to(tl.pointer_type(tl.int16))
            low, high = tl.split(tl.reshape(lanes, [rows, units // 2, 2]))
            offsets = (group[:, None] * (units // 2) + tl.arange(0, units // 2)[None, :]) * 3
            tl.store(words + offsets, low.to(tl.int16), mask=exists[:, None])
            middle = (low >> 16) | ((high & 0xFF) << 8)
            tl.store(words + offsets + 1, middle.to(tl.int16), mask=exists[:, None])
            tl.store(words + offsets + 2, (high >> 8).to(tl.int16), mask=exists[:, None])


@triton.jit
def _load_packed(ptr, group, exists, bits: tl.constexpr, count: tl.constexpr, rows: tl.constexpr):
    """Load what ``_store_packed`` stores."""
    mask = exists[:, None]
    if bits == 8:
        offsets = group[:, None] * count + tl.arange(0, count)[None, :]
        return tl.load(ptr + offsets, mask=mask, other=0).to(tl.int32)
    elif bits == 4:
        offsets = group[:, None] * (count // 2) + tl.arange(0, count // 2)[None, :]
        pairs = tl.load(ptr + offsets, mask=mask, other=0).to(tl.int32)
        return tl.reshape(tl.join(pairs & 15, pairs >> 4), [rows, count])
    elif bits == 1 or bits == 2:
        each: tl.constexpr = 8 // bits if count * bits >= 8 else count
        offsets = group[:, None] * (count // each) + tl.arange(0, count // each)[None, :]
        lanes = tl.load(ptr + offsets, mask=mask, other=0).to(tl.int32)
        fields = (lanes[:, :, None] >> (bits * tl.arange(0, each))[None, None, :]) & (2**bits - 1)
        return tl.reshape(fields, [rows, count])
    else:
        share: tl.constexpr = 24 // bits
        units: tl.constexpr = count // share
        if units == 1:
            offsets = group[:, None] * 3 + tl.arange(0, 1)[None, :]
            lanes = tl.load(ptr + offsets, mask=mask, other=0).to(tl.int32)
            lanes |= tl.load(ptr + offsets + 1, mask=mask, other=0).to(tl.int32) << 8
            lanes |= tl.load(ptr + offsets + 2, mask=mask, other=0).to(tl.int32) << 16
        else:
            words = ptr.to(tl.pointer_type(tl.int16))
            offsets = (group[:, None] * (units // 2) + tl.arange(0, units // 2)[None, :]) * 3
            first = tl.load(words + offsets, mask=mask, other=0).to(tl.int32) & 0xFFFF
            middle = tl.load(words + offsets + 1, mask=mask, other=0).to(tl.int32) & 0xFFFF
            last = tl.load(words + offsets + 2, mask=mask, other=0).to(tl.int32) & 0xFFFF
            low = first | ((middle & 0xFF) << 16)
            high = (middle >> 8) | (last << 8)
            lanes = tl.reshape(tl.join(low, high), [rows, units])
        fields = (lanes[:, :, None] >> (bits * tl.arange(0, share))[None, None, :]) & (2**bits - 1)
        return tl.reshape(fields, [rows, count])


@triton.jit
def _groups(count, rows: tl.constexpr):
    """Return the group numbers of a program and which exist."""
    group = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    return group, group < count


@triton.jit
def _fake_kernel(
    x_ptr, unit_ptr, out_ptr, count,
    plan: tl.constexpr, kind: tl.constexpr, few: tl.constexpr, sums: tl.constexpr,
    how: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    group, exists = _groups(count, rows)
    offsets = group[:, None] * plan.group + tl.arange(0, plan.group)[None, :]
    wide = tl.load(x_ptr + offsets, mask=exists[:, None], other=0).to(tl.float32)
    unit, down, up = _unit(unit_ptr, plan.two_level)
    q, refined, _, _, scale, second, _, good = _encode(wide, unit, down, plan, few, sums, rows)
    scale = scale[:, None]
    if plan.split:
        scale = tl.where(wide > 0, scale, second[:, None])
    original = unit
    if plan.two_level:
        original = tl.load(unit_ptr)
    value = _scaled_value(refined, scale, unit, down, up, original, kind, how, plan, True)
    signs = _bits(wide) & _SIGN
    if plan.element.integer:
        signs = tl.where(q > 0, signs, 0)  # an integer has one zero
    _store_values(out_ptr, group, exists, value, signs, good[:, None], kind, how, plan, rows)


@triton.jit
def _store_scale(ptr, group, exists, first, second, plan: tl.constexpr):
    """Store one scale a group, or two."""
    if plan.wide_scale:
        scales = ptr.to(tl.pointer_type(tl.int32))
        if plan.split:
            tl.store(scales + 2 * group, first, mask=exists)
            tl.store(scales + 2 * group + 1, second, mask=exists)
        else:
            tl.store(scales + group, first, mask=exists)
    elif plan.split:
        both = (first | (second << 8)).to(tl.int16)
        tl.store(ptr.to(tl.pointer_type(tl.int16)) + group, both, mask=exists)
    else:
        tl.store(ptr + group, first.to(tl.uint8), mask=exists)


@triton.jit
def _quantize_kernel(
    x_ptr, unit_ptr, codes_ptr, scales_ptr, meta_ptr, count,
    plan: tl.constexpr, few: tl.constexpr, sums: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    element: tl.constexpr = plan.element
    group, exists = _groups(count, rows)
    offsets = group[:, None] * plan.group + tl.arange(0, plan.group)[None, :]
    wide = tl.load(x_ptr + offsets, mask=exists[:, None], other=0).to(tl.float32)
    unit, down, _ = _unit(unit_ptr, plan.two_level)
    q, _, first, second, _, _, field, good = _encode(wide, unit, down, plan, few, sums, rows)
    _store_scale(
        scales_ptr, group, exists,
        tl.where(good, first, plan.nan), tl.where(good, second, plan.nan), plan,
    )  # fmt: skip
    if plan.metadata != 0:
        field = tl.where(good[:, None], field, 0)
        _store_packed(meta_ptr, group, exists, field, plan.metadata_bits, plan.subgroups, rows)
    code = _code(q, element)
    if plan.element.integer:
        code = tl.where(wide < 0, -code, code) & (2**plan.element.bits - 1)
    else:
        half: tl.constexpr = 2 ** (plan.element.bits - 1)
        code |= (_bits(wide) >> (32 - plan.element.bits)) & half
    code = tl.where(good[:, None], code, 0)
    _store_packed(codes_ptr, group, exists, code, plan.element.bits, plan.group, rows)


@triton.jit
def _scale_value(code, plan: tl.constexpr):
    """Return the value of a stored scale; any pattern is legal."""
    grid: tl.constexpr = plan.scale
    if plan.e8m0:
        return tl.where(code == 255, float("nan"), _power(code))
    top: tl.constexpr = 0x7FFFFFFF if plan.wide_scale else 127
    return tl.where(code == plan.nan, float("nan"), _decoded(code & top, grid))


@triton.jit
def _dequantize_kernel(
    codes_ptr, scales_ptr, meta_ptr, unit_ptr, out_ptr, count,
    plan: tl.constexpr, kind: tl.constexpr, how: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    element: tl.constexpr = plan.element
    group, exists = _groups(count, rows)
    code = _load_packed(codes_ptr, group, exists, plan.element.bits, plan.group, rows)
    half: tl.constexpr = 2 ** (plan.element.bits - 1)
    negative = (code & half) != 0
    if plan.element.integer:
        value = ((code ^ half) - half).to(tl.float32) * plan.element.least
        signs = _bits(value) & _SIGN
        value = tl.abs(value)
        negative = signs != 0
    else:
        signs = tl.where(negative, _SIGN, 0)
        value = _decoded(code & (half - 1), element)
    if plan.wide_scale:
        scales = scales_ptr.to(tl.pointer_type(tl.int32))
        each: tl.constexpr = 2 if plan.split else 1
        first = tl.load(scales + each * group, mask=exists, other=0)
        second = first
        if plan.split:
            second = tl.load(scales + 2 * group + 1, mask=exists, other=0)
    elif plan.split:
        first = tl.load(scales_ptr + 2 * group, mask=exists, other=0).to(tl.int32)
        second = tl.load(scales_ptr + 2 * group + 1, mask=exists, other=0).to(tl.int32)
    else:
        first = tl.load(scales_ptr + group, mask=exists, other=0).to(tl.int32)
        second = first
    scale = _scale_value(first, plan)[:, None]
    if plan.split:
        scale = tl.where(negative, _scale_value(second, plan)[:, None], scale)
    if plan.metadata != 0:
        field = _load_packed(meta_ptr, group, exists, plan.metadata_bits, plan.subgroups, rows)
        value = tl.reshape(value, [rows, plan.subgroups, plan.subgroup])
        if plan.metadata == _SG_EM:
            value *= (1.0 + 0.25 * field.to(tl.float32))[:, :, None]
        elif plan.metadata == _PAIR:
            value *= (1.0 - 0.5 * field.to(tl.float32))[:, :, None]
        else:
            keys, top = _keys(value, plan)
            refined = _refined(top, field, plan)[:, :, None]
            value = tl.where(keys == top[:, :, None], refined, value)
        value = tl.reshape(value, [rows, plan.group])
    unit, down, up = _unit(unit_ptr, plan.two_level)
    original = unit
    if plan.two_level:
        original = tl.load(unit_ptr)
    value = _scaled_value(value, scale, unit, down, up, original, kind, how, plan, False)
    good = scale == scale if plan.finite else value == value
    _store_values(out_ptr, group, exists, value, signs, good, kind, how, plan, rows)


# Both halves of a word: -0, 1, 6, 96, -96 and 2^-126 as bfloat16.
_MINUS_ZERO2 = tl.constexpr(-0x7FFF8000)
_ONE2 = tl.constexpr(0x3F803F80)
_SIX2 = tl.constexpr(0x40C040C0)
_PIVOT2 = tl.constexpr(0x42C042C0)
_MINUS_PIVOT2 = tl.constexpr(-0x3D3F3D40)
_LEAST_NORMAL2 = tl.constexpr(0x00800080)


@triton.jit
def _larger_half(words):
    """Return the largest half along the last axis, in the upper half; halves are not negative.

    A word orders by its upper half first; what its lower half adds to that order is masked.
    """
    return tl.maximum(tl.max(words, 2) & 0x7FFF0000, tl.max(words << 16, 2))


@triton.jit
def _words_encoded(words, plan: tl.constexpr):
    """Return |x| over the scale, E2M1 values, E8M0 bytes and finite groups, of [B, S, L / 2] words.

    All on two bfloat16 at once: |x| over the scale is exact, and 96 times the power of two at or
    below max(y, 1) gives y + 96 power a last bit of power / 2, the step of E2M1 there.
    """
    magnitude = words & 0x7FFF7FFF
    largest = tl.max(_larger_half(magnitude), 1)  # NaN orders above infinity
    good = largest < _INFINITE
    fitted = _fitted_power(_float(tl.where(good, largest, 0)), plan)
    inverse = (254 - fitted) * 0x00800080
    y = _fma2(magnitude, inverse[:, None, None], _MINUS_ZERO2)
    power = _max2(y & 0x7F807F80, _ONE2)
    q = _min2(_fma2(power, _MINUS_PIVOT2, _fma2(power, _PIVOT2, y)), _SIX2)
    return y, q, fitted, good


@triton.jit
def _words_top(y, q, plan: tl.constexpr):
    """Return top-1 of each subgroup: its lane, E2M1 value and metadata field [B, S], word mask."""
    element: tl.constexpr = plan.element
    fine: tl.constexpr = plan.fine
    last: tl.constexpr = plan.subgroup - 1
    word = tl.arange(0, plan.subgroup // 2)[None, None, :]
    # The last bits of a half of q take last - lane: the lowest index of equals is the largest.
    top = _larger_half(q | ((last - 1) * 0x10000 + last - 0x00020002 * word))
    lane = last - ((top >> 16) & last)
    hit = word == (lane >> 1)[:, :, None]
    pair = tl.sum(tl.where(hit, y, 0), 2)
    y_top = _float(tl.where((lane & 1) == 1, pair & -65536, pair << 16))
    q_top = _float(top & (-65536 * plan.subgroup))
    fine_code = _code(_nearest(tl.minimum(y_top, fine.largest), fine), fine)
    field = tl.minimum(tl.maximum(fine_code + 1 - 4 * _code(q_top, element), 0), 3)
    return lane, q_top, field, hit


@triton.jit
def word_offsets(group, plan: tl.constexpr):
    """Return the offsets of words [B, S, L / 2]."""
    half: tl.constexpr = plan.subgroup // 2
    inner = tl.arange(0, plan.subgroups)[:, None] * half + tl.arange(0, half)[None, :]
    return group[:, None, None] * (plan.group // 2) + inner[None, :, :]


@triton.jit
def words_faked(words, plan: tl.constexpr):
    """Return values of [B, S, L / 2] words of two bfloat16, and which groups are finite."""
    y, value, scale, good = _words_encoded(words, plan)
    if plan.metadata == _ELEM_EM:
        lane, q_top, field, hit = _words_top(y, value, plan)
        change = _bits(_refined(q_top, field, plan)) ^ _bits(q_top)  # in the upper half
        change = tl.where((lane & 1) == 1, change, change >> 16)
        value ^= tl.where(hit, change[:, :, None], 0)
    power = tl.where(scale > 0, scale << 7, 0x40) * 0x00010001  # 2^-127 is a subnormal
    value = _fma2(value | (words & -0x7FFF8000), power[:, None, None], _MINUS_ZERO2)
    return value, good


@triton.jit
def _words_fake_kernel(x_ptr, out_ptr, count, plan: tl.constexpr, rows: tl.constexpr):
    group, exists = _groups(count, rows)
    offsets = word_offsets(group, plan)
    mask = exists[:, None, None]
    value, good = words_faked(tl.load(x_ptr + offsets, mask=mask, other=0), plan)
    tl.store(out_ptr + offsets, tl.where(good[:, None, None], value, 0x7FC07FC0), mask=mask)


@triton.jit
def _words_quantize_kernel(
    x_ptr, codes_ptr, scales_ptr, meta_ptr, count, plan: tl.constexpr, rows: tl.constexpr
):
    group, exists = _groups(count, rows)
    words_quantized(x_ptr, codes_ptr, scales_ptr, meta_ptr, group, exists, plan, rows)


@triton.jit
def words_quantized(
    x_ptr, codes_ptr, scales_ptr, meta_ptr, group, exists, plan: tl.constexpr, rows: tl.constexpr
):
    """Quantize and pack groups of two bfloat16 a word."""
    offsets = word_offsets(group, plan)
    mask = exists[:, None, None]
    words = tl.load(x_ptr + offsets, mask=mask, other=0)
    y, q, scale, good = _words_encoded(words, plan)
    if plan.metadata == _ELEM_EM:
        _, _, field, _ = _words_top(y, q, plan)
        field = tl.where(good[:, None], field, 0)
        _store_packed(meta_ptr, group, exists, field, plan.metadata_bits, plan.subgroups, rows)
    tl.store(scales_ptr + group, tl.where(good, scale, 0xFF).to(tl.uint8), mask=exists)
    # As subnormals and small numbers of bfloat16, E2M1 values are their codes, 6 bits up.
    code = _fma2(q, _LEAST_NORMAL2, _MINUS_ZERO2)
    low = ((code >> 6) & 7) | ((words >> 12) & 8)
    high = ((code >> 18) & 0x70) | ((words >> 24) & 0x80)
    byte = tl.where(good[:, None, None], low | high, 0)
    tl.store(codes_ptr + offsets, byte.to(tl.uint8), mask=mask)


@triton.jit
def _half_away(x):
    """Round float64 to the nearest integer, ties away from zero."""
    magnitude = tl.abs(x)
    whole = tl.floor(magnitude)
    whole += tl.where(magnitude - whole >= 0.5, 1.0, 0.0)
    return tl.where(x < 0, -whole, whole)


@triton.jit
def _sided(x, s, inverse):
    """Return x / s as floor + {0, 1/4, 1/2, 3/4}, as the plain path does.

    Its products are exact there, so it does not matter whether they are fused, nor by how little
    the first guess of the floor is off.
    """
    whole = tl.floor(x * inverse)
    rest = x - whole * s
    whole = whole + tl.where(rest >= s, 1.0, 0.0) - tl.where(rest < 0, 1.0, 0.0)
    rest = x - whole * s
    part = tl.where(rest > 0, 0.25, 0.0)
    part = tl.where(2 * rest == s, 0.5, part)
    return whole + tl.where(2 * rest > s, 0.75, part)


@triton.jit
def _affine_ends(wide):
    """Return the largest and the least value of a group and which are finite, [B, 1]."""
    high = tl.reduce(wide, 1, _nan_max)
    low = tl.reduce(wide, 1, _nan_min)
    good = (high < float("inf")) & (low > -float("inf"))
    return tl.where(good, high, 0.0)[:, None], tl.where(good, low, 0.0)[:, None], good[:, None]


@triton.jit
def _affine_scales(high, low):
    """Return step (float32) and offset (float64) of any group."""
    high, low = high.to(tl.float64), low.to(tl.float64)
    # The difference, rounded to odd.
    total = high - low
    shadow = total - high
    error = (high - (total - shadow)) + (-low - shadow)
    bits = total.to(tl.int64, bitcast=True)
    move = (error != 0) & ((bits & 1) == 0)
    bits += tl.where(move, tl.where(error > 0, 1, -1), 0)
    step = (bits.to(tl.float64, bitcast=True) / 15.0).to(tl.float32)
    step = tl.where(step == 0, 1.0, step)
    s = step.to(tl.float64)
    return step, _half_away(_sided(low, s, 1.0 / s))


@triton.jit
def _affine_nearest(x, step, start):
    """Return x / step rounded, less ``start``, ties away from zero of that: |x / step| below 2^17.

    n is x / step rounded, or next to it, and rest = x - n step is exact: where n is 2 or more, both
    are multiples of the last place of step, and rest is no larger than step. So rest against half a
    step says where x / step lies.
    """
    n = (x * (1.0 / step) + 12582912.0) - 12582912.0
    rest = tl.fma(-n, step, x)
    q = n - start
    other = q + _float((_bits(rest) & _SIGN) | 0x3F800000)  # the next one on the side of rest
    middle = step * 0.5
    below = _float(_bits(middle) - 1)
    least = tl.where(tl.abs(other) > tl.abs(q), below, middle)
    return tl.where(tl.abs(rest) > least, other, q)


@triton.jit
def _affine_near_scales(high, low):
    """Return step and offset in float32, and whether they are right in all groups of a program.

    They are where high - low is exact, and quotients are no larger than ``_affine_nearest`` takes;
    16-bit types rarely have others. With the remainder, the quotient by 15 is rounded correctly.
    """
    total = high - low
    shadow = total - high
    error = (high - (total - shadow)) + (-low - shadow)
    quotient = total * (1.0 / 15.0)
    step = tl.fma(tl.fma(quotient, -15.0, total), 1.0 / 15.0, quotient)
    step = tl.where(total == 0, 1.0, step)
    offset = _affine_nearest(low, step, 0.0)
    near = (error == 0) & (step > 2.0**-80) & (step < 2.0**80) & (tl.abs(offset) < 65000.0)
    return step, offset, tl.min(tl.min(near.to(tl.int32), 1), 0) == 1


@triton.jit
def _affine_near(x, step, offset, plan: tl.constexpr):
    """Return q [B, G], float32, where ``_affine_near_scales`` serves."""
    half: tl.constexpr = 2.0 ** (plan.element.bits - 1)
    return tl.minimum(tl.maximum(_affine_nearest(x, step, offset + half), -half), half - 1)


@triton.jit
def _affine_far(x, step, offset, plan: tl.constexpr):
    """Return q [B, G], float64, of any finite x."""
    half: tl.constexpr = 2.0 ** (plan.element.bits - 1)
    s = step.to(tl.float64)
    q = _half_away(_sided(x.to(tl.float64), s, 1.0 / s) - offset - half)
    return tl.minimum(tl.maximum(q, -half), half - 1)


@triton.jit
def _affine_values(q, step, offset, kind: tl.constexpr, plan: tl.constexpr):
    """Return (q + half + offset) * step as the float32 from which ``kind`` is one rounding."""
    half: tl.constexpr = 2.0 ** (plan.element.bits - 1)
    exact = (q + half + offset) * step.to(tl.float64)
    value = exact.to(tl.float32)
    if kind != tl.float32:
        error = exact - value.to(tl.float64)
        bits = _bits(value)
        move = (error != 0) & ((bits & 1) == 0) & ((bits & 0x7FFFFFFF) < _INFINITE)
        outward = tl.where((error > 0) == (value > 0), 1, -1)
        tiny = tl.where(error > 0, 1, -2147483647)
        bits = tl.where(move, tl.where(value == 0, tiny, bits + outward), bits)
        value = _float(bits)
    return value


@triton.jit
def _affine_near_values(q, step, offset, kind: tl.constexpr, plan: tl.constexpr):
    """Return the same where ``_affine_near_scales`` serves, in float32."""
    half: tl.constexpr = 2.0 ** (plan.element.bits - 1)
    whole = q + (half + offset)
    value = whole * step
    if kind == tl.bfloat16:  # 2^16 above, the last bit of a float32 is that of the result
        large = _float(((_bits(value) & _INFINITE) + (16 << 23)) | 0x400000)
        value = tl.fma(whole, step, large) - large
    if kind == tl.float16:
        error = tl.fma(whole, step, -value)
        bits = _bits(value)
        move = (error != 0) & ((bits & 1) == 0)
        value = _float(bits + tl.where(move, tl.where((error > 0) == (value > 0), 1, -1), 0))
    return value


@triton.jit
def _affine_fake_kernel(
    x_ptr, out_ptr, count, plan: tl.constexpr, kind: tl.constexpr, rows: tl.constexpr
):
    group, exists = _groups(count, rows)
    offsets = group[:, None] * plan.group + tl.arange(0, plan.group)[None, :]
    wide = tl.load(x_ptr + offsets, mask=exists[:, None], other=0).to(tl.float32)
    high, low, good = _affine_ends(wide)
    x = tl.where(good, wide, 0.0)
    step, near, serves = _affine_near_scales(high, low)
    if serves:
        value = _affine_near_values(_affine_near(x, step, near, plan), step, near, kind, plan)
    else:
        step, offset = _affine_scales(high, low)
        value = _affine_values(_affine_far(x, step, offset, plan), step, offset, kind, plan)
    signs = _bits(value) & _SIGN
    _store_values(out_ptr, group, exists, tl.abs(value), signs, good, kind, _CONVERT, plan, rows)


@triton.jit
def _affine_quantize_kernel(
    x_ptr, codes_ptr, scales_ptr, count, plan: tl.constexpr, rows: tl.constexpr
):
    group, exists = _groups(count, rows)
    offsets = group[:, None] * plan.group + tl.arange(0, plan.group)[None, :]
    wide = tl.load(x_ptr + offsets, mask=exists[:, None], other=0).to(tl.float32)
    high, low, good = _affine_ends(wide)
    x = tl.where(good, wide, 0.0)
    step, near, serves = _affine_near_scales(high, low)
    offset = near.to(tl.float64)
    if serves:
        q = _affine_near(x, step, near, plan)
    else:
        step, offset = _affine_scales(high, low)
        q = _affine_far(x, step, offset, plan).to(tl.float32)
    mask: tl.constexpr = 2**plan.element.bits - 1
    code = tl.where(good, q.to(tl.int32) & mask, 0)
    _store_packed(codes_ptr, group, exists, code, plan.element.bits, plan.group, rows)
    words = scales_ptr.to(tl.pointer_type(tl.int32)) + 3 * group[:, None]
    there = exists[:, None]
    tl.store(words, tl.where(good, _bits(step), plan.nan), mask=there)
    wide_offset = tl.where(good, offset, 0.0).to(tl.int64, bitcast=True)
    tl.store(words + 1, wide_offset.to(tl.int32), mask=there)
    tl.store(words + 2, (wide_offset >> 32).to(tl.int32), mask=there)


@triton.jit
def _affine_dequantize_kernel(
    codes_ptr, scales_ptr, out_ptr, count, plan: tl.constexpr, kind: tl.constexpr,
    rows: tl.constexpr,
):  # fmt: skip
    group, exists = _groups(count, rows)
    there = exists[:, None]
    code = _load_packed(codes_ptr, group, exists, plan.element.bits, plan.group, rows)
    half: tl.constexpr = 2 ** (plan.element.bits - 1)
    q = ((code ^ half) - half).to(tl.float64)
    words = scales_ptr.to(tl.pointer_type(tl.int32)) + 3 * group[:, None]
    step = _float(tl.load(words, mask=there, other=0))
    low = tl.load(words + 1, mask=there, other=0).to(tl.int64) & 0xFFFFFFFF
    high = tl.load(words + 2, mask=there, other=0).to(tl.int64) << 32
    offset = (low | high).to(tl.float64, bitcast=True)
    value = _affine_values(q, step, offset, kind, plan)
    signs = _bits(value) & _SIGN
    _store_values(
        out_ptr, group, exists, tl.abs(value), signs, value == value, kind, _CONVERT, plan, rows
    )


@triton.jit
def _largest_kernel(x_ptr, out_ptr, count, size: tl.constexpr, loops: tl.constexpr):
    """Take the largest finite magnitude into an int32 that starts as 0."""
    start = tl.program_id(0).to(tl.int64) * size * loops
    found = tl.zeros([size], tl.int32)
    for i in range(loops):
        offsets = start + i * size + tl.arange(0, size)
        wide = tl.load(x_ptr + offsets, mask=offsets < count, other=0).to(tl.float32)
        bits = _bits(wide) & 0x7FFFFFFF
        found = tl.maximum(found, tl.where(bits < _INFINITE, bits, 0))
    tl.atomic_max(out_ptr, tl.max(found, 0))


_KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
_FRACTION = {torch.bfloat16: (7, -133), torch.float16: (10, -24), torch.float32: (23, -149)}
_VALUES_A_PROGRAM = 1024
_WARPS = 2


def _shape(plan: Plan) -> tuple[int, int]:
    """Return values and warps of a program that quantizes, the fastest of those tried on an H200.

    The power-of-two search has most registers, and gains by small programs; two scales a group have
    most to compute for a whole group.
    """
    if plan.metadata == _SG_EM.value and plan.e8m0:
        return 512, 1
    return (2048, 4) if plan.split else (_VALUES_A_PROGRAM, _WARPS)


def _how(plan: Plan, dtype: torch.dtype, own: bool) -> int:
    """Return how values become ``dtype``: _FITS, _CONVERT or _ADD.

    ``own``: they were quantized from that type. A power-of-two scale then leaves x a multiple of a
    step that the type has, and so is what x rounds to.
    """
    if dtype == torch.float32:
        return _CONVERT.value
    if plan.two_level or plan.wide_scale:
        return _ADD.value
    mantissa, lowest = _FRACTION[dtype]
    least = plan.lowest if own and plan.e8m0 and not plan.metadata else lowest
    fits = dtype == torch.bfloat16 and plan.exact_in(mantissa, min(lowest, least))
    return _FITS.value if fits else _CONVERT.value


def _sums(plan: Plan, dtype: torch.dtype) -> tl.dtype:
    """Return the type in which the sums of the weight search are exact.

    With E8M0 and bfloat16 a lane's gain is a multiple of 2^-13, and at most y^2 < 64: 19 bits, and
    24 for a group of 32.
    """
    below_8 = plan.e8m0 and not plan.down  # one rule rounds the scale so far down that y exceeds 8
    exact = dtype == torch.bfloat16 and below_8 and plan.group <= 32 and not plan.view
    return tl.float32 if exact else tl.float64


def takes_words(plan: Plan, x: Tensor) -> bool:
    """Whether the kernels that compute on two bfloat16 a word serve.

    Where that saves most: E2M1 under power-of-two scales, whose quotients by them are bfloat16.
    """
    e2m1 = (plan.element.bits, plan.element.mantissa, plan.element.bias) == (4, 1, 1)
    plain = not (plan.split or plan.away or plan.metadata > 1) and plan.subgroup % 2 == 0
    lanes = plan.subgroup <= 64 or not plan.metadata  # free bits of a half for their numbers
    aligned = x.dtype == torch.bfloat16 and x.data_ptr() % 4 == 0
    return plan.e8m0 and e2m1 and plain and lanes and aligned


def as_words(values: Tensor) -> Tensor:
    """Return a contiguous, aligned tensor as int32 words."""
    return values.view(torch.int32)


class TritonKernels:
    """The kernels of one plan; see ``Kernels``."""

    name = "triton"

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        values, self.warps = _shape(plan)
        self.rows = max(1, values // plan.group)
        self.plain_rows = max(1, _VALUES_A_PROGRAM // plan.group)

    def _grid(self, count: int) -> tuple[int]:
        return (triton.cdiv(count, self.rows),)

    def largest(self, groups: Tensor) -> Tensor:
        """Return the largest finite magnitude, a float32 scalar."""
        return _largest(groups)

    def quantize(
        self, groups: Tensor, codes: Tensor, scales: Tensor, meta: Tensor, unit: Tensor | None
    ) -> None:
        """Quantize contiguous groups [n, group] into contiguous planes [n, bytes]."""
        if not len(groups):
            return
        with _on(groups):
            if self.plan.affine:
                _affine_quantize_kernel[self._grid(len(groups))](
                    groups, codes, scales, len(groups), self.plan, self.rows, num_warps=self.warps
                )
            elif takes_words(self.plan, groups):
                _words_quantize_kernel[self._grid(len(groups))](
                    as_words(groups), codes, scales, meta, len(groups), self.plan, self.rows,
                    num_warps=self.warps,
                )  # fmt: skip
            else:
                _quantize_kernel[self._grid(len(groups))](
                    groups, scales if unit is None else unit, codes, scales, meta, len(groups),
                    self.plan, groups.dtype != torch.float32, _sums(self.plan, groups.dtype),
                    self.rows, num_warps=self.warps,
                )  # fmt: skip

    def fake_quantize(self, groups: Tensor, values: Tensor, unit: Tensor | None) -> None:
        """Quantize and dequantize contiguous groups [n, group] into ``values``."""
        if not len(groups):
            return
        with _on(groups):
            if self.plan.affine:
                _affine_fake_kernel[self._grid(len(groups))](
                    groups, as_words(values), len(groups), self.plan, _KINDS[groups.dtype],
                    self.rows, num_warps=self.warps,
                )  # fmt: skip
            elif takes_words(self.plan, groups):
                _words_fake_kernel[self._grid(len(groups))](
                    as_words(groups), as_words(values), len(groups), self.plan, self.rows,
                    num_warps=self.warps,
                )  # fmt: skip
            else:
                _fake_kernel[self._grid(len(groups))](
                    groups, groups if unit is None else unit, as_words(values), len(groups),
                    self.plan, _KINDS[groups.dtype], groups.dtype != torch.float32,
                    _sums(self.plan, groups.dtype), _how(self.plan, groups.dtype, True),
                    self.rows, num_warps=self.warps,
                )  # fmt: skip

    def dequantize(
        self, codes: Tensor, scales: Tensor, meta: Tensor, values: Tensor, unit: Tensor | None
    ) -> None:
        """Dequantize contiguous planes into ``values`` [n, group]."""
        if not len(values):
            return
        with _on(values):
            if self.plan.affine:
                _affine_dequantize_kernel[(triton.cdiv(len(values), self.plain_rows),)](
                    codes, scales, as_words(values), len(values), self.plan, _KINDS[values.dtype],
                    self.plain_rows, num_warps=_WARPS,
                )  # fmt: skip
            else:
                _dequantize_kernel[(triton.cdiv(len(values), self.plain_rows),)](
                    codes, scales, meta, codes if unit is None else unit, as_words(values),
                    len(values), self.plan, _KINDS[values.dtype],
                    _how(self.plan, values.dtype, False), self.plain_rows, num_warps=_WARPS,
                )  # fmt: skip


def _largest(values: Tensor) -> Tensor:
    """Return the largest finite magnitude of contiguous values, a float32 scalar."""
    found = torch.zeros(1, dtype=torch.int32, device=values.device)
    size, loops = 2048, 16
    if values.numel():
        with _on(values):
            _largest_kernel[(triton.cdiv(values.numel(), size * loops),)](
                values, found, values.numel(), size, loops, num_warps=4
            )
    return found.view(torch.float32)[0]


def probe(device: torch.device) -> None:
    """Compile and start a small kernel; whatever Triton lacks is raised."""
    _largest(torch.zeros(1, dtype=torch.float32, device=device))


def _on(x: Tensor) -> torch.cuda.device_of:
    return torch.cuda.device_of(x)


@cache
def kernels_of(plan: Plan) -> TritonKernels:
    """Return the kernels of a plan."""
    return TritonKernels(plan)
