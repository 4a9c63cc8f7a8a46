"""The accelerator's AXI4-Lite registers, and its queue of descriptors."""

from collections.abc import Mapping

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, ValueLike
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.accelerator_map import FIELDS, OFFSETS
from m2xfp.rtl.parts.axi_channels import (
    OKAY,
    SLVERR,
    lite_address_layout,
    lite_read_layout,
    lite_write_layout,
    response_layout,
)
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.parts.word_memory import WordMemory
from m2xfp.rtl.verilog.component import Component

__all__ = ["ADDRESS_BITS", "WORDS", "AcceleratorRegisters", "descriptor_layout"]

ADDRESS_BITS = 8
"""Bits of an address of the registers."""

_FIRST, _PUSH = OFFSETS["operation"], OFFSETS["push"]
WORDS = tuple(
    name for name, offset in sorted(OFFSETS.items(), key=lambda item: item[1]) if offset >= _FIRST
)
"""The words of a descriptor in their order; the last one pushes it."""

descriptor_layout = data.StructLayout(dict.fromkeys(WORDS, 32))

IDENTIFICATION, MAP_VERSION = 0x4D325846, 2


class AcceleratorRegisters(Component):
    """Answer AXI4-Lite, keep the words of the next descriptor, and give descriptors in order.

    Writes to what cannot be written, reads of what cannot be read, and writes of parts of a word
    are answered by SLVERR and do nothing. A write that pushes waits while the queue is full; it is
    answered when the descriptor stands in the queue.

    Parameters
    ----------
    constants
        Values of the registers that describe the build, by register and field.
    depth
        Descriptors that the queue holds, a power of two.

    Members
    -------
    aw, w, b, ar, r
        The channels.
    descriptor : Out(stream)
        The oldest descriptor. Taking it says that it has ended.
    cause : In(8)
        What went wrong with it, valid when it is taken; 0 for nothing.
    runs, works, waits_acts, waits_weights, waits_results : In(1)
        What the counters count.
    timeout : Out(32)
        As it was set.
    irq : Out(1)
        An enabled interrupt is pending.
    """

    def __init__(self, constants: Mapping[str, Mapping[str, int]], depth: int) -> None:
        self._constants, self._depth = constants, depth
        super().__init__(
            {
                "aw": In(packet_stream(lite_address_layout(ADDRESS_BITS))),
                "w": In(packet_stream(lite_write_layout)),
                "b": Out(packet_stream(response_layout)),
                "ar": In(packet_stream(lite_address_layout(ADDRESS_BITS))),
                "r": Out(packet_stream(lite_read_layout)),
                "descriptor": Out(stream.Signature(descriptor_layout)),
                "cause": In(8),
                "runs": In(1),
                "works": In(1),
                "waits_acts": In(1),
                "waits_weights": In(1),
                "waits_results": In(1),
                "timeout": Out(32),
                "irq": Out(1),
            }
        )

    def build(self) -> Module:
        """Build both sides of the bus, what is kept, and the queue."""
        m = Module()
        write = Signal()
        address, word = Signal(ADDRESS_BITS), Signal(32)
        level = Signal(range(self._depth + 1))
        copying = Signal()
        self._take_writes(m, write, address, word, level == self._depth, copying)
        values = self._registers(m, write, address, word, level)
        self._answer_reads(m, values)
        self._queue(m, write, address, word, level, copying)
        return m

    def _take_writes(
        self,
        m: Module,
        write: Signal,
        address: Signal,
        word: Signal,
        full: Value,
        copying: Signal,
    ) -> None:
        """Take a write when address and data are there and the last answer was taken."""
        has_address, has_word, answers = Signal(), Signal(), Signal()
        strobes = Signal(4, reset_less=True)
        held_address = Signal(ADDRESS_BITS, reset_less=True)
        held_word = Signal(32, reset_less=True)
        response = Signal(2, reset_less=True)
        writable = ("error", "timeout", "int_enable", "int_status", *WORDS)
        known = named(
            m,
            "known",
            (strobes == 15) & Cat(held_address == OFFSETS[name] for name in writable).any(),
        )
        pushes = named(m, "pushes", held_address == _PUSH)
        descriptor = named(m, "descriptor_word", held_address >= _FIRST)
        # Words of a descriptor wait for the copy of the last one; a push for room as well.
        waits = named(m, "write_waits", (full & pushes) | (copying & descriptor))
        goes = named(m, "goes", has_address & has_word & ~answers & ~waits)
        m.d.comb += [
            self.aw.ready.eq(~has_address),
            self.w.ready.eq(~has_word),
            self.b.valid.eq(answers),
            self.b.payload.data.resp.eq(response),
            self.b.payload.last.eq(1),
            write.eq(goes & known),
            address.eq(held_address),
            word.eq(held_word),
        ]
        with m.If(~has_address):
            m.d.sync += [
                has_address.eq(self.aw.valid),
                held_address.eq(Cat(Const(0, 2), self.aw.payload.data.addr[2:])),
            ]
        with m.If(~has_word):
            m.d.sync += [
                has_word.eq(self.w.valid),
                held_word.eq(self.w.payload.data.data),
                strobes.eq(self.w.payload.data.strb),
            ]
        with m.If(self.b.ready):
            m.d.sync += answers.eq(0)
        with m.If(goes):
            m.d.sync += [
                has_address.eq(0),
                has_word.eq(0),
                answers.eq(1),
                response.eq(Mux(known, OKAY, SLVERR)),
            ]

    def _registers(
        self, m: Module, write: Signal, address: Signal, word: Signal, level: Signal
    ) -> dict[str, Value]:
        """Keep what is kept; return what can be read, by register."""
        ends = named(m, "ends", self.descriptor.valid & self.descriptor.ready)
        fails = named(m, "fails", ends & (self.cause != 0))
        number = self.descriptor.payload.push[:16]

        def writes(name: str) -> Value:
            return write & (address == OFFSETS[name])

        completed = Signal(32)
        error_valid, cause, culprit = Signal(), Signal(8), Signal(16)
        timeout, enabled, pending = Signal(32), Signal(2), Signal(2)
        counters = {name: Signal(32, name=name) for name in _COUNTERS}
        m.d.sync += completed.eq(completed + ends)
        for name, event in _COUNTERS.items():
            m.d.sync += counters[name].eq(counters[name] + getattr(self, event))
        with m.If(writes("timeout")):
            m.d.sync += timeout.eq(word)
        with m.If(writes("int_enable")):
            m.d.sync += enabled.eq(word)
        cleared = Mux(writes("int_status"), word[:2], 0)
        m.d.sync += pending.eq((pending & ~cleared) | Cat(ends, fails))
        clears = named(m, "error_clears", writes("error") & word[31])
        # An error in the clock in which the register is cleared is the first one since then.
        with m.If(fails & (clears | ~error_valid)):
            m.d.sync += [error_valid.eq(1), cause.eq(self.cause), culprit.eq(number)]
        with m.Elif(clears):
            m.d.sync += [error_valid.eq(0), cause.eq(0), culprit.eq(0)]
        m.d.comb += [
            self.timeout.eq(timeout),
            self.irq.eq((pending & enabled).any()),
        ]
        given: dict[str, Mapping[str, ValueLike]] = {
            "id": {"value": IDENTIFICATION},
            "version": {"value": MAP_VERSION},
            **self._constants,
            "status": {"busy": level != 0, "waiting": level},
            "completed": {"count": completed},
            "error": {"cause": cause, "descriptor": culprit, "valid": error_valid},
            "timeout": {"clocks": timeout},
            "int_enable": {"done": enabled[0], "error": enabled[1]},
            "int_status": {"done": pending[0], "error": pending[1]},
            **{name: {"clocks": counter} for name, counter in counters.items()},
        }
        return {name: _packed(name, fields) for name, fields in given.items()}

    def _answer_reads(self, m: Module, values: Mapping[str, Value]) -> None:
        """Give what can be read."""
        answers = Signal()
        answer = Signal(32, reset_less=True)
        response = Signal(2, reset_less=True)
        asked = Cat(Const(0, 2), self.ar.payload.data.addr[2:])
        m.d.comb += [
            self.ar.ready.eq(~answers),
            self.r.valid.eq(answers),
            self.r.payload.data.data.eq(answer),
            self.r.payload.data.resp.eq(response),
            self.r.payload.last.eq(1),
        ]
        with m.If(answers):
            m.d.sync += answers.eq(~self.r.ready)
        with m.Else():
            m.d.sync += [answers.eq(self.ar.valid), answer.eq(0), response.eq(SLVERR)]
            with m.Switch(asked):
                for name, value in values.items():
                    with m.Case(OFFSETS[name]):
                        m.d.sync += [answer.eq(value), response.eq(OKAY)]

    def _queue(
        self,
        m: Module,
        write: Signal,
        address: Signal,
        word: Signal,
        level: Signal,
        copying: Signal,
    ) -> None:
        """Keep the words of the next descriptor, copy them when it is pushed, load the oldest."""
        count, index_bits = len(WORDS), (len(WORDS) - 1).bit_length()
        m.submodules.staged = words = WordMemory(32, 1 << index_bits)
        m.submodules.queue = queue = WordMemory(32, self._depth << index_bits)
        tail, head = (Signal(range(self._depth), name=name) for name in ("tail", "head"))

        # A memory's word is there a clock after it was asked for.
        source, target = Signal(range(count + 1)), Signal(index_bits)
        arrives = Signal()
        more = named(m, "more", copying & (source != count))
        copied = named(m, "copied", arrives & ~more)
        m.d.comb += [
            words.write.eq(write & (address >= _FIRST)),
            words.write_address.eq((address - _FIRST)[2:]),
            words.write_data.eq(word),
            words.read.eq(more),
            words.read_address.eq(source),
            queue.write.eq(arrives),
            queue.write_address.eq(Cat(target, tail)),
            queue.write_data.eq(words.read_data),
        ]
        m.d.sync += [arrives.eq(more), target.eq(source), source.eq(source + more)]
        with m.If(write & (address == _PUSH)):
            m.d.sync += [copying.eq(1), source.eq(0)]
        with m.If(copied):
            m.d.sync += [copying.eq(0), tail.eq(tail + 1)]

        loaded = Signal()
        wanted, place = Signal(range(count + 1)), Signal(range(count))
        comes = Signal()
        oldest = Signal(descriptor_layout, reset_less=True)
        asks = named(m, "asks", (level != 0) & ~loaded & (wanted != count))
        taken = named(m, "taken", self.descriptor.valid & self.descriptor.ready)
        m.d.comb += [
            queue.read.eq(asks),
            queue.read_address.eq(Cat(wanted[:index_bits], head)),
            self.descriptor.valid.eq(loaded),
            self.descriptor.payload.eq(oldest),
        ]
        m.d.sync += [comes.eq(asks), place.eq(wanted), wanted.eq(wanted + asks)]
        with m.If(comes):
            m.d.sync += oldest.as_value().word_select(place, 32).eq(queue.read_data)
            with m.If(place == count - 1):
                m.d.sync += loaded.eq(1)
        with m.If(taken):
            m.d.sync += [loaded.eq(0), wanted.eq(0), head.eq(head + 1)]
        m.d.sync += level.eq(level + copied - taken)


_COUNTERS = {
    "cycles": "runs",
    "wait_acts": "waits_acts",
    "wait_weights": "waits_weights",
    "wait_results": "waits_results",
    "work": "works",
}


def _packed(name: str, fields: Mapping[str, ValueLike]) -> Value:
    """Return a register's word from its fields, by the map."""
    if set(fields) != set(FIELDS[name]):
        raise ValueError(f"register {name} has the fields {set(FIELDS[name])}")
    word: Value = Const(0, 32)
    for field, (low, width) in FIELDS[name].items():
        word = word | (Value.cast(fields[field])[:width] << low)
    return word[:32]
