"""Registers and memory of a board, of which a file and a thread play the part.

The thread sees what the driver writes into the file's registers, does the same to the simulated
accelerator, and puts registers and memory back. So the driver's accesses are those of a board.
"""

import mmap
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m2xfp.accelerator import Device, DeviceError, MappedTransport, SimulatedTransport
from m2xfp.accelerator.mapped import REGISTER_BYTES, MappingError
from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.products import matmul
from m2xfp.rtl.parts.accelerator_map import OFFSETS

MEMORY, START = 1 << 16, 0x4000
IDLE = 0xFFFFFFFF
READ, WRITE = MappedTransport.read, MappedTransport.write


class Board(threading.Thread):
    """A file of registers, then memory, with the simulated accelerator behind it."""

    def __init__(self, path: Path, simulated: SimulatedTransport) -> None:
        super().__init__(daemon=True)
        self.path, self.simulated, self.error = path, simulated, ""
        self.line: socket.socket | None = None
        path.write_bytes(bytes(REGISTER_BYTES + MEMORY))
        with path.open("r+b") as file:
            content = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
        self.words: NDArray[np.uint32] = content[:REGISTER_BYTES].view(np.uint32)
        self.memory = content[REGISTER_BYTES:]
        self.ends, self.clock = threading.Event(), threading.Lock()
        self._show()
        self.words[OFFSETS["push"] // 4] = IDLE

    def read(self, transport: MappedTransport, offset: int) -> int:
        """Return a register that the driver reads, between two clocks and not within one."""
        with self.clock:
            return READ(transport, offset)

    def write(self, transport: MappedTransport, offset: int, word: int) -> None:
        """Let the driver write a register; a one clears the error, which a file would keep."""
        with self.clock:
            WRITE(transport, offset, 0 if offset == OFFSETS["error"] and word >> 31 else word)

    def _show(self) -> None:
        """Put the registers that the accelerator writes into the file, in one clock as it does."""
        with self.clock:
            for name, offset in OFFSETS.items():
                if offset < OFFSETS["operation"]:
                    word = self.simulated.read(offset)
                    if name == "bus":  # one descriptor at a time: a file remembers only one push
                        word = word & 0xFFFFFF | 1 << 24
                    self.words[offset // 4] = word

    def run(self) -> None:
        while not self.ends.is_set():
            if self.words[OFFSETS["push"] // 4] == IDLE:
                self.ends.wait(2e-4)
                continue
            number = int(self.words[OFFSETS["push"] // 4])
            self.words[OFFSETS["push"] // 4] = IDLE
            try:
                model = self.simulated.model
                model.memory[START : START + MEMORY] = self.memory
                model.write("error", 1 << 31)
                for name, offset in OFFSETS.items():
                    if OFFSETS["operation"] <= offset < OFFSETS["push"]:
                        model.write(name, int(self.words[offset // 4]))
                model.write("int_status", 3)
                model.write("int_enable", 1)
                model.write("push", number)
                model.wait()
                self.memory[:] = model.memory[START : START + MEMORY]
                self._show()
                if self.line is not None:
                    self.line.send(number.to_bytes(4, "little"))
            except Exception as error:  # for the test to tell
                self.error = repr(error)
                return


@pytest.fixture
def board(
    accelerator_files: EmittedFiles,
    sim_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Board]:
    simulated = SimulatedTransport(
        files=accelerator_files, memory_bytes=START + MEMORY, build_dir=sim_dir
    )
    board = Board(tmp_path / "mem", simulated)
    monkeypatch.setattr(MappedTransport, "read", lambda *call: board.read(*call))
    monkeypatch.setattr(MappedTransport, "write", lambda *call: board.write(*call))
    board.start()
    yield board
    board.ends.set()
    board.join()
    simulated.close()
    assert not board.error


def product(device: Device) -> None:
    """Multiply twice, and compare."""
    rng = torch.Generator().manual_seed(1)
    for n in (3, 6):
        x, w = torch.randn(4, 96, generator=rng), torch.randn(n, 96, generator=rng)
        acts, weights = get_format("m2xfp-act").quantize(x), get_format("m2xfp-weight").quantize(w)
        assert torch.equal(device.matmul(acts, weights), matmul(acts, weights))


def test_physical_addresses(board: Board) -> None:
    transport = MappedTransport.dev_mem(
        0, REGISTER_BYTES, MEMORY, path=board.path, memory_start=START
    )
    device = Device(transport, patience=30)
    assert device.max_k == 512
    product(device)
    assert transport.traffic() == {}


def test_an_error_comes_through(board: Board) -> None:
    """The accelerator finds an address beyond its memory."""
    transport = MappedTransport.dev_mem(
        0, REGISTER_BYTES, MEMORY, path=board.path, memory_start=START
    )
    device = Device(transport, patience=30)
    acts, weights = device.empty(1, 32), device.empty(1, 32, device.weights)
    acts.planes["codes"] += 1 << 20  # type: ignore[index]
    job = device.submit_matmul(acts, weights)
    with pytest.raises(DeviceError, match="descriptor 1 ended with: read_decerr"):
        job.result()


def test_userspace_io(board: Board) -> None:
    transport = MappedTransport.uio(
        board.path, board.path, START, MEMORY, memory_offset=REGISTER_BYTES
    )
    # What is written to a UIO device unmasks its interrupt; into a file it would go to a register.
    own, other = socket.socketpair()
    board.line = other
    interrupt = transport._interrupt
    assert os.path.samestat(os.fstat(interrupt), board.path.stat())
    os.dup2(own.fileno(), interrupt)
    product(Device(transport, patience=30))
    transport.close()
    transport.close()
    other.setblocking(False)
    assert other.recv(1 << 10) == (1).to_bytes(4, "little") * 2  # a count is read for each
    own.close()
    other.close()


def test_pynq(board: Board) -> None:
    """Its MMIO has words, its buffer an address and caches."""
    calls = []
    buffer = board.memory.view(_Buffer)
    buffer.device_address = START
    buffer.flush, buffer.invalidate = lambda: calls.append("flush"), lambda: calls.append("in")
    product(Device(MappedTransport.pynq(SimpleNamespace(array=board.words), buffer), patience=30))
    assert calls.count("flush") == 12
    assert calls.count("in") == 2
    with pytest.raises(InputError, match=r"pass pynq\.MMIO"):
        MappedTransport.pynq(object(), buffer)


class _Buffer(np.ndarray):
    """An array with what PYNQ's buffers have."""


def test_no_such_device(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match="there is no such device; load the bitstream"):
        MappedTransport.dev_mem(0, 1 << 20, 4096, path=tmp_path / "uio0")


def test_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(MappingError, match="this user may not open it; run as root"):
        MappedTransport.dev_mem(0, 1 << 20, 4096, path=tmp_path)


def test_places_that_cannot_be_mapped(tmp_path: Path) -> None:
    file = tmp_path / "mem"
    file.write_bytes(bytes(REGISTER_BYTES))
    with pytest.raises(MappingError, match="cannot be mapped"):
        MappedTransport.dev_mem(0, REGISTER_BYTES, 4096, path=file)
    with pytest.raises(InputError, match="0x10 is not the first byte of a page"):
        MappedTransport.dev_mem(16, REGISTER_BYTES, 4096, path=file)
    with pytest.raises(MappingError, match=r"directory"):
        MappedTransport.dev_mem(0, 0, 4096, path=tmp_path)


def test_another_device_answers(tmp_path: Path) -> None:
    """Registers that are all zero, as where nothing was loaded."""
    file = tmp_path / "mem"
    file.write_bytes(bytes(REGISTER_BYTES + 4096))
    transport = MappedTransport.dev_mem(0, REGISTER_BYTES, 4096, path=file)
    with pytest.raises(DeviceError, match="id 0x00000000, version 0; look at the address"):
        Device(transport)
    with pytest.raises(InputError, match="are not in the memory"):
        transport.load(REGISTER_BYTES, 4097)
