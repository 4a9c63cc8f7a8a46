"""D of a unit that switches, in digits that keep their carries: its sum, and what it says."""

from itertools import pairwise
from operator import add

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named, reduce_tree
from m2xfp.rtl.parts.group_product import ScaledProduct
from m2xfp.rtl.parts.switch_front import M2XFP_PAIR
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.parts.switch_tree import (
    field_sums,
    subgroup_bits,
    sums_layout,
    tree_digits,
    tree_layout,
)
from m2xfp.rtl.verilog.component import Component

__all__ = ["SwitchTotal", "resolved", "sign_magnitude", "total_layout"]

_LONG = 14  # bits of a digit of D


def total_layout(pair: SwitchPair) -> data.StructLayout:
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
    earlier : In(total_layout)
        D of the group's earlier beats.
    total : Out(total_layout)
        D.
    """

    def __init__(self, pair: SwitchPair) -> None:
        self.pair = pair
        super().__init__(
            {
                "i": In(sums_layout(pair)),
                "narrow": In(1),
                "opening": In(1),
                "earlier": In(total_layout(pair)),
                "total": Out(total_layout(pair)),
            }
        )

    def build(self) -> Module:
        """Build one sum a digit, and with metadata the one of subgroups beside them."""
        m = Module()
        pair = self.pair
        width = len(Signal(pair.product_shape))
        views = [data.View(tree_layout(pair), b[: tree_layout(pair).size]) for b in self.i.blocks]
        rows = [row for view in views for row in self._wide_rows(view)]
        keep = named(m, "keep", ~(self.opening | self.narrow))
        earlier, carried = self._earlier(keep)
        # Offsets of the signs: eight in each tree, or of eight products in four subgroups.
        top = pair.row_bits + 2 + (pair.blocks - 1).bit_length()
        ones = Cat(Const(0, top), Const(-1, width - top))
        if pair.pairs.narrow_metadata:
            rows = [named(m, f"row_{n}", row) for n, row in enumerate(rows)]
        else:
            sums = [part for view in views for part in self._fields(view)]
            low = pair.field_sum_bits + (pair.blocks * pair.fields).bit_length() - 2
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
        if pair.pairs.narrow_metadata:
            self._scaled(m)
        return m

    def _fields(self, digits: data.View) -> list[Value]:
        """Return the offset sums of a tree's fields."""
        return [Cat(part[:-1], ~part[-1]) for part in field_sums(self.pair, digits)]

    def _wide_rows(self, digits: data.View) -> list[Value]:
        """Return the digits of a tree as two numbers: their own bits, and what they carry."""
        own: list[Value] = []
        carried: list[Value] = []
        for n, (start, end) in enumerate(tree_digits(self.pair)):
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
        pair, bits = self.pair, subgroup_bits(self.pair)
        m.submodules.scaled = scaled = ScaledProduct(M2XFP_PAIR)
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


def _cases(m: Module, total: data.View) -> list[list[Value]]:
    """Return each digit with the carries below added: the lowest two, and the others in two cases.

    Those are without and with a carry from the digit below, which is known last; a digit has one
    bit more than it should, its own carry.
    """
    names = list(total.shape().members)
    found: list[list[Value]] = [[Cat(total[names[0]][:_LONG], Const(0, 1))]]
    for n, (lower, name) in enumerate(pairwise(names)):
        digit, kept = total[name][:_LONG], total[lower][_LONG:]
        cases: list[Value] = [named(m, f"{name}_without", (digit + kept)[: len(digit) + 1])]
        if n:
            both = Cat(Const(1, 1), digit) + Cat(Const(1, 1), kept)
            cases.append(named(m, f"{name}_with", both[1 : len(digit) + 2]))
        found.append(cases)
    return found


def resolved(m: Module, total: data.View) -> Value:
    """Return D from its digits, signed."""
    bits: list[Value] = []
    carry: Value = Const(0, 1)
    for n, cases in enumerate(_cases(m, total)):
        chosen = cases[0]
        if len(cases) > 1:
            chosen = named(m, f"resolved_{n}", Mux(carry, cases[1], cases[0]))
        bits.append(chosen[:-1])
        carry = chosen[-1]
    return Cat(bits).as_signed()


def sign_magnitude(m: Module, total: data.View) -> tuple[Value, Value]:
    """Return |D|, without the sign's bit, and whether D is negative.

    Each digit is negated in all its cases before the carries and the sign are known: -x where all
    digits below are zero, else ~x.
    """
    digits: list[tuple[Value, Value]] = []
    carry: Value = Const(0, 1)
    zero: Value = Const(1, 1)
    for n, cases in enumerate(_cases(m, total)):
        made: list[Value] = []
        for at, case in enumerate(cases):
            own = case[:-1]
            minus = named(m, f"minus_{n}_{at}", (~own + 1)[: len(own)])
            turned = named(m, f"turned_{n}_{at}", Mux(zero, minus, ~own))
            made.append(Cat(own, turned, case[-1], ~own.any()))
        chosen = made[0]
        if len(made) > 1:
            chosen = named(m, f"chosen_{n}", Mux(carry, made[1], made[0]))
        size = len(cases[0]) - 1
        digits.append((chosen[:size], chosen[size : 2 * size]))
        carry, zero = chosen[-2], named(m, f"zero_{n}", zero & chosen[-1])
    negative = named(m, "negative", digits[-1][0][-1])
    found = Cat(
        *(
            named(m, f"bits_{n}", Mux(negative, turned, own))
            for n, (own, turned) in enumerate(digits)
        )
    )
    return found[:-1], negative
