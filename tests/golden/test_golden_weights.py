"""m2xfp-weight (Sg-EM) of the golden model against the exact reference."""

import pytest
import torch
from golden_checks import check_distribution

from m2xfp.errors import InputError
from m2xfp.golden import get_format
from m2xfp.golden.bits import from_bits
from m2xfp.tb.parts import value_stimulus

KINDS = ("bf16", "fp16", "fp32")


@pytest.mark.parametrize("distribution", value_stimulus.DISTRIBUTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_exact_search_equals_the_reference(kind, distribution):
    check_distribution("m2xfp-weight", kind, distribution, count=12, seed=41)


@pytest.mark.parametrize(
    "distribution", ["normal", "ties", "edges", "subnormal", "huge", "special"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_not_adaptive_equals_the_reference(kind, distribution):
    check_distribution("m2xfp-weight", kind, distribution, count=12, seed=42, adaptive=False)


@pytest.mark.parametrize("bits", [5, 6, 8])
@pytest.mark.parametrize("distribution", ["normal", "wide", "edges", "subnormal", "huge"])
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_search_equals_the_reference(kind, distribution, bits):
    check_distribution(
        "m2xfp-weight", kind, distribution, count=6, seed=43, search="fixed", fraction_bits=bits
    )


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("distribution", value_stimulus.DISTRIBUTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_search_equals_exact_search_by_default(kind, distribution, adaptive):
    x = from_bits(kind, value_stimulus.groups(distribution, kind, 3000, seed=44))
    exact = get_format("m2xfp-weight", adaptive=adaptive).quantize(x)
    fixed = get_format("m2xfp-weight", adaptive=adaptive, search="fixed").quantize(x)
    assert torch.equal(exact.groups(), fixed.groups())


@pytest.mark.parametrize(("kind", "bits"), [("bf16", 9), ("fp16", 12), ("fp32", 20)])
def test_fewer_fraction_bits_do_differ(kind, bits):
    """The default number of fraction bits is needed: below it some group differs."""
    different = 0
    for distribution in ("normal", "edges", "ties", "wide"):
        x = from_bits(kind, value_stimulus.groups(distribution, kind, 30000, seed=45))
        exact = get_format("m2xfp-weight").quantize(x).groups()
        fixed = get_format("m2xfp-weight", search="fixed", fraction_bits=bits).quantize(x)
        different += int((exact != fixed.groups()).any(-1).sum())
    print(f"{kind}, {bits} fraction bits: {different} groups differ")
    assert different


def search(values, **options):
    x = torch.zeros(32)
    x[: len(values)] = torch.tensor(values)
    codes, scales, fields = get_format("m2xfp-weight", **options).quantize(x).unpack()
    return scales[0, 0].item(), codes[0, : len(values)].tolist(), fields[0].tolist()


def test_ties_take_the_smallest_multiplier_then_the_lower_scale():
    # 4.5 = 6 * 1.5 * 2^-1 = 3 * 1.5 * 2^0: both without error, so the lower scale wins.
    assert search([4.5]) == (126, [7], [2, 0, 0, 0])
    assert search([4.5], adaptive=False) == (127, [5], [2, 0, 0, 0])
    # 3 = 3 * 1 = 2 * 1.5: the smaller multiplier wins.
    assert search([4.0] + 7 * [0.0] + [3.0]) == (127, [6] + 7 * [0] + [5], [0, 0, 0, 0])


def test_zero_group_and_the_ends_of_the_scale():
    assert search([0.0, -0.0]) == (0, [0, 8], [0, 0, 0, 0])
    assert search([2.0**-149]) == (0, [0], [0, 0, 0, 0])
    # 2^128 (1 - 2^-24) is nearest to 4 * 2^126, which float32 does not hold.
    assert search([3.4028234663852886e38]) == (253, [6], [0, 0, 0, 0])
    assert get_format("m2xfp-weight").fake_quantize(torch.tensor([3.4028234663852886e38])).isinf()


def test_adaptive_is_never_worse():
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(9))
    errors = [
        (get_format("m2xfp-weight", adaptive=adaptive).fake_quantize(x) - x).square().sum(-1)
        for adaptive in (True, False)
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all()
    assert errors[0].sum() < 0.9 * errors[1].sum()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"search": "quick"}, "search='quick'; choose one of: exact, fixed"),
        ({"search": "fixed", "fraction_bits": 4}, r"fraction_bits=4; pass .* 5\.\.32"),
        ({"search": "fixed", "fraction_bits": 8.0}, "fraction_bits=8.0"),
        ({"fraction_bits": 8}, "belongs to search='fixed'"),
        ({"adaptive": 1}, "adaptive=1; pass True or False"),
        ({"scale_mode": "e5m2"}, "no option 'scale_mode'; it takes: adaptive"),
        ({"subgroup": 5}, "subgroup=5"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(InputError, match=text):
        get_format("m2xfp-weight", **options)


def test_a_search_on_activations_is_refused():
    with pytest.raises(InputError, match="m2xfp-act has no option 'search'"):
        get_format("m2xfp-act", search="fixed")
