"""An accelerator before a simulated memory: tasks placed in it, and what must hold at their end."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import EmittedFiles
from m2xfp.formats import block_format
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.parameters import parse_settings
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.axi.model import AxiModel
from m2xfp.tb.parts.accelerator_story import scattered
from m2xfp.tb.parts.accelerator_tasks import Task, place, read_results, task_results, written
from m2xfp.tb.parts.accelerator_traffic import Descriptor, Memory

__all__ = ["BUILDS", "PACKING", "SLOT", "Bench", "build"]

UNIT, CONFIG = "accelerator", "m2xfp-2x2"
SLOT = 1 << 17  # of each descriptor's operands and results
UNTOUCHED = 0xEE

PACKING = "packing"
# Chunks and slots are small, so that rows take several chunks and slots come round often.
_SMALL = ("chunk=2", "slots=2", "outstanding=4", "encoder=fp32", "address_bits=40")
BUILDS: dict[str, tuple[str, ...]] = {
    CONFIG: (),
    PACKING: (
        *("act=m2xfp-act:group=8", "weight=m2xfp-weight:group=8", "rows=1", "columns=8"),
        *(*_SMALL, "bus=256", "max_k=64"),
    ),
    "1x32": ("rows=1", "columns=32", *_SMALL, "bus=256", "queue=2"),
    "2x16": (
        *("act=m2xfp-act:group=16", "weight=m2xfp-weight:group=16", "rows=2", "columns=16"),
        *("chunk=5", "slots=4", "chains=1", "encoder=fp32", "max_k=256"),
    ),
}
"""Accelerators by name, as ``--set`` has them; all but the catalog's own can pack results."""


def build(name: str, folder: Path) -> EmittedFiles:
    """Emit one of ``BUILDS``."""
    unit = UNITS[UNIT]
    settings = parse_settings(unit.component, BUILDS[name])
    return emit(unit.instance(CONFIG, settings, name=f"{UNIT}_{name}"), folder)


class Place(Memory):
    """The model's memory, for what places operands."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        super().__init__()
        self._memory = memory

    def write(self, address: int, content: NDArray[np.uint8]) -> None:
        self._memory[address : address + len(content)] = content

    def read(self, address: int, length: int) -> NDArray[np.uint8]:
        return self._memory[address : address + length]


class Bench(AxiModel):
    """The accelerator whose descriptors are counted, with interrupts enabled."""

    def __init__(self, files: EmittedFiles, memory: int, **options: Any) -> None:
        super().__init__(files, memory, **options)
        self.begin()

    @property
    def group(self) -> int:
        """Values of a group."""
        return block_format(self.facts.parameters["act"]).group

    def begin(self) -> None:
        """Count from zero, as after a reset."""
        self.completed = 0
        self.write("int_enable", 1)

    def reset(self) -> None:
        super().reset()
        self.begin()

    def prepare(self, task: Task, index: int, number: int = 0) -> Descriptor:
        """Place a task in its part of the memory; only its results may be written."""
        at = place(task, self.facts, Place(self.memory), index * SLOT, number or index)
        return self._expect(task, at)

    def scatter(
        self,
        rng: np.random.Generator,
        task: Task,
        number: int,
        taken: Iterable[tuple[int, int]],
    ) -> Descriptor:
        """Place a task anywhere in the memory but where something is."""
        at = scattered(rng, task, self.facts, Place(self.memory), number, taken)
        return self._expect(task, at)

    def _expect(self, task: Task, descriptor: Descriptor) -> Descriptor:
        for start, end in written(task, self.facts, descriptor):
            self.memory[start:end] = UNTOUCHED
            self.allow(start, end)
        return descriptor

    def right(self, task: Task, descriptor: Descriptor) -> bool:
        """Whether the memory has golden's results of a task."""
        found = read_results(task, self.facts, descriptor, Place(self.memory))
        return np.array_equal(found, task_results(task, self.facts))

    def untouched(self, task: Task, descriptor: Descriptor) -> bool:
        """Whether nothing was written where a task's results belong."""
        rows = written(task, self.facts, descriptor)
        return all((self.memory[start:end] == UNTOUCHED).all() for start, end in rows)

    def end(self, count: int) -> None:
        """Wait until so many descriptors more have ended."""
        self.completed += count
        for _ in range(count + 1):
            assert self.wait(200_000), "it hangs"
            self.write("int_status", 3)
            if self.read("completed")[0] == self.completed:
                break
        assert self.read("completed")[0] == self.completed
        assert not self.field("status", "busy")

    def cause(self) -> tuple[int, int]:
        """Return cause and descriptor of the error, and clear it."""
        found = self.field("error", "cause"), self.field("error", "descriptor")
        assert self.field("error", "valid") == (found[0] != 0)
        self.write("error", 1 << 31)
        assert self.read("error")[0] == 0
        return found
