"""The design on a board in simulation, seen through its serial line.

The emitted Verilog runs under Verilator; a waveform goes in at ``rx`` and one comes out at ``tx``.
``SimulatedPort`` looks like a port of pyserial, so that the host library talks to a simulation as
it does to a board.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m2xfp.files import write_atomic
from m2xfp.fpga.gateware.design import Design
from m2xfp.fpga.host.link import MOST_BYTES
from m2xfp.rtl.verilog.emit import verilog_text
from m2xfp.tb.cache import BUILD_DIR
from m2xfp.tb.shared_library import Signatures, build_library, load_library

__all__ = [
    "FRAME_BITS",
    "Exchanger",
    "SimulatedLine",
    "SimulatedPort",
    "line_bytes",
    "line_toggles",
]

SOURCE = Path(__file__).with_name("line.cpp")

FRAME_BITS = 10
"""Start bit, 8 data bits, stop bit."""

Clocks = NDArray[np.uint64]


def line_toggles(sent: bytes, clocks_per_bit: float, start: float = 0.0) -> NDArray[np.float64]:
    """Return when an idle line changes its level to carry ``sent``, in clocks.

    The bytes follow one another without a pause; ``clocks_per_bit`` need not be a whole number.
    """
    octets = np.frombuffer(sent, np.uint8)
    data = np.unpackbits(octets[:, None], axis=1, bitorder="little")
    frames = np.concatenate([np.zeros_like(data[:, :1]), data, np.ones_like(data[:, :1])], axis=1)
    levels = np.concatenate([[1], frames.reshape(-1)])
    bits = np.flatnonzero(levels[1:] != levels[:-1])
    return np.float64(start) + np.float64(clocks_per_bit) * bits.astype(np.float64)


def line_bytes(toggles: Sequence[int] | Clocks, clocks_per_bit: float) -> bytes:
    """Return the bytes that an idle line carries; ValueError if a stop bit is low.

    Each bit is read in its middle, timed from the edge of its start bit.
    """
    times = np.asarray(toggles, np.float64)
    found, at = bytearray(), 0
    while at < len(times):
        middles = times[at] + clocks_per_bit * (np.arange(FRAME_BITS) + 0.5)
        # The line is high before an even number of changes.
        levels = np.searchsorted(times, middles, side="right") % 2 == 0
        if levels[0] or not levels[-1]:
            raise ValueError(f"no byte on the line at clock {times[at]:.0f}")
        found.append(int(np.packbits(levels[1:-1], bitorder="little")[0]))
        at = int(np.searchsorted(times, middles[-1], side="right"))
    return bytes(found)


class SimulatedLine:
    """The emitted design as a shared library.

    Parameters
    ----------
    design
        The design.
    seed
        Of the registers' contents before reset.
    build_dir
        Folder of the build cache.

    Members
    -------
    divisor
        Clocks a bit.
    clocks
        Simulated since reset.

    Raises
    ------
    MissingToolError
        If Verilator or a program that it needs is missing.
    """

    def __init__(self, design: Design, *, seed: int = 0, build_dir: Path = BUILD_DIR) -> None:
        self.divisor = design.divisor
        self.clocks = 0
        self._library = load_library(_build(design, build_dir), "line", SIGNATURES)
        self._model = ctypes.c_void_p(self._library.line_new(seed))

    def __enter__(self) -> "SimulatedLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self._library.line_delete(self._model)
        self._model = ctypes.c_void_p(None)

    def run(self, toggles: Iterable[float], *, longest: int = MOST_BYTES) -> Clocks:
        """Change ``rx`` at these clocks; return the clocks at which ``tx`` changed.

        Both count from the start of the run, which begins and ends with both lines idle: it goes on
        until nothing has changed for the time of two bytes and the design rests. RuntimeError if
        that takes the time of ``longest`` bytes.
        """
        at = np.ceil(np.sort(np.fromiter(toggles, np.float64))).astype(np.uint64)
        byte = FRAME_BITS * self.divisor
        quiet = 2 * byte
        limit = (int(at[-1]) if len(at) else 0) + quiet + byte * longest
        before = self.clocks
        self.clocks = self._library.line_run(self._model, at.ctypes.data, len(at), quiet, limit)
        if self.clocks - before >= limit:
            raise RuntimeError(f"the design is still busy after {limit} clocks")
        count = self._library.line_toggle_count(self._model)
        pointer = self._library.line_toggles(self._model)
        return np.frombuffer(ctypes.string_at(pointer, 8 * count), np.uint64).copy()

    def exchange(self, sent: bytes) -> bytes:
        """Send bytes at the design's own rate and return what it answers."""
        return line_bytes(self.run(line_toggles(sent, self.divisor)), self.divisor)


class Exchanger(Protocol):
    """Whatever takes bytes on a serial line and answers with bytes."""

    def exchange(self, sent: bytes, /) -> bytes:
        """Send bytes and return what comes back."""


class SimulatedPort:
    """A simulated line with the interface of an open ``serial.Serial``, as far as it is used.

    What is written runs through the simulation at once, so a ``read`` that finds too little knows
    that nothing more will come, and returns without waiting.

    Parameters
    ----------
    line
        The simulation: a ``SimulatedLine``, or any other that exchanges bytes.
    to_device, from_device
        What the cable does to the bytes, both ways; nothing by default.
    """

    def __init__(
        self,
        line: Exchanger,
        to_device: Callable[[bytes], bytes] = bytes,
        from_device: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self._line, self._to_device, self._from_device = line, to_device, from_device
        self._received = b""
        self.timeout: float | None = None

    def write(self, sent: bytes) -> int:
        """Send bytes."""
        arriving = self._to_device(sent)
        self._received += self._from_device(self._line.exchange(arriving))
        return len(sent)

    @property
    def in_waiting(self) -> int:
        """Bytes that have been received and not read."""
        return len(self._received)

    def read(self, size: int = 1) -> bytes:
        """Return at most ``size`` bytes."""
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def flush(self) -> None:
        """Do nothing; all is sent at once."""

    def reset_input_buffer(self) -> None:
        """Forget what was received."""
        self._received = b""

    def close(self) -> None:
        """Do nothing; the line belongs to whoever made it."""


def _build(design: Design, build_dir: Path) -> Path:
    """Return the shared library, building it unless it is there already."""
    top = f"board_{'_'.join(design.units)}"
    text = verilog_text(design, top)
    name = f"{top}_{sha256(text.encode()).hexdigest()[:16]}.v"
    verilog = write_atomic(build_dir / "verilog" / name, text)
    return build_library(verilog, top, [SOURCE], name="line", build_dir=build_dir)


_SIZE, _POINTER, _NUMBER = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint64
SIGNATURES: Signatures = {
    "new": (_POINTER, _NUMBER),
    "delete": (None, _POINTER),
    "run": (_NUMBER, _POINTER, _POINTER, _SIZE, _NUMBER, _NUMBER),
    "toggle_count": (_SIZE, _POINTER),
    "toggles": (_POINTER, _POINTER),
}
