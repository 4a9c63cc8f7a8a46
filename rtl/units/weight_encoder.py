"""The Sg-EM weight encoder: floating-point beats in, packed groups out, codes found by search.

The derivation, with its width proofs, stands in docs/weight-encoder.md.
"""

from dataclasses import dataclass
from typing import Annotated

from amaranth.hdl import Array, Cat, Const, Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, M2XFP_WEIGHT, BlockFormat, InputType
from m2xfp.rtl.arith.datapath import named, sticky_or
from m2xfp.rtl.parameters import Among, Between, Formats, checked
from m2xfp.rtl.parts.alignment import Aligner
from m2xfp.rtl.parts.code_ladder import Ladder, threshold_bits
from m2xfp.rtl.parts.elements import float_element
from m2xfp.rtl.parts.fall_through_fifo import FallThroughFifo
from m2xfp.rtl.parts.group_front import GroupFront, narrowed
from m2xfp.rtl.parts.layouts import group_layout, value_layout
from m2xfp.rtl.parts.multiplier_search import (
    BestMultiplier,
    CandidateGains,
    CoarseGains,
    SubgroupSums,
)
from m2xfp.rtl.parts.offset_choice import (
    GroupTotals,
    SearchedBeat,
    add_gains,
    best_offset,
    by_offset,
    token_layout,
)
from m2xfp.rtl.parts.registers import delayed, register
from m2xfp.rtl.parts.streams import HalfRateRegister, SpillRegister, packet, packet_stream
from m2xfp.rtl.parts.subgroup_codes import SubgroupCodes
from m2xfp.rtl.verilog.component import Component

__all__ = ["FRACTION_BITS", "WeightEncoder"]

FRACTION_BITS = {"bf16": 10, "fp16": 13, "fp32": 26}
"""Fraction bits F from which the fixed-point search equals the exact one, by input type."""

OFFSETS = (-1, 0, 1)
"""What the adaptive search tries to add to the shared scale, in the order that decides ties."""

STAGES_BEFORE_CHOICE = 5
"""Pipeline stages between a beat aligned and its offset chosen: four a subgroup, and totals."""


BLOCKS = Formats(
    tuple(f"m2xfp-weight{layout}" for layout in ("", ":subgroup=4", ":subgroup=16", ":group=16")),
    ("group", "subgroup"),
)


@dataclass(frozen=True)
class AlignedBeat:
    """A beat in the fixed point of its group; ``phase_ends``: it goes on with the next step."""

    valid: Signal
    token: data.View
    phase_ends: Signal
    lanes: list[data.View]


@dataclass(frozen=True)
class Choice:
    """What a group is encoded with.

    Members
    -------
    encoding, encoded, ends
        A beat is encoded, how many have been, and whether it is the last.
    group
        Offset, metadata, scale, ``poisoned`` and ``last``.
    """

    encoding: Signal
    encoded: Signal
    ends: Signal
    group: data.View


class WeightEncoder(Component):
    """Quantize a stream of floating-point values to M2XFP groups with Sg-EM metadata.

    Computes docs/format.md sections 2, 3 and 5, bit for bit: shared scale by the floor rule, then
    the search (``search="fixed"``) for the multiplier 1 + k/4 of each subgroup and, if adaptive,
    an offset -1, 0 or +1 of the shared scale, with the least squared error; ties go to the smallest
    k, then to the lowest offset. Elements round to nearest, ties to even, saturating. A NaN or
    infinity anywhere in a group makes the scale 0xFF and all else 0. Subnormal inputs are honoured.
    Source: M2XFP (arXiv 2601.19213) Sec. 4.4, 5.5 and 6.4.

    Parameters
    ----------
    input_type
        Type of the values.
    adaptive
        Whether the shared scale adapts: 12 candidates, otherwise 4.
    clocks_per_group
        1, 2 or 4: a group comes in as many beats, each searched in one clock. 3, 6 or 12, for the
        adaptive search only: the same beats in three clocks each, an offset a clock. Each beat is
        whole subgroups.
    fraction_bits
        Fraction bits of the fixed point in which errors are measured; codes are always exact. With
        none they are as many as make the search equal the exact one: 10 for bf16, 13 for fp16, 26
        for fp32.
    block
        The target: a floating-point element with an E8M0 scale and Sg-EM.

    Members
    -------
    i : In(packet_stream(ArrayLayout(value, lanes)))
        Values, lane 0 first; ``beats_per_group`` beats make a group. ``last`` on a group's final
        beat is handed on.
    o : Out(packet_stream(group_layout(block)))
        Packed groups.
    lanes
        Values a beat.
    beats_per_group
        Beats of a group.
    latency
        Clocks from the acceptance of a group's last beat to its output, when nothing stalls.

    Raises
    ------
    InputError
        If a parameter is none of these.

    Notes
    -----
    One pipeline that moves as a whole, or stalls as a whole while a finished group cannot leave:
    align a beat; sum over each subgroup; choose each subgroup's k; add up the gains of the
    group; choose the offset. Meanwhile the beats wait, in as few bits as decide their codes, and
    are then encoded, a beat a clock.
    """

    @checked
    def __init__(
        self,
        *,
        input_type: InputType = BF16,
        adaptive: bool = True,
        clocks_per_group: Annotated[int, Among((1, 2, 3, 4, 6, 12))] = 1,
        fraction_bits: Annotated[int | None, Between(5, 32, usual=(5, 8, 10, 13))] = None,
        block: Annotated[BlockFormat, BLOCKS] = M2XFP_WEIGHT,
    ) -> None:
        if block.scale.name != "e8m0" or block.metadata.name != "sg-em":
            raise InputError(
                f"block={block.name}: WeightEncoder makes formats with an E8M0 scale and Sg-EM"
            )
        offsets = len(OFFSETS) if adaptive else 1
        beats = [count for count in (1, 2, 4) if block.subgroups % count == 0]
        rates = sorted(clocks * count for clocks in {1, offsets} for count in beats)
        if clocks_per_group not in rates:
            raise InputError(
                f"clocks_per_group={clocks_per_group}, adaptive={adaptive}: must be one of "
                f"{', '.join(map(str, rates))} for {block.name}"
            )
        if fraction_bits is None:
            fraction_bits = FRACTION_BITS[input_type.name]
        if fraction_bits <= threshold_bits(block):
            raise InputError(
                f"fraction_bits={fraction_bits}: must be more than the {threshold_bits(block)} of "
                f"the thresholds of {block.name}"
            )
        self.input_type, self.adaptive, self.block = input_type, adaptive, block
        self._integer_bits = float_element(block).emax + 1
        self.fraction_bits = fraction_bits
        self.offsets = OFFSETS if adaptive else (0,)
        self.clocks_per_group = clocks_per_group
        self.clocks_per_beat = offsets if clocks_per_group % offsets == 0 else 1
        self.beats_per_group = clocks_per_group // self.clocks_per_beat
        self.lanes = block.group // self.beats_per_group
        # Into the store, aligned, then these, and the beats are encoded into the output register.
        self.latency = 2 + clocks_per_group + STAGES_BEFORE_CHOICE + self.beats_per_group
        super().__init__(
            {
                "i": In(packet_stream(data.ArrayLayout(value_layout(input_type), self.lanes))),
                "o": Out(packet_stream(group_layout(block))),
            }
        )

    def build(self) -> Module:
        """Build the pipeline: align, search, add up, choose, encode."""
        m = Module()
        payload = packet(group_layout(self.block))
        output = HalfRateRegister(payload) if self.clocks_per_group > 1 else SpillRegister(payload)
        m.submodules.quantized = output
        wiring.connect(m, output.o, wiring.flipped(self.o))
        # Only a finished group that the output cannot take holds the pipeline.
        advance = Signal()
        m.d.comb += advance.eq(~output.i.valid | output.i.ready)

        aligned = self._align(m, advance)
        searched = self._search(m, advance, aligned)
        # A lane's gain is at most (|x| / scale)^2 < 4^integer_bits; the unit of the totals is
        # 2^-(F + 2 - lowest offset).
        total_bits = (
            (self.block.group - 1).bit_length()
            + 2 * self._integer_bits
            + (self.fraction_bits + 2 - self.offsets[0])
        )
        found = add_gains(
            m, advance, searched, self.beats_per_group, self.clocks_per_beat, total_bits
        )
        choice = self._choose(m, advance, found)
        codes = self._encode(m, advance, aligned, choice)
        group = choice.group
        m.d.comb += [
            output.i.valid.eq(choice.encoding & choice.ends),
            output.i.payload.eq(Cat(codes, group.scale, group.meta, group.last)),
        ]
        return m

    def _align(self, m: Module, advance: Value) -> AlignedBeat:
        """Store the beats, find the scale, and bring each value to the group's fixed point.

        A beat stays for as many clocks as offsets are tried one after the other.
        """
        beats, phases = self.beats_per_group, self.clocks_per_beat
        kind = narrowed(self.input_type, self.fraction_bits, self.block)
        m.submodules.front = front = GroupFront(self.input_type, kind, self.lanes, self.block)
        wiring.connect(m, wiring.flipped(self.i), front.i)
        lane = data.StructLayout(
            {"magnitude": self._integer_bits + self.fraction_bits + 1, "sign": 1}
        )
        aligned = Signal(data.ArrayLayout(lane, self.lanes), reset_less=True)
        valid = Signal(name="aligned_valid")
        token = Signal(token_layout(phases), name="aligned_token", reset_less=True)
        phase_ends = Signal()
        m.d.comb += [
            phase_ends.eq(token.phase == phases - 1),
            front.step.eq(advance & (~valid | phase_ends)),
        ]
        with m.If(front.step):
            m.d.sync += [
                valid.eq(front.valid),
                token.first.eq(front.index == 0),
                token.ends.eq(front.index == beats - 1),
                token.phase.eq(0),
                token.scale.eq(front.scale),
                token.poisoned.eq(front.poisoned),
                token.last.eq(front.last),
            ]
        with m.Elif(advance):
            m.d.sync += token.phase.eq(token.phase + 1)
        for n in range(self.lanes):
            m.submodules[f"aligner_{n}"] = aligner = Aligner(kind, len(aligned[n].magnitude))
            m.d.comb += [
                aligner.value.eq(front.beat[n]),
                aligner.reference.eq(front.reference),
                aligner.normalise.eq(front.normalise),
            ]
            with m.If(front.step):
                m.d.sync += [
                    aligned[n].magnitude.eq(aligner.magnitude),
                    aligned[n].sign.eq(front.beat[n].sign),
                ]
        return AlignedBeat(valid, token, phase_ends, [aligned[n] for n in range(self.lanes)])

    def _search(self, m: Module, advance: Value, beat: AlignedBeat) -> SearchedBeat:
        """Search each subgroup, for the offsets of this clock: the best multiplier of each."""
        size, ladder = self.block.metadata.subgroup, self._ladder()
        valid: Value = beat.valid
        token = beat.token
        for stage in ("summed", "gained", "ranked", "best"):
            valid = delayed(m, advance, f"{stage}_valid", valid, 1, reset=True)
            token = register(m, advance, f"{stage}_token", token)
        gains: list[list[Value]] = [[] for _ in range(ladder.offsets)]
        multipliers: list[list[Value]] = [[] for _ in range(ladder.offsets)]
        for s in range(self.lanes // size):
            m.submodules[f"sums_{s}"] = adders = SubgroupSums(ladder)
            m.submodules[f"coarse_{s}"] = coarse = CoarseGains(ladder)
            m.submodules[f"gains_{s}"] = candidates = CandidateGains(ladder)
            m.submodules[f"best_{s}"] = chooser = BestMultiplier(ladder)
            for n in range(size):
                m.d.comb += adders.u[n].eq(self._magnitude(beat, s * size + n))
            m.d.comb += [
                coarse.sums.eq(register(m, advance, f"summed_{s}", adders.sums)),
                candidates.coarse.eq(register(m, advance, f"gained_{s}", coarse.gains)),
                chooser.gains.eq(register(m, advance, f"ranked_{s}", candidates.gains)),
            ]
            best = register(m, advance, f"best_{s}", chooser.best)
            for offset in range(ladder.offsets):
                multipliers[offset].append(best[f"k_{offset}"])
                # In units of the lowest offset's gains.
                gains[offset].append(Cat(Const(0, offset), best[f"gain_{offset}"]))
        return SearchedBeat(valid, token, gains, multipliers)

    def _magnitude(self, beat: AlignedBeat, lane: int) -> Value:
        """Return a magnitude for the search, in the units of the offset that is its turn."""
        x, phases = beat.lanes[lane].magnitude, self.clocks_per_beat
        u = sticky_or(x, len(x) - 1)
        if phases == 1:
            return u
        # In units of the highest offset, for the others shifted up.
        return Array(Cat(Const(0, phases - 1 - p), u) for p in range(phases))[beat.token.phase]

    def _choose(self, m: Module, advance: Value, found: GroupTotals) -> Choice:
        """Choose the group's offset, then count the beats that are encoded with it."""
        block = self.block
        offset = best_offset(m, found, self.offsets)
        meta = by_offset(
            found.multipliers, len(self.offsets), self.beats_per_group, block.metadata.bits
        )
        scale = found.token.scale + offset + self.offsets[0]
        layout = data.StructLayout(
            {
                "offset": 2,
                "meta": block.subgroups * block.metadata.bits,
                "scale": 8,
                "poisoned": 1,
                "last": 1,
            }
        )
        choice = Signal(layout, reset_less=True)
        encoding = Signal()
        encoded = Signal(range(self.beats_per_group))
        ends = Signal(name="encoding_ends")
        m.d.comb += ends.eq(encoded == self.beats_per_group - 1)
        poisoned = found.token.poisoned
        with m.If(advance):
            with m.If(found.complete):
                m.d.sync += [
                    encoding.eq(1),
                    encoded.eq(0),
                    choice.offset.eq(offset),
                    choice.meta.eq(Array(meta)[offset] & ~poisoned.replicate(len(choice.meta))),
                    choice.scale.eq(scale[:8] | poisoned.replicate(8)),
                    choice.poisoned.eq(poisoned),
                    choice.last.eq(found.token.last),
                ]
            with m.Elif(encoding):
                m.d.sync += [encoding.eq(~ends), encoded.eq(encoded + 1)]
        return Choice(encoding, encoded, ends, choice)

    def _encode(self, m: Module, advance: Value, beat: AlignedBeat, choice: Choice) -> Value:
        """Return the group's codes; its beats wait, in as few bits as decide every code."""
        size, bits = self.block.metadata.subgroup, self.block.metadata.bits
        ladder = Ladder(
            self.block, threshold_bits(self.block), self._integer_bits - self.offsets[0]
        )
        layout = data.ArrayLayout(
            data.StructLayout({"magnitude": ladder.width + 1, "sign": 1}), self.lanes
        )
        m.submodules.waiting = waiting = FallThroughFifo(
            layout.size, self.beats_per_group + STAGES_BEFORE_CHOICE // self.clocks_per_beat
        )
        m.d.comb += [
            waiting.enable.eq(advance),
            waiting.push.eq(beat.valid & beat.phase_ends),
            waiting.i.eq(
                Cat(
                    Cat(sticky_or(lane.magnitude, ladder.width + 1), lane.sign)
                    for lane in beat.lanes
                )
            ),
            waiting.pop.eq(choice.encoding),
        ]
        oldest = data.View(layout, waiting.o)
        step_meta = Signal(self.lanes // size * bits)
        m.d.comb += step_meta.eq(choice.group.meta.word_select(choice.encoded, len(step_meta)))
        parts: list[Value] = []
        for s in range(self.lanes // size):
            m.submodules[f"codes_{s}"] = encoder = SubgroupCodes(ladder)
            m.d.comb += [
                encoder.offset.eq(choice.group.offset),
                encoder.k.eq(step_meta.word_select(s, bits)),
            ]
            for n in range(size):
                lane = oldest[s * size + n]
                m.d.comb += encoder.magnitudes[n].eq(lane.magnitude)
                parts += [encoder.codes[n], lane.sign]
        poisoned = choice.group.poisoned.replicate(self.block.element.bits * self.lanes)
        codes: Value = named(m, "codes", Cat(*parts) & ~poisoned)
        if self.beats_per_group == 1:
            return codes
        held = Signal((self.beats_per_group - 1) * len(codes), reset_less=True)
        group_codes = Cat(held, codes)
        with m.If(advance & choice.encoding):
            m.d.sync += held.eq(group_codes[len(codes) :])
        return group_codes

    def _ladder(self) -> Ladder:
        """Return the ladder of a clock: of all offsets at once, or of one after the other.

        With an offset b, w = |x| / (scale * 2^b) has b bits more behind the point and b fewer
        before it. Offsets that come one after the other share the ladder, magnitudes shifted up.
        """
        low, high = self.offsets[0], self.offsets[-1]
        fraction_bits = self.fraction_bits + high
        if self.clocks_per_beat > 1:
            return Ladder(self.block, fraction_bits, self._integer_bits - low)
        return Ladder(self.block, fraction_bits, self._integer_bits - high, len(self.offsets))
