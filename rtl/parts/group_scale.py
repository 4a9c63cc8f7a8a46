"""The largest exponent of a group, and the shared scale that follows from it by the floor rule."""

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import FloatElement, InputType
from m2xfp.rtl.arith.datapath import leading_one, maximum, reduce_tree
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.verilog.component import Component

__all__ = ["GroupPeak", "SharedScale", "lowest_reference", "normalise_bits"]


def normalise_bits(kind: InputType) -> int:
    """Return the bits of the shift that normalises a group of subnormals.

    None with an exponent of 8 bits, the width of E8M0's: the scale of such a group is clamped to
    2^-127, so its subnormals are used as they are. Those of float16 lie well inside E8M0's range.
    """
    return kind.mantissa_bits.bit_length() if kind.exponent_bits < 8 else 0


def lowest_reference(kind: InputType, element: FloatElement) -> int:
    """Return the least exponent field that ``SharedScale`` gives as reference.

    With an 8-bit exponent it is where the clamp of the scale at 0 sets in.
    """
    return 1 if normalise_bits(kind) else element.emax + kind.bias - 127


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
