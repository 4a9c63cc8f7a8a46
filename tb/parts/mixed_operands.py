"""The segments of a mixed GEMM's commands, read back from the beats that were played."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat
from m2xfp.pairs import FORMAT_NUMBERS
from m2xfp.tb.fields import Bytes, read
from m2xfp.tb.parts.gemm_operands import GivenRows, carried_out
from m2xfp.tb.parts.mixed_arrays import GROUP, MixedProduct, MixedStreams, Part
from m2xfp.tb.vectors import TestVectors

__all__ = ["given_products"]


def _words(streams: MixedStreams, name: str, path: str, data: Bytes) -> Bytes:
    """Return codes, scale and a byte of metadata of each word: uint8 [beats, rows, bytes]."""
    fields = {field.name: field for field in streams.facts.stream(name).fields}
    codes = np.asarray(read(fields[f"{path}.codes"], data), np.uint8)
    parts = [codes, np.asarray(read(fields[f"{path}.scale"], data), np.uint8)[..., None]]
    meta = np.zeros((*codes.shape[:-1], 1), np.uint8)
    if f"{path}.meta" in fields:
        values = np.asarray(read(fields[f"{path}.meta"], data), np.uint8)
        meta[..., 0] = (values << np.arange(0, 8, 2)).sum(axis=-1)
    whole = np.concatenate([*parts, meta], axis=-1)
    return whole if whole.ndim == 3 else whole[:, None]


def _groups(words: Bytes, block: BlockFormat, beats: int) -> Bytes:
    """Return packed groups [rows, groups, bytes] of words [rows, words, bytes]."""
    rows, size = len(words), block.group_bytes[0] // beats
    whole = words.reshape(rows, -1, beats, words.shape[2])
    parts: list[NDArray[Any]] = [whole[..., :size].reshape(rows, -1, block.group_bytes[0])]
    parts.append(whole[:, :, 0, -2:-1])
    if block.metadata.bits:
        parts.append(whole[:, :, 0, -1:])
    return np.concatenate(parts, axis=2)


def given_products(vectors: TestVectors, facts: Facts) -> Iterator[MixedProduct]:
    """Yield the products that were carried out."""
    streams, command = MixedStreams(facts), facts.stream("cmd")
    chosen = carried_out(vectors, facts)
    if not len(chosen):
        return
    given = GivenRows(
        vectors,
        streams,
        _words(streams, "acts", "rows", vectors.inputs["acts"].data),
        _words(streams, "weights", "beat", vectors.inputs["weights"].data),
    )
    tables = np.stack(
        [
            np.asarray(read(command.field(f"segments.{name}"), vectors.inputs["cmd"].data))
            for name in ("end", "act", "weight")
        ],
        axis=2,
    ).astype(np.int64)
    pairs = {
        tuple(FORMAT_NUMBERS[block.name] for block in pair): pair for pair in streams.pairs.pairs
    }
    for index in chosen:
        m, n, _ = given.sizes[index]
        segments, begin = [], 0
        for end, act, weight in tables[index].tolist():
            if end > begin:
                segments.append((pairs[act, weight], end - begin))
            begin = end
        beats = [
            GROUP // streams.lanes if pair in streams.pairs.wide else 1 for pair, _ in segments
        ]
        words = [groups * each for (_, groups), each in zip(segments, beats, strict=True)]
        sides = [np.split(side, np.cumsum(words)[:-1], 1) for side in given.take(m, n, sum(words))]
        yield MixedProduct(
            tuple(
                Part(pair[0], pair[1], _groups(one, pair[0], each), _groups(other, pair[1], each))
                for (pair, _), each, one, other in zip(segments, beats, *sides, strict=True)
            )
        )
