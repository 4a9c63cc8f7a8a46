"""Bytes of foreign checkpoints in another order: swizzled scales, split nibbles, wide codes."""

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.numeric import pack_bits, unpack_bits

__all__ = [
    "as_bytes",
    "e4m3_bytes",
    "e8m0_bytes",
    "folded_nibbles",
    "paired_nibbles",
    "swizzled",
    "swizzled_shape",
    "tight_codes",
    "unswizzled",
    "wide_codes",
]

# A tile of scales, as cuBLAS wants them: 128 rows of 4, as 32 rows of 16.
_ROWS, _COLUMNS = 128, 4


def as_bytes(name: str, tensor: Tensor, *types: str) -> Tensor:
    """Return a tensor of one-byte values as uint8; TypeError if it is of another type.

    Parameters
    ----------
    name
        For the message.
    tensor
        uint8, or one of ``types``.
    types
        Names of PyTorch's types that hold the same bytes.
    """
    known = [getattr(torch, kind) for kind in types if hasattr(torch, kind)]
    if tensor.dtype not in (torch.uint8, *known):
        raise TypeError(f"{name} is {tensor.dtype}; it must be {' or '.join(('uint8', *types))}")
    return tensor if tensor.dtype == torch.uint8 else tensor.view(torch.uint8)


def e8m0_bytes(scales: Tensor) -> Tensor:
    """Return E8M0 scales as bytes; byte 255 stays what it is, a NaN."""
    return as_bytes("scales", scales, "float8_e8m0fnu")


def e4m3_bytes(scales: Tensor) -> Tensor:
    """Return E4M3 scales as bytes; InputError for negative ones, which no group has."""
    found = as_bytes("scales", scales, "float8_e4m3fn")
    if not found.is_meta and (count := int((found > 127).sum())):
        raise InputError(f"scales has {count} bytes with the sign bit set; a scale is positive")
    return found


def swizzled_shape(rows: int, columns: int) -> tuple[int, int]:
    """Return the shape in which scales [rows, columns] stand swizzled."""
    return -(-rows // _ROWS) * 32, -(-columns // _COLUMNS) * 16


def swizzled(scales: Tensor) -> Tensor:
    """Return scales [rows, columns] in tiles of 128 x 4, padded with zeros."""
    rows, columns = scales.shape
    tall, wide = -(-rows // _ROWS), -(-columns // _COLUMNS)
    padded = scales.new_zeros(tall * _ROWS, wide * _COLUMNS)
    padded[:rows, :columns] = scales
    tiles = padded.reshape(tall, 4, 32, wide, _COLUMNS).permute(0, 3, 2, 1, 4)
    return tiles.reshape(swizzled_shape(rows, columns))


def unswizzled(name: str, scales: Tensor, rows: int, columns: int) -> Tensor:
    """Return scales [rows, columns] of their tiles; InputError if there are not so many."""
    tall, wide = -(-rows // _ROWS), -(-columns // _COLUMNS)
    if scales.numel() != tall * wide * _ROWS * _COLUMNS:
        raise InputError(
            f"{name} has shape {tuple(scales.shape)}; {rows} x {columns} scales in tiles of "
            f"{_ROWS} x {_COLUMNS} are {tall * wide * _ROWS * _COLUMNS} bytes"
        )
    tiles = scales.reshape(tall, wide, 32, 4, _COLUMNS).permute(0, 3, 2, 1, 4)
    return tiles.reshape(tall * _ROWS, wide * _COLUMNS)[:rows, :columns].contiguous()


def paired_nibbles(folded: Tensor) -> Tensor:
    """Return bytes [..., n] of elements i and i + n as bytes of elements 2 i and 2 i + 1."""
    codes = torch.cat((folded & 15, folded >> 4), -1)
    return codes[..., 0::2] | codes[..., 1::2] << 4


def folded_nibbles(paired: Tensor) -> Tensor:
    """Return bytes [..., n] of elements 2 i and 2 i + 1 as bytes of elements i and i + n."""
    codes = torch.stack((paired & 15, paired >> 4), -1).flatten(-2)
    half = paired.shape[-1]
    return codes[..., :half] | codes[..., half:] << 4


def tight_codes(codes: Tensor, bits: int) -> Tensor:
    """Return codes [..., K] of one byte each without gaps, little-endian, as this project packs."""
    lead = codes.shape[:-1]
    packed: Tensor = pack_bits(codes.reshape(-1, codes.shape[-1]).long(), bits)
    return packed.reshape(*lead, -1)


def wide_codes(packed: Tensor, bits: int) -> Tensor:
    """Return packed codes as one byte each."""
    count = packed.shape[-1] * 8 // bits
    codes = unpack_bits(packed.reshape(-1, packed.shape[-1]), bits, count)
    return codes.to(torch.uint8).reshape(*packed.shape[:-1], count)
