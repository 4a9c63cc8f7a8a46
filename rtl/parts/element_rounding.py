"""Rounding of values to the elements of their group, and of its top elements to finer ones."""

from collections.abc import Mapping
from dataclasses import replace

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
from m2xfp.rtl.parts.elements import float_element, refined_element
from m2xfp.rtl.parts.group_scale import lowest_reference, normalise_bits
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.verilog.component import Component

__all__ = [
    "ElementRounder",
    "Refiner",
    "TopElement",
    "stored_type",
    "subnormal_distances",
    "top_layout",
]


def stored_type(kind: InputType, block: BlockFormat) -> InputType:
    """Return the type that values are narrowed to on arrival by ``sticky_or``; no result changes.

    With an 8-bit exponent a subnormal is at least one step below the reference, so the
    significand's lowest bit that can be a guard bit is the window's last at distance 1: window - 2
    mantissa bits, and a sticky bit below them. At distance 0 the hidden bit is 1, and the guard
    bits lie higher. float16 is normalised after the store and keeps its mantissa.
    """
    if normalise_bits(kind):
        return kind
    window = sum(element_window(refined_element(block)))
    return replace(kind, mantissa_bits=min(kind.mantissa_bits, window - 1))


def place_layout(kind: InputType, block: BlockFormat) -> data.StructLayout:
    """Return the fields of a value relative to its group.

    ``distance`` is how far the exponent field is below the reference, and right if ``near``.
    ``fraction`` is the mantissa, normalised with its group if that is subnormal; ``lead`` is then
    the bit above it (float16 only). If its last bit is a sticky bit, the window's last bit is still
    apart from that.
    """
    window = sum(element_window(refined_element(block)))
    lead = 1 if normalise_bits(kind) else 0
    return data.StructLayout(
        {
            "fraction": unsigned(min(kind.mantissa_bits, window - 1 + lead)),
            "lead": unsigned(lead),
            "distance": unsigned((window - 1).bit_length()),
            "near": unsigned(1),
        }
    )


def subnormal_distances(kind: InputType, block: BlockFormat) -> range:
    """Return the distances at which a value can be subnormal and not round to zero."""
    window = sum(element_window(refined_element(block)))
    return range(lowest_reference(kind, float_element(block)), window)


def round_place(
    m: Module, place: data.View, subnormal: Mapping[int, Value], element: FloatElement
) -> Value:
    """Round a placed value to a magnitude code: nearest, ties to even; one bit longer.

    A normal value is 1.fraction * 2^(emax - distance). A subnormal one, exponent field 0, has the
    step of field 1 and no hidden one: lead.fraction * 2^(emax - distance + 1). Both are cut to size
    for each distance, where the shifts are constants, and the one that applies is rounded. From
    the width of ``element_window`` on, all are below half the smallest step and give zero.

    ``subnormal`` tells for some distances if values there are subnormal. That is the case where the
    reference equals the distance, for all lanes alike, so no lane looks for a zero exponent.
    """
    places = []
    for distance in range(sum(element_window(element))):
        here = named(m, f"at_{distance}", place.distance == distance)
        normal = truncate_to_element(Cat(place.fraction, Const(1, 1)), distance, element)
        if distance in subnormal:
            small = truncate_to_element(
                Cat(place.fraction, place.lead, Const(0, 1 - len(place.lead))),
                distance - 1,
                element,
            )
            is_small = named(m, f"subnormal_at_{distance}", here & subnormal[distance])
            is_normal = named(m, f"normal_at_{distance}", here & ~subnormal[distance])
            places += [(is_small, small), (is_normal, normal)]
        else:
            places.append((here, normal))
    rounded = round_up(m, one_hot_mux(*zip(*places, strict=True)))
    return named(m, "magnitude_or_zero", Mux(place.near, rounded, 0))


def top_layout(kind: InputType, block: BlockFormat) -> data.StructLayout:
    """Return the fields of a subgroup's top element: its place, and if its code is odd."""
    return data.StructLayout({"place": place_layout(kind, block), "odd": 1})


class ElementRounder(Component):
    """Round one value to its code; combinational.

    Parameters
    ----------
    kind
        Type of the value, as ``stored_type`` gives it.
    block
        The target format.

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
        The code: sign bit of the value, always, and magnitude code.
    place : Out(place_layout(kind, block))
        What the finer rounding needs.
    """

    def __init__(self, kind: InputType, block: BlockFormat) -> None:
        self._kind, self._block = kind, block
        super().__init__(
            {
                "value": In(value_layout(kind)),
                "origin": In(kind.exponent_bits),
                "normalise": In(normalise_bits(kind)),
                "subnormal": In(len(subnormal_distances(kind, block))),
                "poisoned": In(1),
                "sign": Out(1),
                "magnitude": Out(block.element.bits - 1),
                "place": Out(place_layout(kind, block)),
            }
        )

    def build(self) -> Module:
        """Build the lane."""
        m = Module()
        value, place, element = self.value, self.place, float_element(self._block)
        low, fits = near_difference(m, self.origin, value.exponent, len(place.distance))
        fraction: Value = value.mantissa
        if len(self.normalise):
            fraction = (fraction << self.normalise)[: len(fraction) + 1]
        subnormal = subnormal_distances(self._kind, self._block)
        m.d.comb += [
            place.distance.eq(low),
            place.near.eq(fits & ~self.poisoned),  # too far down: code 0
            Cat(place.fraction, place.lead).eq(
                sticky_or(fraction, len(place.fraction) + len(place.lead))
            ),
            self.sign.eq(value.sign & ~self.poisoned),
        ]
        rounded = round_place(m, place, dict(zip(subnormal, self.subnormal, strict=True)), element)
        m.d.comb += self.magnitude.eq(
            Mux(rounded > element.max_code, element.max_code, rounded[:-1])
        )
        return m


class TopElement(Component):
    """Largest element of a subgroup: largest magnitude code, lowest index of equals; combinational.

    Source: M2XFP Alg. 1.

    Parameters
    ----------
    kind
        Type of the values, as ``stored_type`` gives it.
    block
        The target format.

    Members
    -------
    magnitudes : In(ArrayLayout(magnitude, subgroup))
        Magnitude codes.
    places : In(ArrayLayout(place, subgroup))
        The values, as ``ElementRounder`` places them.
    top : Out(top_layout(kind, block))
        Its magnitude code and its place.
    """

    def __init__(self, kind: InputType, block: BlockFormat) -> None:
        size = block.metadata.subgroup
        super().__init__(
            {
                "magnitudes": In(data.ArrayLayout(unsigned(block.element.bits - 1), size)),
                "places": In(data.ArrayLayout(place_layout(kind, block), size)),
                "top": Out(top_layout(kind, block)),
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
    kind
        Type of the values, as ``stored_type`` gives it.
    block
        The target format.

    Members
    -------
    top : In(top_layout(kind, block))
        The element.
    subnormal, poisoned
        As for ``ElementRounder``.
    meta : Out(2)
        clamp(fine + 1, low, low + 3) - low with low = coarse * 4.
    """

    def __init__(self, kind: InputType, block: BlockFormat) -> None:
        self._kind, self._block = kind, block
        super().__init__(
            {
                "top": In(top_layout(kind, block)),
                "subnormal": In(len(subnormal_distances(kind, block))),
                "poisoned": In(1),
                "meta": Out(block.metadata.bits),
            }
        )

    def build(self) -> Module:
        """Build the finer rounding."""
        m = Module()
        subnormal = subnormal_distances(self._kind, self._block)
        fine = round_place(
            m,
            self.top.place,
            dict(zip(subnormal, self.subnormal, strict=True)),
            refined_element(self._block),
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
