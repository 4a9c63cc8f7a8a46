"""Randomised Hadamard rotation: Q = diag(+-1) H / sqrt(n), on both sides of a linear layer.

Q is orthogonal, so (x Q)(w Q)^T = x w^T; the rotation only spreads outliers over the channels of a
block before quantization.
"""

from math import sqrt

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.numeric import round_once, widen

__all__ = ["Rotation", "hadamard"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
    def __call__(self, x: Tensor) -> Tensor:
        """Return x Q in the type of ``x``."""
        return round_once(self._butterfly(self._check(x) * self.signs.to(x.device)), x.dtype)

    @torch.no_grad()
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
        shape = x.shape
        x = x.unflatten(-1, (-1, self.block))
        width = 1
        while width < self.block:
            pairs = x.unflatten(-1, (-1, 2, width))
            low, high = pairs[..., 0, :], pairs[..., 1, :]
            x = torch.stack((low + high, low - high), -2).flatten(-3)
            width *= 2
        return (x / sqrt(self.block)).reshape(shape)
