"""Testbench of the asymmetric dot product: pairs of groups with two scales in, accumulators out."""

from m2xfp.tb.parts.class_pairs import decode, encode, expected, vectors
from m2xfp.tb.parts.class_stimulus import regression
from m2xfp.tb.parts.pairs import load, sample

__all__ = ["decode", "encode", "expected", "load", "regression", "sample", "vectors"]
