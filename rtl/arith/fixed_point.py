"""Fixed-point helpers of the MAC path: sums of signed numbers, shifts, leading zeros.

Pure functions like those of ``arith``, each tested exhaustively.
"""

from collections.abc import Sequence
from operator import add, or_

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from m2xfp.rtl.arith.datapath import named, reduce_tree

__all__ = [
    "carry_save",
    "leading_zeros",
    "normalise",
    "select_sum",
    "shift_right",
    "signed_bits",
    "signed_total",
]


def signed_bits(low: int, high: int) -> int:
    """Return the bits that hold every integer in low..high in two's complement."""
    return max((-low - 1 if low < 0 else 0).bit_length(), max(high, 0).bit_length()) + 1


def signed_total(values: Sequence[Value], width: int) -> Value:
    """Return the sum of ``values`` modulo 2^width, as an unsigned value.

    Signed values, by their Amaranth shape, are not sign-extended, which would cost an adder in
    every higher column: their sign bit of weight -2^n is inverted, which adds 2^n, and the constant
    sum of these is taken off again. Synthesis builds one compressor tree from the sum.
    """
    terms: list[Value] = []
    offset = 0
    for value in values:
        if value.shape().signed:
            terms.append(Cat(value[:-1], ~value[-1]))
            offset += 1 << (len(value) - 1)
        else:
            terms.append(value)
    constant = -offset % (1 << width)
    return (reduce_tree(add, terms) + constant)[:width] if constant else reduce_tree(add, terms)


def carry_save(m: Module, terms: Sequence[Value], name: str) -> tuple[Value, Value]:
    """Return two numbers whose sum is that of the terms, modulo 2 to the length of the first.

    Full adders of three terms each, one after the other, which pass no carry on.
    """
    size = len(terms[0])
    left = [term[:size] for term in terms]
    while len(left) > 2:
        a, b, c, *others = left
        index = len(left)
        total = named(m, f"{name}_sum_{index}", a ^ b ^ c)
        carried = named(m, f"{name}_carry_{index}", (a & b) | (c & (a ^ b)))
        left = [*others, total, Cat(Const(0, 1), carried[:-1])]
    first, second = left
    return first, second


def select_sum(m: Module, a: Value, b: Value, carry: Value, name: str, digit: int) -> Value:
    """Return a + b + carry of two unsigned numbers of equal length, one bit longer.

    Digits of ``digit`` bits are added side by side, each but the lowest for both carries that may
    come from below: a long sum in the time of a short one, whatever synthesis makes of an adder.
    """
    parts: list[Value] = []
    for n in range(0, len(a), digit):
        x, y = a[n : n + digit], b[n : n + digit]

        def total(carry_in: Value, x: Value = x, y: Value = y) -> Value:
            return (Cat(carry_in, x) + Cat(carry_in, y))[1:]

        if n == 0:
            chosen = named(m, f"{name}_{n}", total(carry))
        else:
            without = named(m, f"{name}_{n}_without", (x + y)[: len(x) + 1])
            with_one = named(m, f"{name}_{n}_with", total(Const(1, 1)))
            chosen = named(m, f"{name}_{n}", Mux(carry, with_one, without))
        parts.append(chosen[:-1])
        carry = chosen[-1]
    return Cat(*parts, carry)


def shift_right(
    m: Module, value: Value, amount: Value, name: str, fill: Value | None = None
) -> tuple[Value, Value]:
    """Shift ``value`` right by ``amount``; return it with a sticky bit: 1 if a set bit was lost.

    ``fill`` comes in from the left, 0 if None.
    """
    bits = value
    lost: list[Value] = []
    for stage in range(len(amount)):
        step = min(1 << stage, len(value))
        lost.append(amount[stage] & bits[:step].any())
        filler = Const(0, step) if fill is None else fill.replicate(step)
        bits = named(m, f"{name}_{step}", Mux(amount[stage], Cat(bits[step:], filler), bits))
    return bits, named(m, f"{name}_sticky", reduce_tree(or_, lost))


def leading_zeros(m: Module, value: Value, name: str) -> tuple[Value, Value]:
    """Return the number of zeros above the highest set bit, and whether there is a set bit.

    Of zero the number is not specified. By halves: the count of the upper half if that has a set
    bit, otherwise that of the lower half, and one more bit that says which.
    """
    width = 1 << max(len(value) - 1, 0).bit_length()

    def count(bits: Value, top: int) -> tuple[Value, Value]:
        if len(bits) == 1:
            return Const(0, 0), bits
        half = len(bits) // 2
        (low, low_any), (high, high_any) = count(bits[:half], top), count(bits[half:], top + half)
        found = named(m, f"{name}_any_{top}_{len(bits)}", low_any | high_any)
        zeros = Signal(half.bit_length(), name=f"{name}_{top}_{len(bits)}")
        m.d.comb += zeros.eq(Cat(Mux(high_any, high, low), ~high_any))
        return zeros, found

    zeros, found = count(Cat(Const(0, width - len(value)), value), 0)
    return zeros, found


def normalise(
    m: Module, value: Value, amount: Value, name: str, fill: Value | None = None
) -> Value:
    """Shift ``value`` left by ``amount`` within its width; ``fill`` comes in from the right."""
    for stage in reversed(range(len(amount))):
        step = min(1 << stage, len(value))
        filler = Const(0, step) if fill is None else fill.replicate(step)
        value = named(
            m, f"{name}_{step}", Mux(amount[stage], Cat(filler, value)[: len(value)], value)
        )
    return value
