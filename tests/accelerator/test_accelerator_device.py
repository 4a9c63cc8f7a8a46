"""The driver: products of tensors on the emitted accelerator, equal to golden's to the bit."""

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.accelerator import AttentionCache, Device, DeviceError, SimulatedTransport
from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import matmul
from m2xfp.models.attention import QuantAttention
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.parts.accelerator_map import OFFSETS

CONFIG = "m2xfp-2x2"
ACTS, WEIGHTS = get_format("m2xfp-act"), get_format("m2xfp-weight")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def same(found: Tensor, wanted: Tensor) -> bool:
    assert found.dtype == wanted.dtype
    kind = {2: torch.int16, 4: torch.int32}[found.dtype.itemsize]
    return found.shape == wanted.shape and torch.equal(found.view(kind), wanted.view(kind))


def same_planes(found: PackedTensor, wanted: PackedTensor) -> bool:
    planes = found.planes()
    return found.shape == wanted.shape and all(
        torch.equal(planes[name], plane) for name, plane in wanted.planes().items()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_a_linear_layer(device: Device, dtype: torch.dtype) -> None:
    """A row ends within a group."""
    x, packed = normal(1, 2, 5, 80).to(dtype), WEIGHTS.quantize(normal(2, 7, 80))
    free = dict(device.memory.free)
    found = device.linear(x, packed)
    assert same(found, matmul(ACTS.quantize(x), packed, "fp32", dtype))
    assert device.memory.free == free


def test_tensors_are_packed(device: Device) -> None:
    x = normal(3, 2, 3, 100) * torch.logspace(3, -3, 100).bfloat16()
    assert same_planes(device.quantize(x), ACTS.quantize(x))
    assert same_planes(device.quantize(x.float() * 1.01), ACTS.quantize(x.float() * 1.01))
    assert same_planes(device.encode(x), WEIGHTS.quantize(x))
    half = (x.float() * 1.01).half()  # bf16 would round it
    assert same_planes(device.quantize(half), ACTS.quantize(half))


TYPES = [torch.bfloat16, torch.float32, torch.float16]
BUILT = {"acts": "m2xfp-act:group=8", "weights": "m2xfp-weight:group=8"}


@pytest.mark.parametrize("dtype", TYPES)
def test_an_encoder_of_fp32_takes_every_type(fp32_device: Device, dtype: torch.dtype) -> None:
    x = (normal(3, 2, 3, 20).float() * 1.01).to(dtype)
    assert same_planes(fp32_device.encode(x), get_format(BUILT["weights"]).quantize(x))


@pytest.mark.parametrize("dtype", TYPES)
def test_attention_in_every_type(fp32_device: Device, dtype: torch.dtype) -> None:
    """Of values that bf16 would round; the cache grows within a group."""
    query, key, value = ((normal(n, 2, 11, 20).float() * 1.01).to(dtype) for n in (4, 5, 6))
    with QuantAttention(BUILT["weights"], BUILT["acts"], arithmetic="hardware"):
        wanted = F.scaled_dot_product_attention(query, key, value)
    free = dict(fp32_device.memory.free)
    assert same(fp32_device.attention(query, key, value), wanted)
    assert fp32_device.memory.free == free
    cache = AttentionCache(fp32_device, 2, 20, 16)
    for first, last in ((0, 3), (3, 10), (10, 11)):
        cache.append(key[:, first:last], value[:, first:last])
    columns = value.transpose(1, 2).flatten(0, 1)
    assert same_planes(cache.packed()[1], get_format(BUILT["weights"]).quantize(columns))


def test_values_of_two_types_in_a_group_stay_exact(fp32_device: Device) -> None:
    values = normal(6, 1, 5, 8).float() * 1.01
    cache = AttentionCache(fp32_device, 1, 8, 8)
    cache.append(values[:, :2].half(), values[:, :2].half())
    cache.append(values[:, 2:].bfloat16(), values[:, 2:].bfloat16())
    given = torch.cat((values[:, :2].half().float(), values[:, 2:].bfloat16().float()), 1)
    columns = given.transpose(1, 2).flatten(0, 1)
    assert same_planes(cache.packed()[1], get_format(BUILT["weights"]).quantize(columns))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_engine_of_bf16_rounds_nothing_silently(device: Device, dtype: torch.dtype) -> None:
    """What the encoder does not take is refused before anything is queued."""
    name = str(dtype).removeprefix("torch.")
    x, other = normal(1, 1, 5, 32).to(dtype), normal(2, 1, 5, 32)
    free = dict(device.memory.free)
    remedy = (
        rf"values are {name}; the encoder .* pass {{}}\.bfloat16\(\).* build it with encoder=fp32"
    )
    with pytest.raises(InputError, match="x: its " + remedy.format("x")):
        device.encode(x)
    with pytest.raises(InputError, match="key: its " + remedy.format("key")):
        device.attention(x, x, x)
    with pytest.raises(InputError, match="value: its " + remedy.format("value")):
        device.attention(x, other, x)
    assert device.memory.free == free
    cache = AttentionCache(device, 1, 32, 8)
    with pytest.raises(InputError, match="keys: its " + remedy.format("keys")):
        cache.append(x, other)
    with pytest.raises(InputError, match="values: its " + remedy.format("values")):
        cache.append(other, x)
    with pytest.raises(InputError, match=r"values: its values are float32; the encoder"):
        device.submit_encode(device.store(x[0]))
    assert cache.length == 0
    assert device.transport.read(OFFSETS["completed"]) == 0
    # Queries go through the quantizer, which takes them.
    with QuantAttention(arithmetic="hardware"):
        wanted = F.scaled_dot_product_attention(x, other, other)
    assert same(device.attention(x, other, other), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_types_that_memory_cannot_hold(device: Device, dtype: torch.dtype) -> None:
    """Rounding float64 is the caller's."""
    x, weights = torch.ones(1, 3, 32, dtype=dtype), WEIGHTS.quantize(normal(2, 4, 32))
    cause = f"{str(dtype).removeprefix('torch.')}; pass float32, bfloat16 or float16"
    for call in (device.quantize, device.encode, lambda each: device.linear(each, weights)):
        with pytest.raises(InputError, match=f"x: its values are {cause}"):
            call(x)
    with pytest.raises(InputError, match=f"query: its values are {cause}"):
        device.attention(x, x, x)
    with pytest.raises(InputError, match=f"dtype: its values are {cause}"):
        device.linear(normal(1, 3, 32), weights, dtype)


def test_an_engine_that_is_not_there(device: Device) -> None:
    device.features -= {"encode_bf16"}
    with pytest.raises(
        InputError, match=r"x: .* built without encoder; build it with encoder=fp32"
    ):
        device.encode(normal(1, 2, 32))


def test_the_simulated_accelerator_is_the_default(
    accelerator_files: EmittedFiles, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """Emitted once for all tests: what would be emitted is that."""
    asked = []

    def emitted(instance: Instance, folder: Path) -> EmittedFiles:
        asked.append((instance.top, folder.name))
        return accelerator_files

    monkeypatch.chdir(pytestconfig.rootpath)  # the folder of builds is below it
    monkeypatch.setattr("m2xfp.rtl.verilog.emit.emit", emitted)
    device = Device()
    assert asked == [(accelerator_files.top, "accelerator")]
    assert isinstance(device.transport, SimulatedTransport)
    x, packed = normal(1, 3, 64), WEIGHTS.quantize(normal(2, 5, 64))
    assert same(device.linear(x, packed), matmul(ACTS.quantize(x), packed, "fp32", x.dtype))
    device.transport.close()


@pytest.mark.parametrize("dtype", TYPES)
def test_products_of_every_type(device: Device, dtype: torch.dtype) -> None:
    acts, weights = ACTS.quantize(normal(1, 3, 64)), WEIGHTS.quantize(normal(2, 4, 64))
    assert same(device.matmul(acts, weights, dtype), matmul(acts, weights, "fp32", dtype))


@pytest.mark.parametrize("shared", [1, 2])
def test_attention(device: Device, shared: int) -> None:
    """Heads that no group fits, tokens that end within one, caches that serve several heads."""
    query = normal(4, 2 * shared, 3, 40)
    key, value = normal(5, 2, 37, 40), normal(6, 2, 37, 40)
    with QuantAttention(arithmetic="hardware"):
        wanted = F.scaled_dot_product_attention(query, key, value, enable_gqa=shared > 1)
    free = dict(device.memory.free)
    assert same(device.attention(query, key, value), wanted)
    assert device.memory.free == free


def test_causal_attention_of_a_batch(device: Device) -> None:
    query, key, value = (normal(seed, 2, 1, 5, 32) for seed in (7, 8, 9))
    with QuantAttention(arithmetic="hardware"):
        wanted = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    assert same(device.attention(query, key, value, is_causal=True, scale=0.3), wanted)


def test_a_cache_that_grows(device: Device) -> None:
    """By a prompt, then token by token across the end of a group."""
    keys, values = normal(10, 2, 36, 32), normal(11, 2, 36, 32)
    cache = AttentionCache(device, 2, 32, 40)
    for first, last in ((0, 30), *((n, n + 1) for n in range(30, 36))):
        cache.append(keys[:, first:last], values[:, first:last])
        found = cache.packed()
        assert same_planes(found[0], WEIGHTS.quantize(keys[:, :last].transpose(0, 1).flatten(1)))
        columns = values[:, :last].transpose(1, 2).flatten(0, 1)
        assert same_planes(found[1], WEIGHTS.quantize(columns))
    with pytest.raises(InputError, match="room for 64"):
        cache.append(keys, values)
    with pytest.raises(InputError, match="rows of 512"):
        AttentionCache(device, 1, 32, 513)


def test_products_wait_in_a_queue_and_weights_stay(device: Device) -> None:
    packed = WEIGHTS.quantize(normal(3, 9, 64))
    kept = device.upload(packed)
    given = [ACTS.quantize(normal(n, 3, 64)) for n in range(4, 14)]
    jobs = [device.submit_matmul(device.upload(acts), kept) for acts in given]
    assert not jobs[-1].done
    for acts, job in reversed(list(zip(given, jobs, strict=True))):
        assert same(job.result(), matmul(acts, packed))
    assert 0 < device.utilisation() < 1
    assert 0 < device.counts["work"] < device.counts["cycles"]


def test_descriptors_use_what_those_before_them_write(device: Device) -> None:
    """Quantized, multiplied to bf16, quantized again: nothing returns to the host in between."""
    x, first, second = normal(1, 5, 64), normal(2, 32, 64), normal(3, 6, 32)
    packed = [WEIGHTS.quantize(w) for w in (first, second)]
    weights = [device.upload(w) for w in packed]
    hidden = device.empty_values(5, 32, torch.bfloat16)
    acts, middle = device.empty(5, 64), device.empty(5, 32)
    jobs = [
        device.submit_quantize(device.store(x), acts),
        device.submit_matmul(acts, weights[0], hidden),
        device.submit_quantize(hidden, middle),
        device.submit_matmul(middle, weights[1]),
    ]
    wanted = matmul(ACTS.quantize(x), packed[0], "fp32", torch.bfloat16)
    assert same(jobs[3].result(), matmul(ACTS.quantize(wanted), packed[1]))
    device.wait(jobs)


@pytest.mark.slow
def test_results_are_packed(sim_dir: Path) -> None:
    """Two layers in the queue: the first one's results are the second one's activations."""
    acts, weights = "m2xfp-act:group=8", "m2xfp-weight:group=8"
    settings = (f"act={acts}", f"weight={weights}", "rows=1", "columns=8", "max_k=64", "chunk=4")
    transport = SimulatedTransport(CONFIG, settings, latency=5, build_dir=sim_dir)
    device = Device(transport, acts=acts, weights=weights)
    first, second = (device.weights.quantize(normal(n, 24, k)) for n, k in ((1, 64), (2, 24)))
    x = device.acts.quantize(normal(3, 5, 64))
    middle = device.empty(5, 24)
    jobs = [
        device.submit_matmul(device.upload(x), device.upload(first), middle),
        device.submit_matmul(middle, device.upload(second)),
    ]
    hidden = device.acts.quantize(matmul(x, first))
    assert same_planes(jobs[0].result(), hidden)
    assert same(jobs[1].result(), matmul(hidden, second))
    with pytest.raises(InputError, match=r"out: results are packed as .*, not "):
        device.submit_matmul(middle, device.upload(second), device.empty(5, 24, device.weights))
    short = device.upload(device.weights.quantize(normal(4, 23, 24)))
    with pytest.raises(InputError, match="n=23: packed results are whole groups of 8"):
        device.submit_matmul(middle, short, device.empty(5, 23))
    transport.close()


def test_a_build_that_packs_no_results(device: Device) -> None:
    acts, weights = device.upload(ACTS.quantize(normal(1, 3, 64))), normal(2, 32, 64)
    with pytest.raises(InputError, match="packs no results; build it with quantizer=fp32"):
        device.submit_matmul(acts, device.upload(WEIGHTS.quantize(weights)), device.empty(3, 32))


def test_memory_comes_back(device: Device) -> None:
    """More products than fit at once, each with its operands."""
    before = dict(device.memory.free)
    for n in range(24):
        device.matmul(ACTS.quantize(normal(n, 30, 512)), WEIGHTS.quantize(normal(n, 9, 512)))
    assert device.memory.free == before
    with pytest.raises(InputError, match="no room"):
        device.allocate(1 << 18 | 1)
    with pytest.raises(InputError, match="nothing is allocated"):
        device.release(64)


def test_errors_have_their_cause(device: Device) -> None:
    free = dict(device.memory.free)
    acts = device.upload(ACTS.quantize(normal(1, 3, 64)))
    good = device.upload(WEIGHTS.quantize(normal(2, 4, 64)))
    other = device.upload(ACTS.quantize(normal(5, 3, 64)))
    model = device.transport.model  # type: ignore[attr-defined]
    model.answer(acts.planes["scales"], acts.planes["scales"] + 1, 2)
    bad = device.submit_matmul(acts, good)
    after = device.submit_matmul(other, good)
    with pytest.raises(DeviceError, match="descriptor 1 ended with: read_slverr"):
        bad.result()
    with contextlib.suppress(DeviceError):  # it may have ended before the error was seen
        after.result()
    pair = [device.submit_matmul(acts, good), device.submit_matmul(other, good)]
    while device.transport.read(OFFSETS["completed"]) < 4:
        pass
    with pytest.raises(DeviceError, match="descriptor 4 came after one that failed; repeat it"):
        pair[1].result()
    with pytest.raises(DeviceError, match="descriptor 3 ended with: read_slverr"):
        pair[0].result()
    model.forget()
    device.submit_matmul(acts, good).result()
    device.remove(acts, good, other)
    assert device.memory.free == free


def test_a_layer_that_fails_gives_its_memory_back(device: Device) -> None:
    packed = device.upload(WEIGHTS.quantize(normal(2, 4, 64)))
    free = dict(device.memory.free)
    model = device.transport.model  # type: ignore[attr-defined]
    model.answer(packed.planes["codes"], packed.planes["codes"] + 1, 3)
    with pytest.raises(DeviceError, match="read_decerr"):
        device.linear(normal(1, 3, 64), packed)
    assert device.memory.free == free
    model.forget()
    device.linear(normal(1, 3, 64), packed)


def test_nothing_ends(device: Device) -> None:
    model = device.transport.model  # type: ignore[attr-defined]
    device.queue.patience = 0.0
    device.transport.wait = lambda: None  # type: ignore[method-assign]
    device.transport.write(OFFSETS["timeout"], 0)
    model.answer(0, 1 << 18, 4)
    with pytest.raises(DeviceError, match="no descriptor has ended for 0 s"):
        device.matmul(ACTS.quantize(normal(1, 3, 64)), WEIGHTS.quantize(normal(2, 4, 64)))


def test_operands_must_fit(device: Device) -> None:
    acts = device.upload(ACTS.quantize(normal(1, 3, 64)))
    with pytest.raises(InputError, match="k=64"):
        device.submit_matmul(acts, device.upload(WEIGHTS.quantize(normal(2, 4, 96))))
    with pytest.raises(InputError, match="two dimensions"):
        device.upload(ACTS.quantize(normal(1, 2, 3, 64)))
    with pytest.raises(InputError, match="two dimensions"):
        device.store(normal(1, 64))
    weights, out = device.upload(WEIGHTS.quantize(normal(2, 4, 64))), device.empty_values(3, 5)
    with pytest.raises(InputError, match="out: the result is"):
        device.submit_matmul(acts, weights, out)
    large = [device.upload(fmt.quantize(normal(1, 2, 544))) for fmt in (ACTS, WEIGHTS)]
    with pytest.raises(InputError, match="multiplies rows of 512"):
        device.submit_matmul(*large)
    with pytest.raises(InputError, match="float32 and bfloat16"):
        device.empty_values(1, 1, torch.float16)
    with pytest.raises(InputError, match="begins with a group"):
        acts.part(range(1), range(16, 48))
    with pytest.raises(InputError, match="rows="):
        acts.part(range(4), range(32))


def test_something_else_answers(
    accelerator_files: EmittedFiles, sim_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatedTransport, "read", lambda self, offset: offset ^ OFFSETS["id"])
    transport = SimulatedTransport(files=accelerator_files, memory_bytes=1 << 12, build_dir=sim_dir)
    with pytest.raises(DeviceError, match=r"no accelerator .* id 0x00000000, version 4"):
        Device(transport)
    transport.close()
