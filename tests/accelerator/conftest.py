"""The simulated accelerator that the driver's tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerator_bench import CONFIG, PACKING, UNIT, build

from m2xfp.accelerator import Device, SimulatedTransport
from m2xfp.facts import EmittedFiles


@pytest.fixture(scope="session")
def accelerator_files(emitted: Callable[[str, str], EmittedFiles]) -> EmittedFiles:
    return emitted(UNIT, CONFIG)


@pytest.fixture(scope="session")
def fp32_files(sim_dir: Path) -> EmittedFiles:
    """An accelerator whose encoder takes FP32 values."""
    return build(PACKING, sim_dir / "verilog")


@pytest.fixture
def fp32_device(fp32_files: EmittedFiles, sim_dir: Path) -> Iterator[Device]:
    transport = SimulatedTransport(files=fp32_files, memory_bytes=1 << 18, build_dir=sim_dir)
    yield Device(transport, acts="m2xfp-act:group=8", weights="m2xfp-weight:group=8")
    transport.close()


@pytest.fixture
def device(accelerator_files: EmittedFiles, sim_dir: Path) -> Iterator[Device]:
    transport = SimulatedTransport(
        files=accelerator_files, memory_bytes=1 << 18, latency=5, build_dir=sim_dir
    )
    yield Device(transport)
    transport.close()
