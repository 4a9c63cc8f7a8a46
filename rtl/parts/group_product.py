"""The exact product of two packed groups: lanes, parts, scales, and the pipeline of them."""

from collections.abc import Sequence
from functools import reduce
from operator import add, mul, or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.formats import Scale
from m2xfp.rtl.arith.datapath import named, one_hot_mux
from m2xfp.rtl.arith.fixed_point import signed_bits, signed_total
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.mixed_pair import MixedPair
from m2xfp.rtl.parts.mixed_product import MixedPartSum
from m2xfp.rtl.parts.registers import register
from m2xfp.rtl.parts.top_element_decoder import TopElementDecoder, refinement_layout
from m2xfp.rtl.verilog.component import Component

__all__ = [
    "GroupSums",
    "LaneProduct",
    "PartSum",
    "ProductPipeline",
    "ScaledProduct",
    "refinement_product",
    "scale_facts",
    "significand",
]


def significand(code: Value) -> Value:
    """Return h.m of an E2M1 magnitude code as a two-bit integer: 0..3."""
    return Cat(code[0], code[1:3].any())


def shift_of(code: Value) -> Value:
    """Return the power of two that goes with ``significand``: 2x = significand * 2^shift, 0..2."""
    return Cat(code[2] & ~code[1], code[2] & code[1])


class LaneProduct(Component):
    """(2x)(2w) of two E2M1 codes, exact; combinational.

    The significands multiply as two-bit integers, 0..9; the sign is applied to that product, before
    the shifts, where it is narrowest.

    Parameters
    ----------
    masked
        Whether the product counts only if told.

    Members
    -------
    x, w : In(4)
        Codes, sign on top.
    take : In(1)
        The product counts; without, it is zero. Only if ``masked``.
    product : Out(signed(9))
        -144..144.
    """

    def __init__(self, masked: bool = False) -> None:
        self._masked = masked
        take = {"take": In(1)} if masked else {}
        super().__init__({"x": In(4), "w": In(4), **take, "product": Out(signed(9))})

    def build(self) -> Module:
        """Build the multiplier."""
        m = Module()
        x = named(
            m,
            "x_significand",
            significand(self.x) & self.take.replicate(2) if self._masked else significand(self.x),
        )
        w = named(m, "w_significand", significand(self.w))
        # The product 8 q3 + 4 q2 + 2 q1 + q0; only 3 * 3 sets q3, and then q2 and q1 are 0.
        high = named(m, "high", x[1] & w[1])
        q0 = named(m, "q0", x[0] & w[0])
        q1 = named(m, "q1", (x[1] & w[0]) ^ (x[0] & w[1]))
        q2 = named(m, "q2", high & ~q0)
        q3 = named(m, "q3", high & q0)
        # Two's complement: every bit above the lowest set one is inverted.
        negative = named(m, "negative", self.x[3] ^ self.w[3])
        small = Signal(signed(5))
        m.d.comb += small.eq(
            Cat(
                q0,
                q1 ^ (negative & q0),
                q2 ^ (negative & (q0 | q1)),
                q3 ^ (negative & (q0 | q1 | q2)),
                negative & x.any() & w.any(),
            )
        )
        by_x, by_w = named(m, "x_shift", shift_of(self.x)), named(m, "w_shift", shift_of(self.w))
        shifted = Signal(signed(7))
        m.d.comb += [
            shifted.eq(Mux(by_x[1], small << 2, Mux(by_x[0], small << 1, small))),
            self.product.eq(Mux(by_w[1], shifted << 2, Mux(by_w[0], shifted << 1, shifted))),
        ]
        return m


def refinement_product(
    m: Module, x: Sequence[Value], w: Sequence[Value], top: Value, refinement: data.View
) -> tuple[Signal, Signal]:
    """Return r * 2w(top) of a subgroup as a number of eight bits and one that is still to be added.

    The weight's integer of four bits is shifted by 0..3, and negated as ~magnitude + 1.
    """
    weight = Signal(3)
    flipped = Signal()
    magnitude = Signal(7)
    m.d.comb += [
        weight.eq(one_hot_mux(list(top), [code[:3] for code in w])),
        flipped.eq(one_hot_mux(list(top), [a[3] ^ b[3] for a, b in zip(x, w, strict=True)])),
        magnitude.eq(
            (significand(weight) << shift_of(weight) << refinement.shift)
            & refinement.nonzero.replicate(7)
        ),
    ]
    negative = named(m, "negative", flipped ^ refinement.negative)
    narrow = Signal(signed(8))
    m.d.comb += narrow.eq(Cat(magnitude ^ negative.replicate(7), negative))
    return narrow, negative


class PartSum(Component):
    """Sum P of the products of some lanes, the refinement of the top-1 element included.

    Combinational.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    x, w : In(ArrayLayout(4, part))
        Codes.
    top : In(part), refinement : In(refinement_layout)
        From ``TopElementDecoder``; only with Elem-EM.
    total : Out(signed)
        P, see ``DotPair``.
    """

    def __init__(self, pair: DotPair) -> None:
        self.pair = pair
        codes = data.ArrayLayout(unsigned(4), pair.part)
        members: dict[str, wiring.Member] = {
            "x": In(codes),
            "w": In(codes),
            "total": Out(signed(signed_bits(-pair.part_bound, pair.part_bound))),
        }
        if pair.refined:
            members |= {"top": In(pair.part), "refinement": In(refinement_layout)}
        super().__init__(members)

    def build(self) -> Module:
        """Build products and sum."""
        m = Module()
        products = []
        for n in range(self.pair.part):
            m.submodules[f"lane_{n}"] = lane = LaneProduct()
            m.d.comb += [lane.x.eq(self.x[n]), lane.w.eq(self.w[n])]
            products.append(lane.product)
        if not self.pair.refined:
            m.d.comb += self.total.eq(signed_total(products, len(self.total)))
            return m
        lanes = range(self.pair.part)
        narrow, negative = refinement_product(
            m,
            [self.x[n] for n in lanes],
            [self.w[n] for n in lanes],
            self.top,
            self.refinement,
        )
        # The plain sum is complete before the refinement arrives: 4 Q + r 2w(top) ripples after it.
        plain = Signal(signed(signed_bits(-self.pair.part * 144, self.pair.part * 144)))
        m.d.comb += [
            plain.eq(signed_total(products, len(plain))),
            self.total.eq(Cat(Const(0, 2), plain).as_signed() + narrow + negative),
        ]
        return m


class GroupSums(Component):
    """Decode two packed groups, multiply, and add up each part; combinational.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    i : In(pair.operand_layout)
        The packed groups.
    o : Out(pair.sums_layout)
        Sums, multipliers and scales.
    """

    def __init__(self, pair: DotPair) -> None:
        self.pair = pair
        super().__init__({"i": In(pair.operand_layout), "o": Out(pair.sums_layout)})

    def build(self) -> Module:
        """Build the parts."""
        m = Module()
        pair = self.pair
        act, weight = self.i.act, self.i.weight
        specials = []
        for part in range(pair.parts):
            total = MixedPartSum(pair) if isinstance(pair, MixedPair) else PartSum(pair)
            m.submodules[f"part_{part}"] = total
            lanes = range(part * pair.part, (part + 1) * pair.part)
            m.d.comb += [
                total.x.eq(Cat(act.codes[n] for n in lanes)),
                total.w.eq(Cat(weight.codes[n] for n in lanes)),
                self.o.sums[part].eq(total.total),
            ]
            if isinstance(total, MixedPartSum):
                specials.append(total.special)
                if pair.refined:
                    m.d.comb += total.meta.eq(act.meta[part])
            elif pair.refined:
                m.submodules[f"decoder_{part}"] = decoder = TopElementDecoder(pair.act)
                m.d.comb += [
                    decoder.codes.eq(total.x),
                    decoder.meta.eq(act.meta[part]),
                    total.top.eq(decoder.top),
                    total.refinement.eq(decoder.refinement),
                ]
            if pair.multiplied:
                m.d.comb += self.o.multipliers[part].eq(weight.meta[part])
        m.d.comb += scale_facts(pair, act.scale, weight.scale, self.o.scales, specials)
        return m


def scale_facts(
    pair: DotPair, act: Value, weight: Value, facts: data.View, specials: Sequence[Value] = ()
) -> list:
    """Return the statements that set ``facts`` (``pair.scale_layout``) for two stored scales.

    ``nan`` is set by ``specials`` too: parts that have an element without a number.
    """
    sides = (pair.act.scale, act, facts.act), (pair.weight.scale, weight, facts.weight)
    nan = reduce(or_, specials, _not_a_number(*sides[0][:2]) | _not_a_number(*sides[1][:2]))
    statements, exponents = [facts.nan.eq(nan)], []
    for scale, code, target in sides:
        if scale.grid is None:
            exponents.append(code)
            continue
        bits = scale.grid.mantissa_bits
        field = code[bits : bits + scale.grid.exponent_bits]
        statements.append(target.eq(Cat(code[:bits], field.any())))
        exponents.append(Cat(field[0] | ~field.any(), field[1:]))  # max(e, 1)
    return [*statements, facts.exponent.eq(reduce(add, exponents))]


def _not_a_number(scale: Scale, code: Value) -> Value:
    """Return whether a stored scale is NaN, or an infinity of E5M2."""
    if scale.grid is None or scale.nan >> (scale.bits - 1):
        return code == scale.nan
    # The sign bit of a minifloat scale is not looked at.
    if scale.grid.max_code + 1 == scale.nan:
        return code[:-1] == scale.nan
    return code[scale.grid.mantissa_bits : -1].all()


class ScaledProduct(Component):
    """D = sum (4 + k) P, times the significands of the scales if they have some; combinational.

    D is the sum of three rows for each pair of parts: 4 (P0 + P1), and for each bit of the
    multipliers 0, P0, P1 or P0 + P1. The sum P0 + P1 serves all three, so the bits select where an
    adder for each part would have added.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    i : In(pair.sums_layout)
        Sums, multipliers and scales.
    o : Out(pair.product_layout)
        The exact product.
    """

    def __init__(self, pair: DotPair) -> None:
        self.pair = pair
        super().__init__({"i": In(pair.sums_layout), "o": Out(pair.product_layout)})

    def build(self) -> Module:
        """Build the sum."""
        m = Module()
        pair = self.pair
        sums = [self.i.sums[part] for part in range(pair.parts)]
        rows = list(sums)
        if pair.multiplied:
            rows = []
            for first in range(0, pair.parts, 2):
                rows += self._scaled(m, first, sums[first : first + 2])
        bound = pair.product_bound // pair.scale_bound
        total = Signal(signed(signed_bits(-bound, bound)))
        m.d.comb += [
            total.eq(signed_total(rows, len(total))),
            self.o.exponent.eq(self.i.scales.exponent),
            self.o.nan.eq(self.i.scales.nan),
        ]
        factors = [f for f in (self.i.scales.act, self.i.scales.weight) if len(f)]
        if factors:
            scales = named(m, "significands", reduce(mul, factors))
            m.d.comb += self.o.product.eq(total * scales)
        else:
            m.d.comb += self.o.product.eq(total)
        return m

    def _scaled(self, m: Module, first: int, sums: Sequence[Value]) -> list[Value]:
        """Return the rows that add up to sum (4 + k) P of one or two parts."""
        width = len(sums[0]) + len(sums) - 1
        both = Signal(signed(width), name=f"sum_{first}")
        m.d.comb += both.eq(sum(sums))
        rows = [Cat(Const(0, 2), both).as_signed()]
        # Patterns of one width, since the choice is made bit by bit.
        wide = [Cat(total, total[-1].replicate(width - len(total))) for total in sums]
        pattern = both.as_unsigned()
        for bit in range(2):
            chosen = [self.i.multipliers[first + n][bit] for n in range(len(sums))]
            if len(sums) == 1:
                row = pattern & chosen[0].replicate(width)
            else:
                one, other = chosen
                row = one_hot_mux(
                    [
                        named(m, f"only_{first}_{bit}", one & ~other),
                        named(m, f"only_{first + 1}_{bit}", other & ~one),
                        named(m, f"both_{first}_{bit}", one & other),
                    ],
                    [*wide, pattern],
                )
            rows.append(Cat(Const(0, bit), named(m, f"row_{first}_{bit}", row)).as_signed())
        return rows


class ProductPipeline(Component):
    """``GroupSums`` and ``ScaledProduct`` with registers, which all stand still unless enabled.

    Parameters
    ----------
    pair
        Formats of the operands.
    depth
        Registers: 1, at D, or 2, at the sums of the parts too.

    Members
    -------
    enable : In(1)
        Go on by one step.
    i : In(pair.operand_layout)
        The packed groups.
    o : Out(pair.product_layout)
        The exact product of the groups of ``depth`` steps ago.
    """

    def __init__(self, pair: DotPair, depth: int) -> None:
        self.pair, self.depth = pair, depth
        super().__init__(
            {
                "enable": In(1),
                "i": In(pair.operand_layout),
                "o": Out(pair.product_layout),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        m.submodules.sums = sums = GroupSums(self.pair)
        m.submodules.product = product = ScaledProduct(self.pair)
        between = sums.o.as_value()
        if self.depth == 2:
            between = register(m, self.enable, "sums_held", between)
        m.d.comb += [
            sums.i.eq(self.i),
            product.i.eq(between),
            self.o.eq(register(m, self.enable, "product_held", product.o.as_value())),
        ]
        return m
