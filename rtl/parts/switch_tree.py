"""The adder tree of a unit that switches: wide products, or fields of FP4 in the same rows."""

from operator import add

from amaranth.hdl import Cat, Const, Module, Mux, Value, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named, reduce_tree
from m2xfp.rtl.arith.fixed_point import signed_bits
from m2xfp.rtl.parts.switch_front import M2XFP_PAIR, row_bits
from m2xfp.rtl.parts.switch_lanes import WideShift, lane_layout
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.verilog.component import Component

__all__ = ["SwitchTree", "field_sums", "subgroup_bits", "sums_layout", "tree_digits", "tree_layout"]


def tree_digits(pair: SwitchPair) -> list[tuple[int, int]]:
    """Return where the digits of a tree's sum lie, from bit to bit: fields of FP4, and the rest."""
    width = max(pair.row_bits + 3, pair.field_sum_bits * pair.fields)
    starts = [0]
    while width - starts[-1] > pair.field_sum_bits + 4:
        starts.append(starts[-1] + pair.field_sum_bits)
    return list(zip(starts, [*starts[1:], width], strict=True))


def tree_layout(pair: SwitchPair) -> data.StructLayout:
    """Return the digits of a tree's sum, each with what it carries beyond its bits."""
    digits = tree_digits(pair)
    return data.StructLayout(
        {
            f"digit_{n}": end - start + (3 if n < len(digits) - 1 else 0)
            for n, (start, end) in enumerate(digits)
        }
    )


def subgroup_bits(pair: SwitchPair) -> int:
    """Return the bits of a subgroup's sum."""
    return signed_bits(-M2XFP_PAIR.part_bound, M2XFP_PAIR.part_bound)


def sums_layout(pair: SwitchPair) -> data.StructLayout:
    """Return what passes the register behind the trees: digits, or sums of subgroups."""
    bits = max(
        tree_layout(pair).size, pair.fields * subgroup_bits(pair) * pair.pairs.narrow_metadata
    )
    fields: dict[str, object] = {
        "blocks": data.ArrayLayout(unsigned(bits), pair.blocks),
        "exponent": pair.exponent_bits,
        "nan": 1,
    }
    if pair.pairs.narrow_metadata:
        fields["multipliers"] = data.ArrayLayout(unsigned(2), M2XFP_PAIR.parts)
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
                "rows": In(data.ArrayLayout(unsigned(row_bits(pair)), pair.rows)),
                "narrow": In(1),
                "digits": Out(tree_layout(pair)),
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
                bits = pair.field_bits
                product = self.rows[n][bits * field : bits * (field + 1)]
                gap = Const(0, pair.field_sum_bits - bits)
                fields.append(Cat(product[:-1], ~product[-1], gap))
            rows.append(named(m, f"row_{n}", Mux(self.narrow, Cat(fields), wide)))
        for n, (start, end) in enumerate(tree_digits(pair)):
            digit = self.digits[f"digit_{n}"]
            m.d.comb += digit.eq(reduce_tree(add, [row[start:end] for row in rows]))
        return m


def field_sums(pair: SwitchPair, digits: data.View) -> list[Value]:
    """Return the sums of the FP4 products of each field of a tree, signed.

    Eight offsets are the weight of a sum's sign bit, so that is inverted back.
    """
    found = []
    for field in range(pair.fields):
        for n, (start, end) in enumerate(tree_digits(pair)):
            bits = pair.field_sum_bits
            at = bits * field - start
            if 0 <= at < end - start:
                part = digits[f"digit_{n}"][at : at + bits]
                found.append(Cat(part[:-1], ~part[-1]).as_signed())
    return found
