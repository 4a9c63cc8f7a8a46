"""Shared scales: from the largest magnitude of a group to stored codes, and back.

Two kinds: a power of two chosen by a rule (E8M0), and a non-negative minifloat nearest to amax / M
(E4M3, E5M2, float32). Stored codes are int64; a NaN group has the description's NaN pattern.

Sources: OCP Microscaling Formats (MX) v1.0, section 6.3; M2XFP, arXiv 2601.19213, section 6.4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from m2xfp.formats import E2M1, E8M0, FloatElement, IntElement, Scale
from m2xfp.golden.formats.elements import decode_magnitude, encode_magnitude
from m2xfp.golden.formats.numeric import exponent, power_of_two, round_once, widen

__all__ = ["MinifloatScale", "PowerOfTwoScale", "SharedScale"]


@dataclass(frozen=True)
class PowerOfTwoScale:
    """E8M0: 2^(byte - 127), byte 0..254; 0xFF is NaN.

    Members
    -------
    element
        The element that the scale serves: M is its largest value, emax the exponent of its largest
        power of two. With amax = m * 2^f, 1 <= m < 2, all decisions below are exact.
    rule
        ``floor``: f - emax (OCP). ``ceil``: ceil(log2(amax / M)). ``rtn1``: round(log2(amax / M)).
        ``rtn2``: round(log2(amax)) - emax. ``even``: floor, plus one if amax would round up to the
        next power of two in the element's precision. ``even-e2m1``: the same in E2M1's precision,
        whatever the element.
    zero
        The byte of an all-zero group.
    """

    element: FloatElement | IntElement
    rule: str = "floor"
    zero: int = 0
    nan: int = E8M0.nan

    @property
    def precision(self) -> int:
        """Fraction bits that the rule ``even`` rounds amax to."""
        element = E2M1 if self.rule == "even-e2m1" else self.element
        return element.fraction_bits_at_top

    def fit(self, amax: Tensor, unit: Tensor) -> Tensor:
        """Return the byte for each finite ``amax`` (float64, exact); ``unit`` is 1 here."""
        f = exponent(amax)
        m = amax * power_of_two(-f.clamp(min=-1022))
        top = float(self.element.max_value / 2**self.element.emax)
        if self.rule == "ceil":
            f = f + (m > top).long()
        elif self.rule == "rtn1":
            f = f + (m * m > 2 * top * top).long() - (2 * m * m < top * top).long()
        elif self.rule == "rtn2":
            f = f + (m * m > 2).long()
        elif self.rule in ("even", "even-e2m1"):
            f = f + (m >= 2 - 2.0 ** -(self.precision + 1)).long()
        code = (f - self.element.emax + E8M0.bias).clamp(0, 254)
        return torch.where(amax == 0, self.zero, code)

    def divide(self, x: Tensor, scale: Tensor, unit: Tensor) -> Tensor:
        """Return x / (scale * unit), float64."""
        return x / (scale * unit)

    def value(self, codes: Tensor) -> Tensor:
        """Return the scales of stored bytes as float64."""
        finite = power_of_two(codes - E8M0.bias)
        return torch.where(codes == self.nan, float("nan"), finite)

    def candidates(self, codes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return byte - 1, byte, byte + 1, each with a mask of where it is allowed."""
        shifted = [codes - 1, codes, codes + 1]
        return [(code, (code >= 0) & (code <= 254)) for code in shifted]


@dataclass(frozen=True)
class MinifloatScale:
    """The non-negative minifloat nearest to amax / (M * unit), from the exact quotient, saturating.

    Members
    -------
    scale
        The stored scale; ``scale.grid`` is the minifloat.
    element
        The element that the scale serves; M is its largest value.
    ties
        ``even``, ``away`` or ``zero``.
    zero_is_one
        A scale that rounds to zero becomes 1 (MX-QLLM); otherwise it stays zero (NVFP4).
    least
        The smallest code that is given, of a group of zeros too.
    quotient
        ``exact``, or ``reciprocal``: amax / M, over the tensor scale if there is one, rounds to
        float32 after each step, and values are scaled by the float32 reciprocal of the scale.
    """

    scale: Scale
    element: FloatElement | IntElement
    ties: str = "even"
    zero_is_one: bool = False
    least: int = 0
    quotient: str = "exact"

    @property
    def nan(self) -> int:
        """Stored pattern of a NaN group."""
        return self.scale.nan

    @property
    def grid(self) -> FloatElement:
        """The minifloat that holds the scale."""
        assert self.scale.grid is not None
        return self.scale.grid

    def fit(self, amax: Tensor, unit: Tensor) -> Tensor:
        """Return the code for each finite ``amax`` (float64); ``unit`` is the tensor scale or 1."""
        largest = float(self.element.max_value)
        if self.quotient == "reciprocal":
            wanted = _single(_single(amax / largest) / unit)
        else:
            wanted = amax / (largest * unit)
        code = encode_magnitude(wanted, self.grid, self.ties)
        if self.zero_is_one:
            code = torch.where(code == 0, self.grid.bias << self.grid.mantissa_bits, code)
        return code.clamp(min=self.least)

    def divide(self, x: Tensor, scale: Tensor, unit: Tensor) -> Tensor:
        """Return x / (scale * unit), float64; zeros with the signs of x where the scale is zero."""
        if self.quotient == "reciprocal":
            y = _single(x * _single(_single(1 / unit) / scale))
        else:
            y = x / (scale * unit)
        return torch.where((scale > 0) & (x != 0), y, x * 0.0)

    def value(self, codes: Tensor) -> Tensor:
        """Return the scales of stored codes as float64; the sign bit is not looked at."""
        finite = decode_magnitude(codes & ((1 << (self.grid.bits - 1)) - 1), self.grid)
        return torch.where(codes == self.nan, float("nan"), finite)

    def significands(self, codes: Tensor) -> Tensor:
        """Return the whole numbers, float64, that scales are a power of two times."""
        hidden = (codes >> self.grid.mantissa_bits > 0).long() << self.grid.mantissa_bits
        return ((codes & ((1 << self.grid.mantissa_bits) - 1)) + hidden).clamp(min=1).double()

    def octaves(self, codes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the codes of half the scale, the scale and its double, as ``candidates`` does."""
        value = self.value(codes)
        found = []
        for factor in (0.5, 1.0, 2.0):
            code = encode_magnitude(value * factor, self.grid)
            exact = self.value(code) == value * factor
            found.append((code, exact & (code >= self.least)))
        return found

    def candidates(self, codes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return code - 1, code, code + 1 within 1..max_code, none but itself for code 0."""
        live = codes > 0
        below, above = codes - 1, codes + 1
        return [
            (below, live & (below >= max(1, self.least))),
            (codes, torch.ones_like(live)),
            (above, live & (above <= self.grid.max_code)),
        ]


def _single(x: Tensor) -> Tensor:
    """Round to float32, once; a quotient or product of two float32 values rounds rightly so."""
    return widen(round_once(x, torch.float32))


SharedScale = PowerOfTwoScale | MinifloatScale
