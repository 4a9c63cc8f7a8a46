"""Testbench of the activation quantizer: groups of values in, packed groups out."""

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
    """Return the activations."""
    return sample_of("activations", operands, facts)


def unreached(facts: Facts) -> dict[str, str]:
    """Return what follows from how groups go through the unit."""
    beats = facts.beats_per_group
    if beats == 1:
        return {}
    return half_rate(facts) | {
        r"unit[.]u_scale[.]t1\[[89]\]:.*": "the largest exponent of a group begins at 2, so that "
        "no scale is below 0",
        f"beats of i: [1-{beats - 1}], (no ready|both)": "the unit waits before a group, for the "
        "group before it, and not within one (job taken-whole)",
    }
