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
    "near_difference",
    "one_hot_mux",
    "reduce_tree",
    "round_up",
    "saturating_difference",
    "sticky_or",
    "truncate_to_element",
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


def _of_one_length(values: Sequence[Value]) -> int:
    """Return the common length of some values; ValueError if there is none."""
    if len({len(value) for value in values}) != 1:
        raise ValueError(f"values of {[len(value) for value in values]} bits; all must be alike")
    return len(values[0])


def maximum(m: Module, values: Sequence[Value], name: str = "max") -> Value:
    """Return the largest of some unsigned values of equal length.

    The maximum is found bit by bit, from the top down. All values are candidates at first: if any
    candidate has the bit, so has the maximum, and the candidates without it drop out. That takes
    few small gates a bit and value; a tree of comparisons and choices takes twice the area. Two
    bits make a step, since each search waits for all values: the lower bit is looked for under both
    assumptions about the upper one. If no candidate has the upper bit, all that have the lower one
    count, otherwise those that have both.
    """
    width = _of_one_length(values)
    columns = [
        named(m, f"{name}_{bit}_column", Cat(value[bit] for value in values))
        for bit in range(width)
    ]
    candidates: Value = Const((1 << len(values)) - 1, len(values))
    largest: list[Value] = []
    if width % 2:
        found = named(m, f"{name}_{width - 1}", columns[-1].any())
        candidates = named(
            m, f"{name}_{width - 1}_remaining", columns[-1] | ~found.replicate(len(values))
        )
        largest.append(found)
    for bit in reversed(range(0, width - 1, 2)):
        upper, lower = columns[bit + 1], columns[bit]
        found = named(m, f"{name}_{bit + 1}", (candidates & upper).any())
        both = named(m, f"{name}_{bit}_both", (candidates & upper & lower).any())
        alone = named(m, f"{name}_{bit}_alone", (candidates & lower).any())
        found_lower = named(m, f"{name}_{bit}", Mux(found, both, alone))
        out = Mux(found, ~upper, 0) | Mux(found_lower, ~lower, 0)
        candidates = named(m, f"{name}_{bit}_remaining", candidates & ~out)
        largest += [found, found_lower]
    return Cat(reversed(largest))


def first_maximum(m: Module, values: Sequence[Value], name: str = "max") -> tuple[Value, Value]:
    """Return the largest of some unsigned values and, one-hot, which it is: the first of equals.

    Bit by bit as in ``maximum``, a bit a step: few values of few bits take few steps.
    """
    candidates: Value = Const((1 << len(values)) - 1, len(values))
    largest: list[Value] = []
    for bit in reversed(range(_of_one_length(values))):
        column = named(m, f"{name}_{bit}_column", Cat(value[bit] for value in values))
        found = named(m, f"{name}_{bit}", (candidates & column).any())
        candidates = named(m, f"{name}_{bit}_remaining", candidates & ~Mux(found, ~column, 0))
        largest.append(found)
    first = named(m, f"{name}_first", (candidates & -candidates)[: len(values)])
    return Cat(reversed(largest)), first


def one_hot_mux(select: Value | Sequence[Value], values: Sequence[Value]) -> Value:
    """Return the value whose ``select`` bit is set: one-hot, or zero, which gives 0."""
    if len(select) != len(values):
        raise ValueError(f"{len(select)} select bits for {len(values)} values")
    return reduce_tree(or_, [Mux(bit, value, 0) for bit, value in zip(select, values, strict=True)])


def leading_one(value: Value) -> Value:
    """Return the index of the highest set bit of ``value`` (0 for 0)."""
    width = max(1, (len(value) - 1).bit_length())
    index: Value = Const(0, width)
    for bit in range(len(value)):
        index = Mux(value[bit], Const(bit, width), index)
    return index


def near_difference(m: Module, a: Value, b: Value, width: int) -> tuple[Value, Value]:
    """Return (a - b) mod 2^width and whether that is a - b, for unsigned a >= b of equal length.

    Only the low ``width`` bits are subtracted. The upper parts say whether the difference fits:
    they must be equal, or one apart if the lower parts borrow. Since neither upper(b) <= upper(a)
    nor, with a borrow, upper(b) <= upper(a) - 1 can fail, "equal" is the same as "has all its
    bits", which takes half the gates of a comparison.
    """
    if len(a) != len(b):
        raise ValueError(f"operands of {len(a)} and {len(b)} bits")
    if len(a) <= width:
        return (a - b)[:width], Const(1, 1)
    low = named(m, "low_difference", a[:width] - b[:width])  # the top bit is the borrow
    upper = b[width:]
    same = (upper | ~a[width:]).all()
    one_less = (upper | ~(a[width:] - 1)[: len(upper)]).all()
    return low[:width], named(m, "difference_fits", Mux(low[width], one_less, same))


def saturating_difference(m: Module, a: Value, b: Value, width: int) -> Value:
    """Return min(a - b, 2^width - 1) for unsigned a >= b of equal length; unspecified for a < b."""
    low, fits = near_difference(m, a, b, width)
    return low | (~fits).replicate(width)


def sticky_or(value: Value, width: int) -> Value:
    """Return the top ``width`` bits of ``value``, the lowest of them ORed with all that is cut off.

    That bit is a sticky bit: rounding of the result equals rounding of ``value`` wherever it is
    below the guard bit, for it then stands for "and something more".
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


def truncate_to_element(significand: Value, distance: int, element: FloatElement) -> Value:
    """Cut h.m * 2^(emax - distance) down to a magnitude code, with what rounding it needs.

    Parameters
    ----------
    significand
        h.m, any width; cut by ``sticky_or`` below the guard bit at most.
    distance
        How far it stands below the element's largest power of two.
    element
        The target.

    Returns
    -------
    From bit 0: whether anything but zero follows the guard bit, the guard bit, and the magnitude
    code rounded towards zero, ``element.bits - 1`` wide.

    Notes
    -----
    In the fixed-point view of ``element_window`` the mantissa, the guard bit and the rest are fixed
    slices for each binade, chosen by the leading one.
    """
    mantissa_bits = element.mantissa_bits
    width = element.bits - 1
    window = sum(element_window(element))
    # The window, from half the smallest step up; `tail` is what lies below it.
    below = distance + len(significand) - window
    tail = significand[: max(below, 0)].any()
    fixed = Cat(Const(0, max(-below, 0)), significand[max(below, 0) :], Const(0, distance))[:window]

    def binade(field: int) -> Value:
        step = max(field, 1)  # index of the mantissa's last bit; the guard bit is below it
        mantissa = fixed[step : step + mantissa_bits]
        rest = tail | fixed[: step - 1].any()
        return Cat(rest, fixed[step - 1], mantissa, Const(field, width - mantissa_bits))

    chosen = binade(0)
    for field in range(1, element.emax + element.bias + 1 - distance):
        reached = fixed[mantissa_bits + field :].any()  # the leading one is here or higher
        chosen = Mux(reached, binade(field), chosen)
    return chosen


def round_up(m: Module, truncated: Value, ties: str = "even") -> Value:
    """Round what ``truncate_to_element`` gives: to nearest, one bit longer.

    Ties go to the ``even`` code or ``away`` from zero.

    Exponent and mantissa stand side by side, so that a carry moves into the next binade by itself.
    Source: IEEE 754-2019, 4.3.1 (roundTiesToEven).
    """
    truncated = named(m, "truncated", truncated)
    rest, guard, code = truncated[0], truncated[1], truncated[2:]
    if ties == "away":
        return named(m, "rounded", code + guard)
    return named(m, "rounded", code + (guard & (rest | code[0])))
