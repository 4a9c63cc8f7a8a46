"""A unit with registers and memory on a board, at the other end of a serial line."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.fpga.host.device import Device
from m2xfp.fpga.host.link import FaultError
from m2xfp.fpga.host.remote_unit import RemoteUnit
from m2xfp.fpga.protocol import OPERATION_BYTES, Operation

__all__ = ["BusError", "SerialTransport"]

_WORD = 4
_RESPONSES = {1: "EXOKAY", 2: "SLVERR", 3: "DECERR"}

Bytes = NDArray[np.uint8]


class BusError(FaultError):
    """A register or memory answered an access with an error."""


class SerialTransport:
    """Registers and memory of a unit on a board (``m2xfp.accelerator.Transport``).

    Requests are numbered, and the board writes nothing twice, so what the line loses is asked for
    again without harm. Writes of registers wait for the next read, or for more than a request
    holds: a descriptor goes over the line in one request.

    Parameters
    ----------
    board
        The board, or the unit on it.
    unit
        What boards, or the catalog, call the unit.

    Members
    -------
    memory_start, memory_bytes
        The memory on the unit's buses.

    Raises
    ------
    MissingUnitError
        The board has no such unit.
    InputError
        The unit has no memory.
    DeviceError
        As of every method: the board is silent or has gone, refused a request since the unit does
        not answer, or (BusError) answered an access with an error.
    """

    def __init__(self, board: Device | RemoteUnit, *, unit: str = "accelerator") -> None:
        self._unit = board if isinstance(board, RemoteUnit) else board.unit(unit)
        self.memory_start, self.memory_bytes = 0, self._unit.memory
        if not self.memory_bytes:
            raise InputError(f"unit {self._unit.name}: it has no registers and no memory")
        self._room = self._unit.buffer - OPERATION_BYTES - _WORD - 1
        self._waiting: list[tuple[int, int]] = []  # writes of registers, in their order
        self.reset()

    def reset(self) -> None:
        """Reset the unit, whatever it does; its memory keeps what it holds."""
        self._waiting = []
        self._answered(self._unit.exchange(_head(Operation.RESET)), 0, "the reset")

    def read(self, offset: int) -> int:
        """Return a register."""
        answer = self._flush(_head(Operation.READ, offset), 1 + _WORD)
        return int.from_bytes(self._answered(answer, _WORD, f"register 0x{offset:02X}"), "little")

    def write(self, offset: int, word: int) -> None:
        """Write a register, before the next read at the latest."""
        self._waiting.append((offset, word))
        if len(self._waiting) * (OPERATION_BYTES + _WORD) > self._room - OPERATION_BYTES:
            self._flush()

    def load(self, address: int, length: int) -> Bytes:
        """Return a copy of bytes of the memory."""
        self._check(address, length)
        self._flush()
        parts = [
            self._answered(
                self._unit.exchange(_head(Operation.LOAD, at, size)), size, f"memory 0x{at:X}"
            )
            for at, size in self._pieces(address, length)
        ]
        return np.frombuffer(b"".join(parts), np.uint8).copy()

    def store(self, address: int, content: Bytes) -> None:
        """Write bytes into the memory."""
        self._check(address, len(content))
        self._flush()
        for at, size in self._pieces(address, len(content)):
            piece = np.ascontiguousarray(content[at - address : at - address + size], np.uint8)
            answer = self._unit.exchange(_head(Operation.STORE, at, size) + piece.tobytes())
            self._answered(answer, 0, f"memory 0x{at:X}")

    def wait(self) -> None:
        """Send what waits; on the line time passes by itself."""
        self._flush()

    def traffic(self) -> dict[str, int]:
        """Return nothing: no register counts bytes."""
        return {}

    def close(self) -> None:
        """Send what waits; the line belongs to whoever opened it."""
        self._flush()

    def _flush(self, more: bytes = b"", due: int = 0) -> bytes:
        """Send the writes that wait, and an operation behind them; return the answer to that."""
        writes, self._waiting = self._waiting, []
        sent = b"".join(
            _head(Operation.WRITE, offset) + word.to_bytes(_WORD, "little")
            for offset, word in writes
        )
        if not sent and not more:
            return b""
        answer = self._unit.exchange(sent + more)
        if len(answer) != len(writes) + due:
            raise self._unit.fault(f"{len(answer)} bytes came back, {len(writes) + due} were due")
        for (offset, _), response in zip(writes, answer, strict=False):
            self._answered(bytes([response]), 0, f"register 0x{offset:02X}")
        return answer[len(writes) :]

    def _answered(self, answer: bytes, due: int, what: str) -> bytes:
        """Return the bytes behind a response; BusError if it is an error."""
        if answer and answer[0]:
            name = _RESPONSES.get(answer[0], f"response {answer[0]}")
            raise BusError(f"unit {self._unit.name}: {what} answered with {name}")
        if len(answer) != 1 + due:
            raise self._unit.fault(f"{len(answer)} bytes came back for {what}, {1 + due} were due")
        return answer[1:]

    def _pieces(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield address and length of parts that requests and answers hold."""
        for at in range(address, address + length, self._room):
            yield at, min(self._room, address + length - at)

    def _check(self, address: int, length: int) -> None:
        first = address - self.memory_start
        if not 0 <= first <= first + length <= self.memory_bytes:
            raise InputError(
                f"address=0x{address:X}: {length} bytes are not in the memory of "
                f"{self.memory_bytes} bytes"
            )


def _head(operation: Operation, address: int = 0, length: int = 0) -> bytes:
    """Return the head of an operation."""
    return bytes([operation]) + length.to_bytes(2, "little") + address.to_bytes(4, "little")
