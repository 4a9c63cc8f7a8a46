"""What the asymmetric dot product computes."""

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.formats import window as window_of
from m2xfp.golden.bits import Arrays, to_bits
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import running_exact, running_fp32

__all__ = ["asymmetric_dot_product"]

Bytes = NDArray[np.uint8]


def asymmetric_dot_product(
    act_groups: Bytes,
    weight_groups: Bytes,
    first: NDArray[np.bool_],
    *,
    act: str,
    weight: str,
    sums: int = 1,
    window: str | None = None,
) -> Arrays:
    """Multiply groups of which one side at least has two scales, and accumulate (docs/format.md 7).

    Parameters
    ----------
    act_groups, weight_groups
        uint8 [n, steps, bytes a group]: packed groups, any bytes.
    first
        bool [n, steps]: start from +0 before that step.
    act, weight
        Their formats.
    sums
        Terms of a group that are added in a beat.
    window
        Exponents of an exact accumulation, as ``m2xfp.formats.window`` reads them; None accumulates
        in FP32.

    Returns
    -------
    dict
        ``acc`` uint32 [n, steps, beats a group]: the FP32 pattern after each beat; of an exact
        accumulation ``inexact`` bool of that shape too.
    """
    a, w = (
        PackedTensor.from_groups(get_format(name), torch.from_numpy(groups.copy()))
        for name, groups in ((act, act_groups), (weight, weight_groups))
    )
    begins = torch.from_numpy(first.copy())
    if window is None:
        acc = running_fp32(a, w, begins)[..., sums - 1 :: sums]
        return {"acc": to_bits(acc).view(np.uint32)}
    total, inexact = running_exact(a, w, begins, window_of(window), at_once=sums)
    return {"acc": to_bits(total).view(np.uint32), "inexact": inexact.numpy()}
