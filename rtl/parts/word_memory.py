"""A memory of words, a write and a read a clock: behavioural, or made of a library's macros."""

from amaranth.hdl import C, Cat, ClockSignal, Instance, Module, Mux, Signal
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.verilog.component import Component
from m2xfp.rtl.verilog.macros import Macro

__all__ = ["WordMemory"]


class WordMemory(Component):
    """Memory of words: a write and a read a clock.

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

    def build_of(self, macro: Macro) -> Module:
        """Build the memory of macros side by side.

        Raises
        ------
        InputError
            The macro has fewer words.
        """
        macro.check_depth(self._width, self._depth)
        m = Module()
        # What the macros have beyond a word is a signal of its own, which nothing reads.
        count = -(-self._width // macro.width)
        fetched, spare = Signal(self._width), Signal(count * macro.width - self._width)
        for n in range(count):
            here = slice(n * macro.width, (n + 1) * macro.width)
            roles = {
                "clock": ClockSignal(),
                "write": self.write,
                "write_address": self.write_address,
                "write_data": self.write_data[here],
                "read": self.read,
                "read_address": self.read_address,
            }
            ports = {}
            for name, port in macro.ports.items():
                if port.role == "read_data":
                    ports[f"o_{name}"] = Cat(fetched, spare)[here]
                    continue
                if port.role in ("zeros", "ones"):
                    value = C(-(port.role == "ones") & ((1 << port.width) - 1), port.width)
                else:
                    value = roles[port.role]
                    value = Cat(value, C(0, macro.width_of(port) - len(value)))
                ports[f"i_{name}"] = ~value if port.inverted else value
            m.submodules[f"macro_{n}"] = Instance(macro.name, **ports)
        if macro.holds:
            m.d.comb += self.read_data.eq(fetched)
            return m
        # The macro's output is the word for one clock only.
        fresh = Signal(reset_less=True)
        held = Signal(self._width, reset_less=True)
        m.d.sync += [fresh.eq(self.read), held.eq(self.read_data)]
        m.d.comb += self.read_data.eq(Mux(fresh, fetched, held))
        return m
