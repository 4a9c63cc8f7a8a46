"""The store in which the beats of a group wait for its scale."""

from amaranth.hdl import Array, Module, Mux, Signal, Value, ValueLike
from amaranth.lib import data, stream

from m2xfp.formats import InputType
from m2xfp.rtl.arith.datapath import sticky_or
from m2xfp.rtl.parts.group_scale import GroupPeak, SignedPeaks, peak_layout
from m2xfp.rtl.parts.layouts import value_layout

__all__ = ["BeatStore"]


class BeatStore:
    """Registers for the beats of one group: while a group drains, the next one fills them.

    Written at ``fill``, read at ``drain``. The group that fills takes the places that the other one
    has left, so ``fill`` never passes ``drain``, and a store of a group's size is enough for full
    throughput. Not a module of its own: it is built into that of its user.

    Parameters
    ----------
    kind
        Type of the stored values.
    lanes
        Values a beat.
    beats
        Beats a group.
    layout
        Layout of the peak; by default that of the floor rule.

    Members
    -------
    draining
        A beat of a whole group stands on ``beat``, a clock after the group's last beat arrived at
        the earliest.
    drain, drain_ends
        Its number in the group, and whether it is the last.
    group_peak, group_last
        Peak and ``last`` of the group that drains.
    """

    def __init__(
        self, kind: InputType, lanes: int, beats: int, layout: data.StructLayout | None = None
    ) -> None:
        self._kind, self._lanes, self._beats = kind, lanes, beats
        self._layout = data.ArrayLayout(value_layout(kind), lanes)
        self._store = Array(
            Signal(self._layout, name=f"store_{n}", reset_less=True) for n in range(beats)
        )
        self.drain = Signal(range(beats), name="drain")
        self.drain_ends = Signal(name="drain_ends")
        self.draining = Signal(name="draining")
        self.group_peak = Signal(layout or peak_layout(kind), name="group_peak", reset_less=True)
        self.group_last = Signal(name="group_last", reset_less=True)

    @property
    def beat(self) -> Value:
        """The beat that drains."""
        return self._store[self.drain]

    def build(
        self,
        m: Module,
        i: stream.Interface,
        peak: GroupPeak | SignedPeaks,
        *,
        free: Value,
        step: Value,
        start: ValueLike,
        arriving: data.View | None = None,
    ) -> None:
        """Add the store to a module.

        Parameters
        ----------
        m
            The module.
        i
            Its input of values, which are narrowed to the stored type on arrival.
        peak
            Finds the peak of a beat; connected here. It sees the values before they are narrowed,
            if it is of their type.
        free
            The beat that drains, if there is one, is taken in this clock.
        step
            There is one, and it is taken.
        start
            Peak that a group begins with.
        arriving
            What is stored of the values; by default with as many bits as the stored type has.
        """
        beats = self._beats
        if arriving is None:
            arriving = self._narrowed(m, i)
        fill = Signal(range(beats))
        accept = Signal()
        fill_ends = Signal()
        gathered = Signal(self.group_peak.shape(), reset_less=True)  # of the group that fills
        m.d.comb += [
            i.ready.eq(~self.draining | (fill != self.drain) | free),
            accept.eq(i.valid & i.ready),
            fill_ends.eq(fill == beats - 1),
            self.drain_ends.eq(self.drain == beats - 1),
            peak.lanes.eq(arriving if peak.kind == self._kind else i.payload.data),
            peak.earlier.eq(Mux(fill == 0, start, gathered) if beats > 1 else start),
        ]
        with m.If(step):
            m.d.sync += self.drain.eq(Mux(self.drain_ends, 0, self.drain + 1))
            with m.If(self.drain_ends):
                m.d.sync += self.draining.eq(0)
        with m.If(accept):
            m.d.sync += [
                self._store[fill].eq(arriving),
                fill.eq(Mux(fill_ends, 0, fill + 1)),
                gathered.eq(peak.peak),
            ]
            with m.If(fill_ends):
                m.d.sync += [
                    self.draining.eq(1),
                    self.group_peak.eq(peak.peak),
                    self.group_last.eq(i.payload.last),
                ]

    def _narrowed(self, m: Module, i: stream.Interface) -> data.View:
        """Return the values that arrive as they are stored: with as many bits as decide codes."""
        arriving = Signal(self._layout)
        for n in range(self._lanes):
            value = i.payload.data[n]
            m.d.comb += [
                arriving[n].mantissa.eq(sticky_or(value.mantissa, self._kind.mantissa_bits)),
                arriving[n].exponent.eq(value.exponent),
                arriving[n].sign.eq(value.sign),
            ]
        return arriving
