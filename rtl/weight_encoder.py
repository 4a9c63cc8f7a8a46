"""The Sg-EM weight encoder: floating-point beats in, packed groups out, codes found by search.

The derivation, with its width proofs, stands in docs/weight-encoder.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import BF16, M2XFP_WEIGHT, BlockFormat, FloatElement, InputType
from m2xfp.rtl.activation_quantizer import normalise_bits
from m2xfp.rtl.arith import jam, named, one_hot_mux, reduce_tree, saturating_difference
from m2xfp.rtl.component import Component
from m2xfp.rtl.group_front import GroupFront, narrowed
from m2xfp.rtl.layouts import group_layout, value_layout
from m2xfp.rtl.streams import Queue, packet, packet_stream

__all__ = ["FRACTION_BITS", "Ladder", "WeightEncoder"]

FRACTION_BITS = {"bf16": 10, "fp16": 13, "fp32": 26}
"""Fraction bits F from which the fixed-point search equals the exact one, by input type."""

OFFSETS = (-1, 0, 1)
"""What the adaptive search tries to add to the shared scale, in the order that decides ties."""

STAGES_BEFORE_CHOICE = 3
"""Pipeline stages between a beat aligned and its group's offset chosen: sums, k, totals."""


def threshold_bits(block: BlockFormat) -> int:
    """Return the fraction bits that make every threshold between codes an integer.

    4 for E2M1 with two bits: thresholds are 1 3 5 7 10 14 20 times M / 16.
    """
    assert isinstance(block.element, FloatElement)
    return block.element.bias + block.element.mantissa_bits + block.metadata.bits


@dataclass(frozen=True)
class Step:
    """A range of magnitudes, and how the multiple that stands for them changes there.

    Members
    -------
    start, stop
        start <= u < stop.
    before, after
        Multiples of the smallest element step.
    """

    start: int
    stop: int
    before: int
    after: int


@dataclass(frozen=True)
class Ladder:
    """The codes of magnitudes under all multipliers of Sg-EM, in integers.

    A magnitude is an integer u of ``width`` bits that stands for w = u * 2^-fraction_bits; the
    multiplier 1 + k/4 is the integer M = 4 + k; code c decodes to multiples[c] * M / 8.

    Members
    -------
    block
        The format: a floating-point element with Sg-EM metadata.
    fraction_bits, integer_bits
        Of w; at least ``threshold_bits`` fraction bits.
    """

    block: BlockFormat
    fraction_bits: int
    integer_bits: int

    @property
    def element(self) -> FloatElement:
        """The element."""
        assert isinstance(self.block.element, FloatElement)
        return self.block.element

    @property
    def width(self) -> int:
        """Bits of a magnitude."""
        return self.integer_bits + self.fraction_bits

    @property
    def shift(self) -> int:
        """Fraction bits beyond those that the thresholds need."""
        return self.fraction_bits - threshold_bits(self.block)

    @property
    def multipliers(self) -> tuple[int, ...]:
        """The multipliers M, largest first."""
        return tuple(reversed(range(1 << self.block.metadata.bits, 2 << self.block.metadata.bits)))

    @property
    def multiples(self) -> tuple[int, ...]:
        """Value of each code in smallest steps: 0 1 2 3 4 6 8 12 for E2M1."""
        magnitudes = [self.element.magnitude(code) for code in range(self.element.max_code + 1)]
        return tuple(int(magnitude / magnitudes[1]) for magnitude in magnitudes)

    def thresholds(self, multiplier: int) -> tuple[int, ...]:
        """Return where code c ends and c + 1 begins, for c = 0, 1, ..., below 2^width."""
        pairs = zip(self.multiples, self.multiples[1:], strict=False)
        marks = [(low + high) * multiplier << self.shift for low, high in pairs]
        return tuple(mark for mark in marks if mark < 1 << self.width)

    def steps(self) -> tuple[tuple[Step, ...], ...]:
        """Return, largest multiplier first, where the multiple of u changes from the one before.

        The first has the multiples themselves, as changes from 0. From each multiplier to the next
        smaller one a code rises by one at most: neighbouring thresholds of E2M1 are at least a
        factor 7/5 apart, multipliers at most 5/4.
        """
        end = 1 << self.width
        largest, *others = self.multipliers
        marks = self.thresholds(largest)
        rows = [
            tuple(
                Step(start, stop, 0, after)
                for start, stop, after in zip(
                    marks, (*marks[1:], end), self.multiples[1:], strict=False
                )
            )
        ]
        for multiplier in others:
            stops, marks = marks, self.thresholds(multiplier)
            stops += (end,) * (len(marks) - len(stops))
            assert all(stop <= start for stop, start in zip(stops, marks[1:], strict=False))
            rows.append(
                tuple(
                    Step(start, stop, before, after)
                    for start, stop, before, after in zip(
                        marks, stops, self.multiples, self.multiples[1:], strict=False
                    )
                )
            )
        return tuple(rows)

    def gain_bits(self) -> int:
        """Return the bits of a subgroup's gain, in units of 2^-(fraction_bits + 2).

        A lane's gain q (2w - q) is at most w^2, with w < 2^integer_bits.
        """
        lanes = self.block.metadata.subgroup
        return (lanes - 1).bit_length() + 2 * self.integer_bits + self.fraction_bits + 2


def at_least(value: Value, mark: int) -> Value:
    """Return value >= mark, looking at no bit below the lowest one of ``mark``."""
    zeros = (mark & -mark).bit_length() - 1
    return value[zeros:] >= mark >> zeros


def shift_right_jam(m: Module, value: Value, amount: Value) -> Value:
    """Shift right; the lowest bit of the result is ORed with every bit that is shifted out."""
    for stage in range(len(amount)):
        step = min(1 << stage, len(value) - 1)
        shifted = Cat(value[: step + 1].any(), value[step + 1 :], Const(0, step))
        value = named(m, f"shifted_{stage}", Mux(amount[stage], shifted, value))
    return value


def total(values: Sequence[Value]) -> Value:
    """Return the sum of some values."""
    return reduce_tree(add, list(values))


class Aligner(Component):
    """Bring a value to the fixed point of its group; combinational.

    Parameters
    ----------
    kind
        Type of the value.
    width
        Bits of the result.

    Members
    -------
    value : In(value_layout(kind))
        The value.
    reference, normalise : In
        As ``SharedScale`` gives them.
    magnitude : Out(width)
        |x| / scale, with the top bit for 2^emax, and 1 in the lowest bit if anything is left below.

    Notes
    -----
    A significand h.m whose exponent lies ``distance`` below the reference stands for
    h.m * 2^(emax - distance). The distance saturates where only the lowest bit can be set.
    """

    def __init__(self, kind: InputType, width: int) -> None:
        super().__init__(
            {
                "value": In(value_layout(kind)),
                "reference": In(kind.exponent_bits),
                "normalise": In(normalise_bits(kind)),
                "magnitude": Out(width),
            }
        )

    def build(self) -> Module:
        """Build the shifter."""
        m = Module()
        value, width = self.value, len(self.magnitude)
        normal = Signal()
        field = Signal(len(value.exponent))
        placed = Signal(width)
        distance = Signal(min((width - 1).bit_length(), len(value.exponent)))
        significand: Value = Cat(value.mantissa, normal)
        if len(self.normalise):
            significand = (significand << self.normalise)[: len(significand)]
        significand = jam(significand, width)
        m.d.comb += [
            normal.eq(value.exponent.any()),
            field.eq(Cat(value.exponent[0] | ~normal, value.exponent[1:])),  # subnormals have 1
            distance.eq(saturating_difference(m, self.reference, field, len(distance))),
            placed.eq(Cat(Const(0, width - len(significand)), significand)),
            self.magnitude.eq(shift_right_jam(m, placed, distance)),
        ]
        return m


def lane_layout(ladder: Ladder) -> data.StructLayout:
    """Return the fields of ``LaneTerms``: for each multiplier, largest first, changes of two sums.

    A product is at most (after - before) * (stop - 1), a square at most after^2 - before^2.
    """
    rows = ladder.steps()
    return data.StructLayout(
        {
            **{
                f"product_{n}": max((s.after - s.before) * (s.stop - 1) for s in row).bit_length()
                for n, row in enumerate(rows)
            },
            **{
                f"square_{n}": max(s.after**2 - s.before**2 for s in row).bit_length()
                for n, row in enumerate(rows)
            },
        }
    )


class LaneTerms(Component):
    """What one magnitude adds to the sums of all multipliers; combinational.

    Only the largest multiplier takes a full choice among the multiples of u. Each smaller one adds
    one, two or four times u, and no adder, if u lies between the thresholds of the two multipliers.

    Parameters
    ----------
    ladder
        The numbers.

    Members
    -------
    u : In(width)
        The magnitude.
    terms : Out(lane_layout(ladder))
        multiple * u and multiple^2: of the largest multiplier, then how much each next one adds.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        super().__init__({"u": In(ladder.width), "terms": Out(lane_layout(ladder))})

    def build(self) -> Module:
        """Build comparators and choices."""
        m = Module()
        ladder, u = self._ladder, self.u
        triple = named(m, "triple", u + (u << 1))

        def times(factor: int) -> Value:
            """Return factor * u, for a factor 2^n or 3 * 2^n."""
            zeros = (factor & -factor).bit_length() - 1
            return Cat(Const(0, zeros), {1: u, 3: triple}[factor >> zeros])

        marks = {mark for row in ladder.steps() for step in row for mark in (step.start, step.stop)}
        reached: dict[int, Value] = {
            mark: named(m, f"reached_{mark >> ladder.shift}", at_least(u, mark))
            for mark in sorted(marks - {1 << ladder.width})
        }
        reached[1 << ladder.width] = Const(0, 1)
        for n, row in enumerate(ladder.steps()):
            chosen = {
                step: named(
                    m, f"chosen_{n}_{step.after}", reached[step.start] & ~reached[step.stop]
                )
                for step in row
            }
            by_factor: dict[int, list[Value]] = {}
            for step, bit in chosen.items():
                by_factor.setdefault(step.after - step.before, []).append(bit)
            m.d.comb += [
                self.terms[f"product_{n}"].eq(
                    one_hot_mux(
                        [Cat(*bits).any() for bits in by_factor.values()],
                        [times(factor) for factor in by_factor],
                    )
                ),
                self.terms[f"square_{n}"].eq(
                    one_hot_mux(
                        list(chosen.values()),
                        [Const(step.after**2 - step.before**2) for step in row],
                    )
                ),
            ]
        return m


def sums_layout(ladder: Ladder) -> data.StructLayout:
    """Return the fields of ``SubgroupSums``: for each multiplier, largest first, both sums.

    A sum is at most lanes * multiple * (2^width - 1), or lanes * multiple^2, with the largest
    multiple within reach.
    """
    lanes, most = ladder.block.metadata.subgroup, (1 << ladder.width) - 1
    reach = [ladder.multiples[len(ladder.thresholds(m))] for m in ladder.multipliers]
    return data.StructLayout(
        {
            **{f"product_{n}": (lanes * r * most).bit_length() for n, r in enumerate(reach)},
            **{f"square_{n}": (lanes * r * r).bit_length() for n, r in enumerate(reach)},
        }
    )


class SubgroupSums(Component):
    """Sums of multiple * u and of multiple^2 over a subgroup, for each multiplier; combinational.

    Parameters
    ----------
    ladder
        The numbers.

    Members
    -------
    u : In(ArrayLayout(width, subgroup))
        The magnitudes.
    sums : Out(sums_layout(ladder))
        The sums.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        size = ladder.block.metadata.subgroup
        super().__init__(
            {
                "u": In(data.ArrayLayout(unsigned(ladder.width), size)),
                "sums": Out(sums_layout(ladder)),
            }
        )

    def build(self) -> Module:
        """Build the lanes and the adders."""
        m = Module()
        lanes = [LaneTerms(self._ladder) for _ in range(self._ladder.block.metadata.subgroup)]
        for n, lane in enumerate(lanes):
            m.submodules[f"lane_{n}"] = lane
            m.d.comb += lane.u.eq(self.u[n])
        for kind in ("product", "square"):
            for n in range(len(self._ladder.multipliers)):
                terms = [lane.terms[f"{kind}_{n}"] for lane in lanes]
                before = [self.sums[f"{kind}_{n - 1}"]] if n else []
                m.d.comb += self.sums[f"{kind}_{n}"].eq(total([*terms, *before]))
        return m


class BestMultiplier(Component):
    """The multiplier of the largest gain, the smallest of equals; combinational.

    The gain of a candidate is how much less its squared error is than that of all codes zero:
    sum q (2w - q) = M * (sum of products - M * sum of squares << shift), in units of
    2^-(fraction_bits + 2).

    Parameters
    ----------
    ladder
        The numbers.

    Members
    -------
    sums : In(sums_layout(ladder))
        Of ``SubgroupSums``.
    k : Out(metadata bits)
        The multiplier is 1 + k/4.
    gain : Out(ladder.gain_bits())
        Its gain.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        super().__init__(
            {
                "sums": In(sums_layout(ladder)),
                "k": Out(ladder.block.metadata.bits),
                "gain": Out(ladder.gain_bits()),
            }
        )

    def build(self) -> Module:
        """Build the gains and the tournament."""
        m = Module()
        ladder = self._ladder
        entries: list[Value] = []
        for n, multiplier in enumerate(ladder.multipliers):
            k = multiplier - min(ladder.multipliers)
            product, square = self.sums[f"product_{n}"], self.sums[f"square_{n}"]
            # Never negative: a code is chosen only where its gain is not.
            over = Signal(ladder.gain_bits(), name=f"over_{k}")
            gain = Signal(ladder.gain_bits(), name=f"gain_{k}")
            m.d.comb += [
                over.eq(product - ((square * multiplier) << ladder.shift)),
                gain.eq(over * multiplier),
            ]
            entries.insert(0, Cat(gain, Const(k, len(self.k))))
        best = first_largest(m, entries, len(self.gain), "best")
        m.d.comb += Cat(self.gain, self.k).eq(best)
        return m


def first_largest(m: Module, entries: Sequence[Value], key_bits: int, name: str) -> Value:
    """Return the first of the entries with the largest key, their low ``key_bits`` bits."""
    count = iter(range(len(entries)))

    def better(a: Value, b: Value) -> Value:
        return named(m, f"{name}_{next(count)}", Mux(a[:key_bits] < b[:key_bits], b, a))

    return reduce_tree(better, list(entries))


class SubgroupCodes(Component):
    """Codes of a subgroup under the multiplier and offset that the search chose; combinational.

    Parameters
    ----------
    ladder
        Of the lowest offset, with no more fraction bits than the thresholds need.

    Members
    -------
    magnitudes : In(ArrayLayout(width + 1, subgroup))
        The magnitudes, and below them 1 if anything is left.
    offset : In(2)
        Offset of the shared scale, less the lowest.
    k : In(metadata bits)
        The multiplier is 1 + k/4.
    codes : Out(ArrayLayout(magnitude code, subgroup))
        Nearest codes, ties to the even one, saturating.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        size = ladder.block.metadata.subgroup
        super().__init__(
            {
                "magnitudes": In(data.ArrayLayout(unsigned(ladder.width + 1), size)),
                "offset": In(2),
                "k": In(ladder.block.metadata.bits),
                "codes": Out(data.ArrayLayout(unsigned(ladder.element.bits - 1), size)),
            }
        )

    def build(self) -> Module:
        """Build the thresholds, which all lanes share, and the comparisons."""
        m = Module()
        ladder = self._ladder
        nothing = 2 << ladder.width  # no magnitude is as large
        marks = []
        for code in range(ladder.element.max_code):
            by_k = []
            for multiplier in reversed(ladder.multipliers):
                reach = dict(enumerate(ladder.thresholds(multiplier)))
                # The lowest bit tells a tie, which goes up to an even code only.
                by_k.append(Const(2 * reach[code] + 1 - code % 2 if code in reach else nothing))
            mark = Signal(ladder.width + 2, name=f"mark_{code + 1}")
            m.d.comb += mark.eq(Array(by_k)[self.k])
            marks.append(mark)
        for n in range(ladder.block.metadata.subgroup):
            x = named(m, f"x_{n}", shift_right_jam(m, self.magnitudes[n], self.offset))
            reached = [named(m, f"reached_{n}_{c + 1}", x >= mark) for c, mark in enumerate(marks)]
            m.d.comb += self.codes[n].eq(total(reached))
        return m


class WaitingBeats(Component):
    """Queue that falls through: beats wait for the end of their group's search.

    Parameters
    ----------
    width
        Bits of a beat.
    depth
        Beats that it holds.

    Members
    -------
    enable : In(1)
        Nothing moves without it.
    push, i : In
        Take a beat; there must be room.
    pop : In(1)
        Drop the oldest beat.
    o : Out(width)
        The oldest beat, ``depth`` clocks after it was taken at the earliest.
    """

    def __init__(self, width: int, depth: int) -> None:
        self._depth = depth
        super().__init__(
            {"enable": In(1), "push": In(1), "i": In(width), "pop": In(1), "o": Out(width)}
        )

    def build(self) -> Module:
        """Build the places; a beat moves on when the place ahead is free or becomes free."""
        m = Module()
        beats = [Signal(len(self.i), name=f"beat_{n}", reset_less=True) for n in range(self._depth)]
        valids = [Signal(name=f"valid_{n}") for n in range(self._depth)]
        moves: Value = self.pop
        for n in reversed(range(self._depth)):
            moves = named(m, f"moves_{n}", moves | ~valids[n])
            with m.If(self.enable & moves):
                m.d.sync += [
                    valids[n].eq(valids[n - 1] if n else self.push),
                    beats[n].eq(beats[n - 1] if n else self.i),
                ]
        m.d.comb += self.o.eq(beats[-1])
        return m


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
        m.submodules.queue = queue = Queue(packet(group_layout(block)))
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

        def stage(name: str, valid: Value, token_before: Value) -> tuple[Signal, Signal]:
            """Return the valid bit and the token of the next stage."""
            next_valid = Signal(name=f"{name}_valid")
            next_token = Signal(token, name=f"{name}_token", reset_less=True)
            with m.If(advance):
                m.d.sync += [next_valid.eq(valid), next_token.eq(token_before)]
            return next_valid, next_token

        # Sums of each subgroup for the offsets of this clock, then the best multiplier of each.
        summed_valid, summed_token = stage("summed", aligned_valid, aligned_token)
        best_valid, best_token = stage("best", summed_valid, summed_token)
        gains: list[list[Value]] = []
        fields: list[Value] = []
        for slot, (ladder, shift) in enumerate(self._ladders(integer_bits)):
            gains.append([])
            for s in range(subgroups):
                m.submodules[f"sums_{slot}_{s}"] = adders = SubgroupSums(ladder)
                m.submodules[f"best_{slot}_{s}"] = chooser = BestMultiplier(ladder)
                for n in range(block.metadata.subgroup):
                    x = aligned[s * block.metadata.subgroup + n].magnitude
                    u: Value = jam(x, len(x) - 1)
                    if clocks > 1:  # the ladder of the highest offset, the others shifted up
                        phases = [Cat(Const(0, clocks - 1 - p), u) for p in range(clocks)]
                        u = Array(phases)[aligned_token.phase]
                    m.d.comb += adders.u[n].eq(u)
                sums = Signal(sums_layout(ladder), name=f"sums_{slot}_{s}", reset_less=True)
                k = Signal(block.metadata.bits, name=f"k_{slot}_{s}", reset_less=True)
                gain = Signal(ladder.gain_bits(), name=f"gain_{slot}_{s}", reset_less=True)
                m.d.comb += chooser.sums.eq(sums)
                with m.If(advance):
                    m.d.sync += [sums.eq(adders.sums), k.eq(chooser.k), gain.eq(chooser.gain)]
                fields.append(k)
                gains[slot].append(Cat(Const(0, shift), gain))

        # Gains of the group: one total an offset, in a ring of as many places as phases. A lane's
        # gain is at most (|x| / scale)^2 < 2^(2 integer_bits), in units of the lowest offset's.
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
        found = Cat(*fields)
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
        best = named(m, "best_offset", first_largest(m, entries, total_bits + 1, "better_offset"))
        offset = best[-2:]
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
        m.submodules.waiting = waiting = WaitingBeats(
            waiting_layout.size, beats + STAGES_BEFORE_CHOICE // clocks
        )
        m.d.comb += [
            waiting.enable.eq(advance),
            waiting.push.eq(aligned_valid & phase_ends),
            waiting.i.eq(
                Cat(
                    Cat(jam(lane.magnitude, code_ladder.width + 1), lane.sign)
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

    def _ladders(self, integer_bits: int) -> list[tuple[Ladder, int]]:
        """Return the ladder of each offset of a clock, and the shift that makes gains comparable.

        With an offset b, w = |x| / (scale * 2^b) has b bits more behind the point and b fewer
        before it, and a gain is worth 4^b times its own units of 2^-(F + b + 2).
        """
        low, high = self.offsets[0], self.offsets[-1]
        if self.clocks_per_beat > 1:
            return [(Ladder(self.block, self.fraction_bits + high, integer_bits - low), 0)]
        return [
            (Ladder(self.block, self.fraction_bits + b, integer_bits - b), b - low)
            for b in self.offsets
        ]

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
