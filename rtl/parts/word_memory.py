"""A memory of words, a write and a read a clock."""

from amaranth.hdl import Module
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.verilog.component import Component

__all__ = ["WordMemory"]


class WordMemory(Component):
    """Memory of words of the bus: a write and a read a clock.

    Parameters
    ----------
    width, depth
        Bits of a word, and words.

    Members
    -------
    write, write_address, write_data : In
        Store a word.
    read, read_address : In
        Fetch a word; it is at ``read_data`` from the next clock until the next read.
    """

    def __init__(self, width: int, depth: int) -> None:
        self._width, self._depth = width, depth
        address = max(1, (depth - 1).bit_length())
        super().__init__(
            {
                "write": In(1),
                "write_address": In(address),
                "write_data": In(width),
                "read": In(1),
                "read_address": In(address),
                "read_data": Out(width),
            }
        )

    def build(self) -> Module:
        """Build the memory."""
        m = Module()
        m.submodules.words = words = Memory(shape=self._width, depth=self._depth, init=[])
        write, read = words.write_port(), words.read_port()
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            read.en.eq(self.read),
            read.addr.eq(self.read_address),
            self.read_data.eq(read.data),
        ]
        return m
