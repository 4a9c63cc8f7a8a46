"""Metadata codecs: what the few bits beside codes and scale mean for a group.

Each takes scaled values ``y`` (signed float64 [n, group], exact or correctly rounded) and gives
codes and fields (int64 [n, group] and [n, subgroups]); ``decode`` gives the element values in units
of the shared scale, float64 and exact. ``SubgroupScale`` searches the shared scale too, so it
takes x.

Source: M2XFP, ASPLOS 2026, arXiv 2601.19213, Alg. 1, Eq. 2-4, sections 4.4 and 5.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from m2xfp.formats import FloatElement, IntElement
from m2xfp.golden.formats.elements import (
    decode,
    decode_magnitude,
    encode,
    encode_magnitude,
    reach,
)
from m2xfp.golden.formats.scales import MinifloatScale, SharedScale

__all__ = ["ElementMantissa", "NoMetadata", "PairExponent", "Refinement", "SubgroupScale"]


@dataclass(frozen=True)
class NoMetadata:
    """Codes alone."""

    element: FloatElement | IntElement
    ties: str = "even"

    def encode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes and no fields."""
        return encode(y, self.element, self.ties), y.new_zeros(y.shape[0], 0, dtype=torch.int64)

    def decode(self, codes: Tensor, fields: Tensor) -> Tensor:
        """Return the element values."""
        return decode(codes, self.element)

    def reach(self, codes: Tensor, fields: Tensor) -> Tensor:
        """Return half a step more than the largest value of each place, in units of the scale."""
        found = torch.full(
            codes.shape, reach(self.element), dtype=torch.float64, device=codes.device
        )
        if isinstance(self.element, IntElement) and self.element.full_range:
            negative = codes >> (self.element.bits - 1)
            found = found + negative * 2.0**-self.element.fraction_bits
        return found


@dataclass(frozen=True)
class ElementMantissa:
    """Elem-EM, top-1: two extra mantissa bits for the largest element of each subgroup.

    The element refined is the one with the largest magnitude **code**, the lowest index among
    equals (or the highest, see ``choice``), so a decoder finds it from the codes. With c4 its code
    and c6 its code in the element with two more mantissa bits: field = clamp(c6 + 1, 4 c4,
    4 c4 + 3) - 4 c4; decoded code max(4 c4 + field - 1, 0) of the finer element.
    """

    element: FloatElement
    subgroup: int
    ties: str = "even"
    choice: str = "lowest"

    @property
    def fine(self) -> FloatElement:
        """The element with two more mantissa bits (E2M1 -> E2M3)."""
        return replace(
            self.element,
            mantissa_bits=self.element.mantissa_bits + 2,
            max_code=4 * self.element.max_code + 3,
        )

    def _top(self, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index [n, subgroups, 1] and the magnitude code of each subgroup's top-1."""
        lanes = magnitudes.unflatten(-1, (-1, self.subgroup))
        order = torch.arange(self.subgroup, device=lanes.device)
        order = order if self.choice == "highest" else order.flip(0)
        # One key orders by code, then by index; keys differ, so the maximum is unique.
        key = (lanes * self.subgroup + order).amax(-1, keepdim=True)
        place = key % self.subgroup
        index = place if self.choice == "highest" else self.subgroup - 1 - place
        return index, key // self.subgroup

    def encode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes and one field a subgroup."""
        codes = encode(y, self.element, self.ties)
        index, coarse = self._top(codes & self.element.max_code)
        top = y.unflatten(-1, (-1, self.subgroup)).gather(-1, index).abs()
        fine = encode_magnitude(top, self.fine, self.ties)
        fields = torch.clamp(fine + 1, 4 * coarse, 4 * coarse + 3) - 4 * coarse
        return codes, fields.squeeze(-1)

    def decode(self, codes: Tensor, fields: Tensor) -> Tensor:
        """Return the element values, the top-1 of each subgroup refined."""
        index, coarse = self._top(codes & self.element.max_code)
        fine = (4 * coarse + fields.unsqueeze(-1) - 1).clamp(min=0)
        values = decode(codes, self.element).unflatten(-1, (-1, self.subgroup))
        refined = decode_magnitude(fine, self.fine).copysign(values.gather(-1, index))
        return values.scatter(-1, index, refined).flatten(-2)

    def reach(self, codes: Tensor, fields: Tensor) -> Tensor:
        """Return half a step more than the largest value of each place, in units of the scale."""
        index, coarse = self._top(codes & self.element.max_code)
        usual = reach(self.element)
        values = torch.full(codes.shape, usual, dtype=torch.float64, device=codes.device)
        finer = reach(self.fine, 4 * self.element.max_code + 2)
        refined = torch.full_like(coarse, finer, dtype=torch.float64)
        return values.unflatten(-1, (-1, self.subgroup)).scatter(-1, index, refined).flatten(-2)


@dataclass(frozen=True)
class PairExponent:
    """One bit a subgroup (a pair in SMX4): set if all of it is below 1, it halves the scale."""

    element: FloatElement
    subgroup: int
    ties: str = "even"

    def encode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes and one bit a subgroup; a zero subgroup has the bit set."""
        lanes = y.unflatten(-1, (-1, self.subgroup))
        small = lanes.abs().amax(-1, keepdim=True) < 1
        scaled = torch.where(small, 2 * lanes, lanes).flatten(-2)
        return encode(scaled, self.element, self.ties), small.squeeze(-1).long()

    def decode(self, codes: Tensor, fields: Tensor) -> Tensor:
        """Return the element values, halved where the bit is set."""
        values = decode(codes, self.element).unflatten(-1, (-1, self.subgroup))
        return (values * (1.0 - 0.5 * fields.unsqueeze(-1).double())).flatten(-2)

    def reach(self, codes: Tensor, fields: Tensor) -> Tensor:
        """Return half a step more than the largest value of each place, in units of the scale."""
        factor = 1.0 - 0.5 * fields.double()
        return (reach(self.element) * factor).repeat_interleave(self.subgroup, -1)


# Fraction bits from which the fixed-point search equals the exact one, for each input type.
_EQUAL_FROM = {torch.bfloat16: 10, torch.float16: 13, torch.float32: 26}


@dataclass(frozen=True)
class SubgroupScale:
    """Sg-EM: two bits a subgroup multiply its scale by 1 + k/4, and the shared scale adapts.

    Candidates are the shared scale as fitted and, if adaptive, its two neighbours, times every k.
    The best k of each subgroup is the one of least squared error, then the scale of least total
    error wins; ties go to the smallest k, then to the lower scale.

    Members
    -------
    element, subgroup, ties
        As everywhere.
    scale
        The shared scale that gives the candidates.
    adaptive
        Whether the neighbours of the fitted scale are tried.
    search
        ``exact``: squared errors are compared as exact numbers. ``fixed``: the errors (not the
        codes) are computed from |x| in a fixed-point view, as hardware does it.
    fraction_bits
        F of that view: u = floor(v) | (v is not an integer), v = |x| * 2^F / scale. None takes the
        smallest F at which both searches agree: 10, 13, 26 for bfloat16, float16, float32.
    octaves
        Of a minifloat scale: its neighbours are half of it and its double, where they are numbers
        of that minifloat, as those of a power of two are; else the codes beside it.
    """

    element: FloatElement
    subgroup: int
    scale: SharedScale
    ties: str = "even"
    adaptive: bool = True
    search: str = "exact"
    fraction_bits: int | None = None
    octaves: bool = False

    def encode(
        self, x: Tensor, stored: Tensor, unit: Tensor, source: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Search and return codes [n, group], the scale codes chosen [n, 1] and fields.

        Parameters
        ----------
        x
            Finite values, float64 [n, group], exact.
        stored
            The fitted scale codes, int64 [n, 1].
        unit
            Tensor scale, float64, a scalar or [n, 1]; 1 without one.
        source
            Type that x had, for the default of ``fraction_bits``.
        """
        lanes = x.abs().unflatten(-1, (-1, self.subgroup))  # [n, subgroups, lanes]
        unit = unit.unsqueeze(-1) if unit.ndim else unit
        weights = lanes  # what the error is measured on
        if self.search == "fixed":
            bits = _EQUAL_FROM[source] if self.fraction_bits is None else self.fraction_bits
            step = self.scale.value(stored).unsqueeze(-1) * 2.0**-bits
            view = lanes / step
            # floor, with the last bit set if anything was cut off
            weights = torch.where(view == view.floor(), view, view.floor() // 2 * 2 + 1) * step
        significand = torch.ones_like(unit)
        if self.octaves and isinstance(self.scale, MinifloatScale):
            candidates = self.scale.octaves(stored)
            # Common to all of them, so errors are told apart with fewer bits without it.
            significand = self.scale.significands(stored).unsqueeze(-1)
        else:
            candidates = self.scale.candidates(stored)
        if not self.adaptive:
            candidates = candidates[1:2]
        best: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        for code, allowed in candidates:
            base = torch.where(allowed, self.scale.value(code), 0.0).unsqueeze(-1) / significand
            found = self._best_multiplier(lanes, weights, base, unit * significand)
            magnitudes, fields, error = found
            total = torch.where(allowed, error.sum(1, keepdim=True), float("inf"))
            if best is None:
                best = (total, code, magnitudes, fields)
            else:
                won = total < best[0]
                best = (
                    torch.where(won, total, best[0]),
                    torch.where(won, code, best[1]),
                    torch.where(won.unsqueeze(-1), magnitudes, best[2]),
                    torch.where(won, fields, best[3]),
                )
        assert best is not None
        _, code, magnitudes, fields = best
        sign = torch.signbit(x).long() << (self.element.bits - 1)
        return magnitudes.flatten(-2) | sign, code, fields

    def _best_multiplier(
        self, lanes: Tensor, weights: Tensor, base: Tensor, unit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, k and error of the best multiplier of each subgroup.

        The error is sum q (q * unit - 2 |x|) with q the decoded value over ``unit``: the squared
        error less sum x^2, over ``unit``, the same shift for all candidates. Zero codes add
        nothing, so |x| counts only above an eighth of the scale; every term and sum is a multiple
        of one power of two and below 2^53 times it, so float64 is exact: 47 bits with E8M0 and
        groups of 256; 53 with E4M3, groups of 16 and |x| up to 64 scales. Beyond that the largest
        E4M3 scale saturates, and the largest multiplier and scale win by more than any rounding:
        raising q from 9.75 to 10.5 scales gains 1.5 |x| - 16, other lanes lose 3 each at most.
        Of ``octaves`` the significand of the scale is part of ``unit``: what is left of every
        candidate is a power of two, and 52 bits hold it all.
        """
        found: tuple[Tensor, Tensor, Tensor] | None = None
        for k in range(4):
            scale = base * (1 + k / 4)
            y = torch.where(scale > 0, lanes / (scale * unit), 0.0)
            codes = encode_magnitude(y, self.element, self.ties)
            q = decode_magnitude(codes, self.element) * scale
            error = (q * (q * unit - 2 * weights)).sum(-1)
            if found is None:
                found = (codes, torch.zeros_like(error, dtype=torch.int64), error)
            else:
                won = error < found[2]
                found = (
                    torch.where(won.unsqueeze(-1), codes, found[0]),
                    torch.where(won, k, found[1]),
                    torch.where(won, error, found[2]),
                )
        assert found is not None
        return found

    def decode(self, codes: Tensor, fields: Tensor) -> Tensor:
        """Return the element values times 1 + k/4."""
        values = decode(codes, self.element).unflatten(-1, (-1, self.subgroup))
        return (values * (1 + fields.unsqueeze(-1).double() / 4)).flatten(-2)

    def reach(self, codes: Tensor, fields: Tensor) -> Tensor:
        """Return half a step more than the largest value of each place, in units of the scale."""
        factor = 1 + fields.double() / 4
        return (reach(self.element) * factor).repeat_interleave(self.subgroup, -1)


Refinement = NoMetadata | ElementMantissa | PairExponent | SubgroupScale
