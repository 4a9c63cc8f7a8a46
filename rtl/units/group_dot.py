"""The dot product of one activation group and one weight group, exact, without accumulation."""

from typing import Annotated

from amaranth.hdl import Module
from amaranth.lib.wiring import In, Out

from m2xfp.formats import M2XFP_ACT, M2XFP_WEIGHT
from m2xfp.rtl.parameters import Between, checked
from m2xfp.rtl.parts.dot_pair import Activations, DotPair, Weights
from m2xfp.rtl.parts.group_product import ProductPipeline
from m2xfp.rtl.parts.registers import delayed
from m2xfp.rtl.parts.skid_tail import add_skid, feed_skid
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["GroupDot"]


class GroupDot(Component):
    """The exact dot product of a packed activation group and a packed weight group, one a clock.

    Computes D and the exponent of docs/format.md section 7: the group's product is
    D * 2^(exponent - bias), nothing is rounded. A NaN scale on either side sets ``nan``; D and the
    exponent mean nothing then.

    Parameters
    ----------
    act
        Format of the activations: E2M1 elements, with Elem-EM metadata of two bits or without.
    weight
        Format of the weights: E2M1 elements, with Sg-EM metadata of two bits or without. Group,
        scale and, where both have one, subgroup are those of the activations.
    depth
        Register stages: 1, at the product, or 2, at the sums of its parts too.

    Members
    -------
    i : In(packet_stream(operand_layout))
        Packed groups, activations in the low bits.
    o : Out(packet_stream(product_layout))
        D, ``exponent`` and ``nan``.

    Raises
    ------
    InputError
        If the formats do not go together or the depth is another.
    """

    beats_per_group = 1

    @checked
    def __init__(
        self,
        *,
        act: Activations = M2XFP_ACT,
        weight: Weights = M2XFP_WEIGHT,
        depth: Annotated[int, Between(1, 2)] = 2,
    ) -> None:
        self.pair = DotPair(act, weight)
        self._pipeline = ProductPipeline(self.pair, depth)
        self.depth = self.latency = depth
        self.macs_per_clock = self.pair.group
        super().__init__(
            {
                "i": In(packet_stream(self.pair.operand_layout)),
                "o": Out(packet_stream(self.pair.product_layout)),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        m.submodules.pipeline = pipeline = self._pipeline
        skid = add_skid(m, self.o)
        step = skid.i.ready
        m.d.comb += [
            self.i.ready.eq(step),
            pipeline.enable.eq(step),
            pipeline.i.eq(self.i.payload.data),
        ]
        feed_skid(
            m,
            skid,
            self.o,
            pipeline.o,
            last=delayed(m, step, "last", self.i.payload.last, self.depth),
            valid=delayed(m, step, "valid", self.i.valid, self.depth, reset=True),
        )
        return m
