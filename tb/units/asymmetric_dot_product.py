"""Testbench of the asymmetric dot product: pairs of groups with two scales in, accumulators out."""

from m2xfp.facts import Facts
from m2xfp.rtl.parts.asymmetric_pair import AsymmetricPair
from m2xfp.tb.parts.class_cover import cover
from m2xfp.tb.parts.class_pairs import decode, encode, expected, vectors
from m2xfp.tb.parts.class_stimulus import regression
from m2xfp.tb.parts.pairs import formats, load, sample

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

_PLACES = 24  # of a significand of FP32


def unreached(facts: Facts) -> dict[str, str]:
    """Return what follows from the largest product, where scales are minifloats."""
    blocks = formats(facts)
    grids = [block.scale.grid for block in blocks]
    if facts.parameters.get("window") or None in grids:
        return {}
    pair = AsymmetricPair(*blocks, sums=facts.parameters["sums"])
    tops = [grid.max_code >> grid.mantissa_bits for grid in grids if grid is not None]
    # In the units of ``product_bound``: below this power of two, and where a sum no longer grows.
    product = pair.product_bound.bit_length() + sum(tops) - pair.bias
    largest = product + _PLACES + 1
    found = {}
    # Significands count from the exponent field 1 on.
    unit = len(blocks) - pair.bias
    if unit > -126:
        found["result: (subnormal, [+-]|zero, -)"] = (
            f"products are multiples of 2^{unit}, so no sum is smaller, and none is rounded to zero"
        )
    if largest < 128:
        bound = (
            f"a product is below 2^{product}, and leaves a sum of 2^{largest} as it is, which is "
            "far from infinity"
        )
        found["result: infinity, [+-]"] = bound
        found[
            r"unit[.]accumulator[.]addition_\d+[.](normalise_o|normalise[.]o|round[.]i)\[31\]:.*"
        ] = bound
    return found
