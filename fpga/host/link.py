"""The host's end of the link: requests over a serial port, answered right or not at all."""

import os
import random
from typing import Protocol

from m2xfp.errors import InputError, M2xfpError, MissingToolError
from m2xfp.fpga.protocol import Decoder, Frame, Status, encode

__all__ = [
    "DeviceError",
    "FaultError",
    "HostLink",
    "MissingUnitError",
    "NoAnswerError",
    "NoDeviceError",
    "Port",
    "WrongBuildError",
]

BITS_PER_BYTE = 10
SETTLE_SECONDS = 0.05
"""Silence after which what was under way has arrived; USB serial chips hold bytes up to 16 ms."""

MOST_BYTES = 1 << 17
"""No answer is longer, escapes counted; who says more is no device of ours."""

try:
    import termios
except ImportError:  # not a Unix
    GONE: tuple[type[Exception], ...] = (OSError,)
else:
    GONE = (OSError, termios.error)
"""What pyserial raises when a port disappears; its own SerialException is an OSError."""


class DeviceError(M2xfpError, RuntimeError):
    """Base of all that can go wrong with a device."""


class NoDeviceError(DeviceError):
    """The port does not exist, cannot be opened or has gone."""


class NoAnswerError(DeviceError):
    """Nothing, or nothing intact, came back in time, repeatedly."""


class WrongBuildError(DeviceError):
    """The device is none of ours, or was built from another version or configuration."""


class MissingUnitError(DeviceError):
    """The device was built without the unit that is needed."""


class FaultError(DeviceError):
    """The device answered, and the answer cannot be or differs from the golden model."""


class Port(Protocol):
    """What is used of an open ``serial.Serial``."""

    timeout: float | None

    @property
    def in_waiting(self) -> int:
        """Bytes received and not read."""

    def read(self, size: int = 1, /) -> bytes:
        """Return up to ``size`` bytes, fewer after ``timeout`` seconds."""

    def write(self, sent: bytes, /) -> int | None:
        """Send bytes."""

    def flush(self) -> None:
        """Wait until all is sent."""

    def reset_input_buffer(self) -> None:
        """Forget what was received."""

    def close(self) -> None:
        """Close the port."""


class HostLink:
    """Sends requests and returns answers.

    A request is sent again, up to ``retries`` times, if nothing comes, if what comes is broken or
    if the device found the request broken. That is safe because requests have no state: each begins
    from reset; a unit that keeps its state knows a request that comes again by its number. An
    answer counts if its CRC, length, command and sequence number are right.

    Parameters
    ----------
    port
        Name of a serial port, or an open one.
    baud
        Bits a second.
    timeout
        Seconds of silence after which an answer is not waited for any longer, besides the time that
        the request takes on the line.
    retries
        How often a request is repeated before it is given up.

    Raises
    ------
    NoDeviceError
        There is no such port, or it cannot be opened.
    MissingToolError
        pyserial is not installed.
    InputError
        A parameter is out of range.
    """

    def __init__(
        self, port: str | Port, *, baud: int, timeout: float = 1.0, retries: int = 3
    ) -> None:
        if baud < 1 or not timeout > 0 or retries < 0:
            raise InputError(
                f"baud={baud}, timeout={timeout}, retries={retries}: baud and timeout must be "
                "positive, retries at least 0"
            )
        self.name = port if isinstance(port, str) else type(port).__name__
        self._baud, self._timeout, self._retries = baud, timeout, retries
        self._port = _open(port, baud, timeout) if isinstance(port, str) else port
        # A late answer to another program's request is most likely none to ours.
        self._sequence = random.randrange(1 << 16)

    def close(self) -> None:
        """Close the port."""
        self._port.close()

    def request(self, command: int, payload: bytes = b"") -> bytes:
        """Return the payload of the answer.

        Raises
        ------
        NoAnswerError
            No intact answer came.
        FaultError
            The device could not carry the request out.
        NoDeviceError
            The port has gone.
        """
        self._sequence = (self._sequence + 1) % (1 << 16)
        frame = Frame(command, self._sequence, payload)
        sent = encode(frame)
        received = 0
        try:
            for attempt in range(self._retries + 1):
                if attempt:
                    self._settle()
                self._port.reset_input_buffer()
                self._port.write(sent)
                answer, count = self._listen(frame, len(sent))
                received += count
                if answer is not None:
                    return self._checked(answer)
        except GONE as error:
            raise NoDeviceError(f"port {self.name}: the device has gone ({error})") from error
        tries = f"{self._retries + 1} attempt{'s' if self._retries else ''}"
        if not received:
            raise NoAnswerError(
                f"port {self.name}: no answer in {tries} of {self._timeout:g} s; check that the "
                "board has power and its bitstream, and that this is its port"
            )
        raise NoAnswerError(
            f"port {self.name}: no intact answer in {tries}, though {received} bytes came; check "
            f"that the design was built for {self._baud} baud, and the cable"
        )

    def _listen(self, frame: Frame, sent: int) -> tuple[Frame | None, int]:
        """Wait for the answer to ``frame``; return it, or None to try again, and bytes received."""
        decoder = Decoder()
        received = 0
        self._port.timeout = self._timeout + sent * BITS_PER_BYTE / self._baud
        while received < MOST_BYTES:
            piece = self._port.read(max(1, self._port.in_waiting))
            if not piece:
                break
            self._port.timeout = self._timeout
            received += len(piece)
            for answer in decoder.feed(piece):
                if answer is None:
                    continue
                if answer.status == Status.BAD_FRAME:
                    return None, received
                if (answer.command, answer.sequence) == (frame.command, frame.sequence):
                    return answer, received
        return None, received

    def _settle(self) -> None:
        """Let what is under way in both directions arrive, so that nothing collides with it."""
        self._port.flush()
        self._port.timeout = min(SETTLE_SECONDS, self._timeout)
        received = 0
        while (piece := self._port.read(max(1, self._port.in_waiting))) and received < MOST_BYTES:
            received += len(piece)

    def _checked(self, answer: Frame) -> bytes:
        if answer.status == Status.OK:
            return answer.payload
        known = {status.value: status.name for status in Status}
        raise FaultError(
            f"port {self.name}: the device refused command {answer.command} with status "
            f"{known.get(answer.status, answer.status)}"
        )


def _open(name: str, baud: int, timeout: float) -> Port:
    """Open a serial port for this process alone."""
    try:
        import serial
        from serial.tools import list_ports
    except ImportError as error:
        raise MissingToolError(
            "the Python package pyserial", "pip install 'm2xfp[fpga]'"
        ) from error
    try:
        opened: Port = serial.Serial(
            name, baud, timeout=timeout, write_timeout=timeout + 60, exclusive=True
        )
        return opened
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error)
        there = ", ".join(sorted(port.device for port in list_ports.comports())) or "none"
        raise NoDeviceError(
            f"no device at port {name!r}: {reason}; serial ports here: {there}"
        ) from error
