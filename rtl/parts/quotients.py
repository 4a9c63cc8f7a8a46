"""Exact quotients rounded to minifloats: digits by long division, and their rounding."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed

from m2xfp.formats import FloatElement
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.arith.fixed_point import shift_right

__all__ = ["Quotient", "divided", "rounded_to_minifloat"]


@dataclass(frozen=True)
class Quotient:
    """A quotient, 1.digits * 2^-lead.

    Members
    -------
    digits
        Its first digits, the hidden one on top.
    rest
        Whether anything follows them.
    lead
        Binades below the numerator's: 0, 1, ...
    """

    digits: Value
    rest: Value
    lead: Value


def divided(
    m: Module, numerator: Value, divisor: Value, digits: int, leads: int, name: str
) -> Quotient:
    """Divide two numbers whose quotient lies in 2^-leads (not below) to 2 (below): exact.

    The numerator is doubled until it is at least the divisor; from then on each step subtracts
    where it can, and what is left at the end says whether the quotient ends there.
    """
    width = max(len(numerator), len(divisor)) + leads + 1
    rest: Value = named(m, f"{name}_numerator", Cat(numerator, Const(0, width - len(numerator))))
    lead: Value = Const(0, leads.bit_length())
    for step in range(leads):
        below = named(m, f"{name}_below_{step}", rest < divisor)
        rest = named(m, f"{name}_lifted_{step}", Mux(below, rest << 1, rest)[:width])
        lead = (lead + below)[: leads.bit_length()]
    # From here on it is less than twice the divisor.
    width = len(divisor) + 1
    rest = named(m, f"{name}_rest", (rest - divisor)[:width])
    found: list[Value] = [Const(1, 1)]
    for digit in range(1, digits):
        twice = rest << 1
        difference = named(m, f"{name}_difference_{digit}", (twice - divisor)[: width + 1])
        fits = named(m, f"{name}_digit_{digit}", ~difference[-1])
        found.append(fits)
        rest = named(m, f"{name}_rest_{digit}", Mux(fits, difference, twice)[:width])
    return Quotient(Cat(reversed(found)), named(m, f"{name}_inexact", rest.any()), lead)


def rounded_to_minifloat(
    m: Module, quotient: Quotient, exponent: Value, element: FloatElement, ties: str, name: str
) -> Value:
    """Round 1.digits * 2^exponent to a magnitude code: nearest, not saturated, below 2^bits.

    The quotient has at least one digit more than the element's mantissa, and its lead is not looked
    at; the exponent is signed.
    """
    mantissa_bits = element.mantissa_bits
    lowest = 1 - element.bias
    # Beyond mantissa_bits + 2 places to the right nothing is left but a rest.
    most = mantissa_bits + 2
    places = Signal(range(most + 1), name=f"{name}_places")
    away = Signal(signed(len(exponent) + 2), name=f"{name}_below_normal")
    normal = away[-1]  # or at the border, where nothing is shifted either
    m.d.comb += [
        away.eq(lowest - exponent),
        places.eq(Mux(normal, 0, Mux(away[:-1] > most, most, away[: len(places)]))),
    ]
    shifted, lost = shift_right(m, quotient.digits, places, f"{name}_shifted")
    extra = len(quotient.digits) - 1 - mantissa_bits
    whole, guard = shifted[extra:], shifted[extra - 1]
    rest = named(m, f"{name}_rest", quotient.rest | lost | shifted[: extra - 1].any())
    up = guard if ties == "away" else guard & (rest | whole[0])
    # The hidden digit adds one to the field: of a normal number the field is one less here.
    field = Signal(len(exponent) + 1, name=f"{name}_field")
    m.d.comb += field.eq(Mux(normal, exponent - lowest, 0))
    return named(m, f"{name}_code", (field << mantissa_bits) + whole + up)
