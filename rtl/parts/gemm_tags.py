"""The tags of activations, beside the engines that these go through."""

from amaranth.hdl import Array, Module, Signal
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.parts.gemm_layouts import TAG_BITS
from m2xfp.rtl.verilog.component import Component

__all__ = ["TagQueue"]


class TagQueue(Component):
    """Keep the tag of each beat that is in an engine.

    Parameters
    ----------
    latency
        Clocks that a beat takes through the engine, which holds a beat a clock and one in the spare
        entry behind them at most; the queue holds so many.

    Members
    -------
    push, i : In
        A beat goes into the engine, with this tag.
    pop : In(1)
        The oldest beat leaves it.
    o : Out(TAG_BITS)
        Tag of the oldest beat.
    empty : Out(1)
        There is none.
    """

    def __init__(self, latency: int) -> None:
        self._address_bits = (latency + 1).bit_length()
        super().__init__(
            {
                "push": In(1),
                "i": In(TAG_BITS),
                "pop": In(1),
                "o": Out(TAG_BITS),
                "empty": Out(1),
            }
        )

    def build(self) -> Module:
        """Build a ring of registers."""
        m = Module()
        bits = self._address_bits
        tags = Array(Signal(TAG_BITS, name=f"tag_{n}", reset_less=True) for n in range(1 << bits))
        pushed, popped = Signal(bits), Signal(bits)
        with m.If(self.push):
            m.d.sync += [tags[pushed].eq(self.i), pushed.eq(pushed + 1)]
        with m.If(self.pop):
            m.d.sync += popped.eq(popped + 1)
        m.d.comb += [self.o.eq(tags[popped]), self.empty.eq(pushed == popped)]
        return m
