"""Testbench of the switching dot product: groups of changing formats in, accumulators out."""

from m2xfp.facts import Facts
from m2xfp.tb.arguments import Argument
from m2xfp.tb.parts.addend_arguments import addends
from m2xfp.tb.parts.switch_cover import cover, unreached
from m2xfp.tb.parts.switch_groups import check, decode, encode, expected, load, sample, vectors
from m2xfp.tb.parts.switch_stimulus import regression

__all__ = [
    "argued",
    "check",
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


def argued(facts: Facts) -> list[Argument]:
    """Return what is argued of the addends of FP32 sums."""
    if facts.parameters["window"] is not None:
        return []
    return addends(r"unit[.]accumulator", "placed.o", "placed.i")
