"""How the driver reaches an accelerator: its registers, and the memory that it shares with it."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import EmittedFiles
from m2xfp.tb.cache import BUILD_DIR

__all__ = ["SimulatedTransport", "Transport"]


class Transport(Protocol):
    """Registers of an accelerator, and memory that both sides see.

    Members
    -------
    memory_bytes
        Size of the memory, which begins at address ``memory_start``.
    """

    memory_start: int
    memory_bytes: int

    def read(self, offset: int) -> int:
        """Return a register."""

    def write(self, offset: int, word: int) -> None:
        """Write a register."""

    def load(self, address: int, length: int) -> NDArray[np.uint8]:
        """Return a copy of bytes of the memory."""

    def store(self, address: int, content: NDArray[np.uint8]) -> None:
        """Write bytes into the memory."""

    def wait(self) -> None:
        """Let time pass until an interrupt is pending, or for a while."""

    def traffic(self) -> dict[str, int]:
        """Return bytes ``read`` and ``written`` by the accelerator, empty if nobody counts them."""

    def close(self) -> None:
        """Let go of registers and memory."""


class SimulatedTransport:
    """The emitted Verilog in Verilator, with a memory of its own.

    Parameters
    ----------
    config, settings
        The accelerator: a configuration of the catalog, and parameters as ``--set`` takes them.
    files
        The accelerator if it has been emitted already, instead of these.
    memory_bytes
        Size of the memory.
    latency, rate
        Of the memory: clocks from an address to its first word, and bytes a clock that all buses
        together move, 0 for no limit.
    build_dir
        Folder of the build cache.

    Members
    -------
    model
        The simulation, with its counts of clocks and bytes.
    """

    def __init__(
        self,
        config: str | None = None,
        settings: tuple[str, ...] = (),
        *,
        files: EmittedFiles | None = None,
        memory_bytes: int = 1 << 24,
        latency: int = 0,
        rate: float = 0.0,
        build_dir: Path = BUILD_DIR,
    ) -> None:
        # Here: a board needs no simulator, nor all units of the generator.
        from m2xfp.rtl.catalog import find_unit
        from m2xfp.rtl.parameters import parse_settings
        from m2xfp.rtl.verilog.emit import emit
        from m2xfp.tb.axi.model import AxiModel

        if files is None:
            unit = find_unit("accelerator")
            instance = unit.instance(config, parse_settings(unit.component, settings))
            files = emit(instance, build_dir / "accelerator")
        self.memory_start, self.memory_bytes = 0, memory_bytes
        self.model = AxiModel(files, memory_bytes, build_dir=build_dir)
        self.model.set_memory(latency=latency, rate=rate)

    def read(self, offset: int) -> int:
        """Return a register."""
        return self.model.read(offset)[0]

    def write(self, offset: int, word: int) -> None:
        """Write a register."""
        self.model.write(offset, word)

    def load(self, address: int, length: int) -> NDArray[np.uint8]:
        """Return a copy of bytes of the memory."""
        return self.model.memory[address : address + length].copy()

    def store(self, address: int, content: NDArray[np.uint8]) -> None:
        """Write bytes into the memory."""
        self.model.memory[address : address + len(content)] = content

    def wait(self) -> None:
        """Run until an interrupt is pending."""
        self.model.wait()

    def traffic(self) -> dict[str, int]:
        """Return bytes read and written by the accelerator."""
        return {name: self.model.count(name) for name in ("read", "written")}

    def close(self) -> None:
        """Free the simulation."""
        self.model.close()
