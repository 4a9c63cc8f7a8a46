"""The activation quantization engine: floating-point beats in, packed groups out."""

from dataclasses import dataclass
from typing import Annotated

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, M2XFP_ACT, BlockFormat, InputType
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parameters import Among, Between, Formats, Names, checked
from m2xfp.rtl.parts.beat_store import BeatStore
from m2xfp.rtl.parts.element_rounding import (
    ElementRounder,
    Refiner,
    Target,
    TopElement,
    stored_type,
    top_layout,
)
from m2xfp.rtl.parts.elements import magnitude_element
from m2xfp.rtl.parts.group_scale import (
    GroupPeak,
    SharedScale,
    SignedPeaks,
    lowest_reference,
    normalise_bits,
)
from m2xfp.rtl.parts.layouts import group_layout, value_layout
from m2xfp.rtl.parts.registers import register
from m2xfp.rtl.parts.scale_rules import SCALE_RULES
from m2xfp.rtl.parts.scale_rules import scale_rule as named_rule
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
        Of the group; two scales where values above zero have their own.
    halved
        Of each pair, if pairs have a bit.
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
    halved: list[Value]


@dataclass(frozen=True)
class PackedGroup:
    """The group that gathers, but for its metadata."""

    codes: Signal
    scale: Signal
    poisoned: Signal
    last: Signal


class ActivationQuantizer(Component):
    """Quantize a stream of floating-point values to groups with a power of two as scale.

    Computes docs/format.md sections 2 to 4, bit for bit: shared scale by a rule, elements to
    nearest, ties as the format has them, saturating; for each subgroup the refinement of its
    largest element, lowest index of equals, or the bit of a pair of SMX4. AMXFP4 has two scales. A
    NaN or infinity anywhere in a group makes the scale 0xFF and all else 0. Subnormal inputs are
    honoured. Source: M2XFP (arXiv 2601.19213) Alg. 1 and Sec. 5.3; OCP MX v1.0, 6.3.

    Parameters
    ----------
    input_type
        Type of the values.
    lanes
        Values a beat. They divide the group and are whole subgroups.
    block
        The target: any element with an E8M0 scale, without metadata, with Elem-EM or bits of pairs.
    scale_rule
        How the scale follows from the largest magnitude (docs/format.md, section 2).
    zero_scale
        Scale of a group of zeros: 0, or 126 for MicroMix, which has 2^-1.
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
                    "mxint8",
                    "int4",
                    "smx4",
                    "amxfp4:scale_mode=pot",
                ),
                ("group", "subgroup"),
            ),
        ] = M2XFP_ACT,
        scale_rule: Annotated[str, Names(SCALE_RULES)] = "floor",
        zero_scale: Annotated[int, Among((0, 126))] = 0,
        stages: Annotated[int, Between(3, 4)] = 3,
    ) -> None:
        if block.scale.name != "e8m0" or block.metadata.name not in ("none", "elem-em", "pair"):
            raise InputError(
                f"block={block.name}: ActivationQuantizer makes formats with an E8M0 scale and no "
                "metadata, Elem-EM or bits of pairs; minifloat_quantizer those with E4M3 and E5M2"
            )
        step = block.metadata.subgroup or 1
        if block.group % lanes or lanes % step:
            raise InputError(
                f"lanes={lanes}: must divide the group of {block.group} and be a multiple of the "
                f"subgroup of {step}"
            )
        if block.scaling == "split" and (zero_scale or normalise_bits(input_type)):
            raise InputError(
                f"block={block.name}: two scales go with zero_scale=0 and input_type=bf16 or fp32"
            )
        self._rule = named_rule(scale_rule, input_type, magnitude_element(block))
        self.scale_rule, self.zero_scale = scale_rule, zero_scale
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

    @property
    def _target(self) -> Target:
        """What the lanes round to."""
        return Target(stored_type(self.input_type, self.block), self.block, self._rule)

    def _scales(self, m: Module) -> tuple[GroupPeak | SignedPeaks, list[SharedScale], int]:
        """Add what finds peaks and scales: of all values, or of positive and other ones apart.

        Return with them the key that a search begins with: the least reference, so that the scale
        needs no clamp.
        """
        kind, element, rule = self._target.kind, magnitude_element(self.block), self._rule
        split = self.block.scaling == "split"
        seen = self.input_type if rule.threshold is not None else kind
        make = SignedPeaks if split else GroupPeak
        m.submodules.peak = peak = make(seen, self.lanes, rule, self.zero_scale > 0)
        start = 0 if normalise_bits(kind) else lowest_reference(kind, element, rule)
        scales = []
        for name in ("scale_positive", "scale_negative") if split else ("scale",):
            shared = SharedScale(kind, element, clamp=False, rule=rule, zero=self.zero_scale)
            m.submodules[name] = shared
            scales.append(shared)
        side = len(Value.cast(peak.earlier)) // len(scales)
        return peak, scales, sum(start << n * side for n in range(len(scales)))

    def _round(self, m: Module, advance: Value, step: Value) -> RoundedBeat:
        """Store the beats and find the scale; round each lane of the beat that drains."""
        target = self._target
        kind = target.kind
        peak, scales, start = self._scales(m)
        store = BeatStore(kind, self.lanes, self.beats_per_group, peak.layout)
        store.build(m, self.i, peak, free=advance, step=step, start=start)
        beat = Signal(data.ArrayLayout(value_layout(kind), self.lanes))
        m.d.comb += beat.eq(store.beat)
        subnormal = []
        group_peak = Value.cast(store.group_peak)
        side = len(group_peak) // len(scales)
        for n, shared in enumerate(scales):
            small = Cat(shared.reference == place for place in target.subnormal_distances)
            subnormal.append(named(m, f"subnormal_{n}" if n else "subnormal", small))
            m.d.comb += Value.cast(shared.peak).eq(group_peak[n * side : (n + 1) * side])
        poisoned = scales[0].poisoned
        if len(scales) > 1:
            poisoned = named(m, "any_poisoned", scales[0].poisoned | scales[1].poisoned)
        lanes = [ElementRounder(target) for _ in range(self.lanes)]
        for n, lane in enumerate(lanes):
            m.submodules[f"lane_{n}"] = lane
            own = len(scales) > 1 and beat[n].sign
            m.d.comb += [
                lane.value.eq(beat[n]),
                lane.origin.eq(_by_sign(own, [shared.reference for shared in scales])),
                lane.normalise.eq(scales[0].normalise),
                lane.subnormal.eq(_by_sign(own, subnormal)),
                lane.poisoned.eq(poisoned),
            ]
        size = self.block.metadata.subgroup if target.pair else self.lanes + 1
        halved: list[Value] = []
        for s in range(self.lanes // size):
            members = lanes[s * size : (s + 1) * size]
            halved.append(named(m, f"halved_{s}", ~Cat(lane.whole for lane in members).any()))
            m.d.comb += [lane.halved.eq(halved[-1]) for lane in members]
        return RoundedBeat(
            valid=store.draining,
            ends=store.drain_ends,
            magnitudes=[lane.magnitude for lane in lanes],
            signs=[lane.sign for lane in lanes],
            places=[lane.place for lane in lanes],
            scale=Cat(shared.scale | poisoned.replicate(8) for shared in scales)
            if len(scales) > 1
            else scales[0].scale,
            poisoned=poisoned,
            subnormal=subnormal[0],
            last=store.group_last,
            halved=halved,
        )

    def _gather(self, m: Module, beat: RoundedBeat, choose: Value) -> PackedGroup:
        """Gather the codes of a group from the low end up, a beat a clock."""
        pairs = zip(beat.magnitudes, beat.signs, strict=True)
        beat_codes = Cat(*(Cat(pair) for pair in pairs))
        group = PackedGroup(
            codes=Signal(self.beats_per_group * len(beat_codes), name="codes", reset_less=True),
            scale=Signal(len(beat.scale), name="scale", reset_less=True),
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
        target, size = self._target, self.block.metadata.subgroup
        if target.pair:
            halved = register(m, choose, "encoded_halved", Cat(beat.halved))
            return halved & ~poisoned.replicate(len(halved))
        subnormal = register(m, choose, "encoded_subnormal", beat.subnormal)
        fields: list[Value] = []
        for s in range(self.lanes // size if size else 0):
            m.submodules[f"top_element_{s}"] = chooser = TopElement(target)
            m.submodules[f"refiner_{s}"] = refiner = Refiner(target)
            top = Signal(top_layout(target), name=f"top_{s}", reset_less=True)
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


def _by_sign(negative: Value | bool, sides: list[Value]) -> Value:
    """Return what belongs to values above zero, or to the others; all alike with one scale."""
    return Mux(negative, sides[1], sides[0]) if len(sides) > 1 else sides[0]


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
        halved=[held(f"halved_{n}", value) for n, value in enumerate(beat.halved)],
    )
