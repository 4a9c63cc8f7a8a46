"""Holding every fused path against the plain path, on every kind of stimulus, bit for bit."""

from functools import cache

import numpy as np
import torch

from m2xfp.formats import BLOCK_FORMATS
from m2xfp.golden import PackedTensor, computing, dot, get_format, matmul
from m2xfp.golden.bits import from_bits, to_bits
from m2xfp.tb.parts import value_stimulus

KINDS = ("bf16", "fp16", "fp32")
FORMATS = tuple((name, {}) for name in BLOCK_FORMATS)
# Fixed group maxima for the runs over all patterns of a 16-bit type.
MAXIMA = (0.0, 2.0**-20, 1.75, 6.5)


def _options(name: str) -> list[dict]:
    """Return option sets of a format: every value of every option, one at a time, and layouts."""
    block = BLOCK_FORMATS[name]
    sets: list[dict] = [{"ties": "away" if block.ties == "even" else "even"}]
    values = {
        "scale_rule": ("ceil", "rtn1", "rtn2", "even"),
        "tensor_scale": ("auto", 1.0, 0.003, 1e-44, 3e38, 1 / 3),
        "scale_mode": ("pot", "pot-r", "float", "e4m3", "e5m2"),
        "adaptive": (False,),
        "search": ("fixed",),
    }
    for option, choices in values.items():
        if option in block.options:
            sets += [{option: value} for value in choices]
    if "search" in block.options:
        sets += [{"search": "fixed", "fraction_bits": bits} for bits in (5, 12)]
        sets += [{"scale_rule": "rtn1", "ties": "away"}, {"group": 64, "subgroup": 16}]
    proven = (8, 16) if name == "m2nvfp4-weight" else (8, 16, 64, 256)
    for group in proven:
        layout = {"group": group}
        if block.metadata.bits:
            layout["subgroup"] = min(group, block.metadata.subgroup)
        if name != "smx4" or group >= 8:
            sets.append({k: v for k, v in layout.items() if k in block.options})
    if "subgroup" in block.options:
        sets += [{"subgroup": size} for size in (1, 2, block.group)]
    return [options for options in sets if options]


OPTION_SETS = tuple((name, options) for name in BLOCK_FORMATS for options in _options(name))
CASES = (*FORMATS, *OPTION_SETS)


@cache
def whole_stimulus(
    kind: str, group: int, count: int, seed: int, maxima: tuple[float, ...]
) -> torch.Tensor:
    """Return groups of every distribution, and all patterns of a 16-bit type beside ``maxima``."""
    parts = [
        value_stimulus.groups(name, kind, count, seed, group)
        for name in value_stimulus.DISTRIBUTIONS
    ]
    if kind != "fp32":
        parts += [value_stimulus.all_patterns(kind, amax, group) for amax in maxima]
    return from_bits(kind, np.concatenate(parts))


def differences(name, options, x, device="cpu", path="fused") -> int:
    """Count groups that differ from the plain path on the CPU: packed, fake-quantized, decoded."""
    fmt = get_format(name, **options)
    with computing("plain"):
        packed = fmt.quantize(x)
        values = to_bits(fmt.fake_quantize(x))
    with computing(path):
        found = fmt.quantize(x.to(device))
        fake = to_bits(fmt.fake_quantize(x.to(device)))
        back = to_bits(packed.to(device).dequantize(x.dtype))
    wrong = (found.groups().cpu() != packed.groups()).any(-1).sum()
    return int(wrong) + int((fake != values).sum()) + int((back != values).sum())


def decode_differences(name, options, device="cpu", path="fused", count=2000) -> int:
    """Count values of random packed bytes that decode otherwise than on the plain path."""
    fmt = get_format(name, **options)
    data = value_stimulus.packed_groups(count, seed=3, size=sum(fmt.block.group_bytes))
    for row, scale in enumerate((0, 1, 2, 253, 254, 255) * 20):
        data[row, fmt.block.group_bytes[0]] = scale  # the scale comes after the codes
    level = 0.3 if fmt.level == "auto" else fmt.level
    scale = None if level is None else torch.tensor(level)
    packed = PackedTensor.from_groups(fmt, torch.from_numpy(data).unsqueeze(1), None, scale)
    total = 0
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with computing("plain"):
            wanted = to_bits(packed.dequantize(dtype))
        with computing(path):
            found = to_bits(packed.to(device).dequantize(dtype))
        total += int((wanted != found).sum())
    return total


def product_differences(device: str) -> int:
    """Count results of dot and matmul that differ between the CPU and ``device``."""
    rng = np.random.default_rng(5)
    a, w = (
        PackedTensor.from_groups(
            get_format(name),
            torch.from_numpy(rng.integers(0, 256, (64, 6, 18), dtype=np.uint8)),
        )
        for name in ("m2xfp-act", "m2xfp-weight")
    )
    total = 0
    for accumulator in ("fp32", "fp32_subgroup", "exact"):
        for product in (dot, matmul):
            here = to_bits(product(a, w, accumulator))
            there = to_bits(product(a.to(device), w.to(device), accumulator))
            total += int((here != there).sum())
    return total


def case_differences(
    name: str,
    options: dict,
    device: str,
    count: int,
    seed: int,
    maxima: tuple[float, ...] = (),
    kinds: tuple[str, ...] = KINDS,
) -> list[str]:
    """Return one line for every comparison of a format with the plain path that fails."""
    bad = []
    group = get_format(name, **options).block.group
    for kind in kinds:
        x = whole_stimulus(kind, group, count, seed, maxima)
        if wrong := differences(name, options, x, device):
            bad.append(f"{name} {options} {kind}: {wrong} differ")
    if wrong := decode_differences(name, options, device, count=200):
        bad.append(f"{name} {options}: packed bytes decode otherwise, {wrong} values")
    return bad


def plain_differences(name: str, device: str) -> list[str]:
    """Return one line for every comparison of a format's plain path on both devices that fails."""
    bad = []
    group = get_format(name).block.group
    for kind in KINDS:
        if differences(name, {}, whole_stimulus(kind, group, 40, 78, ()), device, path="plain"):
            bad.append(f"{name} {kind}: differ")
    if decode_differences(name, {}, device, path="plain"):
        bad.append(f"{name}: packed bytes decode otherwise")
    return bad
