"""What the activation decoder computes."""

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.golden.bits import Arrays
from m2xfp.golden.formats.elements import decode
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.metadata import ElementMantissa
from m2xfp.golden.kernels.operators import shielded

__all__ = ["activation_decoder"]

_EIGHTHS = 8


@shielded
def activation_decoder(codes: NDArray[np.uint8], meta: NDArray[np.uint8], *, block: str) -> Arrays:
    """Find the top-1 element of subgroups and what the metadata adds to it (docs/format.md 4).

    Parameters
    ----------
    codes
        uint8 [n, subgroup]: element codes.
    meta
        uint8 [n]: metadata of each subgroup.
    block
        Format with Elem-EM metadata.

    Returns
    -------
    dict
        ``top`` bool [n, subgroup]: the largest magnitude, the lowest index of equals. The top
        element's magnitude grows by 0, or by (-1)^negative * 2^shift eighths of the scale:
        ``nonzero`` and ``negative`` bool [n], ``shift`` uint8 [n], both 0 where it is 0.
    """
    refinement = getattr(get_format(block).coder, "refinement", None)
    if not isinstance(refinement, ElementMantissa):
        raise InputError(f"block={block}: has no Elem-EM metadata to decode")
    element, fields = refinement.element, torch.from_numpy(meta.astype(np.int64))[:, None]
    groups = torch.from_numpy(codes.astype(np.int64))
    # numpy's argmax is the first of equals.
    index = (codes & element.max_code).argmax(1)[:, None]
    plain, refined = decode(groups, element), refinement.decode(groups, fields)
    growth = _EIGHTHS * (refined.abs() - plain.abs()).numpy()
    added = np.take_along_axis(growth, index, 1)[:, 0].astype(np.int64)
    top = np.zeros(codes.shape, bool)
    np.put_along_axis(top, index, True, 1)
    return {
        "top": top,
        "shift": np.log2(np.maximum(np.abs(added), 1)).astype(np.uint8),
        "negative": added < 0,
        "nonzero": added != 0,
    }
