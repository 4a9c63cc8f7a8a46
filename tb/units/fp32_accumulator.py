"""Testbench of the accumulators: exact products in, the golden model's sums out."""

import numpy as np

from m2xfp.facts import Facts
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.tb.parts.mac_arrays import chains, formats
from m2xfp.tb.units.dot_product import Bools, Bytes
from m2xfp.tb.units.dot_product import make_job as dot_product_job
from m2xfp.tb.units.group_dot import product_words, products
from m2xfp.tb.vectors import Beats, Job

__all__ = ["make_job"]


def make_job(description: Facts, act: Bytes, weight: Bytes, first: Bools, seed: int = 0) -> Job:
    """Return the products of packed groups as beats, and the accumulators that must come out.

    Parameters as for ``make_job`` of the dot product, whose results these are; only its operands
    are already multiplied here.
    """
    job = dot_product_job(description, act, weight, first, seed)
    blocks = formats(description)
    steps, count = first.shape
    turns = chains(description)
    pair = DotPair(*blocks)
    rows = steps * count
    found = products(act.reshape(rows, -1), weight.reshape(rows, -1), blocks)
    words = product_words(*found, pair)
    words |= first.reshape(-1).astype(np.uint64) << np.uint64(
        pair.product_shape.width + pair.exponent_bits + 1
    )
    order = words.reshape(steps, count // turns, turns).swapaxes(0, 1).reshape(-1, 1)
    table = order.astype("<u8").view(np.uint8)[:, : description.inputs[0].bytes]
    beats = Beats(np.ascontiguousarray(table), job.outputs["o"].last)
    return Job({"i": beats}, job.outputs, job.groups)
