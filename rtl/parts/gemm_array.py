"""The array of the GEMM core: cells that multiply and accumulate, with decoders shared by rows."""

from amaranth.hdl import Cat, Module, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FP32
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.fp32_accumulation import AccumulatorPipeline
from m2xfp.rtl.parts.group_product import PartSum, ScaledProduct, scale_facts
from m2xfp.rtl.parts.layouts import group_layout, value_layout
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.parts.top_element_decoder import TopElementDecoder, refinement_layout
from m2xfp.rtl.verilog.component import Component

__all__ = ["GemmArray"]


def decoded_layout(pair: DotPair) -> data.StructLayout:
    """Return a packed activation group with the top-1 element of each subgroup already found."""
    fields: dict[str, object] = {
        "codes": data.ArrayLayout(unsigned(pair.act.element.bits), pair.group),
        "scale": pair.act.scale.bits,
    }
    if pair.refined:
        fields |= {
            "top": data.ArrayLayout(unsigned(pair.part), pair.parts),
            "refinement": data.ArrayLayout(refinement_layout, pair.parts),
        }
    return data.StructLayout(fields)


class RowDecoder(Component):
    """Find the refinements of a packed activation group, once for all columns; combinational.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    i : In(group_layout(pair.act))
        The packed group.
    o : Out(decoded_layout(pair))
        The same with one-hot top-1 elements and refinements in place of the metadata.
    """

    def __init__(self, pair: DotPair) -> None:
        self._pair = pair
        super().__init__({"i": In(group_layout(pair.act)), "o": Out(decoded_layout(pair))})

    def build(self) -> Module:
        """Build one decoder a subgroup."""
        m = Module()
        pair = self._pair
        m.d.comb += [self.o.codes.eq(self.i.codes), self.o.scale.eq(self.i.scale)]
        for part in range(pair.parts if pair.refined else 0):
            m.submodules[f"decoder_{part}"] = decoder = TopElementDecoder(pair.act)
            lanes = range(part * pair.part, (part + 1) * pair.part)
            m.d.comb += [
                decoder.codes.eq(Cat(self.i.codes[n] for n in lanes)),
                decoder.meta.eq(self.i.meta[part]),
                self.o.top[part].eq(decoder.top),
                self.o.refinement[part].eq(decoder.refinement),
            ]
        return m


class CellSums(Component):
    """Multiply a decoded activation group with a weight group, add up the parts; combinational.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    act : In(decoded_layout(pair))
        Activations.
    weight : In(group_layout(pair.weight))
        Weights.
    o : Out(pair.sums_layout)
        Sums, multipliers and scales.
    """

    def __init__(self, pair: DotPair) -> None:
        self._pair = pair
        super().__init__(
            {
                "act": In(decoded_layout(pair)),
                "weight": In(group_layout(pair.weight)),
                "o": Out(pair.sums_layout),
            }
        )

    def build(self) -> Module:
        """Build the parts."""
        m = Module()
        pair, act, weight = self._pair, self.act, self.weight
        for part in range(pair.parts):
            m.submodules[f"part_{part}"] = total = PartSum(pair)
            lanes = range(part * pair.part, (part + 1) * pair.part)
            m.d.comb += [
                total.x.eq(Cat(act.codes[n] for n in lanes)),
                total.w.eq(Cat(weight.codes[n] for n in lanes)),
                self.o.sums[part].eq(total.total),
            ]
            if pair.refined:
                m.d.comb += [
                    total.top.eq(act.top[part]),
                    total.refinement.eq(act.refinement[part]),
                ]
            if pair.multiplied:
                m.d.comb += self.o.multipliers[part].eq(weight.meta[part])
        m.d.comb += scale_facts(pair, act.scale, weight.scale, self.o.scales)
        return m


class Cell(Component):
    """One place of the array: a group dot product and a ring of FP32 accumulators.

    Parameters
    ----------
    pair
        Formats of the operands.
    depth
        Register stages before the exact product, 1 or 2.
    chains
        Accumulators, 1 to 3.

    Members
    -------
    enable : In(1)
        Go on by one step; nothing changes otherwise.
    act, weight : In
        Decoded activation group, packed weight group.
    valid, first : In(1)
        Whether there are groups; whether the chain is cleared to +0 before them. Both ``depth``
        steps after the groups.
    acc : Out(32)
        The chain's accumulator, ``latency`` steps after the groups.
    """

    def __init__(self, pair: DotPair, depth: int, chains: int) -> None:
        self._pair, self._depth = pair, depth
        self._accumulator = AccumulatorPipeline(pair, chains)
        self.latency = depth + self._accumulator.latency
        super().__init__(
            {
                "enable": In(1),
                "act": In(decoded_layout(pair)),
                "weight": In(group_layout(pair.weight)),
                "valid": In(1),
                "first": In(1),
                "acc": Out(value_layout(FP32)),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        m.submodules.sums = sums = CellSums(self._pair)
        m.submodules.product = product = ScaledProduct(self._pair)
        m.submodules.accumulator = accumulator = self._accumulator
        between = sums.o.as_value()
        if self._depth == 2:
            between = register(m, self.enable, "sums_held", between)
        m.d.comb += [
            sums.act.eq(self.act),
            sums.weight.eq(self.weight),
            product.i.eq(between),
            accumulator.enable.eq(self.enable),
            accumulator.i.eq(register(m, self.enable, "product_held", product.o.as_value())),
            accumulator.valid.eq(self.valid),
            accumulator.first.eq(self.first),
            self.acc.eq(accumulator.o),
        ]
        return m


class GemmArray(Component):
    """``rows`` x ``columns`` cells: every row's activations meet every column's weights.

    Parameters
    ----------
    pair
        Formats of the operands.
    rows, columns
        Size of the array.
    depth, chains
        See ``Cell``.

    Members
    -------
    enable : In(1)
        Go on by one step.
    acts : In(ArrayLayout(group, rows))
        Packed activation groups; registered after decoding.
    weights : In(ArrayLayout(group, columns))
        Packed weight groups, one step after the activations, as a memory gives them.
    valid, first : In(1)
        With the activations: there are groups; clear the chain to +0 before them.
    accs : Out(ArrayLayout(32, rows * columns))
        Accumulators, row by row, ``latency`` steps after the activations.
    """

    def __init__(self, pair: DotPair, rows: int, columns: int, depth: int, chains: int) -> None:
        self._pair, self._rows, self._columns, self._depth = pair, rows, columns, depth
        self._cells = [Cell(pair, depth, chains) for _ in range(rows * columns)]
        self.latency = 1 + self._cells[0].latency
        super().__init__(
            {
                "enable": In(1),
                "acts": In(data.ArrayLayout(group_layout(pair.act), rows)),
                "weights": In(data.ArrayLayout(group_layout(pair.weight), columns)),
                "valid": In(1),
                "first": In(1),
                "accs": Out(data.ArrayLayout(value_layout(FP32), rows * columns)),
            }
        )

    def build(self) -> Module:
        """Build decoders and cells."""
        m = Module()
        steps = 1 + self._depth
        valid = delayed(m, self.enable, "valid", self.valid, steps, reset=True)
        first = delayed(m, self.enable, "first", self.first, steps)
        for row in range(self._rows):
            m.submodules[f"decoder_{row}"] = decoder = RowDecoder(self._pair)
            m.d.comb += decoder.i.eq(self.acts[row])
            act = register(m, self.enable, f"act_{row}", decoder.o.as_value())
            for column in range(self._columns):
                index = row * self._columns + column
                m.submodules[f"cell_{row}_{column}"] = cell = self._cells[index]
                m.d.comb += [
                    cell.enable.eq(self.enable),
                    cell.act.eq(act),
                    cell.weight.eq(self.weights[column]),
                    cell.valid.eq(valid),
                    cell.first.eq(first),
                    self.accs[index].eq(cell.acc),
                ]
        return m
