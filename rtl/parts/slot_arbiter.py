"""Which clock belongs to which chain of a ring of accumulators."""

from amaranth.hdl import Module, Signal
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.verilog.component import Component

__all__ = ["SlotArbiter"]


class SlotArbiter(Component):
    """Grant a group its slot: the step in which the ring of accumulators stands at its chain.

    The ring of accumulators turns by one chain in every step, with or without a group. Groups
    belong to the chains in turn, so after a pause of the input the next one waits until its chain
    comes round again.

    Parameters
    ----------
    chains
        Length of the ring.

    Members
    -------
    enable : In(1)
        The ring turns in this clock.
    request : In(1)
        There is a group.
    grant : Out(1)
        It may enter in this step; a function of registers alone.
    """

    def __init__(self, chains: int) -> None:
        self._chains = chains
        super().__init__({"enable": In(1), "request": In(1), "grant": Out(1)})

    def build(self) -> Module:
        """Build the counter."""
        m = Module()
        if self._chains == 1:
            m.d.comb += self.grant.eq(1)
            return m
        steps = Signal(range(self._chains))  # until the chain of the next group comes round
        m.d.comb += self.grant.eq(steps == 0)
        with m.If(self.enable):
            with m.If(steps != 0):
                m.d.sync += steps.eq(steps - 1)
            with m.Elif(~self.request):
                m.d.sync += steps.eq(self._chains - 1)
        return m
