"""Accumulation of exact group products in fixed point, rounded once for each result."""

from amaranth.hdl import Module
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import M2XFP_ACT, M2XFP_WEIGHT, USUAL_EXPONENTS, Window
from m2xfp.rtl.parameters import checked
from m2xfp.rtl.parts.dot_pair import DotPair, PowerScaledActivations, PowerScaledWeights
from m2xfp.rtl.parts.exact_accumulation import ExactPipeline, exact_layout
from m2xfp.rtl.parts.registers import delayed
from m2xfp.rtl.parts.skid_tail import add_skid, feed_skid
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["ExactAccumulator"]


class ExactAccumulator(Component):
    """Accumulate exact group products without rounding; each result is rounded once, one a clock.

    The sum is kept in fixed point. After each group its value is rounded to FP32, to nearest even;
    an exact zero is +0, subnormals are kept, overflow gives infinity, a NaN scale 0x7FC00000 until
    the next ``first`` (docs/format.md section 7, ``exact``).

    The register does not hold every exponent that E8M0 has, but a window of them. A group below
    it is left out of the sum and sets ``inexact``. A group above it, or a sum that leaves the
    register, sets ``inexact`` and gives NaN. Both stay until the next ``first``. A product of zero
    has no exponent, and a NaN is no matter of the window.

    Parameters
    ----------
    act
        Format of the activations: E2M1 elements and E8M0 scales, with Elem-EM metadata of two
        bits or without.
    weight
        Format of the weights: E2M1 elements and E8M0 scales, with Sg-EM metadata of two bits or
        without. Group and, where both have one, subgroup are those of the activations.
    window
        Exponents that the sum has room for, the sums of both scales' bytes, and its bits, as
        LOWEST..HIGHEST/BITS or by name. With BITS >= HIGHEST - LOWEST + n + bits of a group's
        product, 2^n groups cannot overflow.

    Members
    -------
    i : In(packet_stream(product_layout, first))
        D, ``exponent``, ``nan``, and ``first``: clear the sum before this group. Reset clears it.
    o : Out(packet_stream(exact_layout))
        The result after each group, and ``inexact``.
    latency
        Clocks from a group's acceptance to its result.

    Raises
    ------
    InputError
        If the formats do not go together, or the window is not one for them.
    """

    beats_per_group = 1
    latency = ExactPipeline.latency

    @checked
    def __init__(
        self,
        *,
        act: PowerScaledActivations = M2XFP_ACT,
        weight: PowerScaledWeights = M2XFP_WEIGHT,
        window: Window = USUAL_EXPONENTS,
    ) -> None:
        self.pair = DotPair(act, weight)
        self._pipeline = ExactPipeline(self.pair, window)
        shape = data.StructLayout({"product": self.pair.product_layout, "first": 1})
        super().__init__({"i": In(packet_stream(shape)), "o": Out(packet_stream(exact_layout))})

    def build(self) -> Module:
        """Build the unit."""
        m = Module()
        m.submodules.pipeline = pipeline = self._pipeline
        skid = add_skid(m, self.o)
        step = skid.i.ready
        m.d.comb += [
            self.i.ready.eq(step),
            pipeline.enable.eq(step),
            pipeline.i.eq(self.i.payload.data.product),
            pipeline.valid.eq(self.i.valid),
            pipeline.first.eq(self.i.payload.data.first),
        ]
        feed_skid(
            m,
            skid,
            self.o,
            pipeline.o,
            last=delayed(m, step, "last", self.i.payload.last, self.latency),
            valid=delayed(m, step, "valid", self.i.valid, self.latency, reset=True),
        )
        return m
