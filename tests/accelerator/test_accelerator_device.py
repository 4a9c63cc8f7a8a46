"""The driver: products of tensors on the emitted accelerator, equal to golden's to the bit."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2xfp.accelerator import Device, DeviceError, SimulatedTransport
from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import matmul
from m2xfp.rtl.parts.accelerator_map import OFFSETS

UNIT, CONFIG = "accelerator", "m2xfp-2x2"
Emit = Callable[[str, str], EmittedFiles]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def weights(seed: int, n: int, k: int) -> PackedTensor:
    return get_format("m2xfp-weight").quantize(normal(seed, n, k))


@pytest.fixture
def device(emitted: Emit, sim_dir: Path) -> Iterator[Device]:
    transport = SimulatedTransport(
        files=emitted(UNIT, CONFIG), memory_bytes=1 << 18, latency=5, build_dir=sim_dir
    )
    yield Device(transport)
    transport.close()


def test_a_linear_layer(device: Device) -> None:
    x, packed = normal(1, 2, 5, 96), weights(2, 7, 96)
    acts = get_format("m2xfp-act").quantize(x.reshape(-1, 96))
    wanted = matmul(acts, packed).reshape(2, 5, 7)
    found = device.linear(x, packed)
    assert found.dtype == torch.float32
    assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))


def test_products_wait_in_a_queue_and_weights_stay(device: Device) -> None:
    packed = weights(3, 9, 64)
    kept = device.upload(packed)
    given = [get_format("m2xfp-act").quantize(normal(n, 3, 64)) for n in range(4, 10)]
    jobs = [device.submit(device.upload(acts), kept) for acts in given]
    for acts, job in reversed(list(zip(given, jobs, strict=True))):
        assert torch.equal(device.result(job), matmul(acts, packed))


def test_memory_comes_back(device: Device) -> None:
    """More products than fit at once, each with its operands."""
    before = dict(device._free)
    for n in range(24):
        device.matmul(get_format("m2xfp-act").quantize(normal(n, 30, 512)), weights(n, 9, 512))
    assert device._free == before
    with pytest.raises(InputError, match="no room"):
        device.allocate(1 << 18 | 1)


def test_errors_have_their_cause(device: Device) -> None:
    acts = device.upload(get_format("m2xfp-act").quantize(normal(1, 3, 64)))
    good = device.upload(weights(2, 4, 64))
    model = device.transport.model  # type: ignore[attr-defined]
    model.answer(acts.planes["scales"], acts.planes["scales"] + 1, 2)
    bad = device.submit(acts, good)
    after = device.submit(device.upload(get_format("m2xfp-act").quantize(normal(5, 3, 64))), good)
    with pytest.raises(DeviceError, match="descriptor 1 ended with: read_slverr"):
        device.result(bad)
    with contextlib.suppress(DeviceError):  # it may have ended before the error was seen
        device.result(after)
    model.forget()
    device.result(device.submit(acts, good))


def test_operands_must_fit(device: Device) -> None:
    acts = device.upload(get_format("m2xfp-act").quantize(normal(1, 3, 64)))
    other = device.upload(weights(2, 4, 96))
    with pytest.raises(InputError, match="k=64"):
        device.submit(acts, other)
    with pytest.raises(InputError, match="two dimensions"):
        device.upload(get_format("m2xfp-act").quantize(normal(1, 2, 3, 64)))


def test_something_else_answers(
    emitted: Emit, sim_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatedTransport, "read", lambda self, offset: offset ^ OFFSETS["id"])
    files = emitted(UNIT, CONFIG)
    transport = SimulatedTransport(files=files, memory_bytes=1 << 12, build_dir=sim_dir)
    with pytest.raises(DeviceError, match="no accelerator"):
        Device(transport)
    transport.close()
