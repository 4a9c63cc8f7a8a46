"""The pieces of a Walsh-Hadamard transform: values to a common fixed point, and butterflies."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import BF16
from m2xfp.rtl.arith.datapath import named, saturating_difference
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.registers import register
from m2xfp.rtl.verilog.component import Component

__all__ = ["BeatButterfly", "BlockAligner", "LaneButterflies"]


class BlockAligner(Component):
    """Cut a bfloat16 value to the fixed point of its block; combinational.

    Parameters
    ----------
    bits
        Of the magnitude, at least the 8 of a significand.

    Members
    -------
    value : In(value_layout(BF16))
        The value.
    largest : In(8)
        The largest exponent field of the block, at least 1.
    aligned : Out(signed(bits + 1))
        Whole multiples of 2^(largest - 127 - (bits - 1)), cut towards zero.
    """

    def __init__(self, bits: int) -> None:
        super().__init__(
            {
                "value": In(value_layout(BF16)),
                "largest": In(BF16.exponent_bits),
                "aligned": Out(signed(bits + 1)),
            }
        )

    def build(self) -> Module:
        """Build the shifter."""
        m = Module()
        value, bits = self.value, len(self.aligned) - 1
        normal = named(m, "normal", value.exponent.any())
        field = named(m, "field", Cat(value.exponent[0] | ~normal, value.exponent[1:]))
        distance = named(  # as good as any larger one from `bits` on
            m, "distance", saturating_difference(m, self.largest, field, bits.bit_length())
        )
        magnitude: Value = named(
            m, "placed", Cat(Const(0, bits - BF16.mantissa_bits - 1), value.mantissa, normal)
        )
        for stage in range(len(distance)):
            step = min(1 << stage, bits)
            shifted = Cat(magnitude[step:], Const(0, step))
            magnitude = named(m, f"shifted_{step}", Mux(distance[stage], shifted, magnitude))
        negated = named(m, "negated", magnitude ^ value.sign.replicate(bits)) + value.sign
        # A negative zero is zero: the carry leaves the magnitude, and the sign with it.
        m.d.comb += self.aligned.eq(Cat(negated[:bits], value.sign & ~negated[bits]))
        return m


class LaneButterflies(Component):
    """Butterflies between the lanes of a beat, at some distances; combinational.

    Parameters
    ----------
    lanes, width
        Values a beat, and bits of each, sign included.
    distances
        Powers of two: lanes that far apart become their sum and their difference.

    Members
    -------
    i : In(ArrayLayout(signed(width), lanes))
        A beat.
    o : Out(ArrayLayout(signed(width + len(distances)), lanes))
        The transformed beat; a butterfly adds a bit.
    """

    def __init__(self, lanes: int, width: int, distances: tuple[int, ...]) -> None:
        self.distances = distances
        super().__init__(
            {
                "i": In(data.ArrayLayout(signed(width), lanes)),
                "o": Out(data.ArrayLayout(signed(width + len(distances)), lanes)),
            }
        )

    def build(self) -> Module:
        """Build the butterflies."""
        m = Module()
        lanes = range(self.i.shape().length)
        values: list[Value] = [self.i[n] for n in lanes]
        for distance in self.distances:
            sums = []
            for n in lanes:
                result = Signal(signed(len(values[n]) + 1), name=f"apart_{distance}_{n}")
                other = values[n ^ distance]
                m.d.comb += result.eq(other - values[n] if n & distance else values[n] + other)
                sums.append(result)
            values = sums
        m.d.comb += [self.o[n].eq(values[n]) for n in lanes]
        return m


class BeatButterfly(Component):
    """A butterfly between the beats of a block, which follow each other without a gap.

    The first of two beats waits in a queue. When the second comes their sum leaves, and their
    difference takes its place in the queue, from which it leaves when the second of them is past.

    Parameters
    ----------
    lanes, width
        Values a beat, and bits of each, sign included.
    distance
        Beats between the two.

    Members
    -------
    enable : In(1)
        Go on by one step.
    i : In(ArrayLayout(signed(width), lanes))
        A beat.
    second : In(1)
        It is the second of its two.
    o : Out(ArrayLayout(signed(width + 1), lanes))
        The result for the place that ``i`` had ``distance`` steps ago.
    """

    def __init__(self, lanes: int, width: int, distance: int) -> None:
        self.distance = distance
        super().__init__(
            {
                "enable": In(1),
                "i": In(data.ArrayLayout(signed(width), lanes)),
                "second": In(1),
                "o": Out(data.ArrayLayout(signed(width + 1), lanes)),
            }
        )

    def build(self) -> Module:
        """Build the queue and the butterflies."""
        m = Module()
        lanes = range(self.i.shape().length)
        queued = Signal(self.o.shape())  # what enters the queue
        front = Signal(self.o.shape())  # what leaves it
        beat: Value = queued.as_value()
        for step in range(self.distance):
            beat = register(m, self.enable, f"queue_{step}", beat)
        m.d.comb += front.eq(beat)
        for n in lanes:
            # A beat that waits has one bit less than a difference; the two share the queue.
            total = _signed(m, f"sum_{n}", front[n] + self.i[n], len(front[n]))
            difference = _signed(m, f"difference_{n}", front[n] - self.i[n], len(front[n]))
            m.d.comb += [
                queued[n].eq(Mux(self.second, difference, self.i[n])),
                self.o[n].eq(Mux(self.second, total, front[n])),
            ]
        return m


def _signed(m: Module, name: str, value: Value, width: int) -> Signal:
    """Give a signed value a name and the width that it has by its bounds."""
    signal = Signal(signed(width), name=name)
    m.d.comb += signal.eq(value)
    return signal
