"""Every datapath helper against plain Python, for all operands of small widths."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import product
from operator import add

import pytest
from amaranth.hdl import Module, Signal, Value
from amaranth.sim import Simulator

from m2xfp.formats import E2M1, E2M3, E3M2, E4M3, E5M2, M2XFP_ACT, FloatElement
from m2xfp.rtl.arith import datapath as arith
from m2xfp.rtl.parts.elements import refined_element

ELEMENTS = [E2M1, E2M3, E3M2, E4M3, E5M2, refined_element(M2XFP_ACT)]


def evaluate(
    build: Callable[..., Iterable[Value]], widths: list[int], operands: Iterable[tuple[int, ...]]
) -> Iterable[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield operands and results of the outputs that ``build(m, *signals)`` returns."""
    m = Module()
    inputs = [Signal(width, name=f"in_{n}") for n, width in enumerate(widths)]
    values = [Value.cast(value) for value in build(m, *inputs)]
    outputs = [Signal(len(value), name=f"out_{n}") for n, value in enumerate(values)]
    m.d.comb += [output.eq(value) for output, value in zip(outputs, values, strict=True)]
    seen = []

    async def bench(ctx):
        for operand in operands:
            for signal, value in zip(inputs, operand, strict=True):
                ctx.set(signal, value)
            seen.append((operand, tuple(ctx.get(output) for output in outputs)))

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
    assert seen
    return seen


def every(*widths: int) -> Iterable[tuple[int, ...]]:
    return product(*(range(1 << width) for width in widths))


@pytest.mark.parametrize("count", range(1, 10))
def test_reduce_tree_keeps_order_and_is_balanced(count: int) -> None:
    letters = "abcdefghi"[:count]
    assert arith.reduce_tree(add, list(letters)) == letters
    depths = arith.reduce_tree(lambda a, b: max(a, b) + 1, [0] * count)
    assert depths == (count - 1).bit_length()


def test_reduce_tree_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one"):
        arith.reduce_tree(add, [])


def test_named() -> None:
    def build(m, a, b):
        value = arith.named(m, "sum", a + b)
        assert value.name == "sum"
        return [value]

    for (a, b), (total,) in evaluate(build, [3, 2], every(3, 2)):
        assert total == a + b


@pytest.mark.parametrize(("count", "width"), [(1, 3), (4, 3), (5, 2), (9, 1), (3, 4), (2, 5)])
def test_maximum(count: int, width: int) -> None:
    def build(m, *values):
        return [arith.maximum(m, values)]

    for values, (largest,) in evaluate(build, [width] * count, every(*[width] * count)):
        assert largest == max(values)


@pytest.mark.parametrize(("count", "width"), [(1, 3), (4, 3), (5, 2), (8, 1), (3, 4), (2, 5)])
def test_first_maximum(count: int, width: int) -> None:
    def build(m, *values):
        return arith.first_maximum(m, values)

    for values, (largest, first) in evaluate(build, [width] * count, every(*[width] * count)):
        assert largest == max(values)
        assert first == 1 << values.index(max(values))


@pytest.mark.parametrize("function", [arith.maximum, arith.first_maximum])
def test_maximum_of_unlike_lengths(function) -> None:
    with pytest.raises(ValueError, match="3, 2"):
        function(None, [Signal(3), Signal(2)])


def test_one_hot_mux() -> None:
    def build(m, select, *values):
        return [arith.one_hot_mux(select, values), arith.one_hot_mux(list(select), values)]

    operands = [(s, *v) for s in (0, 1, 2, 4) for v in every(3, 3, 3)]
    for (select, *values), results in evaluate(build, [3, 3, 3, 3], operands):
        expected = values[select.bit_length() - 1] if select else 0
        assert results == (expected, expected)


def test_one_hot_mux_of_unlike_counts() -> None:
    with pytest.raises(ValueError, match="2 select bits for 3 values"):
        arith.one_hot_mux(Signal(2), [Signal(4)] * 3)


@pytest.mark.parametrize("width", range(1, 9))
def test_leading_one(width: int) -> None:
    for (value,), (index,) in evaluate(lambda m, v: [arith.leading_one(v)], [width], every(width)):
        assert index == max(value.bit_length() - 1, 0)


@pytest.mark.parametrize("width", range(1, 7))
def test_differences(width: int) -> None:
    def build(m, a, b):
        return [
            *arith.near_difference(m, a, b, width),
            arith.saturating_difference(m, a, b, width),
        ]

    operands = [(a, b) for a, b in every(5, 5) if a >= b]
    top = (1 << width) - 1
    for (a, b), (low, fits, saturated) in evaluate(build, [5, 5], operands):
        assert (low, fits) == ((a - b) & top, a - b <= top)
        assert saturated == min(a - b, top)


@pytest.mark.parametrize("function", [arith.near_difference, arith.saturating_difference])
def test_differences_of_unlike_lengths(function) -> None:
    with pytest.raises(ValueError, match="4 and 5 bits"):
        function(None, Signal(4), Signal(5), 2)


@pytest.mark.parametrize("width", range(1, 9))
def test_sticky_or(width: int) -> None:
    cut = max(7 - width, 0)
    for (value,), (kept,) in evaluate(lambda m, v: [arith.sticky_or(v, width)], [7], every(7)):
        assert kept == (value >> cut) | (value % (1 << cut) != 0)


def grid(element: FloatElement) -> list[Fraction]:
    """Return the values of all magnitude codes and of the next one, as if none were special."""
    values = []
    for code in range((1 << (element.bits - 1)) + 1):
        exponent, mantissa = divmod(code, 1 << element.mantissa_bits)
        hidden = 1 if exponent else 0
        fraction = Fraction(mantissa, 1 << element.mantissa_bits)
        values.append((hidden + fraction) * Fraction(2) ** (max(exponent, 1) - element.bias))
    return values


def nearest_even(value: Fraction, values: list[Fraction]) -> int:
    """Return the code nearest to ``value``, the even one of two."""
    return min(range(len(values)), key=lambda code: (abs(values[code] - value), code % 2))


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
def test_element_window(element: FloatElement) -> None:
    integer_bits, fraction_bits = arith.element_window(element)
    finite = grid(element)[: element.max_code + 1]
    assert Fraction(2) ** (integer_bits - 1) <= finite[-1] < Fraction(2) ** integer_bits
    assert Fraction(2) ** -fraction_bits == finite[1] / 2


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize("extra", [-1, 0, 3])
def test_rounding(element: FloatElement, extra: int) -> None:
    """Every significand with and without hidden one, every distance and some beyond the window."""
    width = 1 + element.mantissa_bits + extra
    distances = range(sum(arith.element_window(element)) + 2)
    values = grid(element)

    def build(m, significand):
        for distance in distances:
            truncated = arith.truncate_to_element(significand, distance, element)
            yield from (truncated, arith.round_up(m, truncated))

    for (significand,), results in evaluate(build, [width], every(width)):
        for distance, truncated, rounded in zip(
            distances, results[::2], results[1::2], strict=True
        ):
            value = Fraction(significand, 1 << (width - 1)) * Fraction(2) ** (
                element.emax - distance
            )
            code = max(code for code, low in enumerate(values) if low <= value)
            half = (values[code] + values[min(code + 1, len(values) - 1)]) / 2
            assert truncated >> 2 == code
            assert truncated >> 1 & 1 == (value >= half)
            assert truncated & 1 == (value not in (values[code], half))
            assert rounded == nearest_even(value, values)
