"""Dot and matrix products of the golden model against exact rationals."""

from fractions import Fraction

import numpy as np
import pytest
import reference
import torch
from golden_checks import spec_of

from m2xfp.errors import InputError
from m2xfp.golden import PackedTensor, computing, dot, get_format, matmul
from m2xfp.golden.bits import dot_bits, from_bits, to_bits
from m2xfp.golden.formats.products import accumulate
from m2xfp.tb.parts import value_stimulus

M2XFP = ("m2xfp-act", "m2xfp-weight")


def reference_rows(packed: PackedTensor, **options: object) -> list[list[reference.Group]]:
    """Translate a packed tensor [rows, K] into the reference's groups."""
    codes, scales, fields = packed.unpack()
    return [
        [
            reference.Group(tuple(c), tuple(s), tuple(f))
            for c, s, f in zip(
                *(part[row].tolist() for part in (codes, scales, fields)), strict=True
            )
        ]
        for row in range(len(codes))
    ]


def check(names, packed, accumulator, initial=None) -> None:
    specs = tuple(spec_of(name) for name in names)
    rows = [reference_rows(operand) for operand in packed]
    scales = None
    if packed[0].tensor_scale is not None:
        scales = tuple(Fraction(operand.tensor_scale.item()) for operand in packed)
    start = None if initial is None else from_bits("fp32", initial)
    found = to_bits(dot(*packed, accumulator=accumulator, initial=start))
    for i, pair in enumerate(zip(*rows, strict=True)):
        first = 0 if initial is None else int(initial[i])
        wanted = reference.dot(specs, pair, accumulator, first, scales)
        assert int(found[i]) == wanted, (
            f"{names} {accumulator} row {i}: {int(found[i]):#x}, exactly {wanted:#x}\n{pair}"
        )


def random_rows(name: str, rows: int, groups: int, seed: int, spread: int = 0) -> PackedTensor:
    """Packed groups of random bytes; scales within ``spread`` of each other if that is not 0."""
    fmt = get_format(name)
    size = sum(fmt.block.group_bytes)
    data = value_stimulus.packed_groups(rows * groups, seed, size).reshape(rows, groups, size)
    rng = np.random.default_rng(seed)
    if spread:
        data[..., fmt.block.group_bytes[0]] = 127 + rng.integers(
            -spread, spread + 1, (rows, groups)
        )
    return PackedTensor.from_groups(fmt, torch.from_numpy(data))


@pytest.mark.parametrize("accumulator", ["fp32", "fp32_subgroup", "exact"])
@pytest.mark.parametrize("spread", [0, 1, 6, 20, 60])
def test_any_packed_bytes(accumulator, spread):
    print("seeds 11, 12")
    packed = [random_rows(name, 40, 5, 11 + i, spread) for i, name in enumerate(M2XFP)]
    check(M2XFP, packed, accumulator)


@pytest.mark.parametrize("accumulator", ["fp32", "fp32_subgroup"])
def test_any_initial_value(accumulator):
    packed = [random_rows(name, 200, 2, 13 + i, 0) for i, name in enumerate(M2XFP)]
    rng = np.random.default_rng(14)
    initial = rng.integers(0, 1 << 32, 200, dtype=np.uint32)
    initial[:6] = [0x80000000, 0x7F800000, 0xFF800000, 0x7FC12345, 0xFFFFFFFF, 1]
    check(M2XFP, packed, accumulator, initial)


@pytest.mark.parametrize("gap", range(-40, 41, 2))
def test_rounding_at_every_distance_of_the_addend(gap):
    """Start values whose last bits and exponents sit around every alignment with the addend."""
    rng = np.random.default_rng([15, gap + 40])
    packed = [random_rows(name, 40, 1, 16 + i, 1) for i, name in enumerate(M2XFP)]
    mantissa = rng.choice([0, 1, 0x7FFFFF, 0x400000, 0x3FFFFF, 0x2AAAAA], 40)
    sign = rng.integers(0, 2, 40) << 31
    initial = (sign | (127 + 10 + gap) << 23 | mantissa).astype(np.uint32)
    check(M2XFP, packed, "fp32", initial)


@pytest.mark.parametrize("ends", [0, 1, 2, 60, 190, 220, 250, 254])
@pytest.mark.parametrize("accumulator", ["fp32", "fp32_subgroup", "exact"])
def test_subnormal_and_overflowing_results(accumulator, ends):
    packed = []
    for i, name in enumerate(M2XFP):
        operand = random_rows(name, 30, 3, 17 + i).groups()
        operand[..., 16] = min(254, ends // 2 + 4 * i)
        packed.append(PackedTensor.from_groups(get_format(name), operand))
    check(M2XFP, packed, accumulator)


@pytest.mark.parametrize("accumulator", ["fp32", "exact"])
@pytest.mark.parametrize(
    "names",
    [
        ("mxfp4", "mxfp4"),
        ("mxfp4", "m2xfp-weight"),
        ("mxfp6-e2m3", "mxfp6-e3m2"),
        ("mxfp8-e4m3", "mxfp8-e4m3"),
        ("mxint8", "mxint8"),
        ("mxfp8-e4m3", "mxfp4"),
        ("nvfp4", "nvfp4"),
        ("m2nvfp4-act", "m2nvfp4-weight"),
        ("smx4", "smx4"),
    ],
)
def test_other_formats(names, accumulator):
    x = [
        from_bits("fp32", value_stimulus.groups(shape, "fp32", 20, 19 + i, 96))
        for i, shape in enumerate(("heavy", "normal"))
    ]
    check(names, [get_format(n).quantize(v) for n, v in zip(names, x, strict=True)], accumulator)


@pytest.mark.parametrize("names", [("nvfp4", "nvfp4"), ("m2nvfp4-act", "m2nvfp4-weight")])
def test_tensor_scales_come_last(names):
    x = [from_bits("fp32", value_stimulus.groups("heavy", "fp32", 20, 21 + i, 64)) for i in (0, 1)]
    packed = [get_format(n, tensor_scale="auto").quantize(v) for n, v in zip(names, x, strict=True)]
    check(names, packed, "fp32")
    check(names, packed, "exact")


def test_an_operand_of_one_level_has_the_tensor_scale_one():
    x = [from_bits("fp32", value_stimulus.groups("heavy", "fp32", 20, 31 + i, 64)) for i in (0, 1)]
    one, two = get_format("nvfp4"), get_format("nvfp4", tensor_scale="auto")
    ones = get_format("nvfp4", tensor_scale=1.0)
    for left, right, same in ((one, two, (ones, two)), (two, one, (two, ones))):
        packed = left.quantize(x[0]), right.quantize(x[1])
        wanted = same[0].quantize(x[0]), same[1].quantize(x[1])
        for path in ("plain", "auto"):
            with computing(path):
                found, expected = matmul(*packed), matmul(*wanted)
                assert np.array_equal(to_bits(found), to_bits(expected))
                assert np.array_equal(to_bits(dot(*packed)), to_bits(dot(*wanted)))


def test_e5m2_products_need_the_exact_accumulator():
    x = [
        from_bits("fp32", value_stimulus.groups("lognormal", "fp32", 20, 23 + i, 64))
        for i in (0, 1)
    ]
    packed = [get_format("mxfp8-e5m2").quantize(v) for v in x]
    check(("mxfp8-e5m2", "mxfp8-e5m2"), packed, "exact")
    with pytest.raises(InputError, match=r"needs 70 bits.*accumulator='exact'"):
        dot(*packed)


def test_exact_differs_from_fp32_where_it_should():
    """2^100 + 1 - 2^100: one rounding a group loses the 1, the exact sum keeps it."""
    data = torch.zeros(1, 3, 18, dtype=torch.uint8)
    data[..., 0] = 2  # 1.0 in the first lane, which every other lane leaves the top-1
    data[0, 2, 0] = 10
    data[..., 16] = torch.tensor([227, 127, 227])
    data[..., 17] = 0b01010101  # Elem-EM: no refinement
    a = PackedTensor.from_groups(get_format("m2xfp-act"), data)
    one = data.clone()
    one[..., 0], one[..., 16], one[..., 17] = 2, 127, 0
    w = PackedTensor.from_groups(get_format("m2xfp-weight"), one)
    assert dot(a, w).item() == 0.0
    assert dot(a, w, accumulator="exact").item() == 1.0


def test_zero_products_keep_a_negative_zero_and_cancellation_gives_plus_zero():
    fmt_a, fmt_w = (get_format(name) for name in M2XFP)
    zero = fmt_a.quantize(torch.zeros(1, 32)), fmt_w.quantize(torch.ones(1, 32))
    minus_zero = torch.tensor([-0.0])
    assert torch.signbit(dot(*zero, initial=minus_zero)).all()
    ones = fmt_a.quantize(torch.ones(1, 32)), fmt_w.quantize(torch.ones(1, 32))
    result = dot(*ones, initial=torch.tensor([-32.0]))
    assert result.item() == 0.0
    assert not torch.signbit(result).any()
    assert dot(*ones).item() == 32.0


def test_accumulate_rounds_once():
    """1 + 2^-24 + 2^-60: float64 rounds the sum to the midpoint, one rounding must go up."""
    addend = torch.tensor([2.0**-24 * (1 + 2.0**-36)], dtype=torch.float64)
    assert accumulate(torch.ones(1), addend).item() == 1 + 2.0**-23
    assert accumulate(-torch.ones(1), -addend).item() == -1 - 2.0**-23
    assert accumulate(torch.ones(1), torch.tensor([2.0**-24], dtype=torch.float64)).item() == 1


@pytest.mark.parametrize("accumulator", ["fp32", "fp32_subgroup", "exact"])
@pytest.mark.parametrize("k", [0, 1, 32, 100])
def test_matmul_equals_dot(accumulator, k):
    generator = torch.Generator().manual_seed(25)
    a = torch.randn(2, 3, k, generator=generator) * 3
    w = torch.randn(5, k, generator=generator)
    if k > 40:
        a[0, 1, 40] = float("nan")
    qa, qw = get_format("m2xfp-act").quantize(a), get_format("m2xfp-weight").quantize(w)
    product = matmul(qa, qw, accumulator)
    assert product.shape == (2, 3, 5)
    for n in range(5):
        row = get_format("m2xfp-weight").quantize(w[n].expand(2, 3, k))
        column = dot(qa, row, accumulator)
        assert torch.equal(product[..., n].nan_to_num(123.0), column.nan_to_num(123.0))
    if k > 40:
        assert product[0, 1].isnan().all()
        assert product.isnan().sum() == 5


def test_matmul_in_chunks(monkeypatch):
    a, w = torch.randn(7, 64), torch.randn(3, 64)
    qa, qw = get_format("m2xfp-act").quantize(a), get_format("m2xfp-weight").quantize(w)
    whole = matmul(qa, qw)
    monkeypatch.setattr("m2xfp.golden.formats.products._CHUNK_SUMS", 6)
    assert torch.equal(matmul(qa, qw), whole)
    assert torch.allclose(whole, qa.dequantize() @ qw.dequantize().T, rtol=1e-4, atol=1e-4)


def test_dot_bits():
    packed = [random_rows(name, 10, 2, 26 + i, 3) for i, name in enumerate(M2XFP)]
    initial = np.arange(10, dtype=np.uint32) << 23
    groups = [operand.groups().numpy() for operand in packed]
    found = dot_bits(*M2XFP, *groups, initial=initial)
    wanted = dot(*packed, initial=from_bits("fp32", initial))
    assert np.array_equal(found, to_bits(wanted))


def test_operands_that_do_not_go_together():
    a = get_format("m2xfp-act").quantize(torch.ones(2, 64))
    w = get_format("m2xfp-weight").quantize(torch.ones(2, 64))
    with pytest.raises(TypeError, match="qw is Tensor; pass a PackedTensor"):
        dot(a, torch.ones(2, 64))
    with pytest.raises(InputError, match="accumulator='fp16'; choose one of: fp32"):
        dot(a, w, accumulator="fp16")
    with pytest.raises(InputError, match="K = 64, qw has K = 32"):
        matmul(a, get_format("m2xfp-weight").quantize(torch.ones(2, 32)))
    with pytest.raises(InputError, match=r"shape \(2, 64\), qw \(3, 64\)"):
        dot(a, get_format("m2xfp-weight").quantize(torch.ones(3, 64)))
    with pytest.raises(InputError, match="groups of 32, nvfp4 of 16"):
        dot(a, get_format("nvfp4").quantize(torch.ones(2, 64)))
    with pytest.raises(InputError, match="int4-asym has a zero point"):
        dot(a, get_format("int4-asym").quantize(torch.ones(2, 64)))
    plain = get_format("mxfp4").quantize(torch.ones(2, 64))
    with pytest.raises(InputError, match="fp32_subgroup needs one size"):
        dot(plain, plain, accumulator="fp32_subgroup")
    one = get_format("nvfp4").quantize(torch.ones(2, 64))
    two = get_format("nvfp4", tensor_scale="token").quantize(torch.ones(2, 64))
    with pytest.raises(InputError, match="a scale for each row"):
        dot(one, two)
    with pytest.raises(InputError, match="weights"):
        matmul(a, get_format("m2xfp-weight").quantize(torch.ones(2, 3, 64)))
    with pytest.raises(InputError, match="initial belongs to"):
        dot(a, w, accumulator="exact", initial=torch.zeros(2))
    with pytest.raises(TypeError, match="initial is no float32"):
        dot(a, w, initial=torch.zeros(2, dtype=torch.float64))
    with pytest.raises(InputError, match=r"initial has shape \(3,\)"):
        dot(a, w, initial=torch.zeros(3))
