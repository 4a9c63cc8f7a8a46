"""The emitted accelerator between a processor and a memory, simulated behind ctypes."""

import ctypes
import mmap
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import M2xfpError
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.rtl.parts.accelerator_map import FIELDS, OFFSETS
from m2xfp.tb.cache import BUILD_DIR
from m2xfp.tb.parts.accelerator_traffic import Descriptor
from m2xfp.tb.shared_library import build_library, load_library

__all__ = ["AxiError", "AxiModel", "axi_library"]

_P, _U64, _INT = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int
_SIGNATURES = {
    "new": (_P, _P, _U64, _U64),
    "delete": (None, _P),
    "reset": (None, _P),
    "memory": (None, _P, ctypes.c_double, _U64, ctypes.c_double),
    "range": (None, _P, _U64, _U64, _INT),
    "window": (None, _P, _U64, _U64),
    "forget": (None, _P),
    "write": (_INT, _P, ctypes.c_uint32, ctypes.c_uint32, _U64),
    "read": (_INT, _P, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32), _U64),
    "wait": (_INT, _P, _U64),
    "count": (_U64, _P, _INT),
    "error": (ctypes.c_char_p, _P),
}
PATIENCE = 1 << 22
# Pages that are never touched take no memory, so that it may be as large as the address space.
# The flag is Linux's; Python 3.11 has no name for it.
_NORESERVE = 0x4000


class AxiError(M2xfpError):
    """The accelerator broke a rule of AXI, wrote where it may not, or does not answer."""


def axi_library(files: EmittedFiles, build_dir: Path = BUILD_DIR) -> Path:
    """Return the shared library of an accelerator and its memory, building it if need be."""
    bus = int(Facts.load(files.json).parameters["bus"]) // 8
    return build_library(
        files.verilog,
        f"{files.top}_axi",
        [Path(__file__).parent / "memory.cpp"],
        name="axi",
        headers={"widths.h": f"#define BUS {bus}\n"},
        build_dir=build_dir,
    )


class AxiModel:
    """An accelerator in Verilator, its registers, and the memory that its buses lead to.

    Parameters
    ----------
    files
        The emitted accelerator.
    memory
        Bytes of the memory, from address 0 on. Beyond it everything answers DECERR. What is never
        touched takes nothing of the machine's memory.
    seed
        Of registers before the reset, and of pauses.
    build_dir
        Folder of the build cache.

    Members
    -------
    memory
        uint8: what the memory holds.
    facts
        The accelerator's.
    """

    def __init__(
        self, files: EmittedFiles, memory: int, *, seed: int = 0, build_dir: Path = BUILD_DIR
    ) -> None:
        self.facts = Facts.load(files.json)
        self._library = load_library(axi_library(files, build_dir), "axi", _SIGNATURES)
        self._pages = mmap.mmap(
            -1, memory, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        )
        self.memory: NDArray[np.uint8] = np.frombuffer(self._pages, np.uint8)
        self._model = self._library.axi_new(self.memory.ctypes.data, memory, seed)
        self._words: dict[int, int] = {}  # that registers hold since the last reset

    def __enter__(self) -> "AxiModel":
        """Return the model."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free the model."""
        self.close()

    def close(self) -> None:
        """Free the model; more than once does nothing."""
        model, self._model = self._model, None
        if model is not None:
            self._library.axi_delete(model)

    def reset(self) -> None:
        """Reset the accelerator; the buses forget what was under way."""
        self._library.axi_reset(self._model)
        self._words.clear()

    def set_memory(self, *, pauses: float = 0.0, latency: int = 0, rate: float = 0.0) -> None:
        """Say how the memory answers.

        Parameters
        ----------
        pauses
            Probability that a channel pauses in a clock.
        latency
            Clocks from an address to the first word.
        rate
            Bytes a clock that all buses together move at most; 0 for no limit.
        """
        self._library.axi_memory(self._model, pauses, latency, rate)

    def answer(self, start: int, end: int, response: int) -> None:
        """Let accesses to bytes end with 2, SLVERR, or 3, DECERR; with 4 they never end."""
        self._library.axi_range(self._model, start, end, response)

    def allow(self, start: int, end: int) -> None:
        """Name bytes that may be written; once there are any, all others may not."""
        self._library.axi_window(self._model, start, end)

    def clear(self) -> None:
        """Fill the memory with zeros; what it took of the machine's is free again."""
        self._pages.madvise(mmap.MADV_DONTNEED)

    def forget(self) -> None:
        """Take back all that `answer` and `allow` have said."""
        self._library.axi_forget(self._model)

    def write(self, register: str | int, word: int) -> int:
        """Write a register, and return the response."""
        offset = OFFSETS[register] if isinstance(register, str) else register
        response = self._answered(self._library.axi_write(self._model, offset, word, PATIENCE))
        if response == 0:
            self._words[offset] = word
        return response

    def read(self, register: str | int) -> tuple[int, int]:
        """Return a register and the response."""
        offset = OFFSETS[register] if isinstance(register, str) else register
        word = ctypes.c_uint32()
        found = self._library.axi_read(self._model, offset, ctypes.byref(word), PATIENCE)
        return word.value, self._answered(found)

    def field(self, register: str, name: str) -> int:
        """Return a field of a register."""
        low, width = FIELDS[register][name]
        return self.read(register)[0] >> low & (1 << width) - 1

    def push(self, descriptor: Descriptor) -> None:
        """Write the words of a descriptor that differ and push it, waiting while the queue is full.

        Words keep their value, so most of the clocks that writing them all would take are saved.
        """
        for offset, word in descriptor.writes():
            if offset != OFFSETS["push"] and self._words.get(offset) == word:
                continue
            if self.write(offset, word):
                raise AxiError(f"the accelerator refuses register 0x{offset:03X}")

    def wait(self, clocks: int = PATIENCE) -> bool:
        """Run until an interrupt is pending; return whether there is one after so many clocks."""
        found = bool(self._library.axi_wait(self._model, clocks))
        self.check()
        return found

    def count(self, what: str) -> int:
        """Return ``clocks``, bytes ``read`` and ``written``, or beats ``moved`` since the start."""
        names = ("clocks", "read", "written", "moved")
        return int(self._library.axi_count(self._model, names.index(what)))

    def check(self) -> None:
        """Raise AxiError if a rule was broken."""
        error = self._library.axi_error(self._model)
        if error:
            raise AxiError(error.decode())

    def _answered(self, response: int) -> int:
        self.check()
        if response < 0:
            raise AxiError(f"the accelerator does not answer within {PATIENCE} clocks")
        return response
