"""Between the bytes of a request and a unit with AXI4 buses: registers, and block RAM behind it."""

from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    DomainRenamer,
    Module,
    Mux,
    ResetSignal,
    Signal,
)
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.fpga.gateware.block_memory import DECERR, BlockMemory
from m2xfp.fpga.protocol import OPERATION_BYTES, Operation
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.axi_channels import (
    OKAY,
    lite_address_layout,
    lite_read_layout,
    lite_write_layout,
    response_layout,
)
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["LiteMaster", "MemoryGateway"]

_head_layout = data.StructLayout({"operation": 8, "length": 16, "address": 32})
assert _head_layout.size == 8 * OPERATION_BYTES


class LiteMaster(Component):
    """Read and write registers over AXI4-Lite, one at a time.

    Parameters
    ----------
    address_bits
        Of the bus.

    Members
    -------
    i : In(stream)
        What to do: ``write``, ``address`` and ``word``.
    done : Out(1), resp : Out(2), word : Out(32)
        In this clock it is done: the response, and what was read.
    aw, w, b, ar, r
        The channels.
    """

    def __init__(self, address_bits: int) -> None:
        layout = data.StructLayout({"write": 1, "address": address_bits, "word": 32})
        super().__init__(
            {
                "i": In(stream.Signature(layout)),
                "done": Out(1),
                "resp": Out(2),
                "word": Out(32),
                "aw": Out(packet_stream(lite_address_layout(address_bits))),
                "w": Out(packet_stream(lite_write_layout)),
                "b": In(packet_stream(response_layout)),
                "ar": Out(packet_stream(lite_address_layout(address_bits))),
                "r": In(packet_stream(lite_read_layout)),
            }
        )

    def build(self) -> Module:
        """Build the flags of what was not taken yet."""
        m = Module()
        given = Signal.like(self.i.payload, reset_less=True)
        busy, gives_address, gives_word = Signal(), Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(~busy),
            self.aw.valid.eq(gives_address & given.write),
            self.ar.valid.eq(gives_address & ~given.write),
            self.w.valid.eq(gives_word),
            self.w.payload.data.data.eq(given.word),
            self.w.payload.data.strb.eq(15),
            self.w.payload.last.eq(1),
            self.b.ready.eq(busy & given.write),
            self.r.ready.eq(busy & ~given.write),
            self.done.eq((self.b.valid & self.b.ready) | (self.r.valid & self.r.ready)),
            self.resp.eq(Mux(given.write, self.b.payload.data.resp, self.r.payload.data.resp)),
            self.word.eq(self.r.payload.data.data),
        ]
        for channel in (self.aw, self.ar):
            m.d.comb += [
                channel.payload.data.addr.eq(given.address),
                channel.payload.last.eq(1),
            ]
            with m.If(channel.valid & channel.ready):
                m.d.sync += gives_address.eq(0)
        with m.If(self.w.ready):
            m.d.sync += gives_word.eq(0)
        with m.If(self.done):
            m.d.sync += busy.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                given.eq(self.i.payload),
                busy.eq(1),
                gives_address.eq(1),
                gives_word.eq(self.i.payload.write),
            ]
        return m


class MemoryGateway(Component):
    """Carry out the operations of a request on a unit's registers, and on memory that it shares.

    An operation is a head, ``protocol.Operation``, length and address, and its bytes; the answer to
    each is a response of AXI, and bytes. Unit and memory keep what they have from one request to
    the next: RESET is an operation. So a request that comes twice, by its number, since its answer
    was lost, writes nothing the second time, and is answered as the first time.

    Parameters
    ----------
    unit
        A unit with ``axi_buses``: one AXI4-Lite bus to its registers, and AXI4 masters.
    memory
        Bytes of its memory, a power of two.

    Members
    -------
    active : In(1), number : In(16)
        A request is being carried out, and its number.
    i, o
        Operations as bytes, and their answers.
    idle : Out(1)
        No operation is incomplete.
    """

    def __init__(self, unit: Component, memory: int) -> None:
        self.unit, self._size = unit, memory
        buses: dict[str, bool] = dict(unit.axi_buses)
        (self._control,) = (name for name, is_master in buses.items() if not is_master)
        members = unit.signature.members
        self._kinds = {
            name: "w" if f"{name}_aw" in members else "r"
            for name, is_master in buses.items()
            if is_master
        }
        super().__init__(
            {
                "active": In(1),
                "number": In(16),
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(8)),
                "idle": Out(1),
            }
        )

    def build(self) -> Module:
        """Build the unit with its memory, and the sequence of an operation."""
        m = Module()
        reset = Signal()
        # Both begin anew with RESET; what takes operations, with each request.
        m.domains.system = ClockDomain("system", local=True)
        m.domains.operation = ClockDomain("operation", local=True)
        for name, begins in (("system", reset), ("operation", ~self.active)):
            m.d.comb += [
                ClockSignal(name).eq(ClockSignal()),
                # Some families have no reset beside that of configuration.
                ResetSignal(name).eq(ResetSignal(allow_reset_less=True) | begins),
            ]
        memory, lite = self._system(m)
        repeated, worst = self._repetition(m, reset)
        self._operations(m, memory, lite, reset, repeated, worst)
        return m

    def _system(self, m: Module) -> tuple[BlockMemory, LiteMaster]:
        """Build unit, memory and the master of its registers."""
        unit, in_system = self.unit, DomainRenamer("system")
        (writer,) = (name for name, kind in self._kinds.items() if kind == "w")
        address = getattr(unit, f"{writer}_aw").payload.data.shape()["addr"].width
        strobes = getattr(unit, f"{writer}_w").payload.data.shape()["strb"].width
        memory = BlockMemory(self._size, strobes, address, self._kinds)
        control = getattr(unit, f"{self._control}_aw").payload.data.shape()["addr"].width
        lite = LiteMaster(control)
        m.submodules.unit = in_system(unit)
        m.submodules.memory = in_system(memory)
        m.submodules.lite = in_system(lite)
        for channel in ("aw", "w", "b", "ar", "r"):
            wiring.connect(m, getattr(lite, channel), getattr(unit, f"{self._control}_{channel}"))
        for name, kind in self._kinds.items():
            for channel in ("ar", "r") if kind == "r" else ("aw", "w", "b"):
                port = f"{name}_{channel}"
                wiring.connect(m, getattr(unit, port), getattr(memory, port))
        return memory, lite

    def _repetition(self, m: Module, reset: Signal) -> tuple[Signal, Signal]:
        """Return whether this request has been carried out, and how its writes were answered."""
        begun, repeated = Signal(), Signal()
        known, last, worst = Signal(), Signal(16, reset_less=True), Signal(2, reset_less=True)
        m.d.operation += begun.eq(1)
        with m.If(self.active & ~begun):
            same = known & (last == self.number)
            m.d.operation += repeated.eq(same)
            m.d.sync += [known.eq(1), last.eq(self.number)]
            with m.If(~same):
                m.d.sync += worst.eq(OKAY)
        with m.If(reset):
            m.d.sync += known.eq(0)
        return repeated, worst

    def _operations(
        self,
        m: Module,
        memory: BlockMemory,
        lite: LiteMaster,
        reset: Signal,
        repeated: Signal,
        worst: Signal,
    ) -> None:
        """Take head and bytes of an operation, carry it out, and answer."""
        head = Signal(_head_layout, reset_less=True)
        count = Signal(range(OPERATION_BYTES + 1))
        answer, word = Signal(2, reset_less=True), Signal(32, reset_less=True)
        bytes_left = Signal(3, reset_less=True)  # of the word
        end = named(m, "end", head.address[: len(memory.host_address)] + head.length)
        beyond = named(
            m, "beyond", (end > self._size) | head.address[len(memory.host_address) :].any()
        )
        left = Signal(16, reset_less=True)
        place = Signal.like(memory.host_address, reset_less=True)
        m.d.comb += [
            memory.host_address.eq(place),
            memory.host_data.eq(self.i.payload),
            lite.i.payload.address.eq(head.address),
            lite.i.payload.word.eq(word),
            lite.i.payload.write.eq(head.operation == Operation.WRITE),
        ]
        with m.FSM(domain="operation"):
            with m.State("head"):
                m.d.comb += [self.i.ready.eq(1), self.idle.eq(count == 0)]
                with m.If(self.i.valid):
                    m.d.operation += [
                        head.eq(Cat(head.as_value()[8:], self.i.payload)),
                        count.eq(count + 1),
                    ]
                    with m.If(count == OPERATION_BYTES - 1):
                        m.next = "begin"
            with m.State("begin"):
                m.d.operation += [
                    count.eq(0),
                    place.eq(head.address),
                    left.eq(head.length),
                    bytes_left.eq(4),
                    answer.eq(OKAY),
                ]
                with m.Switch(head.operation):
                    with m.Case(Operation.RESET):
                        m.d.comb += reset.eq(1)
                        m.next = "answer"
                    with m.Case(Operation.READ):
                        m.next = "register"
                    with m.Case(Operation.WRITE):
                        m.next = "word"
                    with m.Case(Operation.STORE):
                        m.d.operation += answer.eq(Mux(beyond, DECERR, OKAY))
                        m.next = "store"
                    with m.Case(Operation.LOAD):
                        m.d.operation += answer.eq(Mux(beyond, DECERR, OKAY))
                        m.next = "answer"
                    # Anything else is never answered, and the link says that it has stalled.
            with m.State("word"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.operation += [
                        word.eq(Cat(word[8:], self.i.payload)),
                        bytes_left.eq(bytes_left - 1),
                    ]
                    with m.If(bytes_left == 1):
                        m.next = "register"
                        with m.If(repeated):
                            m.d.operation += answer.eq(worst)
                            m.next = "answer"
            with m.State("register"):
                m.d.comb += lite.i.valid.eq(1)
                with m.If(lite.i.ready):
                    m.next = "response"
            with m.State("response"):
                m.d.operation += bytes_left.eq(4)
                with m.If(lite.done):
                    m.d.operation += [answer.eq(lite.resp), word.eq(lite.word)]
                    with m.If(head.operation == Operation.WRITE):
                        m.d.sync += worst.eq(worst | lite.resp)
                    m.next = "answer"
            with m.State("store"):
                with m.If(left == 0):
                    m.next = "answer"
                with m.Else():
                    m.d.comb += [
                        self.i.ready.eq(1),
                        memory.host_write.eq(self.i.valid & (answer == OKAY) & ~repeated),
                    ]
                    with m.If(self.i.valid):
                        m.d.operation += [place.eq(place + 1), left.eq(left - 1)]
            with m.State("answer"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(answer)]
                with m.If(self.o.ready):
                    m.next = "head"
                    with m.If(head.operation == Operation.READ):
                        m.next = "give word"
                    with m.If((head.operation == Operation.LOAD) & (answer == OKAY)):
                        m.next = "fetch"
            with m.State("give word"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(word[:8])]
                with m.If(self.o.ready):
                    m.d.operation += [word.eq(word[8:]), bytes_left.eq(bytes_left - 1)]
                    with m.If(bytes_left == 1):
                        m.next = "head"
            with m.State("fetch"):
                m.d.comb += memory.host_read.eq(left != 0)
                with m.If(left == 0):
                    m.next = "head"
                with m.Elif(memory.host_taken):
                    m.next = "take"
            with m.State("take"):  # the byte is here for one clock only: masters read too
                m.d.operation += [
                    word.eq(memory.host_byte),
                    place.eq(place + 1),
                    left.eq(left - 1),
                ]
                m.next = "give byte"
            with m.State("give byte"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(word[:8])]
                with m.If(self.o.ready):
                    m.next = "fetch"
