"""Presets of ``m2xfp.presets`` against the libraries themselves, group by group.

Each check quantizes the same groups with the library and with the format that stands for it, and
counts the groups of which any code or scale differs, save for the sign of zeros, which not all
keep. All run on what is installed.
"""

import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.presets import PRESETS

__all__ = ["CHECKS", "Theirs", "compared", "sample"]

Theirs = tuple[Tensor, Tensor]
"""Codes [n, group] and scales [n, 1] of a library, as numbers or as bytes."""


def sample(groups: int, group: int, seed: int = 0) -> Tensor:
    """Return groups of bfloat16 values in float32, as language models have them.

    A third is normal, a third has outliers, a third lies on ties of E2M1; scales are 2^-12 to 2^11.
    No infinity and no NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, group, generator=generator)
    third = groups // 3
    x[:third] *= torch.rand(third, group, generator=generator) ** -0.5
    ties = torch.randint(-24, 25, (third, group), generator=generator) / 4
    x[third : 2 * third] = ties
    power = torch.randint(-12, 12, (groups, 1), generator=generator)
    return torch.ldexp(x, power).bfloat16().float()


def _ours(name: str, x: Tensor) -> tuple[PackedTensor, Theirs]:
    packed = get_format(name).quantize(x)
    codes, scales, _ = packed.unpack()
    return packed, (codes.flatten(0, -2), scales.flatten(0, -2))


def _nibbles(packed: Tensor, group: int) -> Tensor:
    """Return E2M1 codes [n, group], the even element in the low nibble."""
    data = packed.view(torch.uint8)
    return torch.stack((data & 15, data >> 4), -1).reshape(-1, group).long()


def _torchao(theirs: str, x: Tensor) -> Theirs:
    from torchao.prototype.mx_formats import mx_tensor, nvfp4_tensor

    kind, _, how = theirs.partition(", ")
    if kind == "NVFP4":
        level = None
        if how == "two levels":
            level = nvfp4_tensor.per_tensor_amax_to_scale(x.abs().amax())
        scales, codes = nvfp4_tensor.nvfp4_quantize(x, 16, level)
        return _nibbles(codes, 16), scales.view(torch.uint8).long().reshape(-1, 1)
    types = {
        "MXFP4": torch.float4_e2m1fn_x2,
        "MXFP8 E4M3": torch.float8_e4m3fn,
        "MXFP6 E2M3": "fp6_e2m3",
    }
    mode = mx_tensor.ScaleCalculationMode[how]
    scales, codes = mx_tensor.to_mx(x, types[kind], 32, mode)
    found = _nibbles(codes, 32) if kind == "MXFP4" else codes.view(torch.uint8).long()
    return found, scales.view(torch.uint8).long().reshape(-1, 1)


def _compressed_tensors(theirs: str, x: Tensor) -> Theirs:
    """Return scales of the MX formats, scales and values of NVFP4."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import (
        calculate_qparams,
        generate_gparam,
        generate_mx_scales,
    )

    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    if theirs != "nvfp4":
        bits = 4 if theirs == "mxfp4" else 8
        scales = generate_mx_scales(x.abs().amax(-1, keepdim=True), bits)
        return scales.new_zeros(len(x), 0).long(), scales.long()
    args = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16,
        scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    level = generate_gparam(x.amin(), x.amax())
    scales, zero = calculate_qparams(low, high, args, level)
    values = quantize(x, scales, zero, args, global_scale=level)
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = torch.searchsorted(grid, values.float().abs()) + 8 * torch.signbit(values).long()
    return codes, scales.to(torch.float8_e4m3fn).view(torch.uint8).long()


def _gguf(_: str, x: Tensor) -> Theirs:
    from gguf.quants import MXFP4

    found = torch.from_numpy(MXFP4.quantize_blocks(x.numpy())).long()
    low, high = found[:, 1:] & 15, found[:, 1:] >> 4
    return torch.cat((low, high), -1), found[:, :1]


def _modelopt(theirs: str, x: Tensor) -> Theirs:
    from modelopt.torch.quantization.qtensor import MXFP4QTensor, NVFP4QTensor

    if theirs == "MXFP4":
        found, scales = MXFP4QTensor.quantize(x.clone(), 32)
        return _nibbles(found._quantized_data, 32), scales.long().reshape(-1, 1)
    found, scales, _ = NVFP4QTensor.quantize(x.clone(), 16)
    return _nibbles(found._quantized_data, 16), scales.view(torch.uint8).long().reshape(-1, 1)


def _gfloat(theirs: str, x: Tensor) -> Tensor:
    """Return the values that gfloat quantizes to, which it decodes itself."""
    import gfloat
    from gfloat import formats

    block = getattr(formats, f"format_info_{theirs}")
    rows = x.double().numpy()
    found = [gfloat.quantize_block(block, row, gfloat.compute_scale_amax) for row in rows]
    return torch.from_numpy(np.stack(found))


CHECKS: dict[str, tuple[str, Callable[[str, Tensor], Any], int]] = {
    "torchao": ("torchao", _torchao, 6000),
    "compressed-tensors": ("compressed_tensors", _compressed_tensors, 6000),
    "gfloat": ("gfloat", _gfloat, 60),
    "gguf": ("gguf", _gguf, 6000),
    "modelopt": ("modelopt", _modelopt, 6000),
}
"""Library -> its package, what gives its codes and scales or values, and how many groups."""


def compared(library: str) -> Iterator[tuple[str, str, Tensor, Tensor, Tensor]]:
    """Compare all presets of a library.

    Yields
    ------
    The library with its version, the subject, which groups differ (bool), and both sides' scales,
    or largest values, for an example.
    """
    _, quantize, groups = CHECKS[library]
    name = f"{library} {version('nvidia-modelopt' if library == 'modelopt' else library)}"
    for preset in PRESETS[library]:
        x = sample(groups, get_format(preset.ours).block.group)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries say of each other's versions
            theirs = quantize(preset.theirs, x)
        packed, ours = _ours(preset.ours, x)
        if isinstance(theirs, Tensor):
            values = packed.dequantize().double()
            different = (values != theirs).any(-1)
            sides = theirs.abs().amax(-1), values.abs().amax(-1)
        else:
            # Only what the library gives: some give scales alone.
            bad = theirs[1] != ours[1]
            if theirs[0].shape[-1]:
                zero = 1 << (packed.format.block.element.bits - 1)
                codes = [torch.where(codes == zero, 0, codes) for codes in (theirs[0], ours[0])]
                bad = bad | (codes[0] != codes[1]).any(-1, keepdim=True)
            different = bad.squeeze(-1)
            sides = theirs[1].squeeze(-1), ours[1].squeeze(-1)
        yield name, f"{preset.theirs} = {preset.ours}", different, *sides
