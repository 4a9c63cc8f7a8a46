"""Products on CUDA of pairs that tests/product_checks.py has not, held against the plain path."""

import pytest
import torch
from product_checks import Case, differences, operands, words

from m2xfp.errors import InputError
from m2xfp.golden import computing, get_format, matmul
from m2xfp.golden.formats.mixed import MixedTensor, Split, mixed_matmul
from m2xfp.golden.formats.products import batched_matmul, quantized_matmul

pytestmark = pytest.mark.gpu

E4M3, E5M2 = "mxfp8-e4m3", "mxfp8-e5m2"
SUMS = (
    (E4M3, E4M3),
    (E4M3, "mxfp4"),
    ("m2xfp-act", E4M3),
    (E4M3, "mxint8"),
    (f"{E4M3}:group=8", f"{E4M3}:group=8"),
    (f"{E4M3}:group=16", f"{E4M3}:group=16"),
    (f"{E4M3}:group=64", f"{E4M3}:group=64"),
    (f"{E4M3}:group=128", f"{E4M3}:group=128"),
    (f"{E4M3}:group=256", "mxfp4:group=256"),
    (E5M2, "mxfp4"),
    ("mxfp6-e2m3", E5M2),
    (E5M2, "mxfp6-e3m2"),
    (E5M2, "mxint8"),
    (E5M2, "m2xfp-weight"),
    ("mxfp4:group=8", "mxfp4:group=8"),
    ("nvfp4:group=8", "nvfp4:group=8"),
    ("mxfp4:scale_mode=e5m2", "mxfp4:scale_mode=e5m2"),
    ("mxfp4:scale_mode=e5m2", "m2xfp-weight"),
    ("m2xfp-act:scale_mode=e4m3", "m2xfp-weight"),
    ("m2xfp-act:choice=highest", "m2xfp-weight"),
    ("mxint8:scale_mode=e4m3", "mxint8"),
    ("nvfp4:group=32", "mxfp4"),
)
"""Pairs whose fp32 sums are defined."""
EXACT = (*SUMS, (E5M2, E5M2), (E5M2, E4M3), (f"{E5M2}:group=64", f"{E5M2}:group=64"))
SUBGROUPS = (
    ("m2xfp-act:group=8,subgroup=4", "m2xfp-weight:group=8,subgroup=4"),
    ("m2xfp-act:scale_mode=e4m3", "m2xfp-weight"),
    ("m2xfp-act:choice=highest", "m2xfp-weight"),
    (E4M3, "m2xfp-weight"),
    ("m2xfp-act", "mxfp4:scale_mode=e5m2"),
)


def check(names: tuple[str, str], accumulator: str) -> None:
    """Hold small and large products, of near and far exponents, against the plain path."""
    for m, n, spread, nan, seed in ((9, 37, 3, 0.0, 1), (140, 70, 9, 0.01, 2), (33, 9, 200, 0, 3)):
        case = Case(names, accumulator, m, n, 5, spread=spread, nan=nan, cancel=seed == 2,
                    seed=seed)  # fmt: skip
        with computing("fused"):
            assert differences_on(case) == 0, case
    for center in (1, 60, 192, 250):
        case = Case(names, accumulator, 70, 40, 4, center=center, spread=6, seed=center)
        assert differences(case, "cuda") == 0, case


def differences_on(case: Case) -> int:
    """Return what ``differences`` does, and fail where no fused path serves."""
    qa, qw = operands(case)
    with computing("plain"):
        wanted = matmul(qa, qw, case.accumulator)
    found = matmul(qa.to("cuda"), qw.to("cuda"), case.accumulator).cpu()
    return int((words(found) != words(wanted)).sum())


@pytest.mark.parametrize("names", SUMS)
def test_fp32(names):
    check(names, "fp32")


@pytest.mark.parametrize("names", EXACT)
def test_exact(names):
    check(names, "exact")


@pytest.mark.parametrize("names", SUBGROUPS)
def test_fp32_subgroup(names):
    check(names, "fp32_subgroup")


@pytest.mark.parametrize("accumulator", ["fp32", "exact"])
def test_tensor_scales_of_wide_sums(accumulator):
    case = Case(("nvfp4:group=8",) * 2, accumulator, 33, 40, 4, levels=True, seed=6)
    assert differences_on(case) == 0


@pytest.mark.parametrize("accumulator", ["fp32", "exact"])
def test_an_infinite_element_gives_nan_as_on_the_plain_path(accumulator):
    qa, qw = operands(Case((E5M2, "mxfp4"), m=40, n=20, groups=4, seed=8))
    qa.codes[3, 40] = 0x7C
    with computing("plain"):
        wanted = matmul(qa, qw, accumulator)
    assert wanted[3].isnan().all()
    found = matmul(qa.to("cuda"), qw.to("cuda"), accumulator).cpu()
    assert torch.equal(words(found), words(wanted))


def test_long_sums_cancel_and_absorb():
    """Many groups of far exponents, in every kernel of wide sums."""
    for names in ((E4M3, E4M3), (E5M2, "mxfp4")):
        for accumulator in ("fp32", "exact"):
            for spread in (2, 30, 100):
                case = Case(names, accumulator, 66, 65, 96, spread=spread, cancel=True, seed=spread)
                assert differences(case, "cuda") == 0, case


def test_batches_of_wide_products():
    generator = torch.Generator().manual_seed(6)
    a = get_format(E4M3).quantize(torch.randn(3, 70, 96, generator=generator))
    b = get_format(E4M3).quantize(torch.randn(3, 50, 96, generator=generator))
    for accumulator in ("fp32", "exact"):
        wanted = batched_matmul(a, b, accumulator)
        found = batched_matmul(a.to("cuda"), b.to("cuda"), accumulator).cpu()
        assert torch.equal(words(found), words(wanted))


def test_mixed_segments():
    """Segments of MXFP4, MXFP6 and MXFP8, each on a fused path."""
    generator = torch.Generator().manual_seed(7)
    x, w = (torch.randn(rows, 384, generator=generator) for rows in (70, 50))
    split = Split(torch.randperm(384, generator=generator), (128, 128, 128))
    a, b = split.quantize(x), split.quantize(w)
    with computing("plain"):
        wanted = mixed_matmul(a, b)
    with computing("fused"):
        found = mixed_matmul(moved(a), moved(b))
    assert torch.equal(found.cpu().view(torch.int16), wanted.view(torch.int16))


def moved(mixed: MixedTensor) -> MixedTensor:
    """Return a mixed tensor on the GPU, of the same split."""
    return MixedTensor(tuple(part.to("cuda") for part in mixed.segments), mixed.split)


def test_what_has_no_fused_product_says_so():
    qa, qw = operands(Case((E5M2, E5M2)))
    with pytest.raises(InputError, match="more than the fp32 accumulator takes exactly"):
        matmul(qa.to("cuda"), qw.to("cuda"))
    wide = get_format("mxfp4:scale_mode=float").quantize(torch.ones(3, 64)).to("cuda")
    with computing("fused"), pytest.raises(InputError, match="no fused product"):
        matmul(wide, wide)


@pytest.mark.parametrize("name", ["m2xfp-act", "mxfp4", "mxfp4:scale_rule=even"])
@pytest.mark.parametrize("accumulator", ["fp32", "fp32_subgroup"])
def test_inputs_quantized_as_they_are_multiplied(name, accumulator):
    """Rows of all sizes, some beyond what float32 sums take, some with NaN and infinity."""
    generator = torch.Generator().manual_seed(9)
    fmt, weights = get_format(name), get_format("m2xfp-weight")
    for m, n, k, spread in ((140, 70, 1024, 0), (300, 200, 2048, 0), (300, 200, 1024, 40)):
        x, w = (torch.randn(rows, k, generator=generator) for rows in (m, n))
        if spread:
            x[130:150] *= 2.0 ** (spread * torch.randn(20, 1, generator=generator))
            w[7] *= 2.0**-90
            x[3, 5], x[4, 6], x[260] = float("nan"), float("inf"), 2.0**-130
        x[9, 32:64] = 0
        x, qw = x.to(torch.bfloat16), weights.quantize(w)
        with computing("plain"):
            wanted = matmul(fmt.quantize(x), qw, accumulator, torch.bfloat16)
        found = quantized_matmul(x.cuda(), fmt, qw.to("cuda"), accumulator, torch.bfloat16).cpu()
        assert torch.equal(found.view(torch.int16), wanted.view(torch.int16)), (m, n, k)


def test_inputs_are_really_not_packed_on_hopper(monkeypatch):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernel is for Hopper")
    qw = get_format("m2xfp-weight").quantize(torch.randn(64, 1024, device="cuda"))
    x = torch.randn(100, 1024, device="cuda", dtype=torch.bfloat16)
    fmt = get_format("m2xfp-act")
    wanted = quantized_matmul(x, fmt, qw)

    def refuse(*_: object) -> None:
        raise AssertionError("packed")

    monkeypatch.setattr(type(fmt), "quantize", refuse)
    assert torch.equal(quantized_matmul(x, fmt, qw), wanted)
