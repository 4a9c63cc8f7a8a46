"""What the weight encoder computes."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays, quantize_bits
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.kernels.operators import shielded

__all__ = ["weight_encoder"]


@shielded
def weight_encoder(
    x: NDArray[np.generic],
    *,
    input_type: str,
    block: str,
    adaptive: bool = True,
    fraction_bits: int | None = None,
) -> Arrays:
    """Quantize groups of weights: the search for multipliers and scale (docs/format.md 2, 3, 5).

    Parameters
    ----------
    x
        Patterns of the input type, uint16 (uint32 for fp32) [n, group].
    input_type
        ``bf16``, ``fp16`` or ``fp32``.
    block
        Format of the groups.
    adaptive
        Whether the neighbours of the shared scale are tried.
    fraction_bits
        Fraction bits in which errors are measured; by default as many as decide like exact errors.

    Returns
    -------
    dict
        ``codes``, ``scales`` and ``meta``: uint8 [n, bytes a group], as `PackedTensor` has them.
    """
    options: dict[str, bool | int | str] = {"adaptive": adaptive, "search": "fixed"}
    if fraction_bits is not None:
        options["fraction_bits"] = fraction_bits
    planes = quantize_bits(get_format(block, **options), input_type, x)
    return dict(zip(("codes", "scales", "meta"), planes, strict=True))
