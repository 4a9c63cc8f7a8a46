"""Rounding of values to E2M1 by comparing with multiples of a scale that is no power of two."""

from collections.abc import Sequence
from fractions import Fraction

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FloatElement
from m2xfp.rtl.arith.datapath import named, reduce_tree
from m2xfp.rtl.parts.quotients import divided, rounded_to_minifloat
from m2xfp.rtl.verilog.component import Component

__all__ = ["MULTIPLES", "RatioRefiner", "RatioRounder", "inclusive", "multiple_bits"]

# A value of significand s against a scale of significand g, both 1 to 2: the boundaries of the
# codes are at s = g n / 8 for these n. The same boundary serves several binades, 5 for y = 1.25,
# 2.5 and 5. Of those at which a tie goes to the larger code n is in ``_UP``.
MULTIPLES = (5, 6, 7, 8, 10, 12, 14)
_UP = (6, 7, 12, 14)


def inclusive(multiple: int, ties: str) -> bool:
    """Return whether a value on a boundary belongs above it."""
    return ties == "away" or multiple in _UP


def multiple_bits(mantissa_bits: int) -> int:
    """Return the bits of a threshold: below 3.5 in units of the mantissa, and one bit below."""
    return mantissa_bits + 3


class RatioRounder(Component):
    """Round one value to E2M1 against a scale with a significand; combinational.

    Parameters
    ----------
    exponent_bits, mantissa_bits
        Of the value: exponent in the same terms as the scale's, 0 for what is below everything.
    fraction_bits
        Mantissa bits of the scale, of which every boundary is known beforehand; 0 if the boundaries
        are an input.
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
        Thresholds in the order of ``MULTIPLES``, without ``fraction_bits``.
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
        self._ties, self._mantissa_bits, self._fraction_bits = ties, mantissa_bits, fraction_bits
        wide = unsigned(multiple_bits(mantissa_bits) if not fraction_bits else 0)
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
        significand = Cat(self.mantissa, Const(1, 1))
        reached = {
            n: named(m, f"reached_{n}", self._reached(significand, n, at))
            for at, n in enumerate(MULTIPLES)
        }
        m.d.comb += self.above.eq(self.exponent - self.origin)

        def code(first: int, *steps: int) -> Value:
            """Return ``first``, and one more for each boundary that is reached, in rising order."""
            found: Value = Const(first, 3)
            for count, n in enumerate(steps, 1):
                found = Mux(reached[n], first + count, found)
            return found[:3]

        # y = s / g 2^(above - 3), and s / g lies between a half and two.
        low, far = self.above[:3], self.above[3:-1].any()
        with m.If(self.zero | self.above[-1]):
            m.d.comb += self.magnitude.eq(0)
        with m.Elif(far | low.all()):
            m.d.comb += self.magnitude.eq(7)
        with m.Else(), m.Switch(low):
            for binade, value in (
                (1, code(0, 8)),
                (2, code(1, 12)),
                (3, code(1, 6, 10, 14)),
                (4, code(2, 5, 7, 10, 14)),
                (5, code(4, 5, 7, 10)),
                (6, code(6, 5)),
            ):
                with m.Case(binade):
                    m.d.comb += self.magnitude.eq(value)
        return m

    def _reached(self, significand: Value, n: int, at: int) -> Value:
        """Return whether the value lies above a boundary."""
        if not self._fraction_bits:
            return Cat(Const(0, 1), significand) >= self.boundaries[at]
        cases: Sequence[Value] = [
            (self.fraction == field) & self._above(significand, n, field)
            for field in range(1 << self._fraction_bits)
        ]
        return reduce_tree(lambda a, b: a | b, cases)

    def _above(self, significand: Value, n: int, field: int) -> Value:
        """Return whether the value is above n / 8 of a scale of known mantissa."""
        scale = 1 + Fraction(field, 1 << self._fraction_bits)
        threshold = scale * n / 8 * (1 << self._mantissa_bits)
        least = -(-threshold.numerator // threshold.denominator)
        if threshold == least and not inclusive(n, self._ties):
            least += 1
        one = 1 << self._mantissa_bits
        if least <= one:
            return Const(1, 1)
        return significand >= least if least < 2 * one else Const(0, 1)


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
