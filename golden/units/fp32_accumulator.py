"""What the FP32 accumulator computes."""

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.formats import block_format
from m2xfp.golden.bits import Arrays, to_bits
from m2xfp.golden.formats.products import product_bias, running_fp32_sum
from m2xfp.golden.kernels.operators import shielded

__all__ = ["fp32_accumulator"]


@shielded
def fp32_accumulator(
    product: NDArray[np.int64],
    exponent: NDArray[np.int64],
    nan: NDArray[np.bool_],
    first: NDArray[np.bool_],
    *,
    act: str,
    weight: str,
) -> Arrays:
    """Accumulate exact products, rounding each sum to FP32 (docs/format.md 7, ``fp32``).

    Parameters
    ----------
    product, exponent, nan
        [n, steps]: as ``group_dot`` gives them.
    first
        bool [n, steps]: start from +0 before that step.
    act, weight
        Formats of the groups, which place the products.

    Returns
    -------
    dict
        ``acc`` uint32 [n, steps]: the FP32 pattern after each step.
    """
    bias = product_bias(block_format(act), block_format(weight))
    value = np.where(nan, np.nan, np.ldexp(product.astype(np.float64), exponent - bias))
    acc = running_fp32_sum(torch.from_numpy(value)[..., None], torch.from_numpy(first.copy()))
    return {"acc": to_bits(acc[..., 0])}
