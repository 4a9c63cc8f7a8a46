"""Accumulation of groups that do not come in every step."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FP32, Window
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.arith.fixed_point import leading_zeros, normalise
from m2xfp.rtl.parts.exact_accumulation import ExactPipeline, exact_layout
from m2xfp.rtl.parts.fp32_accumulation import Accumulator
from m2xfp.rtl.parts.fp32_addition import addend_layout
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.parts.switch_product import digits_layout
from m2xfp.rtl.parts.switch_total import resolved, sign_magnitude
from m2xfp.rtl.verilog.component import Component

__all__ = ["HeldExact", "HeldRing", "Placed", "magnitude_layout"]


def _members(pair: SwitchPair, window: Window | None) -> dict[str, wiring.Member]:
    """Return the ports of both kinds, see ``HeldRing``."""
    acc = value_layout(FP32)
    result = {"acc": acc, "refused": 1} | ({} if window is None else {"inexact": 1})
    return {
        "enable": In(1),
        "i": In(digits_layout(pair)),
        "valid": In(1),
        "first": In(1),
        "refused": In(1),
        "last": In(1),
        "turn": In(1),
        "o": Out(data.StructLayout(result)),
        "o_last": Out(1),
        "o_valid": Out(1),
    }


def magnitude_layout(pair: SwitchPair) -> data.StructLayout:
    """Return an exact product as sign and magnitude."""
    bits = len(Signal(pair.product_shape)) - 1
    return data.StructLayout(
        {"magnitude": bits, "negative": 1, "exponent": pair.exponent_bits, "nan": 1}
    )


class Placed(Component):
    """Bring a magnitude to exponent and normalised significand; combinational.

    The second half of ``Addend``.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    i : In
        An exact product as sign and magnitude.
    o : Out(addend_layout(pair))
        The same value; if ``nan`` the other fields mean nothing.
    """

    def __init__(self, pair: SwitchPair) -> None:
        self.pair = pair
        super().__init__({"i": In(magnitude_layout(pair)), "o": Out(addend_layout(pair))})

    def build(self) -> Module:
        """Build leading-zero count and shift."""
        m = Module()
        zeros, found = leading_zeros(m, self.i.magnitude, "zeros")
        offset = len(self.i.magnitude) - 1 + FP32.bias - self.pair.bias
        m.d.comb += [
            self.o.significand.eq(normalise(m, self.i.magnitude, zeros, "normalised")),
            self.o.exponent.eq(self.i.exponent + offset - zeros),
            self.o.negative.eq(self.i.negative),
            self.o.nonzero.eq(found),
            self.o.nan.eq(self.i.nan),
        ]
        return m


class HeldRing(Component):
    """The ring of FP32 accumulators, turned by one chain only when it is told to.

    Parameters
    ----------
    pair
        Formats of the operands.
    chains
        Accumulators, 1 to 4, which are the register stages of the addition.

    Members
    -------
    enable : In(1)
        Go on by one step.
    i : In(digits_layout(pair))
        The exact product.
    valid, first, refused, last : In(1)
        There is one; clear its chain to +0 first; it is NaN, and its chain's status is set until
        the next ``first``; a mark that comes out with the result. Reset clears all chains.
    turn : In(1)
        The ring turns; with ``valid`` it must.
    o, o_last, o_valid : Out
        The chain after the latest turn but ``chains``, if that brought a result.
    """

    def __init__(self, pair: SwitchPair, chains: int) -> None:
        self.pair, self.chains = pair, chains
        self.latency = 2 + chains
        super().__init__(_members(pair, None))

    def build(self) -> Module:
        """Build the ring and what goes round beside it."""
        m = Module()
        step = self.enable
        m.submodules.placed = placed = Placed(self.pair)
        m.submodules.accumulator = accumulator = Accumulator(self.pair, self.chains)
        held = Signal(addend_layout(self.pair))
        # What would change a chain is reset, as in ``AccumulatorPipeline``.
        there = delayed(m, step, "valid_held", self.valid, 2, reset=True)
        turn = delayed(m, step, "turn_held", self.turn, 2, reset=True)
        first = delayed(m, step, "first_held", self.first, 2)
        refused = delayed(m, step, "refused_held", self.refused, 2)
        last = delayed(m, step, "last_held", self.last, 2)
        # |D| needs no sign: the bound of D is symmetric.
        exact = Signal(magnitude_layout(self.pair))
        magnitude, negative = sign_magnitude(m, self.i.digits)
        m.d.comb += [
            exact.magnitude.eq(magnitude),
            exact.negative.eq(negative),
            exact.exponent.eq(self.i.exponent),
            exact.nan.eq(self.i.nan),
        ]
        # Ones after reset: every chain is cleared when its turn comes for the first time.
        fresh = Signal(self.chains, init=-1)
        clear = named(m, "clear", (first & there) | fresh[0])
        move = named(m, "move", step & turn)
        status = Signal(self.chains, reset_less=True)
        marks = Signal(self.chains, reset_less=True)
        results = Signal(self.chains)
        moved = Signal()
        m.d.comb += [
            placed.i.eq(register(m, step, "magnitude_held", exact.as_value())),
            held.eq(register(m, step, "addend_held", placed.o.as_value())),
            accumulator.addend.eq(held),
            accumulator.addend.nonzero.eq(held.nonzero & there),
            accumulator.addend.nan.eq((held.nan | refused) & there),
            accumulator.enable.eq(move),
            accumulator.first.eq(clear),
            self.o.acc.eq(accumulator.acc),
            self.o.refused.eq(status[-1]),
            self.o_last.eq(marks[-1]),
            self.o_valid.eq(results[-1] & moved),
        ]
        with m.If(move):
            flag = (status[-1] & ~clear) | (refused & there)
            m.d.sync += [
                fresh.eq(fresh >> 1),
                status.eq(Cat(flag, status)[: self.chains]),
                marks.eq(Cat(last, marks)[: self.chains]),
                results.eq(Cat(there, results)[: self.chains]),
            ]
        with m.If(step):
            m.d.sync += moved.eq(turn)
        return m


class HeldExact(Component):
    """The exact accumulation with the ports of ``HeldRing``; it has no ring to turn.

    Parameters
    ----------
    pair
        Formats of the operands.
    window
        Exponents and bits, see ``ExactAccumulator``.
    """

    latency = 1 + ExactPipeline.latency

    def __init__(self, pair: SwitchPair, window: Window) -> None:
        self._pair = pair
        self._exact = ExactPipeline(pair, window)
        super().__init__(_members(pair, window))

    def build(self) -> Module:
        """Build the status and what goes along."""
        m = Module()
        step = self.enable
        m.submodules.exact = exact = self._exact
        there = delayed(m, step, "valid_held", self.valid, 1, reset=True)
        first = delayed(m, step, "first_held", self.first, 1)
        refused = delayed(m, step, "refused_held", self.refused, 1)
        held = Signal(self._pair.product_layout)
        status = Signal()
        with m.If(step & there):
            m.d.sync += status.eq((status & ~first) | refused)
        found = Signal(exact_layout)
        whole = Signal(self._pair.product_layout)
        m.d.comb += [
            whole.product.eq(resolved(m, self.i.digits)),
            whole.exponent.eq(self.i.exponent),
            whole.nan.eq(self.i.nan),
            held.eq(register(m, step, "product_held", whole.as_value())),
            exact.enable.eq(step),
            exact.i.eq(held),
            exact.i.nan.eq(held.nan | refused),
            exact.valid.eq(there),
            exact.first.eq(first),
            found.eq(exact.o),
            self.o.acc.eq(found.acc),
            self.o.inexact.eq(found.inexact),
            self.o.refused.eq(delayed(m, step, "status", status, self.latency - 2)),
            self.o_last.eq(delayed(m, step, "last", self.last, self.latency)),
            self.o_valid.eq(delayed(m, step, "valid", there, self.latency - 1, reset=True)),
        ]
        return m
