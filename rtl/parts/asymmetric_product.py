"""The exact sums of the classes of signs of two groups, with the scales that go with them."""

from operator import xor

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.arith.fixed_point import signed_bits, signed_total
from m2xfp.rtl.parts.asymmetric_pair import AsymmetricPair, Class
from m2xfp.rtl.parts.group_product import LaneProduct, ScaledProduct, scale_facts
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.verilog.component import Component

__all__ = ["ClassPart", "ClassProducts", "ClassSums"]


class ClassPart(Component):
    """Sums of the products of some lanes, one for each class of a beat; combinational.

    A lane whose signs are not those that the beat is of counts nothing; each other one counts in
    the sum of its class. Where a class has one sign, the sums are those of magnitudes.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    x, w : In(ArrayLayout(4, part))
        Codes.
    signs : In
        Signs that the beat is of, weights below activations; only if it tells some.
    totals : Out(ArrayLayout(signed, sums))
        The sums.
    """

    def __init__(self, pair: AsymmetricPair) -> None:
        self.pair = pair
        codes = data.ArrayLayout(unsigned(4), pair.part)
        bits = signed_bits(-pair.part_bound, pair.part_bound)
        members: dict[str, wiring.Member] = {
            "x": In(codes),
            "w": In(codes),
            "totals": Out(data.ArrayLayout(signed(bits), pair.sums)),
        }
        if pair.sign_bits:
            members["signs"] = In(pair.sign_bits)
        super().__init__(members)

    def build(self) -> Module:
        """Build products, masks and sums."""
        m = Module()
        pair = self.pair
        products: list[Value] = []
        for n in range(pair.part):
            m.submodules[f"lane_{n}"] = lane = LaneProduct(masked=pair.sign_bits > 0)
            kept = 3 if pair.known_signs else 4  # with the sign, or without
            m.d.comb += [lane.x.eq(self.x[n][:kept]), lane.w.eq(self.w[n][:kept])]
            if pair.sign_bits:
                m.d.comb += lane.take.eq(self._taken(n))
            products.append(lane.product[:8] if pair.known_signs else lane.product)
        for number, signs in enumerate(pair.beat_classes):
            terms = [self._of_class(m, n, number, signs, products[n]) for n in range(pair.part)]
            total = self.totals[number]
            m.d.comb += total.eq(signed_total(terms, len(Value.cast(total))))
        return m

    def _taken(self, lane: int) -> Value:
        """Return whether the signs of a lane are those that the beat is of."""
        act, weight = self.pair.told
        taken: Value = Const(1, 1)
        if act:
            taken = ~(self.x[lane][3] ^ self.signs[-1])
        if weight:
            taken &= ~(self.w[lane][3] ^ self.signs[0])
        return taken

    def _of_class(self, m: Module, lane: int, number: int, signs: Class, product: Value) -> Value:
        """Return a lane's product, or zero if its class is another."""
        if signs == (None, None):
            return product
        belongs: Value = Const(1, 1)
        for code, sign in zip((self.x[lane], self.w[lane]), signs, strict=True):
            if sign is not None:
                belongs &= code[3] if sign else ~code[3]
        term = Signal(product.shape(), name=f"term_{number}_{lane}")
        masked = product.as_unsigned() & belongs.replicate(len(product))
        m.d.comb += term.eq(masked.as_signed() if term.shape().signed else masked)
        return term


class ClassSums(Component):
    """Multiply two packed groups and add up each part of each class of a beat; combinational.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    i : In(pair.operand_layout)
        The packed groups, and the signs that the beat is of.
    o : Out(ArrayLayout(pair.sums_layout, sums))
        Sums and scales of each class.
    """

    def __init__(self, pair: AsymmetricPair) -> None:
        self.pair = pair
        super().__init__(
            {
                "i": In(pair.operand_layout),
                "o": Out(data.ArrayLayout(pair.sums_layout, pair.sums)),
            }
        )

    def build(self) -> Module:
        """Build the parts."""
        m = Module()
        pair = self.pair
        for part in range(pair.parts):
            m.submodules[f"part_{part}"] = sums = ClassPart(pair)
            for n in range(pair.part):
                lane = part * pair.part + n
                m.d.comb += [
                    sums.x[n].eq(self.i.act.codes[lane]),
                    sums.w[n].eq(self.i.weight.codes[lane]),
                ]
            if pair.sign_bits:
                m.d.comb += sums.signs.eq(self.i.signs)
            for number in range(pair.sums):
                m.d.comb += self.o[number].sums[part].eq(sums.totals[number])
        for number, (act, weight) in enumerate(pair.beat_classes):
            one = self._scale(m, self.i.act.scale, act, -1, f"act_{number}")
            other = self._scale(m, self.i.weight.scale, weight, 0, f"weight_{number}")
            m.d.comb += scale_facts(pair, one, other, self.o[number].scales)
        return m

    def _scale(self, m: Module, stored: object, sign: int | None, told: int, name: str) -> Value:
        """Return the scale of a sign: that of the class, that of the beat, or the only one.

        ``told`` is the bit of ``signs`` that tells the beat's.
        """
        if not isinstance(stored, data.View):
            assert isinstance(stored, Value)
            return stored
        if sign is not None:
            return stored[sign]
        return named(m, name, Mux(self.i.signs[told], stored[1], stored[0]))


class ClassProducts(Component):
    """``ClassSums`` and a ``ScaledProduct`` a class, with registers that stand still together.

    Parameters
    ----------
    pair
        Formats of the operands.
    depth
        Registers: 1, at the products, or 2, at the sums of the parts too.

    Members
    -------
    enable : In(1)
        Go on by one step.
    i : In(pair.operand_layout)
        The packed groups, and the signs that the beat is of.
    o : Out(ArrayLayout(pair.product_layout, sums))
        The exact products of each class of ``depth`` steps ago, by magnitude if a class has one
        sign.
    negative : Out(sums)
        Whether that is negative.
    """

    def __init__(self, pair: AsymmetricPair, depth: int) -> None:
        self.pair, self.depth = pair, depth
        super().__init__(
            {
                "enable": In(1),
                "i": In(pair.operand_layout),
                "o": Out(data.ArrayLayout(pair.product_layout, pair.sums)),
                "negative": Out(pair.sums),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        m.submodules.sums = sums = ClassSums(self.pair)
        m.d.comb += [sums.i.eq(self.i), self.negative.eq(self._signs(m))]
        for number in range(self.pair.sums):
            m.submodules[f"product_{number}"] = product = ScaledProduct(self.pair)
            between = Value.cast(sums.o[number])
            if self.depth == 2:
                between = register(m, self.enable, f"sums_held_{number}", between)
            held = register(m, self.enable, f"product_held_{number}", Value.cast(product.o))
            m.d.comb += [product.i.eq(between), self.o[number].eq(held)]
        return m

    def _signs(self, m: Module) -> Value:
        """Return the signs of the classes, with their products; zeros where they have theirs."""
        pair = self.pair
        if not pair.known_signs:
            return Const(0, pair.sums)
        signs: list[Value] = []
        for number, (act, weight) in enumerate(pair.beat_classes):
            sides = (
                self.i.signs[told] if sign is None else Const(sign, 1)
                for sign, told in ((act, -1), (weight, 0))
            )
            sign = named(m, f"sign_{number}", xor(*sides))
            if pair.sign_bits:
                sign = delayed(m, self.enable, f"negative_{number}", sign, self.depth)
            signs.append(sign)
        return Cat(signs)
