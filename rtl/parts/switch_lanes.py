"""Lanes of a unit that switches between formats: codes of any width to products of one form."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import E4M3, E5M2
from m2xfp.rtl.arith.datapath import named, one_hot_mux
from m2xfp.rtl.arith.fixed_point import signed_bits
from m2xfp.rtl.parts.switch_pair import SwitchPair, SwitchSide
from m2xfp.rtl.verilog.component import Component

__all__ = ["WideLane", "WideShift", "aligned_code", "code_layout", "lane_layout"]

# Stages of the shift that come before the register, so that both sides of it take equal time.
_EARLY = 2


def code_layout(side: SwitchSide) -> data.StructLayout:
    """Return the one form of all codes of a side; an integer lies in ``integer``, the rest is 0."""
    fields: dict[str, int] = {
        "mantissa": side.mantissa_bits,
        "exponent": side.exponent_bits,
        "sign": 1,
    }
    if side.integer:
        fields["integer"] = 8
    return data.StructLayout(fields)


def aligned_code(codes: Value, lane: int, side: SwitchSide, chosen: Mapping[str, Value]) -> Value:
    """Return a lane's code in the form of ``code_layout``.

    Parameters
    ----------
    codes
        The codes of a beat, packed from bit 0 on.
    lane, side
        Which one, and what it may be.
    chosen
        By name of an element, whether it is that: one-hot, or none, which gives 0.
    """
    layout = code_layout(side)
    forms: list[Value] = []
    for element in side.elements:
        code = codes[element.bits * lane : element.bits * (lane + 1)]
        if element not in side.floats:
            forms.append(Cat(Const(0, layout.size - 8), code))
            continue
        bits = element.mantissa_bits  # type: ignore[union-attr]
        above = side.exponent_bits - element.exponent_bits  # type: ignore[union-attr]
        form = Cat(Const(0, side.mantissa_bits - bits), code[:-1], Const(0, above), code[-1])
        forms.append(Cat(form, Const(0, layout.size - len(form))))
    return one_hot_mux([chosen[element.name] for element in side.elements], forms)


def _special(code: data.View, side: SwitchSide) -> Value:
    """Return whether a code in the common form is a NaN or an infinity.

    No other element reaches these exponents.
    """
    found: list[Value] = [Const(0, 1)]
    if E4M3 in side.elements:
        found.append((code.exponent == 15) & code.mantissa.all())
    if E5M2 in side.elements:
        found.append(code.exponent == 31)
    return reduce(or_, found)


def lane_layout(pair: SwitchPair) -> data.StructLayout:
    """Return what a wide lane has computed before the register.

    ``product``, partly shifted, is still to be shifted by ``amount`` times 2^2.
    """
    bound = pair.significand_bound << min((1 << _EARLY) - 1, pair.largest_amount)
    bits = min(signed_bits(-bound, bound), pair.row_bits)
    amount = pair.largest_amount.bit_length()
    return data.StructLayout({"product": signed(bits), "amount": max(0, amount - _EARLY)})


class WideLane(Component):
    """The first half of an exact product of two codes; combinational.

    The sign of both goes into one significand, where it is narrowest; what that is short of a
    two's complement is added to it there. Integers have a sign of their own.

    Parameters
    ----------
    pair
        Numbers of the unit.

    Members
    -------
    x, w : In(code_layout)
        Codes.
    o : Out(lane_layout)
        The product of the significands, and how it is still to be shifted.
    special : Out(1)
        A code is a NaN or an infinity; the product means nothing then.
    """

    def __init__(self, pair: SwitchPair) -> None:
        self.pair = pair
        super().__init__(
            {
                "x": In(code_layout(pair.sides[0])),
                "w": In(code_layout(pair.sides[1])),
                "o": Out(lane_layout(pair)),
                "special": Out(1),
            }
        )

    def build(self) -> Module:
        """Build multiplier and exponents."""
        m = Module()
        pair = self.pair
        act, weight = pair.sides
        signs: Sequence[Value] = (self.x.sign, self.w.sign)
        if not act.integer and not weight.integer:
            signs = (self.x.sign ^ self.w.sign, Const(0, 1))
        x = self._significand(m, self.x, act, "x", signs[0])
        w = self._significand(m, self.w, weight, "w", signs[1])
        bits = signed_bits(-pair.significand_bound, pair.significand_bound)
        product: Value = Signal(signed(bits), name="significands")
        amount = Signal(pair.largest_amount.bit_length())
        m.d.comb += [
            product.eq(x * w),
            amount.eq(self._shift(self.x) + self._shift(self.w)),
            self.special.eq(_special(self.x, act) | _special(self.w, weight)),
        ]
        for stage in range(min(_EARLY, len(amount))):
            product = _shifted(m, product, amount[stage], 1 << stage, len(self.o.product))
        m.d.comb += [self.o.product.eq(product), self.o.amount.eq(amount[_EARLY:])]
        return m

    def _significand(
        self, m: Module, code: data.View, side: SwitchSide, name: str, sign: Value
    ) -> Value:
        """Return h.m of a code as an integer, with a sign; unsigned if that is constant."""
        magnitude = named(m, f"{name}_magnitude", Cat(code.mantissa, code.exponent.any()))
        if isinstance(sign, Const):
            return magnitude
        bits = len(magnitude) + 1
        result: Value = Signal(signed(bits), name=f"{name}_significand")
        negated = Cat(magnitude ^ sign.replicate(bits - 1), sign).as_signed() + sign
        m.d.comb += result.eq(negated)
        if side.integer:
            # Of the two, one is zero.
            wide = Signal(signed(8), name=f"{name}_either")
            m.d.comb += wide.eq(result | code.integer.as_signed())
            result = wide
        return result

    def _shift(self, code: data.View) -> Value:
        """Return the power of two that goes with a significand: max(e, 1) - 1."""
        return code.exponent - code.exponent.any()


def _shifted(m: Module, product: Value, chosen: Value, step: int, most: int) -> Signal:
    """Shift a signed product up by ``step`` if ``chosen``, within ``most`` bits."""
    wider = Signal(
        signed(max(min(len(product) + step, most), len(product))), name=f"shifted_{step}"
    )
    m.d.comb += wider.eq(Mux(chosen, Cat(Const(0, step), product).as_signed(), product))
    return wider


class WideShift(Component):
    """The second half of an exact product: the rest of the shift; combinational.

    Parameters
    ----------
    pair
        Numbers of the unit.

    Members
    -------
    i : In(lane_layout)
        From ``WideLane``.
    product : Out(signed(row_bits))
        The product.
    """

    def __init__(self, pair: SwitchPair) -> None:
        super().__init__({"i": In(lane_layout(pair)), "product": Out(signed(pair.row_bits))})

    def build(self) -> Module:
        """Build the stages that are left, the shortest first."""
        m = Module()
        product: Value = self.i.product
        for stage in range(len(self.i.amount)):
            step = 1 << (stage + _EARLY)
            product = _shifted(m, product, self.i.amount[stage], step, len(self.product))
        m.d.comb += self.product.eq(product)
        return m
