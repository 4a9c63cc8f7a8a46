"""A netlist on its pins: compiled with Verilator, spoken to in bytes over its serial lines."""

import ctypes
from pathlib import Path

from m2xfp.tb.cache import BUILD_DIR
from m2xfp.tb.shared_library import Signatures, build_library, load_library

__all__ = ["Pins", "compile_netlist", "quiet_clocks"]

SOURCE = Path(__file__).with_name("pins.cpp")
CELLS = Path(__file__).with_name("cells.v")

DRIFT = 0.02
"""By how much a host's clock is off; ten bits come to a fifth of a bit."""


def quiet_clocks(buffer: int) -> int:
    """Return the clocks with an idle line after which an answer is taken as ended.

    A full request of ``buffer`` bytes is carried out in a byte a clock before its answer begins;
    the rest is several times what a unit takes to compute.
    """
    return buffer + 1000


def compile_netlist(verilog: Path, build_dir: Path = BUILD_DIR) -> Path:
    """Return the shared library of a netlist, building it unless it is there already.

    Parameters
    ----------
    verilog
        What `m2xfp.fpga.check.netlist.Netlist.verilog` wrote.
    build_dir
        Folder of the cache.
    """
    return build_library(
        verilog,
        "chip",
        [CELLS, SOURCE],
        name="pins",
        prefix="Vchip",
        undefined="0",
        options=("--no-timing", "--unroll-count", "1"),
        build_dir=build_dir,
    )


class Pins:
    """Chips that were just configured, one a lane, on one serial line to the host.

    Parameters
    ----------
    library
        What `compile_netlist` returned.
    divisor
        Clocks a bit on the line.
    quiet
        Clocks with an idle line that end an answer, see `quiet_clocks`.
    lanes
        Machines in the netlist, at most 64.
    batch
        Which of the groups of faults is present.
    """

    def __init__(
        self, library: Path, divisor: int, quiet: int, lanes: int = 1, batch: int = 0
    ) -> None:
        self._calls, self._quiet = load_library(library, "pins", SIGNATURES), quiet
        self._divisor, self._exchanges = divisor, 0
        self._pins = self._calls.pins_new(lanes, divisor, batch)
        self.exchange(b"")  # the power-on reset takes a while after configuration

    def __enter__(self) -> "Pins":
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.pins_delete(self._pins)

    def exchange(self, sent: bytes) -> bytes:
        """Send bytes back to back and return what lane 0 answers; the others' answers stay.

        The host's clock is right, slow and fast in turn, by ``DRIFT``.
        """
        drift = (0.0, DRIFT, -DRIFT)[self._exchanges % 3]
        self._exchanges += 1
        period = round(4096 * self._divisor * (1 + drift))
        self._calls.pins_exchange(self._pins, sent, len(sent), period, self._quiet)
        return self.answer(0)

    def answer(self, lane: int) -> bytes:
        """Return what a lane sent in the last exchange."""
        size = self._calls.pins_size(self._pins, lane)
        return ctypes.string_at(self._calls.pins_bytes(self._pins, lane), size) if size else b""

    def broken(self, lane: int) -> bool:
        """Whether a lane ever sent a byte without a stop bit, or a bit of another length."""
        return bool(self._calls.pins_broken(self._pins, lane))

    @property
    def clocks(self) -> int:
        """Clocks since the chips were configured."""
        return int(self._calls.pins_clocks(self._pins))

    @property
    def hits(self) -> int:
        """Lanes, as bits, whose fault has made its LUT wrong at some clock edge."""
        return int(self._calls.pins_hits(self._pins))


_SIZE, _POINTER, _LANE = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint
_NUMBER = ctypes.c_uint64
SIGNATURES: Signatures = {
    "new": (_POINTER, _LANE, ctypes.c_uint, ctypes.c_uint),
    "delete": (None, _POINTER),
    "exchange": (None, _POINTER, ctypes.c_char_p, _SIZE, _NUMBER, _NUMBER),
    "size": (_SIZE, _POINTER, _LANE),
    "bytes": (_POINTER, _POINTER, _LANE),
    "broken": (ctypes.c_int, _POINTER, _LANE),
    "clocks": (_NUMBER, _POINTER),
    "hits": (_NUMBER, _POINTER),
}
