"""Sums of segments: what came before plus this segment, rounded once to bfloat16."""

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import BF16, FP32
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.fp32_addition import Add, Align, significand_bits
from m2xfp.rtl.parts.fp32_rounding import Normalise, Round, summed_layout
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.registers import register
from m2xfp.rtl.parts.streams import SpillRegister, packet, packet_stream
from m2xfp.rtl.parts.word_memory import WordMemory
from m2xfp.rtl.verilog.component import Component

__all__ = ["SegmentSums"]


class _Earlier:
    """A bfloat16 value as an addend: eight bits of significand and a sign."""

    @property
    def product_shape(self) -> Shape:
        """Shape of sign and significand."""
        return signed(BF16.mantissa_bits + 2)


_summed = summed_layout(len(Add(significand_bits(_Earlier())).o.magnitude))


class SegmentAligner(Component):
    """Align an FP32 sum and the bfloat16 result so far; combinational.

    Parameters
    ----------
    none

    Members
    -------
    part : In(32)
        The segment's sum.
    earlier : In(16)
        The result so far.
    fresh : In(1)
        There is none: the sum goes on alone.
    o : Out(summed_layout)
        The exact sum of both, or what rounds alike.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "part": In(value_layout(FP32)),
                "earlier": In(value_layout(BF16)),
                "fresh": In(1),
                "o": Out(_summed),
            }
        )

    def build(self) -> Module:
        """Build the addition; infinities and NaN of either side, and the sign of zeros, apart."""
        m = Module()
        m.submodules.align = align = Align(_Earlier())
        m.submodules.add = add = Add(significand_bits(_Earlier()))
        part, earlier, there = self.part, self.earlier, ~self.fresh
        special = named(m, "special", earlier.exponent.all() & there)
        part_special = named(m, "part_special", part.exponent.all())
        opposite = named(m, "opposite", part.sign ^ earlier.sign)
        nan = named(
            m,
            "nan",
            (special & earlier.mantissa.any()) | (special & part_special & opposite),
        )
        hidden = named(m, "earlier_hidden", earlier.exponent.any())
        nonzero = named(m, "earlier_nonzero", (hidden | earlier.mantissa.any()) & there)
        part_zero = named(m, "part_zero", ~(part.exponent.any() | part.mantissa.any()))
        # -0 only if both are: a zero addend lets the other operand through with its sign.
        alone = Signal(value_layout(FP32))
        m.d.comb += [
            alone.eq(part),
            alone.sign.eq(part.sign & ~(part_zero & there & ~nonzero & ~earlier.sign)),
            align.acc.eq(
                Mux(special & ~part_special, Cat(Const(0, 16), earlier.as_value()), alone)
            ),
            align.addend.significand.eq(Cat(earlier.mantissa, hidden)),
            align.addend.exponent.eq(Cat(earlier.exponent[0] | ~hidden, earlier.exponent[1:])),
            align.addend.negative.eq(earlier.sign),
            align.addend.nonzero.eq(nonzero & ~special),
            align.addend.nan.eq(nan),
            add.i.eq(align.o),
            self.o.eq(add.o),
        ]
        return m


class SegmentRounding(Component):
    """Round a sum once to bfloat16; combinational.

    Parameters
    ----------
    none

    Members
    -------
    i : In(summed_layout)
        The sum.
    o : Out(16)
        To nearest even.
    """

    def __init__(self) -> None:
        super().__init__({"i": In(_summed), "o": Out(value_layout(BF16))})

    def build(self) -> Module:
        """Build normalisation and rounding."""
        m = Module()
        m.submodules.normalise = normalised = Normalise(len(self.i.magnitude), BF16)
        m.submodules.round = round_ = Round(BF16)
        m.d.comb += [
            normalised.i.eq(self.i),
            round_.i.eq(normalised.o),
            self.o.eq(round_.acc),
        ]
        return m


class SegmentSums(Component):
    """Add each row of a segment's sums to that of the segments before, rounded to bfloat16.

    result' = RNE(result + sum), once after each segment, as the kernels of MicroMix and MXQuant
    have it. What is to come is kept in a memory; results of a product's last segment leave.

    Parameters
    ----------
    columns
        Values a row.
    places
        Rows under way: those of a block.

    Members
    -------
    i : In(packet_stream(ArrayLayout(32, columns)))
        Sums.
    place : In, begins, given : In(1)
        Beside them: which row of the block it is, whether nothing came before, whether it leaves.
    o : Out(packet_stream(ArrayLayout(16, columns)))
        Results.
    """

    latency = 3

    def __init__(self, columns: int, places: int) -> None:
        self._columns, self._places = columns, places
        super().__init__(
            {
                "i": In(packet_stream(data.ArrayLayout(value_layout(FP32), columns))),
                "place": In(range(places)),
                "begins": In(1),
                "given": In(1),
                "o": Out(packet_stream(data.ArrayLayout(value_layout(BF16), columns))),
            }
        )

    def build(self) -> Module:
        """Build three stages: fetch, add, round; a row waits until its result so far is there."""
        m = Module()
        results = data.ArrayLayout(value_layout(BF16), self._columns)
        m.submodules.kept = kept = WordMemory(results.size, self._places)
        m.submodules.leaving = leaving = SpillRegister(packet(results))
        step = leaving.i.ready
        there = [Signal(name="there_0"), Signal(name="there_1")]
        place: Value = self.place
        marks: Value = Cat(self.begins, self.given, self.i.payload.last)
        busy: list[Value] = []
        taken = Signal()
        values = register(m, step, "sums", self.i.payload.data.as_value())
        stages: list[tuple[Value, Value]] = []
        for n in range(2):
            place = register(m, step, f"place_{n}", place)
            marks = register(m, step, f"marks_{n}", marks)
            stages.append((place, marks))
            busy.append(there[n] & (place == self.place) & ~marks[1])
        waits = named(m, "waits", ~self.begins & Cat(busy).any())
        m.d.comb += [
            taken.eq(self.i.valid & step & ~waits),
            self.i.ready.eq(step & ~waits),
            kept.read.eq(step),
            kept.read_address.eq(self.place),
        ]
        with m.If(step):
            m.d.sync += [there[0].eq(taken), there[1].eq(there[0])]
        total = Signal(results)
        for n in range(self._columns):
            m.submodules[f"aligner_{n}"] = aligner = SegmentAligner()
            m.submodules[f"rounding_{n}"] = rounding = SegmentRounding()
            m.d.comb += [
                aligner.part.eq(values.word_select(n, 32)),
                aligner.earlier.eq(kept.read_data.word_select(n, 16)),
                aligner.fresh.eq(stages[0][1][0]),
                rounding.i.eq(register(m, step, f"summed_{n}", aligner.o.as_value())),
                total[n].eq(rounding.o),
            ]
        done = named(m, "done", there[1] & step)
        given = stages[1][1][1]
        m.d.comb += [
            kept.write.eq(done & ~given),
            kept.write_address.eq(stages[1][0]),
            kept.write_data.eq(total),
            leaving.i.valid.eq(there[1] & given),
            leaving.i.payload.data.eq(total),
            leaving.i.payload.last.eq(stages[1][1][2]),
            self.o.valid.eq(leaving.o.valid),
            self.o.payload.eq(leaving.o.payload),
            leaving.o.ready.eq(self.o.ready),
        ]
        return m
