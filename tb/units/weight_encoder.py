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
    """Return what follows from the bounds of gains, and from the time that a search takes."""
    return half_rate(facts) | {
        r"unit[.]coarse_\d+[.](t1\[(19|2[0-4])|t4\[(19|2[0-2])|t6\[(19|2[0-3]))\]:.*": "a value's "
        "gain is the most that any element's gives (job lane-gains), and eight are below that bit",
        r"unit[.]gains_\d+[.](t0\[21|t[12]\[2[12])\]:.*": "so are their multiples",
        r"unit[.]waiting[.]moves_\d+:.*": "a group is chosen in the clock in which its values "
        "reach the end of the queue (job queue-moves)",
    }
