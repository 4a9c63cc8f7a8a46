"""Every row of the family, its options and its packing, against the exact reference."""

from fractions import Fraction

import pytest
import torch
from golden_checks import check_distribution

from m2xfp.errors import InputError
from m2xfp.formats import BLOCK_FORMATS
from m2xfp.golden import PackedTensor, get_format
from m2xfp.tb.parts import value_stimulus

FAMILY = [name for name in BLOCK_FORMATS if name not in ("mxfp4", "m2xfp-act", "m2xfp-weight")]
E8M0_FORMATS = [name for name, block in BLOCK_FORMATS.items() if "scale_rule" in block.options]
KINDS = ("bf16", "fp16", "fp32")
COUNTS = {"m2nvfp4-weight": 8}


@pytest.mark.parametrize("distribution", value_stimulus.DISTRIBUTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILY)
def test_equals_the_reference(name, kind, distribution):
    check_distribution(name, kind, distribution, count=COUNTS.get(name, 24), seed=51)


@pytest.mark.parametrize("rule", ["ceil", "rtn1", "rtn2", "even", "rtne", "even-e2m1"])
@pytest.mark.parametrize("name", E8M0_FORMATS)
def test_scale_rules(name, rule):
    count = 3 if name == "m2xfp-weight" else 15
    for kind in KINDS:
        for distribution in ("wide", "edges", "ties", "subnormal", "huge", "finite-bits"):
            check_distribution(name, kind, distribution, count, seed=52, scale_rule=rule)


@pytest.mark.parametrize("ties", ["even", "away", "zero"])
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_ties(name, ties):
    count = 4 if name.endswith("weight") else 20
    for distribution in ("ties", "edges"):
        check_distribution(name, "fp32", distribution, count, seed=53, ties=ties)


@pytest.mark.parametrize("mode", ["pot", "pot-r", "float", "e4m3", "e5m2"])
@pytest.mark.parametrize("name", [n for n, b in BLOCK_FORMATS.items() if "scale_mode" in b.options])
def test_scale_modes(name, mode):
    for kind in ("bf16", "fp32"):
        for distribution in value_stimulus.DISTRIBUTIONS:
            check_distribution(name, kind, distribution, count=6, seed=54, scale_mode=mode)


@pytest.mark.parametrize("level", ["auto", "token", 1.0, 0.003, 1e-44, 3e38, 1 / 3])
@pytest.mark.parametrize("name", ["nvfp4", "m2nvfp4-act", "m2nvfp4-weight"])
def test_tensor_scales(name, level):
    for kind in KINDS:
        for distribution in value_stimulus.DISTRIBUTIONS:
            check_distribution(name, kind, distribution, count=3, seed=55, tensor_scale=level)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mxint8", {"full_range": True}),
        ("int4", {"full_range": True, "scale_rule": "ceil", "ties": "zero"}),
        ("m2xfp-act", {"choice": "highest"}),
        ("m2nvfp4-act", {"choice": "highest", "tensor_scale": "token"}),
        ("nvfp4", {"scale_floor": 2.0**-6}),
        ("nvfp4", {"quotient": "reciprocal"}),
        ("nvfp4", {"scale_floor": 2.0**-6, "quotient": "reciprocal", "tensor_scale": "auto"}),
        ("nvfp4", {"scale_floor": 2.0**-9, "quotient": "reciprocal", "tensor_scale": 1e-44}),
        ("m2nvfp4-weight", {"candidates": "octaves"}),
        ("m2nvfp4-weight", {"candidates": "octaves", "tensor_scale": "auto"}),
        ("m2nvfp4-weight", {"candidates": "octaves", "scale_floor": 2.0**-6, "subgroup": 8}),
        ("m2nvfp4-weight", {"scale_floor": 2.0**-6, "tensor_scale": "token"}),
    ],
    ids=str,
)
def test_conventions_of_others(name, options):
    count = 2 if "weight" in name else 5
    for kind in KINDS:
        for distribution in value_stimulus.DISTRIBUTIONS:
            check_distribution(name, kind, distribution, count, seed=59, **options)


@pytest.mark.parametrize("adaptive", [True, False])
def test_nvfp4_weights_far_above_the_largest_scale(adaptive):
    """Values up to 2^127 against scales up to 448: sums of squares far beyond 53 bits."""
    for distribution in ("huge", "finite-bits", "wide", "one-hot"):
        check_distribution(
            "m2nvfp4-weight", "fp32", distribution, count=40, seed=56, adaptive=adaptive
        )


@pytest.mark.parametrize("subgroup", [4, 8, 16, 32])
@pytest.mark.parametrize("name", ["m2xfp-act", "m2xfp-weight"])
def test_subgroup_sizes(name, subgroup):
    for distribution in ("normal", "edges"):
        check_distribution(name, "bf16", distribution, count=6, seed=57, subgroup=subgroup)
    block = get_format(name, subgroup=subgroup).block
    assert block.bits_per_value == Fraction(32 * 4 + 8 + 2 * 32 // subgroup, 32)


@pytest.mark.parametrize("group", [8, 16, 64])
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_group_sizes(name, group):
    if name == "m2nvfp4-weight" and group > 16:
        fmt = get_format(name, group=group)
        with pytest.raises(InputError, match=r"group=64.*proven.*group=8 or 16"):
            fmt.quantize(torch.ones(1, group))
        zeros = torch.zeros(1, 1, sum(fmt.block.group_bytes), dtype=torch.uint8)
        assert PackedTensor.from_groups(fmt, zeros).dequantize().shape == (1, group)
        return
    check_distribution(name, "bf16", "edges", count=4, seed=58, group=group)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("mxfp4", 4.25),
        ("mxfp6-e2m3", 6.25),
        ("mxfp6-e3m2", 6.25),
        ("mxfp8-e4m3", 8.25),
        ("mxfp8-e5m2", 8.25),
        ("mxint8", 8.25),
        ("m2xfp-act", 4.5),
        ("m2xfp-weight", 4.5),
        ("nvfp4", 4.5),
        ("m2nvfp4-act", 5.0),
        ("m2nvfp4-weight", 5.0),
        ("smx4", 4.0),
        ("amxfp4", 4.5),
    ],
)
def test_bits_per_value(name, bits):
    assert float(get_format(name).block.bits_per_value) == bits
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(1))
    assert get_format(name).quantize(x).nbytes * 8 == bits * x.numel()


def test_m2nvfp4_subgroups_of_eight_have_4_75_bits():
    assert float(get_format("m2nvfp4-act", subgroup=8).block.bits_per_value) == 4.75


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_save_load_and_group_form(name, tmp_path):
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(6))
    options = {"tensor_scale": "auto"} if "nvfp4" in name else {}
    packed = get_format(name, **options).quantize(x)
    packed.save(tmp_path / "x")
    for again in (
        PackedTensor.load(tmp_path / "x"),
        PackedTensor.from_groups(
            packed.format, packed.groups(), shape=(3, 50), tensor_scale=packed.tensor_scale
        ),
    ):
        assert again.format == packed.format
        assert torch.equal(again.groups(), packed.groups())
        assert torch.equal(again.dequantize(), packed.dequantize())


def test_smx4_fields():
    x = torch.zeros(16)
    x[:4] = torch.tensor([1.5, -0.25, 0.75, 0.5])
    codes, scales, bits = get_format("smx4").quantize(x).unpack()
    assert scales.item() == 127
    # the pair (1.5, -0.25) has 1.5 >= 1: steps of 1/2, -0.25 ties to zero and keeps its sign
    assert codes[0, :4].tolist() == [3, 4, 3, 2]
    assert bits[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert get_format("smx4").quantize(x).groups().shape == (1, 8)


def test_amxfp4_scales_each_side_by_itself():
    x = torch.zeros(32)
    x[0], x[1] = 6 * 0.25, -6 * 8.0
    packed = get_format("amxfp4").quantize(x)
    assert torch.equal(packed.dequantize(), x)
    assert packed.scales.tolist() == [0x34, 0x48]


def test_int8_has_no_negative_zero_and_no_most_negative_code():
    x = torch.tensor([-1.999, 1.0, -0.001])
    codes, _, _ = get_format("mxint8").quantize(x).unpack()
    assert codes[0, :3].tolist() == [0x81, 64, 0]
    assert not torch.signbit(get_format("mxint8").fake_quantize(x))[2]


def test_int4_asym_covers_the_range_and_keeps_large_offsets_exact():
    fmt = get_format("int4-asym")
    x = torch.linspace(-3, 12, 32)
    assert (fmt.fake_quantize(x) - x).abs().max() <= 0.5
    equal = torch.full((32,), 1e30)
    assert torch.equal(fmt.fake_quantize(equal), equal)
    near = torch.full((32,), 2.0**24)
    near[7] -= 1
    assert torch.equal(fmt.fake_quantize(near), near)


def test_tensor_scale_ignores_special_values_and_zero():
    x = torch.zeros(2, 16)
    assert get_format("nvfp4", tensor_scale="auto").quantize(x).tensor_scale.item() == 1.0
    x[0, 0], x[1, 0] = float("inf"), 2688.0
    packed = get_format("nvfp4", tensor_scale="auto").quantize(x)
    assert packed.tensor_scale.item() == 1.0
    assert packed.scales.flatten().tolist() == [0x7F, 126]


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("mxfp4", {"metadata": "elem-em"}, "mxfp4 has no option 'metadata'; it takes: group"),
        ("mxfp4", {"tensor_scale": 1.0}, "no option 'tensor_scale'"),
        ("nvfp4", {"scale_rule": "ceil"}, "no option 'scale_rule'"),
        ("nvfp4", {"tensor_scale": 0.0}, "tensor_scale=0.0; pass a positive number"),
        ("nvfp4", {"tensor_scale": float("nan")}, "tensor_scale=nan"),
        ("nvfp4", {"tensor_scale": 1e-60}, "tensor_scale=1e-60"),
        ("nvfp4", {"tensor_scale": "each"}, "tensor_scale='each'; pass None, 'auto'"),
        ("m2nvfp4-weight", {"search": "fixed"}, "no option 'search'"),
        ("smx4", {"subgroup": 4}, "no option 'subgroup'"),
        ("mxfp4", {"scale_rule": "nearest"}, "scale_rule='nearest'; choose one of: floor, ceil"),
        ("mxfp4", {"scale_rule": "floor", "scale_mode": "e4m3"}, "exclude each other"),
        ("mxfp4", {"scale_mode": "fp16"}, "scale_mode='fp16'; choose one of: pot, pot-r"),
        ("mxfp4", {"ties": "up"}, "ties='up'; choose one of: even, away"),
        ("mxfp4", {"group": 24}, "group=24; pass a whole number out of: 8, 16"),
        ("m2xfp-act", {"group": 16, "subgroup": 32}, "subgroup=32"),
    ],
)
def test_what_does_not_compose(name, options, text):
    with pytest.raises(InputError, match=text):
        get_format(name, **options)
