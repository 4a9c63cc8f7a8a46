"""The front end of encoders: beats in, whole groups out, with the scale that their peak gives."""

from dataclasses import replace

from amaranth.hdl import Module
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from m2xfp.formats import BlockFormat, InputType
from m2xfp.rtl.parts.beat_store import BeatStore
from m2xfp.rtl.parts.elements import float_element
from m2xfp.rtl.parts.group_scale import GroupPeak, SharedScale, normalise_bits
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["GroupFront", "narrowed"]


def narrowed(kind: InputType, fraction_bits: int, block: BlockFormat) -> InputType:
    """Return the type that values are narrowed to on arrival by ``sticky_or``; no result changes.

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
    Full throughput, see ``BeatStore``.
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
        """Build the store and the scale."""
        m = Module()
        kind = self._stored
        m.submodules.peak = peak = GroupPeak(kind, self._lanes)
        m.submodules.shared = shared = SharedScale(kind, float_element(self._block))

        store = BeatStore(kind, self._lanes, self._beats)
        store.build(m, self.i, peak, free=self.step, step=store.draining & self.step, start=0)
        m.d.comb += [
            self.valid.eq(store.draining),
            self.beat.eq(store.beat),
            self.index.eq(store.drain),
            self.last.eq(store.group_last),
            shared.peak.eq(store.group_peak),
            self.scale.eq(shared.scale),
            self.reference.eq(shared.reference),
            self.normalise.eq(shared.normalise),
            self.poisoned.eq(shared.poisoned),
        ]
        return m
