"""What the channel permuter computes."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.golden.bits import Arrays

__all__ = ["channel_permuter"]


def channel_permuter(x: NDArray[np.generic], order: NDArray[np.int64]) -> Arrays:
    """Put the channels of rows into another order, as a split of mixed formats has them.

    Parameters
    ----------
    x
        Patterns [tables, rows, k].
    order
        int64 [tables, k]: the channel that comes at each place, for each table.

    Returns
    -------
    dict
        ``y``: patterns [tables, rows, k].
    """
    return {"y": np.take_along_axis(x, order[:, None, :], axis=2)}
