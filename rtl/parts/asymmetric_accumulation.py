"""Accumulation of several exact products a step: FP32 additions in a row, or one exact sum."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import FP32, Window
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.arith.fixed_point import select_sum
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

_DIGIT = 12  # bits of a long sum that are added up side by side


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


@dataclass(frozen=True)
class _Placed:
    """A sum of products in its place, as ``ExactPipeline`` takes a product."""

    bits: int
    exponent_bits: int
    bias: int

    @property
    def product_shape(self) -> Shape:
        """Shape of the sum: that of the whole window."""
        return signed(self.bits)

    @property
    def product_layout(self) -> data.StructLayout:
        """Fields as those of a group's product."""
        return data.StructLayout(
            {"product": self.product_shape, "exponent": self.exponent_bits, "nan": 1}
        )


class PlacedTotal(Component):
    """The sum of several exact products, each shifted to its place in a window; combinational.

    Parameters
    ----------
    pair, window
        Formats of the operands; exponents and bits.

    Members
    -------
    i : In(ArrayLayout(pair.product_layout, sums))
        The products.
    total : Out(signed(bits))
        Their sum in units of the window's last bit, without those outside of it.
    nan, below, above : Out(1)
        Of some product: a scale is NaN; it is below the window; it is above.
    """

    def __init__(self, pair: AsymmetricPair, window: Window) -> None:
        self._pair, self._window = pair, window
        super().__init__(
            {
                "i": In(data.ArrayLayout(pair.product_layout, pair.sums)),
                "total": Out(signed(window.bits)),
                "nan": Out(1),
                "below": Out(1),
                "above": Out(1),
            }
        )

    def build(self) -> Module:
        """Build shifts and sum."""
        m = Module()
        pair, window = self._pair, self._window
        span = window.highest - window.lowest
        terms: list[Value] = []
        flags: dict[str, list[Value]] = {"nan": [], "below": [], "above": []}
        for n in range(pair.sums):
            i = self.i[n]
            number = named(m, f"number_{n}", ~i.nan & i.product.any())
            place = Signal(signed(pair.exponent_bits + 1), name=f"place_{n}")
            m.d.comb += place.eq(i.exponent - window.lowest)
            distance, low = place[:-1], place[-1]
            high = named(m, f"high_{n}", ~low & (distance > span))
            kept = Signal(pair.product_shape, name=f"kept_{n}")
            term = Signal(signed(window.bits), name=f"term_{n}")
            m.d.comb += [
                kept.eq(i.product & (number & ~low & ~high).replicate(len(kept))),
                term.eq(kept << distance[: max(span.bit_length(), 1)]),
            ]
            terms.append(term)
            flags["nan"].append(i.nan)
            flags["below"].append(number & low)
            flags["above"].append(number & high)
        total: Value = terms[0].as_unsigned()
        for n, term in enumerate(terms[1:], 1):
            longer = select_sum(m, total, term.as_unsigned(), Const(0, 1), f"sum_{n}", _DIGIT)
            total = longer[: window.bits]
        m.d.comb += self.total.eq(total.as_signed())
        for name, bits in flags.items():
            m.d.comb += getattr(self, name).eq(sum(bits[1:], bits[0]) != 0)
        return m


class ExactTerms(Component):
    """``ExactPipeline`` for several products a step, whose sum comes first.

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
        self._several = pair.sums > 1
        self.latency = ExactPipeline.latency + self._several
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
        if not self._several:
            m.submodules.exact = exact = ExactPipeline(self._pair, window)
            m.d.comb += [
                exact.enable.eq(step),
                exact.i.eq(products[0]),
                exact.valid.eq(self.valid),
                exact.first.eq(self.first),
                self.o.eq(exact.o),
            ]
            return m
        placed = _Placed(window.bits, self._pair.exponent_bits, self._pair.bias)
        own = Window(window.name, window.lowest, window.lowest, window.bits)
        m.submodules.exact = exact = ExactPipeline(placed, own, flagged=True)
        m.submodules.total = total = PlacedTotal(self._pair, window)
        there = delayed(m, step, "valid_held", self.valid, 1, reset=True)
        m.d.comb += [
            total.i.eq(products),
            exact.enable.eq(step),
            exact.i.product.eq(register(m, step, "total_held", total.total)),
            exact.i.exponent.eq(window.lowest),
            exact.i.nan.eq(delayed(m, step, "nan_held", total.nan, 1)),
            exact.below.eq(delayed(m, step, "below_held", total.below, 1)),
            exact.above.eq(delayed(m, step, "above_held", total.above, 1)),
            exact.valid.eq(there),
            exact.first.eq(delayed(m, step, "first_held", self.first, 1)),
            self.o.eq(exact.o),
        ]
        return m
