"""What the exact accumulator computes."""

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.formats import E8M0, block_format
from m2xfp.formats import window as window_of
from m2xfp.golden.bits import Arrays, to_bits
from m2xfp.golden.formats.products import product_unit, running_exact_sum
from m2xfp.golden.kernels.operators import shielded

__all__ = ["exact_accumulator"]


@shielded
def exact_accumulator(
    product: NDArray[np.int64],
    exponent: NDArray[np.int64],
    nan: NDArray[np.bool_],
    first: NDArray[np.bool_],
    *,
    act: str,
    weight: str,
    window: str,
) -> Arrays:
    """Accumulate exact products in fixed point, rounding results (docs/format.md 7, ``exact``).

    Parameters
    ----------
    product, exponent, nan
        [n, steps]: as ``group_dot`` gives them, of formats with E8M0 scales.
    first
        bool [n, steps]: start from zero before that step.
    act, weight
        Formats of the groups, which place the products.
    window
        Exponents that the accumulator has room for, as ``m2xfp.formats.window`` reads them.

    Returns
    -------
    dict
        ``acc`` uint32 [n, steps]: the FP32 pattern after each step; ``inexact`` bool [n, steps].
    """
    unit = product_unit(block_format(act), block_format(weight))
    products = np.ldexp(product.astype(np.float64), unit)
    scales = np.where(nan, np.nan, np.ldexp(1.0, exponent - 2 * E8M0.bias))
    acc, inexact = running_exact_sum(
        torch.from_numpy(products),
        torch.from_numpy(scales),
        torch.from_numpy(first),
        window_of(window),
        unit,
    )
    return {"acc": to_bits(acc), "inexact": inexact.numpy()}
