"""Testbench of the group dot product: pairs of packed groups in, exact products out."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from m2xfp.facts import Facts
from m2xfp.tb.bench import Arrays, Operands, golden_of
from m2xfp.tb.cross import Cross
from m2xfp.tb.fields import Bytes, pack, read
from m2xfp.tb.parts.pair_cover import cover_operands
from m2xfp.tb.parts.pair_stimulus import DISTRIBUTIONS, groups
from m2xfp.tb.parts.pairs import formats, load_pairs, pairs, sample_pairs, side_values, sides
from m2xfp.tb.regression import Case, steady_cases
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = [
    "cover",
    "decode",
    "encode",
    "expected",
    "load",
    "regression",
    "sample",
    "vectors",
]

RESULTS = ("product", "exponent", "nan")


def load(path: Path, facts: Facts) -> Arrays:
    """Read pairs of packed groups, an .npz file.

    Returns
    -------
    dict
        ``a_codes``, ``w_codes`` uint8 [n, bytes of codes]; ``a_scales``, ``w_scales`` and, if the
        format has metadata, ``a_meta``, ``w_meta`` uint8 [n].
    """
    return load_pairs(path, facts)


def _beats(arrays: Arrays, facts: Facts) -> Bytes:
    stream = facts.stream("i")
    values = side_values(arrays, facts)
    return pack(stream, {stream.field(name): array[:, 0] for name, array in values.items()})


def encode(arrays: Arrays, facts: Facts) -> dict[str, Beats]:
    """Return a beat a pair, TLAST on the last."""
    data = _beats(arrays, facts)
    return {"i": Beats(data, np.arange(len(data)) == len(data) - 1)}


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``product`` and ``exponent``, int64 [n], and ``nan``, bool [n]."""
    stream = facts.stream("o")
    found = {name: read(stream.field(name), beats["o"].data) for name in RESULTS}
    return found | {name: found[name].astype(np.int64) for name in ("product", "exponent")}


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's products."""
    return golden_of(facts)(*sides(arrays, facts))


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return pairs and products, a piece each; TLAST is random and must come out."""
    inputs, stream = _beats(arrays, facts), facts.stream("o")
    results = expected(arrays, facts)
    outputs = pack(stream, {stream.field(name): results[name] for name in RESULTS})
    last = np.random.default_rng(seed).random(len(inputs)) < 0.5
    return TestVectors({"i": Beats(inputs, last)}, {"o": Beats(outputs, last)}, len(inputs))


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return activations with weights."""
    return sample_pairs(operands, facts, operands.lanes * operands.depth)


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield pairs of all distributions."""

    def stimulus() -> Iterator[tuple[str, Arrays]]:
        for name in DISTRIBUTIONS:
            act, weight, _ = groups(name, formats(facts), 10, 200, seed)
            acts, weights = (side.reshape(-1, side.shape[2]) for side in (act, weight))
            yield name, pairs(acts, weights, facts)

    return steady_cases(stimulus(), vectors, facts, seed)


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what the operands of some pairs were."""
    return cover_operands(vectors, facts)
