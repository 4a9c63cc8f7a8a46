"""What the accelerator computes: the products of the GEMM core, from memory to memory."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays
from m2xfp.golden.kernels.operators import shielded
from m2xfp.golden.units.gemm_core import gemm_core

__all__ = ["accelerator"]


@shielded
def accelerator(
    acts: NDArray[np.uint8],
    weight_groups: NDArray[np.uint8],
    *,
    act: str,
    weight: str,
    results: str = "fp32",
) -> Arrays:
    """Multiply packed activations with the rows of packed weights (docs/format.md 7, ``fp32``).

    Parameters
    ----------
    acts, weight_groups
        uint8 [m, groups, bytes] and [n, groups, bytes]: packed groups, as their planes in memory
        say.
    act, weight
        Their formats.
    results
        ``fp32``; ``bf16``, rounded once.

    Returns
    -------
    dict
        ``out``: uint32 or uint16 [m, n] patterns.
    """
    return gemm_core(acts, weight_groups, act=act, weight=weight, results=results)
