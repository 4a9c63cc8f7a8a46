"""A group's scale as a minifloat, from the exact quotient, and what lanes compare values with."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.quotients import divided, rounded_to_minifloat
from m2xfp.rtl.parts.ratio_rounding import (
    COMPARED,
    MULTIPLES,
    boundary_layout,
    inclusive,
    known_boundaries,
)
from m2xfp.rtl.parts.relative_values import RelativeType
from m2xfp.rtl.verilog.component import Component

__all__ = ["MinifloatScale", "ScaleBoundaries"]


class MinifloatScale(Component):
    """The minifloat nearest to amax / 6 over the tensor scale, saturating; combinational.

    Parameters
    ----------
    relative
        Type of the values.

    Members
    -------
    key : In
        Exponent above mantissa of the largest value.
    unit : In
        Mantissa of the tensor scale.
    code : Out
        The scale without its sign bit.
    """

    def __init__(self, relative: RelativeType) -> None:
        self._relative = relative
        kind = relative.stored
        super().__init__(
            {
                "key": In(kind.mantissa_bits + kind.exponent_bits),
                "unit": In(23 if relative.tensor_scale else 0),
                "code": Out(relative.grid.bits - 1),
            }
        )

    def build(self) -> Module:
        """Build the division."""
        m = Module()
        relative, grid = self._relative, self._relative.grid
        bits = relative.stored.mantissa_bits
        mantissa, exponent = self.key[:bits], self.key[bits:]
        # Largest over 3/2 of the tensor scale, both significands in units of their last common bit.
        unit = Cat(self.unit, Const(1, 1))
        places = max(bits, len(self.unit)) + 1
        numerator = Cat(Const(0, places - bits), mantissa, Const(1, 1))
        divisor = named(m, "divisor", (3 * unit) << (places - 1 - len(self.unit)))
        quotient = divided(
            m, numerator, divisor, grid.mantissa_bits + 2, 2 if len(self.unit) else 1, "scale"
        )
        of_scale = Signal(signed(len(exponent) + 2))
        m.d.comb += of_scale.eq(exponent - (relative.offset + 2) - quotient.lead)
        rounded = rounded_to_minifloat(m, quotient, of_scale, grid, relative.block.ties, "scale")
        zero = grid.bias << grid.mantissa_bits if relative.block.scale.name != "e4m3" else 0
        with m.If(~exponent.any() | (rounded == 0)):
            m.d.comb += self.code.eq(zero)
        with m.Elif(rounded > grid.max_code):
            m.d.comb += self.code.eq(grid.max_code)
        with m.Else():
            m.d.comb += self.code.eq(rounded)
        return m


class ScaleBoundaries(Component):
    """Exponent and significand of a scale, times the tensor scale if there is one; combinational.

    Parameters
    ----------
    relative
        Type of the values.

    Members
    -------
    code : In
        The scale without its sign bit.
    unit : In
        Mantissa of the tensor scale.
    zero : Out(1)
        The scale is zero.
    origin : Out
        The exponent of values that is four binades below the scale's.
    significand : Out
        Of scale and tensor scale: 1.m, the hidden bit on top; zero's is of no meaning.
    boundaries : Out(boundary_layout)
        What lanes compare with; those that have one of two scales know that.
    """

    def __init__(self, relative: RelativeType) -> None:
        self._relative = relative
        kind, grid = relative.stored, relative.grid
        unit = 23 if relative.tensor_scale else 0
        split = relative.block.scaling == "split"
        boundaries = boundary_layout(kind.mantissa_bits)
        super().__init__(
            {
                "code": In(grid.bits - 1),
                "unit": In(unit),
                "zero": Out(1),
                "origin": Out(kind.exponent_bits),
                "significand": Out(grid.mantissa_bits + 1 + (unit and unit + 1)),
                "boundaries": Out(data.StructLayout({}) if split else boundaries),
            }
        )

    def build(self) -> Module:
        """Build the product and its multiples."""
        m = Module()
        relative, grid = self._relative, self._relative.grid
        bits, margin = grid.mantissa_bits, relative.margin - 4
        field, mantissa = self.code[bits:], self.code[:bits]
        fraction = Signal(bits)
        place = Signal(len(self.origin))
        # A subnormal scale is normalised: its leading one is one of few.
        with m.If(field.any()):
            m.d.comb += [fraction.eq(mantissa), place.eq(field + (bits - 1 + margin))]
        for lead in reversed(range(bits)):
            with m.Elif(mantissa[lead]):
                m.d.comb += [fraction.eq(mantissa << (bits - lead)), place.eq(lead + margin)]
        m.d.comb += self.zero.eq(~self.code.any())
        scale = Cat(fraction, Const(1, 1))
        if not relative.tensor_scale:
            m.d.comb += [self.origin.eq(place), self.significand.eq(scale)]
            if relative.block.scaling != "split":
                size, ties = relative.stored.mantissa_bits, relative.block.ties
                m.d.comb += self.boundaries.eq(known_boundaries(m, fraction, size, ties))
            return m
        product = named(m, "product", scale * Cat(self.unit, Const(1, 1)))
        carry = product[-1]
        full = named(m, "full", Mux(carry, product, product << 1)[: len(product)])
        m.d.comb += [self.origin.eq(place + carry), self.significand.eq(full)]
        odd = {
            1: full,
            3: named(m, "times_3", full + (full << 1)),
            5: named(m, "times_5", full + (full << 2)),
            7: named(m, "times_7", (full << 3) - full)[: len(full) + 3],
        }
        shift = len(full) - 1 + 3 - relative.stored.mantissa_bits
        found: dict[int, Value] = {}
        beyond: list[Value] = []
        for n in MULTIPLES:
            twos = (n & -n).bit_length() - 1
            multiple = Cat(Const(0, twos), odd[n >> twos], Const(0, 1))
            cut: Value = Const(1, 1)
            if inclusive(n, relative.block.ties):
                cut = multiple[:shift].any()
            *_, one, two = whole = multiple[shift : len(full) + 4]
            found[n] = named(m, f"boundary_{n}", Cat(cut, whole[:-2], two))
            if n < 8:
                beyond.append(one)
        # How many are below 1: three, two, one or none of the first.
        m.d.comb += [
            self.boundaries.always.eq(Mux(beyond[1], ~beyond[0], Cat(~beyond[2], Const(1, 1)))),
            self.boundaries.one.eq(found[8]),
        ]
        for at in range(COMPARED):
            first = [found[n] for n in MULTIPLES[at : at + 4]]
            chosen = Mux(
                beyond[1], Mux(beyond[0], first[0], first[1]), Mux(beyond[2], first[2], first[3])
            )
            m.d.comb += self.boundaries.next[at].eq(chosen)
        return m
