"""What the activation quantizer computes."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays, quantize_bits
from m2xfp.golden.formats.format import get_format

__all__ = ["activation_quantizer"]


def activation_quantizer(x: NDArray[np.generic], *, input_type: str, block: str) -> Arrays:
    """Quantize groups of values: the floor rule, nearest even, Elem-EM (docs/format.md 2 to 4).

    Parameters
    ----------
    x
        Patterns of the input type, uint16 (uint32 for fp32) [n, group].
    input_type
        ``bf16``, ``fp16`` or ``fp32``.
    block
        Format of the groups.

    Returns
    -------
    dict
        ``codes``, ``scales`` and ``meta``: uint8 [n, bytes a group], as `PackedTensor` has them.
    """
    planes = quantize_bits(get_format(block), input_type, x)
    return dict(zip(("codes", "scales", "meta"), planes, strict=True))
