"""Testbench of the FP32 accumulator: exact products in, accumulators out."""

from m2xfp.tb.parts.product_cover import cover
from m2xfp.tb.parts.products import (
    decode,
    encode,
    expected,
    load,
    regression,
    sample,
    vectors,
)
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
