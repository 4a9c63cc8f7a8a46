"""Rounding of values to the elements of their group, and of its top elements to finer ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import BlockFormat, FloatElement, InputType
from m2xfp.rtl.arith.datapath import (
    element_window,
    first_maximum,
    named,
    near_difference,
    one_hot_mux,
    round_up,
    sticky_or,
    truncate_to_element,
)
from m2xfp.rtl.parts.elements import magnitude_element, refined_element
from m2xfp.rtl.parts.group_scale import lowest_reference, normalise_bits
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.scale_rules import FLOOR, ScaleRule
from m2xfp.rtl.verilog.component import Component

__all__ = [
    "ElementRounder",
    "Refiner",
    "Target",
    "TopElement",
    "stored_type",
    "top_layout",
]


@dataclass(frozen=True)
class Target:
    """What values are rounded to.

    Members
    -------
    kind
        Type of the values, as ``stored_type`` gives it.
    block
        The target format.
    rule
        The rule of its scale.
    """

    kind: InputType
    block: BlockFormat
    rule: ScaleRule = FLOOR

    @property
    def window(self) -> int:
        """Bits of the fixed-point view that decides every rounding."""
        return sum(element_window(refined_element(self.block)))

    @property
    def pair(self) -> bool:
        """Whether a bit a subgroup halves the scale."""
        return self.block.metadata.name == "pair"

    @property
    def distances(self) -> int:
        """Distances below the reference at which values do not all round to zero."""
        return self.window + self.rule.head + self.pair

    @property
    def subnormal_distances(self) -> range:
        """Distances at which a value can be subnormal and not round to zero."""
        lowest = lowest_reference(self.kind, magnitude_element(self.block), self.rule)
        return range(lowest, self.distances)

    @property
    def place_layout(self) -> data.StructLayout:
        """Fields of a value relative to its group.

        ``distance`` is how far the exponent field is below the reference, and right if ``near``.
        ``fraction`` is the mantissa, normalised with its group if that is subnormal; ``lead`` is
        then the bit above it (float16 only). If its last bit is a sticky bit, the window's last bit
        is still apart from that.
        """
        lead = 1 if normalise_bits(self.kind) else 0
        # What is normalised can lie in the head, one place higher.
        fraction = _deciding_bits(self.block) + lead * (1 + self.rule.head)
        return data.StructLayout(
            {
                "fraction": unsigned(min(self.kind.mantissa_bits, fraction)),
                "lead": unsigned(lead),
                "distance": unsigned((self.distances - 1).bit_length()),
                "near": unsigned(1),
            }
        )


def _deciding_bits(block: BlockFormat) -> int:
    """Return the mantissa bits that decide every code, the last one a sticky bit.

    A subnormal is at least one step below the reference where the element has exponents, so the
    significand's lowest bit that can be a guard bit is the window's last at distance 1: window - 2
    mantissa bits, and a sticky bit below them. At distance 0 the hidden bit is 1, and the guard
    bits lie higher. Without exponents the guard bit is always the window's last, and subnormals can
    stand one place higher, in a pair of half the scale two.
    """
    element = refined_element(block)
    window = sum(element_window(element))
    if element.exponent_bits:
        return window - 1
    return window + 1 + (block.metadata.name == "pair")


def stored_type(kind: InputType, block: BlockFormat) -> InputType:
    """Return the type that values are narrowed to on arrival by ``sticky_or``; no result changes.

    float16 is normalised after the store and keeps its mantissa.
    """
    if normalise_bits(kind):
        return kind
    return replace(kind, mantissa_bits=min(kind.mantissa_bits, _deciding_bits(block)))


def round_place(
    m: Module,
    target: Target,
    place: data.View,
    subnormal: Mapping[int, Value],
    element: FloatElement,
    halved: Value | None = None,
) -> Value:
    """Round a placed value to a magnitude code: nearest; one bit longer.

    A normal value is 1.fraction * 2^(emax - distance). A subnormal one, exponent field 0, has the
    step of field 1 and no hidden one: lead.fraction * 2^(emax - distance + 1). Both are cut to size
    for each distance, where the shifts are constants, and the one that applies is rounded. From
    the width of ``element_window`` on, all are below half the smallest step and give zero. What is
    in the head of the scale's rule is above all codes.

    ``subnormal`` tells for some distances if values there are subnormal. That is the case where the
    reference equals the distance, for all lanes alike, so no lane looks for a zero exponent. What
    is ``halved`` counts twice.
    """
    places: list[tuple[Value, Value]] = []

    def add(name: str, here: Value, significand: Value, distance: int) -> None:
        """Add a case, and the one that is halved."""
        cut = _truncate(significand, distance, element)
        if halved is None:
            places.append((here, cut))
            return
        places.append((named(m, f"{name}_whole", here & ~halved), cut))
        twice = _truncate(significand, distance - 1, element)
        places.append((named(m, f"{name}_halved", here & halved), twice))

    significand = Cat(place.fraction, Const(1, 1))
    without = Cat(place.fraction, place.lead, Const(0, 1 - len(place.lead)))
    reach = sum(element_window(element)) + target.rule.head + target.pair
    for distance in range(reach):
        here = named(m, f"at_{distance}", place.distance == distance)
        below = distance - target.rule.head  # the element's largest binade
        if distance in subnormal:
            is_small = named(m, f"subnormal_at_{distance}", here & subnormal[distance])
            is_normal = named(m, f"normal_at_{distance}", here & ~subnormal[distance])
            add(f"subnormal_at_{distance}", is_small, without, below - 1)
            add(f"normal_at_{distance}", is_normal, significand, below)
        else:
            add(f"at_{distance}", here, significand, below)
    rounded = round_up(m, one_hot_mux(*zip(*places, strict=True)), target.block.ties)
    return named(m, "magnitude_or_zero", Mux(place.near, rounded, 0))


def _truncate(significand: Value, distance: int, element: FloatElement) -> Value:
    """Return ``truncate_to_element`` at any distance; what is above all codes gives the largest."""
    if distance >= 0:
        return truncate_to_element(significand, distance, element)
    width = len(significand)
    over = significand[max(width + distance, 0) :].any()
    shifted = (significand << -distance)[:width]
    most = Cat(Const(0, 2), Const(element.max_code, element.bits - 1))
    return Mux(over, most, truncate_to_element(shifted, 0, element))


def top_layout(target: Target) -> data.StructLayout:
    """Return the fields of a subgroup's top element: its place, and if its code is odd."""
    return data.StructLayout({"place": target.place_layout, "odd": 1})


class ElementRounder(Component):
    """Round one value to its code; combinational.

    Parameters
    ----------
    target
        What it is rounded to.

    Members
    -------
    value : In(value_layout(kind))
        The value.
    origin : In(exponent bits)
        The reference of ``SharedScale``.
    normalise, poisoned
        As ``SharedScale`` gives them.
    subnormal : In(number of subnormal_distances)
        For each of ``subnormal_distances``: the reference equals it.
    sign, magnitude : Out
        The code: sign bit of the value, always, and magnitude code. Of an integer element the code
        in two's complement, its sign bit apart.
    place : Out(place_layout)
        What the finer rounding needs.
    whole : Out
        With a bit a subgroup: the value is at least as large as the scale.
    halved : In
        The bit of the subgroup.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        super().__init__(
            {
                "value": In(value_layout(target.kind)),
                "origin": In(target.kind.exponent_bits),
                "normalise": In(normalise_bits(target.kind)),
                "subnormal": In(len(target.subnormal_distances)),
                "poisoned": In(1),
                "sign": Out(1),
                "magnitude": Out(target.block.element.bits - 1),
                "place": Out(target.place_layout),
                "whole": Out(int(target.pair)),
                "halved": In(int(target.pair)),
            }
        )

    def build(self) -> Module:
        """Build the lane."""
        m = Module()
        value, place, target = self.value, self.place, self._target
        element = magnitude_element(target.block)
        low, fits = near_difference(m, self.origin, value.exponent, len(place.distance))
        fraction: Value = value.mantissa
        if len(self.normalise):
            fraction = (fraction << self.normalise)[: len(fraction) + 1]
        m.d.comb += [
            place.distance.eq(low),
            place.near.eq(fits & ~self.poisoned),  # too far down: code 0
            Cat(place.fraction, place.lead).eq(
                sticky_or(fraction, len(place.fraction) + len(place.lead))
            ),
        ]
        floating = isinstance(target.block.element, FloatElement)
        if floating:
            m.d.comb += self.sign.eq(value.sign & ~self.poisoned)
        subnormal = dict(zip(target.subnormal_distances, self.subnormal, strict=True))
        halved = None
        if target.pair:
            halved = self.halved
            m.d.comb += self.whole.eq(self._whole(subnormal))
        rounded = round_place(m, target, place, subnormal, element, halved)
        magnitude = Mux(rounded > element.max_code, element.max_code, rounded[:-1])
        if floating:
            m.d.comb += self.magnitude.eq(magnitude)
            return m
        size, sign = named(m, "size", magnitude), value.sign
        m.d.comb += [
            self.sign.eq(sign & size.any()),
            self.magnitude.eq((size ^ sign.replicate(len(size))) + sign),
        ]
        return m

    def _whole(self, subnormal: Mapping[int, Value]) -> Value:
        """Return whether the value is at least as large as the scale: the element's emax is 0."""
        place, target = self.place, self._target
        without = Cat(place.fraction, place.lead, Const(0, 1 - len(place.lead)))
        found: Value = Const(0, 1)
        for distance in range(target.distances):
            here, below = place.distance == distance, distance - target.rule.head
            is_small = subnormal.get(distance, Const(0, 1))
            if below <= 0:
                found |= here & ~is_small
            if below <= 1:
                found |= here & is_small & without[len(without) - 2 + below :].any()
        return place.near & found


class TopElement(Component):
    """Largest element of a subgroup: largest magnitude code, lowest index of equals; combinational.

    Source: M2XFP Alg. 1.

    Parameters
    ----------
    target
        What values are rounded to.

    Members
    -------
    magnitudes : In(ArrayLayout(magnitude, subgroup))
        Magnitude codes.
    places : In(ArrayLayout(place, subgroup))
        The values, as ``ElementRounder`` places them.
    top : Out(top_layout(target))
        Its magnitude code and its place.
    """

    def __init__(self, target: Target) -> None:
        block, size = target.block, target.block.metadata.subgroup
        super().__init__(
            {
                "magnitudes": In(data.ArrayLayout(unsigned(block.element.bits - 1), size)),
                "places": In(data.ArrayLayout(target.place_layout, size)),
                "top": Out(top_layout(target)),
            }
        )

    def build(self) -> Module:
        """Build the choice."""
        m = Module()
        members = range(self.places.shape().length)
        coarse, first = first_maximum(m, [self.magnitudes[n] for n in members])
        place = Value.cast(self.top.place)
        chosen = one_hot_mux(first, [Value.cast(self.places[n])[:-1] for n in members])
        # Whether it is near needs no choice: a code above 0 says so, and if all are 0, the top
        # element is the first.
        near = coarse.any() | self.places[0].near
        m.d.comb += [self.top.odd.eq(coarse[0]), place.eq(Cat(chosen, near))]
        return m


class Refiner(Component):
    """Elem-EM metadata of one subgroup from its top element; combinational.

    Parameters
    ----------
    target
        What values are rounded to.

    Members
    -------
    top : In(top_layout(target))
        The element.
    subnormal, poisoned
        As for ``ElementRounder``.
    meta : Out(2)
        clamp(fine + 1, low, low + 3) - low with low = coarse * 4.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        super().__init__(
            {
                "top": In(top_layout(target)),
                "subnormal": In(len(target.subnormal_distances)),
                "poisoned": In(1),
                "meta": Out(target.block.metadata.bits),
            }
        )

    def build(self) -> Module:
        """Build the finer rounding."""
        m = Module()
        target = self._target
        fine = round_place(
            m,
            target,
            self.top.place,
            dict(zip(target.subnormal_distances, self.subnormal, strict=True)),
            refined_element(target.block),
        )
        # Coarse and fine are roundings of one value, half a coarse step apart at most, and fine is
        # not saturated here: fine + 1 - low is in -1 .. 5. Three bits tell these seven apart, and
        # of them only the upper one depends on coarse, by its last bit.
        offset = Signal(3)
        m.d.comb += [
            offset.eq((fine + 1) ^ Cat(Const(0, 2), self.top.odd)),
            # -1 = 111 gives 0; 4 = 100 and 5 = 101 give 3
            self.meta.eq(
                Mux(offset[2], (~offset[1]).replicate(2), offset[:2])
                & (~self.poisoned).replicate(2)
            ),
        ]
        return m
