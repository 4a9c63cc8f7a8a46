"""Testbench of the switching dot product: groups of changing formats in, accumulators out."""

from m2xfp.tb.parts.switch_cover import cover, unreached
from m2xfp.tb.parts.switch_groups import decode, encode, expected, load, sample, vectors
from m2xfp.tb.parts.switch_stimulus import regression

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
