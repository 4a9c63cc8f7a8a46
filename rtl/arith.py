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
    "jam",
    "leading_one",
    "maximum",
    "named",
    "one_hot_mux",
    "reduce_tree",
    "round_at_distance",
    "round_to_element",
    "saturating_difference",
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


def first_maximum(m: Module, keys: Sequence[Value]) -> tuple[Value, list[Value]]:
    """Return the largest of the unsigned ``keys`` and a one-hot list: where, the first of equals.

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

    return play(0, len(keys))


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
    """Return min(a - b, 2^width - 1) for unsigned a >= b of equal length; unspecified for a < b.

    Only the low ``width`` bits are subtracted. The upper parts say whether the difference fits:
    they must be equal, or one apart if the lower parts borrow. Since neither upper(b) <= upper(a)
    nor, with a borrow, upper(b) <= upper(a) - 1 can fail, "equal" is the same as "has all its
    bits", which takes half the gates of a comparison.
    """
    if len(a) != len(b):
        raise ValueError(f"operands of {len(a)} and {len(b)} bits")
    if len(a) <= width:
        return (a - b)[:width]
    low = named(m, "low_difference", a[:width] - b[:width])  # the top bit is the borrow
    upper = b[width:]
    same = (upper | ~a[width:]).all()
    one_less = (upper | ~(a[width:] - 1)[: len(upper)]).all()
    fits = named(m, "difference_fits", Mux(low[width], one_less, same))
    return low[:width] | (~fits).replicate(width)


def jam(value: Value, width: int) -> Value:
    """Return the top ``width`` bits of ``value``, the lowest of them ORed with all that is cut off.

    Rounding of the result equals rounding of ``value`` wherever the lowest bit is below the guard
    bit: it then stands for "and something more".
    """
    cut = len(value) - width
    if cut <= 0:
        return value
    return Cat(value[: cut + 1].any(), value[cut + 1 :])


def element_window(element: FloatElement) -> tuple[int, int]:
    """Return (integer bits, fraction bits) of the fixed-point view that decides every rounding.

    Values below 2^(emax + 1) need emax + 1 integer bits; the guard bit of the smallest step, half
    of 2^(1 - bias - mantissa_bits), needs bias + mantissa_bits fraction bits. What lies below is
    sticky.
    """
    return element.emax + 1, element.bias + element.mantissa_bits


def round_to_element(m: Module, significand: Value, distance: int, element: FloatElement) -> Value:
    """Round a significand that stands a known distance down: nearest, ties to even, saturating.

    Parameters
    ----------
    m
        The module that takes the named intermediate values.
    significand
        h.m, any width, ``jam``-med below the guard bit.
    distance
        The value is h.m * 2^(emax - distance).
    element
        The target.

    Returns
    -------
    The magnitude code, ``element.bits - 1`` wide.

    Notes ----- In the fixed-point view of ``element_window`` the mantissa, the guard bit and the
    rest are fixed slices for each binade, chosen by the leading one. Exponent and mantissa stand
    side by side, so that the carry of the rounding moves into the next binade by itself. Source:
    IEEE 754-2019, 4.3.1 (roundTiesToEven).
    """
    mantissa_bits = element.mantissa_bits
    width = element.bits - 1
    window = sum(element_window(element))
    # The window, from half the smallest step up; `tail` is what lies below it.
    below = distance + len(significand) - window
    tail = significand[: max(below, 0)].any()
    fixed = Cat(Const(0, max(-below, 0)), significand[max(below, 0) :], Const(0, distance))[:window]

    def binade(field: int) -> Value:
        """Rest, guard bit and truncated code if the exponent field is ``field``."""
        step = max(field, 1)  # index of the mantissa's last bit; the guard bit is below it
        mantissa = fixed[step : step + mantissa_bits]
        rest = tail | fixed[: step - 1].any()
        return Cat(rest, fixed[step - 1], mantissa, Const(field, width - mantissa_bits))

    chosen = binade(0)
    for field in range(1, element.emax + element.bias + 1 - distance):
        reached = fixed[
            mantissa_bits + field :
        ].any()  # the leading one is in this binade or higher
        chosen = Mux(reached, binade(field), chosen)
    chosen = named(m, f"truncated_{distance}", chosen)
    rest, guard, code = chosen[0], chosen[1], chosen[2:]
    carried = named(m, f"carried_{distance}", code + (guard & (rest | code[0])))
    return Mux(carried > element.max_code, Const(element.max_code, width), carried[:width])


def round_at_distance(
    m: Module, significand: Value, distance: Value, element: FloatElement
) -> Value:
    """Round h.m * 2^(emax - distance) to ``element``: nearest, ties to even, saturating.

    Rounds for each distance that can give a non-zero code and then chooses: with constant shifts
    most of the rounding vanishes, which costs less than a shifter before one rounding. From the
    width of ``element_window`` on, a value is below half the smallest step and gives zero.
    """
    window = sum(element_window(element))
    choices = [(distance == d, round_to_element(m, significand, d, element)) for d in range(window)]
    return one_hot_mux(*zip(*choices, strict=True))
