"""m2xfp-act and mxfp4 of the golden model against the exact reference, and the packed tensor."""

import numpy as np
import pytest
import reference
import torch
from golden_checks import check_bits, check_distribution, check_values, spec_of

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.golden import PackedTensor, computing, get_format
from m2xfp.golden.bits import from_bits, quantize_bits, to_bits
from m2xfp.tb.parts import value_stimulus

NAMES = ("m2xfp-act", "mxfp4")
KINDS = ("bf16", "fp16", "fp32")


@pytest.mark.parametrize("distribution", value_stimulus.DISTRIBUTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name, kind, distribution):
    check_distribution(name, kind, distribution, count=100, seed=2601)


@pytest.mark.parametrize("amax", [0.0, 2.0**-126, 1.0, 1.75, 6.5, 60000.0])
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_all_patterns_of_16_bit_types(kind, amax):
    check_bits("m2xfp-act", kind, value_stimulus.all_patterns(kind, amax))


def test_all_patterns_are_all():
    for kind in ("bf16", "fp16"):
        assert set(value_stimulus.all_patterns(kind, 1.0).ravel().tolist()) == set(range(65536))


@pytest.mark.parametrize("name", NAMES)
def test_decodes_any_bytes(name):
    fmt, spec = get_format(name), spec_of(name)
    size = sum(fmt.block.group_bytes)
    data = value_stimulus.packed_groups(400, seed=7, size=size)
    data[:50, 16] = 0xFF
    data[50:100, 16] = 0
    data[100:150, 16] = 254
    groups = [
        reference.Group(
            tuple(int(byte) >> shift & 15 for byte in row[:16] for shift in (0, 4)),
            (int(row[16]),),
            tuple(int(row[17]) >> 2 * j & 3 for j in range(4)) if size == 18 else (),
        )
        for row in data
    ]
    check_values(fmt, spec, torch.from_numpy(data).unsqueeze(1), groups)


def encode(values, name="m2xfp-act"):
    """Return scale byte, magnitudes with sign bits, and metadata of one group."""
    x = torch.zeros(32)
    x[: len(values)] = torch.tensor(values)
    codes, scales, meta = get_format(name).quantize(x).unpack()
    return scales[0, 0].item(), codes[0].tolist(), meta[0].tolist()


def test_ties_go_to_the_even_code():
    scale, codes, _ = encode([4.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert scale == 127
    assert codes[:8] == [6, 0, 2, 2, 4, 4, 6, 6]


def test_the_lowest_index_is_refined_and_the_sign_does_not_decide():
    # Both round to code 7; the negative one comes first and is the one refined (6.5 -> E2M3 29).
    x = torch.zeros(32)
    x[3], x[5] = -6.5, 6.0
    packed = get_format("m2xfp-act").quantize(x)
    assert packed.dequantize()[3].item() == -6.5
    assert packed.dequantize()[5].item() == 6.0
    assert packed.meta.item() & 3 == 2


def test_metadata_zero_is_one_step_below():
    # 5.25 rounds to 6 in E2M1; E2M3 has 5.0 and 5.5, the clamp allows 5.5 = one step below 6.
    scale, codes, meta = encode([5.25])
    assert (scale, codes[0], meta) == (127, 7, [0, 1, 1, 1])
    assert get_format("m2xfp-act").fake_quantize(torch.tensor([5.25])).item() == 5.5


def test_metadata_zero_on_a_zero_code_decodes_to_zero():
    data = torch.zeros(1, 1, 18, dtype=torch.uint8)
    data[..., 16] = 127
    packed = PackedTensor.from_groups(get_format("m2xfp-act"), data)
    assert torch.equal(packed.dequantize(), torch.zeros(1, 32))


def test_the_refined_magnitude_is_at_most_seven():
    assert get_format("m2xfp-act").fake_quantize(torch.tensor([7.99])).item() == 7.0


def test_signs_of_zeros_are_kept():
    x = torch.tensor([4.0, -0.0, -0.01, 0.01, 0.0])
    _, codes, _ = encode(x.tolist())
    assert codes[:5] == [6, 8, 8, 0, 0]
    back = get_format("mxfp4").fake_quantize(x)
    assert torch.signbit(back).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", NAMES)
def test_a_special_value_makes_its_group_nan_and_no_other(name, bad):
    x = torch.ones(2, 64)
    x[1, 40] = bad
    packed = get_format(name).quantize(x)
    codes, scales, meta = packed.unpack()
    assert scales.flatten().tolist() == [125, 125, 125, 255]
    assert not codes[1, 1].any()
    assert not meta[1, 1].any()
    assert packed.dequantize().isnan().sum() == 32


@pytest.mark.parametrize("shape", [(0,), (0, 32), (3, 0), (2, 0, 64), (1,), (5, 33), (2, 3, 4, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_any_shape(name, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    packed = get_format(name).quantize(x)
    k = -(-shape[-1] // 32) * 32
    assert packed.codes.shape == (*shape[:-1], k // 2)
    assert packed.scales.shape == (*shape[:-1], k // 32)
    assert (packed.meta is None) == (name == "mxfp4")
    assert packed.groups().shape == (*shape[:-1], k // 32, 18 if name == "m2xfp-act" else 17)
    back = packed.dequantize()
    assert back.shape == shape
    if x.numel():
        padded = torch.nn.functional.pad(x, (0, k - shape[-1])).reshape(-1, 32)
        alone = torch.stack([get_format(name).fake_quantize(row) for row in padded])
        assert torch.equal(back, alone.reshape(*shape[:-1], k)[..., : shape[-1]])


def test_strides_do_not_matter():
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(2)).T
    fmt = get_format("m2xfp-act")
    assert not x.is_contiguous()
    assert torch.equal(fmt.fake_quantize(x), fmt.fake_quantize(x.contiguous()))
    wide = torch.randn(64, 192, generator=torch.Generator().manual_seed(3))[:, ::2]
    assert torch.equal(fmt.fake_quantize(wide), fmt.fake_quantize(wide.clone()))


def test_many_chunks_equal_one(monkeypatch):
    x = torch.randn(77, 64, generator=torch.Generator().manual_seed(4))
    with computing("plain"):
        whole = get_format("m2xfp-act").quantize(x)
        values = whole.dequantize()
        monkeypatch.setattr("m2xfp.golden.formats.format._CHUNK_VALUES", {"cpu": 96})
        assert torch.equal(get_format("m2xfp-act").quantize(x).groups(), whole.groups())
        assert torch.equal(whole.dequantize(), values)
        assert torch.equal(get_format("m2xfp-act").fake_quantize(x), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fake_quantize_keeps_the_type(dtype):
    x = torch.randn(4, 40).to(dtype).requires_grad_()
    back = get_format("m2xfp-act").fake_quantize(x)
    assert back.dtype == dtype
    assert back.shape == x.shape


def test_group_form_is_18_little_endian_bytes_both_ways():
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(5))
    packed = get_format("m2xfp-act").quantize(x)
    groups = packed.groups()
    assert groups.shape == (3, 2, 18)
    number = int.from_bytes(bytes(groups[2, 1].tolist()), "little")
    codes, scales, meta = packed.unpack()
    assert [number >> 4 * i & 15 for i in range(32)] == codes[2, 1].tolist()
    assert number >> 128 & 0xFF == scales[2, 1].item()
    assert [number >> 136 + 2 * j & 3 for j in range(4)] == meta[2, 1].tolist()
    again = PackedTensor.from_groups(packed.format, groups, shape=(3, 50))
    for name, plane in packed.planes().items():
        assert torch.equal(plane, again.planes()[name])
    assert torch.equal(again.dequantize(), packed.dequantize())


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name, tmp_path):
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(6))
    packed = get_format(name, scale_rule="ceil").quantize(x)
    packed.save(tmp_path / "x.safetensors")
    again = PackedTensor.load(tmp_path / "x.safetensors")
    assert again.format == packed.format
    assert again.shape == packed.shape
    assert torch.equal(again.groups(), packed.groups())
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="no file"):
        PackedTensor.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(InputError, match="no safetensors file"):
        PackedTensor.load(tmp_path / "text")
    from safetensors.torch import save_file

    save_file({"codes": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="no packed tensor"):
        PackedTensor.load(tmp_path / "other")


def test_to_moves_the_planes():
    packed = get_format("m2xfp-act").quantize(torch.ones(32))
    assert packed.to("meta").codes.device.type == "meta"
    assert packed.to("cpu").device.type == "cpu"
    assert packed.nbytes == 18


def test_bits_interface():
    raw = value_stimulus.groups("normal", "bf16", 10, seed=1)
    codes, scales, meta = quantize_bits("m2xfp-act", "bf16", raw)
    packed = get_format("m2xfp-act").quantize(from_bits("bf16", raw))
    assert np.array_equal(np.concatenate([codes, scales, meta], 1), packed.groups()[:, 0].numpy())
    assert quantize_bits("mxfp4", "bf16", raw)[2].shape == (10, 0)
    for kind in KINDS:
        raw = value_stimulus.groups("random-bits", kind, 10, seed=2)
        assert np.array_equal(to_bits(from_bits(kind, raw)), raw)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ([1.0], TypeError, "x is list; pass a torch.Tensor"),
        (np.zeros(3), TypeError, "x is ndarray"),
        (torch.zeros(3, dtype=torch.int32), TypeError, r"torch.int32; pass float32"),
        (torch.zeros(3, dtype=torch.float64), TypeError, r"torch.float64; pass float32"),
        (torch.zeros(3, dtype=torch.complex64), TypeError, "complex64"),
        (torch.zeros(3).to_sparse(), TypeError, "to_dense"),
        (torch.tensor(1.0), InputError, "no dimension"),
        (
            torch.nested.as_nested_tensor([torch.ones(32)], layout=torch.jagged),
            *(TypeError, "nested tensor; pass its parts"),
        ),
    ],
)
def test_wrong_tensors(wrong, error, text):
    with pytest.raises(error, match=text):
        get_format("m2xfp-act").quantize(wrong)


def test_wrong_names_planes_and_bits():
    with pytest.raises(UnknownNameError, match="unknown format 'mxfp5'; there are: mxfp4"):
        get_format("mxfp5")
    with pytest.raises(TypeError, match="name is int; pass a format's name"):
        get_format(3)
    fmt = get_format("m2xfp-act")
    packed = fmt.quantize(torch.ones(2, 32))
    with pytest.raises(InputError, match=r"codes has shape \(2, 16\)"):
        PackedTensor.from_planes(fmt, packed.planes(), (3, 32))
    with pytest.raises(InputError, match="'scales' is missing"):
        PackedTensor.from_planes(fmt, {"codes": packed.codes}, (2, 32))
    with pytest.raises(TypeError, match=r"meta is NoneType"):
        PackedTensor.from_planes(fmt, packed.planes() | {"meta": None}, (2, 32))
    with pytest.raises(TypeError, match=r"codes is torch.float32"):
        PackedTensor.from_planes(fmt, packed.planes() | {"codes": torch.zeros(2, 16)}, (2, 32))
    with pytest.raises(InputError, match=r"\[..., G, 18\]"):
        PackedTensor.from_groups(fmt, torch.zeros(2, 17, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"dtype is torch\.int8"):
        packed.dequantize(torch.int8)
    with pytest.raises(TypeError, match="uint16"):
        quantize_bits(fmt, "bf16", np.zeros((1, 32), np.float32))
    with pytest.raises(InputError, match=r"takes \[n, 32\]"):
        quantize_bits(fmt, "bf16", np.zeros((1, 16), np.uint16))
