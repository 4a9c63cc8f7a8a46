"""The exact product of groups of formats that change: lanes, one adder tree for both rates, D."""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from operator import add, or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import E8M0, M2XFP_ACT, M2XFP_WEIGHT, BlockFormat
from m2xfp.pairs import FORMAT_NUMBERS
from m2xfp.rtl.arith.datapath import named, reduce_tree
from m2xfp.rtl.arith.fixed_point import signed_bits
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.group_product import LaneProduct, ScaledProduct, refinement_product
from m2xfp.rtl.parts.registers import register
from m2xfp.rtl.parts.switch_lanes import (
    WideLane,
    WideShift,
    aligned_code,
    lane_layout,
)
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.parts.top_element_decoder import TopElementDecoder
from m2xfp.rtl.verilog.component import Component

__all__ = ["SwitchProduct", "is_mode"]

_FP4_PRODUCT = 9  # bits of a product of two E2M1 codes
_FP4_SUM = 12  # of eight of them
_M2XFP = DotPair(M2XFP_ACT, M2XFP_WEIGHT)


def is_mode(mode: data.View, pairs: Sequence[tuple[BlockFormat, BlockFormat]]) -> Value:
    """Return whether the field ``mode`` stands for one of some pairs."""
    hits = [
        (mode.act == FORMAT_NUMBERS[act.name]) & (mode.weight == FORMAT_NUMBERS[weight.name])
        for act, weight in pairs
    ]
    return reduce(or_, hits, Const(0, 1))


def _row_bits(pair: SwitchPair) -> int:
    """Bits of a row of the tree before the register: half a product, or the products of FP4."""
    return max(lane_layout(pair).size, pair.fields * _FP4_PRODUCT)


def _refined_layout() -> data.StructLayout:
    """Return what M2XFP's metadata adds to the sums of subgroups."""
    return data.StructLayout(
        {
            "narrow": data.ArrayLayout(signed(8), _M2XFP.parts),
            "negative": _M2XFP.parts,
            "multipliers": data.ArrayLayout(unsigned(2), _M2XFP.parts),
        }
    )


def _lanes_layout(pair: SwitchPair) -> data.StructLayout:
    """Return what passes the register behind the lanes."""
    fields: dict[str, object] = {
        "rows": data.ArrayLayout(unsigned(_row_bits(pair)), pair.lanes),
        "exponent": pair.exponent_bits,
        "nan": 1,
    }
    if pair.pairs.metadata:
        fields["refined"] = _refined_layout()
    return data.StructLayout(fields)


class SwitchLanes(Component):
    """Multiply the codes of a beat at the rate of its formats; combinational.

    Parameters
    ----------
    pair
        Numbers of the unit.

    Members
    -------
    i : In(operand_layout)
        A beat.
    narrow : In(1)
        It is of E2M1 elements on both sides.
    o : Out
        Rows, the exponent of the group, and whether an element or scale has no number.
    """

    def __init__(self, pair: SwitchPair) -> None:
        self.pair = pair
        super().__init__(
            {"i": In(pair.operand_layout), "narrow": In(1), "o": Out(_lanes_layout(pair))}
        )

    def build(self) -> Module:
        """Build the lanes of both rates, and choose."""
        m = Module()
        pair, i = self.pair, self.i
        wide, special = self._wide(m)
        act, weight = i.act.codes.as_value(), i.weight.codes.as_value()
        products = []
        for n in range(pair.group):
            m.submodules[f"fp4_lane_{n}"] = lane = LaneProduct()
            code = slice(4 * n, 4 * n + 4)
            m.d.comb += [lane.x.eq(act[code]), lane.w.eq(weight[code])]
            products.append(lane.product)
        for n in range(pair.lanes):
            block, row = divmod(n, pair.rows)
            subgroups = range(block * pair.fields, (block + 1) * pair.fields)
            narrow = Cat(products[s * pair.rows + row] for s in subgroups)
            m.d.comb += self.o.rows[n].eq(Mux(self.narrow, narrow, wide[n]))
        raised = {pair.raised(*each) for each in pair.pairs.pairs} - {0}
        offset = reduce(
            or_,
            [
                Mux(
                    is_mode(i.mode, [p for p in pair.pairs.pairs if pair.raised(*p) == amount]),
                    amount,
                    0,
                )
                for amount in sorted(raised)
            ],
            Const(0, 1),
        )
        nan = (i.act.scale == E8M0.nan) | (i.weight.scale == E8M0.nan)
        m.d.comb += [
            self.o.exponent.eq(i.act.scale + i.weight.scale + named(m, "raised", offset)),
            self.o.nan.eq(nan | (special & ~self.narrow)),
        ]
        if pair.pairs.metadata:
            self._refine(m)
        return m

    def _wide(self, m: Module) -> tuple[list[Value], Value]:
        """Return the rows of wide elements, and whether one of them has no number."""
        pair, i = self.pair, self.i
        codes: list[list[Value]] = []
        for number, (name, side) in enumerate(zip(("act", "weight"), pair.sides, strict=True)):
            chosen = {}
            for element in side.elements:
                own = {p[number].name for p in pair.pairs.wide if p[number].element is element}
                hits = [i.mode[name] == FORMAT_NUMBERS[block] for block in sorted(own)]
                chosen[element.name] = named(m, f"{name}_{element.name}", reduce(or_, hits))
            plane = i[name].codes.as_value()
            codes.append(
                [
                    named(m, f"{name}_code_{n}", aligned_code(plane, n, side, chosen))
                    for n in range(pair.lanes)
                ]
            )
        rows, specials = [], []
        for n, (x, w) in enumerate(zip(*codes, strict=True)):
            m.submodules[f"wide_lane_{n}"] = lane = WideLane(pair)
            m.d.comb += [lane.x.as_value().eq(x), lane.w.as_value().eq(w)]
            rows.append(lane.o.as_value())
            specials.append(lane.special)
        return rows, named(m, "special", Cat(specials).any())

    def _refine(self, m: Module) -> None:
        """Decode M2XFP's metadata where the formats have it."""
        i, refined = self.i, self.o.refined
        number = FORMAT_NUMBERS[M2XFP_ACT.name]
        act = named(m, "act_refined", i.mode.act == number)
        weight = named(m, "weight_multiplied", i.mode.weight == number)
        for part in range(_M2XFP.parts):
            m.submodules[f"subgroup_{part}"] = subgroup = Refinement()
            bits = slice(4 * _M2XFP.part * part, 4 * _M2XFP.part * (part + 1))
            m.d.comb += [
                subgroup.x.as_value().eq(i.act.codes.as_value()[bits]),
                subgroup.w.as_value().eq(i.weight.codes.as_value()[bits]),
                subgroup.meta.eq(i.act.meta[part]),
                subgroup.refined.eq(act),
                refined.narrow[part].eq(subgroup.narrow),
                refined.negative[part].eq(subgroup.negative),
                refined.multipliers[part].eq(i.weight.meta[part] & weight.replicate(2)),
            ]


class Refinement(Component):
    """What Elem-EM metadata adds to the sum of a subgroup; combinational.

    Members
    -------
    x, w : In(ArrayLayout(4, 8))
        E2M1 codes.
    meta : In(2)
        Metadata of the activations.
    refined : In(1)
        They have some; otherwise nothing is added.
    narrow : Out(signed(8)), negative : Out(1)
        Two numbers to be added.
    """

    def __init__(self) -> None:
        codes = data.ArrayLayout(unsigned(4), _M2XFP.part)
        super().__init__(
            {
                "x": In(codes),
                "w": In(codes),
                "meta": In(2),
                "refined": In(1),
                "narrow": Out(signed(8)),
                "negative": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the decoder and the narrow product."""
        m = Module()
        m.submodules.decoder = decoder = TopElementDecoder(M2XFP_ACT)
        found = Signal(decoder.refinement.shape())
        m.d.comb += [
            decoder.codes.eq(self.x),
            decoder.meta.eq(self.meta),
            found.eq(decoder.refinement),
            found.nonzero.eq(decoder.refinement.nonzero & self.refined),
        ]
        lanes = range(_M2XFP.part)
        narrow, negative = refinement_product(
            m, [self.x[n] for n in lanes], [self.w[n] for n in lanes], decoder.top, found
        )
        m.d.comb += [self.narrow.eq(narrow), self.negative.eq(negative)]
        return m


def _digits(pair: SwitchPair) -> list[tuple[int, int]]:
    """Return where the digits of a tree's sum lie, from bit to bit: fields of FP4, and the rest."""
    width = max(pair.row_bits + 3, _FP4_SUM * pair.fields)
    starts = [0]
    while width - starts[-1] > _FP4_SUM + 4:
        starts.append(starts[-1] + _FP4_SUM)
    return list(zip(starts, [*starts[1:], width], strict=True))


def _tree_layout(pair: SwitchPair) -> data.StructLayout:
    """Return the digits of a tree's sum, each with what it carries beyond its bits."""
    digits = _digits(pair)
    return data.StructLayout(
        {
            f"digit_{n}": end - start + (3 if n < len(digits) - 1 else 0)
            for n, (start, end) in enumerate(digits)
        }
    )


def _sum_bits(pair: SwitchPair) -> int:
    """Return the bits of a subgroup's sum."""
    return signed_bits(-_M2XFP.part_bound, _M2XFP.part_bound) if pair.pairs.metadata else _FP4_SUM


def _sums_layout(pair: SwitchPair) -> data.StructLayout:
    """Return what passes the register behind the trees: digits, or sums of subgroups."""
    bits = max(_tree_layout(pair).size, pair.fields * _sum_bits(pair) * pair.pairs.metadata)
    fields: dict[str, object] = {
        "blocks": data.ArrayLayout(unsigned(bits), pair.blocks),
        "exponent": pair.exponent_bits,
        "nan": 1,
    }
    if pair.pairs.metadata:
        fields["multipliers"] = data.ArrayLayout(unsigned(2), _M2XFP.parts)
    return data.StructLayout(fields)


class SwitchTree(Component):
    """One adder tree: the sum of eight wide products, or those of subgroups; combinational.

    A product's sign bit is inverted, which makes it an unsigned number, offset by its weight. The
    rows are added in digits that keep their carries, so none of the sums is long.

    Parameters
    ----------
    pair
        Numbers of the unit.

    Members
    -------
    rows : In
        Of one tree.
    narrow : In(1)
        The rows are of FP4.
    digits : Out
        The sum of the rows. A field of FP4 is a digit, or a part of the last one.
    """

    def __init__(self, pair: SwitchPair) -> None:
        self.pair = pair
        super().__init__(
            {
                "rows": In(data.ArrayLayout(unsigned(_row_bits(pair)), pair.rows)),
                "narrow": In(1),
                "digits": Out(_tree_layout(pair)),
            }
        )

    def build(self) -> Module:
        """Build the second half of the shifts, the choice and the trees."""
        m = Module()
        pair = self.pair
        lane = lane_layout(pair)
        rows = []
        for n in range(pair.rows):
            m.submodules[f"shift_{n}"] = shift = WideShift(pair)
            m.d.comb += shift.i.as_value().eq(self.rows[n][: lane.size])
            wide = Cat(shift.product[:-1], ~shift.product[-1])
            fields = []
            for field in range(pair.fields):
                product = self.rows[n][_FP4_PRODUCT * field : _FP4_PRODUCT * (field + 1)]
                gap = Const(0, _FP4_SUM - _FP4_PRODUCT)
                fields.append(Cat(product[:-1], ~product[-1], gap))
            rows.append(named(m, f"row_{n}", Mux(self.narrow, Cat(fields), wide)))
        for n, (start, end) in enumerate(_digits(pair)):
            digit = self.digits[f"digit_{n}"]
            m.d.comb += digit.eq(reduce_tree(add, [row[start:end] for row in rows]))
        return m


def _field_sums(pair: SwitchPair, digits: data.View) -> list[Value]:
    """Return the sums of the FP4 products of each field of a tree, signed.

    Eight offsets are the weight of a sum's sign bit, so that is inverted back.
    """
    found = []
    for field in range(pair.fields):
        for n, (start, end) in enumerate(_digits(pair)):
            at = _FP4_SUM * field - start
            if 0 <= at < end - start:
                part = digits[f"digit_{n}"][at : at + _FP4_SUM]
                found.append(Cat(part[:-1], ~part[-1]).as_signed())
    return found


_LONG = 14  # bits of a digit of D


def _total_layout(pair: SwitchPair) -> data.StructLayout:
    """Return D in digits that keep their carries; the last one has none."""
    width = len(Signal(pair.product_shape))
    starts = range(0, width, _LONG)
    return data.StructLayout(
        {
            f"digit_{n}": width - start if start + _LONG >= width else _LONG + 3
            for n, start in enumerate(starts)
        }
    )


class SwitchTotal(Component):
    """D of a beat in digits: of an FP4 group, or of a wide group so far; combinational.

    Parameters
    ----------
    pair
        Numbers of the unit.

    Members
    -------
    i : In
        Sums, exponent and multipliers.
    narrow, opening : In(1)
        They are of FP4; of a group's first beat.
    earlier : In(_total_layout)
        D of the group's earlier beats.
    total : Out(_total_layout)
        D.
    """

    def __init__(self, pair: SwitchPair) -> None:
        self.pair = pair
        super().__init__(
            {
                "i": In(_sums_layout(pair)),
                "narrow": In(1),
                "opening": In(1),
                "earlier": In(_total_layout(pair)),
                "total": Out(_total_layout(pair)),
            }
        )

    def build(self) -> Module:
        """Build one sum a digit, and with metadata the one of subgroups beside them."""
        m = Module()
        pair = self.pair
        width = len(Signal(pair.product_shape))
        views = [data.View(_tree_layout(pair), b[: _tree_layout(pair).size]) for b in self.i.blocks]
        rows = [row for view in views for row in self._wide_rows(view)]
        keep = named(m, "keep", ~(self.opening | self.narrow))
        earlier, carried = self._earlier(keep)
        # Offsets of the signs: eight in each tree, or of eight products in four subgroups.
        top = pair.row_bits + 2 + (pair.blocks - 1).bit_length()
        ones = Cat(Const(0, top), Const(-1, width - top))
        if pair.pairs.metadata:
            rows = [named(m, f"row_{n}", row) for n, row in enumerate(rows)]
        else:
            sums = [part for view in views for part in self._fields(view)]
            low = _FP4_SUM + 1
            earlier |= Cat(Const(0, low), self.narrow.replicate(top - low))
            rows = [
                named(m, f"row_{n}", self._either(row, sums[n : n + 1]))
                for n, row in enumerate([*rows, *[Const(0, 1)] * (len(sums) - len(rows))])
            ]
        rows += [named(m, "earlier_bits", earlier), carried, ones]
        for n in range(len(self.total.shape().members)):
            digit = self.total[f"digit_{n}"]
            at = slice(n * _LONG, (n + 1) * _LONG)
            parts = [part for row in rows if len(part := row[at])]
            m.d.comb += digit.eq(reduce_tree(add, parts))
        if pair.pairs.metadata:
            self._scaled(m)
        return m

    def _fields(self, digits: data.View) -> list[Value]:
        """Return the offset sums of a tree's fields."""
        return [Cat(part[:-1], ~part[-1]) for part in _field_sums(self.pair, digits)]

    def _wide_rows(self, digits: data.View) -> list[Value]:
        """Return the digits of a tree as two numbers: their own bits, and what they carry."""
        own: list[Value] = []
        carried: list[Value] = []
        for n, (start, end) in enumerate(_digits(self.pair)):
            digit = digits[f"digit_{n}"]
            own.append(digit[: end - start])
            carried += [Const(0, end - sum(map(len, carried))), digit[end - start :]]
        return [Cat(own)[: self.pair.row_bits + 3], Cat(carried[:-1])]

    def _earlier(self, keep: Value) -> tuple[Value, Value]:
        """Return the digits of the earlier beats' D as two numbers, if they count."""
        own: list[Value] = []
        carried: list[Value] = [Const(0, _LONG)]
        for name in self.total.shape().members:
            digit = self.earlier[name]
            own.append(digit[:_LONG])
            carried += [digit[_LONG:], Const(0, _LONG - len(digit[_LONG:]))]
        width = sum(map(len, own))
        bits, carries = Cat(own), Cat(carried)[:width]
        return bits & keep.replicate(width), carries & keep.replicate(width)

    def _either(self, wide: Value, fields: list[Value]) -> Value:
        """Return a row of wide elements, or an FP4 sum."""
        if not fields:
            return wide & (~self.narrow).replicate(len(wide))
        return Mux(self.narrow, fields[0], wide)

    def _scaled(self, m: Module) -> None:
        """Take the sum of the subgroups instead, where the group is of E2M1 elements."""
        pair, bits = self.pair, _sum_bits(self.pair)
        m.submodules.scaled = scaled = ScaledProduct(_M2XFP)
        sums = [
            block[bits * field : bits * (field + 1)].as_signed()
            for block in self.i.blocks
            for field in range(pair.fields)
        ]
        m.d.comb += [
            *(scaled.i.sums[n].eq(each) for n, each in enumerate(sums)),
            scaled.i.multipliers.eq(self.i.multipliers),
        ]
        product = Signal(pair.product_shape)
        m.d.comb += product.eq(scaled.o.product)
        with m.If(self.narrow):
            for n, name in enumerate(self.total.shape().members):
                m.d.comb += self.total[name].eq(product[n * _LONG : (n + 1) * _LONG])


def _resolved(m: Module, total: data.View, pair: SwitchPair) -> Value:
    """Return D from its digits, each carry added to the digit above it.

    All digits are added side by side, those that may get a carry from below for both cases.
    """
    bits: list[Value] = [total.digit_0[:_LONG]]
    carry: Value = Const(0, 1)
    names = list(total.shape().members)
    for n, (lower, name) in enumerate(pairwise(names)):
        digit, kept = total[name][:_LONG], total[lower][_LONG:]
        without = named(m, f"{name}_without", (digit + kept)[: len(digit) + 1])
        found: Value = without
        if n:
            both = Cat(Const(1, 1), digit) + Cat(Const(1, 1), kept)
            with_one = named(m, f"{name}_with", both[1 : len(digit) + 2])
            found = named(m, f"{name}_resolved", Mux(carry, with_one, without))
        bits.append(found[: len(digit)])
        carry = found[-1]
    return Cat(bits).as_signed()


class SwitchProduct(Component):
    """Lanes, trees and totals with registers between them.

    Parameters
    ----------
    pair
        Numbers of the unit.

    Members
    -------
    enable : In(1)
        Go on by one step.
    i : In(operand_layout)
        A beat.
    narrow, opening, valid : In(1)
        It is of FP4; the first of its group; there is one.
    o : Out(product_layout)
        The exact product, if that was the last beat of a group, after ``latency`` steps; the
        carries of D's digits are added behind the last register.
    """

    latency = 3

    def __init__(self, pair: SwitchPair) -> None:
        self.pair = pair
        super().__init__(
            {
                "enable": In(1),
                "i": In(pair.operand_layout),
                "narrow": In(1),
                "opening": In(1),
                "valid": In(1),
                "o": Out(pair.product_layout),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        pair, step = self.pair, self.enable
        m.submodules.lanes = lanes = SwitchLanes(pair)
        m.submodules.total = total = SwitchTotal(pair)
        held = Signal(_lanes_layout(pair))
        kinds: list[Value] = [Cat(self.narrow, self.opening, self.valid)]
        for stage in range(2):
            kinds.append(register(m, step, f"kind_{stage + 1}", kinds[-1]))
        narrow = kinds[1][0]
        m.d.comb += [
            lanes.i.eq(self.i),
            lanes.narrow.eq(self.narrow),
            held.eq(register(m, step, "lanes_held", lanes.o.as_value())),
        ]
        sums = Signal(_sums_layout(pair))
        m.d.comb += [sums.exponent.eq(held.exponent), sums.nan.eq(held.nan)]
        if pair.pairs.metadata:
            m.d.comb += sums.multipliers.eq(held.refined.multipliers)
        for block in range(pair.blocks):
            m.submodules[f"tree_{block}"] = tree = SwitchTree(pair)
            first = block * pair.rows
            m.d.comb += [
                *(tree.rows[n].eq(held.rows[first + n]) for n in range(pair.rows)),
                tree.narrow.eq(narrow),
            ]
            passed = tree.digits.as_value()
            if pair.pairs.metadata:
                parts = [
                    self._refined(m, held, block * pair.fields + n, part)
                    for n, part in enumerate(_field_sums(pair, tree.digits))
                ]
                passed = Mux(narrow, Cat(parts), passed)
            m.d.comb += sums.blocks[block].eq(passed)
        kept = Signal(_sums_layout(pair))
        product = Signal(_total_layout(pair), reset_less=True)
        nan = Signal(reset_less=True)
        begin, valid = kinds[2][1], kinds[2][2]
        m.d.comb += [
            kept.eq(register(m, step, "sums_held", sums.as_value())),
            total.i.eq(kept),
            total.narrow.eq(kinds[2][0]),
            total.opening.eq(begin),
            total.earlier.eq(product),
            self.o.product.eq(_resolved(m, product, pair)),
            self.o.nan.eq(nan),
            self.o.exponent.eq(register(m, step, "exponent_held", kept.exponent)),
        ]
        # A pause within a group leaves what there is of it.
        with m.If(step & valid):
            m.d.sync += [product.eq(total.total), nan.eq(kept.nan | (nan & ~begin))]
        return m

    def _refined(self, m: Module, held: data.View, part: int, plain: Value) -> Value:
        """Return P of a subgroup: four times the plain sum, and what metadata adds."""
        total = Signal(signed(_sum_bits(self.pair)), name=f"part_{part}")
        refined = held.refined
        m.d.comb += total.eq(
            Cat(Const(0, 2), plain).as_signed() + refined.narrow[part] + refined.negative[part]
        )
        return total
