"""Accumulation of exact group products in FP32, one rounding a group."""

from typing import Annotated

from amaranth.hdl import Module
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FP32, M2XFP_ACT, M2XFP_WEIGHT
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parameters import Between, checked
from m2xfp.rtl.parts.dot_pair import Activations, DotPair, Weights
from m2xfp.rtl.parts.fp32_accumulation import AccumulatorPipeline
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.registers import delayed
from m2xfp.rtl.parts.skid_tail import add_skid, feed_skid
from m2xfp.rtl.parts.slot_arbiter import SlotArbiter
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["Fp32Accumulator"]


class Fp32Accumulator(Component):
    """Accumulate exact group products: acc' = RNE(acc + D * 2^(exponent - bias)), one a clock.

    One rounding of the exact sum to FP32, to nearest even. Subnormals are kept, overflow gives
    infinity, a NaN scale or a NaN accumulator gives 0x7FC00000. A zero D leaves the accumulator
    unchanged, bit for bit; an infinite one stays until a NaN comes; an exact difference of zero is
    +0, and any other sum that rounds to zero keeps its sign (docs/format.md section 7).

    The addition takes as many clocks as there are ``chains``, and each chain is an accumulator of
    its own: group t belongs to chain t mod ``chains``, counted from reset. So one group a clock is
    accumulated, each into the result of ``chains`` groups before.

    Parameters
    ----------
    act
        Format of the activations: E2M1 elements, with Elem-EM metadata of two bits or without.
    weight
        Format of the weights: E2M1 elements, with Sg-EM metadata of two bits or without. Group,
        scale and, where both have one, subgroup are those of the activations.
    chains
        Independent accumulators that take groups in turn; the addition has as many register
        stages, so more of them shorten the clock period, see docs/mac.md.

    Members
    -------
    i : In(packet_stream(product_layout, first))
        D, ``exponent``, ``nan``, and ``first``: clear the accumulator to +0 before this group. All
        chains are cleared by reset.
    o : Out(packet_stream(32))
        The accumulator after each group.
    latency
        Clocks from a group's acceptance to its accumulator at the output.

    Raises
    ------
    InputError
        If the formats do not go together or the chains are out of range.
    """

    beats_per_group = 1

    @checked
    def __init__(
        self,
        *,
        act: Activations = M2XFP_ACT,
        weight: Weights = M2XFP_WEIGHT,
        chains: Annotated[int, Between(1, 3)] = 3,
    ) -> None:
        self.pair = DotPair(act, weight)
        self.chains = chains
        self.pipeline = AccumulatorPipeline(self.pair, chains)
        self.latency = self.pipeline.latency
        shape = data.StructLayout({"product": self.pair.product_layout, "first": 1})
        super().__init__(
            {
                "i": In(packet_stream(shape)),
                "o": Out(packet_stream(value_layout(FP32))),
            }
        )

    def build(self) -> Module:
        """Build the unit."""
        m = Module()
        m.submodules.slot_arbiter = arbiter = SlotArbiter(self.chains)
        m.submodules.pipeline = pipeline = self.pipeline
        skid = add_skid(m, self.o)
        step = skid.i.ready
        accepted = named(m, "accepted", self.i.valid & arbiter.grant)
        m.d.comb += [
            arbiter.enable.eq(step),
            arbiter.request.eq(self.i.valid),
            self.i.ready.eq(step & arbiter.grant),
            pipeline.enable.eq(step),
            pipeline.i.eq(self.i.payload.data.product),
            pipeline.valid.eq(accepted),
            pipeline.first.eq(self.i.payload.data.first),
        ]
        feed_skid(
            m,
            skid,
            self.o,
            pipeline.o,
            last=delayed(m, step, "last", self.i.payload.last, self.latency),
            valid=delayed(m, step, "valid", accepted, self.latency, reset=True),
        )
        return m
