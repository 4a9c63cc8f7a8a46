"""The exact product of two groups of any MX elements: lanes and sums."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FloatElement, IntElement
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.arith.fixed_point import signed_bits, signed_total
from m2xfp.rtl.parts.mixed_pair import MixedPair, largest_shift
from m2xfp.rtl.verilog.component import Component

__all__ = ["MixedPartSum", "special"]

Element = FloatElement | IntElement


def special(code: Value, element: Element) -> Value:
    """Return whether a code is a NaN or an infinity."""
    if isinstance(element, IntElement):
        return Const(0, 1)
    count = (1 << (element.bits - 1)) - 1 - element.max_code  # codes above the largest finite one
    if not count:
        return Const(0, 1)
    return code[count.bit_length() - 1 : -1].all()


def _significand(m: Module, code: Value, element: Element, name: str) -> Value:
    """Return the signed significand of a code: h.m as an integer, with its sign; INT8 itself."""
    if isinstance(element, IntElement):
        return code.as_signed()
    bits = element.mantissa_bits
    sign = code[-1]
    magnitude = named(m, f"{name}_magnitude", Cat(code[:bits], code[bits:-1].any()))
    result = Signal(signed(bits + 2), name=f"{name}_significand")
    m.d.comb += result.eq(Cat(magnitude ^ sign.replicate(bits + 1), sign).as_signed() + sign)
    return result


def _shift(code: Value, element: Element) -> Value:
    """Return the power of two that goes with ``_significand``: max(e, 1) - 1."""
    if isinstance(element, IntElement):
        return Const(0, 1)
    field = code[element.mantissa_bits : -1]
    return field - field.any()


class MixedLaneProduct(Component):
    """The product of two codes, exact, in units of the product of both last places; combinational.

    The signed significands multiply first, and the product is shifted by the sum of both exponents:
    steps of 1, 2, 4, ... while it grows.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    x, w : In
        Codes.
    product : Out(signed)
        Their product; of a NaN or an infinity it means nothing.
    """

    def __init__(self, pair: MixedPair) -> None:
        self.pair = pair
        bound = pair.lane_bound
        super().__init__(
            {
                "x": In(pair.act.element.bits),
                "w": In(pair.weight.element.bits),
                "product": Out(signed(signed_bits(-bound, bound))),
            }
        )

    def build(self) -> Module:
        """Build multiplier and shifter."""
        m = Module()
        act, weight = self.pair.act.element, self.pair.weight.element
        x = _significand(m, self.x, act, "x")
        w = _significand(m, self.w, weight, "w")
        product: Value = Signal(signed(len(x) + len(w)), name="significands")
        m.d.comb += product.eq(x * w)
        largest = largest_shift(act) + largest_shift(weight)
        amount = Signal(range(largest + 1))
        m.d.comb += amount.eq(_shift(self.x, act) + _shift(self.w, weight))
        for stage in range(len(amount)):
            width = min(len(product) + (1 << stage), len(self.product))
            wider = Signal(signed(max(width, len(product))), name=f"shifted_{1 << stage}")
            shifted = Cat(Const(0, 1 << stage), product).as_signed()
            m.d.comb += wider.eq(Mux(amount[stage], shifted, product))
            product = wider
        m.d.comb += self.product.eq(product)
        return m


class MixedPartSum(Component):
    """The sum of the products of some lanes, and whether any of them has no number; combinational.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    x, w : In(ArrayLayout(code, part))
        Codes.
    total : Out(signed)
        The sum.
    special : Out(1)
        A code is a NaN or an infinity; the sum means nothing then.
    """

    def __init__(self, pair: MixedPair) -> None:
        self.pair = pair
        bound = pair.part_bound
        super().__init__(
            {
                "x": In(data.ArrayLayout(unsigned(pair.act.element.bits), pair.part)),
                "w": In(data.ArrayLayout(unsigned(pair.weight.element.bits), pair.part)),
                "total": Out(signed(signed_bits(-bound, bound))),
                "special": Out(1),
            }
        )

    def build(self) -> Module:
        """Build products and sum."""
        m = Module()
        products, specials = [], []
        for n in range(self.pair.part):
            m.submodules[f"lane_{n}"] = lane = MixedLaneProduct(self.pair)
            m.d.comb += [lane.x.eq(self.x[n]), lane.w.eq(self.w[n])]
            products.append(lane.product)
            specials.append(special(self.x[n], self.pair.act.element))
            specials.append(special(self.w[n], self.pair.weight.element))
        m.d.comb += [
            self.total.eq(signed_total(products, len(self.total))),
            self.special.eq(Cat(specials).any()),
        ]
        return m
