"""Testbench of the PE tile: pairs of packed groups in, accumulators out."""

from m2xfp.tb.parts.pair_cover import cover
from m2xfp.tb.parts.pair_stimulus import regression
from m2xfp.tb.parts.pairs import decode, encode, expected, load, sample, vectors
from m2xfp.tb.parts.sum_cover import unreached

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
