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
    "COMPARED",
    "MULTIPLES",
    "RatioRefiner",
    "RatioRounder",
    "boundary_layout",
    "inclusive",
    "known_boundaries",
]

# A value of significand s against a scale of significand g, both 1 to 2: the boundaries of the
# codes are at s = g n / 8 for these n. The same boundary serves several binades, 5 for y = 1.25,
# 2.5 and 5; 8 is the border of binades, which is one of codes, 1/4, in the lowest of them.
MULTIPLES = (5, 6, 7, 8, 10, 12, 14)
# Those at which a tie goes to the larger code, and the one of no code.
_UP = (6, 7, 8, 12, 14)
# An octave has four of them: whatever g is, all others are reached by every s, or by none. So many
# are compared with, and they are known by how many are always reached.
COMPARED = 4


def inclusive(multiple: int, ties: str) -> bool:
    """Return whether a value on a boundary belongs above it."""
    return ties == "away" or multiple in _UP


def boundary_bits(mantissa_bits: int) -> int:
    """Return the bits of a boundary, from the top: 2 or more, a mantissa, half a last bit more.

    A boundary that is not above 1 is 0. A value reaches one if its mantissa, with a 0 behind, is at
    least the boundary: what lies between two numbers is half above the lower one, and so is what a
    value must exceed.
    """
    return mantissa_bits + 2


def boundary_layout(mantissa_bits: int) -> data.StructLayout:
    """Return what a lane compares with.

    ``always`` is how many of ``MULTIPLES`` every value reaches, ``next`` are the boundaries of
    those behind them, and ``one`` is the scale itself as a boundary.
    """
    wide = unsigned(boundary_bits(mantissa_bits))
    return data.StructLayout(
        {"next": data.ArrayLayout(wide, COMPARED), "one": wide, "always": unsigned(2)}
    )


def known_boundaries(m: Module, fraction: Value, mantissa_bits: int, ties: str) -> data.View:
    """Return what lanes compare with of a scale that has ``fraction`` for mantissa: a table."""
    found = Signal(boundary_layout(mantissa_bits), name="known")
    one = 2 << mantissa_bits
    with m.Switch(fraction):
        for field in range(1 << len(fraction)):
            scale = 1 + Fraction(field, 1 << len(fraction))
            places = {n: (scale * n / 8 - 1) * one for n in MULTIPLES}
            halves = {n: int(place) + (not inclusive(n, ties)) for n, place in places.items()}
            assert all(place.denominator == 1 for place in places.values())
            always = sum(place < 0 for place in places.values())
            behind = [halves[n] for n in MULTIPLES[always : always + COMPARED]]
            with m.Case(field):
                m.d.comb += [
                    found.always.eq(always),
                    found.one.eq(halves[8]),
                    *(found.next[at].eq(min(place, one)) for at, place in enumerate(behind)),
                ]
    return found


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
        The exponent at which a value is four binades below the scale; all ones for code 0 of all
        values, the largest ones too.
    fraction : In(fraction_bits)
        Mantissa of the scale.
    boundaries : In(boundary_layout(mantissa_bits))
        What to compare with, without ``fraction_bits``.
    magnitude : Out(3)
        The code.
    place : Out(signed)
        The binade of the value over the scale: 4 from 1 to 2.
    """

    def __init__(
        self, exponent_bits: int, mantissa_bits: int, fraction_bits: int, ties: str
    ) -> None:
        self._ties, self._fraction_bits = ties, fraction_bits
        given = data.StructLayout({}) if fraction_bits else boundary_layout(mantissa_bits)
        super().__init__(
            {
                "exponent": In(exponent_bits),
                "mantissa": In(mantissa_bits),
                "origin": In(exponent_bits),
                "fraction": In(fraction_bits),
                "boundaries": In(given),
                "magnitude": Out(3),
                "place": Out(signed(exponent_bits + 1)),
            }
        )

    def build(self) -> Module:
        """Build the lane."""
        m = Module()
        boundaries: data.View = self.boundaries
        if self._fraction_bits:
            boundaries = known_boundaries(m, self.fraction, len(self.mantissa), self._ties)
        value = Cat(Const(0, 1), self.mantissa)
        reached = [named(m, f"reached_{n}", value >= boundaries.next[n]) for n in range(COMPARED)]
        # They rise, so the bits of their number are quickly found.
        number = Cat(
            (reached[0] & ~reached[1]) | (reached[2] & ~reached[3]),
            reached[1] & ~reached[3],
            reached[3],
        )
        regions = named(m, "region", (number + boundaries.always)[:3])
        # y = s / g 2^(exponent - origin - 4), and s / g lies between a half and two.
        quarters, upper = regions[:2], regions[2]
        # exponent - origin - 1, one more in the upper half.
        binade = named(
            m,
            "binade",
            Cat(Const(1, 1), self.exponent, Const(0, 1)) + Cat(upper, ~self.origin, Const(1, 1)),
        )
        m.d.comb += self.place.eq(binade[1:])
        # On the border of the lowest binade itself a value is no more than a quarter of the scale.
        more: Value = Const(1, 1)
        if self._ties == "even":
            more = named(m, "more", value != boundaries.one)
        quarter, rest = quarters.any(), quarters.all()
        low = self.place[:3]
        with m.If(self.place[-1]):
            m.d.comb += self.magnitude.eq(0)
        with m.Elif(self.place[3:-1].any()):
            m.d.comb += self.magnitude.eq(7)
        with m.Else(), m.Switch(low):
            for place, code in (
                (2, more),  # a quarter to a half
                (3, Cat(~quarters[1], quarters[1])),  # 1, from 3/4 on 2
                (4, Cat(quarter & ~rest, ~rest, rest)),  # 2, 3, 4
                (5, Cat(quarter & ~rest, rest, Const(1, 1))),  # 4, 5, 6
                (6, Cat(quarter, Const(3, 2))),  # 6, 7
                (7, Const(7, 3)),
            ):
                with m.Case(place):
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
    mantissa, place, odd : In
        Of the element: its mantissa, ``place`` as ``RatioRounder`` gives it, and whether its code
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
                "place": In(signed(exponent_bits + 1)),
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
        exponent = Signal(signed(len(self.place) + 1))
        m.d.comb += exponent.eq(self.place - 4)
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
