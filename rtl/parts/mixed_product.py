"""The exact product of two groups of any MX elements: lanes and sums."""

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FloatElement, IntElement
from m2xfp.rtl.arith.datapath import first_maximum, named
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
                "x": In(pair.elements[0].bits),
                "w": In(pair.elements[1].bits),
                "product": Out(signed(signed_bits(-bound, bound))),
            }
        )

    def build(self) -> Module:
        """Build multiplier and shifter."""
        m = Module()
        act, weight = self.pair.elements
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


def refined_codes(m: Module, codes: Sequence[Value], meta: Value) -> list[Value]:
    """Return the E2M3 codes that the E2M1 codes of an Elem-EM subgroup stand for.

    The top-1 element, the lowest index of the largest, is max(4 c + meta - 1, 0), all others 4 c
    (docs/format.md section 4).
    """
    largest, first = first_maximum(m, [code[:-1] for code in codes])
    above = named(m, "above", Cat(Const(0, 2), largest) + meta)
    top = named(m, "top_code", (above - above.any())[:5])
    return [
        Cat(Mux(chosen, top, Cat(Const(0, 2), code[:-1])), code[-1])
        for chosen, code in zip(first, codes, strict=True)
    ]


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
    meta : In(2)
        Metadata of the activations; only with Elem-EM.
    total : Out(signed)
        The sum.
    special : Out(1)
        A code is a NaN or an infinity; the sum means nothing then.
    """

    def __init__(self, pair: MixedPair) -> None:
        self.pair = pair
        bound = pair.part_bound
        members: dict[str, wiring.Member] = {
            "x": In(data.ArrayLayout(unsigned(pair.act.element.bits), pair.part)),
            "w": In(data.ArrayLayout(unsigned(pair.weight.element.bits), pair.part)),
            "total": Out(signed(signed_bits(-bound, bound))),
            "special": Out(1),
        }
        if pair.refined:
            members["meta"] = In(2)
        super().__init__(members)

    def build(self) -> Module:
        """Build products and sum."""
        m = Module()
        products, specials = [], []
        codes = [self.x[n] for n in range(self.pair.part)]
        if self.pair.refined:
            codes = refined_codes(m, codes, self.meta)
        for n, code in enumerate(codes):
            m.submodules[f"lane_{n}"] = lane = MixedLaneProduct(self.pair)
            m.d.comb += [lane.x.eq(code), lane.w.eq(self.w[n])]
            products.append(lane.product)
            specials.append(special(self.x[n], self.pair.act.element))
            specials.append(special(self.w[n], self.pair.weight.element))
        m.d.comb += [
            self.total.eq(signed_total(products, len(self.total))),
            self.special.eq(Cat(specials).any()),
        ]
        return m
