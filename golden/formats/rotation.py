"""Randomised Hadamard rotation: Q = diag(+-1) H / sqrt(n), on both sides of a linear layer.

Q is orthogonal, so (x Q)(w Q)^T = x w^T; the rotation only spreads outliers over the channels of a
block before quantization. ``Rotation`` computes it in float64; ``rotate_blocks`` is what the
hardware computes, in integers with one rounding (docs/rotation.md).
"""

from math import sqrt

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.numeric import power_of_two, round_once, widen
from m2xfp.golden.kernels.operators import shielded

__all__ = ["Rotation", "hadamard", "rotate_blocks"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@shielded
def hadamard(n: int) -> Tensor:
    """Return Sylvester's Hadamard matrix H of order n, a power of two, as float64 of +-1."""
    if n < 1 or n & (n - 1):
        raise InputError(f"n={n}; a Sylvester Hadamard matrix has an order that is a power of two")
    matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    while len(matrix) < n:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix


class Rotation:
    """x -> x Q along the last dimension, in blocks of ``block`` channels.

    Computed with the fast butterfly in float64 and rounded once to the type of x: additions in one
    fixed order, so every device gives the same bits.

    Parameters
    ----------
    channels
        Size of the last dimension.
    block
        Order of H, a power of two that divides ``channels``; by default the largest one.
    seed
        Seed of the random signs; None for all +1.

    Raises
    ------
    InputError
        ``block`` is no power of two or does not divide ``channels``; x has another size.
    """

    def __init__(self, channels: int, block: int | None = None, seed: int | None = 0) -> None:
        if channels < 1:
            raise InputError(f"channels={channels}; pass a positive number")
        self.channels = channels
        self.block = channels & -channels if block is None else block
        if self.block < 1 or self.block & (self.block - 1) or channels % self.block:
            raise InputError(
                f"block={block}; pass a power of two that divides the {channels} channels"
            )
        self.signs = torch.ones(channels, dtype=torch.float64, device="cpu")
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            flips = torch.randint(0, 2, (channels,), generator=generator, device="cpu")
            self.signs -= 2.0 * flips

    @torch.no_grad()
    @shielded
    def __call__(self, x: Tensor) -> Tensor:
        """Return x Q in the type of ``x``."""
        return round_once(self._butterfly(self._check(x) * self.signs.to(x.device)), x.dtype)

    @torch.no_grad()
    @shielded
    def inverse(self, x: Tensor) -> Tensor:
        """Return x Q^T in the type of ``x``: undoes the rotation up to rounding."""
        return round_once(self._butterfly(self._check(x)) * self.signs.to(x.device), x.dtype)

    def _check(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.dtype not in _DTYPES:
            found = getattr(x, "dtype", type(x).__name__)
            raise TypeError(
                f"x is {found}; pass a floating-point tensor: float64, float32, bfloat16 or float16"
            )
        if not x.ndim or x.shape[-1] != self.channels:
            raise InputError(f"x has shape {tuple(x.shape)}; its last size is {self.channels}")
        return widen(x)

    def _butterfly(self, x: Tensor) -> Tensor:
        blocks = _transform(x.unflatten(-1, (-1, self.block)))
        return (blocks / sqrt(self.block)).flatten(-2)


def _transform(x: Tensor) -> Tensor:
    """Return x H along the last dimension, a power of two, by butterflies."""
    width = 1
    while width < x.shape[-1]:
        pairs = x.unflatten(-1, (-1, 2, width))
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack((low + high, low - high), -2).flatten(-3)
        width *= 2
    return x


@shielded
def rotate_blocks(x: Tensor, flips: Tensor, bits: int = 12, shift: int | None = None) -> Tensor:
    """Return diag(+-1) H of blocks of bfloat16, times 2^-shift, as the hardware computes it.

    With E the largest exponent field of a block, at least 1, each magnitude is cut, towards zero,
    to whole multiples of 2^(E - 127 - (bits - 1)): what is less than 2^(bits - 8) times smaller
    than the power of two of the largest keeps all of its bits. Everything after that is exact, and
    each result is rounded once: nearest, ties to even, subnormals kept, overflow to infinity. A
    result of zero is +0. A NaN or an infinity makes the whole block NaN.

    Parameters
    ----------
    x
        bfloat16 [..., n], n a power of two from 2 to 4096.
    flips
        Bool of a shape that broadcasts to that of x: which values are negated first.
    bits
        Of a cut magnitude, 8 to 32.
    shift
        The result is x H / 2^shift; by default half of log2 n, rounded up, so that of 64 points
        the transform is orthogonal, and of 32 and 128 it is 1 / sqrt(2) of that. Rotate the weights
        with what is left of log2 n, and the product is that of x and w.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.bfloat16:
        raise TypeError(f"x is {getattr(x, 'dtype', type(x).__name__)}; pass a bfloat16 tensor")
    points = x.shape[-1] if x.ndim else 0
    if not 2 <= points <= 4096 or points & (points - 1):
        raise InputError(
            f"x has shape {tuple(x.shape)}; its last size is a power of two, 2 to 4096"
        )
    if not 8 <= bits <= 32:
        raise InputError(f"bits={bits}; pass 8 to 32")
    levels = points.bit_length() - 1
    shift = (levels + 1) // 2 if shift is None else shift
    pattern = x.contiguous().view(torch.int16).long()
    field, mantissa = (pattern >> 7) & 0xFF, pattern & 0x7F
    significand = torch.where(field > 0, mantissa | 0x80, mantissa)
    exponent = field.clamp(min=1)
    largest = exponent.amax(-1, keepdim=True)
    magnitude = (significand << (bits - 8)) >> (largest - exponent).clamp(max=62)
    total = _transform(torch.where((pattern < 0) ^ flips, -magnitude, magnitude))
    exact = total.double() * power_of_two(largest - 127 - (bits - 1) - shift)
    poisoned = largest == 0xFF
    return round_once(exact.masked_fill(poisoned, float("nan")), torch.bfloat16)
