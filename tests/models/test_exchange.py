"""Weights of other libraries' layouts, against those libraries' own decoders."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden import PackedTensor, get_format
from m2xfp.golden.formats.stacked import StackedTensor
from m2xfp.models.exchange.gguf import BLOCKS, blocks_of, from_blocks
from m2xfp.models.exchange.layouts import LAYOUTS, TWO_LEVELS, find_layout, layout_of
from m2xfp.models.exchange.planes import swizzled, tight_codes, unswizzled
from m2xfp.models.exchange.record import Layout, Quantized, assembled
from m2xfp.models.exchange.torchao import from_torchao, parts_of_torchao

SCALE_BYTES = {"e8m0": range(255), "e4m3": range(127)}


def random_bytes(*shape: int, top: int = 256, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, top, shape, dtype=torch.uint8, generator=generator)


def every_group(key: str, rows: int = 16, seed: int = 0) -> PackedTensor:
    """Return a weight with every scale byte that is a number, and random codes."""
    fmt = get_format(key)
    block, bytes_of = fmt.block, SCALE_BYTES[fmt.block.scale.name]
    codes = random_bytes(rows, len(bytes_of) * block.group_bytes[0], seed=seed)
    if block.element.bits == 8:  # without the NaN of FP8, which is no value of a weight
        limit = block.element.max_code
        codes = (codes & 0x80) | (codes & 0x7F).clamp(max=limit)
    planes = {
        "codes": codes,
        "scales": torch.tensor([*bytes_of], dtype=torch.uint8).repeat(rows, 1),
    }
    if fmt.level is not None:
        planes["tensor_scale"] = torch.tensor(0.0123)
    return PackedTensor.from_planes(fmt, planes, (rows, len(bytes_of) * block.group))


def equal(a: Tensor, b: Tensor) -> bool:
    """Return whether values, signs of zeros and NaNs are the same."""
    whole = {2: torch.int16, 4: torch.int32}[a.element_size()]
    same = (a.view(whole) == b.view(whole)) | (a.isnan() & b.isnan())
    return a.dtype == b.dtype and a.shape == b.shape and bool(same.all())


def same_planes(a: Any, b: Any) -> bool:
    x, y = a.planes(), b.planes()
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) and a.shape == b.shape


def taken(layout: Layout, tensors: dict[str, Tensor]) -> Quantized:
    names = {plane: layout.tensor_name("a.weight", plane) for plane in layout.suffixes}
    return layout.take("a.weight", {plane: tensors[name] for plane, name in names.items()})


FOLDERS = [name for name, layout in LAYOUTS.items() if not layout.stacked]


@pytest.mark.parametrize("name", FOLDERS)
def test_round_trip(name: str) -> None:
    """What is written is read again byte for byte."""
    layout = find_layout(name)
    packed = every_group(layout.format)
    tensors = layout.put("a.weight", packed)
    assert {layout.tensor_name("a.weight", plane) for plane in layout.suffixes} == set(tensors)
    again = taken(layout, tensors)
    if again.divisor is None:
        assert same_planes(again.packed, packed)
        assert equal(again.values(), packed.dequantize())
    else:
        assert torch.equal(again.packed.planes()["codes"], packed.codes)
        assert torch.equal(again.packed.planes()["scales"], packed.scales)
        assert again.divisor.item() == pytest.approx(1 / 0.0123, rel=1e-7)
    settings = layout.settings(["lm_head"])
    found = layout_of(settings)
    assert found is not None
    assert found.name == name


def decompressed(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """Return a weight as compressed-tensors decodes it."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig.model_validate(find_layout(name).settings([]))
    compressor = BaseCompressor.get_value_from_registry(name)
    state = {key.removeprefix("a."): tensor for key, tensor in tensors.items()}
    found = compressor.decompress(state, config.config_groups["group_0"])["weight"]
    return found.detach()


@pytest.mark.parametrize("name", [n for n in FOLDERS if n.startswith("mx")])
def test_compressed_tensors_mx(name: str) -> None:
    """Its decoder, which computes in bfloat16, gives our values rounded to it."""
    pytest.importorskip("compressed_tensors")
    packed = every_group(find_layout(name).format)
    found = decompressed(name, find_layout(name).put("a.weight", packed))
    assert equal(found.to(torch.bfloat16), packed.dequantize(torch.bfloat16))


@pytest.mark.parametrize("divisor", [512.0, 2.0**-20, 81.3, 2688 / 0.0417])
def test_compressed_tensors_nvfp4(divisor: float) -> None:
    """Values are codes * scales / G; the library rounds three times, and we say how far it is off.

    s / G to float32, times the code to float32, to bfloat16. With G a power of two all of that is
    exact but the last.
    """
    pytest.importorskip("compressed_tensors")
    layout = find_layout("nvfp4-pack-quantized")
    packed = every_group(layout.format)
    tensors = layout.put("a.weight", packed)
    tensors["a.weight_global_scale"] = torch.tensor([divisor])
    found = decompressed(layout.name, tensors)
    read = layout.take(
        "a.weight",
        {plane: tensors[layout.tensor_name("a.weight", plane)] for plane in layout.suffixes},
    )
    ours = read.values(torch.bfloat16)
    # In the order of the library, so that its rounding is known and not only bounded.
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    nibbles = torch.stack((packed.codes & 15, packed.codes >> 4), -1).flatten(-2).long()
    codes = torch.cat((table, -table))[nibbles]
    scales = packed.scales.view(torch.float8_e4m3fn).float() / torch.tensor([divisor])
    stepwise = (codes.unflatten(-1, (-1, 16)) * scales.unsqueeze(-1)).flatten(-2)
    assert equal(found, stepwise.to(torch.bfloat16))
    if torch.tensor(divisor).frexp().mantissa == 0.5:
        assert equal(found, ours)
        assert equal(found, read.packed.dequantize(torch.bfloat16))
    else:
        off = (found.view(torch.int16).int() - ours.view(torch.int16).int()).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() < 1e-3
    exact = read.values(torch.float32).double()
    wanted = codes.double().unflatten(-1, (-1, 16)) * packed.scales.view(
        torch.float8_e4m3fn
    ).double().unsqueeze(-1)
    quotient = (wanted.flatten(-2) / torch.tensor(divisor).double()).float().double()
    assert torch.equal(exact, quotient)


def test_gpt_oss_as_transformers_decodes_it() -> None:
    pytest.importorskip("transformers")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    layout = find_layout("gpt-oss-mxfp4")
    rows = every_group("mxfp4", rows=6)
    planes = {name: plane.unflatten(0, (2, 3)) for name, plane in rows.planes().items()}
    packed = PackedTensor.from_planes(rows.format, planes, (2, 3, rows.shape[-1]))
    tensors = layout.put("experts.down_proj", packed)
    assert tensors["experts.down_proj_blocks"].shape == (2, 3, 255, 16)
    found = convert_moe_packed_tensors(
        tensors["experts.down_proj_blocks"], tensors["experts.down_proj_scales"]
    )
    assert equal(found, packed.dequantize(torch.bfloat16).transpose(1, 2).contiguous())
    read = layout.take(
        "experts.down_proj",
        {
            "codes": tensors["experts.down_proj_blocks"],
            "scales": tensors["experts.down_proj_scales"],
        },
    )
    assert same_planes(read.packed, packed)


@pytest.mark.parametrize("kind", BLOCKS)
def test_gguf(kind: str) -> None:
    """Blocks by the package's decoder, for every scale byte that is a number, and back."""
    gguf = pytest.importorskip("gguf")
    packed = every_group(BLOCKS[kind][0], rows=16)
    if kind == "NVFP4":  # whole blocks of four groups
        planes = {n: p[:, : p.shape[1] // 127 * 124] for n, p in packed.planes().items()}
        packed = PackedTensor.from_planes(packed.format, planes, (16, 124 * 16))
        last = every_group("nvfp4", rows=16).scales[:, 123:127]
        packed.scales[:, :4] = last
    name, blocks = blocks_of(packed)
    assert name == kind
    quant = gguf.GGMLQuantizationType[kind]
    with np.errstate(over="ignore"):  # 6 * 2^127 is an infinity, for both
        found = torch.from_numpy(gguf.dequantize(blocks.numpy(), quant))
    # Where ggml's table has a negative zero's code it has an integer 0.
    assert torch.equal(found, packed.dequantize())
    assert same_planes(from_blocks(kind, blocks).packed, packed)
    level = torch.tensor([0.37])
    if kind == "NVFP4":
        scaled = from_blocks(kind, blocks, level)
        assert scaled.packed.format.key == TWO_LEVELS
        exact = packed.dequantize(torch.float64) * level.double()
        assert torch.equal(scaled.values(), exact.float())
        odd = blocks.clone()
        odd[:, 0], odd[:, 1] = 127, 0x80 | 56
        found = torch.from_numpy(gguf.dequantize(odd.numpy(), quant))
        assert torch.equal(found, from_blocks(kind, odd).values())
    else:
        nan = blocks.clone()
        nan[0, 0] = 255
        with pytest.raises(InputError, match="1 scales of byte 255"):
            from_blocks(kind, nan)


GFLOAT = {
    **{"mxfp4": "mxfp4_e2m1", "mxfp6-e2m3": "mxfp6_e2m3", "mxfp6-e3m2": "mxfp6_e3m2"},
    **{"mxfp8-e4m3": "mxfp8_e4m3", "mxfp8-e5m2": "mxfp8_e5m2", "mxint8": "mxint8"},
}


@pytest.mark.parametrize("key", GFLOAT)
def test_gfloat(key: str) -> None:
    """Every scale byte with 32 codes, by its decoder of blocks, which computes in float64."""
    formats = pytest.importorskip("gfloat.formats")
    from gfloat import decode_block

    block = getattr(formats, f"format_info_{GFLOAT[key]}")
    fmt = get_format(key, **({"full_range": True} if key == "mxint8" else {}))
    bits = fmt.block.element.bits
    codes = random_bytes(1, 255 * 32, top=1 << bits)
    if key == "mxint8":
        codes = torch.arange(256, dtype=torch.uint8).repeat(32)[None, : 255 * 32]
    planes = {
        "codes": tight_codes(codes, bits) if bits < 8 else codes,
        "scales": torch.arange(255, dtype=torch.uint8)[None],
    }
    ours = PackedTensor.from_planes(fmt, planes, (1, 255 * 32)).dequantize(torch.float64)
    for scale, group in enumerate(codes.reshape(255, 32).tolist()):
        theirs = [float(value) for value in decode_block(block, [scale, *group])]
        found = ours[0, 32 * scale : 32 * (scale + 1)].tolist()
        assert found == theirs or np.array_equal(found, theirs, equal_nan=True), scale


def test_gguf_of_its_own_encoder() -> None:
    gguf = pytest.importorskip("gguf")
    x = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    blocks = gguf.quantize(x, gguf.GGMLQuantizationType.MXFP4)
    wanted = gguf.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4)
    found = from_blocks("MXFP4", torch.from_numpy(blocks)).values()
    assert torch.equal(found, torch.from_numpy(wanted))


@pytest.mark.parametrize(
    ("key", "codes", "scales"),
    [
        ("mxfp4", "float4_e2m1fn_x2", "float8_e8m0fnu"),
        ("mxfp8-e4m3", "float8_e4m3fn", "float8_e8m0fnu"),
        ("mxfp8-e5m2", "float8_e5m2", "float8_e8m0fnu"),
        ("nvfp4", "float4_e2m1fn_x2", "float8_e4m3fn"),
    ],
)
def test_planes_in_the_types_of_pytorch(key: str, codes: str, scales: str) -> None:
    """They are taken as they are, and decode as PyTorch's own conversion."""
    packed = every_group(key)
    own = {
        "codes": packed.codes.view(getattr(torch, codes)),
        "scales": packed.scales.view(getattr(torch, scales)),
    }
    again = PackedTensor.from_planes(packed.format, own, tuple(packed.shape))
    assert same_planes(again, packed)
    group = packed.format.block.group
    wide = own["scales"].float().repeat_interleave(group, -1)
    if codes != "float4_e2m1fn_x2":  # PyTorch converts no FP4
        assert equal(packed.dequantize(), own["codes"].float() * wide)
    bad = {**own, "codes": packed.codes.view(torch.float8_e5m2fnuz)}
    with pytest.raises(TypeError, match=r"codes is torch\.float8_e5m2fnuz"):
        PackedTensor.from_planes(packed.format, bad, tuple(packed.shape))


def test_experts_with_a_scale_each() -> None:
    """One tensor scale for each of the first dimension, in both directions."""
    fmt = get_format(TWO_LEVELS)
    parts = [fmt.quantize(torch.randn(4, 64) * 3**at) for at in range(3)]
    stack = StackedTensor(tuple(parts))
    planes = stack.planes()
    assert planes["tensor_scale"].shape == (3, 1, 1)
    again = StackedTensor.from_planes(fmt, planes, stack.shape)
    assert equal(again.dequantize(), torch.stack([part.dequantize() for part in parts]))
    for level in (planes["tensor_scale"], planes["tensor_scale"].reshape(3)):
        read = assembled(fmt, planes["codes"], planes["scales"], level)
        assert isinstance(read.packed, StackedTensor)
        assert same_planes(read.packed, stack)
    read = assembled(fmt, planes["codes"], planes["scales"], divisor=1 / planes["tensor_scale"])
    assert torch.allclose(read.values(), stack.dequantize(), rtol=1e-6)
    with pytest.raises(InputError, match="tensor_scale has shape"):
        assembled(fmt, planes["codes"], planes["scales"], torch.ones(2))
    halves = StackedTensor(tuple(parts) * 2, 2)
    assert halves.shape == (3, 8, 64)
    again = StackedTensor.from_planes(fmt, halves.planes(), halves.shape)
    assert equal(again.dequantize(), halves.dequantize())
    assert equal(again.dequantize()[0, 4:], parts[1].dequantize())
    with pytest.raises(InputError, match="must be alike"):
        StackedTensor((parts[0], fmt.quantize(torch.randn(4, 32))))


@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (130, 5), (300, 17)])
def test_tiles_of_scales(shape: tuple[int, int]) -> None:
    """By the formula of cuBLAS: row r, column c of a tile stand at 16 (r % 32) + 4 (r / 32) + c."""
    scales = random_bytes(*shape)
    tiles = swizzled(scales).flatten()
    wide = -(-shape[1] // 4)
    for row, column in ((0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 2)):
        tile = (row // 128) * wide + column // 4
        place = tile * 512 + 16 * (row % 32) + 4 * (row % 128 // 32) + column % 4
        assert tiles[place] == scales[row, column]
    assert torch.equal(unswizzled("scales", tiles, *shape), scales)
    with pytest.raises(InputError, match=r"scales has shape .* in tiles of"):
        unswizzled("scales", tiles[1:], *shape)


ELEMENTS = {
    "mxfp4": "float4_e2m1fn_x2",
    "mxfp6-e2m3": "fp6_e2m3",
    "mxfp6-e3m2": "fp6_e3m2",
    "mxfp8-e4m3": "float8_e4m3fn",
    "mxfp8-e5m2": "float8_e5m2",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("key", ELEMENTS)
def test_torchao_mx(key: str, tiled: bool) -> None:
    """Every scale, in both orders of scales, by torchao's decoder, and a tensor of its encoder."""
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    name = ELEMENTS[key]
    element = getattr(torch, name, name)
    packed = every_group(key)
    parts = parts_of_torchao(packed, tiled)
    made = mx.MXTensor(
        *(parts["qdata"], parts["scale"], element, 32, torch.float32),
        *(mx.KernelPreference.EMULATED, None, tiled),
    )
    assert equal(made.dequantize(torch.float32), packed.dequantize())
    assert same_planes(from_torchao(made).packed, packed)
    x = torch.randn(130, 160)
    theirs = mx.MXTensor.to_mx(x, element, 32, is_swizzled_scales=tiled)
    assert equal(from_torchao(theirs).values(), theirs.dequantize(torch.float32))
    with pytest.raises(InputError, match="transposed"):
        from_torchao(theirs.t())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("level", [None, 2.0**-5, 0.0123])
def test_torchao_nvfp4(level: float | None, tiled: bool) -> None:
    """torchao rounds T * s to float32, then the product: two roundings where we have one."""
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    x = torch.randn(130, 160)
    scale = None if level is None else torch.tensor(level)
    theirs = nv.NVFP4Tensor.to_nvfp4(x, 16, scale, is_swizzled_scales=tiled)
    read = from_torchao(theirs)
    found, ours = theirs.dequantize(torch.float32), read.values()
    if level == 0.0123:
        off = (found.view(torch.int32) - ours.view(torch.int32)).abs()
        assert off.max() <= 1
    else:
        assert equal(found, ours)
    parts = parts_of_torchao(read.packed, tiled)
    for name, tensor in parts.items():
        own = getattr(theirs, name)
        assert tensor.dtype == own.dtype
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), own.reshape(-1).view(torch.uint8))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchao_experts() -> None:
    """A tensor scale an expert, [n, 1, 1]."""
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    levels = torch.tensor([0.5, 0.25, 2.0]).reshape(3, 1, 1)
    theirs = nv.NVFP4Tensor.to_nvfp4(torch.randn(3, 128, 64), 16, levels)
    read = from_torchao(theirs)
    assert isinstance(read.packed, StackedTensor)
    assert equal(read.values(), theirs.dequantize(torch.float32))
    assert torch.equal(parts_of_torchao(read.packed, True)["per_tensor_scale"], levels)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_model_optimizer() -> None:
    """Its decoder rounds s * T, then the product, to float32: one unit in the last place."""
    qtensor = pytest.importorskip("modelopt.torch.quantization.qtensor")
    layout = find_layout("modelopt-nvfp4")
    packed = every_group(layout.format)
    for level, most in ((2.0**-7, 0), (0.0123, 1)):
        planes = {**packed.planes(), "tensor_scale": torch.tensor(level)}
        tensors = layout.put(
            "a.weight", PackedTensor.from_planes(packed.format, planes, tuple(packed.shape))
        )
        theirs = qtensor.NVFP4QTensor(packed.shape, torch.float32, tensors["a.weight"])
        found = theirs.dequantize(
            torch.float32,
            scale=tensors["a.weight_scale"],
            double_scale=tensors["a.weight_scale_2"],
            block_sizes={-1: 16},
        )
        ours = taken(layout, tensors).values()
        # Its table has a positive zero for the code of the negative one.
        off = ((found + 0.0).view(torch.int32) - (ours + 0.0).view(torch.int32)).abs()
        assert off.max() <= most
    x = torch.randn(64, 128)
    theirs, scales, level = qtensor.NVFP4QTensor.quantize(x, 16)
    read = layout.take(
        "w", {"codes": theirs._quantized_data, "scales": scales, "tensor_scale": level}
    )
    found = theirs.dequantize(torch.float32, scale=scales, double_scale=level, block_sizes={-1: 16})
    assert torch.allclose(read.values(), found, rtol=1e-6, atol=0)
