"""A FIFO of registers through which beats move to the free place that is furthest ahead."""

from amaranth.hdl import Module, Signal, Value
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.verilog.component import Component

__all__ = ["FallThroughFifo"]


class FallThroughFifo(Component):
    """FIFO of registers: a beat moves on by itself while there is a free place ahead of it.

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
