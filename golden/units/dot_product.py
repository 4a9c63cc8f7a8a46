"""What the dot product computes."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.formats import block_format
from m2xfp.formats import window as window_of
from m2xfp.golden.bits import Arrays, running_exact_bits, running_fp32_bits
from m2xfp.golden.kernels.operators import shielded

__all__ = ["dot_product"]

Bytes = NDArray[np.uint8]


@shielded
def dot_product(
    act_groups: Bytes,
    weight_groups: Bytes,
    first: NDArray[np.bool_],
    *,
    act: str,
    weight: str,
    lanes: int | None = None,
    window: str | None = None,
) -> Arrays:
    """Multiply groups and accumulate over the steps (docs/format.md 7).

    Parameters
    ----------
    act_groups, weight_groups
        uint8 [n, steps, bytes a group]: packed groups, any bytes.
    first
        bool [n, steps]: start from +0 before that step.
    act, weight
        Their formats.
    lanes
        Products that are added with one rounding; None for those of a group.
    window
        Exponents of an exact accumulation, as ``m2xfp.formats.window`` reads them; None accumulates
        in FP32.

    Returns
    -------
    dict
        ``acc`` uint32 [n, steps, addends a group]: the FP32 pattern after each addend; of an exact
        accumulation ``inexact`` bool of that shape too.
    """
    if window is None:
        acc = running_fp32_bits(act, weight, act_groups, weight_groups, first, lanes)
        return {"acc": acc}
    width = block_format(act).group if lanes is None else lanes
    total, inexact = running_exact_bits(
        act, weight, act_groups, weight_groups, first, window_of(window), width
    )
    return {"acc": total, "inexact": inexact}
