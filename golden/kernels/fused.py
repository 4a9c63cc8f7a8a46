"""Which implementation computes: fused kernels where they exist, else the plain path.

The fused paths (``native``: compiled C++ on CPU; ``triton``: CUDA) serve every format from one
description (``plan``), and give the same bits as the plain path, which serves everything
everywhere. Choose with ``with computing("plain"):`` or the environment variable ``M2XFP_PATH``.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from m2xfp.errors import InputError, MissingToolError
from m2xfp.golden.formats.coder import AffineCoder
from m2xfp.golden.formats.scales import PowerOfTwoScale
from m2xfp.golden.kernels.plan import Plan, plan_of

if TYPE_CHECKING:
    from m2xfp.golden.formats.format import Format

__all__ = ["PATHS", "Kernels", "computing", "kernels"]

PATHS = ("auto", "plain", "fused")
_LEAST_CAPABILITY = (8, 0)  # bfloat16 conversions in hardware
_path: ContextVar[str | None] = ContextVar("m2xfp_path", default=None)


class Kernels(Protocol):
    """The fused path of one format; tensors are contiguous, planes [n, bytes], groups [n, group].

    ``unit`` is the tensor scale, a float32 scalar, or None for formats without one.
    """

    name: str

    def largest(self, groups: Tensor) -> Tensor:
        """Return the largest finite magnitude, a float32 scalar."""

    def quantize(
        self, groups: Tensor, codes: Tensor, scales: Tensor, meta: Tensor, unit: Tensor | None
    ) -> None:
        """Quantize groups into planes."""

    def fake_quantize(self, groups: Tensor, values: Tensor, unit: Tensor | None) -> None:
        """Quantize and dequantize groups."""

    def dequantize(
        self, codes: Tensor, scales: Tensor, meta: Tensor, values: Tensor, unit: Tensor | None
    ) -> None:
        """Dequantize planes into groups."""


@contextmanager
def computing(path: str) -> Iterator[None]:
    """Compute by ``path`` inside the block.

    ``auto``: fused where it can. ``plain``: never fused. ``fused``: MissingToolError where the
    fused path cannot run, saying what it lacks.
    """
    if path not in PATHS:
        raise InputError(f"path={path!r}; choose one of: {', '.join(PATHS)}")
    token = _path.set(path)
    try:
        yield
    finally:
        _path.reset(token)


def kernels(fmt: "Format", device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Return the fused path for ``fmt`` on ``device``, or None where the plain path computes.

    Where a fused path could serve but something is missing, the plain path does, and one warning a
    cause says why; if ``fused`` was asked for, it is an error.
    """
    path = _path.get() or os.environ.get("M2XFP_PATH", "auto")
    if path not in PATHS:
        raise InputError(f"M2XFP_PATH={path!r}; choose one of: {', '.join(PATHS)}")
    if path == "plain":
        return None
    if device.type not in ("cpu", "cuda"):
        if path == "fused":
            raise InputError(
                f"the fused paths compute on cpu and cuda, not on {device.type}; move the tensor, "
                "or leave the path to 'auto'"
            )
        return None
    scale = None if isinstance(fmt.coder, AffineCoder) else fmt.coder.scale
    if isinstance(scale, PowerOfTwoScale) and scale.zero:  # MicroMix's segments
        if path == "fused":
            raise InputError(
                f"the fused paths give a group of zeros the scale byte 0, this {fmt.name} "
                f"{scale.zero}; leave the path to 'auto'"
            )
        return None
    try:
        return _load(plan_of(fmt), device)
    except MissingToolError as error:
        if path == "fused":
            raise
        _warn(f"m2xfp computes on its plain path, which is slower: {error}")
        return None


@cache
def _warn(message: str) -> None:
    """Warn once a message."""
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _load(plan: Plan, device: torch.device) -> Kernels:
    """Return the kernels of a plan on a device; MissingToolError says what they lack."""
    if device.type == "cpu":
        from m2xfp.golden.kernels import native

        return native.kernels_of(plan)
    return _triton(device)(plan)


@cache
def _triton(device: torch.device) -> "Callable[[Plan], Kernels]":
    """Return what makes the kernels of a CUDA device."""
    try:
        from m2xfp.golden.kernels import triton_kernels
    except ImportError as error:
        raise MissingToolError("triton for the fused CUDA path", "pip install triton") from error
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        raise MissingToolError(
            f"a GPU of compute capability {'.'.join(map(str, _LEAST_CAPABILITY))} for the fused "
            f"CUDA path, this one has {'.'.join(map(str, capability))}",
            "a newer GPU",
        )
    return triton_kernels.kernels_of
