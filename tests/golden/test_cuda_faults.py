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
    "rows: fields mixed up": (
        "rows_gluon.py", ">> (2 * lane) & 3", ">> (2 * lane) & 1", ROWS),
}  # fmt: skip


def _copy(target: Path) -> Path:
    """Copy the package, what golden needs of it, and return its kernels."""
    package = Path(m2xfp.__file__).resolve().parent
    shutil.copytree(
        package, target / "m2xfp", ignore=shutil.ignore_patterns(
            "rtl", "tb", "synth", "fpga", "models", "golden", "commands", "__pycache__"
        ),
    )  # fmt: skip
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
