"""What the switching dot product computes."""

import numpy as np
import torch
from numpy.typing import NDArray

from m2xfp.formats import window as window_of
from m2xfp.golden.bits import Arrays, to_bits
from m2xfp.golden.formats.switching import SwitchedSide, running_switched
from m2xfp.golden.kernels.operators import shielded
from m2xfp.pairs import pair_set

__all__ = ["switching_dot_product"]

Bytes = NDArray[np.uint8]


@shielded
def switching_dot_product(
    act: dict[str, Bytes],
    weight: dict[str, Bytes],
    first: NDArray[np.bool_],
    *,
    pairs: str,
    window: str | None = None,
) -> Arrays:
    """Multiply groups, each of its own pair of formats, and accumulate (docs/format.md 7).

    Parameters
    ----------
    act, weight
        ``codes`` uint8 [n, steps, bytes], ``scales``, ``meta`` and ``formats`` uint8 [n, steps].
    first
        bool [n, steps]: start from +0 before that step.
    pairs
        The pairs that the unit is built for, as ``m2xfp.pairs.pair_set`` reads them.
    window
        Exponents of an exact accumulation; None accumulates in FP32.

    Returns
    -------
    dict
        ``acc`` uint32 [n, steps]: the FP32 pattern after each group; ``refused`` bool; of an exact
        accumulation ``inexact`` bool too.
    """
    acc, inexact, refused = running_switched(
        _side(act),
        _side(weight),
        torch.from_numpy(first.copy()),
        pair_set(pairs),
        None if window is None else window_of(window),
    )
    found: Arrays = {"acc": to_bits(acc).view(np.uint32), "refused": refused.numpy()}
    return found if window is None else found | {"inexact": inexact.numpy()}


def _side(planes: dict[str, Bytes]) -> SwitchedSide:
    names = ("codes", "scales", "meta", "formats")
    return SwitchedSide(*(torch.from_numpy(planes[name].copy()) for name in names))
