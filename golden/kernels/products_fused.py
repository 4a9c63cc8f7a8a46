"""Which implementation multiplies: compiled kernels where they exist, else the plain path.

CUDA: ``products_triton`` (and ``products_gluon`` on Hopper); CPU: ``products_native``. Each gives
the bits of the plain path in golden/formats/products.py. ``computing`` and ``M2XFP_PATH`` choose as
they do for the formats.
"""

import os
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from m2xfp.errors import InputError, MissingToolError
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels import fused

__all__ = ["fast_linear", "fast_matmul"]


@torch.compiler.disable  # its kernels are compiled already, and a compiler would trace into them
def fast_matmul(
    qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int, dtype: torch.dtype
) -> Tensor | None:
    """Return the product of the rows of both in ``dtype``; None where the plain path serves.

    Shapes are those of ``matmul``, on CUDA also those of ``batched_matmul``; ``lanes`` values make
    one addend. InputError if the fused path is demanded and cannot serve.
    """
    path = fused._path.get() or os.environ.get("M2XFP_PATH", "auto")
    if path == "plain" or not qa.codes.numel() or not qw.codes.numel():
        return None
    found = _kernels(qa.device)
    if isinstance(found, str):
        if path == "fused" and qa.device.type in ("cpu", "cuda"):
            raise MissingToolError(found, "M2XFP_PATH=auto, which takes the plain path then")
        return None
    if not found.serves(qa, qw, accumulator, lanes):
        if path == "fused":
            raise InputError(
                f"no fused product of {qa.format.block.name} and {qw.format.block.name} with the "
                f"{accumulator} accumulator on {qa.device.type}; compute it by 'auto' or 'plain'"
            )
        return None
    product: Tensor = found.matmul(qa, qw, accumulator, lanes, dtype)
    return product


@torch.compiler.disable
def fast_linear(x: Tensor, weight: PackedTensor) -> Tensor | None:
    """Return x [..., K] times the rows of a packed weight, decoded; None where that is no gain.

    For a few rows of bfloat16 on CUDA: reading the weight is what they cost.
    """
    if x.device.type != "cuda" or x.numel() > 2 * x.shape[-1]:
        return None
    path = fused._path.get() or os.environ.get("M2XFP_PATH", "auto")
    found = _kernels(x.device)
    if path == "plain" or isinstance(found, str):
        return None
    product: Tensor | None = found.few_rows(x.reshape(-1, x.shape[-1]), weight)
    return None if product is None else product.reshape(*x.shape[:-1], -1)


@cache
def _kernels(device: torch.device) -> ModuleType | str:
    """Return the kernels for a device, or what is missing; that is said once, as a warning."""
    if device.type == "cuda":
        missing = _no_cuda(device)
        if missing is None:
            from m2xfp.golden.kernels import products_triton

            return products_triton
    elif device.type == "cpu":
        from m2xfp.golden.kernels import products_native

        missing = products_native.missing()
        if missing is None:
            return products_native
    else:
        return f"products on {device.type}"
    warnings.warn(
        f"products are computed on the plain path, which is slow: there is no {missing}",
        RuntimeWarning,
        stacklevel=4,
    )
    return missing


def _no_cuda(device: torch.device) -> str | None:
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "GPU with bfloat16 tensor cores (compute capability 8.0)"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton for products on CUDA"
    return None
