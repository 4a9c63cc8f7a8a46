"""The activation quantization engine: floating-point beats in, packed groups out."""

from dataclasses import dataclass
from typing import Annotated

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, M2XFP_ACT, BlockFormat, InputType
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parameters import Between, Formats, checked
from m2xfp.rtl.parts.beat_store import BeatStore
from m2xfp.rtl.parts.element_rounding import (
    ElementRounder,
    Refiner,
    TopElement,
    stored_type,
    subnormal_distances,
    top_layout,
)
from m2xfp.rtl.parts.elements import float_element, refined_element
from m2xfp.rtl.parts.group_scale import (
    GroupPeak,
    SharedScale,
    lowest_reference,
    normalise_bits,
)
from m2xfp.rtl.parts.layouts import group_layout, value_layout
from m2xfp.rtl.parts.registers import register
from m2xfp.rtl.parts.streams import HalfRateRegister, SpillRegister, packet, packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["ActivationQuantizer"]


@dataclass(frozen=True)
class RoundedBeat:
    """The codes of a beat, and what its top elements are chosen and refined from.

    Members
    -------
    valid, ends
        There is a beat; it is the last of its group.
    magnitudes, signs, places
        Of each lane, as ``ElementRounder`` gives them.
    scale, poisoned, subnormal, last
        Of the group.
    """

    valid: Value
    ends: Value
    magnitudes: list[Value]
    signs: list[Value]
    places: list[data.View]
    scale: Value
    poisoned: Value
    subnormal: Value
    last: Value


@dataclass(frozen=True)
class PackedGroup:
    """The group that gathers, but for its metadata."""

    codes: Signal
    scale: Signal
    poisoned: Signal
    last: Signal


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
        Type of the values.
    lanes
        Values a beat. They divide the group and are whole subgroups.
    block
        The target: a floating-point element with an E8M0 scale, without metadata or with Elem-EM.
    stages
        Pipeline stages after the store. With 4 the top elements are chosen a clock after the codes,
        for a higher clock rate.

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
        If the lanes do not fit the group, the format is none that this unit can produce, or a
        parameter is out of range.

    Notes
    -----
    The first stage stores the beats and finds the largest exponent: the floor rule needs no more of
    amax, and NaN and infinity show in it too (exponent field all ones). The second takes a beat a
    clock from the store, shifts each significand by its distance from the largest exponent, rounds
    it, and chooses the top element of each subgroup, which with four stages is a stage of its own.
    The last rounds the top elements finer. The codes of earlier beats wait in ``codes``, and the
    last beat completes the group into the output register.
    """

    @checked
    def __init__(
        self,
        *,
        input_type: InputType = BF16,
        lanes: Annotated[int, Between(1, usual=(1, 2, 4, 8, 16, 32))] = 32,
        block: Annotated[
            BlockFormat,
            Formats(
                (
                    "m2xfp-act",
                    "m2xfp-act:subgroup=4",
                    "m2xfp-act:group=16",
                    "mxfp4",
                    "mxfp4:group=8",
                    "mxfp6-e2m3",
                    "mxfp6-e3m2",
                    "mxfp8-e4m3",
                    "mxfp8-e5m2",
                ),
                ("group", "subgroup"),
            ),
        ] = M2XFP_ACT,
        stages: Annotated[int, Between(3, 4)] = 3,
    ) -> None:
        if block.scale.name != "e8m0" or block.metadata.name not in ("none", "elem-em"):
            raise InputError(
                f"block={block.name}: ActivationQuantizer makes formats with an E8M0 scale and no "
                "metadata or Elem-EM"
            )
        step = block.metadata.subgroup or 1
        if block.group % lanes or lanes % step:
            raise InputError(
                f"lanes={lanes}: must divide the group of {block.group} and be a multiple of the "
                f"subgroup of {step}"
            )
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
        """Build the engine: store, rounding, choice of top elements, refinement, output."""
        m = Module()
        payload = packet(group_layout(self.block))
        output = HalfRateRegister(payload) if self.beats_per_group > 1 else SpillRegister(payload)
        m.submodules.quantized = output
        advance: Value = output.i.ready
        if self.beats_per_group > 1:
            # Only a finished group that the output cannot take holds the pipeline.
            advance = named(m, "advance", ~output.i.valid | output.i.ready)
        step = Signal()  # a beat drains from the store
        rounded = self._round(m, advance, step)
        m.d.comb += step.eq(rounded.valid & advance)
        choose = step
        if self.stages == 4:
            rounded = _a_clock_later(m, rounded, advance, step)
            choose = Signal()
            m.d.comb += choose.eq(rounded.valid & advance)

        # What is encoded waits a clock for its metadata.
        encoded = Signal()  # a beat is here
        complete = Signal()  # and it is the last of its group
        with m.If(advance):
            m.d.sync += [encoded.eq(rounded.valid), complete.eq(rounded.valid & rounded.ends)]
        group = self._gather(m, rounded, choose)
        meta = self._refine(m, rounded, choose, group.poisoned)
        if self.beats_per_group > 1:
            held = Signal((self.beats_per_group - 1) * len(meta), reset_less=True)
            gathered_meta = Cat(held, meta)
            with m.If(advance & encoded):
                m.d.sync += held.eq(gathered_meta[len(meta) :])
            meta = gathered_meta
        m.d.comb += [
            output.i.valid.eq(complete),
            output.i.payload.eq(Cat(group.codes, group.scale, meta, group.last)),
        ]
        wiring.connect(m, output.o, wiring.flipped(self.o))
        return m

    def _round(self, m: Module, advance: Value, step: Value) -> RoundedBeat:
        """Store the beats and find the scale; round each lane of the beat that drains."""
        kind = stored_type(self.input_type, self.block)
        element = float_element(self.block)
        m.submodules.peak = peak = GroupPeak(kind, self.lanes)
        m.submodules.scale = shared = SharedScale(kind, element, clamp=False)
        # The search begins at the least reference, so that the scale needs no clamp.
        start = 0 if normalise_bits(kind) else lowest_reference(kind, element)
        store = BeatStore(kind, self.lanes, self.beats_per_group)
        store.build(m, self.i, peak, free=advance, step=step, start=start)
        beat = Signal(data.ArrayLayout(value_layout(kind), self.lanes))
        distances = subnormal_distances(kind, self.block)
        subnormal = Signal(len(distances))
        m.d.comb += [
            beat.eq(store.beat),
            shared.peak.eq(store.group_peak),
            subnormal.eq(Cat(shared.reference == distance for distance in distances)),
        ]
        lanes = [ElementRounder(kind, self.block) for _ in range(self.lanes)]
        for n, lane in enumerate(lanes):
            m.submodules[f"lane_{n}"] = lane
            m.d.comb += [
                lane.value.eq(beat[n]),
                lane.origin.eq(shared.reference),
                lane.normalise.eq(shared.normalise),
                lane.subnormal.eq(subnormal),
                lane.poisoned.eq(shared.poisoned),
            ]
        return RoundedBeat(
            valid=store.draining,
            ends=store.drain_ends,
            magnitudes=[lane.magnitude for lane in lanes],
            signs=[lane.sign for lane in lanes],
            places=[lane.place for lane in lanes],
            scale=shared.scale,
            poisoned=shared.poisoned,
            subnormal=subnormal,
            last=store.group_last,
        )

    def _gather(self, m: Module, beat: RoundedBeat, choose: Value) -> PackedGroup:
        """Gather the codes of a group from the low end up, a beat a clock."""
        pairs = zip(beat.magnitudes, beat.signs, strict=True)
        beat_codes = Cat(*(Cat(pair) for pair in pairs))
        group = PackedGroup(
            codes=Signal(self.beats_per_group * len(beat_codes), name="codes", reset_less=True),
            scale=Signal(8, name="scale", reset_less=True),
            poisoned=Signal(name="poisoned", reset_less=True),
            last=Signal(name="last", reset_less=True),
        )
        with m.If(choose):
            m.d.sync += [
                group.codes.eq(Cat(group.codes, beat_codes)[len(beat_codes) :]),
                group.scale.eq(beat.scale),
                group.poisoned.eq(beat.poisoned),
                group.last.eq(beat.last),
            ]
        return group

    def _refine(self, m: Module, beat: RoundedBeat, choose: Value, poisoned: Value) -> Value:
        """Choose the top element of each subgroup; return their metadata, a clock later."""
        kind, size = stored_type(self.input_type, self.block), self.block.metadata.subgroup
        subnormal = register(m, choose, "encoded_subnormal", beat.subnormal)
        fields: list[Value] = []
        for s in range(self.lanes // size if size else 0):
            m.submodules[f"top_element_{s}"] = chooser = TopElement(kind, self.block)
            m.submodules[f"refiner_{s}"] = refiner = Refiner(kind, self.block)
            top = Signal(top_layout(kind, self.block), name=f"top_{s}", reset_less=True)
            for n in range(size):
                m.d.comb += [
                    chooser.magnitudes[n].eq(beat.magnitudes[s * size + n]),
                    chooser.places[n].eq(beat.places[s * size + n]),
                ]
            with m.If(choose):
                m.d.sync += top.eq(chooser.top)
            m.d.comb += [
                refiner.top.eq(top),
                refiner.subnormal.eq(subnormal),
                refiner.poisoned.eq(poisoned),
            ]
            fields.append(refiner.meta)
        return Cat(fields)


def _a_clock_later(m: Module, beat: RoundedBeat, advance: Value, step: Value) -> RoundedBeat:
    """Return the beat behind a register of the pipeline."""

    def held(name: str, value: Value | data.View) -> Signal:
        return register(m, step, f"placed_{name}", value)

    valid, ends = Signal(name="placed"), Signal(name="placed_ends")
    with m.If(advance):
        m.d.sync += [valid.eq(beat.valid), ends.eq(beat.ends)]
    return RoundedBeat(
        valid=valid,
        ends=ends,
        magnitudes=[held(f"magnitude_{n}", value) for n, value in enumerate(beat.magnitudes)],
        signs=[held(f"sign_{n}", value) for n, value in enumerate(beat.signs)],
        places=[held(f"place_{n}", value) for n, value in enumerate(beat.places)],
        scale=held("scale", beat.scale),
        poisoned=held("poisoned", beat.poisoned),
        subnormal=held("subnormal", beat.subnormal),
        last=held("last", beat.last),
    )
