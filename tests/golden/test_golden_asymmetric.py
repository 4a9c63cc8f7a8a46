"""Products of groups with two scales against exact rationals."""

import numpy as np
import pytest
import reference
import torch
from golden_checks import spec_of

from m2xfp.errors import InputError
from m2xfp.formats import Window
from m2xfp.golden import PackedTensor, dot, get_format, matmul
from m2xfp.golden.bits import from_bits, to_bits
from m2xfp.golden.formats.products import running_exact, running_fp32
from m2xfp.tb.parts import value_stimulus

SCALES = ("pot", "e5m2", "e4m3", "float")
QUIET_NAN = 0x7FC00000
PAIRS = [
    ("amxfp4", "amxfp4"),
    ("amxfp4", "mxfp4"),
    ("amxfp4", "mxfp4:scale_mode=e5m2"),
    ("amxfp4:scale_mode=pot", "mxfp4"),
    ("amxfp4:scale_mode=pot", "amxfp4:scale_mode=pot"),
    ("amxfp4:scale_mode=e4m3", "mxfp4:scale_mode=e4m3"),
    ("amxfp4:scale_mode=e4m3", "amxfp4:scale_mode=e4m3"),
    ("amxfp4:scale_mode=e4m3", "amxfp4"),
    ("amxfp4:scale_mode=float", "mxfp4:scale_mode=float"),
    ("amxfp4:scale_mode=float", "amxfp4:scale_mode=float"),
    ("mxfp4", "amxfp4"),
    ("amxfp4", "m2xfp-weight"),
    ("amxfp4:group=16", "nvfp4"),
]


def spec(name: str) -> reference.Spec:
    plain, _, options = name.partition(":")
    given = dict(part.split("=") for part in options.split(",") if part)
    return spec_of(plain, **{k: int(v) if v.isdigit() else v for k, v in given.items()})


def any_groups(name: str, rows: int, groups: int, seed: int, spread: int | None) -> PackedTensor:
    """Groups of any bytes; exponents of scales within ``spread`` of one another."""
    fmt, rng = get_format(name), np.random.default_rng(seed)
    codes, scales, meta = fmt.block.group_bytes
    data = rng.integers(0, 256, (rows, groups, codes + scales + meta), np.uint8)
    data[..., :codes] *= rng.random((rows, groups, codes)) < rng.random((rows, groups, 1))
    size = fmt.block.scale.bits // 8
    poison = list(fmt.block.scale.nan.to_bytes(size, "little"))
    if spread is not None:
        grid = fmt.block.scale.grid
        count = 2 if fmt.block.scaling == "split" else 1
        field = fmt.block.scale.bias + rng.integers(-spread, spread + 1, (rows, groups, count))
        if grid is None:
            stored = np.clip(field, 0, 254).astype("u1")[..., None]
        else:
            field = np.clip(field, 0, (1 << grid.exponent_bits) - 2)
            mantissa = rng.integers(0, 1 << grid.mantissa_bits, field.shape)
            stored = (field << grid.mantissa_bits | mantissa).astype(
                "<u4" if fmt.block.scale.bits == 32 else "u1"
            )
            stored = stored[..., None].view("u1")
        data[..., codes : codes + scales] = stored.reshape(rows, groups, scales)
    data[0, -1, codes + scales - size : codes + scales] = poison  # of the others, if there are two
    return PackedTensor.from_groups(fmt, torch.from_numpy(data))


def reference_rows(packed: PackedTensor) -> list[list[reference.Group]]:
    parts = [part.tolist() for part in packed.unpack()]
    return [
        [
            reference.Group(tuple(c), tuple(s), tuple(m))
            for c, s, m in zip(*(p[row] for p in parts), strict=True)
        ]
        for row in range(len(packed.codes))
    ]


def check(names: tuple[str, str], packed: tuple[PackedTensor, PackedTensor], accumulator: str):
    specs = tuple(spec(name) for name in names)
    found = to_bits(dot(*packed, accumulator=accumulator))
    for row, pair in enumerate(zip(*(reference_rows(p) for p in packed), strict=True)):
        wanted = reference.dot(specs, pair, accumulator)
        assert int(found[row]) == wanted, (names, row, hex(int(found[row])), hex(wanted), pair)
    return found


@pytest.mark.parametrize("accumulator", ["fp32", "exact"])
@pytest.mark.parametrize("names", PAIRS, ids=lambda pair: " x ".join(pair))
def test_any_bytes(names, accumulator):
    """NaN scales, infinities of E5M2, zeros, subnormals, scales far apart and near."""
    specials = set()
    for spread in (None, 1, 8):
        packed = tuple(any_groups(name, 12, 4, 40 + i, spread) for i, name in enumerate(names))
        if spread is not None:  # a group that takes back most of the one before it
            for operand, turn in zip(packed, (0x88, 0), strict=True):
                operand.codes[:, 1], operand.scales[:, 1] = (
                    operand.codes[:, 0],
                    operand.scales[:, 0],
                )
                operand.codes[:, 1] ^= turn
        found = check(names, packed, accumulator)
        specials |= {"NaN" if bits == QUIET_NAN else "number" for bits in found.tolist()}
    assert specials == {"NaN", "number"}


@pytest.mark.parametrize("accumulator", ["fp32", "exact"])
@pytest.mark.parametrize("mode", SCALES)
def test_quantized_values(mode, accumulator):
    name = f"amxfp4:scale_mode={mode}"
    values = [
        from_bits("fp32", value_stimulus.groups("heavy", "fp32", 12, 3 + i, 96)) for i in (0, 1)
    ]
    for other in (name, f"mxfp4:scale_mode={mode}"):
        packed = [get_format(n).quantize(v) for n, v in zip((name, other), values, strict=True)]
        check((name, other), tuple(packed), accumulator)


@pytest.mark.parametrize("ends", [(0, 40), (20, 60), (115, 135), (200, 254), (240, 254)])
def test_subnormal_and_overflowing_sums(ends):
    names = ("amxfp4:scale_mode=pot", "amxfp4:scale_mode=pot")
    packed = []
    for i, name in enumerate(names):
        operand = any_groups(name, 20, 4, 60 + i, 3)
        drawn = np.random.default_rng([61, i]).integers(*ends, operand.scales.shape)
        operand.scales.copy_(torch.from_numpy(drawn.astype(np.uint8)))
        packed.append(operand)
    for accumulator in ("fp32", "exact"):
        check(names, tuple(packed), accumulator)


def one_group(codes: dict[int, int], scales: tuple[int, ...], name: str) -> PackedTensor:
    """Return one group with these codes by lane, zeros elsewhere."""
    data = torch.zeros(1, 1, 16 + len(scales), dtype=torch.uint8)
    for lane, code in codes.items():
        data[0, 0, lane // 2] |= code << 4 * (lane % 2)
    data[0, 0, 16:] = torch.tensor(scales)
    return PackedTensor.from_groups(get_format(name), data)


def test_the_order_of_the_terms():
    """A one that a large pp swallows before nn takes that back, and that pn + np would keep."""
    name = "amxfp4:scale_mode=pot"
    # Lanes: pp, pn, np, nn. Scales 2^30 for p, 1 for n: terms 2^60, -2^30, -2^30, 1.
    a = one_group({0: 2, 1: 2, 2: 10, 3: 10}, (157, 127), name)
    w = one_group({0: 2, 1: 10, 2: 2, 3: 10}, (157, 127), name)
    assert dot(a, w).item() == float(np.float32(2.0**60) - np.float32(2.0**30))
    running = running_fp32(a, w)
    assert running.shape == (1, 1, 4)
    # 2^60 is left alone by all that is below half of its last place, 2^36.
    assert running.flatten().tolist() == [2.0**60] * 4
    small = one_group({0: 2, 1: 10, 2: 2, 3: 10}, (127, 157), name)
    # pp = 2^30, pn = -2^60, np = -1, nn = 2^30: each is rounded where it comes.
    assert running_fp32(a, small).flatten().tolist()[0] == 2.0**30
    assert running_fp32(a, small).flatten().tolist()[1:] == [-(2.0**60)] * 3
    exact = dot(a, small, accumulator="exact")
    assert exact.item() == float(np.float32(-(2.0**60) + 2 * 2.0**30 - 1))


def test_ties_in_a_term():
    """1 + 2^-24 in the second term rounds to even, with anything more up."""
    name = "amxfp4:scale_mode=pot"
    one = one_group({0: 2, 1: 10}, (127, 103), name)
    up = one_group({0: 2, 1: 10, 2: 9}, (127, 103), name)
    ones = one_group({0: 2, 1: 10, 2: 10}, (127,), "mxfp4")
    assert dot(one, ones).item() == 1.0
    assert dot(up, ones).item() == 1.0 + 2.0**-23


def test_matmul_is_dot_of_rows():
    generator = torch.Generator().manual_seed(5)
    for name in ("amxfp4", "mxfp4"):
        qa = get_format("amxfp4").quantize(torch.randn(2, 3, 80, generator=generator))
        qw = get_format(name).quantize(torch.randn(5, 80, generator=generator))
        product = matmul(qa, qw)
        for n in range(5):
            row = PackedTensor.from_planes(
                qw.format,
                {k: p[n : n + 1].expand(6, *p.shape[1:]) for k, p in qw.planes().items()},
                (6, 80),
            )
            flat = PackedTensor.from_planes(
                qa.format, {k: p.flatten(0, 1) for k, p in qa.planes().items()}, (6, 80)
            )
            assert torch.equal(product[..., n].flatten(), dot(flat, row))
        plain = qa.dequantize().double() @ qw.dequantize().double().T
        assert torch.allclose(product.double(), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [PAIRS[0], PAIRS[1], PAIRS[4], PAIRS[6]])
@pytest.mark.parametrize("at_once", [1, 2])
def test_windows(names, at_once):
    """The running exact sums against fractions: left out below, NaN above and where it outgrows."""
    packed = tuple(any_groups(name, 6, 8, 70 + i, 6) for i, name in enumerate(names))
    blocks = [p.format.block for p in packed]
    specs = tuple(spec(name) for name in names)
    biases = sum(b.scale.bias + (b.scale.grid.mantissa_bits if b.scale.grid else 0) for b in blocks)
    middle = sum(block.scale.bias for block in blocks)
    window = Window("test", middle - 5, middle + 6, 33)
    first = torch.zeros(6, 8, dtype=torch.bool)
    first[:, 5] = True
    acc, inexact = running_exact(*packed, first, window, at_once=at_once)
    acc_bits, seen = to_bits(acc), set()
    for row, (a, w) in enumerate(zip(*(reference_rows(p) for p in packed), strict=True)):
        total, nan, bad, terms = 0, False, False, 0
        for group in range(8):
            if group in (0, 5):
                total, nan, bad = 0, False, False
            for number, term in enumerate(reference.terms(specs, (a[group], w[group]), 32)):
                one, other = classes(specs, number)
                place = field(specs[0], a[group].scales[one]) + field(
                    specs[1], w[group].scales[other]
                )
                if term is None:
                    nan = True
                elif term and place < window.lowest:
                    bad = True
                elif term and place > window.highest:
                    nan = bad = True
                elif term:
                    total += term
                limit = reference.pow2(window.lowest - biases - 2 + window.bits - 1)
                if (number + 1) % at_once == 0:
                    if not -limit <= total < limit:
                        nan = bad = True
                    at = group, number // at_once
                    wanted = (
                        QUIET_NAN
                        if nan
                        else reference.to_bits("fp32", (int(total < 0), abs(total)))
                    )
                    assert (int(acc_bits[row][at]), bool(inexact[row][at])) == (wanted, bad), (
                        row,
                        at,
                    )
                    seen.add((nan, bad))
                terms += 1
    assert {(False, False), (False, True), (True, True)} <= seen


def classes(specs, number: int) -> tuple[int, int]:
    if specs[1].sides == 1:
        return number, 0
    return number // 2, number % 2


def field(one: reference.Spec, stored: int) -> int:
    if one.scale == "e8m0":
        return stored
    bits = {"e5m2": 2, "e4m3-480": 3, "e4m3": 3}[one.scale]
    return max((stored & 0x7F) >> bits, 1)


def test_what_is_refused():
    asymmetric = get_format("amxfp4").quantize(torch.ones(2, 64))
    affine = get_format("int4-asym").quantize(torch.ones(2, 64))
    weight = get_format("m2xfp-weight").quantize(torch.ones(2, 64))
    with pytest.raises(InputError, match="int4-asym has a zero point"):
        dot(asymmetric, affine)
    with pytest.raises(InputError, match=r"amxfp4 has two scales a group.*fp32 or exact"):
        dot(asymmetric, weight, accumulator="fp32_subgroup")
    with pytest.raises(InputError, match="lanes=8: groups with two scales are added whole"):
        running_fp32(asymmetric, weight, lanes=8)
    wide = get_format("amxfp4:scale_mode=float").quantize(torch.ones(2, 64))
    with pytest.raises(InputError, match="8-bit scales"):
        running_exact(wide, wide)


@pytest.mark.parametrize("other", ["amxfp4", "mxfp4"])
def test_one_rounding_of_float_scales(other):
    """A sum of 59 bits is taken back: what float32 left of it has the bits that float64 lacks."""
    names = ("amxfp4:scale_mode=float", f"{other}:scale_mode=float")
    packed = []
    for name, mantissa in zip(names, (1, 3), strict=True):
        fmt = get_format(name)
        data = torch.zeros(1, 2, sum(fmt.block.group_bytes), dtype=torch.uint8)
        data[..., :14] = 0x77  # 28 products of 144, one of 64 and one of 1: 4097
        data[..., 14] = 0x16
        scale = torch.tensor(list((0x3F800000 + mantissa).to_bytes(4, "little")))
        data[..., 16:] = scale.repeat(fmt.block.group_bytes[1] // 4)
        packed.append(data)
    packed[0][:, 1, :15] |= 0x88
    operands = [
        PackedTensor.from_groups(get_format(n), d) for n, d in zip(names, packed, strict=True)
    ]
    (found,) = check(names, tuple(operands), "fp32").view(np.float32)
    assert found == -(2.0**-23) * (1 + 3 * 2.0**-13 + 2.0**-23)
