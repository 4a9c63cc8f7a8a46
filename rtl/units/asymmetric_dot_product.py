"""The MAC unit for groups with two scales: packed groups in, the running dot product out."""

from typing import Annotated

from amaranth.hdl import Module
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import AMXFP4, FP32, Window
from m2xfp.rtl.parameters import Among, Between, checked
from m2xfp.rtl.parts.asymmetric_accumulation import ExactTerms, Fp32Terms
from m2xfp.rtl.parts.asymmetric_pair import (
    MXFP4_E5M2,
    AsymmetricActivations,
    AsymmetricPair,
    AsymmetricWeights,
)
from m2xfp.rtl.parts.asymmetric_product import ClassProducts
from m2xfp.rtl.parts.dot_stream import build_dot
from m2xfp.rtl.parts.exact_accumulation import exact_layout
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["AsymmetricDotProduct"]


class AsymmetricDotProduct(Component):
    """Multiply packed groups with a scale for each sign, and accumulate.

    A group of activations has one scale for its values above zero and another one for the rest; one
    of weights too, or a single one. Products fall into classes by the signs of their operands, and
    the sum of a class has a scale: acc' = RNE_fp32(acc + D * 2^(exponent - bias)) for each class,
    p then n, or pp, pn, np, nn (docs/format.md section 7). The rules for NaN, infinities, zeros and
    subnormals are those of ``Fp32Accumulator``.

    A beat adds ``sums`` classes. If these are not all, a group comes in as several beats, each with
    both groups and, in ``signs``, which signs it is of, in this order; ``first`` goes with its
    first beat, and the result of the last one is the group's. Beats, not groups, take the chains in
    turn: beat t belongs to chain t mod ``chains``, counted from reset. If the input pauses, the
    next beat waits until its chain comes round, ``chains - 1`` clocks at most.

    With a ``window`` nothing is rounded before the result is: the accumulation is that of
    ``ExactAccumulator``, which has one chain.

    Parameters
    ----------
    act
        Format of the activations: E2M1 elements with two scales a group, E5M2, E4M3 or E8M0.
    weight
        Format of the weights: E2M1 elements with one scale a group or two, of any of these types.
    sums
        Classes of a beat: 1, 2 or 4. With two classes 1 is half the rate of dot_product and 2
        the whole, with four 1, 2 and 4 are a quarter, half and the whole. Each has an adder tree
        and an FP32 addition of its own.
    depth
        Register stages of the exact products: 1, at the products, or 2, at the sums of their parts
        too.
    chains
        Independent accumulators that take beats in turn: the register stages of all additions, one
        to three for each of sums. With a window there is one.
    window
        Exponents that the exact accumulation takes, sums of the exponent fields of both scales, and
        the bits of its sum, as LOWEST..HIGHEST/BITS or by name; none accumulates in FP32.

    Members
    -------
    i : In(packet_stream(operands, first))
        Activation group, weight group, ``signs`` (bit of the activations above that of the weights)
        if a group has several beats, and ``first``: clear the chain to +0 before this beat. Reset
        clears all chains.
    o : Out(packet_stream(32))
        The chain's accumulator after each beat; with a ``window`` beside ``inexact``.
    latency
        Clocks from a beat's acceptance to its accumulator at the output, when nothing stalls.
    macs_per_clock
        Multiplications a clock that count.

    Raises
    ------
    InputError
        If the formats do not go together, sums, depth or chains are out of range, or the window is
        not one for the formats.
    """

    beats_per_group = 1

    @checked
    def __init__(
        self,
        *,
        act: AsymmetricActivations = AMXFP4,
        weight: AsymmetricWeights = MXFP4_E5M2,
        sums: Annotated[int, Among((1, 2, 4))] = 1,
        depth: Annotated[int, Between(1, 2)] = 2,
        chains: Annotated[int, Between(1, 12, usual=(1, 2, 3, 6))] = 3,
        window: Window | None = None,
    ) -> None:
        self.pair = AsymmetricPair(act, weight, sums)
        self.depth, self.chains = depth, chains
        self._product = ClassProducts(self.pair, depth)
        self._accumulator: Fp32Terms | ExactTerms
        if window is None:
            self._accumulator = Fp32Terms(self.pair, chains)
        elif chains == 1:
            self._accumulator = ExactTerms(self.pair, window)
        else:
            raise InputError(f"chains={chains}: the exact accumulation has one chain, chains=1")
        result = value_layout(FP32) if window is None else exact_layout
        self.latency = depth + self._accumulator.latency
        self.macs_per_clock = self.pair.group // self.pair.beats
        operands = self.pair.operand_layout
        super().__init__(
            {
                "i": In(packet_stream(data.StructLayout({"operands": operands, "first": 1}))),
                "o": Out(packet_stream(result)),
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
            beside=("negative",),
        )
