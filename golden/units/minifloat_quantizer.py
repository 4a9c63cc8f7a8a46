"""What the quantizer for minifloat scales computes."""

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays, from_bits, quantize_bits
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.kernels.operators import shielded

__all__ = ["minifloat_quantizer"]

_LEAST = 2.0**-113


@shielded
def minifloat_quantizer(
    x: NDArray[np.generic],
    tensor_scales: NDArray[np.uint32] | None = None,
    *,
    input_type: str,
    block: str,
) -> Arrays:
    """Quantize groups of values (docs/format.md, section 8).

    Parameters
    ----------
    x
        Patterns of the input type, uint16 (uint32 for fp32) [n, group].
    tensor_scales
        Of each group, float32 patterns, uint32 [n]; None with one level. Of a tensor scale that is
        below 2^-113, negative, infinite or NaN the group is a NaN.
    input_type
        ``bf16`` or ``fp32``.
    block
        Format of the groups.

    Returns
    -------
    dict
        ``codes``, ``scales`` and ``meta``: uint8 [n, bytes a group], as `PackedTensor` has them.
    """
    fmt = get_format(block)
    if tensor_scales is None:
        planes = quantize_bits(fmt, input_type, x)
        return dict(zip(("codes", "scales", "meta"), planes, strict=True))
    units = from_bits("fp32", tensor_scales).double().reshape(-1, 1)
    bad = ~(units.isfinite() & (units >= _LEAST))
    values = from_bits(input_type, x).masked_fill(bad, torch.nan)
    found = fmt.planes_of_groups(values, torch.where(bad, 1.0, units))
    return dict(zip(("codes", "scales", "meta"), (plane.numpy() for plane in found), strict=True))
