"""The activation quantization engine: floating-point beats in, packed groups out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, E2M3, M2XFP_ACT, BlockFormat, FloatElement, InputType
from m2xfp.rtl.arith.datapath import (
    element_window,
    first_maximum,
    jam,
    leading_one,
    maximum,
    named,
    near_difference,
    one_hot_mux,
    reduce_tree,
    round_up,
    truncate_to_element,
)
from m2xfp.rtl.parts.layouts import group_layout, value_layout
from m2xfp.rtl.parts.streams import Queue, Slot, packet, packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["ActivationQuantizer", "refined_element"]


def float_element(block: BlockFormat) -> FloatElement:
    """Return the element of ``block``; InputError if it is no floating-point one."""
    if not isinstance(block.element, FloatElement):
        raise InputError(f"format {block.name}: the element must be a floating-point one")
    return block.element


def refined_element(block: BlockFormat) -> FloatElement:
    """Return the element with the metadata's extra mantissa bits (E2M3 for E2M1 and two bits)."""
    base = float_element(block)
    if not block.metadata.bits:
        return base
    extra = block.metadata.bits
    return FloatElement(
        f"{base.name}+{extra}",
        base.exponent_bits,
        base.mantissa_bits + extra,
        base.bias,
        ((base.max_code + 1) << extra) - 1,
    )


assert refined_element(M2XFP_ACT).magnitude(31) == E2M3.max_value


class ActivationQuantizer(Component):
    """Quantize a stream of floating-point values to MX groups, with Elem-EM metadata if asked for.

    Computes docs/format.md sections 2 to 4, bit for bit: shared scale by the floor rule, elements
    to nearest, ties to even, saturating; for each subgroup the refinement of its largest element,
    lowest index of equals. A NaN or infinity anywhere in a group makes the scale 0xFF and all else
    0. Subnormal inputs are honoured. Source: M2XFP (arXiv 2601.19213) Alg. 1 and Sec. 5.3; OCP MX
    v1.0, 6.3.

    Parameters
    ----------
    input_type
        Type of the values: BF16, FP16 or FP32.
    lanes
        Values a beat; divides the group and is a multiple of the subgroup.
    block
        The target: a floating-point element with an E8M0 scale, without metadata or with Elem-EM.
    stages
        3, or 4 for a higher clock: the top elements are then chosen a clock after the codes.

    Members
    -------
    i : In(packet_stream(ArrayLayout(value, lanes)))
        Values, lane 0 first; ``beats_per_group`` beats make a group. ``last`` on a group's final
        beat is handed on.
    o : Out(packet_stream(group_layout(block)))
        Packed groups.
    latency
        Clocks from the acceptance of a group's last beat to its output, when nothing stalls.
    beats_per_group
        Beats of a group. One beat a clock is accepted, so one group leaves every so many clocks.

    Raises
    ------
    InputError
        If the lanes do not fit the group, the format is none that this unit can produce, or the
        stages are neither 3 nor 4.

    Notes
    -----
    The first stage stores the beats and finds the largest exponent: the floor rule needs no more of
    amax, and NaN and infinity show in it too (exponent field all ones). The second takes a beat a
    clock from the store, shifts each significand by its distance from the largest exponent, rounds
    it, and chooses the top element of each subgroup, which with four stages is a stage of its own.
    The last rounds the top elements finer. The codes of earlier beats wait in ``codes``, and the
    last beat completes the group into a queue.
    """

    def __init__(
        self,
        *,
        input_type: InputType = BF16,
        lanes: int = 32,
        block: BlockFormat = M2XFP_ACT,
        stages: int = 3,
    ) -> None:
        if block.scale.name != "e8m0" or block.metadata.name not in ("none", "elem-em"):
            raise InputError(
                f"block={block.name}: ActivationQuantizer makes formats with an E8M0 scale and no "
                "metadata or Elem-EM"
            )
        step = block.metadata.subgroup or 1
        if lanes < 1 or block.group % lanes or lanes % step:
            raise InputError(
                f"lanes={lanes}: must divide the group of {block.group} and be a multiple of the "
                f"subgroup of {step}"
            )
        if stages not in (3, 4):
            raise InputError(f"stages={stages}: ActivationQuantizer has 3 or 4")
        refined_element(block)
        self.input_type, self.lanes, self.block, self.stages = input_type, lanes, block, stages
        self.beats_per_group = block.group // lanes
        self.latency = self.beats_per_group + stages - 1
        super().__init__(
            {
                "i": In(packet_stream(data.ArrayLayout(value_layout(input_type), lanes))),
                "o": Out(packet_stream(group_layout(block))),
            }
        )

    def build(self) -> Module:
        """Build the engine."""
        m = Module()
        block, beats = self.block, self.beats_per_group
        kind = stored_type(self.input_type, block)

        m.submodules.peak = peak = GroupPeak(kind, self.lanes)
        m.submodules.scale = shared = SharedScale(kind, float_element(block), clamp=False)
        payload = packet(group_layout(block))
        queue = Slot(payload) if beats > 1 else Queue(payload)
        m.submodules.queue = queue
        advance: Value = queue.i.ready
        if beats > 1:  # only a finished group that the slot cannot take holds the pipeline
            advance = named(m, "advance", ~queue.i.valid | queue.i.ready)

        # Beat store: written at `fill`, read at `drain`. While a group drains, the next one fills
        # the places that it has left, so `fill` never passes `drain` and one store is enough.
        store = Array(
            Signal(
                data.ArrayLayout(value_layout(kind), self.lanes), name=f"store_{n}", reset_less=True
            )
            for n in range(beats)
        )
        fill = Signal(range(beats))
        drain = Signal(range(beats))
        draining = Signal()
        group_last = Signal(reset_less=True)
        gathered = Signal(GroupPeak.layout(kind), reset_less=True)  # of the group that fills
        group_peak = Signal(GroupPeak.layout(kind), reset_less=True)  # of the group that drains

        # The search begins at the least reference, so that the scale needs no clamp.
        start = 0 if normalise_bits(kind) else lowest_reference(kind, float_element(block))

        arriving = Signal(data.ArrayLayout(value_layout(kind), self.lanes))
        for n in range(self.lanes):
            value = self.i.payload.data[n]
            m.d.comb += [
                arriving[n].mantissa.eq(jam(value.mantissa, kind.mantissa_bits)),
                arriving[n].exponent.eq(value.exponent),
                arriving[n].sign.eq(value.sign),
            ]

        accept = Signal()
        step = Signal()
        fill_ends = Signal()
        drain_ends = Signal()
        m.d.comb += [
            step.eq(draining & advance),
            self.i.ready.eq(~draining | (fill != drain) | advance),
            accept.eq(self.i.valid & self.i.ready),
            fill_ends.eq(fill == beats - 1),
            drain_ends.eq(drain == beats - 1),
            peak.lanes.eq(arriving),
            peak.earlier.eq(Mux(fill == 0, start, gathered) if beats > 1 else start),
        ]
        with m.If(step):
            m.d.sync += drain.eq(Mux(drain_ends, 0, drain + 1))
            with m.If(drain_ends):
                m.d.sync += draining.eq(0)
        with m.If(accept):
            m.d.sync += [
                store[fill].eq(arriving),
                fill.eq(Mux(fill_ends, 0, fill + 1)),
                gathered.eq(peak.peak),
            ]
            with m.If(fill_ends):
                m.d.sync += [
                    draining.eq(1),
                    group_peak.eq(peak.peak),
                    group_last.eq(self.i.payload.last),
                ]

        # The beat that drains: scale and codes, and the top element of each subgroup.
        beat = Signal(data.ArrayLayout(value_layout(kind), self.lanes))
        distances = subnormal_distances(kind, block)
        subnormal = Signal(len(distances))
        m.d.comb += [
            beat.eq(store[drain]),
            shared.peak.eq(group_peak),
            subnormal.eq(Cat(shared.reference == distance for distance in distances)),
        ]
        lanes = [Lane(kind, block) for _ in range(self.lanes)]
        for n, lane in enumerate(lanes):
            m.submodules[f"lane_{n}"] = lane
            m.d.comb += [
                lane.value.eq(beat[n]),
                lane.origin.eq(shared.reference),
                lane.normalise.eq(shared.normalise),
                lane.subnormal.eq(subnormal),
                lane.poisoned.eq(shared.poisoned),
            ]

        # With four stages, all that the choice of top elements takes is a clock later.
        placed, placed_ends, choose = draining, drain_ends, step
        if self.stages == 4:
            placed, placed_ends, choose = Signal(), Signal(), Signal()
            m.d.comb += choose.eq(placed & advance)
            with m.If(advance):
                m.d.sync += [placed.eq(draining), placed_ends.eq(drain_ends)]

        def staged(name: str, value: Any) -> Any:
            """Return ``value`` as the stage of the choice sees it."""
            if self.stages == 3:
                return value
            held = Signal(value.shape(), name=f"placed_{name}", reset_less=True)
            with m.If(step):
                m.d.sync += held.eq(value)
            return held

        magnitudes = [staged(f"magnitude_{n}", lane.magnitude) for n, lane in enumerate(lanes)]
        signs = [staged(f"sign_{n}", lane.sign) for n, lane in enumerate(lanes)]
        beat_codes = Cat(*(Cat(pair) for pair in zip(magnitudes, signs, strict=True)))

        # What is encoded waits a clock for its metadata. Codes and metadata of a group gather from
        # the low end up, a beat a clock.
        encoded = Signal()  # a beat is here
        complete = Signal()  # and it is the last of its group
        scale = Signal(8, reset_less=True)
        poisoned = Signal(reset_less=True)
        encoded_subnormal = Signal(len(distances), reset_less=True)
        last = Signal(reset_less=True)
        codes = Signal(beats * len(beat_codes), reset_less=True)
        with m.If(advance):
            m.d.sync += [encoded.eq(placed), complete.eq(placed & placed_ends)]
        placed_scale = staged("scale", shared.scale)
        placed_poisoned = staged("poisoned", shared.poisoned)
        placed_subnormal, placed_last = staged("subnormal", subnormal), staged("last", group_last)
        with m.If(choose):
            m.d.sync += [
                codes.eq(Cat(codes, beat_codes)[len(beat_codes) :]),
                scale.eq(placed_scale),
                poisoned.eq(placed_poisoned),
                encoded_subnormal.eq(placed_subnormal),
                last.eq(placed_last),
            ]
        fields: list[Value] = []
        size = block.metadata.subgroup
        places = [staged(f"place_{n}", lane.place) for n, lane in enumerate(lanes) if size]
        for s in range(self.lanes // size if size else 0):
            m.submodules[f"top_element_{s}"] = chooser = TopElement(kind, block)
            m.submodules[f"refiner_{s}"] = refiner = Refiner(kind, block)
            top = Signal(top_layout(kind, block), name=f"top_{s}", reset_less=True)
            for n in range(size):
                m.d.comb += [
                    chooser.magnitudes[n].eq(magnitudes[s * size + n]),
                    chooser.places[n].eq(places[s * size + n]),
                ]
            with m.If(choose):
                m.d.sync += top.eq(chooser.top)
            m.d.comb += [
                refiner.top.eq(top),
                refiner.subnormal.eq(encoded_subnormal),
                refiner.poisoned.eq(poisoned),
            ]
            fields.append(refiner.meta)
        meta: Value = Cat(fields)
        if beats > 1:
            held = Signal((beats - 1) * len(meta), reset_less=True)
            gathered_meta = Cat(held, meta)
            with m.If(advance & encoded):
                m.d.sync += held.eq(gathered_meta[len(meta) :])
            meta = gathered_meta
        m.d.comb += [
            queue.i.valid.eq(complete),
            queue.i.payload.eq(Cat(codes, scale, meta, last)),
        ]
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        return m


def normalise_bits(kind: InputType) -> int:
    """Return the bits of the shift that normalises a group of subnormals.

    None with an exponent of 8 bits, the width of E8M0's: the scale of such a group is clamped to
    2^-127, so its subnormals are used as they are. Those of float16 lie well inside E8M0's range.
    """
    return kind.mantissa_bits.bit_length() if kind.exponent_bits < 8 else 0


def stored_type(kind: InputType, block: BlockFormat) -> InputType:
    """Return the type that values are narrowed to on arrival by ``jam``; no result changes.

    With an 8-bit exponent a subnormal is at least one step below the reference, so the
    significand's lowest bit that can be a guard bit is the window's last at distance 1: window - 2
    mantissa bits, and one to jam the rest into. At distance 0 the hidden bit is 1, and the guard
    bits lie higher. float16 is normalised after the store and keeps its mantissa.
    """
    if normalise_bits(kind):
        return kind
    window = sum(element_window(refined_element(block)))
    return replace(kind, mantissa_bits=min(kind.mantissa_bits, window - 1))


def lowest_reference(kind: InputType, element: FloatElement) -> int:
    """Return the least exponent field that ``SharedScale`` gives as reference.

    With an 8-bit exponent it is where the clamp of the scale at 0 sets in.
    """
    return 1 if normalise_bits(kind) else element.emax + kind.bias - 127


def place_layout(kind: InputType, block: BlockFormat) -> data.StructLayout:
    """Return the fields of a value relative to its group.

    ``distance`` is how far the exponent field is below the reference, and right if ``near``.
    ``fraction`` is the mantissa, normalised with its group if that is subnormal; ``lead`` is then
    the bit above it (float16 only). In a jammed fraction the window's last bit is still apart.
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


class GroupPeak(Component):
    """Largest exponent field of some values, and for fp16 the union of their mantissas.

    The union's leading one is that of the largest mantissa, which is all that the floor rule needs
    of a group that is subnormal throughout. An 8-bit exponent makes do without: there the scale of
    such a group is clamped to 2^-127 anyway.

    Parameters
    ----------
    kind
        Type of the values.
    lanes
        Number of values.

    Members
    -------
    lanes : In(ArrayLayout(value, lanes))
        The values.
    earlier : In(layout(kind))
        Peak of what came earlier, zero if nothing did.
    peak : Out(layout(kind))
        Peak of both, combinational.
    """

    def __init__(self, kind: InputType, lanes: int) -> None:
        super().__init__(
            {
                "lanes": In(data.ArrayLayout(value_layout(kind), lanes)),
                "earlier": In(self.layout(kind)),
                "peak": Out(self.layout(kind)),
            }
        )

    @staticmethod
    def layout(kind: InputType) -> data.StructLayout:
        """Return the fields of a peak."""
        return data.StructLayout(
            {
                "exponent": unsigned(kind.exponent_bits),
                "union": unsigned(kind.mantissa_bits if normalise_bits(kind) else 0),
            }
        )

    def build(self) -> Module:
        """Build the two trees."""
        m = Module()
        lanes = [self.lanes[n] for n in range(self.lanes.shape().length)]
        m.d.comb += self.peak.exponent.eq(
            maximum(m, [*(v.exponent for v in lanes), self.earlier.exponent])
        )
        if len(self.peak.union):
            m.d.comb += self.peak.union.eq(
                reduce_tree(lambda a, b: a | b, [v.mantissa for v in lanes]) | self.earlier.union
            )
        return m


class SharedScale(Component):
    """Scale of a group from its peak, and what the lanes need of it; combinational.

    Parameters
    ----------
    kind
        Type of the values.
    element
        Element of the codes.
    clamp
        False if the peak is never below ``lowest_reference``; True costs a comparison.

    Members
    -------
    peak : In(GroupPeak.layout(kind))
        Peak of the whole group.
    scale : Out(8)
        E8M0 byte, E = clamp(floor(log2 amax) - emax + 127, 0, 254); 0xFF for a poisoned group.
    reference : Out(exponent bits)
        The exponent field that stands for a distance of zero.
    normalise : Out
        Left shift that all significands of a group of fp16 subnormals need; no bits otherwise.
    poisoned : Out(1)
        The group holds a NaN or an infinity.
    """

    def __init__(self, kind: InputType, element: FloatElement, clamp: bool = True) -> None:
        self._kind, self._element, self._clamp = kind, element, clamp
        # floor(log2 amax) - emax + 127 = exponent field + offset for a normal peak
        self._offset = 127 - kind.bias - element.emax
        super().__init__(
            {
                "peak": In(GroupPeak.layout(kind)),
                "scale": Out(8),
                "reference": Out(kind.exponent_bits),
                "normalise": Out(normalise_bits(kind)),
                "poisoned": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the scale."""
        m = Module()
        kind, offset = self._kind, self._offset
        exponent = self.peak.exponent
        m.d.comb += self.poisoned.eq(exponent.all())
        if not len(self.normalise):
            # The clamp at 0 fixes the scale, and with it the reference.
            # Subnormals are below it, so they need no normalising: their distance is at least 1.
            lowest = lowest_reference(kind, self._element)
            clamped = Mux(exponent < lowest, lowest, exponent) if self._clamp else exponent
            m.d.comb += [
                self.reference.eq(clamped),
                self.scale.eq((self.reference + offset) | self.poisoned.replicate(8)),
            ]
            return m
        # Never clamped: the smallest subnormal, 2^(1 - bias - mantissa_bits), is far above 2^-127.
        # A group of subnormals is normalised by its leading one, all lanes alike.
        union = self.peak.union
        normal = Signal()
        lead = Signal(range(kind.mantissa_bits))
        m.d.comb += [
            normal.eq(exponent.any()),
            lead.eq(leading_one(union)),
            self.reference.eq(exponent | ~normal),
            self.normalise.eq(Mux(normal, 0, kind.mantissa_bits - lead)),
        ]
        with m.If(normal):
            m.d.comb += self.scale.eq((exponent + offset) | self.poisoned.replicate(8))
        with m.Elif(union.any()):
            m.d.comb += self.scale.eq(lead + (offset + 1 - kind.mantissa_bits))
        return m


class Lane(Component):
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
                jam(fraction, len(place.fraction) + len(place.lead))
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
        The values, as ``Lane`` places them.
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
        As for ``Lane``.
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
