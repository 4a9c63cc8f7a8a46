"""The Sg-EM weight encoder: floating-point beats in, packed groups out, codes found by search.

The derivation, with its width proofs, stands in docs/weight-encoder.md.
"""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, M2XFP_WEIGHT, BlockFormat, FloatElement, InputType
from m2xfp.rtl.arith.datapath import named, sticky_or
from m2xfp.rtl.parts.alignment import Aligner
from m2xfp.rtl.parts.code_ladder import Ladder, threshold_bits
from m2xfp.rtl.parts.fall_through_fifo import FallThroughFifo
from m2xfp.rtl.parts.group_front import GroupFront, narrowed
from m2xfp.rtl.parts.layouts import group_layout, value_layout
from m2xfp.rtl.parts.multiplier_search import (
    BestMultiplier,
    CandidateGains,
    CoarseGains,
    SubgroupSums,
    first_largest,
    total,
)
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
        Type of the values: BF16, FP16 or FP32.
    adaptive
        Whether the shared scale adapts: 12 candidates, otherwise 4.
    clocks_per_group
        1, 2 or 4: as many beats of 32, 16 or 8 values, searched in one clock each. 3, 6 or 12, for
        the adaptive search only: the same beats in three clocks each, an offset a clock.
    fraction_bits
        F of the fixed-point view, 5 to 32, in which errors are measured; codes are always exact.
        By default that of ``FRACTION_BITS``, where the search equals the exact one.
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

    def __init__(
        self,
        *,
        input_type: InputType = BF16,
        adaptive: bool = True,
        clocks_per_group: int = 1,
        fraction_bits: int | None = None,
        block: BlockFormat = M2XFP_WEIGHT,
    ) -> None:
        if block.scale.name != "e8m0" or block.metadata.name != "sg-em":
            raise InputError(
                f"block={block.name}: WeightEncoder makes formats with an E8M0 scale and Sg-EM"
            )
        offsets = len(OFFSETS) if adaptive else 1
        rates = [
            clocks * beats
            for clocks in sorted({1, offsets})
            for beats in (1, 2, 4)
            if block.subgroups % beats == 0
        ]
        if clocks_per_group not in rates:
            raise InputError(
                f"clocks_per_group={clocks_per_group}, adaptive={adaptive}: must be one of "
                f"{', '.join(map(str, sorted(rates)))}"
            )
        if fraction_bits is None:
            fraction_bits = FRACTION_BITS[input_type.name]
        if not threshold_bits(block) < fraction_bits <= 32:
            raise InputError(
                f"fraction_bits={fraction_bits}: must be {threshold_bits(block) + 1}..32"
            )
        self.input_type, self.adaptive, self.block = input_type, adaptive, block
        self.fraction_bits = fraction_bits
        self.offsets = OFFSETS if adaptive else (0,)
        self.clocks_per_group = clocks_per_group
        self.clocks_per_beat = offsets if clocks_per_group % offsets == 0 else 1
        self.beats_per_group = clocks_per_group // self.clocks_per_beat
        self.lanes = block.group // self.beats_per_group
        # Into the store, aligned, then these, and the beats are encoded into a queue.
        self.latency = 2 + clocks_per_group + STAGES_BEFORE_CHOICE + self.beats_per_group
        super().__init__(
            {
                "i": In(packet_stream(data.ArrayLayout(value_layout(input_type), self.lanes))),
                "o": Out(packet_stream(group_layout(block))),
            }
        )

    def build(self) -> Module:
        """Build the pipeline."""
        m = Module()
        block, beats, clocks = self.block, self.beats_per_group, self.clocks_per_beat
        subgroups = self.lanes // block.metadata.subgroup
        kind = narrowed(self.input_type, self.fraction_bits, block)
        element = block.element
        assert isinstance(element, FloatElement)
        integer_bits = element.emax + 1

        m.submodules.front = front = GroupFront(self.input_type, kind, self.lanes, block)
        payload = packet(group_layout(block))
        queue = HalfRateRegister(payload) if self.clocks_per_group > 1 else SpillRegister(payload)
        m.submodules.queue = queue
        wiring.connect(m, wiring.flipped(self.i), front.i)
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        # Only a finished group that the queue cannot take holds the pipeline.
        advance = Signal()
        m.d.comb += advance.eq(~queue.i.valid | queue.i.ready)

        # A beat aligned; it stays for as many clocks as offsets are tried one after the other.
        token = data.StructLayout(
            {"first": 1, "ends": 1, "phase": range(clocks), "scale": 8, "poisoned": 1, "last": 1}
        )
        aligned = Signal(
            data.ArrayLayout(
                data.StructLayout({"magnitude": integer_bits + self.fraction_bits + 1, "sign": 1}),
                self.lanes,
            ),
            reset_less=True,
        )
        aligned_valid = Signal()
        aligned_token = Signal(token, reset_less=True)
        phase_ends = Signal()
        m.d.comb += [
            phase_ends.eq(aligned_token.phase == clocks - 1),
            front.step.eq(advance & (~aligned_valid | phase_ends)),
        ]
        with m.If(front.step):
            m.d.sync += [
                aligned_valid.eq(front.valid),
                aligned_token.first.eq(front.index == 0),
                aligned_token.ends.eq(front.index == beats - 1),
                aligned_token.phase.eq(0),
                aligned_token.scale.eq(front.scale),
                aligned_token.poisoned.eq(front.poisoned),
                aligned_token.last.eq(front.last),
            ]
        with m.Elif(advance):
            m.d.sync += aligned_token.phase.eq(aligned_token.phase + 1)
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

        def register(name: str, value: data.View | Signal, reset: bool = False) -> data.View:
            """Return ``value`` a clock later, when the pipeline moves."""
            held = Signal(value.shape(), name=name, reset_less=not reset)
            with m.If(advance):
                m.d.sync += held.eq(value)
            return held

        # The search in each subgroup, for the offsets of this clock: the best multiplier of each.
        best_valid, best_token = aligned_valid, aligned_token
        for name in ("summed", "gained", "ranked", "best"):
            best_valid = register(f"{name}_valid", best_valid, reset=True)
            best_token = register(f"{name}_token", best_token)
        ladder = self._ladder(integer_bits)
        gains: list[list[Value]] = [[] for _ in range(ladder.offsets)]
        fields: list[list[Value]] = [[] for _ in range(ladder.offsets)]
        for s in range(subgroups):
            m.submodules[f"sums_{s}"] = adders = SubgroupSums(ladder)
            m.submodules[f"coarse_{s}"] = coarse = CoarseGains(ladder)
            m.submodules[f"gains_{s}"] = candidates = CandidateGains(ladder)
            m.submodules[f"best_{s}"] = chooser = BestMultiplier(ladder)
            for n in range(block.metadata.subgroup):
                x = aligned[s * block.metadata.subgroup + n].magnitude
                u: Value = sticky_or(x, len(x) - 1)
                if clocks > 1:  # in units of the highest offset, for the others shifted up
                    phases = [Cat(Const(0, clocks - 1 - p), u) for p in range(clocks)]
                    u = Array(phases)[aligned_token.phase]
                m.d.comb += adders.u[n].eq(u)
            m.d.comb += [
                coarse.sums.eq(register(f"summed_{s}", adders.sums)),
                candidates.coarse.eq(register(f"gained_{s}", coarse.gains)),
                chooser.gains.eq(register(f"ranked_{s}", candidates.gains)),
            ]
            best = register(f"best_{s}", chooser.best)
            for slot in range(ladder.offsets):
                fields[slot].append(best[f"k_{slot}"])
                # In units of the lowest offset's gains.
                gains[slot].append(Cat(Const(0, slot), best[f"gain_{slot}"]))

        # Gains of the group: one total an offset, in a ring of as many places as phases. A lane's
        # gain is at most (|x| / scale)^2 < 4^integer_bits; the unit is 2^-(F + 2 - lowest offset).
        total_bits = (
            (block.group - 1).bit_length()
            + 2 * integer_bits
            + (self.fraction_bits + 2 - self.offsets[0])
        )
        ring = [
            [
                Signal(total_bits, name=f"total_{phase * len(gains) + slot}", reset_less=True)
                for slot in range(len(gains))
            ]
            for phase in range(clocks)
        ]
        found = Cat(*(k for slot in fields for k in slot))
        collected = Signal(beats * clocks * len(found), reset_less=True)
        complete = Signal()
        added_token = Signal(token, reset_less=True)
        with m.If(advance):
            m.d.sync += [
                complete.eq(best_valid & best_token.ends & (best_token.phase == clocks - 1)),
                added_token.eq(best_token),
            ]
            with m.If(best_valid):
                m.d.sync += collected.eq(Cat(collected, found)[len(found) :])
                for phase in range(clocks - 1):
                    m.d.sync += [a.eq(b) for a, b in zip(ring[phase], ring[phase + 1], strict=True)]
                for slot, summands in enumerate(gains):
                    gain = named(m, f"gain_{slot}", total(summands))
                    if clocks > 1:
                        # An offset more is a factor 4. The lowest one's u ends in clocks - 1 zeros,
                        # and so does its gain.
                        shifted = [Cat(Const(0, 2 * p), gain)[clocks - 1 :] for p in range(clocks)]
                        gain = Array(shifted)[best_token.phase]
                    earlier = Mux(best_token.first, 0, ring[0][slot])
                    m.d.sync += ring[-1][slot].eq(earlier + gain)

        # The offset of the largest total; the lower of equals; not the one below scale 0.
        entries: list[Value] = []
        for index, value in enumerate(value for row in ring for value in row):
            allowed = Const(1, 1) if self.offsets[index] >= 0 else added_token.scale.any()
            entries.append(Cat(value, allowed, Const(index, 2)))
        offset = named(m, "offset", first_largest(m, entries, total_bits + 1, "better")[-2:])
        ordered = self._by_offset(collected)
        scale = added_token.scale + offset + self.offsets[0]
        choice = Signal(
            data.StructLayout(
                {
                    "offset": 2,
                    "meta": block.subgroups * block.metadata.bits,
                    "scale": 8,
                    "poisoned": 1,
                    "last": 1,
                }
            ),
            reset_less=True,
        )
        encoding = Signal()
        encoded = Signal(range(beats))
        encoding_ends = Signal()
        m.d.comb += encoding_ends.eq(encoded == beats - 1)
        with m.If(advance):
            with m.If(complete):
                m.d.sync += [
                    encoding.eq(1),
                    encoded.eq(0),
                    choice.offset.eq(offset),
                    choice.meta.eq(
                        Array(ordered)[offset] & ~added_token.poisoned.replicate(len(choice.meta))
                    ),
                    choice.scale.eq(scale[:8] | added_token.poisoned.replicate(8)),
                    choice.poisoned.eq(added_token.poisoned),
                    choice.last.eq(added_token.last),
                ]
            with m.Elif(encoding):
                m.d.sync += [encoding.eq(~encoding_ends), encoded.eq(encoded + 1)]

        # Meanwhile the beats wait, in as few bits as decide every code.
        code_ladder = Ladder(block, threshold_bits(block), integer_bits - self.offsets[0])
        waiting_layout = data.ArrayLayout(
            data.StructLayout({"magnitude": code_ladder.width + 1, "sign": 1}), self.lanes
        )
        m.submodules.waiting = waiting = FallThroughFifo(
            waiting_layout.size, beats + STAGES_BEFORE_CHOICE // clocks
        )
        m.d.comb += [
            waiting.enable.eq(advance),
            waiting.push.eq(aligned_valid & phase_ends),
            waiting.i.eq(
                Cat(
                    Cat(sticky_or(lane.magnitude, code_ladder.width + 1), lane.sign)
                    for lane in (aligned[n] for n in range(self.lanes))
                )
            ),
            waiting.pop.eq(encoding),
        ]
        oldest = data.View(waiting_layout, waiting.o)
        step_fields = subgroups * block.metadata.bits
        step_meta = Signal(step_fields)
        m.d.comb += step_meta.eq(choice.meta.word_select(encoded, step_fields))
        parts: list[Value] = []
        for s in range(subgroups):
            m.submodules[f"codes_{s}"] = encoder = SubgroupCodes(code_ladder)
            m.d.comb += [
                encoder.offset.eq(choice.offset),
                encoder.k.eq(step_meta.word_select(s, block.metadata.bits)),
            ]
            for n in range(block.metadata.subgroup):
                lane = oldest[s * block.metadata.subgroup + n]
                m.d.comb += encoder.magnitudes[n].eq(lane.magnitude)
                parts += [encoder.codes[n], lane.sign]
        codes: Value = named(
            m, "codes", Cat(*parts) & ~choice.poisoned.replicate(element.bits * self.lanes)
        )
        if beats > 1:
            held = Signal((beats - 1) * len(codes), reset_less=True)
            group_codes = Cat(held, codes)
            with m.If(advance & encoding):
                m.d.sync += held.eq(group_codes[len(codes) :])
            codes = group_codes
        m.d.comb += [
            queue.i.valid.eq(encoding & encoding_ends),
            queue.i.payload.eq(Cat(codes, choice.scale, choice.meta, choice.last)),
        ]
        return m

    def _ladder(self, integer_bits: int) -> Ladder:
        """Return the ladder of a clock: of all offsets at once, or of one after the other.

        With an offset b, w = |x| / (scale * 2^b) has b bits more behind the point and b fewer
        before it. Offsets that come one after the other share the ladder, magnitudes shifted up.
        """
        low, high = self.offsets[0], self.offsets[-1]
        fraction_bits = self.fraction_bits + high
        if self.clocks_per_beat > 1:
            return Ladder(self.block, fraction_bits, integer_bits - low)
        return Ladder(self.block, fraction_bits, integer_bits - high, len(self.offsets))

    def _by_offset(self, collected: Value) -> list[Value]:
        """Return the group's fields for each offset, from all in the order they were found in."""
        bits, count = self.block.metadata.bits, len(self.offsets)
        subgroups = self.lanes // self.block.metadata.subgroup
        words = [collected[n : n + bits] for n in range(0, len(collected), bits)]
        return [
            Cat(
                words[(beat * count + index) * subgroups + s]
                for beat in range(self.beats_per_group)
                for s in range(subgroups)
            )
            for index in range(count)
        ]
