"""Lanes of a unit that switches between formats: codes of any width to products of one form."""

from collections.abc import Mapping
from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import E2M1, E4M3, E5M2
from m2xfp.rtl.arith.datapath import named, one_hot_mux
from m2xfp.rtl.arith.fixed_point import signed_bits
from m2xfp.rtl.parts.switch_pair import SwitchPair, SwitchSide
from m2xfp.rtl.verilog.component import Component

__all__ = ["WideLane", "WideShift", "aligned_code", "code_layout", "lane_layout"]

# Stages of the shift that come before the register, so that both sides of it take equal time.
_EARLY = 3

# Shifts are by max(e, 1) on either side, two more than they should be.
_TOO_FAR = 2


def code_layout(side: SwitchSide) -> data.StructLayout:
    """Return the one form of all codes of a side; an integer lies in ``integer``, the rest is 0.

    ``carry``: a multiple is 16 or more, see ``aligned_code``.
    """
    fields: dict[str, int] = {
        "mantissa": side.mantissa_bits,
        "exponent": side.exponent_bits,
        "sign": 1,
    }
    if side.multiplied:
        fields["carry"] = 1
    if side.integer:
        fields["integer"] = 8
    return data.StructLayout(fields)


def aligned_code(
    codes: Value,
    lane: int,
    side: SwitchSide,
    chosen: Mapping[str, Value],
    multiple: Value | None = None,
) -> Value:
    """Return a lane's code in the form of ``code_layout``.

    Parameters
    ----------
    codes
        The codes of a beat, packed from bit 0 on.
    lane, side
        Which one, and what it may be.
    chosen
        By name of an element, whether it is that: one-hot, or none, which gives 0.
    multiple
        Of a side with multipliers: an E2M1 code's significand h.m times 4 + k. It is the code's
        own where k = 0, with two bits more, and 18 or 21 where it is 16 or more; below it has the
        hidden bit, if h is set, in the place of 8.
    """
    layout = code_layout(side)
    forms: list[Value] = []
    for element in side.elements:
        code = codes[element.bits * lane : element.bits * (lane + 1)]
        if element not in side.floats:
            forms.append(Cat(Const(0, layout.size - 8), code))
            continue
        bits, magnitude = element.mantissa_bits, code[:-1]
        carry: Value = Const(0, int(side.multiplied))
        if element is E2M1 and multiple is not None:
            bits, magnitude, carry = 3, Cat(multiple[:3], code[1:-1]), multiple[4]
        above = side.exponent_bits - element.exponent_bits
        form = Cat(Const(0, side.mantissa_bits - bits), magnitude, Const(0, above), code[-1], carry)
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

    ``product``, partly shifted, is still to be shifted by ``amount`` times 2^3.
    """
    bound = pair.significand_bound << min((1 << _EARLY) - 1, pair.largest_amount + _TOO_FAR)
    bits = min(signed_bits(-bound, bound), pair.row_bits + _TOO_FAR)
    amount = (pair.largest_amount + _TOO_FAR).bit_length()
    return data.StructLayout({"product": signed(bits), "amount": max(0, amount - _EARLY)})


class WideLane(Component):
    """The first half of an exact product of two codes; combinational.

    Magnitudes multiply, and the sign is applied to their product, before the shift. Where there are
    integers, both significands have a sign.

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
        bits = signed_bits(-pair.significand_bound, pair.significand_bound)
        product: Value = Signal(signed(bits), name="significands")
        if act.integer or weight.integer:
            x = self._signed(m, self.x, act, "x")
            w = self._signed(m, self.w, weight, "w")
            m.d.comb += product.eq(x * w)
        else:
            x = self._magnitude(m, self.x, act, "x")
            w = self._magnitude(m, self.w, weight, "w")
            magnitude = named(m, "magnitude", (x * w)[: bits - 1])
            negative = named(m, "negative", self.x.sign ^ self.w.sign)
            m.d.comb += product.eq((magnitude ^ negative.replicate(bits)) + negative)
        amount = Signal((pair.largest_amount + _TOO_FAR).bit_length())
        m.d.comb += [
            amount.eq(self._shift(self.x) + self._shift(self.w)),
            self.special.eq(_special(self.x, act) | _special(self.w, weight)),
        ]
        for stage in range(min(_EARLY, len(amount))):
            product = _shifted(m, product, amount[stage], 1 << stage, len(self.o.product))
        m.d.comb += [self.o.product.eq(product), self.o.amount.eq(amount[_EARLY:])]
        return m

    def _magnitude(self, m: Module, code: data.View, side: SwitchSide, name: str) -> Signal:
        """Return h.m of a code as an integer, or its multiple."""
        bits = [code.mantissa, code.exponent.any()]
        if side.multiplied:
            bits[1:] = [bits[1] & ~code.carry, code.carry]
        return named(m, f"{name}_magnitude", Cat(bits))

    def _signed(self, m: Module, code: data.View, side: SwitchSide, name: str) -> Value:
        """Return h.m of a code with its sign, or the integer; of the two, one is zero."""
        magnitude = self._magnitude(m, code, side, name)
        bits = len(magnitude) + 1
        result: Value = Signal(signed(bits), name=f"{name}_significand")
        negated = Cat(magnitude ^ code.sign.replicate(bits - 1), code.sign).as_signed() + code.sign
        m.d.comb += result.eq(negated)
        if side.integer:
            wide = Signal(signed(8), name=f"{name}_either")
            m.d.comb += wide.eq(result | code.integer.as_signed())
            result = wide
        return result

    def _shift(self, code: data.View) -> Value:
        """Return the power of two that goes with a significand, and one more: max(e, 1)."""
        if not len(code.exponent):
            return Const(1, 1)
        return Cat(code.exponent[0] | ~code.exponent.any(), code.exponent[1:])


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
        most = len(self.product) + _TOO_FAR
        for stage in range(len(self.i.amount)):
            step = 1 << (stage + _EARLY)
            product = _shifted(m, product, self.i.amount[stage], step, most)
        m.d.comb += self.product.eq(product[_TOO_FAR:].as_signed())
        return m
