"""What the mixed GEMM computes."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays, to_bits
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.mixed import segments_matmul, whole_matmul
from m2xfp.golden.formats.numeric import round_once, widen
from m2xfp.golden.formats.packed import PackedTensor

__all__ = ["mixed_gemm"]

Bytes = NDArray[np.uint8]


def mixed_gemm(
    acts: Sequence[Bytes],
    weights: Sequence[Bytes],
    formats: Sequence[tuple[str, str]],
    *,
    results: str = "segments",
) -> Arrays:
    """Multiply activations with the rows of weights, both in segments of formats of their own.

    Parameters
    ----------
    acts, weights
        Of each segment uint8 [m, groups, bytes] and [n, groups, bytes]: packed groups.
    formats
        Of each segment: activations, weights.
    results
        ``segments``: the result so far plus the segment rounded once to bf16 after each segment;
        ``fp32``: one accumulation throughout; ``bf16``: that rounded once more.

    Returns
    -------
    dict
        ``out``: uint32 or uint16 [m, n] patterns.
    """
    parts = [
        (_packed(names[0], act), _packed(names[1], weight))
        for names, act, weight in zip(formats, acts, weights, strict=True)
    ]
    if results == "segments":
        return {"out": to_bits(segments_matmul(parts))}
    out = whole_matmul(parts)
    if results == "bf16":
        out = round_once(widen(out), torch.bfloat16)
    return {"out": to_bits(out)}


def _packed(name: str, groups: Bytes) -> PackedTensor:
    return PackedTensor.from_groups(get_format(name), torch.from_numpy(groups.copy()))
