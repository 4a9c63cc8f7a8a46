"""The front end of encoders: beats in, whole groups out, with the scale that their peak gives."""

from dataclasses import replace

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import BlockFormat, FloatElement, InputType
from m2xfp.rtl.arith.datapath import jam
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.units.activation_quantizer import GroupPeak, SharedScale, normalise_bits
from m2xfp.rtl.verilog.component import Component

__all__ = ["GroupFront", "narrowed"]


def narrowed(kind: InputType, fraction_bits: int, block: BlockFormat) -> InputType:
    """Return the type that values are narrowed to on arrival by ``jam``; no result changes.

    A value's highest bit has at most the weight 2^emax in units of the scale, so emax +
    ``fraction_bits`` mantissa bits reach down to 2^-fraction_bits and one more holds the rest.
    Subnormals lack the hidden bit, but stand at least one step lower where they are not normalised;
    where they are (float16), the mantissa is kept.
    """
    if normalise_bits(kind):
        return kind
    wanted = block.element.emax + fraction_bits + 1
    return replace(kind, mantissa_bits=min(kind.mantissa_bits, wanted))


class GroupFront(Component):
    """Gathers the beats of a group, finds its peak, and hands the beats on with the shared scale.

    Parameters
    ----------
    kind
        Type of the values.
    stored
        Type that they are narrowed to; differs from ``kind`` in the mantissa only.
    lanes
        Values a beat; divides the group.
    block
        The target format, with an E8M0 scale.

    Members
    -------
    i : In(packet_stream(ArrayLayout(value, lanes)))
        Values. ``last`` counts on a group's final beat only.
    valid : Out(1)
        A beat of a whole group stands on ``beat``, a clock after the group's last beat at the
        earliest; it stays until ``step``.
    step : In(1)
        The beat is taken; ignored unless ``valid``.
    beat : Out(ArrayLayout(stored value, lanes))
        The beat.
    index : Out
        Its number in the group.
    last : Out(1)
        The group's ``last``.
    scale, reference, normalise, poisoned : Out
        The group's, as ``SharedScale`` gives them.

    Notes
    -----
    One store of a group's size is enough for full throughput: while a group drains, the next fills
    the places that it has left, so ``fill`` never passes ``drain``.
    """

    def __init__(self, kind: InputType, stored: InputType, lanes: int, block: BlockFormat) -> None:
        self._kind, self._stored, self._lanes, self._block = kind, stored, lanes, block
        self._beats = block.group // lanes
        super().__init__(
            {
                "i": In(packet_stream(data.ArrayLayout(value_layout(kind), lanes))),
                "valid": Out(1),
                "step": In(1),
                "beat": Out(data.ArrayLayout(value_layout(stored), lanes)),
                "index": Out(range(self._beats)),
                "last": Out(1),
                "scale": Out(8),
                "reference": Out(kind.exponent_bits),
                "normalise": Out(normalise_bits(stored)),
                "poisoned": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the store and its two counters."""
        m = Module()
        kind, beats, element = self._stored, self._beats, self._block.element
        assert isinstance(element, FloatElement)
        m.submodules.peak = peak = GroupPeak(kind, self._lanes)
        m.submodules.shared = shared = SharedScale(kind, element)

        arriving = Signal(data.ArrayLayout(value_layout(kind), self._lanes))
        for n in range(self._lanes):
            value = self.i.payload.data[n]
            m.d.comb += [
                arriving[n].mantissa.eq(jam(value.mantissa, kind.mantissa_bits)),
                arriving[n].exponent.eq(value.exponent),
                arriving[n].sign.eq(value.sign),
            ]

        store = Array(
            Signal(arriving.shape(), name=f"store_{n}", reset_less=True) for n in range(beats)
        )
        fill = Signal(range(beats))
        drain = Signal(range(beats))
        draining = Signal()
        group_last = Signal(reset_less=True)
        gathered = Signal(GroupPeak.layout(kind), reset_less=True)  # of the group that fills
        group_peak = Signal(GroupPeak.layout(kind), reset_less=True)  # of the group that drains
        accept = Signal()
        fill_ends = Signal()
        drain_ends = Signal()
        m.d.comb += [
            self.i.ready.eq(~draining | (fill != drain) | self.step),
            accept.eq(self.i.valid & self.i.ready),
            fill_ends.eq(fill == beats - 1),
            drain_ends.eq(drain == beats - 1),
            peak.lanes.eq(arriving),
            peak.earlier.eq(Mux(fill == 0, 0, gathered) if beats > 1 else 0),
        ]
        with m.If(draining & self.step):
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
        m.d.comb += [
            self.valid.eq(draining),
            self.beat.eq(store[drain]),
            self.index.eq(drain),
            self.last.eq(group_last),
            shared.peak.eq(group_peak),
            self.scale.eq(shared.scale),
            self.reference.eq(shared.reference),
            self.normalise.eq(shared.normalise),
            self.poisoned.eq(shared.poisoned),
        ]
        return m
