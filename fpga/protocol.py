"""The language of the link: frames, commands and records, as both ends of the line read them.

A frame is a header, a payload and their CRC, between two flags, in the manner of RFC 1662 (PPP in
HDLC-like framing): a flag or escape byte inside is sent as an escape and the byte with bit 5
flipped. So a flag always is a frame's end, and whatever was lost or invented, the next flag puts
both ends in step again without any time-out. docs/fpga.md says what can go undetected.

The payload of a command that runs a unit is a sequence of records, each a beat of one of the unit's
streams: a tag byte and the beat, little-endian, padded with zeros to whole bytes. That of a command
to a unit with registers and memory is a sequence of operations on these.

Pure Python: the host needs it without Amaranth, the hardware takes its numbers from it.

Sources: RFC 1662, sections 3, 4 and C.3; CRC-32/ISO-HDLC (zlib, IEEE 802.3).
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from hashlib import sha256

from m2xfp.errors import InputError
from m2xfp.plain import parse_json, typed

__all__ = [
    "CRC_BYTES",
    "ESCAPE",
    "FLAG",
    "FLIP",
    "HEADER_BYTES",
    "LAST",
    "OPERATION_BYTES",
    "PROTOCOL",
    "Command",
    "Decoder",
    "Frame",
    "Identity",
    "Operation",
    "Record",
    "Status",
    "encode",
    "pack_records",
    "unpack_records",
]

PROTOCOL = 1
"""Version of everything on this page."""

FLAG, ESCAPE, FLIP = 0x7E, 0x7D, 0x20
"""Ends a frame; announces a flipped byte; what is flipped in it."""

HEADER_BYTES = 6
"""Command, status, sequence number (2), length of the payload (2); little-endian."""

CRC_BYTES = 4

OPERATION_BYTES = 7
"""Head of an operation: what, length (2), address (4); little-endian."""

LAST = 0x80
"""Bit of a tag: the beat is the last of its tensor. The other bits number the stream."""


class Command(IntEnum):
    """What a request asks for; every request can be repeated without harm."""

    IDENTIFY = 0
    """The design's ``Identity``; the request's payload is ignored."""
    ECHO = 1
    """The payload, through both buffers of the link."""
    UNIT = 16
    """Reset the first unit, play the records through it and return what it gives; 17 is the second
    unit, and so on. The tag counts the input streams in a request, the output streams in an
    answer. A unit with registers and memory carries out operations, and is not reset."""


class Operation(IntEnum):
    """What is done with registers or memory: a head of ``OPERATION_BYTES``, and bytes behind it.

    The head is the operation, a length (2) and an address (4), little-endian. The answer to each is
    a response of AXI, a byte, and bytes.
    """

    RESET = 0
    """Reset the unit; its memory keeps what it holds. In a request of its own."""
    READ = 1
    """Read the register at the address: the answer goes on with its four bytes."""
    WRITE = 2
    """Write the four bytes behind the head into the register at the address."""
    STORE = 3
    """Write the bytes behind the head, ``length``, into memory."""
    LOAD = 4
    """Read ``length`` bytes of memory: the answer goes on with them if the response is 0."""


class Status(IntEnum):
    """What became of a request."""

    OK = 0
    BAD_FRAME = 1
    """CRC, length or a byte was wrong; nothing was done. Command and number are meaningless."""
    UNKNOWN_COMMAND = 2
    STALLED = 3
    """The unit did not take all records, or the last one is incomplete."""
    OVERFLOW = 4
    """The results do not fit the buffer."""


@dataclass(frozen=True)
class Frame:
    """A request or an answer.

    Members
    -------
    command
        A ``Command``; the answer repeats it.
    sequence
        Number that the answer repeats, 16 bits.
    payload
        At most 65535 bytes, in practice at most the design's buffer.
    status
        A ``Status``; 0 in requests.
    """

    command: int
    sequence: int
    payload: bytes = b""
    status: int = Status.OK


def encode(frame: Frame) -> bytes:
    """Return a frame as it goes over the line, both flags included."""
    head = bytes([frame.command, frame.status])
    body = head + frame.sequence.to_bytes(2, "little") + len(frame.payload).to_bytes(2, "little")
    body += frame.payload
    body += zlib.crc32(body).to_bytes(CRC_BYTES, "little")
    for special in (ESCAPE, FLAG):  # the escape first: the second step adds more of them
        body = body.replace(bytes([special]), bytes([ESCAPE, special ^ FLIP]))
    return bytes([FLAG]) + body + bytes([FLAG])


class Decoder:
    """Finds the frames in what comes over the line, however it is cut into pieces."""

    def __init__(self) -> None:
        self._body = bytearray()

    def feed(self, received: bytes) -> Iterator[Frame | None]:
        """Take bytes and yield each frame that they end; None stands for a broken one.

        An empty frame, two flags in a row, is none. All of ``received`` is taken when the iterator
        is exhausted.
        """
        for byte in received:
            if byte != FLAG:
                self._body.append(byte)
            elif self._body:
                body, self._body = bytes(self._body), bytearray()
                yield _decode(body)


def _decode(body: bytes) -> Frame | None:
    """Return the frame between two flags; None if it is broken."""
    pieces = body.split(bytes([ESCAPE]))
    if not all(pieces[1:]):  # an escape before another one, or before the flag
        return None
    clear = pieces[0] + b"".join(bytes([piece[0] ^ FLIP]) + piece[1:] for piece in pieces[1:])
    size = len(clear) - HEADER_BYTES - CRC_BYTES
    if size < 0 or int.from_bytes(clear[4:6], "little") != size:
        return None
    if zlib.crc32(clear[:-CRC_BYTES]) != int.from_bytes(clear[-CRC_BYTES:], "little"):
        return None
    return Frame(
        clear[0], int.from_bytes(clear[2:4], "little"), clear[HEADER_BYTES:-CRC_BYTES], clear[1]
    )


@dataclass(frozen=True)
class Record:
    """A beat of one of a unit's streams.

    Members
    -------
    stream
        Number of the stream, in the order of the unit's ports, inputs and outputs apart.
    beat
        The beat, little-endian.
    last
        The end-of-tensor mark.
    """

    stream: int
    beat: bytes
    last: bool = False


def pack_records(records: Sequence[Record]) -> bytes:
    """Return the payload that holds ``records``."""
    return b"".join(bytes([record.stream | LAST * record.last]) + record.beat for record in records)


def unpack_records(payload: bytes, widths: Sequence[int]) -> list[Record]:
    """Return the records of a payload.

    Parameters
    ----------
    payload
        Whole records.
    widths
        Bytes of a beat of each stream.

    Raises
    ------
    ValueError
        If the payload is anything else.
    """
    records, at = [], 0
    while at < len(payload):
        stream = payload[at] & ~LAST
        if stream >= len(widths) or at + 1 + widths[stream] > len(payload):
            raise ValueError(f"no record of streams with {list(widths)} bytes at byte {at}")
        end = at + 1 + widths[stream]
        records.append(Record(stream, payload[at + 1 : end], bool(payload[at] & LAST)))
        at = end
    return records


@dataclass(frozen=True)
class Identity:
    """What a design says of itself.

    Members
    -------
    version
        Version of the package that made it.
    clock_hz, baud
        Clock and line rate it was built for.
    buffer
        Bytes of payload that a request and an answer can have.
    units
        Its units, the first answering to ``Command.UNIT``: name, and class, options and streams.
    build
        Hash of all this, see ``sealed``.
    protocol, design
        Version of this page; ``m2xfp``.
    """

    version: str
    clock_hz: int
    baud: int
    buffer: int
    units: tuple[tuple[str, str], ...]
    build: str = ""
    protocol: int = PROTOCOL
    design: str = "m2xfp"

    def sealed(self) -> "Identity":
        """Return the same with ``build`` filled in: 16 hexadecimal digits of a SHA-256."""
        return replace(self, build=sha256(replace(self, build="").payload()).hexdigest()[:16])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the units, in the order of their commands."""
        return tuple(name for name, _ in self.units)

    def payload(self) -> bytes:
        """Return the answer to ``Command.IDENTIFY``: JSON, keys sorted, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, payload: bytes) -> "Identity":
        """Read ``payload()``; InputError if it is none, or of another protocol."""
        try:
            facts = parse_json(payload, "the answer")
            if not isinstance(facts, dict) or facts.get("design") != "m2xfp":
                raise InputError("its design is not m2xfp")
        except InputError as error:
            raise InputError(f"no identification of an m2xfp design ({error})") from error
        if facts.get("protocol") != PROTOCOL:
            raise InputError(
                f"protocol {facts.get('protocol')}; this version of m2xfp speaks {PROTOCOL}"
            )
        try:
            found = typed(cls, facts, "identity")
            for number in (found.clock_hz, found.baud, found.buffer):
                if not 1 <= number < 1 << 32:
                    raise InputError("clock, rate and buffer must be positive, of 32 bits")
        except InputError as error:
            raise InputError(f"no identification of an m2xfp design ({error})") from error
        return found
