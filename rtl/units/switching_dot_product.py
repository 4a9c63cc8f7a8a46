"""The MAC unit that switches formats: groups of any built pair in, running dot products out."""

from typing import Annotated

from amaranth.hdl import Module, Value
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.facts import LongGroups
from m2xfp.formats import Window
from m2xfp.pairs import FORMAT_NUMBERS, pair_set
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parameters import Among, Between, PairTexts, checked
from m2xfp.rtl.parts.registers import delayed
from m2xfp.rtl.parts.skid_tail import add_skid, feed_skid
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.parts.switch_accumulation import HeldExact, HeldRing
from m2xfp.rtl.parts.switch_framing import SwitchFraming
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.parts.switch_product import SwitchProduct
from m2xfp.rtl.verilog.component import Component

__all__ = ["SwitchingDotProduct"]


class SwitchingDotProduct(Component):
    """Multiply packed groups whose formats may change from group to group, and accumulate.

    A field ``mode`` beside the operands names the formats of both (``m2xfp.pairs``). A group of
    32 values of E2M1 on both sides comes in one beat; one of wider elements in 4 or 2, each with
    ``fp8_lanes`` values of both sides: its part of the packed codes from bit 0 on. So FP4 has four
    times or twice the rate. A switch costs no clock. What is accumulated is that of ``DotProduct``:
    the exact sum of a group's products, one rounding a group, or none with a ``window``.

    All beats of a group carry its scales, mode and ``first``; those of the last count. Each beat of
    ``fp8_lanes`` values has its own part of the metadata, that of its subgroups, from the first on.
    M2XFP weights go with activations of any elements, M2XFP activations with E2M1 weights only. A
    mode that the unit is not built for makes its beat a group of its own, and that group NaN and
    ``refused``; a mode that changes within a group makes that so.

    Group t belongs to chain t mod ``chains``, counted from reset, whatever its format. If the input
    pauses, the next beat waits until its chain has come round, ``chains - 1`` clocks at most.

    Parameters
    ----------
    pairs
        The pairs of formats: a name or ACT:WEIGHT+ACT:WEIGHT..., see m2xfp/pairs.py. M2XFP and
        MXFP4 are of E2M1; the widest pair sets the width of sums, and multipliers of weights beside
        wider activations that of lanes.
    fp8_lanes
        Products a beat of elements wider than E2M1 on either side.
    chains
        Independent accumulators that take groups in turn: the register stages of the accumulation,
        whose sums are split as well with 4. With a window there is one.
    window
        Exponents that the exact accumulation takes, and the bits of its sum, as
        LOWEST..HIGHEST/BITS or by name; none accumulates in FP32. They count in the least unit of
        all pairs.

    Members
    -------
    i : In(packet_stream(operands, first))
        A beat: codes, scale and metadata of both sides, ``mode``, and ``first``: clear the chain to
        +0 before this group. Reset clears all chains.
    o : Out(packet_stream(acc, refused))
        The chain's accumulator after each group, and whether a group since ``first`` was refused;
        with a ``window`` ``inexact`` too. ``last`` is that of the group's last beat.
    long_groups
        Which modes have several beats, and how many.
    latency
        Clocks from the acceptance of a group's last beat to its accumulator at the output, when
        nothing stalls and no beats but groups' last ones follow. Others hold the ring: each may
        cost a clock.

    Raises
    ------
    InputError
        If the pairs make no set, or the window is not one for them.
    """

    beats_per_group = 1

    @checked
    def __init__(
        self,
        *,
        pairs: Annotated[str, PairTexts()] = "micromix",
        fp8_lanes: Annotated[int, Among((8, 16))] = 16,
        chains: Annotated[int, Between(1, 4)] = 4,
        window: Window | None = None,
    ) -> None:
        known = pair_set(pairs)
        act, weight = known.wide[0]
        self.pair = SwitchPair(act, weight, known, fp8_lanes)
        self.chains = chains
        self._accumulator: HeldRing | HeldExact
        if window is None:
            self._accumulator = HeldRing(self.pair, chains)
        elif chains == 1:
            self._accumulator = HeldExact(self.pair, window)
        else:
            raise InputError(f"chains={chains}: the exact accumulation has one chain, chains=1")
        self.latency = SwitchProduct.latency + self._accumulator.latency
        self.long_groups = LongGroups(
            "i",
            ("operands.mode.act", "operands.mode.weight"),
            tuple(
                (FORMAT_NUMBERS[one.name], FORMAT_NUMBERS[other.name]) for one, other in known.wide
            ),
            self.pair.beats,
        )
        operands = self.pair.operand_layout
        result = self._accumulator.o.shape()
        super().__init__(
            {
                "i": In(packet_stream(data.StructLayout({"operands": operands, "first": 1}))),
                "o": Out(packet_stream(result)),
            }
        )

    def build(self) -> Module:
        """Build the unit."""
        m = Module()
        m.submodules.framing = framing = SwitchFraming(self.pair, self.chains)
        m.submodules.product = product = SwitchProduct(self.pair)
        m.submodules.accumulator = accumulator = self._accumulator
        skid = add_skid(m, self.o)
        step = skid.i.ready
        operands = self.i.payload.data.operands
        taken = named(m, "taken", self.i.valid & framing.grant)
        whole = named(m, "whole", taken & framing.closing)

        def later(name: str, bit: Value, *, reset: bool = False) -> Value:
            return delayed(m, step, name, bit, product.latency, reset=reset)

        m.d.comb += [
            framing.enable.eq(step),
            framing.request.eq(self.i.valid),
            framing.mode.eq(operands.mode),
            self.i.ready.eq(step & framing.grant),
            product.enable.eq(step),
            product.i.eq(operands),
            product.narrow.eq(framing.narrow),
            product.opening.eq(framing.opening),
            product.valid.eq(taken),
            accumulator.enable.eq(step),
            accumulator.i.eq(product.o),
            accumulator.valid.eq(later("group_valid", whole, reset=True)),
            accumulator.first.eq(later("first", self.i.payload.data.first)),
            accumulator.refused.eq(later("refused", framing.refused)),
            accumulator.last.eq(later("last", self.i.payload.last)),
            accumulator.turn.eq(later("turn", framing.turn, reset=True)),
        ]
        feed_skid(
            m, skid, self.o, accumulator.o, last=accumulator.o_last, valid=accumulator.o_valid
        )
        return m
