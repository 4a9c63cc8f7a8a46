"""Accumulation in FP32: a ring of accumulators, one rounding an addend."""

from amaranth.hdl import Module, Signal, Value
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FP32
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.fp32_addition import (
    Add,
    Addend,
    Align,
    addend_layout,
    check_addend,
    significand_bits,
)
from m2xfp.rtl.parts.fp32_rounding import Normalise, Round
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.verilog.component import Component

__all__ = ["Accumulator", "AccumulatorPipeline"]


class Accumulator(Component):
    """A ring of FP32 accumulators: as many chains as the addition has register stages.

    acc' = RNE(acc + addend) for one chain in each enabled clock, the chains in turn.

    Parameters
    ----------
    pair
        Formats of the operands.
    chains
        1 to 4. The addition is cut into as many stages; with 4 its sums are split too.

    Members
    -------
    enable : In(1)
        Go on by one step; nothing changes otherwise.
    addend : In(addend_layout(pair))
        For the chain whose turn it is. ``nonzero`` and ``nan`` 0: the chain stays as it is.
    first : In(1)
        Clear the chain to +0 first.
    acc : Out(32)
        The chain that took its addend ``chains`` steps ago.
    """

    def __init__(self, pair: DotPair, chains: int) -> None:
        self.pair, self.chains = pair, chains
        super().__init__(
            {
                "enable": In(1),
                "addend": In(addend_layout(pair)),
                "first": In(1),
                "acc": Out(value_layout(FP32)),
            }
        )

    def build(self) -> Module:
        """Build the ring."""
        m = Module()
        split = self.chains == 4
        m.submodules.align = align = Align(self.pair, split)
        m.submodules.add = add = Add(significand_bits(self.pair), split)
        m.submodules.normalise = normalised = Normalise(len(add.o.magnitude))
        m.submodules.round = round_ = Round()
        held = register(m, self.enable, "acc_held", Value.cast(round_.acc))
        aligned, summed = Value.cast(align.o), Value.cast(add.o)
        normal = Value.cast(normalised.o)
        if self.chains == 4:
            normal = register(m, self.enable, "normalised", normal)
        if self.chains >= 3:
            aligned = register(m, self.enable, "aligned", aligned)
        if self.chains >= 2:
            summed = register(m, self.enable, "summed", summed)
        m.d.comb += [
            self.acc.eq(held),
            align.acc.eq(held & (~self.first).replicate(len(held))),
            align.addend.eq(self.addend),
            add.i.eq(aligned),
            normalised.i.eq(summed),
            round_.i.eq(normal),
        ]
        return m


class AccumulatorPipeline(Component):
    """``Addend``, a register, and the ring of accumulators.

    Parameters
    ----------
    pair
        Formats of the operands.
    chains
        Accumulators, 1 to 3.

    Members
    -------
    enable : In(1)
        Go on by one step.
    i : In(pair.product_layout)
        The exact product.
    valid : In(1)
        There is one; otherwise the chain stays as it is.
    first : In(1)
        Clear the chain to +0 first. Reset clears all chains.
    o : Out(32)
        The chain after the addend of ``latency`` steps ago.

    Raises
    ------
    InputError
        If a group's product has more bits than FP32's significand.
    """

    def __init__(self, pair: DotPair, chains: int) -> None:
        check_addend(pair)
        self.pair, self.chains = pair, chains
        self.latency = 1 + chains
        super().__init__(
            {
                "enable": In(1),
                "i": In(pair.product_layout),
                "valid": In(1),
                "first": In(1),
                "o": Out(value_layout(FP32)),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        m.submodules.addend = addend = Addend(self.pair)
        m.submodules.accumulator = accumulator = Accumulator(self.pair, self.chains)
        # What would change a chain is reset: a product that was under way when reset came, for one
        # clock, must not be added to a chain that was cleared. The rest goes with it.
        held = Signal(addend_layout(self.pair))
        effects = [
            delayed(m, self.enable, f"{name}_held", addend.o[name] & self.valid, 1, reset=True)
            for name in ("nonzero", "nan")
        ]
        # Ones after reset: every chain is cleared when its turn comes for the first time.
        clear = Signal(self.chains, init=-1)
        m.d.comb += [
            addend.i.eq(self.i),
            held.eq(register(m, self.enable, "addend_held", addend.o.as_value())),
            held.nonzero.eq(effects[0]),
            held.nan.eq(effects[1]),
            accumulator.enable.eq(self.enable),
            accumulator.addend.eq(held),
            accumulator.first.eq(clear[0]),
            self.o.eq(accumulator.acc),
        ]
        with m.If(self.enable):
            m.d.sync += clear.eq((clear >> 1) | (self.first & self.valid))
        return m
