"""The quantizer for formats whose scale is a minifloat: NVFP4, M2-NVFP4 and AMXFP4."""

from typing import Annotated

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, E2M1, FP32, NVFP4, BlockFormat, InputType
from m2xfp.rtl.arith.datapath import first_maximum, named, one_hot_mux
from m2xfp.rtl.parameters import Between, Formats, checked
from m2xfp.rtl.parts.beat_store import BeatStore
from m2xfp.rtl.parts.elements import refined_element
from m2xfp.rtl.parts.layouts import group_layout, value_layout
from m2xfp.rtl.parts.minifloat_scale import MinifloatScale, ScaleBoundaries
from m2xfp.rtl.parts.ratio_rounding import RatioRefiner, RatioRounder
from m2xfp.rtl.parts.registers import register
from m2xfp.rtl.parts.relative_values import LEAST_UNIT, RelativePeak, RelativeType
from m2xfp.rtl.parts.streams import HalfRateRegister, SpillRegister, packet, packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["MinifloatQuantizer"]

Values = dict[str, Value]


class MinifloatQuantizer(Component):
    """Quantize a stream of floating-point values to groups with minifloats as scales.

    Computes docs/format.md section 8, bit for bit: the scale from the exact quotient amax / 6, over
    the tensor scale with two levels, E2M1 elements from exact quotients with it, ties as the format
    has them, saturating; Elem-EM metadata of M2-NVFP4; two scales of AMXFP4. A NaN or infinity in a
    group makes its scales NaN and all else 0, and so does a tensor scale that is none.

    Parameters
    ----------
    input_type
        Type of the values: bf16 or fp32.
    lanes
        Values a beat. They divide the group and are whole subgroups.
    block
        The target: E2M1 elements with a scale of E4M3 or E5M2, without metadata or with Elem-EM,
        or two of them.
    tensor_scale
        Two levels: each beat carries the float32 tensor scale, the same one within a group. It is a
        finite number of 2^-113 and more.

    Members
    -------
    i : In(packet_stream(ArrayLayout(value, lanes)))
        Values, lane 0 first; with a tensor scale ``values`` and ``tensor_scale``.
        ``beats_per_group`` beats make a group. ``last`` on a group's final beat is handed on.
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
    On arrival exponents are cut to the binades that matter (``RelativeType``). The scale is a long
    division of a few digits. A lane looks where its significand lies among seven multiples of the
    scale's, and at how many binades it is apart; the multiples are known beforehand without a
    tensor scale, and made once a group with one. That takes two stages more.
    """

    @checked
    def __init__(
        self,
        *,
        input_type: InputType = BF16,
        lanes: Annotated[int, Between(1, usual=(1, 2, 4, 8, 16, 32))] = 16,
        block: Annotated[
            BlockFormat,
            Formats(
                ("nvfp4", "m2nvfp4-act", "amxfp4", "amxfp4:scale_mode=e4m3"),
                ("group", "subgroup"),
            ),
        ] = NVFP4,
        tensor_scale: bool = False,
    ) -> None:
        if block.scale.grid is None or block.element is not E2M1 or block.scale.bits != 8:
            raise InputError(
                f"block={block.name}: MinifloatQuantizer makes E2M1 elements with E4M3 or E5M2 "
                "scales; activation_quantizer makes formats with E8M0 scales"
            )
        if block.metadata.name not in ("none", "elem-em"):
            raise InputError(f"block={block.name}: weights are for weight_encoder, by search")
        if tensor_scale and block.scale.name != "e4m3":
            raise InputError(f"tensor_scale=true: {block.name} has no second level of scales")
        step = block.metadata.subgroup or 1
        if block.group % lanes or lanes % step:
            raise InputError(
                f"lanes={lanes}: must divide the group of {block.group} and be a multiple of the "
                f"subgroup of {step}"
            )
        self.input_type, self.lanes, self.block = input_type, lanes, block
        self.tensor_scale = tensor_scale
        self._relative = RelativeType(input_type, block, tensor_scale)
        self.beats_per_group = block.group // lanes
        self.latency = self.beats_per_group + (4 if tensor_scale else 2)
        values = data.ArrayLayout(value_layout(input_type), lanes)
        both = data.StructLayout({"values": values, "tensor_scale": value_layout(FP32)})
        super().__init__(
            {
                "i": In(packet_stream(both if tensor_scale else values)),
                "o": Out(packet_stream(group_layout(block))),
            }
        )

    def build(self) -> Module:
        """Build the engine: store, scale, multiples, codes, metadata, output."""
        m = Module()
        payload = packet(group_layout(self.block))
        several = self.beats_per_group > 1
        output = HalfRateRegister(payload) if several else SpillRegister(payload)
        m.submodules.quantized = output
        advance: Value = output.i.ready
        if several:
            # Only a finished group that the output cannot take holds the pipeline.
            advance = named(m, "advance", ~output.i.valid | output.i.ready)
        pipeline = _Pipeline(m, advance)
        found = self._store(m, pipeline)
        found |= self._scales(m, found)
        if self.tensor_scale:
            found = pipeline.cut(found, "scaled")
        found |= self._boundaries(m, found)
        if self.tensor_scale:
            found = pipeline.cut(found, "bounded")
        found |= self._round(m, found)
        choose, several_beats = pipeline.step, self.beats_per_group
        codes = Signal(several_beats * len(found["codes"]), name="codes", reset_less=True)
        with m.If(choose):
            # The codes of a group gather from the low end up, a beat a clock.
            m.d.sync += codes.eq(Cat(codes, found["codes"])[len(found["codes"]) :])
        kept = pipeline.cut({name: found[name] for name in self._kept(found)}, "encoded")
        meta = self._refine(m, kept)
        if several:
            held = Signal((self.beats_per_group - 1) * len(meta), reset_less=True)
            gathered = Cat(held, meta)
            with m.If(pipeline.step):
                m.d.sync += held.eq(gathered[len(meta) :])
            meta = gathered
        complete = Signal()
        m.d.comb += [
            complete.eq(pipeline.valid & kept["ends"]),
            output.i.valid.eq(complete),
            output.i.payload.eq(Cat(codes, kept["scales"], meta, kept["last"])),
        ]
        wiring.connect(m, output.o, wiring.flipped(self.o))
        return m

    def _kept(self, found: Values) -> list[str]:
        """Return what of a beat with its codes goes on."""
        refined = ("zero", "significand", *(name for name in found if name.startswith("top_")))
        return ["ends", "last", "scales", "poisoned", *(refined if self.block.subgroups else ())]

    def _store(self, m: Module, pipeline: "_Pipeline") -> Values:
        """Store the beats, cut to what decides, and find the largest values."""
        relative = self._relative
        kind = relative.stored
        m.submodules.peak = peak = RelativePeak(relative, self.lanes)
        given = self.i.payload.data
        values = given.values if self.tensor_scale else given
        unit = given.tensor_scale if self.tensor_scale else None
        arriving = Signal(data.ArrayLayout(value_layout(kind), self.lanes))
        bad: list[Value] = []
        for n in range(self.lanes):
            mantissa, exponent = relative.narrowed(
                values[n], None if unit is None else unit.exponent
            )
            m.d.comb += [
                arriving[n].mantissa.eq(mantissa),
                arriving[n].exponent.eq(exponent),
                arriving[n].sign.eq(values[n].sign),
            ]
            bad.append(values[n].exponent.all())
        if unit is not None:
            bad += [unit.sign, unit.exponent.all(), unit.exponent < LEAST_UNIT]
            m.d.comb += peak.unit.eq(unit.mantissa)
        m.d.comb += peak.bad.eq(Cat(bad).any())
        store = BeatStore(kind, self.lanes, self.beats_per_group, peak.layout)
        store.build(
            m,
            self.i,
            peak,
            free=pipeline.advance,
            step=store.draining & pipeline.advance,
            start=0,
            arriving=arriving,
        )
        pipeline.valid = store.draining
        pipeline.step = named(m, "drained", store.draining & pipeline.advance)
        group = store.group_peak
        return {
            "beat": store.beat,
            "keys": Value.cast(group.keys),
            "unit": group.unit,
            "poisoned": group.poisoned,
            "last": store.group_last,
            "ends": store.drain_ends,
        }

    def _scales(self, m: Module, found: Values) -> Values:
        """Return the scales without their sign bit, of all values or of both signs."""
        codes: list[Value] = []
        sides = 1 + (self.block.scaling == "split")
        width = len(found["keys"]) // sides
        for side in range(sides):
            m.submodules[f"scale_{side}"] = scale = MinifloatScale(self._relative)
            m.d.comb += [
                scale.key.eq(found["keys"][side * width : (side + 1) * width]),
                scale.unit.eq(found["unit"]),
            ]
            codes.append(scale.code)
        return {"scale_codes": Cat(codes)}

    def _boundaries(self, m: Module, found: Values) -> Values:
        """Return what lanes compare with, one after the other for both signs, and the scales."""
        width = self._relative.grid.bits - 1
        parts: list[ScaleBoundaries] = []
        scales: list[Value] = []
        nan = self.block.scale.nan
        for side in range(len(found["scale_codes"]) // width):
            code = found["scale_codes"][side * width : (side + 1) * width]
            m.submodules[f"boundaries_{side}"] = part = ScaleBoundaries(self._relative)
            m.d.comb += [part.code.eq(code), part.unit.eq(found["unit"])]
            parts.append(part)
            stored = Signal(8, name=f"stored_{side}")
            m.d.comb += stored.eq(Mux(found["poisoned"], nan, code))
            scales.append(stored)
        places = self._relative.stored.exponent_bits
        none = found["poisoned"]
        if self.block.scaling != "split":
            none = named(m, "none", none | parts[0].zero)  # two scales are never zero
        return {
            "scales": Cat(scales),
            "zero": Cat(part.zero for part in parts),
            "origin": Cat(part.origin for part in parts) | none.replicate(len(parts) * places),
            "significand": Cat(part.significand for part in parts),
            "boundaries": Cat(Value.cast(part.boundaries) for part in parts),
        }

    def _round(self, m: Module, found: Values) -> Values:
        """Return the codes of a beat, and of each subgroup what its top element is."""
        relative, bits = self._relative, self._relative.grid.mantissa_bits
        kind = relative.stored
        beat = Signal(data.ArrayLayout(value_layout(kind), self.lanes))
        m.d.comb += beat.eq(found["beat"])
        codes: list[Value] = []
        lanes: list[RatioRounder] = []
        for n in range(self.lanes):
            lane = RatioRounder(
                kind.exponent_bits,
                kind.mantissa_bits,
                bits if self.block.scaling == "split" else 0,
                self.block.ties,
            )
            m.submodules[f"lane_{n}"] = lane
            lanes.append(lane)

            def own(name: str, sign: Value = beat[n].sign) -> Value:
                """Return what belongs to the sign of the value."""
                both = found[name]
                half = len(both) // 2
                return Mux(sign, both[half:], both[:half]) if len(found["zero"]) > 1 else both

            m.d.comb += [
                lane.exponent.eq(beat[n].exponent),
                lane.mantissa.eq(beat[n].mantissa),
                lane.origin.eq(own("origin")),
                lane.fraction.eq(own("significand")),
                Value.cast(lane.boundaries).eq(found["boundaries"]),
            ]
            codes.append(Cat(lane.magnitude, beat[n].sign & ~found["poisoned"]))
        tops: Values = {}
        size = self.block.metadata.subgroup
        for s in range(self.lanes // size if size else 0):
            members = range(s * size, (s + 1) * size)
            largest, first = first_maximum(m, [lanes[n].magnitude for n in members], f"top_{s}")
            places = [Cat(beat[n].mantissa, lanes[n].place) for n in members]
            tops[f"top_{s}"] = Cat(largest[0], one_hot_mux(first, places))
        return {"codes": Cat(codes), **tops}

    def _refine(self, m: Module, kept: Values) -> Value:
        """Return the metadata of the beat that was encoded."""
        kind, fields = self._relative.stored, []
        for name in [name for name in kept if name.startswith("top_")]:
            m.submodules[f"refiner_{name}"] = refiner = RatioRefiner(
                kind.exponent_bits,
                kind.mantissa_bits,
                len(kept["significand"]),
                refined_element(self.block),
            )
            m.d.comb += [
                Cat(refiner.odd, refiner.mantissa, refiner.place).eq(kept[name]),
                refiner.divisor.eq(kept["significand"]),
                refiner.zero.eq(kept["zero"]),
                refiner.poisoned.eq(kept["poisoned"]),
            ]
            fields.append(refiner.meta)
        return Cat(fields)


class _Pipeline:
    """Stages that move together: what is valid in the last one, and its step.

    Parameters
    ----------
    m
        The module.
    advance
        All stages move.
    """

    def __init__(self, m: Module, advance: Value) -> None:
        self._m, self.advance = m, advance
        self.valid: Value = advance
        self.step: Value = advance

    def cut(self, values: Values, name: str) -> Values:
        """Return values behind a register."""
        m = self._m
        kept = {key: register(m, self.step, f"{name}_{key}", each) for key, each in values.items()}
        valid = Signal(name=f"{name}_valid")
        with m.If(self.advance):
            m.d.sync += valid.eq(self.valid)
        self.valid = valid
        self.step = named(m, f"{name}_step", valid & self.advance)
        return kept
