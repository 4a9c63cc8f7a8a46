"""The device's end of the link: frames in, frames out, a byte stream to whatever does the work."""

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc import catalog
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from m2xfp.fpga.gateware.uart import UartReceiver, UartTransmitter
from m2xfp.fpga.protocol import CRC_BYTES, ESCAPE, FLAG, FLIP, HEADER_BYTES, Status
from m2xfp.rtl.verilog.component import Component

__all__ = ["PATIENCE", "FrameReceiver", "FrameSender", "Link", "header_layout"]

PATIENCE = 256
"""Clocks without a byte moving after which a unit has given all that it will give.

Several times the latency of any unit, and at most the time of three bytes on the line.
"""

header_layout = data.StructLayout(
    {"command": 8, "status": 8, "sequence": unsigned(16), "length": unsigned(16)}
)
assert header_layout.size == 8 * HEADER_BYTES

crc_signature = wiring.Signature(
    {"start": Out(1), "data": Out(8), "valid": Out(1), "crc": In(32), "match_detected": In(1)}
)
"""What a user of a ``Crc32`` has; one way at a time is in use, so both can share one."""


class Crc32(Component):
    """CRC-32 of bytes, one a clock; the value follows a clock later.

    Members
    -------
    i : In(crc_signature)
        ``start``: begin anew. ``data``, ``valid``: a byte. ``crc``: that of the bytes since the
        start, to be sent lowest byte first. ``match_detected``: the last four bytes were the CRC
        of those before.
    """

    def __init__(self) -> None:
        super().__init__({"i": In(crc_signature)})

    def build(self) -> Module:
        """Build Amaranth's processor with the ports of a component."""
        processor = catalog.CRC32_ISO_HDLC(data_width=8).create()
        processor._MustUse__silence = True  # its logic is used, as this component's
        m: Module = processor.elaborate(None)
        m.d.comb += [
            processor.start.eq(self.i.start),
            processor.data.eq(self.i.data),
            processor.valid.eq(self.i.valid),
            self.i.crc.eq(processor.crc),
            self.i.match_detected.eq(processor.match_detected),
        ]
        return m


class FrameReceiver(Component):
    """Take bytes from the line, undo the escapes and check each frame.

    Parameters
    ----------
    capacity
        Bytes of payload at most; a power of two.

    Members
    -------
    data, valid, broken : In
        As ``UartReceiver`` gives them, with at least four clocks from one byte to the next.
    ignore : In(1)
        Bytes are not looked at; the next one begins a new frame.
    write, address, write_data : Out
        Store a byte of payload.
    header : Out(header_layout)
        Of the frame that has come to its end.
    good, bad : Out(1)
        A frame has come to its end, one clock: whole, with the right length and CRC, or not. What
        is shorter than any frame is passed over in silence (RFC 1662), so that noise between two
        requests does not cost the second.
    crc : Out(crc_signature)
        To a ``Crc32``.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        super().__init__(
            {
                "data": In(8),
                "valid": In(1),
                "broken": In(1),
                "ignore": In(1),
                "write": Out(1),
                "address": Out(range(capacity)),
                "write_data": Out(8),
                "header": Out(header_layout),
                "good": Out(1),
                "bad": Out(1),
                "crc": Out(crc_signature),
            }
        )

    def build(self) -> Module:
        """Build the counter, the checks and the header register."""
        m = Module()
        crc = self.crc
        whole = HEADER_BYTES + self._capacity + CRC_BYTES
        count = Signal(range(whole + 1))  # bytes of this frame, escapes undone
        escaped = Signal()  # the next byte is flipped
        wrong = Signal()  # something in this frame cannot be
        head = Signal(8 * HEADER_BYTES, reset_less=True)
        position = Signal(len(count))  # in the payload
        flag, escape, clear = Signal(), Signal(), Signal(8)
        short, complete = Signal(), Signal()
        m.d.comb += [
            flag.eq(self.data == FLAG),
            escape.eq(self.data == ESCAPE),
            clear.eq(Mux(escaped, self.data ^ FLIP, self.data)),
            position.eq(count - HEADER_BYTES),
            self.header.as_value().eq(head),
            short.eq(count < HEADER_BYTES + CRC_BYTES),
            complete.eq(count == self.header.length + (HEADER_BYTES + CRC_BYTES)),
            self.address.eq(position),
            self.write_data.eq(clear),
            crc.data.eq(clear),
        ]
        with m.If(self.ignore):
            m.d.comb += crc.start.eq(1)
            m.d.sync += [count.eq(0), escaped.eq(0), wrong.eq(0)]
        with m.Elif(self.broken):
            m.d.sync += wrong.eq(1)
        with m.Elif(self.valid & flag):
            ok = complete & crc.match_detected & ~escaped & ~wrong
            m.d.comb += [self.good.eq(ok), self.bad.eq(~short & ~ok), crc.start.eq(1)]
            m.d.sync += [count.eq(0), escaped.eq(0), wrong.eq(0)]
        with m.Elif(self.valid & escape):
            m.d.sync += [escaped.eq(1), wrong.eq(wrong | escaped)]
        with m.Elif(self.valid & (count == whole)):
            m.d.sync += wrong.eq(1)
        with m.Elif(self.valid):
            m.d.comb += [
                crc.valid.eq(1),
                self.write.eq((count >= HEADER_BYTES) & (position < self._capacity)),
            ]
            m.d.sync += [count.eq(count + 1), escaped.eq(0)]
            with m.If(count < HEADER_BYTES):
                m.d.sync += head.eq(Cat(head[8:], clear))
        return m


class FrameSender(Component):
    """Send a frame: header, payload from a memory, CRC, with escapes and both flags.

    Parameters
    ----------
    capacity
        Bytes of payload at most; a power of two.

    Members
    -------
    start : In(1)
        Send a frame with this ``header``, unless ``busy``.
    header : In(header_layout)
        Its length says how many bytes to take from the memory.
    busy : Out(1)
        From ``start`` until the last byte was handed over.
    read, address : Out, read_data : In(8)
        Port of the payload's memory: data in the clock after ``read``, held until the next.
    o : Out(stream.Signature(8))
        Bytes for the line.
    crc : Out(crc_signature)
        To a ``Crc32``.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        super().__init__(
            {
                "start": In(1),
                "header": In(header_layout),
                "busy": Out(1),
                "read": Out(1),
                "address": Out(range(capacity)),
                "read_data": In(8),
                "o": Out(stream.Signature(8)),
                "crc": Out(crc_signature),
            }
        )

    def build(self) -> Module:
        """Build the sequence of the frame's parts."""
        m = Module()
        crc = self.crc
        queue = Signal(8 * HEADER_BYTES, reset_less=True)  # bytes of header or CRC, lowest next
        left = Signal(range(HEADER_BYTES + 1))  # of them
        payload_left = Signal(range(self._capacity + 1), reset_less=True)
        address = Signal(range(self._capacity), reset_less=True)
        escaped = Signal()  # the escape was sent, the flipped byte comes now
        clear = Signal(8)
        special, taken = Signal(), Signal()
        m.d.comb += [
            self.busy.eq(1),
            self.address.eq(address),
            self.read.eq(1),
            special.eq((clear == FLAG) | (clear == ESCAPE)),
            taken.eq(self.o.ready & (~special | escaped)),
            crc.data.eq(clear),
        ]

        def send_clear() -> None:
            """Hand over ``clear``, an escape before it if it is special."""
            m.d.comb += [
                self.o.valid.eq(1),
                self.o.payload.eq(Mux(special, Mux(escaped, clear ^ FLIP, ESCAPE), clear)),
            ]
            with m.If(self.o.ready):
                m.d.sync += escaped.eq(special & ~escaped)

        with m.FSM():
            with m.State("idle"):
                m.d.comb += [self.busy.eq(0), crc.start.eq(1)]
                m.d.sync += [
                    queue.eq(self.header),
                    payload_left.eq(self.header.length),
                    address.eq(0),
                    left.eq(HEADER_BYTES),
                    escaped.eq(0),
                ]
                with m.If(self.start):
                    m.next = "open"
            with m.State("open"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(FLAG)]
                with m.If(self.o.ready):
                    m.next = "header"
            with m.State("header"):
                m.d.comb += [clear.eq(queue[:8]), crc.valid.eq(taken)]
                send_clear()
                with m.If(taken):
                    m.d.sync += [queue.eq(queue[8:]), left.eq(left - 1)]
                    with m.If(left == 1):
                        m.next = "fetch"
            with m.State("fetch"):  # the memory answers; the CRC takes the last byte in
                m.d.sync += [queue.eq(crc.crc), left.eq(CRC_BYTES)]
                m.next = "payload"
                with m.If(payload_left == 0):
                    m.next = "check"
            with m.State("payload"):
                m.d.comb += [self.read.eq(0), clear.eq(self.read_data), crc.valid.eq(taken)]
                send_clear()
                with m.If(taken):
                    m.d.sync += [address.eq(address + 1), payload_left.eq(payload_left - 1)]
                    m.next = "fetch"
            with m.State("check"):
                m.d.comb += clear.eq(queue[:8])
                send_clear()
                with m.If(taken):
                    m.d.sync += [queue.eq(queue[8:]), left.eq(left - 1)]
                    with m.If(left == 1):
                        m.next = "close"
            with m.State("close"):  # and leave the CRC ready for the next request
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(FLAG), crc.start.eq(1)]
                with m.If(self.o.ready):
                    m.next = "idle"
        return m


class Link(Component):
    """Receive requests, have them carried out, answer them; one at a time.

    A request that comes while another is carried out or answered is lost, in whole: the flag at its
    end finds a fragment, which is answered with ``Status.BAD_FRAME``.

    Parameters
    ----------
    divisor
        Clocks a bit, see ``uart.clocks_per_bit``.
    capacity
        Bytes of payload that a request and an answer can have; a power of two.

    Members
    -------
    rx, tx
        The serial line.
    busy : Out(1)
        A request is being carried out or answered.
    command : Out(8), number : Out(16)
        What is to be done, and the number of the request, while ``active``.
    active : Out(1)
        A request is being carried out. While low, whatever carries requests out is held in reset,
        so that no request sees what another has left.
    known : In(1)
        There is something that carries ``command`` out.
    idle : In(1)
        It is not in the middle of a record.
    request : Out(stream.Signature(8)), result : In(stream.Signature(8))
        Payloads of the request and of the answer. The answer ends when no byte has moved for
        ``PATIENCE`` clocks.
    """

    def __init__(self, divisor: int, capacity: int) -> None:
        self._divisor, self._capacity = divisor, capacity
        super().__init__(
            {
                "rx": In(1),
                "tx": Out(1, init=1),
                "busy": Out(1),
                "command": Out(8),
                "number": Out(16),
                "active": Out(1),
                "known": In(1),
                "idle": In(1),
                "request": Out(stream.Signature(8)),
                "result": In(stream.Signature(8)),
            }
        )

    def build(self) -> Module:
        """Build buffers, both directions and the sequence of a request."""
        m = Module()
        capacity = self._capacity
        m.submodules.uart_receiver = uart_receiver = UartReceiver(self._divisor)
        m.submodules.uart_transmitter = uart_transmitter = UartTransmitter(self._divisor)
        m.submodules.receiver = receiver = FrameReceiver(capacity)
        m.submodules.sender = sender = FrameSender(capacity)
        m.submodules.crc = crc = Crc32()
        m.submodules.requests = requests = Memory(shape=8, depth=capacity, init=[])
        m.submodules.results = results = Memory(shape=8, depth=capacity, init=[])
        store, fetch = requests.write_port(), requests.read_port()
        collect, drain = results.write_port(), results.read_port()
        wiring.connect(m, sender.o, uart_transmitter.i)

        header = Signal(header_layout, reset_less=True)
        status = Signal(Shape.cast(Status), reset_less=True)
        active = Signal()
        start = Signal()
        given = Signal(range(capacity + 1), reset_less=True)  # bytes of the request fetched
        waiting = Signal()  # the byte at `fetch` was not taken yet
        count = Signal(range(capacity + 1), reset_less=True)  # bytes of the result
        overflow = Signal(reset_less=True)
        patience = Signal(range(PATIENCE), reset_less=True)
        moved, exhausted, given_all = Signal(), Signal(), Signal()
        m.d.comb += [
            uart_receiver.rx.eq(self.rx),
            self.tx.eq(uart_transmitter.tx),
            receiver.data.eq(uart_receiver.data),
            receiver.valid.eq(uart_receiver.valid),
            receiver.broken.eq(uart_receiver.broken),
            receiver.ignore.eq(self.busy),
            self.busy.eq(active | start | sender.busy),
            self.active.eq(active),
            self.command.eq(header.command),
            self.number.eq(header.sequence),
            store.en.eq(receiver.write),
            store.addr.eq(receiver.address),
            store.data.eq(receiver.write_data),
            # Neither buffer is read while it is written: synthesis counts on it.
            drain.en.eq(sender.read & ~active),
            drain.addr.eq(sender.address),
            sender.read_data.eq(drain.data),
            sender.start.eq(start),
            sender.header.command.eq(header.command),
            sender.header.sequence.eq(header.sequence),
            sender.header.status.eq(status),
            sender.header.length.eq(Mux(status == Status.OK, count, 0)),
            given_all.eq(given == header.length),
            fetch.en.eq(active & (~waiting | self.request.ready)),
            fetch.addr.eq(given),
            self.request.payload.eq(fetch.data),
            self.request.valid.eq(waiting),
            self.result.ready.eq(active),
            collect.addr.eq(count),
            collect.data.eq(self.result.payload),
            collect.en.eq(active & self.result.valid),
            moved.eq((waiting & self.request.ready) | self.result.valid),
            exhausted.eq(patience == PATIENCE - 1),
        ]
        for user in (sender.crc, receiver.crc):
            m.d.comb += [user.crc.eq(crc.i.crc), user.match_detected.eq(crc.i.match_detected)]
        for name in ("start", "data", "valid"):
            in_use = Mux(self.busy, getattr(sender.crc, name), getattr(receiver.crc, name))
            m.d.comb += getattr(crc.i, name).eq(in_use)
        m.d.sync += start.eq(0)
        with m.If(active):
            m.d.sync += patience.eq(Mux(moved, 0, patience + 1))
            with m.If(~waiting | self.request.ready):
                m.d.sync += [waiting.eq(~given_all), given.eq(given + ~given_all)]
            with m.If(self.result.valid):
                m.d.sync += [
                    count.eq(count + (count != capacity)),
                    overflow.eq(overflow | (count == capacity)),
                ]
            with m.If(exhausted | ~self.known):
                m.d.sync += [active.eq(0), start.eq(1), waiting.eq(0)]
                with m.If(~self.known):
                    m.d.sync += status.eq(Status.UNKNOWN_COMMAND)
                with m.Elif(overflow):
                    m.d.sync += status.eq(Status.OVERFLOW)
                with m.Elif(waiting | ~self.idle):
                    m.d.sync += status.eq(Status.STALLED)
        with m.Else():
            m.d.sync += [
                given.eq(0),
                count.eq(0),
                overflow.eq(0),
                patience.eq(0),
            ]
        with m.If(receiver.good | receiver.bad):
            m.d.sync += [
                header.eq(receiver.header),
                active.eq(receiver.good),
                start.eq(receiver.bad),
                status.eq(Mux(receiver.good, Status.OK, Status.BAD_FRAME)),
            ]
        return m
