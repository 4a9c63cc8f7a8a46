"""Tensors of any layout and size, memory that runs out, and fused paths that cannot serve."""

from typing import Any

import pytest
import torch
from torch import Tensor

from m2xfp.errors import InputError, M2xfpError
from m2xfp.formats import BLOCK_FORMATS
from m2xfp.golden import PackedTensor, computing, dot, get_format, matmul
from m2xfp.golden.kernels import memory
from m2xfp.golden.kernels.memory import MemoryShortError

FORMATS = (*BLOCK_FORMATS, "nvfp4:tensor_scale=auto")


def views() -> dict[str, Tensor]:
    """Return tensors that are not laid out one value after the other, by what they are."""
    x = torch.randn(6, 5, 70, generator=torch.Generator().manual_seed(1))
    return {
        "transposed": x.transpose(0, 2),
        "every third": x[..., ::3],
        "repeated": x[:1].expand(4, 5, 70),
        "sliced": x[1:4, 2:, 3:50],
        "no rows": x[:0],
        "no values": x[..., :0],
        "neither": x[:0, :, :0],
        "a vector": x[0, 0],
        "one value": x[0, 0, :1],
        "not aligned": x.bfloat16().flatten()[1:],
        "diagonal": x[..., :6].diagonal(dim1=0, dim2=2),
        "negated in name only": torch.complex(x, x).conj().imag,
    }


@pytest.mark.parametrize("path", ["plain", "fused"])
@pytest.mark.parametrize("name", FORMATS)
def test_tensors_of_any_layout(name: str, path: str) -> None:
    fmt = get_format(name)
    with computing(path):
        for what, x in views().items():
            same = x.resolve_neg().contiguous().clone()
            packed, wanted = fmt.quantize(x), fmt.quantize(same)
            assert packed.shape == x.shape
            for plane, one in wanted.planes().items():
                assert torch.equal(packed.planes()[plane], one), (what, plane)
            assert torch.equal(fmt.fake_quantize(x), fmt.fake_quantize(same)), what
            strided = {
                plane: one if one.ndim < 2 else one.transpose(0, -1).contiguous().transpose(0, -1)
                for plane, one in wanted.planes().items()
            }
            scattered = PackedTensor.from_planes(fmt, strided, tuple(x.shape))
            found = scattered.dequantize(x.dtype)
            assert torch.equal(found, fmt.fake_quantize(same)), what


@pytest.mark.parametrize("path", ["plain", "auto"])
def test_products_of_any_layout(path: str) -> None:
    act, weight = get_format("m2xfp-act"), get_format("m2xfp-weight")
    with computing(path):
        w = weight.quantize(torch.randn(9, 70, generator=torch.Generator().manual_seed(2)))
        for what, x in views().items():
            if x.shape[-1] != 70:
                continue
            rows = [matmul(act.quantize(row), w) for row in x.reshape(-1, 70)]
            wanted = torch.stack(rows) if rows else torch.empty(0, 9)
            assert torch.equal(matmul(act.quantize(x), w).reshape(-1, 9), wanted), what


# --- memory ---------------------------------------------------------------------------------------


def test_no_memory_says_what_was_needed() -> None:
    x = torch.zeros(1, 1).expand(1 << 44, 32)  # 2 PiB
    fmt = get_format("mxfp4")
    with pytest.raises(MemoryShortError) as raised:
        fmt.fake_quantize(x)
    assert isinstance(raised.value, torch.OutOfMemoryError)  # what others look for
    assert isinstance(raised.value, M2xfpError)
    text = str(raised.value)
    for words in (
        "no memory on cpu for fake_quantize of float32 [17592186044416, 32] (2 PiB)",
        "work on a part of the rows at a time",
    ):
        assert words in text


@pytest.mark.parametrize(
    "name", ["quantize", "fake_quantize", "clipped", "dequantize", "matmul", "dot"]
)
def test_every_operation_explains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA says it, whose message is kept."""
    fmt = get_format("mxfp4")
    x = torch.ones(2, 32)
    packed = fmt.quantize(x)

    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.\nmore")

    calls = {
        "quantize": lambda: fmt.quantize(x),
        "fake_quantize": lambda: fmt.fake_quantize(x),
        "clipped": lambda: fmt.clipped(x),
        "dequantize": packed.dequantize,
        "matmul": lambda: matmul(packed, packed),
        "dot": lambda: dot(packed, packed),
    }
    monkeypatch.setattr(torch, "empty", short)
    monkeypatch.setattr(torch, "zeros", short)
    monkeypatch.setattr(torch, "empty_like", short)
    with pytest.raises(MemoryShortError, match=rf"for {name} of .* \(\d+ B\): CUDA out of memory"):
        calls[name]()


def test_other_errors_are_left_alone() -> None:
    @memory.explained("nothing")
    def fails() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fails()


@pytest.mark.gpu
def test_no_memory_on_cuda() -> None:
    fmt = get_format("m2xfp-act")
    x = torch.zeros(1, 1, device="cuda").expand(1 << 36, 32)
    with pytest.raises(MemoryShortError, match=r"no memory on cuda.*are free; work on a part"):
        fmt.quantize(x)
    small = torch.randn(4, 64, device="cuda")
    assert torch.equal(fmt.fake_quantize(small).cpu(), fmt.fake_quantize(small.cpu()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mxfp4", "m2xfp-act", "nvfp4:tensor_scale=auto"])
def test_more_than_2_to_31_values(name: str) -> None:
    """The last rows are what they are alone; needs 11 GB."""
    fmt, rows = get_format(name), (1 << 26) + 3
    x = torch.zeros(rows, 32, dtype=torch.bfloat16)
    x[-5:] = torch.randn(5, 32, generator=torch.Generator().manual_seed(4)).bfloat16()
    wanted = fmt.quantize(x[-5:])
    packed = fmt.quantize(x)
    assert packed.codes.numel() * 2 > 1 << 31
    assert torch.equal(packed.codes[-5:], wanted.codes)
    assert torch.equal(packed.scales[-5:], wanted.scales)
    assert not packed.codes[:-5].any()
    values = packed.dequantize(torch.bfloat16)
    assert torch.equal(values[-5:], wanted.dequantize(torch.bfloat16))
    del values, packed
    found = fmt.fake_quantize(x)
    assert torch.equal(found[-5:], wanted.dequantize(torch.bfloat16))


# --- a fused path that was asked for --------------------------------------------------------------


def test_what_no_fused_path_computes() -> None:
    """Each says which part of it; on 'auto' each is computed."""
    fmt = get_format("mxfp4")
    packed = fmt.quantize(torch.ones(2, 32))
    with computing("fused"):
        with pytest.raises(InputError, match=r"no fused path gives torch\.float64; pass float32"):
            packed.dequantize(torch.float64)
        with pytest.raises(InputError, match="no fused path sums row by row; use matmul"):
            dot(packed, packed)
        scaled = get_format("mxfp4", scale_mode="float").quantize(torch.ones(2, 32))
        with pytest.raises(InputError, match=r"on cpu: they take scales of 8 bits, and"):
            matmul(scaled, packed)
        wide = get_format("mxfp8-e4m3").quantize(torch.ones(2, 32))
        assert torch.equal(matmul(wide, wide), torch.full((2, 2), 32.0))
    assert torch.equal(packed.dequantize(torch.float64), torch.ones(2, 32, dtype=torch.float64))
    assert dot(packed, packed).tolist() == [32.0, 32.0]
