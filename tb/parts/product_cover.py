"""What the sums of the accumulators have gone through."""

from collections.abc import Iterator

import numpy as np

from m2xfp.facts import Facts
from m2xfp.tb.cross import Cross
from m2xfp.tb.fields import read
from m2xfp.tb.parts.product_stimulus import Range
from m2xfp.tb.parts.sum_cover import cover_sums
from m2xfp.tb.vectors import TestVectors

__all__ = ["cover"]


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what some beats were."""
    stream, data = facts.stream("i"), vectors.inputs["i"].data
    product, exponent = (
        np.asarray(read(stream.field(f"product.{name}"), data), np.int64)
        for name in ("product", "exponent")
    )
    nan, first = (
        np.asarray(read(stream.field(name), data), bool) for name in ("product.nan", "first")
    )
    yield from cover_sums(vectors, facts, product, exponent, nan, first, Range.of(facts).one)
