"""The stimulus of units that read values, under the name by which the tests call it."""

from m2xfp.tb.parts.value_stimulus import (
    DISTRIBUTIONS,
    all_patterns,
    from_float64,
    groups,
    packed_groups,
)

__all__ = ["DISTRIBUTIONS", "all_patterns", "from_float64", "groups", "packed_groups"]
