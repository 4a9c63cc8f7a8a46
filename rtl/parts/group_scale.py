"""The largest exponent of a group, and the shared scale that follows from it."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FloatElement, InputType
from m2xfp.rtl.arith.datapath import leading_one, maximum, named, reduce_tree
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.scale_rules import FLOOR, ScaleRule
from m2xfp.rtl.verilog.component import Component

__all__ = [
    "GroupPeak",
    "SharedScale",
    "SignedPeaks",
    "lowest_reference",
    "normalise_bits",
    "peak_layout",
]


def normalise_bits(kind: InputType) -> int:
    """Return the bits of the shift that normalises a group of subnormals.

    None with an exponent of 8 bits, the width of E8M0's: the scale of such a group is clamped to
    2^-127, so its subnormals are used as they are. Those of float16 lie well inside E8M0's range.
    """
    return kind.mantissa_bits.bit_length() if kind.exponent_bits < 8 else 0


def lowest_reference(kind: InputType, element: FloatElement, rule: ScaleRule = FLOOR) -> int:
    """Return the least exponent field that ``SharedScale`` gives as reference.

    With an 8-bit exponent it is where the clamp of the scale at 0 sets in.
    """
    return 1 if normalise_bits(kind) else element.emax + kind.bias - 127 + rule.head


class GroupPeak(Component):
    """Largest exponent field of some values, and what else of the largest decides the scale.

    For fp16 that is the union of the mantissas, whose leading one is that of the largest: all that
    the floor rule needs of a group that is subnormal throughout. An 8-bit exponent makes do
    without: there the scale of such a group is clamped to 2^-127 anyway. Other rules ask whether
    the largest mantissa beside the largest exponent reaches a threshold. Each lane answers that for
    itself, and the answer takes part in the search as a bit below the exponent.

    Parameters
    ----------
    kind
        Type of the values.
    lanes
        Number of values.
    rule
        The rule of the scale.
    zero
        Whether the peak says that all values are zero.

    Members
    -------
    lanes : In(ArrayLayout(value, lanes))
        The values.
    earlier : In(layout)
        Peak of what came earlier, zero if nothing did.
    peak : Out(layout)
        Peak of both, combinational.
    """

    def __init__(
        self, kind: InputType, lanes: int, rule: ScaleRule = FLOOR, zero: bool = False
    ) -> None:
        self.kind, self._rule = kind, rule
        self.layout = peak_layout(kind, rule, zero)
        super().__init__(
            {
                "lanes": In(data.ArrayLayout(value_layout(kind), lanes)),
                "earlier": In(self.layout),
                "peak": Out(self.layout),
            }
        )

    def build(self) -> Module:
        """Build the trees."""
        m = Module()
        rule, earlier = self._rule, self.earlier
        lanes = [self.lanes[n] for n in range(self.lanes.shape().length)]

        def union(name: str, bits: list[Value]) -> None:
            m.d.comb += self.peak[name].eq(reduce_tree(lambda a, b: a | b, bits) | earlier[name])

        def reach(threshold: int | None) -> list[Value]:
            return [v.mantissa >= threshold for v in lanes]

        if rule.threshold is None:
            keys = [v.exponent for v in lanes]
            m.d.comb += self.peak.exponent.eq(maximum(m, [*keys, earlier.exponent]))
        else:
            pairs = zip(reach(rule.threshold), lanes, strict=True)
            keys = [Cat(above, v.exponent) for above, v in pairs]
            largest = maximum(m, [*keys, Cat(earlier.above, earlier.exponent)])
            m.d.comb += Cat(self.peak.above, self.peak.exponent).eq(largest)
        if rule.subnormal is not None:
            union("small_above", reach(rule.subnormal))
        if "largest" in self.layout.members:
            mantissas = [v.mantissa for v in lanes]
            m.d.comb += self.peak.largest.eq(maximum(m, [*mantissas, earlier.largest], "mantissa"))
        elif len(self.peak.union):
            union("union", [v.mantissa for v in lanes])
        if "any" in self.layout.members:
            union("any", [(v.exponent | v.mantissa).any() for v in lanes])
        return m


class SignedPeaks(Component):
    """Peaks of the values above zero and of the others, of groups with a scale for each.

    Parameters and members as those of ``GroupPeak``; the peak has the fields ``positive`` and
    ``negative``.
    """

    def __init__(
        self, kind: InputType, lanes: int, rule: ScaleRule = FLOOR, zero: bool = False
    ) -> None:
        self.kind, self._sides = kind, [GroupPeak(kind, lanes, rule, zero) for _ in range(2)]
        side = self._sides[0].layout
        self.layout = data.StructLayout({"positive": side, "negative": side})
        super().__init__(
            {
                "lanes": In(data.ArrayLayout(value_layout(kind), lanes)),
                "earlier": In(self.layout),
                "peak": Out(self.layout),
            }
        )

    def build(self) -> Module:
        """Build both."""
        m = Module()
        for negative, (name, side) in enumerate(zip(self.layout.members, self._sides, strict=True)):
            m.submodules[name] = side
            for n in range(self.lanes.shape().length):
                value = self.lanes[n]
                counts = value.sign if negative else ~value.sign
                m.d.comb += Value.cast(side.lanes[n]).eq(Mux(counts, Value.cast(value), 0))
            m.d.comb += [side.earlier.eq(self.earlier[name]), self.peak[name].eq(side.peak)]
        return m


def peak_layout(kind: InputType, rule: ScaleRule = FLOOR, zero: bool = False) -> data.StructLayout:
    """Return the fields of a peak.

    ``exponent``; ``union`` of the mantissas for fp16, or the ``largest`` of them under a rule with
    a threshold; ``above`` and ``small_above`` for the thresholds of the rule; ``any`` if a group of
    zeros counts.
    """
    mantissa = "union" if rule.threshold is None or not normalise_bits(kind) else "largest"
    fields = {
        "exponent": unsigned(kind.exponent_bits),
        mantissa: unsigned(kind.mantissa_bits if normalise_bits(kind) else 0),
    }
    if rule.threshold is not None:
        fields["above"] = unsigned(1)
    if rule.subnormal is not None:
        fields["small_above"] = unsigned(1)
    if zero:
        fields["any"] = unsigned(1)
    return data.StructLayout(fields)


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
    rule
        The rule of the scale.
    zero
        Scale of a group of zeros.

    Members
    -------
    peak : In(peak_layout(kind, rule, zero > 0))
        Peak of the whole group.
    scale : Out(8)
        E8M0 byte, by the floor rule E = clamp(floor(log2 amax) - emax + 127, 0, 254); 0xFF for a
        poisoned group.
    reference : Out(exponent bits)
        The exponent field that stands for a distance of zero; what is one above the element's
        largest binade if the rule has a head, so that none is above the reference.
    normalise : Out
        Left shift that all significands of a group of fp16 subnormals need; no bits otherwise.
    poisoned : Out(1)
        The group holds a NaN or an infinity.
    """

    def __init__(
        self,
        kind: InputType,
        element: FloatElement,
        clamp: bool = True,
        rule: ScaleRule = FLOOR,
        zero: int = 0,
    ) -> None:
        self._kind, self._element, self._clamp = kind, element, clamp
        self._rule, self._zero = rule, zero
        # floor(log2 amax) - emax + 127 = exponent field + offset for a normal peak
        self._offset = 127 - kind.bias - element.emax
        super().__init__(
            {
                "peak": In(peak_layout(kind, rule, zero > 0)),
                "scale": Out(8),
                "reference": Out(kind.exponent_bits),
                "normalise": Out(normalise_bits(kind)),
                "poisoned": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the scale."""
        m = Module()
        kind, rule = self._kind, self._rule
        offset = self._offset - rule.head  # of the scale against the reference
        exponent: Value = self.peak.exponent
        poisoned = self.poisoned.replicate(8)
        m.d.comb += self.poisoned.eq(exponent.all())
        if not len(self.normalise):
            # The clamp at 0 fixes the scale, and with it the reference.
            # Subnormals are below it, so they need no normalising: their distance is at least 1.
            lowest = lowest_reference(kind, self._element, rule)
            clamped = Mux(exponent < lowest, lowest, exponent) if self._clamp else exponent
            if rule.threshold is not None:
                clamped = clamped + self._above(exponent)
            m.d.comb += [
                self.reference.eq(clamped),
                self.scale.eq(self._or_zero((self.reference + offset) | poisoned)),
            ]
            return m
        # Never clamped: the smallest subnormal, 2^(1 - bias - mantissa_bits), is far above 2^-127.
        # A group of subnormals is normalised by its leading one, all lanes alike.
        largest = self.peak.union if rule.threshold is None else self.peak.largest
        normal = Signal()
        lead: Value = Signal(range(kind.mantissa_bits))
        above: Value = Const(0, 0)
        if rule.threshold is not None:
            field = named(m, "normalised", (largest << self.normalise)[: kind.mantissa_bits])
            above = named(m, "above", Mux(normal, self.peak.above, field >= rule.threshold))
        reference = exponent | ~normal
        m.d.comb += [
            normal.eq(exponent.any()),
            lead.eq(leading_one(largest)),
            self.reference.eq(reference + above if len(above) else reference),
            self.normalise.eq(Mux(normal, 0, kind.mantissa_bits - lead)),
        ]
        if len(above):
            exponent, lead = exponent + above, lead + above
        with m.If(normal):
            m.d.comb += self.scale.eq((exponent + offset) | poisoned)
        with m.Elif(largest.any()):
            m.d.comb += self.scale.eq(lead + (offset + 1 - kind.mantissa_bits))
        if self._zero:
            with m.Else():
                m.d.comb += self.scale.eq(self._zero)
        return m

    def _above(self, exponent: Value) -> Value:
        """Return whether the exponent counts one more: not beyond the largest scale."""
        above: Value = self.peak.above
        if self._offset or self._rule.head:
            return above
        small = 0 if self._rule.subnormal is None else self.peak.small_above
        last = (1 << len(exponent)) - 2
        return Mux(exponent.any(), above & (exponent != last), small)

    def _or_zero(self, scale: Value) -> Value:
        """Return the scale, or that of a group of zeros."""
        return Mux(self.peak.any, scale, self._zero) if self._zero else scale
