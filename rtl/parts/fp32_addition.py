"""The first steps of an FP32 addition: decode the addend, align, add."""

from typing import Protocol

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import FP32
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.arith.fixed_point import leading_zeros, normalise, select_sum, shift_right
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.fp32_rounding import summed_layout
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.verilog.component import Component

__all__ = [
    "Add",
    "Addend",
    "Align",
    "Products",
    "addend_layout",
    "check_addend",
    "significand_bits",
]

# The significand of an aligned operand: 24 bits, or those of the addend if it has more, guard,
# round and sticky. One rounding needs no more, since a cancellation of more than one bit happens
# only when nothing was shifted out.
_EXTRA = 3

_SIGNIFICAND = FP32.mantissa_bits + 1

# Bits of the digits of sums that are split.
_EXPONENT_DIGIT, _SUM_DIGIT = 6, 11


class Products(Protocol):
    """What the addition must know of its addends."""

    @property
    def product_shape(self) -> Shape:
        """Shape of an addend without its exponent."""


def significand_bits(pair: Products) -> int:
    """Return the bits in which both operands of the addition are exact."""
    return max(_SIGNIFICAND, len(Signal(pair.product_shape)) - 1)


def addend_layout(pair: Products) -> data.StructLayout:
    """Return the fields of a group product on its way into an accumulator.

    The value is (-1)^negative * significand / 2^(n - 1) * 2^(exponent - 127), with the top one of
    the n bits of ``significand`` set unless the product is zero.

    Exponents: for M2XFP 2^17 * 2^(508 - 260) = 2^265 is the largest power of two, 2^-260 the
    smallest, for two E5M2 2^(68 + 508 - 286) = 2^290 and 2^-286; with 127 added -159..417 fit 10
    bits and a sign for all pairs of formats.
    """
    return data.StructLayout(
        {
            "significand": len(Signal(pair.product_shape)) - 1,
            "exponent": signed(10),
            "negative": 1,
            "nonzero": 1,
            "nan": 1,
        }
    )


def check_addend(pair: DotPair) -> None:
    """Refuse formats whose products have more bits than the significand of FP32."""
    bits = pair.product_bound.bit_length()
    if bits > _SIGNIFICAND and not pair.wide:
        raise InputError(
            f"{pair.act.name} x {pair.weight.name}: the products of {pair.group} values have "
            f"{bits} bits and the FP32 accumulation takes {_SIGNIFICAND}; choose a smaller group"
        )


class Addend(Component):
    """Bring an exact product to sign, exponent and normalised significand; combinational.

    Parameters
    ----------
    pair
        Formats of the operands.

    Members
    -------
    i : In(pair.product_layout)
        The exact product.
    o : Out(addend_layout(pair))
        The same value; if ``nan`` the other fields mean nothing.
    """

    def __init__(self, pair: DotPair) -> None:
        self.pair = pair
        super().__init__({"i": In(pair.product_layout), "o": Out(addend_layout(pair))})

    def build(self) -> Module:
        """Build absolute value, leading-zero count and shift."""
        m = Module()
        product = self.i.product
        bits = len(self.o.significand)
        negative = product[-1]
        # |D| needs no sign: the bound of D is symmetric, so -2^bits does not occur.
        magnitude = named(
            m, "magnitude", ((product[:-1] ^ negative.replicate(bits)) + negative)[:bits]
        )
        zeros, found = leading_zeros(m, magnitude, "zeros")
        offset = bits - 1 + FP32.bias - self.pair.bias
        m.d.comb += [
            self.o.significand.eq(normalise(m, magnitude, zeros, "normalised")),
            self.o.exponent.eq(self.i.exponent + offset - zeros),
            self.o.negative.eq(negative),
            self.o.nonzero.eq(found),
            self.o.nan.eq(self.i.nan),
        ]
        return m


# Between alignment and addition: the operand of the larger exponent, the other one shifted and, for
# a subtraction, inverted.
def _aligned_layout(bits: int) -> data.StructLayout:
    """Return the fields of aligned operands of ``bits`` bits."""
    return data.StructLayout(
        {
            "large": bits,
            "small": bits + _EXTRA,
            "subtract": 1,
            "exponent": 9,
            "negative": 1,
            "nan": 1,
        }
    )


class Align(Component):
    """First step of acc + addend: choose the larger exponent, shift the other operand to it.

    Combinational. An accumulator that is infinite or NaN, or a zero addend, lets the accumulator
    through alone.

    Parameters
    ----------
    pair
        Formats of the operands.
    split
        Exponents are subtracted in two digits side by side.

    Members
    -------
    acc : In(32)
        The accumulator, FP32.
    addend : In(addend_layout(pair))
        The addend.
    o : Out
        Aligned operands.
    """

    def __init__(self, pair: Products, split: bool = False) -> None:
        self._split = split
        super().__init__(
            {
                "acc": In(value_layout(FP32)),
                "addend": In(addend_layout(pair)),
                "o": Out(_aligned_layout(significand_bits(pair))),
            }
        )

    def build(self) -> Module:
        """Build the aligner."""
        m = Module()
        acc, addend, o = self.acc, self.addend, self.o
        hidden = named(m, "hidden", acc.exponent.any())
        special = named(m, "special", acc.exponent.all())
        live = named(m, "live", addend.nonzero & ~special)
        acc_exponent = named(m, "acc_exponent", Cat(acc.exponent[0] | ~hidden, acc.exponent[1:]))
        acc_significand: Value = named(m, "acc_significand", Cat(acc.mantissa, hidden))
        width = len(o.large)
        acc_significand = Cat(Const(0, width - _SIGNIFICAND), acc_significand)
        add_significand = Cat(Const(0, width - len(addend.significand)), addend.significand)

        # addend exponent - acc exponent - 1: its sign says which is larger, and its complement is
        # the distance the other way. Where the addend is larger the distance is one more, which is
        # a fixed shift of the accumulator.
        ahead = Signal(signed(11))
        other = ~Cat(acc_exponent, Const(0, 2))
        if self._split:
            wide = Cat(addend.exponent, addend.exponent[-1]).as_unsigned()
            other = Cat(other, Const(1, 1))
            m.d.comb += ahead.eq(select_sum(m, wide, other, Const(0, 1), "ahead", _EXPONENT_DIGIT))
        else:
            m.d.comb += ahead.eq(addend.exponent + other.as_signed())
        addend_larger = named(m, "addend_larger", ~ahead[-1])
        takes_addend = named(m, "takes_addend", addend_larger & live)
        distance = Mux(addend_larger, ahead[:10], ~ahead[:10])
        # Beyond 31, of wider operands 63 or 127, nothing is left above the sticky bit.
        near = (width + 1).bit_length()
        far = named(m, "far", distance[near:].any())
        distance = named(m, "distance", distance[:near])
        chosen = named(
            m,
            "chosen",
            Mux(
                addend_larger,
                Cat(Const(0, 1), acc_significand, Const(0, 1)),
                Cat(Const(0, 2), add_significand),
            ),
        )
        shifted, lost = shift_right(m, chosen, distance, "shifted")
        kept = shifted & (~far & live).replicate(len(shifted))
        sticky = Mux(far, chosen.any(), lost) & live
        subtract = named(m, "subtract", (acc.sign ^ addend.negative) & live)
        m.d.comb += [
            o.large.eq(Mux(takes_addend, add_significand, acc_significand)),
            o.small.eq(Cat(sticky, kept) ^ subtract.replicate(len(o.small))),
            o.subtract.eq(subtract),
            o.exponent.eq(Mux(takes_addend, addend.exponent[:9], acc_exponent)),
            o.negative.eq(Mux(takes_addend, addend.negative, acc.sign)),
            o.nan.eq(addend.nan | (special & acc.mantissa[-1])),
        ]
        return m


class Add(Component):
    """Second step: add or subtract the aligned significands; combinational.

    ``small`` may be the larger one if the exponents are equal or the accumulator is subnormal. The
    difference is negative then, and its complement, one less than its magnitude, goes on; the last
    step makes up for it.

    Parameters
    ----------
    bits
        Of an operand's significand.
    split
        The sum is made of digits side by side.

    Members
    -------
    i : In, o : Out
        Aligned operands, their sum.
    """

    def __init__(self, bits: int = _SIGNIFICAND, split: bool = False) -> None:
        self._split = split
        super().__init__(
            {"i": In(_aligned_layout(bits)), "o": Out(summed_layout(bits + _EXTRA + 1))}
        )

    def build(self) -> Module:
        """Build the adder."""
        m = Module()
        i, o = self.i, self.o
        large = Cat(Const(0, _EXTRA), i.large)
        total = named(
            m,
            "total",
            select_sum(m, large, i.small, i.subtract, "digit", _SUM_DIGIT)
            if self._split
            else (large + i.small + i.subtract)[: len(i.small) + 1],
        )
        carry = total[-1]
        borrowed = named(m, "borrowed", i.subtract & ~carry)
        m.d.comb += [
            o.magnitude.eq(Cat(total[:-1] ^ borrowed.replicate(len(i.small)), carry & ~i.subtract)),
            o.borrowed.eq(borrowed),
            o.subtract.eq(i.subtract),
            o.exponent.eq(i.exponent),
            o.negative.eq(i.negative),
            o.nan.eq(i.nan),
        ]
        return m
