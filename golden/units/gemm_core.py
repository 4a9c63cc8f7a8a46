"""What the GEMM core computes."""

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays, from_bits, to_bits
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.numeric import round_once, widen
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import matmul
from m2xfp.golden.kernels.operators import shielded

__all__ = ["gemm_core"]


@shielded
def gemm_core(
    acts: NDArray[np.generic],
    weight_groups: NDArray[np.uint8],
    *,
    act: str,
    weight: str,
    activations: str | None = None,
    results: str = "fp32",
) -> Arrays:
    """Multiply activations with the rows of packed weights (docs/format.md 7, ``fp32``).

    Parameters
    ----------
    acts
        uint8 [m, groups, bytes]: packed groups; or, with ``activations``, patterns of that type,
        uint16 (uint32 for fp32) [m, k], which are quantized first.
    weight_groups
        uint8 [n, groups, bytes]: packed groups.
    act, weight
        Their formats.
    activations
        Input type of the activations, None if they are packed.
    results
        ``fp32``; ``bf16``, rounded once; ``packed``, quantized to ``act``.

    Returns
    -------
    dict
        ``out``: uint32 or uint16 [m, n] patterns, or uint8 [m, n / group, bytes] packed groups.
    """
    fmt = get_format(act)
    left = (
        PackedTensor.from_groups(fmt, torch.from_numpy(acts.astype(np.uint8)))
        if activations is None
        else fmt.quantize(from_bits(activations, acts))
    )
    weights = PackedTensor.from_groups(get_format(weight), torch.from_numpy(weight_groups.copy()))
    out = matmul(left, weights)
    if results == "packed":
        return {"out": fmt.quantize(out).groups().numpy()}
    if results == "bf16":
        out = round_once(widen(out), torch.bfloat16)  # torch's own gives several NaNs
    return {"out": to_bits(out)}
