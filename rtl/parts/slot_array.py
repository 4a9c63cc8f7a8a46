"""The array of the mixed GEMM: cells that multiply groups of one beat or several, and add up."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FP32
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.fp32_accumulation import Accumulator
from m2xfp.rtl.parts.fp32_addition import addend_layout
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.mixed_layouts import kind_layout, word_layout
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.parts.switch_accumulation import Placed, magnitude_layout
from m2xfp.rtl.parts.switch_pair import SwitchPair
from m2xfp.rtl.parts.switch_product import SwitchProduct, digits_layout
from m2xfp.rtl.parts.switch_total import sign_magnitude
from m2xfp.rtl.verilog.component import Component

__all__ = ["SlotArray"]


class SlotAccumulator(Component):
    """Bring an exact product into place, and add it to the chain of a ring whose turn it is.

    Parameters
    ----------
    pair
        Formats of the operands.
    chains
        Accumulators, 1 to 4.

    Members
    -------
    enable : In(1)
        Go on by one step; the ring turns in each.
    i : In(digits_layout(pair))
        The exact product.
    valid, first : In(1)
        There is one, otherwise the chain stays as it is; clear the chain to +0 first. Reset clears
        all chains.
    o : Out(32)
        The chain after the product of ``latency`` steps ago.
    """

    def __init__(self, pair: SwitchPair, chains: int) -> None:
        self.pair, self.chains = pair, chains
        self.latency = 2 + chains
        super().__init__(
            {
                "enable": In(1),
                "i": In(digits_layout(pair)),
                "valid": In(1),
                "first": In(1),
                "o": Out(value_layout(FP32)),
            }
        )

    def build(self) -> Module:
        """Build the pipeline; what would change a chain is reset, as in ``AccumulatorPipeline``."""
        m = Module()
        step = self.enable
        m.submodules.placed = placed = Placed(self.pair)
        m.submodules.accumulator = accumulator = Accumulator(self.pair, self.chains)
        there = delayed(m, step, "valid_held", self.valid, 1, reset=True)
        first = delayed(m, step, "first_held", self.first, 1)
        exact = Signal(magnitude_layout(self.pair))
        magnitude, negative = sign_magnitude(m, self.i.digits)
        m.d.comb += [
            exact.magnitude.eq(magnitude),
            exact.negative.eq(negative),
            exact.exponent.eq(self.i.exponent),
            exact.nan.eq(self.i.nan),
        ]
        held = Signal(addend_layout(self.pair))
        effects = [
            delayed(m, step, f"{name}_held", placed.o[name] & there, 1, reset=True)
            for name in ("nonzero", "nan")
        ]
        # Ones after reset: every chain is cleared when its turn comes for the first time.
        clear = Signal(self.chains, init=-1)
        m.d.comb += [
            placed.i.eq(register(m, step, "magnitude_held", exact.as_value())),
            held.eq(register(m, step, "addend_held", placed.o.as_value())),
            accumulator.enable.eq(step),
            accumulator.addend.eq(held),
            accumulator.addend.nonzero.eq(effects[0]),
            accumulator.addend.nan.eq(effects[1]),
            accumulator.first.eq(clear[0]),
            self.o.eq(accumulator.acc),
        ]
        with m.If(step):
            m.d.sync += clear.eq((clear >> 1) | (first & there))
        return m


class SlotCell(Component):
    """One place of the array: a product that switches, and a ring of FP32 accumulators.

    Parameters
    ----------
    pair
        Formats of the operands.
    chains
        Accumulators, 1 to 4.

    Members
    -------
    enable : In(1)
        Go on by one step; nothing changes otherwise.
    act, weight : In(word_layout(pair))
        A beat of each side.
    kind : In(kind_layout), valid : In(1)
        What they are, and whether they are there.
    whole, first : In(1)
        They are the last of a group; the chain is cleared to +0 before it. Both as much later as
        the product takes.
    acc : Out(32)
        The chain's accumulator, ``latency`` steps after a group's last beats.
    """

    def __init__(self, pair: SwitchPair, chains: int) -> None:
        self._product = SwitchProduct(pair, chains)
        self._accumulator = SlotAccumulator(pair, chains)
        self.latency = self._product.latency + self._accumulator.latency
        super().__init__(
            {
                "enable": In(1),
                "act": In(word_layout(pair)),
                "weight": In(word_layout(pair)),
                "kind": In(kind_layout),
                "valid": In(1),
                "whole": In(1),
                "first": In(1),
                "acc": Out(value_layout(FP32)),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        m.submodules.product = product = self._product
        m.submodules.accumulator = accumulator = self._accumulator
        m.d.comb += [
            product.enable.eq(self.enable),
            product.i.act.eq(self.act),
            product.i.weight.eq(self.weight),
            product.i.mode.eq(self.kind.mode),
            product.narrow.eq(self.kind.narrow),
            product.opening.eq(self.kind.opening),
            product.valid.eq(self.valid),
            accumulator.enable.eq(self.enable),
            accumulator.i.eq(product.o),
            accumulator.valid.eq(self.whole),
            accumulator.first.eq(self.first),
            self.acc.eq(accumulator.o),
        ]
        return m


class SlotArray(Component):
    """``rows`` x ``columns`` cells: every row's activations meet every column's weights.

    Parameters
    ----------
    pair
        Formats of the operands.
    rows, columns
        Size of the array.
    chains
        Accumulators a cell.

    Members
    -------
    enable : In(1)
        Go on by one step.
    acts : In(ArrayLayout(word, rows))
        Beats of activations, registered here.
    weights : In(ArrayLayout(word, columns))
        Beats of weights, one step after the activations, as a memory gives them.
    kind : In(kind_layout), valid, first : In(1)
        With the activations: what they are, whether there are some, and whether they are of the
        first group of a sum.
    accs : Out(ArrayLayout(32, rows * columns))
        Accumulators, row by row, ``latency`` steps after a group's last activations.
    """

    def __init__(self, pair: SwitchPair, rows: int, columns: int, chains: int) -> None:
        self._rows, self._columns = rows, columns
        self._cells = [SlotCell(pair, chains) for _ in range(rows * columns)]
        self.latency = 1 + self._cells[0].latency
        super().__init__(
            {
                "enable": In(1),
                "acts": In(data.ArrayLayout(word_layout(pair), rows)),
                "weights": In(data.ArrayLayout(word_layout(pair), columns)),
                "kind": In(kind_layout),
                "valid": In(1),
                "first": In(1),
                "accs": Out(data.ArrayLayout(value_layout(FP32), rows * columns)),
            }
        )

    def build(self) -> Module:
        """Build the registers of the activations, and the cells."""
        m = Module()
        step = self.enable
        steps = 1 + SwitchProduct.latency
        valid = delayed(m, step, "valid", self.valid, 1, reset=True)
        ends = named(m, "ends", self.valid & self.kind.closing)
        whole = delayed(m, step, "whole", ends, steps, reset=True)
        first = delayed(m, step, "first", self.first, steps)
        kind = register(m, step, "kind_held", self.kind.as_value())
        for row in range(self._rows):
            act = register(m, step, f"act_{row}", self.acts[row].as_value())
            for column in range(self._columns):
                index = row * self._columns + column
                m.submodules[f"cell_{row}_{column}"] = cell = self._cells[index]
                m.d.comb += [
                    cell.enable.eq(step),
                    cell.act.eq(act),
                    cell.weight.eq(self.weights[column]),
                    cell.kind.eq(kind),
                    cell.valid.eq(valid),
                    cell.whole.eq(whole),
                    cell.first.eq(first),
                    self.accs[index].eq(cell.acc),
                ]
        return m
