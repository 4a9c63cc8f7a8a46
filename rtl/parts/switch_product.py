"""The exact product of groups of formats that change: lanes, trees and totals with registers."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.parts.registers import register
from m2xfp.rtl.parts.switch_front import SwitchLanes, lanes_layout
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.parts.switch_total import SwitchTotal, total_layout
from m2xfp.rtl.parts.switch_tree import SwitchTree, field_sums, subgroup_bits, sums_layout
from m2xfp.rtl.verilog.component import Component

__all__ = ["SwitchProduct", "digits_layout"]


def digits_layout(pair: SwitchPair) -> data.StructLayout:
    """Return an exact product as it leaves the pipeline: D in digits, ``exponent``, ``nan``."""
    return data.StructLayout(
        {"digits": total_layout(pair), "exponent": pair.exponent_bits, "nan": 1}
    )


class SwitchProduct(Component):
    """Lanes, trees and totals with registers between them.

    Parameters
    ----------
    pair
        Numbers of the unit.
    chains
        Groups that are under way at the same time: their beats come in turn, one in every step, or
        a pause in its place. With one a pause may come anywhere.

    Members
    -------
    enable : In(1)
        Go on by one step.
    i : In(operand_layout)
        A beat.
    narrow, opening, valid : In(1)
        It is of FP4; the first of its group; there is one.
    o : Out(digits_layout)
        The exact product, if that was the last beat of a group, after ``latency`` steps.
    """

    latency = 3

    def __init__(self, pair: SwitchPair, chains: int = 1) -> None:
        self.pair, self._chains = pair, chains
        super().__init__(
            {
                "enable": In(1),
                "i": In(pair.operand_layout),
                "narrow": In(1),
                "opening": In(1),
                "valid": In(1),
                "o": Out(digits_layout(pair)),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        pair, step = self.pair, self.enable
        m.submodules.lanes = lanes = SwitchLanes(pair)
        m.submodules.total = total = SwitchTotal(pair)
        held = Signal(lanes_layout(pair))
        kinds: list[Value] = [Cat(self.narrow, self.opening, self.valid)]
        for stage in range(2):
            kinds.append(register(m, step, f"kind_{stage + 1}", kinds[-1]))
        narrow = kinds[1][0]
        m.d.comb += [
            lanes.i.eq(self.i),
            lanes.narrow.eq(self.narrow),
            held.eq(register(m, step, "lanes_held", lanes.o.as_value())),
        ]
        sums = Signal(sums_layout(pair))
        m.d.comb += [sums.exponent.eq(held.exponent), sums.nan.eq(held.nan)]
        if pair.pairs.narrow_metadata:
            m.d.comb += sums.multipliers.eq(held.refined.multipliers)
        for block in range(pair.blocks):
            m.submodules[f"tree_{block}"] = tree = SwitchTree(pair)
            first = block * pair.rows
            m.d.comb += [
                *(tree.rows[n].eq(held.rows[first + n]) for n in range(pair.rows)),
                tree.narrow.eq(narrow),
            ]
            passed = tree.digits.as_value()
            if pair.pairs.narrow_metadata:
                parts = [
                    self._refined(m, held, block * pair.fields + n, part)
                    for n, part in enumerate(field_sums(pair, tree.digits))
                ]
                passed = Mux(narrow, Cat(parts), passed)
            m.d.comb += sums.blocks[block].eq(passed)
        kept = Signal(sums_layout(pair))
        product = Signal(total_layout(pair), reset_less=True)
        nan = Signal(reset_less=True)
        begin, valid = kinds[2][1], kinds[2][2]
        earlier, spoilt = self._turned(m, product, nan)
        m.d.comb += [
            kept.eq(register(m, step, "sums_held", sums.as_value())),
            total.i.eq(kept),
            total.narrow.eq(kinds[2][0]),
            total.opening.eq(begin),
            total.earlier.eq(earlier),
            self.o.digits.eq(product),
            self.o.nan.eq(nan),
            self.o.exponent.eq(register(m, step, "exponent_held", kept.exponent)),
        ]
        # A pause within a group leaves what there is of it.
        if self._chains > 1:
            with m.If(step):
                m.d.sync += [product.eq(earlier), nan.eq(spoilt)]
        with m.If(step & valid):
            m.d.sync += [product.eq(total.total), nan.eq(kept.nan | (spoilt & ~begin))]
        return m

    def _turned(self, m: Module, product: Signal, nan: Signal) -> tuple[Signal, Signal]:
        """Return the product, and whether it is NaN, of the group whose turn it is."""
        for age in range(1, self._chains):
            older = Signal(total_layout(self.pair), name=f"product_{age}")
            held = register(m, self.enable, f"product_{age}_held", Value.cast(product))
            m.d.comb += older.eq(held)
            product = older
            nan = register(m, self.enable, f"nan_{age}", nan)
        return product, nan

    def _refined(self, m: Module, held: data.View, part: int, plain: Value) -> Value:
        """Return P of a subgroup: four times the plain sum, and what metadata adds."""
        total = Signal(signed(subgroup_bits(self.pair)), name=f"part_{part}")
        refined = held.refined
        m.d.comb += total.eq(
            Cat(Const(0, 2), plain).as_signed() + refined.narrow[part] + refined.negative[part]
        )
        return total
