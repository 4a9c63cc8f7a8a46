"""Testbench of the dot product: pairs of packed groups in, accumulators out."""

from collections.abc import Iterator

from m2xfp.facts import Facts
from m2xfp.tb.arguments import Argument
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.parts.addend_arguments import addends
from m2xfp.tb.parts.pair_cover import cover
from m2xfp.tb.parts.pairs import decode, encode, expected, formats, load, sample, vectors
from m2xfp.tb.parts.sum_cover import unreached
from m2xfp.tb.parts.wide_stimulus import WIDE, is_wide, wide_groups
from m2xfp.tb.regression import Case

__all__ = [
    "argued",
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
    """Yield all distributions of pairs, as dot products; of products longer than a sum, theirs."""
    blocks = formats(facts)
    names = WIDE if is_wide(blocks) else ()
    more = ((name, wide_groups(name, blocks, 12, 600, seed)) for name in names)
    return pair_stimulus.regression(facts, seed, more)


def argued(facts: Facts) -> list[Argument]:
    """Return what is argued of the addends of FP32 sums."""
    if facts.parameters["window"] is not None:
        return []
    return addends(r"unit[.]accumulator", "addend_o")
