"""Exact products of packed groups in whole numbers, from the definition (docs/format.md, 7)."""

from typing import Protocol

import numpy as np

from m2xfp.formats import E2M1, E2M3, BlockFormat

__all__ = ["Pair", "products"]


class Pair(Protocol):
    """Two formats that go together: ``m2xfp.rtl``'s DotPair, which also knows its bounds."""

    act: BlockFormat
    weight: BlockFormat


_E2M1 = np.array([int(2 * E2M1.magnitude(code)) for code in range(8)])
_E2M3 = np.array([int(8 * E2M3.magnitude(code)) for code in range(32)])


def unpack(groups: np.ndarray, block: BlockFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes [n, group], scales [n] and metadata fields [n, subgroups]."""
    size = block.group_bytes[0]
    codes = np.stack([groups[:, :size] & 15, groups[:, :size] >> 4], -1).reshape(len(groups), -1)
    meta = groups[:, -1:] >> 2 * np.arange(block.subgroups) & 3
    return codes.astype(int), groups[:, size].astype(int), meta.astype(int)


def products(pair: Pair, act: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return D, the sum of exponent fields and NaN, in integers from the definition."""
    x, a_scale, a_meta = unpack(act, pair.act)
    w, w_scale, w_meta = unpack(weight, pair.weight)
    magnitude = x & 7
    size = pair.act.metadata.subgroup
    left = _E2M1[magnitude] * (4 if size else 1)
    for s in range(pair.act.subgroups):
        part = magnitude[:, s * size : (s + 1) * size]
        top = s * size + part.argmax(axis=1)  # the first of equals
        rows = np.arange(len(x))
        left[rows, top] = _E2M3[np.maximum(4 * magnitude[rows, top] + a_meta[:, s] - 1, 0)]
    terms = left * np.where(x & 8, -1, 1) * _E2M1[w & 7] * np.where(w & 8, -1, 1)
    if pair.weight.subgroups:
        terms = terms * (4 + np.repeat(w_meta, pair.weight.metadata.subgroup, axis=1))
    total = terms.sum(axis=1)
    if pair.act.scale.grid is None:
        return total, a_scale + w_scale, (a_scale == 255) | (w_scale == 255)
    fields = [(scale >> 3 & 15, scale & 7) for scale in (a_scale, w_scale)]
    for e, mantissa in fields:
        total = total * (mantissa + np.where(e, 8, 0))
    nan = (a_scale & 127 == 127) | (w_scale & 127 == 127)
    return total, sum(np.maximum(e, 1) for e, _ in fields), nan
