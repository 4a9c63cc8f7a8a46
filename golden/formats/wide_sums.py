"""Sums of products that need more than the 53 bits of float64: E5M2 with E5M2 or E4M3."""

import torch
from torch import Tensor

from m2xfp.formats import BlockFormat, FloatElement
from m2xfp.golden.formats.numeric import power_of_two

__all__ = ["split_sums"]

_HALF = 16


def _integers(elements: Tensor, block: BlockFormat) -> tuple[Tensor, int]:
    """Return elements as whole numbers of 2^-places, at most 2^32 of them, and the places."""
    element = block.element
    assert isinstance(element, FloatElement)
    places = element.bias + element.mantissa_bits - 1
    return (elements.nan_to_num(0.0) * 2.0**places).long(), places


def split_sums(
    a: Tensor, w: Tensor, blocks: tuple[BlockFormat, BlockFormat], lanes: int
) -> tuple[Tensor, Tensor]:
    """Return the exact sums of ``lanes`` products each as two float64 of one sign.

    Parameters
    ----------
    a, w
        float64 [..., n]: elements of the two formats, NaN for those without a number.
    blocks
        The formats, with floating-point elements and no metadata.
    lanes
        Products of a sum; at most 2^16, and they divide n.

    Returns
    -------
    Two tensors [..., n / lanes]: a sum is the first, a multiple of 2^32 last places, and the
    second, below that; both are zero, or neither negative, or neither positive. A NaN makes both
    NaN.
    """
    (x, x_places), (y, y_places) = _integers(a, blocks[0]), _integers(w, blocks[1])
    # Below 2^32 by magnitude, so that halves have 16 bits and 32 of their products fit 64.
    (x_high, x_low), (y_high, y_low) = ((z >> _HALF, z & 0xFFFF) for z in (x, y))

    def total(products: Tensor) -> Tensor:
        return products.unflatten(-1, (-1, lanes)).sum(-1)

    middle = total(x_high * y_low + x_low * y_high)
    low = total(x_low * y_low) + ((middle & 0xFFFF) << _HALF)
    high = total(x_high * y_high) + (middle >> _HALF) + (low >> (2 * _HALF))
    low = low & 0xFFFFFFFF
    # A negative sum with a positive low half: one more above, and that much less below.
    turned = (high < 0) & (low > 0)
    high, low = high + turned.long(), low - (turned.long() << (2 * _HALF))
    unit = power_of_two(torch.tensor(-x_places - y_places, device=a.device))
    nan = total(a + w).isnan()
    parts = (high.double() * 2.0 ** (2 * _HALF) * unit, low.double() * unit)
    return tuple(part.masked_fill(nan, float("nan")) for part in parts)  # type: ignore[return-value]
