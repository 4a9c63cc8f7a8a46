"""What the accelerator computes, from memory to memory: products, and packed values."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays, from_bits
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.operators import shielded
from m2xfp.golden.units.gemm_core import gemm_core

__all__ = ["accelerator"]


@shielded
def accelerator(
    acts: NDArray[np.generic],
    weight_groups: NDArray[np.uint8] | None = None,
    *,
    act: str,
    weight: str,
    operation: str = "gemm",
    kind: str = "fp32",
) -> Arrays:
    """Multiply packed activations with the rows of packed weights, or pack values.

    Parameters
    ----------
    acts
        uint8 [m, groups, bytes]: packed groups, as their planes in memory say; or, of the other
        operations, patterns [m, k] of the values, uint32 or uint16.
    weight_groups
        uint8 [n, groups, bytes], of ``gemm``.
    act, weight
        Their formats.
    operation
        ``gemm``: the product (docs/format.md 7, ``fp32``). ``quantize``: pack the values in the
        format of the activations. ``encode``: in that of the weights.
    kind
        ``fp32`` or ``bf16``, of the values or the results, which are rounded once; or ``packed``
        results, quantized to the format of the activations.

    Returns
    -------
    dict
        ``out``: uint32 or uint16 [m, n] patterns, or uint8 [m, groups, bytes] packed groups.
    """
    if operation == "gemm":
        assert weight_groups is not None
        return gemm_core(acts.astype(np.uint8), weight_groups, act=act, weight=weight, results=kind)
    packed: PackedTensor = get_format(act if operation == "quantize" else weight).quantize(
        from_bits(kind, acts)
    )
    return {"out": packed.groups().numpy()}
