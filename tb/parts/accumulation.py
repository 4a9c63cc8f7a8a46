"""What the units that accumulate have in common: the order of their beats, and their results."""

import heapq
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts, Field
from m2xfp.tb.bench import Arrays
from m2xfp.tb.fields import Bytes, number, pack, read
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "chains",
    "from_reset",
    "interleaved",
    "read_results",
    "result_beats",
    "run_length",
    "schedule",
    "scheduled",
    "vectors_of_rows",
]

Bools = NDArray[np.bool_]


def chains(facts: Facts) -> int:
    """Return the dot products that take turns in a unit."""
    return 1 if facts.parameters.get("window") else int(facts.parameters["chains"])


def schedule(first: Bools, chains: int) -> NDArray[np.int64]:
    """Return the order in which rows go into a unit with ``chains`` interleaved accumulators.

    Parameters
    ----------
    first
        bool [n]: a dot product begins here (row 0 begins one in any case).
    chains
        Accumulators, which take turns.

    Returns
    -------
    int64 [slots]: the row in each slot, -1 where a chain has nothing left. Each dot product stays
    in one chain, the next one goes to the chain that is free first, and the last slot is a row.
    """
    starts = np.flatnonzero(first)
    starts = starts if len(starts) and starts[0] == 0 else np.insert(starts, 0, 0)
    ends = np.append(starts[1:], len(first))
    free = [(0, chain) for chain in range(chains)]
    rows: list[list[NDArray[np.int64]]] = [[] for _ in range(chains)]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        used, chain = heapq.heappop(free)
        rows[chain].append(np.arange(start, end))
        heapq.heappush(free, (used + end - start, chain))
    length = max(used for used, _ in free)
    slots = np.full((length, chains), -1, np.int64)
    for chain, parts in enumerate(rows):
        if parts:
            column = np.concatenate(parts)
            slots[: len(column), chain] = column
    order = slots.reshape(-1)
    return order[: np.flatnonzero(order >= 0)[-1] + 1]


def scheduled(first: Bools, parts: int, facts: Facts) -> NDArray[np.int64]:
    """Return for each beat on the stream its index among the rows' beats, -1 for a filler."""
    begins = np.zeros(len(first) * parts, bool)
    begins[::parts] = first
    return schedule(begins, chains(facts))


def run_length(first: Bools, count: int = 1) -> int:
    """Return the rows of the shortest runs of equal length that all begin with ``first``.

    So that their number is a multiple of ``count``. All rows, if there is no such length: one run,
    which begins at reset.
    """
    total = len(first)
    for length in range(1, total // count + 1):
        if total % (length * count) == 0 and first[::length].all():
            return length
    return total


def interleaved(rows: NDArray[Any], length: int, turns: int) -> NDArray[Any]:
    """Return rows [n, parts, ...] of runs one after the other in the order of the stream.

    ``turns`` runs at a time take turns, a beat each: [n * parts, ...].
    """
    parts, rest = rows.shape[1], rows.shape[2:]
    sets = rows.reshape(-1, turns, length, parts, *rest)
    return np.ascontiguousarray(np.moveaxis(sets, 1, 3).reshape(-1, *rest))


def vectors_of_rows(
    inputs: Bytes, results: Bytes, first: Bools, facts: Facts, seed: int
) -> TestVectors:
    """Return vectors in which as many runs as there are chains are a piece.

    Parameters
    ----------
    inputs, results
        uint8 [n, parts, bytes]: the beats of each row.
    first
        bool [n]: a dot product begins here; runs must be of one length, see ``run_length``.
    facts
        The unit.
    seed
        Of TLAST, which is random in every beat and must come out with it.
    """
    turns = chains(facts)
    length = run_length(first, turns)
    if len(first) % (length * turns):
        raise ValueError(
            f"{len(first)} rows are no equal runs that {turns} chains can take in turns; give "
            "dot products of one length, a multiple of the chains of them"
        )
    data = interleaved(inputs, length, turns)
    last = np.random.default_rng(seed).random(len(data)) < 0.5
    return TestVectors(
        {"i": Beats(data, last)},
        {"o": Beats(interleaved(results, length, turns), last)},
        len(first) // (length * turns),
    )


def from_reset(vectors: TestVectors, facts: Facts) -> TestVectors:
    """Return vectors whose first beat does not say that a dot product begins: reset did."""
    beats, field = vectors.inputs["i"], facts.stream("i").field("first")
    data = beats.data.copy()
    data[0, field.offset // 8] &= ~np.uint8(1 << field.offset % 8)
    return replace(vectors, inputs={"i": Beats(data, beats.last)})


def _pattern(facts: Facts) -> Field:
    """Return the field of the accumulator's FP32 pattern."""
    stream = facts.stream("o")
    names = {field.name for field in stream.fields}
    return number(stream, "acc." if "acc.mantissa" in names else "")


def result_beats(results: Arrays, facts: Facts) -> Bytes:
    """Return the beats of results ``acc`` and, of an exact accumulation, ``inexact``: each [n]."""
    stream = facts.stream("o")
    values = {_pattern(facts): results["acc"]}
    if "inexact" in results:
        values[stream.field("inexact")] = results["inexact"]
    return pack(stream, values)


def read_results(data: Bytes, facts: Facts) -> Arrays:
    """Return ``acc`` and, of an exact accumulation, ``inexact`` of beats."""
    stream = facts.stream("o")
    found: Arrays = {"acc": read(_pattern(facts), data)}
    if any(field.name == "inexact" for field in stream.fields):
        found["inexact"] = read(stream.field("inexact"), data)
    return found
