"""A netlist on its pins: compiled with Verilator, spoken to in bytes over its serial lines."""

import ctypes
import shutil
from functools import cache
from pathlib import Path

from m2xfp.tb.cache import BUILD_DIR, cached_build
from m2xfp.tb.verilator import find_verilator

__all__ = ["Pins", "compile_netlist", "quiet_clocks"]

SOURCE = Path(__file__).with_name("pins.cpp")
CELLS = Path(__file__).with_name("cells.v")


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
    verilator = find_verilator()
    arguments = [
        *("--cc", "--exe", "--build", "-O3", "--x-assign", "0", "--x-initial", "0"),
        *("--prefix", "Vchip", "--top-module", "chip", "-Wno-fatal", "--no-timing"),
        *("-CFLAGS", "-fPIC", "-LDFLAGS", "-shared", "-j", "0"),
        *(
            "-Mdir",
            "obj",
            "-o",
            "../chip.so",
            "--unroll-count",
            "1",
            CELLS.name,
            verilog.name,
            SOURCE.name,
        ),
    ]

    def build(folder: Path) -> None:
        shutil.copy(SOURCE, folder)
        shutil.copy(CELLS, folder)
        done = verilator.run(arguments, folder)
        if done.returncode:
            raise RuntimeError(f"Verilator failed on {verilog}:\n{done.stdout}")
        shutil.rmtree(folder / "obj")

    facts = [SOURCE.read_text(), CELLS.read_text(), verilator.version, *arguments]
    return cached_build(build_dir, "chip", verilog, facts, build) / "chip.so"


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
        self._calls, self._quiet = _load(library), quiet
        self._pins = self._calls.pins_new(lanes, divisor, batch)
        self.exchange(b"")  # the power-on reset takes a while after configuration

    def __enter__(self) -> "Pins":
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.pins_delete(self._pins)

    def exchange(self, sent: bytes) -> bytes:
        """Send bytes back to back and return what lane 0 answers; the others' answers stay."""
        self._calls.pins_exchange(self._pins, sent, len(sent), self._quiet)
        return self.answer(0)

    def answer(self, lane: int) -> bytes:
        """Return what a lane sent in the last exchange."""
        size = self._calls.pins_size(self._pins, lane)
        return ctypes.string_at(self._calls.pins_bytes(self._pins, lane), size) if size else b""

    def broken(self, lane: int) -> bool:
        """Whether a lane ever sent a byte without a stop bit."""
        return bool(self._calls.pins_broken(self._pins, lane))

    @property
    def clocks(self) -> int:
        """Clocks since the chips were configured."""
        return int(self._calls.pins_clocks(self._pins))

    @property
    def hits(self) -> int:
        """Lanes, as bits, whose fault has made its LUT wrong at some clock edge."""
        return int(self._calls.pins_hits(self._pins))


@cache
def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path.resolve()))
    size, pointer, lane = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint
    number = ctypes.c_uint64
    signatures = {
        "new": (pointer, lane, ctypes.c_uint, ctypes.c_uint),
        "delete": (None, pointer),
        "exchange": (None, pointer, ctypes.c_char_p, size, number),
        "size": (size, pointer, lane),
        "bytes": (pointer, pointer, lane),
        "broken": (ctypes.c_int, pointer, lane),
        "clocks": (number, pointer),
        "hits": (number, pointer),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, f"pins_{name}")
        function.restype, function.argtypes = result, arguments
    return library
