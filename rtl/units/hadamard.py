"""The Hadamard unit: blocks of bfloat16 values in, their Walsh-Hadamard transform out."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parameters import Among, Between, checked
from m2xfp.rtl.parts.beat_store import BeatStore
from m2xfp.rtl.parts.butterflies import BeatButterfly, BlockAligner, LaneButterflies
from m2xfp.rtl.parts.fp32_rounding import Normalise, Round
from m2xfp.rtl.parts.group_scale import GroupPeak
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.parts.skid_tail import add_skid, feed_skid
from m2xfp.rtl.parts.streams import packet, packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["Hadamard"]


@dataclass(frozen=True)
class _Beat:
    """A beat on its way through the pipeline.

    Members
    -------
    values
        Of the lanes, signed; None where they wait elsewhere.
    valid
        There is one.
    number
        Its place in the block.
    largest
        The largest exponent field of the block.
    last
        TLAST of its transform.
    """

    values: Any
    valid: Value
    number: Value
    largest: Value
    last: Value


class Hadamard(Component):
    """Transform blocks of bfloat16 values with random signs by a Walsh-Hadamard matrix.

    Computes docs/rotation.md bit for bit: with E the largest exponent field of a block, at least 1,
    each magnitude is cut towards zero to ``bits`` bits below 2^(E - 126); the signed sums are
    exact, and each is rounded once to bfloat16, times 2^-ceil(log2(points) / 2). A NaN or an
    infinity makes all of its block NaN; subnormals are honoured on both sides.

    Parameters
    ----------
    points
        Values of a block: 32, 64 or 128.
    lanes
        Values a beat, a power of two that divides the points. A beat a clock is taken, without gaps
        between blocks.
    bits
        Of a cut magnitude. A value 2^(bits - 8) times smaller than the largest keeps all its bits.
    levels
        Butterflies, of log2(points), between two registers.

    Members
    -------
    i : In(packet_stream(values, flips))
        Values, lane 0 first, and for each whether it is negated first. ``last`` counts on a block's
        final beat only.
    o : Out(packet_stream(ArrayLayout(value, lanes)))
        The transform, in as many beats; ``last`` on a block's final one.
    latency
        Clocks from the acceptance of a beat to that of the transform with the same number, when
        nothing stalls.
    beats_per_group
        Beats of a block.

    Raises
    ------
    InputError
        If the lanes do not divide the points, or a parameter is out of range.

    Notes
    -----
    Widths: a cut value is a sign and ``bits`` bits, and each of the log2(points) levels adds one,
    so that a sum of 128 points and 12 bits has 20, its sign included. The store holds a block until
    its largest exponent is known. Its beats then follow each other without a gap, and butterflies
    between beats come first, where their queues are narrowest.
    """

    @checked
    def __init__(
        self,
        *,
        points: Annotated[int, Among((32, 64, 128))] = 32,
        lanes: Annotated[int, Between(1, 128, usual=(2, 4, 8, 16, 32))] = 32,
        bits: Annotated[int, Between(9, 24, usual=(9, 12, 16))] = 12,
        levels: Annotated[int, Between(1, 7)] = 3,
    ) -> None:
        if points % lanes:
            raise InputError(f"lanes={lanes}: must divide the block of {points} points")
        self.points, self.lanes, self.bits, self.levels = points, lanes, bits, levels
        self.beats_per_group = points // lanes
        self._doublings = points.bit_length() - 1
        self.latency = 2 * self.beats_per_group + len(self._chunks()) + 1
        values = data.ArrayLayout(value_layout(BF16), lanes)
        super().__init__(
            {
                "i": In(
                    packet_stream(
                        data.StructLayout({"values": values, "flips": data.ArrayLayout(1, lanes)})
                    )
                ),
                "o": Out(packet_stream(values)),
            }
        )

    def _chunks(self) -> list[tuple[int, ...]]:
        """Return the distances of all butterflies, first to last, cut where registers stand."""
        distances = [1 << n for n in reversed(range(self._doublings))]
        size = -(-len(distances) // -(-len(distances) // self.levels))
        return [tuple(distances[n : n + size]) for n in range(0, len(distances), size)]

    def build(self) -> Module:
        """Build the store, the alignment, the butterflies and the rounding."""
        m = Module()
        skid = add_skid(m, self.o)
        step = skid.i.ready
        beat = _moved(m, step, "aligned", self._aligned(m, step))
        for number, distances in enumerate(self._chunks()):
            for distance in distances:
                if distance >= self.lanes:
                    beat = self._between_beats(m, step, beat, distance // self.lanes)
            within = tuple(distance for distance in distances if distance < self.lanes)
            if within:
                width = len(beat.values[0])
                m.submodules[f"butterflies_{number}"] = part = LaneButterflies(
                    self.lanes, width, within
                )
                m.d.comb += part.i.eq(beat.values)
                beat = replace(beat, values=part.o)
            beat = _moved(m, step, f"transformed_{number}", beat)
        rounded = Signal(self.o.payload.data.shape())
        for n in range(self.lanes):
            m.d.comb += rounded[n].eq(self._rounded(m, n, beat))
        feed_skid(
            m,
            skid,
            self.o,
            register(m, step, "rounded_held", rounded.as_value()),
            last=delayed(m, step, "last", beat.last, 1),
            valid=delayed(m, step, "valid", beat.valid, 1, reset=True),
        )
        return m

    def _aligned(self, m: Module, step: Value) -> _Beat:
        """Store the beats and find the largest exponent; align the beat that drains."""
        signed_values = stream.Signature(packet(self.o.payload.data.shape())).create()
        values = self.i.payload.data.values
        m.d.comb += [
            signed_values.valid.eq(self.i.valid),
            self.i.ready.eq(signed_values.ready),
            signed_values.payload.last.eq(self.i.payload.last),
        ]
        for n in range(self.lanes):
            m.d.comb += [
                signed_values.payload.data[n].eq(values[n]),
                signed_values.payload.data[n].sign.eq(
                    values[n].sign ^ self.i.payload.data.flips[n]
                ),
            ]
        m.submodules.peak = peak = GroupPeak(BF16, self.lanes)
        store = BeatStore(BF16, self.lanes, self.beats_per_group)
        taken = named(m, "taken", store.draining & step)
        # The peak starts at the exponent field that subnormals count as.
        store.build(m, signed_values, peak, free=step, step=taken, start=1)
        beat = Signal(data.ArrayLayout(value_layout(BF16), self.lanes))
        m.d.comb += beat.eq(store.beat)
        aligned = Signal(data.ArrayLayout(signed(self.bits + 1), self.lanes))
        for n in range(self.lanes):
            m.submodules[f"aligner_{n}"] = aligner = BlockAligner(self.bits)
            m.d.comb += [
                aligner.value.eq(beat[n]),
                aligner.largest.eq(store.group_peak.exponent),
                aligned[n].eq(aligner.aligned),
            ]
        return _Beat(
            values=aligned,
            valid=store.draining,
            number=store.drain,
            largest=store.group_peak.exponent,
            last=named(m, "block_last", store.group_last & store.drain_ends),
        )

    def _between_beats(self, m: Module, step: Value, beat: _Beat, distance: int) -> _Beat:
        """Add a butterfly between beats; what goes with a beat waits as long as its value."""
        m.submodules[f"beat_butterfly_{distance}"] = part = BeatButterfly(
            self.lanes, len(beat.values[0]), distance
        )
        m.d.comb += [
            part.enable.eq(step),
            part.i.eq(beat.values),
            part.second.eq((beat.number & distance).any()),
        ]
        for age in range(distance):
            beat = _moved(m, step, f"waiting_{distance}_{age}", replace(beat, values=None))
        return replace(beat, values=part.o)

    def _rounded(self, m: Module, lane: int, beat: _Beat) -> Value:
        """Return a sum, rounded to bfloat16."""
        total = beat.values[lane]
        # One more bit below keeps -1, whose one's complement is 0, from vanishing.
        m.submodules[f"normalise_{lane}"] = normalised = Normalise(len(total), BF16)
        m.submodules[f"round_{lane}"] = round_ = Round(BF16)
        negative = total[-1]
        # The top bit weighs 2^(largest + log2(points) - 127 - shift).
        above = self._doublings - (self._doublings + 1) // 2 - 1
        m.d.comb += [
            normalised.i.magnitude.eq(
                Cat(negative, total[:-1] ^ negative.replicate(len(total) - 1))
            ),
            normalised.i.borrowed.eq(negative),
            normalised.i.subtract.eq(1),
            normalised.i.exponent.eq(beat.largest + above),
            normalised.i.negative.eq(0),
            normalised.i.nan.eq(beat.largest.all()),
            round_.i.eq(normalised.o),
        ]
        return round_.acc


def _moved(m: Module, step: Value, name: str, beat: _Beat) -> _Beat:
    """Return the beat behind a register of the pipeline."""
    values = beat.values
    if values is not None:
        held = Signal(values.shape(), name=name)
        m.d.comb += held.eq(register(m, step, f"{name}_held", values.as_value()))
        values = held
    return _Beat(
        values=values,
        valid=delayed(m, step, f"{name}_valid", beat.valid, 1, reset=True),
        number=register(m, step, f"{name}_number", beat.number),
        largest=register(m, step, f"{name}_largest", beat.largest),
        last=delayed(m, step, f"{name}_last", beat.last, 1),
    )
