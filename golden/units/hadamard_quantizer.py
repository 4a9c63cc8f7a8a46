"""What the Hadamard unit computes with the activation quantizer behind it."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays
from m2xfp.golden.kernels.operators import shielded
from m2xfp.golden.units.activation_quantizer import activation_quantizer
from m2xfp.golden.units.hadamard import hadamard

__all__ = ["hadamard_quantizer"]


@shielded
def hadamard_quantizer(
    x: NDArray[np.uint16],
    flips: NDArray[np.bool_],
    *,
    bits: int,
    block: str,
    scale_rule: str = "floor",
    zero_scale: int = 0,
) -> Arrays:
    """Transform blocks of bfloat16, round to bfloat16, and quantize each 32 results.

    Parameters
    ----------
    x, flips, bits
        As ``hadamard`` takes them.
    block, scale_rule, zero_scale
        As ``activation_quantizer`` takes them; the format has groups of 32.

    Returns
    -------
    dict
        ``codes``, ``scales`` and ``meta`` of the groups, a block's one behind the other.
    """
    y = hadamard(x, flips, bits=bits)["y"]
    return activation_quantizer(
        y.reshape(-1, 32),
        input_type="bf16",
        block=block,
        scale_rule=scale_rule,
        zero_scale=zero_scale,
    )
