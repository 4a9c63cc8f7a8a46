"""Testbench of the PE tile: pairs of packed groups in, accumulators out."""

from m2xfp.tb.parts.pair_stimulus import regression
from m2xfp.tb.parts.pairs import decode, encode, expected, load, sample, vectors

__all__ = ["decode", "encode", "expected", "load", "regression", "sample", "vectors"]
