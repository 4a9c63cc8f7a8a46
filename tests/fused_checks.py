"""Holding every fused path against the plain path, on every kind of stimulus, bit for bit."""

import numpy as np
import stimulus
import torch

from m2xfp.formats import BLOCK_FORMATS
from m2xfp.golden import PackedTensor, computing, dot, get_format, matmul
from m2xfp.golden.bits import from_bits, to_bits

FUSED = (
    ("mxfp4", {}),
    ("m2xfp-act", {}),
    ("m2xfp-weight", {}),
    ("m2xfp-weight", {"adaptive": False}),
)
KINDS = ("bf16", "fp16", "fp32")


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
    data = stimulus.packed_groups(count, seed=3, size=sum(fmt.block.group_bytes))
    for row, scale in enumerate((0, 1, 2, 253, 254, 255) * 20):
        data[row, fmt.block.group_bytes[0]] = scale  # the scale comes after the codes
    scale = torch.tensor(0.3) if options.get("tensor_scale") else None
    packed = PackedTensor.from_groups(fmt, torch.from_numpy(data).unsqueeze(1), None, scale)
    total = 0
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with computing("plain"):
            wanted = to_bits(packed.dequantize(dtype))
        with computing(path):
            found = to_bits(packed.to(device).dequantize(dtype))
        total += int((wanted != found).sum())
    return total


def all_stimulus(kind: str, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Return tensors [n, 32] by name: every distribution, and all patterns of 16-bit types."""
    groups = {name: stimulus.groups(name, kind, count, seed) for name in stimulus.DISTRIBUTIONS}
    if kind != "fp32":
        for amax in (0.0, 2.0**-20, 1.75, 6.5):
            groups[f"all patterns, {amax:g}"] = stimulus.all_patterns(kind, amax)
    return {name: from_bits(kind, raw) for name, raw in groups.items()}


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


def check_device(device: str, count: int = 20000) -> list[str]:
    """Return one line for every comparison with the CPU's plain path that fails."""
    bad = []
    for kind in KINDS:
        for label, x in all_stimulus(kind, count, seed=77).items():
            for name, options in FUSED:
                wrong = differences(name, options, x, device)
                if wrong:
                    bad.append(f"{name} {options} {kind} {label}: {wrong} differ, fused")
            for name in BLOCK_FORMATS:
                part = x[:500]
                wrong = differences(name, {}, part, device, path="plain")
                if wrong:
                    bad.append(f"{name} {kind} {label}: {wrong} differ, plain")
    for name, options in FUSED:
        if decode_differences(name, options, device):
            bad.append(f"{name} {options}: packed bytes decode otherwise, fused")
    for name in BLOCK_FORMATS:
        if decode_differences(name, {}, device, path="plain"):
            bad.append(f"{name}: packed bytes decode otherwise, plain")
    if product_differences(device):
        bad.append("dot or matmul differ")
    return bad
