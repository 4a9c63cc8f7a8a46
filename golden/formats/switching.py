"""Dot products whose groups are of several pairs of formats, one pair after the other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from m2xfp.formats import BlockFormat, Window
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import group_sums, running_exact_sum, running_fp32_sum
from m2xfp.golden.kernels.operators import shielded
from m2xfp.pairs import FORMAT_NUMBERS, PairSet

__all__ = ["SwitchedSide", "running_switched"]


@dataclass(frozen=True)
class SwitchedSide:
    """Groups of 32 values of one side, each of a format of its own.

    Members
    -------
    codes
        uint8 [rows, steps, bytes]: packed codes, as many bytes as the format has from the first on.
    scales, meta
        uint8 [rows, steps]; metadata means nothing to formats without.
    formats
        uint8 [rows, steps]: numbers, see ``m2xfp.pairs``.
    """

    codes: Tensor
    scales: Tensor
    meta: Tensor
    formats: Tensor

    def chosen(self, where: Tensor, block: BlockFormat) -> PackedTensor:
        """Return the groups of some places as a packed tensor [places, 32]."""
        size, _, meta = block.group_bytes
        parts = [self.codes[where][:, :size], self.scales[where].unsqueeze(-1)]
        parts += [self.meta[where].unsqueeze(-1)] * bool(meta)
        return PackedTensor.from_groups(get_format(block.name), torch.cat(parts, -1).unsqueeze(1))


@shielded
def running_switched(
    act: SwitchedSide,
    weight: SwitchedSide,
    first: Tensor,
    pairs: PairSet,
    window: Window | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the accumulation holds after each group, and what is wrong with it.

    A group is what ``running_fp32``, or with a window ``running_exact``, takes of its pair of
    formats. A pair that is none of ``pairs`` is refused: its group is NaN.

    Parameters
    ----------
    act, weight
        The groups.
    first
        bool [rows, steps]: start from +0 before that step.
    pairs
        The pairs that there are.
    window
        Exponents of an exact accumulation; None accumulates in FP32. They count as if all sums
        were multiples of the least unit, ``pairs.lowest_unit``: a group stands at
        Ex + Ew + unit of its pair - least unit.

    Returns
    -------
    float32 [rows, steps]; bool: ``inexact``, never set without a window; and bool: ``refused``, set
    by a pair that there is not, and until the next ``first``.
    """
    shape = first.shape
    sums = torch.full((2, *shape), float("nan"), dtype=torch.float64)
    scales = torch.ones(shape, dtype=torch.float64)
    sums[1] = 0.0
    bad = torch.ones(shape, dtype=torch.bool)
    for pair in pairs.pairs:
        numbers = [FORMAT_NUMBERS[block.name] for block in pair]
        where = (act.formats == numbers[0]) & (weight.formats == numbers[1])
        if not bool(where.any()):
            continue
        bad &= ~where
        packed = (
            side.chosen(where, block) for side, block in zip((act, weight), pair, strict=True)
        )
        terms, factor = group_sums(*packed)
        finer = 2.0 ** (pairs.unit(*pair) - pairs.lowest_unit)
        for part, term in enumerate(terms):
            sums[part, where] = term.squeeze(-1) / finer
        scales[where] = factor.squeeze(-1) * finer
    refused = _sticky(bad, first)
    if window is None:
        addends, rests = (part * scales for part in sums)
        rest = rests.unsqueeze(-1) if bool(rests.nan_to_num(1.0).any()) else None
        acc = running_fp32_sum(addends.unsqueeze(-1), first, rest).squeeze(-1)
        return acc, torch.zeros_like(refused), refused
    by_group = sums.permute(1, 2, 0)
    begins = torch.zeros(by_group.shape, dtype=torch.bool)
    begins[..., 0] = first
    total, inexact = running_exact_sum(
        by_group.flatten(1),
        scales.repeat_interleave(2, dim=1),
        begins.flatten(1),
        window,
        pairs.lowest_unit,
    )
    return total[:, 1::2], inexact[:, 1::2], refused


def _sticky(flag: Tensor, first: Tensor) -> Tensor:
    """Return whether a flag was set since the latest ``first``, this step included."""
    count = flag.long().cumsum(-1)
    steps = torch.arange(flag.shape[1])
    begun = torch.where(first, steps, -1).cummax(-1).values
    before = torch.cat((torch.zeros(len(flag), 1, dtype=torch.int64), count), -1)
    since = torch.where(begun < 0, 0, before.gather(-1, begun.clamp(min=0)))
    return count > since
