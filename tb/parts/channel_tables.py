"""Tables of the channel permuter: any order of channels, without two values in one memory."""

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError

__all__ = ["check_order", "colours", "order_of", "table_of"]


def check_order(order: NDArray[np.int64], lanes: int, max_k: int) -> None:
    """Raise InputError, with the limits, for an order that the permuter does not take."""
    k = len(order)
    if k % lanes or not lanes <= k <= max_k:
        raise InputError(
            f"order of {k} channels: must be a multiple of the {lanes} lanes, at most {max_k}"
        )
    count = np.bincount(order[(order >= 0) & (order < k)], minlength=k)
    if len(outside := order[(order < 0) | (order >= k)]):
        raise InputError(f"order: channel {outside[0]} is not one of 0 to {k - 1}")
    if (count != 1).any():
        channel = int(np.flatnonzero(count > 1)[0])
        raise InputError(f"order: channel {channel} comes {count[channel]} times; each comes once")


def colours(order: NDArray[np.int64], lanes: int) -> NDArray[np.int64]:
    """Return the memory of the value at each place of the result, int64 [k].

    The values are edges between beats of the row and of the result, ``lanes`` at each. Halves: the
    edges of a graph of even degree make circles; every second edge of each is one half, and both
    have half the degree, until each is a matching.
    """
    found = np.zeros(len(order), np.int64)
    parts = [np.arange(len(order))]
    for bit in range((lanes - 1).bit_length()):
        halves = []
        for places in parts:
            second = _second_half(order[places] // lanes, places // lanes)
            found[places[second]] |= 1 << bit
            halves += [places[~second], places[second]]
        parts = halves
    return found


def _second_half(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which edges of a bipartite graph of even degree are in one half of each node's."""
    partners = []
    for nodes in (left, right):  # edges of a node in pairs, which get unlike halves
        order = np.argsort(nodes, kind="stable")
        partner = np.empty(len(nodes), np.int64)
        partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
        partners.append(partner.tolist())
    half = [-1] * len(left)
    for start in range(len(left)):
        edge = start
        while half[edge] < 0:
            half[edge] = 0
            other = partners[0][edge]
            half[other] = 1
            edge = partners[1][other]
    return np.array(half) == 1


def table_of(order: NDArray[np.int64], lanes: int) -> dict[str, NDArray[np.int64]]:
    """Return ``to``, ``source`` and ``address``, int64 [beats, lanes], of an order of channels."""
    memory = colours(order, lanes)
    to = np.empty(len(order), np.int64)
    to[order] = memory
    address = np.empty((len(order) // lanes, lanes), np.int64)
    beats = np.arange(len(order)) // lanes
    address[beats, memory] = order // lanes
    return {
        "to": to.reshape(-1, lanes),
        "source": memory.reshape(-1, lanes),
        "address": address,
    }


def order_of(table: dict[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the order of channels that a table has."""
    source, address = table["source"], table["address"]
    beat = np.take_along_axis(address, source, axis=1)
    lane = np.argsort(table["to"], axis=1)  # memory to lane, of each beat of the row
    return (beat * source.shape[1] + lane[beat, source]).reshape(-1)
