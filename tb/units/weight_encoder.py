"""Testbench of the weight encoder: groups of values in, packed groups out."""

from m2xfp.facts import Facts
from m2xfp.tb.bench import Arrays, Operands
from m2xfp.tb.parts.value_cover import cover, half_rate
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


def unreached(facts: Facts) -> dict[str, str]:
    """Return what follows from the largest values, and from the time that a search takes."""
    return half_rate(facts) | {
        r"unit[.](coarse|coarse_\d+_gains|coarse_\d+[.]gains|gains_\d+[.]coarse)\[[357]8\]:.*": "a "
        "gain grows with the values, and eight of the largest (large gains) stay below that bit",
        r"unit[.]waiting[.]moves_\d+:.*": "a group is chosen in the clock in which its values "
        "reach the end of the queue (job queue-moves)",
    }
