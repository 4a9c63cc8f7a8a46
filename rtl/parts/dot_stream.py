"""The stream around a product and an accumulation: chains that take turns, and a skid buffer."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from amaranth.hdl import Module
from amaranth.lib import stream

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.registers import delayed
from m2xfp.rtl.parts.skid_tail import add_skid, feed_skid
from m2xfp.rtl.parts.slot_arbiter import SlotArbiter

if TYPE_CHECKING:
    from m2xfp.rtl.parts.asymmetric_accumulation import ExactTerms, Fp32Terms
    from m2xfp.rtl.parts.asymmetric_product import ClassProducts
    from m2xfp.rtl.parts.exact_accumulation import ExactPipeline
    from m2xfp.rtl.parts.fp32_accumulation import AccumulatorPipeline
    from m2xfp.rtl.parts.group_product import ProductPipeline

__all__ = ["build_dot"]


def build_dot(
    i: stream.Interface,
    o: stream.Interface,
    product: "ProductPipeline | ClassProducts",
    accumulator: "AccumulatorPipeline | ExactPipeline | Fp32Terms | ExactTerms",
    *,
    depth: int,
    chains: int,
    beside: Iterable[str] = (),
) -> Module:
    """Return the logic of a unit that takes pairs of packed groups and gives running sums.

    Parameters
    ----------
    i, o
        Its streams: ``operands`` and ``first``; results.
    product, accumulator
        Its halves, of which all registers stand still together.
    depth
        Registers of the product.
    chains
        Accumulators that take beats in turn.
    beside
        What the accumulator takes of the product beside its ``i``, by the name that both have.
    """
    m = Module()
    m.submodules.slot_arbiter = arbiter = SlotArbiter(chains)
    m.submodules.product = product
    m.submodules.accumulator = accumulator
    skid = add_skid(m, o)
    step = skid.i.ready
    accepted = named(m, "accepted", i.valid & arbiter.grant)
    valid = delayed(m, step, "product_valid", accepted, depth, reset=True)
    m.d.comb += [
        arbiter.enable.eq(step),
        arbiter.request.eq(i.valid),
        i.ready.eq(step & arbiter.grant),
        product.enable.eq(step),
        product.i.eq(i.payload.data.operands),
        accumulator.enable.eq(step),
        accumulator.i.eq(product.o),
        *(getattr(accumulator, name).eq(getattr(product, name)) for name in beside),
        accumulator.valid.eq(valid),
        accumulator.first.eq(delayed(m, step, "first", i.payload.data.first, depth)),
    ]
    feed_skid(
        m,
        skid,
        o,
        accumulator.o,
        last=delayed(m, step, "last", i.payload.last, depth + accumulator.latency),
        valid=delayed(m, step, "acc_valid", valid, accumulator.latency, reset=True),
    )
    return m
