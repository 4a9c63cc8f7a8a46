"""The stimulus of units that multiply, under the name by which the tests call it."""

from m2xfp.tb.parts.pair_stimulus import DISTRIBUTIONS, groups, pair_arrays, pair_vectors

__all__ = ["DISTRIBUTIONS", "groups", "pair_arrays", "pair_vectors"]
