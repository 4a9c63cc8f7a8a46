"""Group coders: element, scale and metadata composed into one codec of whole groups.

``ScaledCoder`` is every format whose values are element times scale; ``AffineCoder`` is the one
with a zero point. Both take groups [n, group] as exact float64 and give int64 codes, scale fields
and metadata fields; ``Format`` does chunking, NaN groups and planes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from m2xfp.golden.formats.metadata import Refinement, SubgroupScale
from m2xfp.golden.formats.numeric import add_to_odd, round_half_away, round_once, widen
from m2xfp.golden.formats.scales import SharedScale

__all__ = ["AffineCoder", "Coder", "ScaledCoder"]


def _bytes_of(field: Tensor, count: int) -> Tensor:
    """Split int64 [..., 1] into its ``count`` lowest bytes, little-endian."""
    places = torch.arange(0, 8 * count, 8, device=field.device)
    return ((field >> places) & 0xFF).to(torch.uint8)


def _from_bytes(data: Tensor) -> Tensor:
    """Join bytes [..., count] into int64 [..., 1], little-endian."""
    places = torch.arange(0, 8 * data.shape[-1], 8, device=data.device)
    return (data.long() << places).sum(-1, keepdim=True)


@dataclass(frozen=True)
class ScaledCoder:
    """value = refined element * shared scale (* tensor scale).

    Members
    -------
    scale
        Shared scale.
    refinement
        Metadata codec, which holds the element and its ties.
    split
        Two scales a group: the first for x > 0, the second for everything else.
    scale_bytes
        Bytes of one stored scale.
    """

    scale: SharedScale
    refinement: Refinement
    split: bool
    scale_bytes: int

    def encode(self, x: Tensor, unit: Tensor, source: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes [n, group], scale fields [n, 1 or 2] and metadata fields of finite x."""
        if self.split:
            spans = [x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True)]
            amax = torch.cat(spans, -1).clamp(min=0.0)
        else:
            amax = x.abs().amax(-1, keepdim=True)
        stored = self.scale.fit(amax, unit)
        if isinstance(self.refinement, SubgroupScale):
            return self.refinement.encode(x, stored, unit, source)
        y = self.scale.divide(x, self._select(self.scale.value(stored), x <= 0), unit)
        codes, fields = self.refinement.encode(y)
        return codes, stored, fields

    def decode(self, codes: Tensor, stored: Tensor, fields: Tensor, unit: Tensor) -> Tensor:
        """Return the exact values, float64 [n, group]; NaN where the scale is NaN."""
        refined = self.refinement.decode(codes, fields)
        scale = self._select(self.scale.value(stored), torch.signbit(refined))
        return refined * (scale * unit)

    def clips(
        self, x: Tensor, codes: Tensor, stored: Tensor, fields: Tensor, unit: Tensor
    ) -> Tensor:
        """Return where x, float64, lies more than half a step beyond what its group can hold."""
        scale = self._select(self.scale.value(stored), x <= 0)
        return ~(x.abs() <= self.refinement.reach(codes, fields) * (scale * unit))

    def _select(self, scales: Tensor, negative: Tensor) -> Tensor:
        if not self.split:
            return scales
        return torch.where(negative, scales[..., 1:], scales[..., :1])

    def poison(self, stored: Tensor) -> Tensor:
        """Return the scale fields of a NaN group, in the shape of ``stored``."""
        return torch.full_like(stored, self.scale.nan)

    def scales_to_bytes(self, stored: Tensor) -> Tensor:
        """Return scale fields [..., n] as bytes."""
        if self.scale_bytes == 1:
            return stored.to(torch.uint8)
        return _bytes_of(stored.unsqueeze(-1), self.scale_bytes).flatten(-2)

    def scales_from_bytes(self, data: Tensor) -> Tensor:
        """Invert ``scales_to_bytes``."""
        if self.scale_bytes == 1:
            return data.long()
        return _from_bytes(data.unflatten(-1, (-1, self.scale_bytes))).squeeze(-1)


def _quotient(x: Tensor, s: Tensor) -> Tensor:
    """Return x / s as floor + {0, 1/4, 1/2, 3/4}: exact, below, at or above the half.

    A plain quotient has too few bits when x is 2^24 steps and more away from zero; whole part and
    remainder are exact there, and all that rounding needs is on which side of a half it lies.
    """
    whole = (x / s).floor()
    rest = x - whole * s
    whole = whole + torch.where(rest >= s, 1.0, 0.0) - torch.where(rest < 0, 1.0, 0.0)
    rest = x - whole * s
    part = torch.where(rest > 0, 0.25, 0.0)
    part = torch.where(2 * rest == s, 0.5, part)
    return whole + torch.where(2 * rest > s, 0.75, part)


@dataclass(frozen=True)
class AffineCoder:
    """INT4 with a zero point: q = clamp(round(x/s + z), -8, 7), value (q - z) * s.

    s = (max - min) / 15 in float32, 1 if that is zero; z = -round(min / s) - 8. The zero point is
    kept as a float64 offset -z - 8 = round(min / s), exact because it needs at most 29 bits, or 24
    when s became 1. All roundings are ties away from zero.

    Source: MX-QLLM; docs/format.md has the definition.
    """

    bits: int = 4

    def encode(self, x: Tensor, unit: Tensor, source: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes [n, group], fields [n, 2] (float32 bits, float64 bits) and no metadata."""
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        # high - low can need 277 bits; rounded to odd it stays on its side of every 15 * midpoint.
        s = widen(round_once(add_to_odd(high, -low) / 15, torch.float32))
        s = torch.where(s == 0, 1.0, s)
        offset = round_half_away(_quotient(low, s))
        half = 1 << (self.bits - 1)
        steps = _quotient(x, s) - offset - half
        q = round_half_away(steps).clamp(-half, half - 1).long()
        step = round_once(s, torch.float32).view(torch.int32).long()
        stored = torch.cat((step, offset.view(torch.int64)), -1)
        return q & (2 * half - 1), stored, q.new_zeros(q.shape[0], 0)

    def decode(self, codes: Tensor, stored: Tensor, fields: Tensor, unit: Tensor) -> Tensor:
        """Return the values (q - z) * s, float64; exact for every encoded group."""
        half = 1 << (self.bits - 1)
        q = (codes ^ half) - half
        step = widen(stored[..., :1].to(torch.int32).view(torch.float32))
        return (q.double() + half + stored[..., 1:].contiguous().view(torch.float64)) * step

    def clips(
        self, x: Tensor, codes: Tensor, stored: Tensor, fields: Tensor, unit: Tensor
    ) -> Tensor:
        """Return where x, float64, lies more than half a step beyond what its group can hold."""
        half = 1 << (self.bits - 1)
        low = torch.full_like(codes, half)  # the code of the lowest value
        step = self.decode(low + 1, stored, fields, unit) - self.decode(low, stored, fields, unit)
        middle = self.decode(low, stored, fields, unit) + (half - 0.5) * step
        return ~((x - middle).abs() <= half * step)

    def poison(self, stored: Tensor) -> Tensor:
        """Return the fields of a NaN group: a NaN step, offset zero."""
        return torch.tensor([0x7FC00000, 0], device=stored.device).expand_as(stored)

    def scales_to_bytes(self, stored: Tensor) -> Tensor:
        """Return the step in 4 bytes and the offset in 8."""
        return torch.cat((_bytes_of(stored[..., :1], 4), _bytes_of(stored[..., 1:], 8)), -1)

    def scales_from_bytes(self, data: Tensor) -> Tensor:
        """Invert ``scales_to_bytes``."""
        return torch.cat((_from_bytes(data[..., :4]), _from_bytes(data[..., 4:])), -1)


Coder = ScaledCoder | AffineCoder
