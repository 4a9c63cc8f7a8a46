"""Testbench of the Hadamard unit with the quantizer: blocks and signs in, packed groups out."""

from collections.abc import Iterator, Mapping

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat, block_format
from m2xfp.tb.bench import Arrays, golden_of
from m2xfp.tb.parts.blocks import encode, load, regression_of, sample, vectors_of
from m2xfp.tb.parts.groups import group_beats, planes_of_beats, user_planes
from m2xfp.tb.regression import Case
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["decode", "encode", "expected", "load", "regression", "sample", "vectors"]


def _block(facts: Facts) -> BlockFormat:
    return block_format(facts.parameters["block"])


def decode(beats: Mapping[str, Beats], arrays: Arrays, facts: Facts) -> Arrays:
    """Return the planes of the packed groups: ``codes``, ``scales`` and, if any, ``meta``."""
    return planes_of_beats(facts.stream("o"), beats["o"].data, _block(facts))


def expected(arrays: Arrays, facts: Facts) -> Arrays:
    """Return the golden model's planes."""
    return user_planes(golden_of(facts)(arrays["x"], arrays["flips"]), _block(facts))


def vectors(arrays: Arrays, facts: Facts, seed: int = 0) -> TestVectors:
    """Return beats and packed groups, a piece a block."""
    results = group_beats(facts.stream("o"), expected(arrays, facts), _block(facts))
    return vectors_of(results, arrays, facts, seed)


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield blocks of all distributions, and what is hard for the rounding."""
    return regression_of(vectors, facts, seed)
