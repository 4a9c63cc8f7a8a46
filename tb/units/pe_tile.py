"""Testbench of the PE tile: pairs of packed groups in, accumulators out."""

from collections.abc import Iterator

from m2xfp.facts import Facts
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.parts.pair_cover import cover
from m2xfp.tb.parts.pairs import decode, encode, expected, load, sample, vectors
from m2xfp.tb.parts.sum_cover import unreached
from m2xfp.tb.regression import Case

__all__ = [
    "cover",
    "decode",
    "encode",
    "expected",
    "load",
    "regression",
    "sample",
    "unreached",
    "vectors",
]


def regression(facts: Facts, seed: int = 0) -> Iterator[Case]:
    """Yield all distributions of pairs, as dot products."""
    return pair_stimulus.regression(facts, seed)
