"""Values to the fixed point of their group."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib.wiring import In, Out

from m2xfp.formats import InputType
from m2xfp.rtl.arith.datapath import named, saturating_difference, sticky_or
from m2xfp.rtl.parts.group_scale import normalise_bits
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.verilog.component import Component

__all__ = ["Aligner", "shift_right_sticky"]


def shift_right_sticky(m: Module, value: Value, amount: Value) -> Value:
    """Shift right; the lowest bit of the result is ORed with every bit that is shifted out."""
    for stage in range(len(amount)):
        step = min(1 << stage, len(value) - 1)
        shifted = Cat(value[: step + 1].any(), value[step + 1 :], Const(0, step))
        value = named(m, f"shifted_{stage}", Mux(amount[stage], shifted, value))
    return value


class Aligner(Component):
    """Bring a value to the fixed point of its group; combinational.

    Parameters
    ----------
    kind
        Type of the value.
    width
        Bits of the result.

    Members
    -------
    value : In(value_layout(kind))
        The value.
    reference, normalise : In
        As ``SharedScale`` gives them.
    magnitude : Out(width)
        |x| / scale, with the top bit for 2^emax, and 1 in the lowest bit if anything is left below.

    Notes
    -----
    A significand h.m whose exponent lies ``distance`` below the reference stands for
    h.m * 2^(emax - distance). The distance saturates where only the lowest bit can be set.
    """

    def __init__(self, kind: InputType, width: int) -> None:
        super().__init__(
            {
                "value": In(value_layout(kind)),
                "reference": In(kind.exponent_bits),
                "normalise": In(normalise_bits(kind)),
                "magnitude": Out(width),
            }
        )

    def build(self) -> Module:
        """Build the shifter."""
        m = Module()
        value, width = self.value, len(self.magnitude)
        normal = Signal()
        field = Signal(len(value.exponent))
        placed = Signal(width)
        distance = Signal(min((width - 1).bit_length(), len(value.exponent)))
        significand: Value = Cat(value.mantissa, normal)
        if len(self.normalise):
            significand = (significand << self.normalise)[: len(significand)]
        significand = sticky_or(significand, width)
        m.d.comb += [
            normal.eq(value.exponent.any()),
            field.eq(Cat(value.exponent[0] | ~normal, value.exponent[1:])),  # subnormals have 1
            distance.eq(saturating_difference(m, self.reference, field, len(distance))),
            placed.eq(Cat(Const(0, width - len(significand)), significand)),
            self.magnitude.eq(shift_right_sticky(m, placed, distance)),
        ]
        return m
