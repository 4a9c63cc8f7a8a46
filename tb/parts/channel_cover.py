"""What tables and rows of the channel permuter have gone through.

Values are moved, and nothing looks at them: cases of numbers there are none.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import read
from m2xfp.tb.parts.channel_tables import order_of
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["SMALL", "cover", "faults_of"]

FAULTS = ("to", "source", "address", "beyond", "long")
ENDS = ("first", "inner", "last")
ROWS = ("as long", "shorter", "longer", "of a wrong table", "before any table")
SMALL = 64  # channels up to which each place is crossed with each channel

Table = dict[str, NDArray[np.int64]]


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield which channel came to which place, what tables had wrong, and how rows fitted."""
    lanes, most = int(facts.parameters["lanes"]), int(facts.parameters["max_k"])
    tables = list(_tables(vectors.inputs["table"], facts))
    wrong = [faults_of(table, most // lanes) for table in tables]
    right = [order_of(each) for each, why in zip(tables, wrong, strict=True) if not why]
    yield from _orders(right, lanes, most)
    found = [(FAULTS.index(fault), at) for why in wrong for fault, at in why]
    kinds, places = np.array(found, np.int64).reshape(-1, 2).T
    # A table that is cut to the memories' size has less room to be wrong in.
    possible = np.ones((len(FAULTS), lanes), bool)
    possible[FAULTS.index("beyond")] = most // lanes > 2
    possible[FAULTS.index("long"), 1:] = False
    yield cross(
        "what is wrong with a table",
        {"fault": FAULTS, "lane": range(lanes)},
        *(kinds, places),
        possible=possible,
    )
    rows = np.array(list(_rows(vectors.inputs["i"], tables, wrong, facts)), np.int64)
    yield cross("length of a row", {"row": ROWS}, rows)
    status = facts.stream("status")
    for field in status.fields:
        told = np.asarray(read(field, vectors.outputs["status"].data), bool)
        yield cross(f"report of {field.name}", {"reported": ("no", "yes")}, told)


def _orders(orders: list[NDArray[np.int64]], lanes: int, most: int) -> Iterator[Cross]:
    """Yield where channels of rows came to, by lanes, by ends and, of a small unit, each."""
    none = np.zeros(0, np.int64)
    channel = np.concatenate([none, *orders])
    place = np.concatenate([none, *(np.arange(len(order)) for order in orders)])
    last = np.concatenate([none, *(np.full(len(order), len(order) - 1) for order in orders)])
    axes = {"to": range(lanes), "from": range(lanes)}
    yield cross("lane of a value", axes, place % lanes, channel % lanes)
    ends = (np.where(each == last, 2, np.sign(each)) for each in (place, channel))
    yield cross("ends of a row", {"place": ENDS, "channel": ENDS}, *ends)
    if most <= SMALL:
        axes = {"place": range(most), "channel": range(most)}
        yield cross("channel at each place", axes, place, channel)
    beats = np.array([len(order) // lanes for order in orders], np.int64)
    yield cross("beats of a table", {"beats": range(1, most // lanes + 1)}, beats - 1)


def _tables(beats: Beats, facts: Facts) -> Iterator[Table]:
    """Yield tables one by one."""
    assert beats.last is not None
    stream, ends = facts.stream("table"), np.flatnonzero(beats.last) + 1
    words = {
        name: np.asarray(read(stream.field(name), beats.data), np.int64)
        for name in ("to", "source", "address")
    }
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        yield {name: array[start:stop] for name, array in words.items()}


def faults_of(table: Table, most: int) -> list[tuple[str, int]]:
    """Return what is wrong with a table, and the first lane that it is wrong of.

    Parameters
    ----------
    table
        ``to``, ``source`` and ``address``, [beats, lanes].
    most
        Beats of the longest row.

    Returns
    -------
    list
        ``to``, ``source``: no permutation of the memories in some beat, and the first that is
        missing there; ``address``: a beat twice in a memory, and ``beyond``: one behind the last,
        and the memory; ``long``: more beats than there may be, and 0.
    """
    beats, lanes = table["to"].shape
    found = [("long", 0)] if beats > most else []
    for name in ("to", "source"):
        there = (table[name][:, :, None] == np.arange(lanes)).any(axis=1)
        found += [(name, int(lane)) for lane in np.argwhere(~there)[:1, 1]]
    address = table["address"]
    beyond = (address >= beats).any(axis=0)
    twice = np.array([len(np.unique(column)) < beats for column in address.T])
    for name, memories in (("beyond", beyond), ("address", twice)):
        found += [(name, int(memory)) for memory in np.flatnonzero(memories)]
    return found


def _rows(
    beats: Beats, tables: list[Table], wrong: list[list[tuple[str, int]]], facts: Facts
) -> Iterator[int]:
    """Yield the number in ``ROWS`` of each row."""
    assert beats.last is not None
    fresh = np.asarray(read(facts.stream("i").field("fresh"), beats.data), bool)
    ends = np.flatnonzero(beats.last) + 1
    table = -1
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        table += int(fresh[start])
        if table < 0:
            yield ROWS.index("before any table")
        elif wrong[table]:
            yield ROWS.index("of a wrong table")
        else:
            yield (0, 2, 1)[int(np.sign(stop - start - len(tables[table]["to"])))]
