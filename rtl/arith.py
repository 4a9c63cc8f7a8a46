"""Datapath helpers: pure functions from values to values, each tested exhaustively.

None of them holds state or knows a format by name; widths follow from their operands.
"""

from collections.abc import Callable, Sequence
from operator import or_
from typing import TypeVar

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, ValueLike

from m2xfp.formats import FloatElement

__all__ = [
    "element_window",
    "first_maximum",
    "leading_one",
    "maximum",
    "named",
    "one_hot_mux",
    "reduce_tree",
    "round_to_element",
    "saturating_difference",
    "shift_right",
]

T = TypeVar("T")


def reduce_tree(operation: Callable[[T, T], T], items: Sequence[T]) -> T:
    """Combine ``items`` by an associative ``operation`` in a balanced tree, order kept."""
    if not items:
        raise ValueError("reduce_tree needs at least one item")
    while len(items) > 1:
        pairs = [operation(*items[i : i + 2]) for i in range(0, len(items) - 1, 2)]
        items = pairs + list(items[2 * len(pairs) :])
    return items[0]


def named(m: Module, name: str, value: ValueLike) -> Signal:
    """Give ``value`` a name: a combinational signal of its width.

    A value that is used more than once needs one: Amaranth writes out an expression anew at each
    use.
    """
    value = Value.cast(value)
    signal = Signal(len(value), name=name)
    m.d.comb += signal.eq(value)
    return signal


def maximum(m: Module, values: Sequence[Value], name: str = "max") -> Value:
    """Return the largest of some unsigned values, by a balanced tree."""
    count = iter(range(len(values)))

    def larger(a: Value, b: Value) -> Value:
        return named(m, f"{name}_{next(count)}", Mux(a < b, b, a))

    return reduce_tree(larger, list(values))


def first_maximum(m: Module, keys: Sequence[Value]) -> list[Value]:
    """Return a one-hot list: 1 at the largest of the unsigned ``keys``, the lowest index of equals.

    A tournament: the right-hand side of a match wins only if it is strictly larger, and a leaf's
    bit is the product of the matches that it won.
    """

    def play(low: int, high: int) -> tuple[Value, list[Value]]:
        if high - low == 1:
            return keys[low], [Const(1, 1)]
        middle = (low + high + 1) // 2
        (left, left_won), (right, right_won) = play(low, middle), play(middle, high)
        right_wins = named(m, f"right_wins_{low}_{high - 1}", left < right)
        best = named(m, f"best_{low}_{high - 1}", Mux(right_wins, right, left))
        won = [~right_wins & bit for bit in left_won] + [right_wins & bit for bit in right_won]
        return best, won

    return play(0, len(keys))[1]


def one_hot_mux(select: Sequence[Value], values: Sequence[Value]) -> Value:
    """Return the value whose ``select`` bit is set: one-hot, or zero, which gives 0."""
    if len(select) != len(values):
        raise ValueError(f"{len(select)} select bits for {len(values)} values")
    return reduce_tree(
        or_, [value & bit.replicate(len(value)) for bit, value in zip(select, values, strict=True)]
    )


def leading_one(value: Value) -> Value:
    """Return the index of the highest set bit of ``value`` (0 for 0)."""
    width = max(1, (len(value) - 1).bit_length())
    index: Value = Const(0, width)
    for bit in range(len(value)):
        index = Mux(value[bit], Const(bit, width), index)
    return index


def saturating_difference(m: Module, a: Value, b: Value, width: int) -> Value:
    """Return min(a - b, 2^width - 1) for unsigned a >= b of equal length.

    Only the low ``width`` bits are subtracted; the upper parts are compared, since they say no more
    than whether the difference fits: it does iff upper(a) - upper(b) equals the borrow of the lower
    part. For a < b the result is not specified.
    """
    if len(a) != len(b):
        raise ValueError(f"operands of {len(a)} and {len(b)} bits")
    if len(a) <= width:
        return (a - b)[:width]
    low = named(m, "low_difference", a[:width] - b[:width])  # the top bit is the borrow
    less_borrow = Mux(low[width], (a[width:] - 1)[: len(a) - width], a[width:])
    fits = named(m, "difference_fits", less_borrow == b[width:])
    return low[:width] | (~fits).replicate(width)


def shift_right(m: Module, value: Value, amount: Value, width: int) -> tuple[Value, Value]:
    """Shift ``value``, placed at the top of ``width`` bits, right by ``amount``.

    Returns the ``width`` bits and a sticky bit: 1 if a set bit was shifted out.
    """
    if len(value) > width:
        raise ValueError(f"{len(value)} bits do not fit into {width}")
    bits: Value = Cat(Const(0, width - len(value)), value)
    lost: list[Value] = []
    for stage in range(len(amount)):
        step = min(1 << stage, width)
        lost.append(amount[stage] & bits[:step].any())
        shifted = Mux(amount[stage], Cat(bits[step:], Const(0, step)), bits)
        bits = named(m, f"shifted_{stage}", shifted)
    return bits, reduce_tree(or_, lost)


def element_window(element: FloatElement) -> tuple[int, int]:
    """Return (integer bits, fraction bits) of the fixed-point view that decides every rounding.

    Values below 2^(emax + 1) need emax + 1 integer bits; the guard bit of the smallest step, half
    of 2^(1 - bias - mantissa_bits), needs bias + mantissa_bits fraction bits. What lies below is
    sticky.
    """
    return element.emax + 1, element.bias + element.mantissa_bits


def round_to_element(m: Module, fixed: Value, sticky: Value, element: FloatElement) -> Value:
    """Round a fixed-point magnitude to ``element``: nearest, ties to the even code, saturating.

    Parameters
    ----------
    m
        The module that takes the named intermediate values.
    fixed
        Unsigned, in the view of ``element_window``: weight of bit 0 is half the smallest step.
    sticky
        1 if the exact value is larger than ``fixed``, by less than one unit of bit 0.
    element
        The target.

    Returns
    -------
    The magnitude code, ``element.bits - 1`` wide.

    Notes ----- For each binade the mantissa, the guard bit and the rest are fixed slices of
    ``fixed``, chosen by the leading one. Exponent and mantissa stand side by side, so that the
    carry of the rounding moves into the next binade by itself. Source: IEEE 754-2019, 4.3.1
    (roundTiesToEven).
    """
    if len(fixed) != sum(element_window(element)):
        raise ValueError(
            f"{len(fixed)} bits for {element.name}, which takes {sum(element_window(element))}"
        )
    mantissa_bits = element.mantissa_bits
    width = element.bits - 1

    def binade(field: int) -> Value:
        """Rest, guard bit and truncated code if the exponent field is ``field``."""
        step = max(field, 1)  # index of the mantissa's last bit; the guard bit is below it
        mantissa = fixed[step : step + mantissa_bits]
        rest = sticky | fixed[: step - 1].any()
        return Cat(rest, fixed[step - 1], mantissa, Const(field, width - mantissa_bits))

    chosen = binade(0)
    for field in range(1, element.emax + element.bias + 1):
        reached = fixed[
            mantissa_bits + field :
        ].any()  # the leading one is in this binade or higher
        chosen = Mux(reached, binade(field), chosen)
    chosen = named(m, f"{element.name}_truncated", chosen)
    rest, guard, code = chosen[0], chosen[1], chosen[2:]
    carried = named(m, f"{element.name}_rounded", code + (guard & (rest | code[0])))
    return Mux(carried > element.max_code, Const(element.max_code, width), carried[:width])
