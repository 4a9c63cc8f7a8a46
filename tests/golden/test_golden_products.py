"""The fast matrix products against the plain path, bit for bit, and how one of them is chosen."""

import warnings

import numpy as np
import pytest
import torch
from product_checks import PAIRS, SUBGROUPS, Case, differences, operands, random_case, words

from m2xfp.errors import InputError, NoFusedPathError
from m2xfp.golden import PackedTensor, computing, get_format, matmul
from m2xfp.golden.formats import products
from m2xfp.golden.formats.numeric import round_once
from m2xfp.golden.formats.operands import check_lanes
from m2xfp.golden.kernels import fused, native, products_fused, products_native

M2XFP = ("m2xfp-act", "m2xfp-weight")
ENDS = [(127, 3), (127, 60), (127, 127), (60, 8), (192, 4), (1, 30), (240, 14)]


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Forget the loaded library and use an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    products_native.LIBRARY.forget()
    products_fused._kernels.cache_clear()
    products_fused._row_kernels.cache_clear()
    native.forget()
    fused._warn.cache_clear()


def uses_native(case: Case) -> bool:
    qa, qw = operands(case)
    lanes = check_lanes(qa, qw, case.accumulator)
    return products_native.serves(qa, qw, case.accumulator, lanes)


@pytest.mark.parametrize(("center", "spread"), ENDS)
@pytest.mark.parametrize("accumulator", ["fp32", "fp32_subgroup", "exact"])
def test_subnormal_overflowing_and_mixed_sums(accumulator, center, spread):
    for cancel in (False, True):
        case = Case(M2XFP, accumulator, 19, 37, 6, center, spread, 0.01, cancel, seed=3)
        assert differences(case) == 0, case


@pytest.mark.parametrize("names", PAIRS)
def test_every_pair_of_formats(names):
    for accumulator in ("fp32", *["fp32_subgroup"] * (names in SUBGROUPS)):
        for spread in (2, 90):
            case = Case(names, accumulator, 14, 45, 5, spread=spread, nan=0.02, seed=spread)
            assert uses_native(case), case
            assert differences(case) == 0, case
    if names[0] == "nvfp4":
        assert differences(Case(names, levels=True, seed=5)) == 0


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_random_products(start):
    for seed in range(start, start + 50):
        assert differences(random_case(seed)) == 0, random_case(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 11000, 500))
def test_ten_thousand_random_products(start):
    for seed in range(start, start + 500):
        assert differences(random_case(seed)) == 0, random_case(seed)


def test_one_row_beyond_float32_does_not_slow_or_spoil_the_others():
    qa, qw = operands(Case(M2XFP, m=20, n=40, groups=3))
    qa.scales[7, 1] = 250
    with computing("plain"):
        wanted = matmul(qa, qw)
    assert torch.equal(words(matmul(qa, qw)), words(wanted))


def test_many_columns_threads_and_long_rows(monkeypatch):
    monkeypatch.setattr(products_native, "_WORKSPACE", 1 << 14)
    case = Case(M2XFP, m=5, n=700, groups=140, seed=9)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert differences(case) == 0
    finally:
        torch.set_num_threads(threads)


def test_shapes_that_are_no_plain_matrices():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 3, 40, generator=generator)
    w = torch.randn(5, 40, generator=generator)
    qa, qw = get_format("m2xfp-act").quantize(x), get_format("m2xfp-weight").quantize(w)
    strided = PackedTensor(
        qa.format,
        *(plane.transpose(0, 1).contiguous().transpose(0, 1) for plane in (qa.codes, qa.scales)),
        qa.meta.transpose(0, 1).contiguous().transpose(0, 1),
        qa.shape,
    )
    with computing("plain"):
        wanted = matmul(qa, qw)
    assert torch.equal(matmul(qa, qw), wanted)
    assert torch.equal(matmul(strided, qw), wanted)
    for shape, rows in (((0, 40), 5), ((3, 0), 5), ((3, 40), 0)):
        a = get_format("m2xfp-act").quantize(torch.ones(shape))
        b = get_format("m2xfp-weight").quantize(torch.ones(rows, shape[1]))
        assert torch.equal(matmul(a, b), torch.zeros(shape[0], rows))


def test_batches_of_products():
    generator = torch.Generator().manual_seed(6)
    a = get_format("m2xfp-act").quantize(torch.randn(2, 3, 7, 40, generator=generator))
    b = get_format("m2xfp-weight").quantize(torch.randn(2, 3, 5, 40, generator=generator))
    found = products.batched_matmul(a, b)
    assert found.shape == (2, 3, 7, 5)
    for i, j in np.ndindex(2, 3):
        one, other = (
            PackedTensor(q.format, q.codes[i, j], q.scales[i, j], q.meta[i, j], q.shape[2:])
            for q in (a, b)
        )
        assert torch.equal(found[i, j], matmul(one, other))
    with pytest.raises(InputError, match="equal leading dimensions"):
        products.batched_matmul(a, get_format("m2xfp-weight").quantize(torch.ones(3, 5, 40)))


def test_a_product_that_has_no_fused_path():
    qa, qw = operands(Case(M2XFP))
    wide = get_format("mxfp4:scale_mode=float").quantize(torch.ones(3, 128))
    with computing("fused"):
        assert matmul(qa, qw, "exact").shape == (9, 11)
        message = r"no fused product of \S+ and m2xfp-weight with the fp32 .*scales of 8 bits, and"
        with pytest.raises(InputError, match=message):
            matmul(wide, qw)


@pytest.mark.parametrize("trouble", ["compiler", "broken", "folder", "truncated"])
def test_without_the_compiled_code_the_plain_path_serves(fresh, monkeypatch, trouble):
    if trouble == "compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    elif trouble == "broken":
        monkeypatch.setenv("CXX", "false")
    elif trouble == "folder":
        (fresh / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    else:
        products_native.LIBRARY.load()
        (library,) = fresh.rglob("products_native-*.so")
        start = library.read_bytes()[:100]
        library.unlink()  # the loaded one stays mapped
        library.write_bytes(start)
        forget()
    qa, qw = operands(Case(M2XFP))
    with computing("plain"):
        wanted = matmul(qa, qw)
    if trouble == "truncated":  # is compiled again
        assert torch.equal(matmul(qa, qw), wanted)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(matmul(qa, qw), wanted)
            qa.dequantize()  # on the plain path for the same reason
    (warning,) = said
    assert "plain path, which is slower" in str(warning.message)
    with computing("fused"), pytest.raises(NoFusedPathError):
        matmul(qa, qw)


@pytest.mark.gpu
@pytest.mark.parametrize("start", range(20000, 20400, 25))
def test_cuda_random_products(start):
    pytest.importorskip("triton")
    for seed in range(start, start + 25):
        assert differences(random_case(seed), "cuda") == 0, random_case(seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_results_in_a_narrower_type_are_rounded_once_more(dtype, device):
    qa, qw = operands(Case(M2XFP, m=140, n=70, spread=12, nan=0.01, seed=8))
    with computing("plain"):
        single = matmul(qa, qw)
        plain = matmul(qa, qw, dtype=dtype)
    wanted = round_once(single.double(), dtype)
    assert wanted.isnan().any()
    for found in (plain, matmul(qa.to(device), qw.to(device), dtype=dtype).cpu()):
        assert torch.equal(found.view(torch.int16), wanted.view(torch.int16))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_wide_sum_just_beyond_a_midpoint_rounds_up(device):
    """1 + 2^-24 (1 + 2^-34): float64 alone would round to the midpoint and then to even."""
    fmt = get_format("mxfp8-e4m3")
    data = torch.zeros(1, 2, 33, dtype=torch.uint8)
    data[0, 0, 0], data[0, :, 32] = 56, 127  # 1 in the first group
    data[0, 1, :2] = torch.tensor([120, 1])  # 2^8 and 2^-9 in the second
    a, w = (PackedTensor.from_groups(fmt, part) for part in (data.clone(), data.clone()))
    a.scales[0, 1] = 127 - 40
    assert matmul(a.to(device), w.to(device)).item() == 1 + 2.0**-23


ROWS_OF = ("m2xfp-weight", "mxfp4", "nvfp4", "mxfp4:group=16", "m2xfp-weight:group=16,subgroup=8")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ROWS_OF)
@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 16])
@pytest.mark.parametrize(("n", "k"), [(1, 8), (5, 100), (64, 512), (130, 1000), (200, 4096)])
def test_a_few_rows_times_packed_weights(name, m, n, k):
    """Sums are whole numbers of few bits, so that their order is of no matter: bits are equal."""
    from m2xfp.golden.kernels.rows_gluon import few_rows

    fmt = get_format(name)
    rng = np.random.default_rng([m, n, k])
    sizes = fmt.block.group_bytes
    groups = -(-k // fmt.block.group)
    data = torch.from_numpy(rng.integers(0, 256, (n, groups, sum(sizes)), dtype=np.uint8))
    low, high = (126, 129) if fmt.block.scale.name == "e8m0" else (48, 64)
    data[..., sizes[0]] = torch.from_numpy(rng.integers(low, high, (n, groups), dtype=np.uint8))
    whole = PackedTensor.from_groups(fmt, data)
    weight = PackedTensor.from_planes(fmt, whole.planes(), (n, k))
    x = torch.from_numpy(rng.integers(-3, 4, (m, k))).to(torch.bfloat16)
    wanted = (x.double() @ weight.dequantize(torch.float32).double().T).to(torch.bfloat16)
    found = few_rows(x.cuda(), weight.to("cuda"))
    assert torch.equal(found.cpu(), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [0, 1, 2, 126, 127, 253, 254, 255])
@pytest.mark.parametrize("name", ROWS_OF)
def test_a_few_rows_times_the_ends_of_the_scale(name, scale):
    """One value of x in each row is not 0, so a result is one product: bits are equal."""
    from m2xfp.golden.kernels.rows_gluon import few_rows

    fmt = get_format(name)
    sizes = fmt.block.group_bytes
    data = torch.from_numpy(
        np.random.default_rng(scale).integers(0, 256, (70, 3, sum(sizes)), dtype=np.uint8)
    )
    data[:, 1, sizes[0]] = scale
    data[:, ::2, sizes[0]] = 1
    weight = PackedTensor.from_groups(fmt, data)
    x = torch.zeros(16, weight.shape[1], dtype=torch.bfloat16)
    for row in range(16):
        x[row, fmt.block.group + row % fmt.block.group] = -(2.0 ** (row - 8))
    decoded = weight.dequantize(torch.bfloat16)
    wanted = torch.nn.functional.linear(x.float(), decoded.float()).to(torch.bfloat16)
    found = few_rows(x.cuda(), weight.to("cuda")).cpu()
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(0, 1, -1), wanted.nan_to_num(0, 1, -1))


@pytest.mark.gpu
@pytest.mark.parametrize("lanes", [4, 8])
def test_subgroups_on_tensor_cores(lanes):
    """Tiles of 128 rows take another kernel than the small ones of the random products."""
    names = ("m2nvfp4-act", "m2nvfp4-weight") if lanes == 4 else M2XFP
    assert get_format(names[0]).block.metadata.subgroup == lanes
    for seed in range(4):
        case = Case(names, "fp32_subgroup", 130 + 64 * seed, 150, 5, spread=3, seed=seed)
        assert differences(case, "cuda") == 0, case


def test_quantizing_and_multiplying_in_one_step():
    """The same bits as in two, also below vmap; and the same errors."""
    generator = torch.Generator().manual_seed(10)
    fmt = get_format("m2xfp-act")
    qw = get_format("m2xfp-weight").quantize(torch.randn(5, 40, generator=generator))
    x = torch.randn(2, 3, 40, generator=generator)
    wanted = matmul(fmt.quantize(x), qw)
    assert torch.equal(products.quantized_matmul(x, fmt, qw), wanted)
    assert torch.equal(torch.vmap(lambda x: products.quantized_matmul(x, fmt, qw))(x), wanted)
    level = get_format("nvfp4", tensor_scale="auto")
    other = get_format("nvfp4").quantize(torch.randn(5, 40, generator=generator))
    each = torch.vmap(lambda x: products.quantized_matmul(x, level, other))(x)
    assert torch.equal(each, torch.stack([matmul(level.quantize(part), other) for part in x]))
    with pytest.raises(InputError, match="K = 40"):
        products.quantized_matmul(x[..., :32], fmt, qw)
    with pytest.raises(InputError, match="choose one of"):
        products.quantized_matmul(x, fmt, qw, "fp16")


def test_an_infinite_scale_is_nan_in_a_product():
    fmt = get_format("mxfp4:scale_mode=e5m2")
    packed = fmt.quantize(torch.ones(2, 64))
    packed.scales[0, 1] = 0x7C  # which no quantizer writes
    for path in ("plain", "auto"):
        with computing(path):
            found = matmul(packed, packed)
        assert found[0].isnan().all(), path
        assert found[1, 1] > 0, path
