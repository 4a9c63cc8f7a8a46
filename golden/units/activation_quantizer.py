"""What the activation quantizer computes."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays, quantize_bits
from m2xfp.golden.formats.coder import ScaledCoder
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.scales import PowerOfTwoScale
from m2xfp.golden.kernels.operators import shielded

__all__ = ["activation_quantizer"]


@shielded
def activation_quantizer(
    x: NDArray[np.generic],
    *,
    input_type: str,
    block: str,
    scale_rule: str = "floor",
    zero_scale: int = 0,
) -> Arrays:
    """Quantize groups of values (docs/format.md 2 to 4, and 8).

    Parameters
    ----------
    x
        Patterns of the input type, uint16 (uint32 for fp32) [n, group].
    input_type
        ``bf16``, ``fp16`` or ``fp32``.
    block
        Format of the groups.
    scale_rule
        Rule of the shared scale.
    zero_scale
        Scale of a group of zeros.

    Returns
    -------
    dict
        ``codes``, ``scales`` and ``meta``: uint8 [n, bytes a group], as `PackedTensor` has them.
    """
    planes = quantize_bits(_ruled(get_format(block), scale_rule, zero_scale), input_type, x)
    return dict(zip(("codes", "scales", "meta"), planes, strict=True))


def _ruled(fmt: Format, scale_rule: str, zero_scale: int) -> Format:
    """Return a format with another rule of its scales, and another scale of zeros."""
    assert isinstance(fmt.coder, ScaledCoder)
    assert isinstance(fmt.coder.scale, PowerOfTwoScale)
    scale = replace(fmt.coder.scale, rule=scale_rule, zero=zero_scale)
    if scale == fmt.coder.scale:
        return fmt
    return replace(fmt, coder=replace(fmt.coder, scale=scale))
