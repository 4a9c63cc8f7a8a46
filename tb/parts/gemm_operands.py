"""The operands of a GEMM core's commands, read back from the beats that were played."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.tb.fields import Bytes, number, read
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product
from m2xfp.tb.parts.groups import packed_values
from m2xfp.tb.vectors import TestVectors

__all__ = ["GivenRows", "carried_out", "given_products"]


def carried_out(vectors: TestVectors, facts: Facts) -> NDArray[np.int64]:
    """Return the numbers of the commands that were carried out, up to the first that was not whole.

    Those that were refused, or resynchronise, take no operands.
    """
    told, given = vectors.outputs["status"].data, vectors.inputs["cmd"].data
    count = min(len(told), len(given))
    status, command = facts.stream("status"), facts.stream("cmd")
    names = [field.name for field in status.fields if field.name != "tag"]
    faults = {name: np.asarray(read(status.field(name), told[:count]), bool) for name in names}
    whole = np.cumsum(faults["misframed"]) == 0
    resync = np.asarray(read(command.field("resync"), given[:count]), bool)
    return np.flatnonzero(whole & ~resync & ~np.any(list(faults.values()), axis=0))


def _rows_of_beats(
    values: NDArray[Any], m: int, words: int, streams: GemmStreams
) -> tuple[NDArray[Any], int]:
    """Return what beats [beats, rows, ...] of activations say, [m, words, ...], and their number.

    ``words`` are the beats of a row; the beats are those of one panel, see docs/integration.md.
    """
    found = np.zeros((-(-m // streams.rows) * streams.rows, words, *values.shape[2:]), values.dtype)
    at = 0
    for top in range(0, len(found), streams.rows * streams.chains):
        turns = min(streams.chains, (len(found) - top) // streams.rows)
        piece = values[at : at + words * turns]
        piece = piece.reshape(words, turns, streams.rows, *values.shape[2:])
        block = np.moveaxis(piece, 0, 2).reshape(turns * streams.rows, words, *values.shape[2:])
        found[top : top + len(block)] = block
        at += words * turns
    return found[:m], at


class GivenRows:
    """Beats of both operands, taken command by command.

    Parameters
    ----------
    vectors, streams
        What was played, and how.
    acts, weights
        What each beat says: [beats, rows, ...].
    """

    def __init__(
        self, vectors: TestVectors, streams: GemmStreams, acts: NDArray[Any], weights: NDArray[Any]
    ) -> None:
        self._streams, self._acts, self._weights = streams, acts, weights
        command, given = streams.facts.stream("cmd"), vectors.inputs["cmd"].data
        names = ("m", "n", "k")
        sizes = [np.asarray(read(command.field(name), given), np.int64) for name in names]
        self.sizes: list[list[int]] = np.stack(sizes, axis=1).tolist()

    def take(self, m: int, n: int, words: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return what a command's operands are, [m, words, ...] and [n, words, ...]."""
        acts, count = _rows_of_beats(self._acts, m, words, self._streams)
        self._acts = self._acts[-(-n // self._streams.columns) * count :]
        together = self._weights.shape[1]
        count = -(-n // together) * words
        mine, self._weights = self._weights[:count], self._weights[count:]
        mine = mine.reshape(-1, words, *mine.shape[1:]).swapaxes(1, 2)
        return acts, mine.reshape(-1, words, *mine.shape[3:])[:n]


def _groups_of_beats(streams: GemmStreams, name: str, block: BlockFormat, data: Bytes) -> Bytes:
    """Return the packed groups of beats, uint8 [beats, rows, bytes]."""
    fields = {field.name: field for field in streams.facts.stream(name).fields}
    path = "rows" if "rows.codes" in fields else "group"
    names = ("codes", "scale", *(["meta"] if block.subgroups else []))
    values = {each: np.asarray(read(fields[f"{path}.{each}"], data)) for each in names}
    if path == "group":
        values = {each: array[:, None] for each, array in values.items()}
    return packed_values(values, block)


def given_products(vectors: TestVectors, facts: Facts) -> Iterator[Product]:
    """Yield the products that were carried out, activations as packed groups."""
    from m2xfp.golden import get_format
    from m2xfp.golden.bits import from_bits

    streams = GemmStreams(facts)
    chosen = carried_out(vectors, facts)
    if not len(chosen):
        return
    kind = facts.parameters["activations"]
    acts, data = facts.stream("acts"), vectors.inputs["acts"].data
    given = GivenRows(
        vectors,
        streams,
        _groups_of_beats(streams, "acts", streams.act, data)
        if kind is None
        else np.asarray(read(number(acts, "rows."), data)),
        _groups_of_beats(streams, "weights", streams.weight, vectors.inputs["weights"].data),
    )
    for index in chosen:
        m, n, k = given.sizes[index]
        rows, weights = given.take(m, n, k // streams.act.group)
        if kind is not None:
            quantized = get_format(streams.act.name).quantize(from_bits(kind, rows.reshape(m, k)))
            rows = quantized.groups().numpy().reshape(m, k // streams.act.group, -1)
        yield Product(rows, weights, k)
