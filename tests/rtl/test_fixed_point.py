"""The fixed-point helpers of the MAC path, exhaustively at small widths."""

from itertools import product

import pytest
from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.sim import Simulator

from m2xfp.rtl.arith.fixed_point import (
    carry_save,
    leading_zeros,
    normalise,
    select_sum,
    shift_right,
    signed_bits,
    signed_total,
)


def truth_table(inputs: list[Signal], m: Module, output: Value) -> dict[tuple[int, ...], int]:
    """Return the output for every pattern of the inputs."""
    result = Signal(len(output))
    m.d.comb += result.eq(output)
    table = {}

    async def bench(ctx) -> None:
        for values in product(*(range(1 << len(signal)) for signal in inputs)):
            for signal, value in zip(inputs, values, strict=True):
                ctx.set(signal.as_unsigned(), value)
            table[values] = ctx.get(result)

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
    return table


def as_signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def test_signed_bits() -> None:
    for bound in range(200):
        bits = signed_bits(-bound, bound)
        assert bound <= (1 << (bits - 1)) - 1
        assert bits == 1 or bound > (1 << (bits - 2)) - 1
    assert signed_bits(-8, 7) == 4


@pytest.mark.parametrize("width", [5, 7])
def test_signed_total(width: int) -> None:
    a, b, c = Signal(signed(3)), Signal(4), Signal(signed(2))
    m = Module()
    for values, found in truth_table([a, b, c], m, signed_total([a, b, c], width)[:width]).items():
        wanted = as_signed(values[0], 3) + values[1] + as_signed(values[2], 2)
        assert found == wanted % (1 << width)


@pytest.mark.parametrize(("bits", "digit"), [(1, 1), (4, 2), (5, 2), (5, 3), (4, 7)])
def test_select_sum(bits: int, digit: int) -> None:
    a, b, carry = Signal(bits), Signal(bits), Signal()
    m = Module()
    total = select_sum(m, a, b, carry, "s", digit)
    for values, found in truth_table([a, b, carry], m, total).items():
        assert found == sum(values)


@pytest.mark.parametrize(("bits", "terms"), [(1, 3), (4, 3), (3, 4), (2, 5)])
def test_carry_save(bits: int, terms: int) -> None:
    given = [Signal(bits, name=f"term_{n}") for n in range(terms)]
    m = Module()
    first, second = carry_save(m, given, "saved")
    for values, found in truth_table(given, m, Cat(first, second[:bits])).items():
        mask = (1 << bits) - 1
        assert ((found & mask) + (found >> bits)) & mask == sum(values) & mask


@pytest.mark.parametrize("filled", [False, True])
def test_shift_right(filled: bool) -> None:
    value, amount = Signal(6), Signal(3)
    m = Module()
    fill = value[-1] if filled else None
    bits, sticky = shift_right(m, value, amount, "s", fill)
    for (v, n), found in truth_table([value, amount], m, Cat(bits, sticky)).items():
        wide = as_signed(v, 6) if filled else v
        assert found & 63 == (wide >> n) & 63
        assert found >> 6 == (wide & ((1 << n) - 1) != 0)


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 9])
def test_leading_zeros(bits: int) -> None:
    value = Signal(bits)
    m = Module()
    zeros, found = leading_zeros(m, value, "z")
    for (v,), out in truth_table([value], m, Cat(found, zeros)).items():
        assert out & 1 == (v != 0)
        if v:
            assert out >> 1 == bits - v.bit_length()


@pytest.mark.parametrize("filled", [False, True])
def test_normalise(filled: bool) -> None:
    value, amount, fill = Signal(6), Signal(3), Signal()
    m = Module()
    shifted = normalise(m, value, amount, "n", fill if filled else None)
    for (v, n, f), found in truth_table([value, amount, fill], m, shifted).items():
        ones = (1 << n) - 1 if f and filled else 0
        assert found == (v << n | ones) & 63
