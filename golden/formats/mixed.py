"""Mixed MXFP4 / MXFP6 / MXFP8: channels reordered by importance and split into three segments.

Channels are sorted by rising activation score and split [p4 | p6 | p8] into MXFP4, MXFP6 (E3M2) and
MXFP8 (E4M3), each a multiple of 128, with the scale 2^ceil(log2(amax / M)); a zero group has the
scale 2^-1. The product runs the segments in order, float32 accumulation within a segment, the
result rounded to bfloat16 after each.

Sources: MicroMix and MXQuant, as the format definition in docs/format.md gives them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.golden.formats.coder import ScaledCoder
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.numeric import add_to_odd, round_once, widen
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import group_sums, matmul, running_fp32_sum
from m2xfp.golden.formats.scales import PowerOfTwoScale
from m2xfp.golden.kernels.operators import shielded

__all__ = [
    "SEGMENTS",
    "TILE",
    "Calibration",
    "MixedTensor",
    "Split",
    "micromix_split",
    "micromix_split_of",
    "mixed_matmul",
    "mxquant_splits",
    "mxquant_splits_of",
    "segments_matmul",
    "whole_matmul",
]

TILE = 128
"""Channels that a segment has a multiple of, in MicroMix and MXQuant."""
SEGMENTS = ("mxfp4", "mxfp6-e3m2", "mxfp8-e4m3")
_ZERO_BYTE = 126


def _segment_format(name: str) -> Format:
    """Return an MX format under the ceil rule whose zero group has the scale 2^-1."""
    fmt = get_format(name, scale_rule="ceil")
    assert isinstance(fmt.coder, ScaledCoder)
    assert isinstance(fmt.coder.scale, PowerOfTwoScale)
    scale = replace(fmt.coder.scale, zero=_ZERO_BYTE)
    return replace(fmt, coder=replace(fmt.coder, scale=scale))


for _name in SEGMENTS:  # so that what was saved with these formats can be loaded
    _ = _segment_format(_name).key


@dataclass(frozen=True)
class MixedTensor:
    """A tensor quantized in up to three segments of reordered channels.

    Members
    -------
    segments
        The packed segments that are not empty, in the order MXFP4, MXFP6, MXFP8.
    split
        The split they follow.
    """

    segments: tuple[PackedTensor, ...]
    split: "Split"

    @shielded
    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values with their channels in the original order."""
        values = torch.cat([part.dequantize(dtype) for part in self.segments], -1)
        return values[..., self.split.order.argsort().to(values.device)]


@dataclass(frozen=True, eq=False)
class Split:
    """An order of the K channels and the sizes of its segments.

    Members
    -------
    order
        int64 [K]: the channel that comes at each place, by rising score.
    sizes
        Channels in MXFP4, MXFP6, MXFP8: whole tiles that add up to K.
    tile
        Channels a tile.
    """

    order: Tensor
    sizes: tuple[int, int, int]
    tile: int = TILE

    def __post_init__(self) -> None:
        """Refuse segments that are no whole tiles or do not add up."""
        if any(size < 0 or size % self.tile for size in self.sizes):
            raise InputError(
                f"segments {self.sizes}; each is a multiple of {self.tile}, none negative"
            )
        if sum(self.sizes) != self.order.numel():
            raise InputError(
                f"segments {self.sizes} have {sum(self.sizes)} channels, the order "
                f"{self.order.numel()}"
            )

    @shielded
    def quantize(self, x: Tensor, every: str | None = None) -> MixedTensor:
        """Reorder the last dimension of ``x`` [..., K] and quantize each segment.

        Parameters
        ----------
        x
            What to quantize.
        every
            One format for all segments: ``mxfp8-e4m3``, as MXQuant has for activations, or
            ``mxfp4``, as MicroMix's main branch has for weights.
        """
        if every is not None and every not in SEGMENTS:
            raise UnknownNameError("format of a segment", every, SEGMENTS)
        if not isinstance(x, Tensor):
            raise TypeError(f"x is {type(x).__name__}; pass a torch.Tensor")
        if not x.ndim or x.shape[-1] != self.order.numel():
            raise InputError(
                f"x has shape {tuple(x.shape)}; the split has {self.order.numel()} channels"
            )
        parts = x[..., self.order.to(x.device)].split(self.sizes, -1)
        names = SEGMENTS if every is None else (every,) * 3
        return MixedTensor(
            tuple(
                _segment_format(name).quantize(part)
                for name, part in zip(names, parts, strict=True)
                if part.shape[-1]
            ),
            self,
        )


class Calibration:
    """What a layer's activations say about its channels, gathered a part at a time.

    Parameters
    ----------
    strength
        lambda of MicroMix: the thresholds are (448/6) 2^-10 lambda and (448/28) 2^-6 lambda times
        the row's maximum.
    tile
        Channels that a segment has a multiple of.

    Members
    -------
    rows
        Rows so far.
    """

    def __init__(self, strength: float = 1.0, tile: int = TILE) -> None:
        self.strength, self.tile, self.rows = strength, tile, 0
        self._total = torch.zeros(0, dtype=torch.float64)
        self._below = [0, 0]

    @shielded
    def add(self, x: Tensor) -> None:
        """Take activations [..., K], finite, K a multiple of the tile; InputError for others."""
        rows = _rows(x, self.tile).abs()
        if self.rows and rows.shape[-1] != len(self._total):
            raise InputError(f"x has {rows.shape[-1]} channels, those before {len(self._total)}")
        top = rows.amax(-1, keepdim=True)
        for at, factor in enumerate((448 / 6 * 2.0**-10, 448 / 28 * 2.0**-6)):
            self._below[at] += int((rows < top * (factor * self.strength)).sum())
        total = rows.sum(0)
        self._total = self._total + total if self.rows else total
        self.rows += len(rows)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return len(self._total)

    @property
    def scores(self) -> Tensor:
        """The mean magnitude of each channel, float64."""
        return self._total / self.rows

    @property
    def order(self) -> Tensor:
        """The channels by rising score; those of equal score keep their order."""
        return self.scores.argsort(stable=True)

    def shares(self) -> tuple[int, int, int]:
        """Return how many elements are below the first threshold, the second only, and neither."""
        count = self.rows * self.channels
        return self._below[0], self._below[1] - self._below[0], count - self._below[1]

    def tiles(self, count: Fraction | int) -> int:
        """Return the channels of the whole tiles that hold ``count`` channels."""
        return -(-count // self.tile) * self.tile


def micromix_split(x: Tensor, strength: float = 1.0) -> Split:
    """Split by MicroMix's rule: counting elements that low formats represent well enough.

    Parameters
    ----------
    x
        Calibration activations, finite, [..., K], K a multiple of 128.
    strength
        As of ``Calibration``.

    Returns
    -------
    The split: with r4 the share of elements with |x| below the first threshold of their row and r6
    the further share below the second, p6 = 128 ceil(K r6 / 128), p8 = 128 ceil(K (1 - r4 - r6) /
    128), and the rest MXFP4. Shares are exact; channels of equal score keep their order.

    Raises
    ------
    InputError
        K is no multiple of 128, or the rounded segments leave a negative rest.
    """
    seen = Calibration(strength)
    seen.add(x)
    return micromix_split_of(seen)


def micromix_split_of(seen: Calibration) -> Split:
    """Return the split of ``micromix_split`` from gathered activations."""
    k, count = seen.channels, seen.rows * seen.channels
    _, six, eight = seen.shares()
    p6, p8 = (seen.tiles(Fraction(k * part, count)) for part in (six, eight))
    if p6 + p8 > k:
        raise InputError(
            f"MXFP6 needs {p6} and MXFP8 {p8} of {k} channels: nothing is left for MXFP4; "
            "raise strength"
        )
    return Split(seen.order, (k - p6 - p8, p6, p8), seen.tile)


def mxquant_splits(xs: Sequence[Tensor], share: float = 0.05) -> list[Split]:
    """Split by MXQuant's rule: the top share of all layers' channels together is MXFP6.

    Parameters
    ----------
    xs
        Calibration activations of each layer, [..., K_layer], K_layer a multiple of 128.
    share
        Share of the channels in MXFP6 (MXQuant's code has 0.05, its README 0.1).

    Returns
    -------
    One split a layer: channels rank by mean |x| over (layer median + 1e-8), and a layer with c
    chosen channels has p6 = min(K, 128 ceil(c / 128)), the rest MXFP4.
    """
    layers = [Calibration() for _ in xs]
    for seen, x in zip(layers, xs, strict=True):
        seen.add(x)
    return mxquant_splits_of(layers, share)


@shielded
def mxquant_splits_of(layers: Sequence[Calibration], share: float = 0.05) -> list[Split]:
    """Return the splits of ``mxquant_splits`` from gathered activations."""
    if not 0 <= share <= 1:
        raise InputError(f"share={share}; pass a number from 0 to 1")
    if not layers:
        raise InputError("xs is empty; pass the activations of at least one layer")
    scores = [seen.scores for seen in layers]
    relative = [score / (score.quantile(0.5) + 1e-8) for score in scores]
    ranked = torch.cat(relative).sort(descending=True, stable=True).indices
    chosen = torch.zeros(len(ranked), dtype=torch.bool, device="cpu")
    chosen[ranked[: int(share * len(ranked))].cpu()] = True
    splits = []
    for seen, part in zip(layers, chosen.split([len(score) for score in scores]), strict=True):
        k = seen.channels
        p6 = min(k, seen.tiles(int(part.sum())))
        splits.append(Split(seen.order, (k - p6, p6, 0), seen.tile))
    return splits


@shielded
def mixed_matmul(a: MixedTensor, w: MixedTensor) -> Tensor:
    """Multiply [..., M, K] by the rows of [N, K]: bfloat16 [..., M, N].

    Segments in order; within one, the ``fp32`` accumulator of ``matmul`` from zero; the result so
    far plus the segment is rounded once to bfloat16 after each segment.
    """
    if a.split is not w.split:
        raise InputError("a and w follow different splits; quantize both with the same one")
    return segments_matmul(list(zip(a.segments, w.segments, strict=True)))


def segments_matmul(parts: Sequence[tuple[PackedTensor, PackedTensor]]) -> Tensor:
    """Multiply [..., M, K] by the rows of [N, K], both in segments of K: bfloat16 [..., M, N].

    The result so far plus the segment, which is accumulated as ``matmul`` does, is rounded once to
    bfloat16 after each segment.
    """
    result: Tensor | None = None
    for qa, qw in parts:
        part = widen(matmul(qa, qw))
        total = part if result is None else add_to_odd(widen(result), part)
        result = round_once(total, torch.bfloat16)
    if result is None:
        raise InputError("parts is empty; pass a pair of packed tensors at least")
    return result


def whole_matmul(parts: Sequence[tuple[PackedTensor, PackedTensor]]) -> Tensor:
    """Multiply [M, K] by the rows of [N, K], both in segments of K: float32 [M, N].

    One ``fp32`` accumulation goes on from segment to segment.
    """
    if not parts:
        raise InputError("parts is empty; pass a pair of packed tensors at least")
    m, n = parts[0][0].shape[0], parts[0][1].shape[0]
    sums: list[tuple[Tensor, Tensor]] = []
    for qa, qw in parts:
        left = qa.groups().repeat_interleave(n, 0)
        right = qw.groups().repeat(m, 1, 1)
        terms, factor = group_sums(
            PackedTensor.from_groups(qa.format, left), PackedTensor.from_groups(qw.format, right)
        )
        rest = terms[1] if len(terms) > 1 else torch.zeros_like(terms[0])
        sums.append((terms[0] * factor, rest * factor))
    addends, rests = (torch.cat(part, 1).unsqueeze(-1) for part in zip(*sums, strict=True))
    left_over = rests if bool(rests.nan_to_num(1.0).any()) else None
    return running_fp32_sum(addends, None, left_over)[:, -1, 0].reshape(m, n)


def _rows(x: Tensor, tile: int) -> Tensor:
    """Return float64 rows of calibration activations; InputError if K is no multiple of a tile."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is {type(x).__name__}; pass a torch.Tensor")
    if x.ndim < 1 or not x.numel() or x.shape[-1] % tile:
        raise InputError(
            f"x has shape {tuple(x.shape)}; pass activations [..., K], K a multiple of {tile}"
        )
    rows = widen(x).reshape(-1, x.shape[-1])
    if not bool(rows.isfinite().all()):
        raise InputError("x holds NaN or infinity; calibrate on finite activations")
    return rows


torch.serialization.add_safe_globals([MixedTensor, Split])
