"""What a user has switched on in PyTorch changes no bit: every format, both paths, all products."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from choices import usual_first
from product_checks import PAIRS, SUBGROUPS, Case, operands
from torch import Tensor

from m2xfp.formats import BLOCK_FORMATS
from m2xfp.golden import PackedTensor, computing, dot, get_format, matmul
from m2xfp.golden.bits import from_bits, to_bits
from m2xfp.golden.formats import products
from m2xfp.golden.formats.mixed import Split, mixed_matmul
from m2xfp.golden.formats.numeric import round_once, round_product, widen
from m2xfp.golden.formats.rotation import Rotation
from m2xfp.tb.parts import value_stimulus

KINDS = ("bf16", "fp16", "fp32")
LEVELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("nvfp4", {"tensor_scale": "auto"}),
    ("nvfp4", {"tensor_scale": 1e-44}),
    ("m2nvfp4-act", {"tensor_scale": "auto"}),
    ("m2nvfp4-weight", {"tensor_scale": 3e-40}),
    ("amxfp4", {"scale_mode": "float"}),
)
FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (*((name, {}) for name in BLOCK_FORMATS), *LEVELS)


@contextmanager
def flushing() -> Iterator[None]:
    """Flush subnormals, in this thread and in those that it starts."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        tiny = torch.tensor([1], dtype=torch.int32).view(torch.float32)
        assert (tiny * 1.5).item() == 0, "it does flush"
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device() -> Iterator[None]:
    """Tensors are made elsewhere unless a device is named."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def short_products() -> Iterator[None]:
    """TF32 on CUDA, bfloat16 on CPUs that have it, for products of float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "flushing": flushing,
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "deterministic": deterministic,
    "short products": short_products,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "another device by default": default_device,
}


AROUND = usual_first(
    SURROUNDINGS,
    [
        "flushing",
        "float64 by default",
        "bfloat16 by default",
        "deterministic",
        "autocast",
        "another device by default",
    ],
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def samples(kind: str, group: int) -> Tensor:
    """Return groups of every distribution, among them subnormals of the type alone and mixed."""
    parts = [
        value_stimulus.groups(name, kind, 4, 3, group) for name in value_stimulus.DISTRIBUTIONS
    ]
    rng = np.random.default_rng(5)
    mantissa = {"bf16": 7, "fp16": 10, "fp32": 23}[kind]
    dtype, sign = parts[0].dtype, 1 << (8 * parts[0].itemsize - 1)
    tiny = rng.integers(0, 1 << mantissa, (24, group)) >> rng.integers(0, mantissa + 1, (24, 1))
    tiny = tiny | rng.integers(0, 2, tiny.shape) * sign
    mixed = np.where(rng.random((24, group)) < 0.5, tiny, tiny | 1 << (mantissa + 1))
    return from_bits(kind, np.concatenate([*parts, tiny.astype(dtype), mixed.astype(dtype)]))


def format_results(index: int, kind: str) -> list[Tensor]:
    """Return everything that a format gives for the samples, as integers."""
    name, options = FORMATS[index]
    fmt = get_format(name, **options)
    x = INPUTS[kind, fmt.block.group]
    packed = fmt.quantize(x)
    found = [*packed.planes().values(), fmt.fake_quantize(x), packed.dequantize(), fmt.clipped(x)]
    found.append(packed.dequantize(torch.bfloat16))
    return [as_integers(x) for x in found]


@cache
def usual_results(index: int, kind: str, path: str) -> list[Tensor]:
    with computing(path):
        return format_results(index, kind)


def as_integers(x: Tensor) -> Tensor:
    whole = {torch.float32: torch.int32, torch.float64: torch.int64}
    whole |= dict.fromkeys((torch.bfloat16, torch.float16), torch.int16)
    return x.view(whole[x.dtype]) if x.dtype in whole else x


INPUTS = {
    (kind, group): samples(kind, group)
    for kind in KINDS
    for group in {BLOCK_FORMATS[name].group for name in BLOCK_FORMATS}
}


def expect_same(wanted: list[Tensor], found: list[Tensor], where: object) -> None:
    assert len(wanted) == len(found)
    for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
        assert torch.equal(a, b), (where, i, int((a != b).sum()))


@pytest.mark.parametrize("path", ["plain", "fused"])
@pytest.mark.parametrize("around", AROUND)
def test_formats(around: str, path: str) -> None:
    for index, case in enumerate(FORMATS):
        # Only bfloat16 and float32 have subnormals that a processor flushes.
        for kind in KINDS if around == "flushing" and path == "fused" else KINDS[::2]:
            wanted = usual_results(index, kind, path)
            with computing(path), SURROUNDINGS[around]():
                found = format_results(index, kind)
            expect_same(wanted, found, (case, kind))


def cases() -> list[Case]:
    """Return products of every pair of formats with all accumulators, at both ends of float32."""
    found = []
    for names in PAIRS:
        for accumulator in ("fp32", "exact", *["fp32_subgroup"] * (names in SUBGROUPS)):
            for center in (127, 62):
                levels = names[0] == "nvfp4" and center != 127
                case = Case(names, accumulator, 3, 5, 2, center, 6, 0.02, levels=levels)
                found.append(replace(case, seed=center + len(found)))
    return found


def product_results(index: int) -> list[Tensor]:
    case, qa, qw = OPERANDS[index]
    found = [
        matmul(qa, qw, case.accumulator),
        matmul(qa, qw, case.accumulator, torch.bfloat16),
        dot(qa, row(qw, 1, len(qa.codes)), case.accumulator),
    ]
    return [as_integers(x) for x in found]


@cache
def usual_products(index: int, path: str) -> list[Tensor]:
    with computing(path):
        return product_results(index)


def row(packed: PackedTensor, index: int, count: int) -> PackedTensor:
    planes = {
        name: plane if name == "tensor_scale" else plane[index].expand(count, -1)
        for name, plane in packed.planes().items()
    }
    return PackedTensor.from_planes(packed.format, planes, (count, packed.shape[-1]))


OPERANDS = [(case, *operands(case)) for case in cases()]


@pytest.mark.parametrize("path", ["plain", "auto"])
@pytest.mark.parametrize("around", AROUND)
def test_products(around: str, path: str) -> None:
    for index, (case, _, _) in enumerate(OPERANDS):
        if around != "flushing" and case.center != 127:
            continue
        wanted = usual_products(index, path)
        with computing(path), SURROUNDINGS[around]():
            found = product_results(index)
        expect_same(wanted, found, case)


@pytest.mark.parametrize("around", AROUND)
def test_what_else_computes(around: str) -> None:
    """Running sums, rotations, mixed segments and single roundings."""
    x = INPUTS["fp32", 32].reshape(-1, 128)[:24]
    finite = x.masked_fill(~x.isfinite(), 0)
    qa, qw = (get_format(name).quantize(finite) for name in ("m2xfp-act", "m2xfp-weight"))
    wide = torch.from_numpy(np.random.default_rng(7).lognormal(-80, 30, 4000))

    def results() -> list[Tensor]:
        split = Split(torch.arange(128, device="cpu"), (128, 0, 0))
        mixed = mixed_matmul(split.quantize(finite), split.quantize(finite))
        found = [products.running_fp32(qa, qw), *products.running_exact(qa, qw), mixed]
        found += [Rotation(128)(x), Rotation(128, seed=None).inverse(x.bfloat16())]
        found += [round_once(wide, dtype) for dtype in (torch.float32, torch.bfloat16, torch.half)]
        found += [widen(found[-2]), widen(found[-3])]
        return [as_integers(x) for x in found]

    wanted = results()
    with SURROUNDINGS[around]():
        expect_same(wanted, results(), around)


def test_flushing_in_the_threads_of_pytorch() -> None:
    """Threads that PyTorch has started while it flushed go on to do so."""
    torch.set_num_threads(2)
    x = from_bits("fp32", np.arange(1 << 17, dtype=np.uint32))
    fmt = get_format("mxfp4")
    for path in ("plain", "fused"):
        with computing(path):
            wanted = to_bits(fmt.fake_quantize(x))
            with flushing():
                assert np.array_equal(to_bits(fmt.fake_quantize(x)), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_results_round_alike_when_flushing(dtype: torch.dtype) -> None:
    """Every float32 number with few bits, subnormals too, and NaNs."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    patterns = np.concatenate([high, high | 1, high | 0x7FFF, high | 0x8000, high | 0x8001])
    x = from_bits("fp32", patterns)
    wanted = round_once(widen(x), dtype).view(torch.int16)
    assert torch.equal(round_product(x, dtype).view(torch.int16), wanted)
    with flushing():
        assert torch.equal(round_product(x, dtype).view(torch.int16), wanted)
        assert torch.equal(round_once(widen(x), dtype).view(torch.int16), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("around", SURROUNDINGS)
def test_on_cuda(around: str) -> None:
    pytest.importorskip("triton")
    for name, options in FORMATS:
        fmt = get_format(name, **options)
        x = INPUTS["bf16", fmt.block.group]
        wanted = fmt.fake_quantize(x)
        with SURROUNDINGS[around]():
            found = fmt.fake_quantize(x.to("cuda"))
        assert np.array_equal(to_bits(found), to_bits(wanted)), name
    for case, qa, qw in OPERANDS:
        wanted = matmul(qa, qw, case.accumulator)
        with SURROUNDINGS[around](), torch.autocast("cuda", torch.bfloat16):
            found = matmul(qa.to("cuda"), qw.to("cuda"), case.accumulator)
        assert np.array_equal(to_bits(found), to_bits(wanted)), case
