"""Groups of one beat or several in a stream whose formats change: where they begin and end."""

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.switch_front import is_mode
from m2xfp.rtl.parts.switch_pair import SwitchPair, mode_layout
from m2xfp.rtl.verilog.component import Component

__all__ = ["SwitchFraming"]


class SwitchFraming(Component):
    """Count the beats of groups, refuse what there is not, and turn the ring of accumulators.

    The ring turns by one chain with each whole group, so groups of any length belong to the chains
    in turn. In a pause it turns once round, so that results which are in it come out; a group that
    comes meanwhile waits until it stands as before, ``chains - 1`` steps at most.

    Parameters
    ----------
    pair
        Numbers of the unit.
    chains
        Accumulators in the ring.

    Members
    -------
    enable : In(1)
        The pipeline goes on in this clock.
    request : In(1), mode : In(mode_layout)
        There is a beat, of these formats.
    grant : Out(1)
        It may enter; a function of registers alone.
    narrow, opening, closing : Out(1)
        The beat is of an FP4 group; it is the first, the last of its group. A beat of formats that
        there are not is a group.
    refused : Out(1)
        With ``closing``: the group is of formats that there are not, or they changed within it.
    turn : Out(1)
        The ring turns when what is now in this step arrives there.
    """

    def __init__(self, pair: SwitchPair, chains: int) -> None:
        self.pair, self._chains = pair, chains
        super().__init__(
            {
                "enable": In(1),
                "request": In(1),
                "mode": In(mode_layout),
                "grant": Out(1),
                "narrow": Out(1),
                "opening": Out(1),
                "closing": Out(1),
                "refused": Out(1),
                "turn": Out(1),
            }
        )

    def build(self) -> Module:
        """Build both counters."""
        m = Module()
        pairs, beats = self.pair.pairs, self.pair.beats
        wide = named(m, "wide", is_mode(self.mode, pairs.wide))
        narrow = named(m, "narrow_mode", is_mode(self.mode, pairs.narrow))
        count = Signal(range(beats))
        inside = named(m, "inside", count.any())
        mode = Signal(self.mode.as_value().shape(), reset_less=True)
        bad = Signal(reset_less=True)
        taken = named(m, "taken", self.enable & self.request & self.grant)
        changed = named(m, "changed", mode != self.mode.as_value())
        m.d.comb += [
            self.narrow.eq(narrow),
            self.opening.eq(~inside),
            self.closing.eq(Mux(inside, count == beats - 1, ~wide)),
            self.refused.eq(Mux(inside, bad | changed, ~(wide | narrow))),
        ]
        with m.If(taken):
            m.d.sync += [
                count.eq(Mux(self.closing, 0, count + 1)),
                bad.eq(self.refused),
                mode.eq(self.mode),
            ]
        owed: Value = Const(0, 1)  # turns until the ring stands as it did before the pause
        if self._chains > 1:
            owed = Signal(range(self._chains), name="owed")
        stale = Signal()  # a group has entered since the ring last went round
        turning = named(m, "turning", owed.any())
        whole = named(m, "whole", self.request & ~turning & self.closing)
        pause = named(m, "pause", ~self.request & ~turning & stale)
        m.d.comb += [self.grant.eq(~turning), self.turn.eq(turning | whole | pause)]
        with m.If(self.enable):
            m.d.sync += stale.eq((stale | whole) & ~pause)
            if self._chains > 1:
                with m.If(turning):
                    m.d.sync += owed.eq(owed - 1)
                with m.Elif(pause):
                    m.d.sync += owed.eq(self._chains - 1)
        return m
