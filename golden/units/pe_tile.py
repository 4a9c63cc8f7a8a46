"""What the PE tile computes."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays, running_fp32_bits
from m2xfp.golden.kernels.operators import shielded

__all__ = ["pe_tile"]

Bytes = NDArray[np.uint8]
_LANES = 8


@shielded
def pe_tile(
    act_groups: Bytes,
    weight_groups: Bytes,
    first: NDArray[np.bool_],
    *,
    act: str,
    weight: str,
) -> Arrays:
    """Multiply groups and accumulate eight products at a time (docs/format.md 7).

    With subgroups of eight that is the accumulation ``fp32_subgroup``.

    Parameters
    ----------
    act_groups, weight_groups
        uint8 [n, steps, bytes a group]: packed groups, any bytes.
    first
        bool [n, steps]: start from +0 before that step.
    act, weight
        Their formats.

    Returns
    -------
    dict
        ``acc`` uint32 [n, steps, group / 8]: the FP32 pattern after each eight products.
    """
    return {"acc": running_fp32_bits(act, weight, act_groups, weight_groups, first, _LANES)}
