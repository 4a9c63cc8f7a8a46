"""Exact helpers on float64 tensors: exponents from bits, powers of two, single roundings.

The plain path of the golden model computes in float64, because there everything it needs is exact:
float32, bfloat16 and float16 values, subnormals included, are normal float64 numbers, and so are
their products and quotients with every scale.

**Quotients decide exactly.** ``x / s`` is correctly rounded to 53 bits. With x of at most 24
significant bits, s of at most 31 (an E4M3 scale times a float32 tensor scale times 1 + k/4) and a
rounding threshold t of at most 9, the exact quotient differs from t either by nothing, and then the
division is exact, or by more than 2^-42 of t, and then rounding to 53 bits cannot reach t.

**Subnormals** of narrower types are made and read as integers (``widen``, ``round_once``), since a
processor can be told to flush them (``torch.set_flush_denormal``). float64 meets none in here.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "ROUNDINGS",
    "add_to_odd",
    "exponent",
    "joint_scale",
    "pack_bits",
    "power_of_two",
    "round_half_away",
    "round_half_zero",
    "round_once",
    "round_product",
    "unpack_bits",
    "widen",
]

_FRACTION_BITS = 52
_BIAS = 1023
# Whole numbers of the same size, mantissa and exponent bits.
_LAYOUTS = {
    torch.float32: (torch.int32, 23, 8),
    torch.bfloat16: (torch.int16, 7, 8),
    torch.float16: (torch.int16, 10, 5),
}


def exponent(x: Tensor) -> Tensor:
    """Return floor(log2 |x|) of finite normal float64 values as int64; zero gives -1023."""
    return ((x.view(torch.int64) >> _FRACTION_BITS) & 0x7FF) - _BIAS


def power_of_two(e: Tensor) -> Tensor:
    """Return 2^e as float64 for int64 ``e`` in -1022..1023, exactly."""
    return ((e + _BIAS) << _FRACTION_BITS).view(torch.float64)


def round_half_away(x: Tensor) -> Tensor:
    """Round float64 to the nearest integer, ties away from zero.

    Adding a half and truncating would round 0.49999999999999994 up; the fraction is exact.
    """
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0.0)


def round_half_zero(x: Tensor) -> Tensor:
    """Round float64 to the nearest integer, ties towards zero."""
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() > 0.5, x.sign(), 0.0)


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "even": torch.round,
    "away": round_half_away,
    "zero": round_half_zero,
}
"""What rounds float64 to whole numbers, by what it does with ties."""


def _to_odd(value: Tensor, error: Tensor) -> Tensor:
    """Move float64 ``value``, the nearest to value + error, to the neighbour with an odd last bit.

    Rounding to odd keeps the information that a result was inexact and on which side, so that a
    later rounding to a type with at least two bits less equals one rounding of the exact number.
    """
    bits = value.view(torch.int64)
    inexact = error.isfinite() & (error != 0) & value.isfinite()
    # The even one of two neighbours is left towards the error; away from zero is +1 in the bits.
    outward = (error > 0) == (value > 0)
    moved = bits + torch.where(outward, 1, -1)
    return torch.where(inexact & (bits & 1 == 0), moved, bits).view(torch.float64)


def add_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b in float64 rounded to odd; ``round_once`` of it rounds the exact sum once.

    Infinite and NaN operands follow IEEE 754; a sum of exactly zero is +0 unless both are -0.
    """
    total = a + b
    # Knuth's two-sum: the rounding error of a float64 addition is itself a float64 number.
    shadow = total - a
    error = (a - (total - shadow)) + (b - shadow)
    return _to_odd(total, error)


def widen(x: Tensor) -> Tensor:
    """Return floating-point values as float64, exactly, subnormals included."""
    if x.is_cuda or x.dtype not in _LAYOUTS:  # GPUs do not flush in conversions
        return x.double()
    whole, mantissa, exponent_bits = _LAYOUTS[x.dtype]
    bits = x.view(whole)
    tiny = (bits & (((1 << exponent_bits) - 1) << mantissa)) == 0
    step = 2.0 ** (2 - (1 << (exponent_bits - 1)) - mantissa)
    small = (bits & ((1 << mantissa) - 1)).double() * step
    return torch.where(tiny, torch.where(bits < 0, -small, small), x.double())


def round_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to ``dtype`` once: nearest, ties to even, overflow to infinity.

    Subnormal results are kept, zeros keep their sign, every NaN becomes the positive quiet NaN
    without payload. PyTorch converts float64 to bfloat16 and float16 by way of float32, two
    roundings, gives several NaNs, and loses subnormals where the processor flushes them.
    """
    if dtype == torch.float64:
        return x
    if x.is_cuda and dtype == torch.float32:
        return x.to(dtype).masked_fill(x.isnan(), float("nan"))
    whole, mantissa, exponent_bits = _LAYOUTS[dtype]
    bias = (1 << (exponent_bits - 1)) - 1
    # The power of two beyond the largest number has the pattern of infinity.
    magnitude = x.abs().clamp(max=2.0 ** (bias + 1))
    e = exponent(magnitude).clamp(min=1 - bias, max=bias + 1)
    steps = (magnitude * power_of_two(mantissa - e)).round().nan_to_num(0.0).long()
    # A normal significand holds its hidden bit, so adding the exponent field carries by itself.
    bits = ((e - (1 - bias)) << mantissa) + steps
    bits = torch.where(x.view(torch.int64) < 0, bits - (1 << (mantissa + exponent_bits)), bits)
    quiet = ((1 << (exponent_bits + 1)) - 1) << (mantissa - 1)
    return torch.where(x.isnan(), quiet, bits).to(whole).view(dtype)


def joint_scale(*scales: Tensor | None) -> Tensor | None:
    """Return the product of tensor scales, rounded once to float32; None where there are none."""
    given = [widen(scale) for scale in scales if scale is not None]
    if not given:
        return None
    return round_once(given[0] if len(given) == 1 else given[0] * given[1], torch.float32)


def round_product(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 results once to a narrower type, as ``round_once`` does; float32 stays."""
    if dtype == torch.float32:
        return x
    if dtype == torch.bfloat16:  # a flushing processor would lose its subnormals
        bits = x.view(torch.int32)
        bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(torch.int16)
        return bits.view(dtype).masked_fill(x.isnan(), float("nan"))
    return x.to(dtype).masked_fill(x.isnan(), float("nan"))


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of ``bits`` bits, little-endian, element 0 in the lowest bits.

    Parameters
    ----------
    codes
        [..., n] integers in 0..2^bits - 1.
    bits
        Width of a code, at most 8.

    Returns
    -------
    uint8 [..., ceil(n * bits / 8)]; the last byte is filled with zeros.
    """
    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes
    if bits == 4 and codes.shape[-1] % 2 == 0:
        return codes[..., 0::2] | (codes[..., 1::2] << 4)
    places = torch.arange(bits, device=codes.device, dtype=torch.uint8)
    stream = ((codes.unsqueeze(-1) >> places) & 1).flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8)).unflatten(-1, (-1, 8))
    weights = torch.arange(8, device=codes.device, dtype=torch.uint8)
    return (stream << weights).sum(-1, dtype=torch.uint8)


def unpack_bits(planes: Tensor, bits: int, count: int) -> Tensor:
    """Return the first ``count`` codes of ``pack_bits`` as int64 [..., count]."""
    if bits == 8:
        return planes[..., :count].long()
    if bits == 4 and count == 2 * planes.shape[-1]:
        return torch.stack((planes & 15, planes >> 4), -1).flatten(-2).long()
    places = torch.arange(8, device=planes.device, dtype=torch.uint8)
    stream = ((planes.unsqueeze(-1) >> places) & 1).flatten(-2)
    fields = stream[..., : count * bits].unflatten(-1, (count, bits))
    weights = torch.arange(bits, device=planes.device, dtype=torch.uint8)
    return (fields << weights).sum(-1, dtype=torch.uint8).long()
