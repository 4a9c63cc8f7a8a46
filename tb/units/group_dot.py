"""Testbench of the group dot product: exact products from the golden model, as beats."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import E4M3_SCALE, BlockFormat
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.tb.parts.mac_arrays import formats
from m2xfp.tb.vectors import Beats, Job

__all__ = ["make_job", "product_words", "products"]

Bytes = NDArray[np.uint8]


def products(
    act: Bytes, weight: Bytes, blocks: tuple[BlockFormat, BlockFormat]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return D, the sum of exponent fields, and whether a scale is NaN, of packed groups.

    The golden model decodes the groups with both scales set to one; D is the sum of products then,
    in units of its last place, times the significands that E4M3 scales have.

    Parameters
    ----------
    act, weight
        uint8 [n, bytes a group].
    blocks
        Their formats.
    """
    import torch

    from m2xfp.golden import PackedTensor, get_format

    pair = DotPair(*blocks)
    exponent = np.zeros(len(act), np.int64)
    factor = np.ones(len(act), np.int64)
    nan = np.zeros(len(act), bool)
    sides = []
    for block, groups in zip(blocks, (act, weight), strict=True):
        at, scale = block.group_bytes[0], block.scale
        field = groups[:, at].astype(np.int64)
        if scale is E4M3_SCALE:
            field &= 0x7F  # the sign bit is not looked at
            factor *= (field & 7) | np.where(field >> 3, 8, 0)
            exponent += np.maximum(field >> 3, 1)
        else:
            exponent += field
        nan |= field == scale.nan
        plain = groups.copy()
        plain[:, at] = scale.bias << (scale.grid.mantissa_bits if scale.grid else 0)  # one
        packed = PackedTensor.from_groups(get_format(block.name), torch.from_numpy(plain[:, None]))
        sides.append(packed.dequantize(torch.float64).numpy())
    fraction = pair.bias - (20 if pair.act.scale.grid else 254)
    total = np.ldexp((sides[0] * sides[1]).sum(axis=1), fraction).astype(np.int64)
    return total * factor, exponent, nan


def product_words(
    product: NDArray[np.int64],
    exponent: NDArray[np.int64],
    nan: NDArray[np.bool_],
    pair: DotPair,
) -> NDArray[np.uint64]:
    """Return the fields of exact products as words, see ``DotPair.product_layout``."""
    width = pair.product_shape.width
    word: NDArray[Any] = (
        (product & (1 << width) - 1)
        | (exponent & (1 << pair.exponent_bits) - 1) << width
        | nan.astype(np.int64) << width + pair.exponent_bits
    )
    return word.astype(np.uint64)


def make_job(description: Facts, act: Bytes, weight: Bytes, seed: int = 0) -> Job:
    """Return the beats of packed groups without NaN scales, and the products that must come out.

    ``act`` and ``weight`` as for ``products``. TLAST is random.
    """
    blocks = formats(description)
    words = product_words(*products(act, weight, blocks), DotPair(*blocks))
    out = words.astype("<u8")[:, None].view(np.uint8)[:, : description.outputs[0].bytes]
    last = np.random.default_rng(seed).random(len(words)) < 0.5
    rows = np.hstack([act, weight])
    return Job({"i": Beats(rows, last)}, {"o": Beats(np.ascontiguousarray(out), last)}, len(rows))
