"""The simulated accelerator that the driver's tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from m2xfp.accelerator import Device, SimulatedTransport
from m2xfp.facts import EmittedFiles

UNIT, CONFIG = "accelerator", "m2xfp-2x2"


@pytest.fixture(scope="session")
def accelerator_files(emitted: Callable[[str, str], EmittedFiles]) -> EmittedFiles:
    return emitted(UNIT, CONFIG)


@pytest.fixture
def device(accelerator_files: EmittedFiles, sim_dir: Path) -> Iterator[Device]:
    transport = SimulatedTransport(
        files=accelerator_files, memory_bytes=1 << 18, latency=5, build_dir=sim_dir
    )
    yield Device(transport)
    transport.close()
