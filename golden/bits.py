"""The golden model on raw bit patterns: numpy in, numpy out, for simulators and stored vectors."""

import numpy as np
import numpy.typing as npt
import torch

from m2xfp.errors import InputError
from m2xfp.formats import Window, input_type
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import dot, running_exact, running_fp32
from m2xfp.golden.kernels.operators import shielded

__all__ = [
    "Arrays",
    "dot_bits",
    "from_bits",
    "quantize_bits",
    "round_to_bits",
    "running_exact_bits",
    "running_fp32_bits",
    "to_bits",
]

Arrays = dict[str, npt.NDArray[np.generic]]
"""Bits by name, as the functions of golden/units/ return them."""

_TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@shielded
def from_bits(kind: str, raw: npt.NDArray[np.generic]) -> torch.Tensor:
    """Return the tensor whose values have the patterns ``raw`` (uint16, or uint32 for fp32)."""
    width = input_type(kind).width
    if not isinstance(raw, np.ndarray) or raw.dtype != np.dtype(f"uint{width}"):
        found = getattr(raw, "dtype", type(raw).__name__)
        raise TypeError(f"raw is {found}; {kind} patterns are a numpy array of uint{width}")
    signed = np.ascontiguousarray(raw).view(f"int{width}")
    return torch.from_numpy(signed.copy()).view(_TORCH[kind])


@shielded
def to_bits(x: torch.Tensor) -> npt.NDArray[np.generic]:
    """Return the patterns of a bfloat16, float16 or float32 tensor as uint16 or uint32."""
    width = 8 * x.element_size()
    signed = {16: torch.int16, 32: torch.int32}[width]
    patterns: npt.NDArray[np.generic] = x.detach().contiguous().cpu().view(signed).numpy()
    return patterns.view(f"uint{width}")


@shielded
def round_to_bits(kind: str, x: torch.Tensor) -> npt.NDArray[np.generic]:
    """Return the patterns of ``x``, rounded to the input type ``kind``."""
    return to_bits(x.to(_TORCH[input_type(kind).name]))


@shielded
def quantize_bits(
    fmt: Format | str, kind: str, raw: npt.NDArray[np.generic]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Quantize raw patterns.

    Parameters
    ----------
    fmt
        A format, or its name.
    kind
        Input type: ``bf16``, ``fp16`` or ``fp32``.
    raw
        uint16 (uint32 for fp32) [n, group].

    Returns
    -------
    codes, scales, meta: uint8 [n, bytes a group]; meta is [n, 0] for formats without metadata.
    """
    fmt = get_format(fmt) if isinstance(fmt, str) else fmt
    x = from_bits(kind, raw)
    if x.ndim != 2 or x.shape[1] != fmt.block.group:
        raise InputError(f"raw has shape {tuple(x.shape)}; {fmt.name} takes [n, {fmt.block.group}]")
    packed = fmt.quantize(x)
    meta = packed.codes.new_empty(len(x), 0) if packed.meta is None else packed.meta
    return packed.codes.numpy(), packed.scales.numpy(), meta.numpy()


@shielded
def dot_bits(
    fmt_a: Format | str,
    fmt_w: Format | str,
    groups_a: npt.NDArray[np.uint8],
    groups_w: npt.NDArray[np.uint8],
    accumulator: str = "fp32",
    initial: npt.NDArray[np.uint32] | None = None,
) -> npt.NDArray[np.uint32]:
    """Contract packed groups, any bytes, row by row.

    Parameters
    ----------
    fmt_a, fmt_w
        Formats, or their names.
    groups_a, groups_w
        uint8 [n, G, bytes a group], the group form (18 bytes for M2XFP).
    accumulator
        As ``dot`` takes it.
    initial
        uint32 [n], float32 patterns that the fp32 accumulators start from; by default +0.

    Returns
    -------
    uint32 [n], float32 patterns.
    """
    start = None if initial is None else from_bits("fp32", initial)
    a, w = _from_groups(fmt_a, groups_a), _from_groups(fmt_w, groups_w)
    return to_bits(dot(a, w, accumulator, start)).view(np.uint32)


@shielded
def running_fp32_bits(
    fmt_a: Format | str,
    fmt_w: Format | str,
    groups_a: npt.NDArray[np.uint8],
    groups_w: npt.NDArray[np.uint8],
    first: npt.NDArray[np.bool_],
    lanes: int | None = None,
) -> npt.NDArray[np.uint32]:
    """Return ``running_fp32`` of packed groups, any bytes: float32 patterns.

    Parameters
    ----------
    fmt_a, fmt_w
        Formats, or their names.
    groups_a, groups_w
        uint8 [n, G, bytes a group].
    first
        bool [n, G]: start from +0 before that group.
    lanes
        Products of an addend; None for those of a group.

    Returns
    -------
    uint32 [n, G, addends a group].
    """
    a, w = _from_groups(fmt_a, groups_a), _from_groups(fmt_w, groups_w)
    return to_bits(running_fp32(a, w, torch.from_numpy(first.copy()), lanes)).view(np.uint32)


@shielded
def running_exact_bits(
    fmt_a: Format | str,
    fmt_w: Format | str,
    groups_a: npt.NDArray[np.uint8],
    groups_w: npt.NDArray[np.uint8],
    first: npt.NDArray[np.bool_],
    window: Window,
    lanes: int | None = None,
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Return ``running_exact`` of packed groups, any bytes: float32 patterns, and ``inexact``.

    Parameters
    ----------
    fmt_a, fmt_w
        Formats, or their names.
    groups_a, groups_w
        uint8 [n, G, bytes a group].
    first
        bool [n, G]: start from zero before that group.
    window
        Exponents that the accumulator is built for.
    lanes
        Products of an addend; None for those of a group.

    Returns
    -------
    uint32 [n, G] and bool [n, G]; with ``lanes`` [n, G, addends a group].
    """
    a, w = _from_groups(fmt_a, groups_a), _from_groups(fmt_w, groups_w)
    acc, inexact = running_exact(a, w, torch.from_numpy(first.copy()), window, lanes)
    return to_bits(acc).view(np.uint32), inexact.numpy()


def _from_groups(fmt: Format | str, groups: npt.NDArray[np.uint8]) -> PackedTensor:
    fmt = get_format(fmt) if isinstance(fmt, str) else fmt
    return PackedTensor.from_groups(fmt, torch.from_numpy(groups.copy()))
