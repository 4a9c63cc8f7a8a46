"""Testbench of the FP32 accumulator: exact products in, accumulators out."""

from m2xfp.tb.parts.products import (
    decode,
    encode,
    expected,
    load,
    regression,
    sample,
    vectors,
)

__all__ = ["decode", "encode", "expected", "load", "regression", "sample", "vectors"]
