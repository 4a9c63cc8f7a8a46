"""The accumulators of products: one FP32 rounding an addend, or exact sums in fixed point."""

import torch
from torch import Tensor

from m2xfp.golden.formats.numeric import (
    add_to_odd,
    exponent,
    joint_scale,
    power_of_two,
    round_once,
    widen,
)
from m2xfp.golden.formats.operands import Operand, class_terms, scale_products

__all__ = ["DIGITS", "accumulate", "accumulated", "add_to_digits", "rounded", "total_of"]

_QUIET_NAN = 0x7FC00000


def accumulate(acc: Tensor, addend: Tensor, rest: Tensor | None = None) -> Tensor:
    """Return RNE_fp32(acc + addend), one rounding of the exact sum.

    Parameters
    ----------
    acc
        float32.
    addend
        float64, exact; NaN or a NaN in acc gives the quiet NaN, zero returns acc unchanged.
    rest
        float64 of the sign of ``addend``, which is added to it exactly; for sums of more bits.
    """
    if rest is not None:
        return _accumulate_wide(acc, addend, rest)
    total = round_once(add_to_odd(widen(acc), addend), torch.float32)
    return _one_nan(torch.where(addend == 0, acc, total))


def _accumulate_wide(acc: Tensor, addend: Tensor, rest: Tensor) -> Tensor:
    """Return RNE_fp32(acc + addend + rest) by way of fixed point."""
    digits = torch.zeros(DIGITS, *addend.shape, dtype=torch.int64, device=addend.device)
    for term in (widen(acc), addend, rest):
        add_to_digits(digits, torch.where(term.isfinite(), term, 0.0))
    total = rounded(total_of(digits), addend.isnan())
    stays = acc.isinf() & ~addend.isnan() | (addend == 0) & (rest == 0)
    return _one_nan(torch.where(stays | acc.isnan(), acc, total))


def _one_nan(x: Tensor) -> Tensor:
    """Replace every NaN of a float32 tensor by 0x7FC00000."""
    nan = torch.tensor(_QUIET_NAN, dtype=torch.int32, device=x.device).view(torch.float32)
    return torch.where(x.isnan(), nan, x)


class _Fp32Accumulator:
    """One rounding an addend."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.acc = torch.zeros(shape, dtype=torch.float32, device=device)

    def add(self, products: Tensor, *scales: Tensor) -> None:
        self.acc = accumulate(self.acc, *(products * scale for scale in scales))

    def result(self) -> Tensor:
        return self.acc


_DIGIT = 32

_LOWEST = -352  # two scales of 2^-127, two elements of 2^-16, 52 bits below the first of those

DIGITS = 23  # up to 2^384: two scales of 2^127, products below 2^37, 2^29 of them, a sign


def add_to_digits(digits: Tensor, value: Tensor) -> None:
    """Add float64 values that are no NaN to fixed-point numbers [digits, ...], in place.

    Fixed point over the whole range that float64 can place: 32-bit digits, kept in int64. A digit
    takes 2^30 additions before its carries have to move on; every addend of at most 53 bits falls
    into three digits.
    """
    # |value| = significand * 2^place, 53 bits, exactly
    place = torch.where(value == 0, _LOWEST, exponent(value) - 52)
    significand = (value * power_of_two(-place)).long()
    digit, shift = (place - _LOWEST) // _DIGIT, (place - _LOWEST) % _DIGIT
    mask = (1 << _DIGIT) - 1
    low, high = significand & mask, significand >> _DIGIT  # high carries the sign
    for offset, part in ((0, low << shift), (1, high << shift)):
        for step, piece in ((0, part & mask), (1, part >> _DIGIT)):
            index = (digit + offset + step).unsqueeze(0)
            digits.scatter_add_(0, index, piece.unsqueeze(0))


def total_of(number: Tensor) -> Tensor:
    """Return fixed-point numbers as float64, rounded to odd: they can be rounded or compared."""
    digits = list(number)
    negative = torch.zeros_like(digits[0], dtype=torch.bool)
    for turn in range(2):  # the second turn, on the negated digits, gives the magnitude
        carry = torch.zeros_like(digits[0])
        for i, digit in enumerate(digits[:-1]):
            total = digit + carry
            carry = total >> _DIGIT
            digits[i] = total - (carry << _DIGIT)
        digits[-1] = digits[-1] + carry
        if turn == 0:
            negative = digits[-1] < 0
            digits = [torch.where(negative, -digit, digit) for digit in digits]
    # From the top: the first 53 bits or so and whether anything follows decide the rounding.
    value = torch.zeros_like(digits[0], dtype=torch.float64)
    for i in reversed(range(DIGITS)):
        value = add_to_odd(value, digits[i].double() * 2.0 ** (_LOWEST + _DIGIT * i))
    return torch.where(negative, -value, value)


class _ExactAccumulator:
    """Fixed point, see ``add_to_digits``; one rounding at the end."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._digits = torch.zeros(DIGITS, *shape, dtype=torch.int64, device=device)
        self._nan = torch.zeros(shape, dtype=torch.bool, device=device)
        self._infinite = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, products: Tensor, *scales: Tensor) -> None:
        for value in (products * scale for scale in scales):
            self._nan |= value.isnan()
            self._infinite = torch.where(value.isinf(), self._infinite + value, self._infinite)
            add_to_digits(self._digits, value.where(value.isfinite(), 0.0))

    def result(self) -> Tensor:
        infinite = self._infinite != 0  # of both signs: NaN
        total = torch.where(infinite, self._infinite, total_of(self._digits))
        return rounded(total, self._nan | total.isnan())


def rounded(total: Tensor, nan: Tensor) -> Tensor:
    """Round sums to float32, once."""
    return round_once(total.masked_fill(nan, float("nan")), torch.float32)


def _finish(acc: Tensor, a: Operand, w: Operand) -> Tensor:
    """Apply the tensor scales: g_a * g_w rounded to float32, then one float32 product.

    An operand of one level has none, which is 1.
    """
    g = joint_scale(a.tensor_scale, w.tensor_scale)
    return acc if g is None else round_once(widen(acc) * widen(g), torch.float32)


def accumulated(
    a: Operand,
    w: Operand,
    accumulator: str,
    lanes: int,
    outer: bool,
    initial: Tensor | None = None,
    wide: bool = False,
) -> Tensor:
    """Accumulate over groups: row by row, or (``outer``) every row with every row.

    ``wide``: scales are float32 numbers on both sides.
    """
    shape = (len(a.scales), len(w.scales)) if outer else (len(a.scales),)
    acc: _ExactAccumulator | _Fp32Accumulator
    if accumulator == "exact":
        acc = _ExactAccumulator(shape, a.scales.device)
    else:
        acc = _Fp32Accumulator(shape, a.scales.device)
        if initial is not None:
            acc.acc = initial
    for g in range(a.scales.shape[1]):
        for one, other in class_terms(a, w):
            sa, sw = a.scales[:, g, one], w.scales[:, g, other]
            scales = scale_products(sa[:, None] if outer else sa, sw, wide)
            xs, ys = a.of_class(one, g), w.of_class(other, g)
            for start in range(0, xs.shape[1], lanes):
                xa, xw = xs[:, start : start + lanes], ys[:, start : start + lanes]
                # Exact whatever the order: every partial sum is a small multiple of one power of
                # two.
                acc.add(xa @ xw.T if outer else (xa * xw).sum(-1), *scales)
    return _finish(acc.result(), a, w)
