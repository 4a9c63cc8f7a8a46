"""The MAC unit: packed groups in, the running FP32 dot product out."""

from typing import Annotated

from amaranth.hdl import Module
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import FP32, M2XFP_ACT, M2XFP_WEIGHT, Window
from m2xfp.rtl.parameters import Between, checked
from m2xfp.rtl.parts.dot_pair import AnyActivations, AnyWeights
from m2xfp.rtl.parts.dot_stream import build_dot
from m2xfp.rtl.parts.exact_accumulation import ExactPipeline, exact_layout
from m2xfp.rtl.parts.fp32_accumulation import AccumulatorPipeline
from m2xfp.rtl.parts.group_product import ProductPipeline
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.mixed_pair import pair_of
from m2xfp.rtl.parts.streams import packet_stream
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

    MX formats of any elements are multiplied with each other (E2M1, E2M3, E3M2, E4M3, E5M2, INT8);
    an element that is NaN or infinity poisons its group, as a NaN scale does. M2XFP goes with them
    too, as weights or as activations.

    With a ``window`` nothing is rounded before the result is: the accumulation is that of
    ``ExactAccumulator``, which has one chain.

    Parameters
    ----------
    act
        Format of the activations: E2M1 elements, with Elem-EM metadata of two bits or without, or
        any MX format.
    weight
        Format of the weights: E2M1 elements, with Sg-EM metadata of two bits or without, or any MX
        format. Group, scale and, where both have one, subgroup are those of the activations.
    lanes
        Products a beat, accumulated with one rounding; none for those of a group. They divide the
        group and are whole subgroups. A group of more values comes in as several beats of one
        chain, each with the scales and its part of the metadata. The subgroup of 8 gives the
        accumulation fp32_subgroup.
    depth
        Register stages of the exact product: 1, at the product, or 2, at the sums of its parts too.
    chains
        Independent accumulators that take groups in turn: the register stages of the accumulation.
        With a window there is one.
    window
        Exponents that the exact accumulation takes, and the bits of its sum, as
        LOWEST..HIGHEST/BITS or by name; none accumulates in FP32.

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

    @checked
    def __init__(
        self,
        *,
        act: AnyActivations = M2XFP_ACT,
        weight: AnyWeights = M2XFP_WEIGHT,
        lanes: Annotated[int | None, Between(1, usual=(4, 8, 16, 32))] = None,
        depth: Annotated[int, Between(1, 2)] = 2,
        chains: Annotated[int, Between(1, 3)] = 3,
        window: Window | None = None,
    ) -> None:
        self.pair = pair_of(act, weight)
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
        return build_dot(
            self.i,
            self.o,
            self._product,
            self._accumulator,
            depth=self.depth,
            chains=self.chains,
        )
