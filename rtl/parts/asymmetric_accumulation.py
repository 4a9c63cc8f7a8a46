"""Accumulation of several exact products a step: FP32 additions in a row, or one exact sum."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import FP32, Window
from m2xfp.rtl.parts.asymmetric_pair import AsymmetricPair
from m2xfp.rtl.parts.exact_accumulation import ExactPipeline, check_window, exact_layout
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

__all__ = ["ExactTerms", "Fp32Terms"]


class AdditionStages(Component):
    """acc + addend, rounded once, in one to three register stages.

    Parameters
    ----------
    pair
        Formats of the operands.
    stages
        Registers: one at the result, then one at the sum, then one at the aligned operands.

    Members
    -------
    enable : In(1)
        Go on by one step.
    acc : In(32), addend : In(addend_layout(pair))
        The operands.
    result : Out(32)
        The rounded sum of those of ``stages`` steps ago.
    """

    def __init__(self, pair: AsymmetricPair, stages: int) -> None:
        self.pair, self._stages = pair, stages
        super().__init__(
            {
                "enable": In(1),
                "acc": In(value_layout(FP32)),
                "addend": In(addend_layout(pair)),
                "result": Out(value_layout(FP32)),
            }
        )

    def build(self) -> Module:
        """Build the addition."""
        m = Module()
        m.submodules.align = align = Align(self.pair)
        m.submodules.add = add = Add(significand_bits(self.pair))
        m.submodules.normalise = normalised = Normalise(len(add.o.magnitude))
        m.submodules.round = round_ = Round()
        aligned, summed = Value.cast(align.o), Value.cast(add.o)
        if self._stages >= 3:
            aligned = register(m, self.enable, "aligned", aligned)
        if self._stages >= 2:
            summed = register(m, self.enable, "summed", summed)
        m.d.comb += [
            align.acc.eq(self.acc),
            align.addend.eq(self.addend),
            add.i.eq(aligned),
            normalised.i.eq(summed),
            round_.i.eq(normalised.o),
            self.result.eq(register(m, self.enable, "acc_held", Value.cast(round_.acc))),
        ]
        return m


class Fp32Terms(Component):
    """A ring of FP32 accumulators that passes one addition for each product of a step.

    Each addition takes its product when the chain comes by, so that they are rounded one after the
    other, in their order.

    Parameters
    ----------
    pair
        Formats of the operands.
    chains
        Accumulators: one to three for each product of a step, the register stages of an addition.

    Members
    -------
    enable : In(1)
        Go on by one step.
    i : In(ArrayLayout(pair.product_layout, sums)), negative : In(sums)
        The exact products, and whether they are to be taken away.
    valid : In(1)
        There are some; otherwise the chain stays as it is.
    first : In(1)
        Clear the chain to +0 first. Reset clears all chains.
    o : Out(32)
        The chain after the products of ``latency`` steps ago.

    Raises
    ------
    InputError
        If products have more bits than FP32's significand, or the chains do not come out even.
    """

    def __init__(self, pair: AsymmetricPair, chains: int) -> None:
        check_addend(pair)
        if chains % pair.sums or not 1 <= chains // pair.sums <= 3:
            choices = ", ".join(str(n * pair.sums) for n in (1, 2, 3))
            raise InputError(
                f"chains={chains}: {pair.sums} additions of one to three stages make a ring of "
                f"one of: {choices}"
            )
        self.pair, self.chains = pair, chains
        self.latency = 1 + chains
        super().__init__(
            {
                "enable": In(1),
                "i": In(data.ArrayLayout(pair.product_layout, pair.sums)),
                "negative": In(pair.sums),
                "valid": In(1),
                "first": In(1),
                "o": Out(value_layout(FP32)),
            }
        )

    def build(self) -> Module:
        """Build the additions and the delays of their products."""
        m = Module()
        step, stages = self.enable, self.chains // self.pair.sums
        # Ones after reset: every chain is cleared when its turn comes for the first time.
        clear = Signal(self.chains, init=-1)
        acc = Signal(value_layout(FP32))
        passing: Value = Value.cast(acc) & (~clear[0]).replicate(32)
        for number in range(self.pair.sums):
            negative: Value = self.negative[number]
            product = Cat(Value.cast(self.i[number]), negative)
            for stage in range(number * stages):
                product = register(m, step, f"waiting_{number}_{stage}", product)
            m.submodules[f"addend_{number}"] = addend = Addend(self.pair)
            m.submodules[f"addition_{number}"] = addition = AdditionStages(self.pair, stages)
            held = Signal(addend_layout(self.pair), name=f"held_{number}")
            kept = Signal(addend_layout(self.pair), name=f"signed_{number}")
            # What would change a chain is reset, as in ``AccumulatorPipeline``.
            there = delayed(
                m, step, f"valid_held_{number}", self.valid, 1 + number * stages, reset=True
            )
            m.d.comb += [
                addend.i.eq(product[:-1]),
                kept.eq(addend.o),
                kept.negative.eq(addend.o.negative ^ product[-1]),
                held.eq(register(m, step, f"addend_held_{number}", Value.cast(kept))),
                addition.enable.eq(step),
                addition.acc.eq(passing),
                addition.addend.eq(held),
            ]
            for name in ("nonzero", "nan"):
                m.d.comb += addition.addend[name].eq(held[name] & there)
            passing = Value.cast(addition.result)
        m.d.comb += [Value.cast(acc).eq(passing), self.o.eq(acc)]
        with m.If(step):
            m.d.sync += clear.eq((clear >> 1) | (self.first & self.valid))
        return m


class ExactTerms(Component):
    """``ExactPipeline`` for the products of a step, with their signs.

    Parameters
    ----------
    pair, window
        Formats of the operands; exponents and bits.

    Members
    -------
    enable, valid, first
        As for ``ExactPipeline``.
    i : In(ArrayLayout(pair.product_layout, sums)), negative : In(sums)
        The exact products, and whether they are to be taken away.
    o : Out(exact_layout)
        The result after the products of ``latency`` steps ago.

    Raises
    ------
    InputError
        If the window is not one for the formats.
    """

    latency = ExactPipeline.latency

    def __init__(self, pair: AsymmetricPair, window: Window) -> None:
        check_window(pair, window)
        span = window.highest - window.lowest
        least = span + len(Signal(pair.product_shape)) + pair.sums.bit_length() - 1
        if window.bits < least:
            raise InputError(
                f"window {window.name}: {window.bits} bits; {pair.sums} sums of {pair.act.name} x "
                f"{pair.weight.name} at any of its exponents need {least}"
            )
        self._pair, self._window = pair, window
        super().__init__(
            {
                "enable": In(1),
                "i": In(data.ArrayLayout(pair.product_layout, pair.sums)),
                "negative": In(pair.sums),
                "valid": In(1),
                "first": In(1),
                "o": Out(exact_layout),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        step, window = self.enable, self._window
        products = Signal(self.i.shape())
        m.d.comb += products.eq(self.i)
        if self._pair.known_signs:
            for n in range(self._pair.sums):
                magnitude = self.i[n].product
                m.d.comb += products[n].product.eq(Mux(self.negative[n], -magnitude, magnitude))
        sums = self._pair.sums
        m.submodules.exact = exact = ExactPipeline(self._pair, window, sums)
        m.d.comb += [
            exact.enable.eq(step),
            exact.i.eq(products if sums > 1 else products[0]),
            exact.valid.eq(self.valid),
            exact.first.eq(self.first),
            self.o.eq(exact.o),
        ]
        return m
