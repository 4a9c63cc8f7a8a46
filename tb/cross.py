"""Functional coverage: how often each combination of some cases came up."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Cross", "cross", "labels", "merged"]

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Cross:
    """Counts of all combinations of some cases.

    Members
    -------
    name
        What it is about.
    axes
        Names of the cases along each dimension.
    counts
        How often each combination came up.
    possible
        Which combinations there can be.
    """

    name: str
    axes: Mapping[str, tuple[str, ...]]
    counts: Counts
    possible: NDArray[np.bool_]

    @property
    def bins(self) -> int:
        """Number of combinations that there can be."""
        return int(self.possible.sum())

    @property
    def covered(self) -> int:
        """How many of them came up."""
        return int((self.possible & (self.counts > 0)).sum())

    def names(self, chosen: NDArray[np.bool_]) -> list[str]:
        """Return the names of chosen combinations."""
        found = []
        for place in np.argwhere(chosen):
            cases = [axis[at] for axis, at in zip(self.axes.values(), place, strict=True)]
            found.append(f"{self.name}: {', '.join(cases)}")
        return found

    @property
    def holes(self) -> list[str]:
        """Combinations that can be and did not come up."""
        return self.names(self.possible & (self.counts == 0))

    @property
    def surprises(self) -> list[str]:
        """Combinations that came up though they cannot be."""
        return self.names(~self.possible & (self.counts > 0))


def labels(cases: Iterable[Any]) -> tuple[str, ...]:
    """Return cases as texts."""
    return tuple(map(str, cases))


def cross(
    name: str,
    axes: Mapping[str, Sequence[Any]],
    *indices: ArrayLike,
    where: ArrayLike = True,
    possible: ArrayLike | None = None,
) -> Cross:
    """Count combinations.

    Parameters
    ----------
    name
        What it is about.
    axes
        The cases of each dimension.
    indices
        For each dimension the number of the case, of each event; they are broadcast.
    where
        Which events count; those with a number outside of a dimension never do.
    possible
        Which combinations there can be, broadcast; None for all.
    """
    shape = tuple(map(len, axes.values()))
    *places, chosen = np.broadcast_arrays(*(np.asarray(index) for index in indices), where)
    inside = chosen.astype(bool)
    for place, size in zip(places, shape, strict=True):
        inside = inside & (place >= 0) & (place < size)
    flat = np.ravel_multi_index(tuple(place[inside].astype(np.int64) for place in places), shape)
    counts = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
    can_be = np.broadcast_to(True if possible is None else np.asarray(possible), shape)
    return Cross(name, {key: labels(axis) for key, axis in axes.items()}, counts, can_be)


def merged(crosses: Iterable[Cross]) -> dict[str, Cross]:
    """Return crosses by name, the counts of those of one name added."""
    found: dict[str, Cross] = {}
    for each in crosses:
        known = found.get(each.name)
        counts = each.counts if known is None else known.counts + each.counts
        found[each.name] = Cross(each.name, each.axes, counts, each.possible)
    return found
