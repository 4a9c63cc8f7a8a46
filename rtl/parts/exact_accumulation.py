"""Accumulation in fixed point: digits that keep their carries, and one rounding a result."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Protocol

from amaranth.hdl import Cat, Const, Module, Shape, ShapeLike, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import FP32, Window
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.arith.fixed_point import carry_save
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.fp32_rounding import Normalise, Round
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.verilog.component import Component

__all__ = ["ExactPipeline", "check_window", "exact_layout"]

# Bits of a digit of the sum: what is added between two registers, as much as FP32's significand.
_DIGIT = 24

# The result beside its warning.
exact_layout = data.StructLayout({"acc": value_layout(FP32), "inexact": 1})


class Exact(Protocol):
    """What of a pair of formats is needed: its exact products."""

    @property
    def product_shape(self) -> Shape:
        """Shape of D."""

    @property
    def product_layout(self) -> data.StructLayout:
        """D, its exponent, and whether a scale is NaN."""

    @property
    def exponent_bits(self) -> int:
        """Bits of the exponent."""

    @property
    def bias(self) -> int:
        """The value is D * 2^(exponent - bias)."""


def check_window(pair: DotPair, window: Window) -> None:
    """Refuse a window that the formats do not fit, or FP32 results cannot come from."""
    if not pair.windowed:
        raise InputError(
            f"{pair.act.name}: scale {pair.act.scale.name}; the exact accumulation takes e8m0"
        )
    # The rounding needs a guard bit and one below it.
    least = max(
        window.highest - window.lowest + len(Signal(pair.product_shape)), FP32.mantissa_bits + 3
    )
    if window.bits < least:
        raise InputError(
            f"window {window.name}: {window.bits} bits; one group of {pair.act.name} x "
            f"{pair.weight.name} at any of its exponents, rounded to FP32, needs {least}"
        )
    # From the smallest normal number on, and what is beyond the largest must not wrap.
    if not 0 < _top_exponent(pair, window) < 511:
        raise InputError(
            f"window {window.name}: its {window.bits} bits reach from 2^"
            f"{window.lowest - pair.bias} to 2^{window.lowest - pair.bias + window.bits - 2}; the "
            f"top must lie between 2^-{FP32.bias - 1} and 2^383"
        )


def _top_exponent(pair: Exact, window: Window) -> int:
    """Return the FP32 exponent field of a number whose leading bit is the sum's below its sign."""
    return window.lowest - pair.bias + window.bits - 2 + FP32.bias


def _products(pair: Exact, terms: int) -> ShapeLike:
    """Return the shape of what is added in one step: a product, or several."""
    return pair.product_layout if terms == 1 else data.ArrayLayout(pair.product_layout, terms)


class CarrySaveSum(Component):
    """The register of the sum: sum' = sum + D * 2^(exponent - lowest), in two's complement.

    The sum is cut into digits, and each keeps the carry that it gives to the next one until the
    next step, when it is added with the next product. So the loop is the addition of one digit,
    however long the sum is; D is shifted to its place outside of it. Several products of a step
    and the digits become two numbers first, by full adders that pass no carry on.

    Parameters
    ----------
    pair
        Formats of the operands.
    window
        Exponents and bits, see ``ExactAccumulator``.
    terms
        Products of a step.

    Members
    -------
    enable : In(1)
        Go on by one step.
    i : In(pair.product_layout), or an array of them
        The exact product, or products.
    valid : In(1)
        There is one; otherwise the sum stays as it is, but for the carries that move on.
    first : In(1)
        Clear the sum first. Reset clears it too.
    digits : Out(bits + 1), carries : Out(digits)
        The sum is ``digits``, to which each digit's carry is still to be added one digit above,
        modulo 2^(bits + 1). One bit more than the window's shows that the sum has left those.
    kept, below, above, nan : Out(1)
        Of the latest step: the sum was not cleared; the product lay below or above the window; a
        scale was NaN.
    """

    def __init__(self, pair: Exact, window: Window, terms: int = 1) -> None:
        self._pair, self._window, self._terms = pair, window, terms
        bits = window.bits + 1
        super().__init__(
            {
                "enable": In(1),
                "i": In(_products(pair, terms)),
                "valid": In(1),
                "first": In(1),
                "digits": Out(bits),
                "carries": Out(-(-bits // _DIGIT)),
                "kept": Out(1),
                "below": Out(1),
                "above": Out(1),
                "nan": Out(1),
            }
        )

    def build(self) -> Module:
        """Build shift, adders and registers."""
        m = Module()
        step = self.enable
        placed = [self._placed(m, i, name) for i, name in self._named_products()]
        addends = [addend for addend, _, _ in placed]
        low, high = (reduce(or_, flags) for flags in list(zip(*placed, strict=True))[1:])
        nan = reduce(or_, (i.nan for i, _ in self._named_products()))

        fresh = Signal(init=1)  # after reset, until the first group
        keep = named(m, "keep", ~(fresh | (self.first & self.valid)))
        with m.If(step):
            m.d.sync += fresh.eq(fresh & ~self.valid)
        places = range(0, len(self.digits), _DIGIT)
        widths = [len(self.digits[n : n + _DIGIT]) for n in places]
        digits = [
            Signal(width, name=f"digit_{n}", reset_less=True)
            for n, width in zip(places, widths, strict=True)
        ]
        carries = [Signal(name=f"carry_{n}", reset_less=True) for n in places]
        kept: list[Value] = [digit & keep.replicate(len(digit)) for digit in digits]
        if self._terms > 1:
            both, addend = carry_save(m, [Cat(kept), *addends], "saved")
            kept = [both[n : n + width] for n, width in zip(places, widths, strict=True)]
        else:
            [addend] = addends
        carry: Value = Const(0, 1)
        for n, digit, held, own in zip(places, digits, carries, kept, strict=True):
            longer = named(m, f"sum_{n}", own + addend[n : n + _DIGIT] + (carry & keep))
            with m.If(step):
                m.d.sync += Cat(digit, held).eq(longer)
            carry = held
        m.d.comb += [
            self.digits.eq(Cat(digits)),
            self.carries.eq(Cat(carries)),
            self.kept.eq(register(m, step, "kept_held", keep)),
            self.below.eq(register(m, step, "below_held", low)),
            self.above.eq(register(m, step, "above_held", high)),
            self.nan.eq(register(m, step, "nan_held", nan & self.valid)),
        ]
        return m

    def _named_products(self) -> Sequence[tuple[data.View, str]]:
        """Return the products, and what their signals end with."""
        if self._terms == 1:
            return [(self.i, "")]
        return [(self.i[n], f"_{n}") for n in range(self._terms)]

    def _placed(self, m: Module, i: data.View, name: str) -> tuple[Value, Value, Value]:
        """Return a product in its place, and whether it has none: below, above the window."""
        window = self._window
        span = window.highest - window.lowest
        number = named(m, f"number{name}", self.valid & ~i.nan & i.product.any())
        place = Signal(signed(self._pair.exponent_bits + 1), name=f"place{name}")
        # Nothing of a beat that was not accepted goes on: an unknown distance would shift even a
        # product of zero to unknown bits.
        exponent = i.exponent & self.valid.replicate(len(i.exponent))
        m.d.comb += place.eq(exponent - window.lowest)
        distance, low = place[:-1], place[-1]
        high = named(m, f"high{name}", ~low & (distance > Const(span, len(distance))))
        product = Signal(self._pair.product_shape, name=f"product{name}")
        addend = Signal(signed(len(self.digits)), name=f"addend{name}")
        m.d.comb += [
            product.eq(i.product & (number & ~low & ~high).replicate(len(product))),
            addend.eq(product << distance[: max(span.bit_length(), 1)]),
        ]
        return addend, number & low, number & high


class CarryPropagation(Component):
    """Add the carries that a sum still has to the digits above them; combinational.

    A digit passes a carry on if it has nothing but ones, so all of them are known before any digit
    is incremented.

    Parameters
    ----------
    bits
        Of the sum.

    Members
    -------
    digits : In(bits), carries : In
        See ``CarrySaveSum``.
    total : Out(bits)
        The sum in two's complement.
    """

    def __init__(self, bits: int) -> None:
        super().__init__(
            {"digits": In(bits), "carries": In(-(-bits // _DIGIT)), "total": Out(bits)}
        )

    def build(self) -> Module:
        """Build the chain and the increments."""
        m = Module()
        held: Value = Const(0, 1)  # the carry that the digit below has kept
        passed: Value = Const(0, 1)  # the one that comes through it now
        digits = []
        for index, n in enumerate(range(0, len(self.digits), _DIGIT)):
            digit = self.digits[n : n + _DIGIT]
            digits.append((digit + held + passed)[: len(digit)])
            # With a carry kept, digit + 1 is zero after ones, or all ones after ones and a zero.
            full = named(m, f"full_{n}", digit[1:].all())
            passed = named(
                m,
                f"passed_{n}",
                full & ((digit[0] & held) | ((digit[0] ^ held) & passed)),
            )
            held = self.carries[index]
        m.d.comb += self.total.eq(Cat(digits))
        return m


class ExactPipeline(Component):
    """``CarrySaveSum``, ``CarryPropagation``, ``Normalise`` and ``Round``, registers between them.

    They all stand still unless enabled.

    Parameters
    ----------
    pair
        Formats of the operands.
    window
        Exponents and bits, see ``ExactAccumulator``.
    terms
        Products of a step.

    Members
    -------
    enable, i, valid, first
        As for ``CarrySaveSum``.
    o : Out(exact_layout)
        The result after the product of ``latency`` steps ago.
    """

    latency = 4

    def __init__(self, pair: Exact, window: Window, terms: int = 1) -> None:
        if isinstance(pair, DotPair):
            check_window(pair, window)
        self._pair, self._window, self._terms = pair, window, terms
        super().__init__(
            {
                "enable": In(1),
                "i": In(_products(pair, terms)),
                "valid": In(1),
                "first": In(1),
                "o": Out(exact_layout),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        step, bits = self.enable, self._window.bits
        m.submodules.sum = running = CarrySaveSum(self._pair, self._window, self._terms)
        m.submodules.resolve = resolve = CarryPropagation(bits + 1)
        m.submodules.normalise = normalised = Normalise(bits)
        m.submodules.round = round_ = Round()
        total = register(m, step, "total", resolve.total)
        negative = total[bits - 1]
        # The bit above the sign is the same unless the sum needs it.
        outside = named(m, "outside", resolve.total[-1] ^ resolve.total[-2])
        lost = named(m, "lost", running.above | outside)
        nan, inexact = Signal(reset_less=True), Signal(reset_less=True)
        with m.If(step):
            m.d.sync += [
                nan.eq((nan & running.kept) | running.nan | lost),
                inexact.eq((inexact & running.kept) | running.below | lost),
            ]
        m.d.comb += [
            running.enable.eq(step),
            running.i.eq(self.i),
            running.valid.eq(self.valid),
            running.first.eq(self.first),
            resolve.digits.eq(running.digits),
            resolve.carries.eq(running.carries),
            # A negative sum is complemented, and so one short. A further bit below, 1 then, keeps
            # that of -1 from vanishing.
            normalised.i.magnitude.eq(
                Cat(Const(0, 1), total[: bits - 1]) ^ negative.replicate(bits)
            ),
            normalised.i.borrowed.eq(negative),
            normalised.i.subtract.eq(1),
            normalised.i.exponent.eq(_top_exponent(self._pair, self._window) - 1),
            normalised.i.negative.eq(0),
            normalised.i.nan.eq(nan),
            round_.i.eq(register(m, step, "normalised_held", normalised.o.as_value())),
            self.o.acc.eq(register(m, step, "acc_held", round_.acc.as_value())),
            self.o.inexact.eq(delayed(m, step, "inexact", inexact, 2)),
        ]
        return m
