"""Rounding of values to E2M1 by comparing with multiples of a scale that is no power of two."""

from fractions import Fraction

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FloatElement
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.quotients import divided, rounded_to_minifloat
from m2xfp.rtl.verilog.component import Component

__all__ = [
    "MULTIPLES",
    "RatioRefiner",
    "RatioRounder",
    "boundary_bits",
    "inclusive",
    "known_boundary",
]

# A value of significand s against a scale of significand g, both 1 to 2: the boundaries of the
# codes are at s = g n / 8 for these n. The same boundary serves several binades, 5 for y = 1.25,
# 2.5 and 5; 8 is the border of binades, which is one of codes, 1/4, in the lowest of them.
MULTIPLES = (5, 6, 7, 8, 10, 12, 14)
# Those at which a tie goes to the larger code, and those of no code.
_UP = (6, 7, 8, 12, 14)


def inclusive(multiple: int, ties: str) -> bool:
    """Return whether a value on a boundary belongs above it."""
    return ties == "away" or multiple in _UP


def boundary_bits(mantissa_bits: int) -> int:
    """Return the bits of a boundary, from the top: beyond 2, a mantissa, and half a last bit more.

    A boundary that is not above 1 is 0. A value reaches one if its mantissa, with a 0 behind, is at
    least the boundary: what lies between two numbers is half above the lower one, and what a value
    must exceed too.
    """
    return mantissa_bits + 2


def known_boundary(
    m: Module, fraction: Value, multiple: int, mantissa_bits: int, ties: str, name: str
) -> Value:
    """Return a boundary of a scale that has ``fraction`` for mantissa, from a table."""
    boundary = Signal(boundary_bits(mantissa_bits), name=name)
    with m.Switch(fraction):
        for field in range(1 << len(fraction)):
            scale = 1 + Fraction(field, 1 << len(fraction))
            halves = (scale * multiple / 8 - 1) * (2 << mantissa_bits)
            assert halves.denominator == 1
            beyond = 2 << mantissa_bits
            wanted = min(max(int(halves) + (not inclusive(multiple, ties)), 0), beyond)
            with m.Case(field):
                m.d.comb += boundary.eq(wanted)
    return boundary


class RatioRounder(Component):
    """Round one value to E2M1 against a scale with a significand; combinational.

    Parameters
    ----------
    exponent_bits, mantissa_bits
        Of the value: exponent in the same terms as the scale's, 0 for what is below everything.
    fraction_bits
        Mantissa bits of a scale of which the lane knows the boundaries; 0 if they are an input.
    ties
        ``even`` or ``away``.

    Members
    -------
    exponent, mantissa : In
        The value.
    origin : In(exponent_bits)
        The exponent at which a value is three binades below the scale: code 0.
    fraction : In(fraction_bits)
        Mantissa of the scale.
    boundaries : In(ArrayLayout)
        In the order of ``MULTIPLES``, as ``boundary_bits`` says; without ``fraction_bits``.
    zero : In(1)
        Code 0 whatever the value.
    magnitude : Out(3)
        The code.
    above : Out(signed)
        Binades that the value is above ``origin``.
    """

    def __init__(
        self, exponent_bits: int, mantissa_bits: int, fraction_bits: int, ties: str
    ) -> None:
        self._ties, self._fraction_bits = ties, fraction_bits
        wide = unsigned(boundary_bits(mantissa_bits) if not fraction_bits else 0)
        super().__init__(
            {
                "exponent": In(exponent_bits),
                "mantissa": In(mantissa_bits),
                "origin": In(exponent_bits),
                "fraction": In(fraction_bits),
                "boundaries": In(data.ArrayLayout(wide, len(MULTIPLES))),
                "zero": In(1),
                "magnitude": Out(3),
                "above": Out(signed(exponent_bits + 1)),
            }
        )

    def build(self) -> Module:
        """Build the lane."""
        m = Module()
        value = Cat(Const(0, 1), self.mantissa)
        boundary: dict[int, Value] = {n: self.boundaries[at] for at, n in enumerate(MULTIPLES)}
        if self._fraction_bits:
            bits = len(self.mantissa)
            boundary = {
                n: known_boundary(m, self.fraction, n, bits, self._ties, f"boundary_{n}")
                for n in MULTIPLES
            }
        reached = {n: named(m, f"reached_{n}", value >= boundary[n]) for n in MULTIPLES}
        m.d.comb += self.above.eq(self.exponent - self.origin)

        # y = s / g 2^(above - 3), and s / g lies between a half and two: in which half of that?
        upper = reached[8]
        low, far = self.above[:3], self.above[3:-1].any()
        place = named(m, "place", (low + upper)[:3])
        quarter = named(m, "quarter", Mux(upper, reached[10], reached[5]))
        half = named(m, "half", Mux(upper, reached[12], reached[6]))
        rest = named(m, "rest", Mux(upper, reached[14], reached[7]))
        # On the border itself a value is no more than a quarter of the scale.
        more: Value = Const(1, 1)
        if self._ties == "even":
            more = named(m, "more", ~upper | (value != boundary[8]))
        with m.If(self.zero | self.above[-1]):
            m.d.comb += self.magnitude.eq(0)
        with m.Elif(far | low.all()):
            m.d.comb += self.magnitude.eq(7)
        with m.Else(), m.Switch(place):
            for binade, code in (
                (2, more),  # a quarter to a half
                (3, Cat(~half, half)),  # 1, from 3/4 on 2
                (4, Cat(quarter & ~rest, Const(1, 1) & ~rest, rest)),  # 2, 3, 4
                (5, Cat(quarter & ~rest, rest, Const(1, 1))),  # 4, 5, 6
                (6, Cat(quarter, Const(3, 2))),  # 6, 7
                (7, Const(7, 3)),
            ):
                with m.Case(binade):
                    m.d.comb += self.magnitude.eq(code)
        return m


class RatioRefiner(Component):
    """Elem-EM metadata of a subgroup's top element, from the exact quotient; combinational.

    Parameters
    ----------
    exponent_bits, mantissa_bits
        Of the value.
    divisor_bits
        Of the significand of the scale.
    fine
        The element with the metadata's extra mantissa bits.

    Members
    -------
    mantissa, above, odd : In
        Of the element: its mantissa, ``above`` as ``RatioRounder`` gives it, and whether its code
        is odd.
    divisor : In
        Significand of the scale, the hidden bit on top.
    zero, poisoned : In(1)
        The scale is zero; the group is a NaN.
    meta : Out(2)
        clamp(fine + 1, low, low + 3) - low with low = coarse * 4.
    """

    def __init__(
        self, exponent_bits: int, mantissa_bits: int, divisor_bits: int, fine: FloatElement
    ) -> None:
        self._fine = fine
        super().__init__(
            {
                "mantissa": In(mantissa_bits),
                "above": In(signed(exponent_bits + 1)),
                "odd": In(1),
                "divisor": In(divisor_bits),
                "zero": In(1),
                "poisoned": In(1),
                "meta": Out(2),
            }
        )

    def build(self) -> Module:
        """Build the division."""
        m = Module()
        fine, bits = self._fine, len(self.mantissa)
        places = max(bits, len(self.divisor) - 1)
        numerator = Cat(Const(0, places - bits), self.mantissa, Const(1, 1))
        divisor = Cat(Const(0, places + 1 - len(self.divisor)), self.divisor)
        quotient = divided(m, numerator, divisor, fine.mantissa_bits + 2, 1, "ratio")
        exponent = Signal(signed(len(self.above) + 2))
        m.d.comb += exponent.eq(self.above - 3 - quotient.lead)
        rounded = rounded_to_minifloat(m, quotient, exponent, fine, "even", "fine")
        code = Signal(fine.bits)
        with m.If(self.zero):
            m.d.comb += code.eq(0)
        with m.Elif(~exponent[-1] & (exponent[:-1] > fine.emax)):
            m.d.comb += code.eq(fine.max_code)
        with m.Else():
            m.d.comb += code.eq(rounded)
        # As in ``Refiner``: three bits tell fine + 1 - low, -1 .. 5, apart.
        offset = Signal(3)
        m.d.comb += [
            offset.eq((code + 1) ^ Cat(Const(0, 2), self.odd)),
            self.meta.eq(
                Mux(offset[2], (~offset[1]).replicate(2), offset[:2])
                & (~self.poisoned).replicate(2)
            ),
        ]
        return m
