"""What the Hadamard unit computes."""

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays, from_bits, to_bits
from m2xfp.golden.formats.rotation import rotate_blocks
from m2xfp.golden.kernels.operators import shielded

__all__ = ["hadamard"]


@shielded
def hadamard(x: NDArray[np.uint16], flips: NDArray[np.bool_], *, bits: int) -> Arrays:
    """Transform blocks of bfloat16 with one rounding (docs/rotation.md).

    Parameters
    ----------
    x
        Patterns, uint16 [n, points].
    flips
        bool [n, points]: which values are negated first.
    bits
        Of an aligned magnitude.

    Returns
    -------
    dict
        ``y``: patterns, uint16 [n, points].
    """
    return {"y": to_bits(rotate_blocks(from_bits("bf16", x), torch.from_numpy(flips.copy()), bits))}
