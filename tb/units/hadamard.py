"""Testbench of the Hadamard unit: blocks of values and signs in, transformed blocks out."""

from collections.abc import Iterator, Mapping

import numpy as np

from m2xfp.facts import Facts
from m2xfp.tb.bench import Arrays, golden_of
from m2xfp.tb.cross import Cross
from m2xfp.tb.fields import number, pack, read
from m2xfp.tb.parts.block_cover import cover_blocks, cover_sums
from m2xfp.tb.parts.blocks import encode, load, regression_of, sample, vectors_of
from m2xfp.tb.regression import Case
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


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return ``y``: the patterns of the transform."""
    patterns = read(number(facts.stream("o")), beats["o"].data)
    return {"y": patterns.reshape(-1, facts.parameters["points"]).astype(np.uint16)}


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's transform."""
    return golden_of(facts)(arrays["x"], arrays["flips"])


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return beats and transformed beats, a piece a block."""
    stream = facts.stream("o")
    patterns = number(stream)
    y = expected(arrays, facts)["y"].reshape(-1, *patterns.shape)
    return vectors_of(pack(stream, {patterns: y}), arrays, facts, seed)


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield blocks of all distributions, and what is hard for the rounding."""
    return regression_of(vectors, facts, seed)


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what the values, sums and results of some blocks were."""
    patterns = read(number(facts.stream("o")), vectors.outputs["o"].data)
    yield from cover_blocks(vectors, facts)
    yield from cover_sums(
        vectors, facts, patterns.reshape(-1, facts.parameters["points"]).astype(np.int64)
    )
