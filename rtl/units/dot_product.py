"""The MAC unit: packed groups in, the running FP32 dot product out."""

from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import FP32, M2XFP_ACT, M2XFP_WEIGHT, BlockFormat, Window
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.streams import Skid, packet, packet_stream
from m2xfp.rtl.units.exact_accumulator import ExactPipeline, exact_layout
from m2xfp.rtl.units.fp32_accumulator import AccumulatorPipeline, Turnstile
from m2xfp.rtl.units.group_dot import DotPair, ProductPipeline, delayed
from m2xfp.rtl.verilog.component import Component

__all__ = ["DotProduct"]


class DotProduct(Component):
    """Multiply a packed activation group with a packed weight group and accumulate, one a clock.

    acc' = RNE_fp32(acc + D * 2^(exponent - bias)), where D is the exact sum of the group's
    products, refined by both formats' metadata (docs/format.md section 7). One rounding a group;
    the rules for NaN, infinities, zeros and subnormals are those of ``Fp32Accumulator``.

    Group t belongs to chain t mod ``chains``, counted from reset: as many independent dot products
    are under way, one group of each in turn, and each clock finishes one. If the input pauses, the
    next group waits until its chain comes round, ``chains - 1`` clocks at most.

    With a ``window`` nothing is rounded before the result is: the accumulation is that of
    ``ExactAccumulator``, which has one chain.

    Parameters
    ----------
    act, weight
        Formats of the operands, see ``DotPair``.
    lanes
        Products a beat, accumulated with one rounding; None for those of a group. A group of more
        values comes in as several beats of one chain, each with the scales and its part of the
        metadata. The subgroup of 8 gives the accumulation ``fp32_subgroup``.
    depth
        Register stages before the exact product, 1 or 2.
    chains
        Independent accumulators, 1 to 3: the register stages of the accumulation.
    window
        Exponents that the exact accumulation takes; None accumulates in FP32.

    Members
    -------
    i : In(packet_stream(operands, first))
        Activation group, weight group, and ``first``: clear the chain to +0 before this group.
        Reset clears all chains.
    o : Out(packet_stream(32))
        The chain's accumulator after each group; with a ``window`` beside ``inexact``.
    latency
        Clocks from a group's acceptance to its accumulator at the output, when nothing stalls.
    macs_per_clock
        Multiplications a clock.

    Raises
    ------
    InputError
        If the formats do not go together, depth or chains are out of range, or the window is not
        one for the formats.
    """

    beats_per_group = 1

    def __init__(
        self,
        *,
        act: BlockFormat = M2XFP_ACT,
        weight: BlockFormat = M2XFP_WEIGHT,
        lanes: int | None = None,
        depth: int = 2,
        chains: int = 3,
        window: Window | None = None,
    ) -> None:
        self.pair = DotPair(act, weight)
        if lanes is not None:
            self.pair = self.pair.narrowed(lanes)
        self.depth, self.chains = depth, chains
        self._product = ProductPipeline(self.pair, depth)
        self._accumulator: AccumulatorPipeline | ExactPipeline
        if window is None:
            self._accumulator = AccumulatorPipeline(self.pair, chains)
        elif chains == 1:
            self._accumulator = ExactPipeline(self.pair, window)
        else:
            raise InputError(f"chains={chains}: the exact accumulation has one chain, chains=1")
        self._result = value_layout(FP32) if window is None else exact_layout
        self.latency = depth + self._accumulator.latency
        self.macs_per_clock = self.pair.group
        operands = self.pair.operand_layout
        super().__init__(
            {
                "i": In(packet_stream(data.StructLayout({"operands": operands, "first": 1}))),
                "o": Out(packet_stream(self._result)),
            }
        )

    def build(self) -> Module:
        """Build the unit."""
        m = Module()
        m.submodules.turnstile = turnstile = Turnstile(self.chains)
        m.submodules.product = product = self._product
        m.submodules.accumulator = accumulator = self._accumulator
        m.submodules.skid = skid = Skid(packet(self._result))
        step = skid.i.ready
        accepted = named(m, "accepted", self.i.valid & turnstile.open)
        valid = delayed(m, step, "product_valid", accepted, self.depth, reset=True)
        m.d.comb += [
            turnstile.enable.eq(step),
            turnstile.valid.eq(self.i.valid),
            self.i.ready.eq(step & turnstile.open),
            product.enable.eq(step),
            product.i.eq(self.i.payload.data.operands),
            accumulator.enable.eq(step),
            accumulator.i.eq(product.o),
            accumulator.valid.eq(valid),
            accumulator.first.eq(delayed(m, step, "first", self.i.payload.data.first, self.depth)),
            skid.i.payload.data.eq(accumulator.o),
            skid.i.payload.last.eq(delayed(m, step, "last", self.i.payload.last, self.latency)),
            skid.i.valid.eq(delayed(m, step, "acc_valid", valid, accumulator.latency, reset=True)),
        ]
        wiring.connect(m, skid.o, wiring.flipped(self.o))
        return m
