"""Break each CUDA kernel by hand once: what the tests hold it against notices."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import m2xfp

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

M2XFP = '("m2xfp-act", "m2xfp-weight")'
E4M3 = '("mxfp8-e4m3", "mxfp8-e4m3")'
PRODUCT = (
    "from product_checks import Case, differences\n"
    "bad = sum(differences(case, 'cuda') for case in [{}])\n"
)
SAFE = PRODUCT.format(f"Case({M2XFP}, m=140, n=150, groups=40, spread=3, seed=1),")
ALL_SIZES = PRODUCT.format(f"Case({M2XFP}, m=140, n=70, groups=6, spread=9, nan=0.02, seed=2), "
                           f"Case({M2XFP}, m=9, n=70, groups=6, spread=3, seed=3)")  # fmt: skip
UNSAFE = PRODUCT.format(f"Case({M2XFP}, m=70, n=70, groups=8, center=48, spread=3, seed=4), "
                        f"Case({M2XFP}, m=70, n=70, groups=8, center=190, spread=6, "
                        "nan=0.01, seed=5)")  # fmt: skip
LIMBS = PRODUCT.format(f"Case({E4M3}, m=70, n=70, groups=30, spread=8, nan=0.01, seed=6), "
                       f"Case({E4M3}, m=70, n=70, groups=30, spread=3, seed=7)")  # fmt: skip
FEW_LIMBS = PRODUCT.format(f"Case({E4M3}, m=20, n=70, groups=30, spread=30, nan=0.01, seed=8), "
                           "Case(('mxfp8-e5m2', 'mxfp4'), m=40, n=70, groups=9)")  # fmt: skip
EXACT = PRODUCT.format(f"*(Case({M2XFP}, 'exact', m=20, n=70, groups=30, spread=s, "
                       "cancel=s > 100, nan=0.01, seed=s) for s in (8, 60, 120))")  # fmt: skip
EXACT_LIMBS = EXACT.replace(M2XFP, E4M3)
SUBGROUPS = PRODUCT.format(f"Case({M2XFP}, 'fp32_subgroup', m=140, n=70, groups=30, spread=3, "
                           "seed=10)")  # fmt: skip
MIDPOINT = """
import torch
from m2xfp.golden import PackedTensor, get_format, matmul
fmt = get_format("mxfp8-e4m3")
data = torch.zeros(70, 2, 33, dtype=torch.uint8)
data[:, 0, 0], data[:, :, 32] = 56, 127  # 1 in the first group
data[:, 1, :2] = torch.tensor([120, 1])  # 2^8 and 2^-9 in the second
a, w = (PackedTensor.from_groups(fmt, data.clone()) for _ in range(2))
a.scales[:, 1] = 127 - 40
bad = int((matmul(a.to("cuda"), w.to("cuda")) != 1 + 2.0**-23).sum())
"""
INPUTS = """
import torch
from m2xfp.golden import computing, get_format, matmul
from m2xfp.golden.formats.products import quantized_matmul
g = torch.Generator().manual_seed(1)
x, w = torch.randn(300, 1024, generator=g), torch.randn(70, 1024, generator=g)
x[130:150] *= 2.0 ** (50 * torch.randn(20, 1, generator=g))
x[140], w[7] = x[140] * 2.0**-70, w[7] * 2.0**-78
x[3, 5] = float("nan")
x, qw, fmt = x.bfloat16(), get_format("m2xfp-weight").quantize(w), get_format("m2xfp-act")
with computing("plain"):
    wanted = matmul(fmt.quantize(x), qw)
found = quantized_matmul(x.cuda(), fmt, qw.to("cuda")).cpu()
bad = int((found.view(torch.int32) != wanted.view(torch.int32)).sum())
"""
FORMAT = """
import torch
from m2xfp.golden import computing, get_format
g = torch.Generator().manual_seed(2)
x = torch.randn(500, 256, generator=g)
x = torch.cat((x, torch.randint(-31, 31, x.shape, generator=g) / 2.0)).bfloat16()
fmt = get_format("{}")
with computing("plain"):
    wanted = fmt.fake_quantize(x)
bad = int((fmt.fake_quantize(x.cuda()).cpu() != wanted).sum())
"""


def _format(name: str, **options: object) -> str:
    """Return the check of the tests' own comparison with the plain path, in three types."""
    return (
        "from fused_checks import case_differences\n"
        f"bad = case_differences({name!r}, {options!r}, 'cuda', 40, 77)\n"
    )


ROWS = """
import torch
from m2xfp.golden import get_format
from m2xfp.golden.kernels.rows_gluon import few_rows
g = torch.Generator().manual_seed(3)
qw = get_format("m2xfp-weight").quantize(torch.randn(70, 512, generator=g))
x = torch.randint(-3, 4, (9, 512), generator=g).bfloat16()
wanted = (x.double() @ qw.dequantize(torch.float32).double().T)
found = few_rows(x.cuda(), qw.to("cuda")).cpu().double()
bad = int(((found - wanted).abs() > 0.02 * wanted.abs() + 0.5).sum())
"""
# What is broken: file of golden/kernels, old text, new text, and the check that has to notice.
FAULTS = {
    "scaled: a group's sum is dropped": (
        "products_gluon.py", "if group > 0:\n                        acc = acc +",
        "if group > 1:\n                        acc = acc +", SAFE),
    "scaled: subgroups share their lanes": (
        "products_gluon.py", "gl.where(lane // LANES == part, values, 0.0)",
        "gl.where(lane // LANES >= part, values, 0.0)", SUBGROUPS),
    "limits: unsafe tiles pass as safe": (
        "products_facts.py", "return -128 + a.width + w.width, 125", "return -900, 900", UNSAFE),
    "scaled (Triton): addition in the tensor core": (
        "products_triton.py", "products = tl.dot(tl.load(from_a), tl.load(from_w))\n",
        "products = tl.dot(tl.load(from_a), tl.load(from_w)) * 1.0000001\n", ALL_SIZES),
    "decode: the last of equals is refined": (
        "products_decode.py", "(lane if F[9] else SUB - 1 - lane)", "lane", SAFE),
    "decode: NaN scales forgotten": (
        "products_decode.py", "bad = stored == 255\n", "bad = stored == 256\n", ALL_SIZES),
    "careful: exponents one off": (
        "products_triton.py", "tl.where(bad, _NAN_EXPONENT, exponent + UNIT), 2)",
        "tl.where(bad, _NAN_EXPONENT, exponent + UNIT + 1), 2)", UNSAFE),
    "careful: zeros change an accumulator": (
        "products_triton.py", "acc = tl.where(products == 0.0, acc, total.to(tl.float32))",
        "acc = tl.where(products == 0.0, 0.0, total.to(tl.float32))", UNSAFE),
    "fixed: carries dropped": (
        "products_triton.py", "total = carry\n", "total = carry * 0.0\n", EXACT),
    "limbs: limbs swapped": (
        "products_gluon.py", "high = s3 + 64 * s4", "high = s4 + 64 * s3", LIMBS),
    "limbs: rounded twice": (
        "assembly.py", "selp.f64 down, down, up, odd;\n", "", MIDPOINT),
    "limbs: NaN forgotten": (
        "products_gluon.py", 'gl.where(bad, float("nan"), acc.to', "gl.where(bad, 0.0, acc.to",
        LIMBS),
    "limbs: unsafe tiles pass as safe": (
        "products_facts.py", "return -149, 126 - bits, -1000", "return -9999, 9999, -1000",
        LIMBS.replace("spread=3", "spread=3, center=49")),
    "limbs (Triton): a carry dropped": (
        "assembly.py", "fma.rn.f64 d, h, 0d4110000000000000, l;",
        "fma.rn.f64 d, h, 0d4100000000000000, l;", FEW_LIMBS),
    "limbs (Triton): not rounded to odd": (
        "assembly.py", "selp.f64 down, down, up, stay;\n", "", MIDPOINT.replace("70", "3")),
    "exact limbs: carries dropped": (
        "products_limbs.py", "        one += up\n", "        one += up * 0\n", EXACT_LIMBS),
    "exact limbs: the rest is cut off": (
        "products_limbs.py", "total = to_odd(total, rest)", "total = to_odd(total, rest * 0.0)",
        EXACT_LIMBS),
    "inputs: exponents not noted": (
        "products_inputs.py", "(least >> 7) - 127", "(least >> 7) * 0", INPUTS),
    "inputs: unsafe rows not packed": (
        "products_inputs.py", "    if safe:\n", "    if least > -9999:\n", INPUTS),
    "affine: ties to the wrong side": (
        "triton_kernels.py", "tl.abs(other) > tl.abs(q), below, middle", "other > q, below, middle",
        FORMAT.format("int4-asym")),
    "words: the scale one power off": (
        "triton_kernels.py", "inverse = (254 - fitted) * 0x00800080",
        "inverse = (253 - fitted) * 0x00800080", FORMAT.format("m2xfp-act")),
    "format: a fixed grid's step doubled": (
        "triton_kernels.py", "pivot: tl.constexpr = grid.ratio * grid.least",
        "pivot: tl.constexpr = 2 * grid.ratio * grid.least", _format("mxint8")),
    "format: subnormals of an element forgotten": (
        "triton_kernels.py", "tl.maximum(_float(_bits(y) & 0x7F800000), grid.least)",
        "_float(_bits(y) & 0x7F800000)", _format("mxfp6-e3m2")),
    "format: codes of integers": (
        "triton_kernels.py", "(q * (1.0 / grid.least)).to", "(q * (0.5 / grid.least)).to",
        _format("int4")),
    "format: codes of minifloats": (
        "triton_kernels.py", "down: tl.constexpr = 2.0 ** (grid.bias - 127)",
        "down: tl.constexpr = 2.0 ** (grid.bias - 126)", _format("mxfp8-e4m3")),
    "format: an infinite element is NaN": (
        "triton_kernels.py", 'value = tl.where(code > grid.max_code, float("inf"), value)',
        'value = tl.where(code > grid.max_code, float("nan"), value)', _format("mxfp8-e5m2")),
    "format: a NaN element is a number": (
        "triton_kernels.py", "if grid.specials == 1:", "if grid.specials == 3:",
        _format("mxfp8-e4m3")),
    "format: the side of a remainder forgotten": (
        "triton_kernels.py", "side = tl.minimum(tl.maximum(_bits(rest), -1), 1)",
        "side = tl.minimum(tl.maximum(_bits(rest), 0), 0)", _format("nvfp4")),
    "format: the low part of a scale forgotten": (
        "triton_kernels.py", "rest = tl.fma(-p, low, rest)", "rest = tl.fma(-p, 0.0 * low, rest)",
        _format("nvfp4", tensor_scale=1 / 3)),
    "format: ties to even instead of away": (
        "triton_kernels.py", "side = 2 * side + 1", "side = 2 * side",
        _format("mxfp6-e2m3", ties="away")),
    "format: ties of 16 bits to even instead of away": (
        "triton_kernels.py", "inverse * 1.00000095367431640625", "inverse * 1.0",
        _format("mxfp6-e2m3", ties="away")),
    "format: quotients of 16 bits without their correction": (
        "triton_kernels.py", "y = tl.fma(tl.fma(-y, high, x), inverse, y)", "y = y * 1.0000002",
        _format("nvfp4")),
    "format: the scale's rule one off": (
        "triton_kernels.py", "(significand > plan.up)", "(significand >= plan.up)",
        _format("mxfp4", scale_rule="ceil")),
    "format: the scale's rule downwards": (
        "triton_kernels.py", "code -= (significand < plan.down)",
        "code -= (significand > 2 * plan.down)", _format("mxfp4", scale_rule="rtn1")),
    "format: subnormal maxima one power off": (
        "triton_kernels.py", "38, 24, 0)", "38, 23, 0)",
        _format("mxint8", scale_rule="ceil")),
    "format: scales above the largest": (
        "triton_kernels.py", "code = tl.minimum(tl.maximum(code, 0), 254)",
        "code = tl.minimum(tl.maximum(code, 0), 253)", _format("mxint8", scale_rule="ceil")),
    "format: the largest element of a fitted scale": (
        "triton_kernels.py", "high = unit * top\n", "high = unit * (top + 0.03)\n",
        _format("nvfp4")),
    "format: a scale of zero": (
        "triton_kernels.py", "code = tl.where(code == 0, one, code)", "code = code + 0 * one",
        _format("amxfp4")),
    "format: float scales of ties away": (
        "triton_kernels.py", "bitcast=True) + 1).to(tl.float64", "bitcast=True) + 0).to(tl.float64",
        _format("amxfp4", scale_mode="float")),
    "format: small float scales are not lifted": (
        "triton_kernels.py", "tl.where(value < 8.67e-19, 2.0**100,",
        "tl.where(value < 8.67e-19, 1.0,", _format("amxfp4", scale_mode="float")),
    "format: the first of equals is not refined": (
        "triton_kernels.py", "lane = plan.subgroup - 1 - tl.arange(0, plan.subgroup)",
        "lane = tl.arange(0, plan.subgroup)", _format("m2xfp-act", subgroup=32, group=32)),
    "format: a refinement's bias": (
        "triton_kernels.py", "coarse + field - 1, 0), fine)", "coarse + field, 0), fine)",
        _format("m2xfp-act")),
    "format: a refinement of two steps": (
        "triton_kernels.py", "field = tl.minimum(tl.maximum(fine_code + 1 - coarse, 0), 3)",
        "field = tl.minimum(tl.maximum(fine_code + 1 - coarse, 0), 2)", _format("m2nvfp4-act")),
    "format: a gain of the weight search": (
        "triton_kernels.py", "q * (2.0 * w.to(tl.float64) - level)",
        "q * (1.99 * w.to(tl.float64) - level)", _format("m2nvfp4-weight")),
    "format: the tensor scale forgotten in a gain": (
        "triton_kernels.py", "level = q * unit.to(tl.float64)", "level = q * 1.0",
        _format("m2nvfp4-weight", tensor_scale=1 / 3)),
    "format: equal multipliers": (
        "triton_kernels.py", "field = tl.where(gain > best, k, field)",
        "field = tl.where(gain >= best, k, field)", _format("m2nvfp4-weight")),
    "format: gains in whole numbers": (
        "triton_kernels.py", "((4 + k) * 2 ** (j + 5))", "((4 + k) * 2 ** (j + 5) + 1)",
        _format("m2xfp-weight")),
    "format: an inverse of a multiplier": (
        "triton_kernels.py", "0x3F2B3F2B", "0x3F2E3F2E", _format("m2xfp-weight")),
    "format: gains of two lanes": (
        "triton_kernels.py", "q = tl.fma(power, -ratio, tl.fma(power, ratio, w))",
        "q = tl.fma(power, -ratio, tl.fma(power, ratio, y))", _format("m2xfp-weight", subgroup=2)),
    "format: equal scales": (
        "triton_kernels.py", "won = (total >= best) & (fitted > 0)",
        "won = (total > best) & (fitted > 0)", _format("m2xfp-weight")),
    "format: equal scales of float32": (
        "triton_kernels.py", "won = total > best\n", "won = total >= best\n",
        _format("m2xfp-weight")),
    "format: the fixed search's view": (
        "triton_kernels.py", "w = tl.where(fixed == whole, fixed, odd)",
        "w = tl.where(fixed == whole, fixed, whole)",
        _format("m2xfp-weight", search="fixed", fraction_bits=5)),
    "format: both signs with one scale": (
        "triton_kernels.py", "second_largest = -tl.reduce(wide, 1, _nan_min)",
        "second_largest = first_largest", _format("amxfp4")),
    "format: a pair that reaches 1 is halved": (
        "triton_kernels.py", "small = tl.max(y, 2) < 1.0", "small = tl.max(y, 2) <= 1.0",
        _format("smx4")),
    "format: results rounded twice": (
        "triton_kernels.py", "mantissa: tl.constexpr = 7 if kind == tl.bfloat16 else 10",
        "mantissa: tl.constexpr = 8 if kind == tl.bfloat16 else 11",
        _format("nvfp4", tensor_scale=1 / 3)),
    "format: a group with NaN is finite": (
        "triton_kernels.py", "bits = tl.where(good, bits, _QUIET_NAN)", "bits = bits",
        _format("nvfp4")),
    "format: a NaN scale is not stored": (
        "triton_kernels.py", "tl.where(good, first, plan.nan), tl", "first, tl", _format("nvfp4")),
    "format: two minus zeros": (
        "triton_kernels.py", "signs = tl.where(q > 0, signs, 0)", "signs = signs + 0",
        _format("mxint8")),
    "format: a NaN scale is a number": (
        "triton_kernels.py", 'tl.where(code == 255, float("nan"), _power(code))', "_power(code)",
        _format("mxfp8-e4m3")),
    "format: six bits packed wrongly": (
        "triton_kernels.py", "middle = ((second >> 8) & 0xFFFF) | (third << 16)",
        "middle = ((second >> 8) & 0xFFFF) | (third << 15)", _format("mxfp6-e2m3")),
    "format: six bits unpacked wrongly": (
        "triton_kernels.py", "low = first | ((middle & 0xFF) << 16)",
        "low = first | ((middle & 0x7F) << 16)", _format("mxfp6-e2m3")),
    "format: four bits packed the wrong way round": (
        "triton_kernels.py", "(low | (high << 4)).to(tl.uint8)", "(high | (low << 4)).to(tl.uint8)",
        _format("nvfp4")),
    "format: four bits unpacked the wrong way round": (
        "triton_kernels.py", "tl.join(pairs & 15, pairs >> 4)", "tl.join(pairs >> 4, pairs & 15)",
        _format("nvfp4")),
    "words: the wrong half refined": (
        "triton_kernels.py", "tl.where((lane & 1) == 1, pair & -65536, pair << 16)",
        "tl.where((lane & 1) == 0, pair & -65536, pair << 16)", _format("m2xfp-act")),
    "words: the last of equals": (
        "triton_kernels.py", "lane = last - ((top >> 16) & last)", "lane = (top >> 16) & last",
        _format("m2xfp-act")),
    "words: the scale of 2^-127": (
        "triton_kernels.py", "scale << 7, 0x40) * 0x00010001", "scale << 7, 0x80) * 0x00010001",
        _format("mxfp4")),
    "words: signs in the codes": (
        "triton_kernels.py", "((words >> 24) & 0x80)", "((words >> 23) & 0x80)", _format("mxfp4")),
    "affine: half a step": (
        "triton_kernels.py", "part = tl.where(2 * rest == s, 0.5, part)",
        "part = tl.where(2 * rest == s, 0.25, part)", _format("int4-asym")),
    "affine: where float32 does not serve": (
        "triton_kernels.py", "near = (error == 0) & (step > 2.0**-80)",
        "near = (step > -1.0)", _format("int4-asym")),
    "affine: the offset's upper half": (
        "triton_kernels.py", "(wide_offset >> 32).to(tl.int32)", "(wide_offset >> 33).to(tl.int32)",
        _format("int4-asym")),
    "tensor scale: of an infinity": (
        "triton_kernels.py", "tl.where(bits < _INFINITE, bits, 0)", "bits",
        _format("nvfp4", tensor_scale="auto")),
    "rows: fields mixed up": (
        "rows_gluon.py", ">> (2 * lane) & 3", ">> (2 * lane) & 1", ROWS),
}  # fmt: skip


def _copy(target: Path) -> Path:
    """Copy the package with its golden model, the other rooms as links, and return its kernels."""
    package = Path(m2xfp.__file__).resolve().parent
    rooms = [path for path in package.iterdir() if path.is_symlink()]
    skipped = [path.name for path in rooms]
    shutil.copytree(
        package, target / "m2xfp", ignore=shutil.ignore_patterns("__pycache__", *skipped)
    )
    for room in rooms:
        if room.name != "golden":
            (target / "m2xfp" / room.name).symlink_to(room.resolve())
    shutil.copytree(
        (package / "golden").resolve(), target / "m2xfp" / "golden",
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    return target / "m2xfp" / "golden" / "kernels"


def _run(folder: Path, check: str) -> subprocess.CompletedProcess[str]:
    """Run a check on the package in a folder; its exit status is 3 where results differ."""
    paths = [str(folder), str(Path(__file__).parents[1])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    script = f"{check}\nimport sys\nsys.exit(3 if bad else 0)\n"
    return subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=folder, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_kernel_is_noticed(fault, tmp_path):
    name, old, new, check = FAULTS[fault]
    path = _copy(tmp_path) / name
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
    path.write_text(text.replace(old, new))
    found = _run(tmp_path, check)
    assert found.returncode == 3, found.stderr[-2000:]


@pytest.mark.parametrize("check", sorted({fault[-1] for fault in FAULTS.values()}))
def test_without_a_fault_nothing_is_noticed(check, tmp_path):
    _copy(tmp_path)
    found = _run(tmp_path, check)
    assert found.returncode == 0, found.stderr[-2000:]
