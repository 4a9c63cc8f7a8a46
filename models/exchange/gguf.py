"""The MXFP4 and NVFP4 blocks of GGUF files (llama.cpp).

MXFP4: 17 bytes for 32 values: the E8M0 byte, then 16 bytes with elements i and i + 16. NVFP4: 36
bytes for 64 values: four E4M3 bytes, then for each of the four groups of 16 values 8 bytes with
elements i and i + 8. Codes are the E2M1 codes. The package gguf is not needed for this.
Source: gguf 0.19, quants.py.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.models.exchange.planes import as_bytes, folded_nibbles, paired_nibbles
from m2xfp.models.exchange.record import Layout, Packed, Planes, Quantized, assembled

__all__ = ["BLOCKS", "GGUF_LAYOUTS", "LEVEL", "blocks_of", "from_blocks"]

BLOCKS = {"MXFP4": ("mxfp4", 32, 17), "NVFP4": ("nvfp4", 64, 36)}
"""By ggml's name of a type: the format, values and bytes of a block."""

LEVEL = ":scale"
"""Behind a weight's name, that of its tensor scale until it is written as NAME.scale."""

# ggml's decoders take the NaN of a scale for something else: in MXFP4 for 2^128, in NVFP4 for 0.
_NAN_MX, _NAN_NV = 255, 127


def from_blocks(kind: str, blocks: Tensor, tensor_scale: Tensor | None = None) -> Quantized:
    """Return the weight of the bytes of a GGUF tensor.

    Parameters
    ----------
    kind
        ``MXFP4`` or ``NVFP4``.
    blocks
        uint8 [..., bytes of a row].
    tensor_scale
        With NVFP4: the tensor that stands beside it as NAME.scale, float32, one value or one for
        each expert.

    Raises
    ------
    InputError, TypeError
        No such type, rows that are no whole blocks, or an MXFP4 scale of byte 255, which ggml
        decodes as 2^128 and OCP as NaN.
    """
    if kind not in BLOCKS:
        raise InputError(f"blocks of {kind} are none of: {', '.join(BLOCKS)}")
    name, values, size = BLOCKS[kind]
    data = as_bytes("blocks", blocks)
    if data.shape[-1] % size:
        raise InputError(
            f"blocks has rows of {data.shape[-1]} bytes; {kind} has {size} for {values} values"
        )
    parts = data.unflatten(-1, (-1, size))
    groups = size - values // 2
    scales, folded = parts[..., :groups], parts[..., groups:]
    codes = paired_nibbles(folded.unflatten(-1, (groups, -1))).flatten(-3)
    scales = scales.flatten(-2)
    if kind == "MXFP4":
        if not scales.is_meta and (count := int((scales == _NAN_MX).sum())):
            raise InputError(f"blocks has {count} scales of byte 255, which is no number")
        return assembled(get_format(name), codes, scales)
    # The sign bit is not looked at, and 127 gives zeros.
    scales = scales & 127
    scales = torch.where(scales == _NAN_NV, 0, scales).to(torch.uint8)
    fmt = get_format(name) if tensor_scale is None else get_format(name, tensor_scale="auto")
    return assembled(fmt, codes, scales, tensor_scale)


def blocks_of(packed: Packed) -> tuple[str, Tensor]:
    """Return ggml's type and the bytes of a weight, uint8 [..., bytes of a row].

    A tensor scale does not stand in the blocks; write it beside them as NAME.scale.

    Raises
    ------
    InputError
        The format is neither MXFP4 nor NVFP4, it has several tensor scales, rows are no whole
        blocks, or a scale is NaN.
    """
    if not isinstance(packed, PackedTensor):
        raise InputError("experts have a tensor scale each, which GGUF blocks do not hold")
    found = [item for item in BLOCKS.items() if item[1][0] == packed.format.name]
    if not found:
        raise InputError(f"GGUF has no {packed.format.name}; it has MXFP4 and NVFP4")
    kind, (_, values, size) = found[0]
    if packed.format.block.group != values // (size - values // 2):
        raise InputError(f"GGUF has no {packed.format.key}, only the usual group")
    if packed.shape[-1] % values:
        raise InputError(f"rows of {packed.shape[-1]} values are no blocks of {values}")
    nan = _NAN_MX if kind == "MXFP4" else _NAN_NV
    if not packed.scales.is_meta and (count := int((packed.scales == nan).sum())):
        raise InputError(f"{count} scales are NaN, which GGUF does not have")
    groups = size - values // 2
    scales = packed.scales.unflatten(-1, (-1, groups))
    codes = packed.codes.unflatten(-1, (-1, groups, values // groups // 2))
    return kind, torch.cat((scales, folded_nibbles(codes).flatten(-2)), -1).flatten(-2)


def _read(planes: Planes, kind: str) -> Quantized:
    return from_blocks(kind, planes["codes"], planes.get("tensor_scale"))


def _write(packed: Packed) -> dict[str, Tensor]:
    planes = packed.planes()
    found = {"codes": blocks_of(packed)[1]}
    if "tensor_scale" in planes:
        found["tensor_scale"] = planes["tensor_scale"].reshape(1)
    return found


def _layout(kind: str, fmt: str, level: Mapping[str, str]) -> Layout:
    return Layout(
        name=f"gguf-{kind.lower()}",
        library="llama.cpp",
        format=fmt,
        suffixes={"codes": "", **level},
        read=partial(_read, kind=kind),
        write=_write,
        settings=lambda ignored: {},
        accepts=lambda config: False,  # no folder has it
    )


GGUF_LAYOUTS = {
    layout.name: layout
    for layout in (
        _layout("MXFP4", "mxfp4", {}),
        _layout("NVFP4", "nvfp4:tensor_scale=auto", {"tensor_scale": LEVEL}),
    )
}
"""What a GGUF file's quantized weights can be, by the name that ``--to`` takes."""
