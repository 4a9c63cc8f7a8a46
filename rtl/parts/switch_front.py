"""The front of a unit that switches between formats: lanes of both rates, and M2XFP's metadata."""

from collections.abc import Sequence
from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import E8M0, M2XFP_ACT, M2XFP_WEIGHT, BlockFormat
from m2xfp.pairs import FORMAT_NUMBERS
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.group_product import LaneProduct, refinement_product, significand
from m2xfp.rtl.parts.switch_lanes import WideLane, aligned_code, lane_layout
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.parts.top_element_decoder import TopElementDecoder
from m2xfp.rtl.verilog.component import Component

__all__ = ["M2XFP_PAIR", "SwitchLanes", "is_mode", "lanes_layout", "row_bits"]

M2XFP_PAIR = DotPair(M2XFP_ACT, M2XFP_WEIGHT)


def is_mode(mode: data.View, pairs: Sequence[tuple[BlockFormat, BlockFormat]]) -> Value:
    """Return whether the field ``mode`` stands for one of some pairs."""
    hits = [
        (mode.act == FORMAT_NUMBERS[act.name]) & (mode.weight == FORMAT_NUMBERS[weight.name])
        for act, weight in pairs
    ]
    return reduce(or_, hits, Const(0, 1))


def row_bits(pair: SwitchPair) -> int:
    """Bits of a row of the tree before the register: half a product, or the products of FP4."""
    return max(lane_layout(pair).size, pair.fields * pair.field_bits)


def _refined_layout() -> data.StructLayout:
    """Return what M2XFP's metadata adds to the sums of subgroups."""
    return data.StructLayout(
        {
            "narrow": data.ArrayLayout(signed(8), M2XFP_PAIR.parts),
            "negative": M2XFP_PAIR.parts,
            "multipliers": data.ArrayLayout(unsigned(2), M2XFP_PAIR.parts),
        }
    )


def lanes_layout(pair: SwitchPair) -> data.StructLayout:
    """Return what passes the register behind the lanes."""
    fields: dict[str, object] = {
        "rows": data.ArrayLayout(unsigned(row_bits(pair)), pair.lanes),
        "exponent": pair.exponent_bits,
        "nan": 1,
    }
    if pair.pairs.narrow_metadata:
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
            {"i": In(pair.operand_layout), "narrow": In(1), "o": Out(lanes_layout(pair))}
        )

    def build(self) -> Module:
        """Build the lanes of both rates, and choose."""
        m = Module()
        pair, i = self.pair, self.i
        wide, special = self._wide(m)
        act, weight = i.act.codes.as_value(), i.weight.codes.as_value()
        products: list[Value] = []
        for n in range(pair.group):
            m.submodules[f"fp4_lane_{n}"] = lane = LaneProduct()
            code = slice(4 * n, 4 * n + 4)
            m.d.comb += [lane.x.eq(act[code]), lane.w.eq(weight[code])]
            products.append(lane.product)
        if pair.merged > 1:
            both = zip(products[::2], products[1::2], strict=True)
            products = [self._sum(m, n, x, w) for n, (x, w) in enumerate(both)]
        for n in range(pair.lanes):
            block, row = divmod(n, pair.rows)
            fields = range(block * pair.fields, (block + 1) * pair.fields)
            narrow = Cat(products[field * pair.rows + row] for field in fields)
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
        if pair.pairs.narrow_metadata:
            self._refine(m)
        return m

    def _sum(self, m: Module, n: int, one: Value, other: Value) -> Signal:
        """Return the sum of two products."""
        total = Signal(signed(self.pair.field_bits), name=f"fp4_sum_{n}")
        m.d.comb += total.eq(one + other)
        return total

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
            multiples: Sequence[Value | None] = [None] * pair.lanes
            if side.multiplied:
                multiples = self._multiples(m)
            codes.append(
                [
                    named(m, f"{name}_code_{n}", aligned_code(plane, n, side, chosen, multiple))
                    for n, multiple in enumerate(multiples)
                ]
            )
        rows, specials = [], []
        for n, (x, w) in enumerate(zip(*codes, strict=True)):
            m.submodules[f"wide_lane_{n}"] = lane = WideLane(pair)
            m.d.comb += [lane.x.as_value().eq(x), lane.w.as_value().eq(w)]
            rows.append(lane.o.as_value())
            specials.append(lane.special)
        return rows, named(m, "special", Cat(specials).any())

    def _multiples(self, m: Module) -> Sequence[Value]:
        """Return the significands of E2M1 weights times 4 + k, k = 0 without metadata."""
        i, pair = self.i.weight, self.pair
        has = named(m, "multiplied", self.i.mode.weight == FORMAT_NUMBERS[M2XFP_WEIGHT.name])
        found = []
        for n in range(pair.lanes):
            multiplier = Cat(i.meta[n // M2XFP_PAIR.part] & has.replicate(2), Const(1, 1))
            code = i.codes.as_value()[4 * n : 4 * n + 3]
            found.append(named(m, f"multiple_{n}", (significand(code) * multiplier)[:5]))
        return found

    def _refine(self, m: Module) -> None:
        """Decode M2XFP's metadata where the formats have it."""
        i, refined = self.i, self.o.refined
        number = FORMAT_NUMBERS[M2XFP_ACT.name]
        act = named(m, "act_refined", i.mode.act == number)
        weight = named(m, "weight_multiplied", i.mode.weight == number)
        for part in range(M2XFP_PAIR.parts):
            m.submodules[f"subgroup_{part}"] = subgroup = Refinement()
            bits = slice(4 * M2XFP_PAIR.part * part, 4 * M2XFP_PAIR.part * (part + 1))
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
        codes = data.ArrayLayout(unsigned(4), M2XFP_PAIR.part)
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
        lanes = range(M2XFP_PAIR.part)
        narrow, negative = refinement_product(
            m, [self.x[n] for n in lanes], [self.w[n] for n in lanes], decoder.top, found
        )
        m.d.comb += [self.narrow.eq(narrow), self.negative.eq(negative)]
        return m
