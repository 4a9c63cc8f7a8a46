"""Which implementation multiplies: compiled kernels where they exist, else the plain path.

CUDA: ``products_triton`` (and ``products_gluon`` on Hopper); CPU: ``products_native``. Each gives
the bits of the plain path in golden/formats/products.py. ``computing`` and ``M2XFP_PATH`` choose as
they do for the formats.
"""

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from m2xfp.errors import InputError, NoFusedPathError
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.fused import chosen_path, cuda_trouble, refuse_forced, warn_once

if TYPE_CHECKING:
    from m2xfp.golden.formats.format import Format

__all__ = ["MOST_ROWS", "fast_inputs", "fast_matmul", "fast_rows"]

MOST_ROWS = 16
"""Rows of floats from which on a packed weight is decoded first."""


def fast_matmul(
    qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int, dtype: torch.dtype
) -> Tensor | None:
    """Return the product of the rows of both in ``dtype``; None where the plain path serves.

    Shapes are those of ``matmul``, on CUDA also those of ``batched_matmul``; ``lanes`` values make
    one addend. InputError or NoFusedPathError if the fused path is demanded and cannot serve.
    """
    path = chosen_path()
    if path == "plain" or not qa.codes.numel() or not qw.codes.numel():
        return None
    if qa.device.type not in ("cpu", "cuda"):
        refuse_forced(f"multiplies on {qa.device.type}; move the operands to cpu or cuda")
        return None
    found = _kernels(qa.device)
    if isinstance(found, NoFusedPathError):
        if path == "fused":
            raise found.with_traceback(None)
        warn_once(found)
        return None
    if not found.serves(qa, qw, accumulator, lanes):
        if path == "fused":
            why = getattr(found, "lacking", lambda *_: "")(qa, qw, accumulator, lanes)
            raise InputError(
                f"no fused product of {qa.format.block.name} and {qw.format.block.name} with the "
                f"{accumulator} accumulator on {qa.device.type}{why and ': ' + why}; compute it "
                "by 'auto' or 'plain'"
            )
        return None
    product: Tensor | None = found.matmul(qa, qw, accumulator, lanes, dtype)
    if product is None and path == "fused":
        raise InputError(
            "no fused product of infinite elements on the CPU; compute it by 'auto' or 'plain'"
        )
    return product


def fast_inputs(
    x: Tensor, fmt: "Format", qw: PackedTensor, accumulator: str, lanes: int, dtype: torch.dtype
) -> Tensor | None:
    """Return the rows x [M, K], quantized, times those of ``qw``; None where that is no one step.

    Where it is, on Hopper, the quantized values go to tensor cores without being packed.
    """
    if x.device.type != "cuda" or chosen_path() == "plain" or not x.numel() or not qw.shape[0]:
        return None
    found = _kernels(x.device)
    if isinstance(found, NoFusedPathError):
        return None
    product: Tensor | None = found.multiply_inputs(x, fmt, qw, accumulator, lanes, dtype)
    return product


def fast_rows(x: Tensor, weight: PackedTensor) -> Tensor | None:
    """Return x [M, K] times the rows of a packed weight, decoded; None where that is no gain.

    For a few rows of bfloat16 on CUDA: reading the weight is what they cost.
    """
    if x.device.type != "cuda" or chosen_path() == "plain":
        return None
    kernels = _row_kernels(x.device)
    if kernels is None:
        return None
    product: Tensor | None = kernels.few_rows(x, weight)
    return product


@cache
def _row_kernels(device: torch.device) -> ModuleType | None:
    """Return the kernels for a few rows, or None: a Triton without Gluon, or none that runs."""
    if cuda_trouble(device) is not None:
        return None
    try:
        from m2xfp.golden.kernels import rows_gluon
    except ImportError:
        return None
    return rows_gluon


@cache
def _kernels(device: torch.device) -> ModuleType | NoFusedPathError:
    """Return the kernels for a CPU or a CUDA device, or what they lack."""
    if device.type == "cuda":
        trouble = cuda_trouble(device)
        if trouble is not None:
            return trouble
        from m2xfp.golden.kernels import products_triton

        return products_triton
    from m2xfp.golden.kernels import products_native

    return products_native.missing() or products_native
