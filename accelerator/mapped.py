"""An accelerator on a board: its registers and a piece of memory, mapped into this process."""

import errno
import mmap
import os
import select
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError, M2xfpError
from m2xfp.rtl.parts.accelerator_map import OFFSETS

__all__ = ["MappedTransport", "MappingError"]

REGISTER_BYTES = -(-(max(OFFSETS.values()) + 4) // mmap.PAGESIZE) * mmap.PAGESIZE
_PAUSE = 50e-6  # seconds between two looks where there is no interrupt


class MappingError(M2xfpError):
    """Registers or memory of a board that cannot be reached."""


class MappedTransport:
    """Registers and memory that are mapped into this process.

    What the processor's caches hold of the memory is for whoever maps it: ``/dev/mem`` opened as
    here, and ``u-dma-buf`` with ``sync_mode``, go past them; PYNQ's buffers are flushed.

    Parameters
    ----------
    registers
        uint32: the registers.
    memory
        uint8: the memory that both sides see.
    memory_start
        Address of its first byte on the accelerator's buses.
    interrupt
        File descriptor of a UIO device, which this object then closes; -1 if there is none, and the
        registers are looked at again and again.
    buffer
        What has ``flush`` and ``invalidate``, as PYNQ's buffers have.
    """

    def __init__(
        self,
        registers: NDArray[np.uint32],
        memory: NDArray[np.uint8],
        memory_start: int,
        *,
        interrupt: int = -1,
        buffer: Any = None,
    ) -> None:
        if registers.dtype != np.uint32 or registers.nbytes < max(OFFSETS.values()) + 4:
            raise InputError("registers: pass uint32 words of all registers")
        if memory.dtype != np.uint8 or memory.ndim != 1:
            raise InputError("memory: pass bytes [n]")
        self._registers, self._memory, self._buffer = registers, memory, buffer
        self.memory_start, self.memory_bytes = memory_start, len(memory)
        self._interrupt = interrupt

    @classmethod
    def dev_mem(
        cls,
        registers: int,
        memory: int,
        memory_bytes: int,
        *,
        path: Path = Path("/dev/mem"),
        memory_start: int | None = None,
    ) -> "MappedTransport":
        """Map physical addresses.

        Parameters
        ----------
        registers, memory
            Physical addresses of the registers, and of memory that the system does not use, as one
            that was reserved in the device tree.
        memory_bytes
            Its size.
        path
            What physical addresses are offsets in.
        memory_start
            Address of the memory on the accelerator's buses, where it is not the processor's.

        Raises
        ------
        MappingError
            There is no such device, or this user may not.
        """
        words = _map(path, registers, REGISTER_BYTES).view(np.uint32)
        content = _map(path, memory, memory_bytes)
        return cls(words, content, memory if memory_start is None else memory_start)

    @classmethod
    def uio(
        cls,
        device: Path,
        memory: Path,
        memory_start: int,
        memory_bytes: int,
        *,
        memory_offset: int = 0,
    ) -> "MappedTransport":
        """Map a device of Linux' userspace I/O, which also waits for the interrupt.

        Parameters
        ----------
        device
            Such as /dev/uio0, whose first map holds the registers.
        memory
            Such as /dev/udmabuf0, or /dev/mem.
        memory_start, memory_bytes
            Address of the memory on the accelerator's buses, and its size.
        memory_offset
            Where it begins in ``memory``: 0 for a buffer of its own, its address for /dev/mem.

        Raises
        ------
        MappingError
            There is no such device, or this user may not.
        """
        words = _map(device, 0, REGISTER_BYTES).view(np.uint32)
        content = _map(memory, memory_offset, memory_bytes)
        return cls(words, content, memory_start, interrupt=_open(device))

    @classmethod
    def pynq(cls, mmio: Any, buffer: Any) -> "MappedTransport":
        """Take what PYNQ gives.

        Parameters
        ----------
        mmio
            ``pynq.MMIO(address, 4096)``, or ``overlay.accelerator.mmio``.
        buffer
            ``pynq.allocate(bytes, "u1")``.
        """
        try:
            words, start = mmio.array, buffer.device_address
        except AttributeError as error:
            raise InputError("pass pynq.MMIO and a buffer of pynq.allocate(bytes, 'u1')") from error
        return cls(words, np.asarray(buffer).reshape(-1), start, buffer=buffer)

    def read(self, offset: int) -> int:
        """Return a register."""
        return int(self._registers[offset // 4])

    def write(self, offset: int, word: int) -> None:
        """Write a register."""
        self._registers[offset // 4] = word

    def load(self, address: int, length: int) -> NDArray[np.uint8]:
        """Return a copy of bytes of the memory."""
        if self._buffer is not None:
            self._buffer.invalidate()
        return self._memory[self._span(address, length)].copy()

    def store(self, address: int, content: NDArray[np.uint8]) -> None:
        """Write bytes into the memory."""
        self._memory[self._span(address, len(content))] = content
        if self._buffer is not None:
            self._buffer.flush()

    def wait(self) -> None:
        """Wait for the interrupt, a second at most; without one for a moment."""
        if self._interrupt < 0:
            time.sleep(_PAUSE)
            return
        # The kernel masks an interrupt when it comes: 1 unmasks it, and a count is read.
        with suppress(OSError):  # a driver that cannot mask
            os.write(self._interrupt, (1).to_bytes(4, "little"))
        if select.select([self._interrupt], [], [], 1.0)[0]:
            os.read(self._interrupt, 4)

    def traffic(self) -> dict[str, int]:
        """Return nothing: no register counts bytes."""
        return {}

    def close(self) -> None:
        """Let go of the interrupt; maps end with the last array of them."""
        interrupt, self._interrupt = self._interrupt, -1
        if interrupt >= 0:
            os.close(interrupt)

    def _span(self, address: int, length: int) -> slice:
        first = address - self.memory_start
        if not 0 <= first <= first + length <= self.memory_bytes:
            raise InputError(f"address=0x{address:X}: {length} bytes are not in the memory")
        return slice(first, first + length)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_SYNC | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MappingError(
            f"{path}: there is no such device; load the bitstream and its driver or device tree, "
            "and look at /sys/class/uio"
        ) from error
    except PermissionError as error:
        raise MappingError(
            f"{path}: this user may not open it; run as root, or let a udev rule give it to a group"
        ) from error
    except OSError as error:
        raise MappingError(f"{path}: {os.strerror(error.errno or errno.EIO)}") from error


def _map(path: Path, offset: int, length: int) -> NDArray[np.uint8]:
    """Return bytes of a file, which is a device as a rule."""
    if offset % mmap.PAGESIZE:
        raise InputError(f"0x{offset:X} is not the first byte of a page of {mmap.PAGESIZE}")
    place = _open(path)
    try:
        return np.frombuffer(mmap.mmap(place, length, offset=offset), np.uint8)
    except (OSError, ValueError) as error:
        raise MappingError(
            f"{path}: {length} bytes at 0x{offset:X} cannot be mapped ({error}); look at the "
            "address and at the size"
        ) from error
    finally:
        os.close(place)
