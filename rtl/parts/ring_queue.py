"""A queue of a few registers, read in the clock after the write."""

from amaranth.hdl import Array, Module, Signal
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.verilog.component import Component

__all__ = ["RingQueue"]


class RingQueue(Component):
    """Keep a few words in order.

    Parameters
    ----------
    width
        Bits of a word.
    depth
        Words that it holds, a power of two.

    Members
    -------
    push, i : In
        Take a word; there must be room.
    pop : In(1)
        Drop the oldest word; there must be one.
    o : Out(width)
        The oldest word.
    level : Out
        Words that it holds.
    """

    def __init__(self, width: int, depth: int) -> None:
        self._depth = depth
        super().__init__(
            {
                "push": In(1),
                "i": In(width),
                "pop": In(1),
                "o": Out(width),
                "level": Out(depth.bit_length()),
            }
        )

    def build(self) -> Module:
        """Build a ring of registers."""
        m = Module()
        words = Array(
            Signal(len(self.i), name=f"word_{n}", reset_less=True) for n in range(self._depth)
        )
        pushed, popped = (Signal(range(self._depth), name=n) for n in ("pushed", "popped"))
        level = Signal(len(self.level), name="count")
        m.d.sync += level.eq(level + self.push - self.pop)
        with m.If(self.push):
            m.d.sync += [words[pushed].eq(self.i), pushed.eq(pushed + 1)]
        with m.If(self.pop):
            m.d.sync += popped.eq(popped + 1)
        m.d.comb += [self.o.eq(words[popped]), self.level.eq(level)]
        return m
