"""Subgroups for the activation decoder, and what it must find in them."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.formats import M2XFP_ACT, MXFP4
from m2xfp.tb.vectors import Vectors

__all__ = ["make_vectors"]


def make_vectors(groups: NDArray[np.uint8], lanes: int) -> Vectors:
    """Return the subgroups of packed groups as vectors; a lane's come one after the other.

    Golden has no decoder: what the unit must find follows from the values of a subgroup with its
    metadata and without, in eighths of the scale.

    Parameters
    ----------
    groups
        uint8 [n, bytes]: packed groups of activations, a multiple of ``lanes`` of them.
    lanes
        Independent runs.
    """
    import torch

    from m2xfp.golden import PackedTensor, get_format

    size = M2XFP_ACT.metadata.subgroup
    code_bytes, scale_bytes = M2XFP_ACT.group_bytes[:2]
    groups = groups.copy()
    groups[:, code_bytes] = 127  # scale 1

    def eighths(name: str, width: int) -> NDArray[np.int64]:
        packed = PackedTensor.from_groups(
            get_format(name), torch.from_numpy(groups[:, None, :width].copy())
        )
        values = 8 * packed.dequantize(torch.float64).abs()
        return values.reshape(-1, size).numpy().astype(np.int64)

    plain = eighths(MXFP4.name, code_bytes + scale_bytes)
    rows, top = np.arange(len(plain)), plain.argmax(1)  # the first of equals
    added = (eighths(M2XFP_ACT.name, groups.shape[1]) - plain)[rows, top]
    shift = np.log2(np.maximum(np.abs(added), 1)).astype(np.int64)
    codes = groups[:, :code_bytes].reshape(-1, size // 2).astype(np.int64)
    meta = groups[:, -1:] >> np.arange(0, 8, M2XFP_ACT.metadata.bits) & 3

    def by_lane(column: NDArray[np.int64]) -> NDArray[np.uint64]:
        return column.astype(np.uint64).reshape(lanes, -1).T

    return Vectors(
        {"codes": by_lane((codes << 8 * np.arange(size // 2)).sum(1)), "meta": by_lane(meta)},
        {
            "top": by_lane(1 << top),
            "refinement": by_lane(shift | (added < 0) << 2 | (added != 0) << 3),
        },
        {
            "top": by_lane(np.full(len(top), (1 << size) - 1)),
            # Shift and sign of no refinement mean nothing.
            "refinement": by_lane(np.where(added != 0, 15, 8)),
        },
    )
