"""Testbench of the weight encoder: groups of values in, packed groups out."""

from m2xfp.facts import Facts
from m2xfp.tb.bench import Arrays, Operands
from m2xfp.tb.parts.value_cover import cover, unreached
from m2xfp.tb.parts.values import (
    decode,
    encode,
    expected,
    load,
    regression,
    sample_of,
    vectors,
)

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


def sample(operands: Operands, facts: Facts) -> Arrays:
    """Return the weights."""
    return sample_of("weights", operands, facts)
