"""Which implementation computes: fused kernels where they exist, else the plain path.

The fused paths (``native``: compiled C++ on CPU; ``triton``: CUDA) serve MXFP4 and M2XFP in their
default layout, and give the same bits as the plain path, which serves everything everywhere. Choose
with ``with computing("plain"):`` or the environment variable ``M2XFP_PATH``.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from m2xfp.errors import InputError, MissingToolError
from m2xfp.golden.formats.coder import ScaledCoder
from m2xfp.golden.formats.metadata import SubgroupScale
from m2xfp.golden.formats.scales import PowerOfTwoScale

if TYPE_CHECKING:
    from m2xfp.golden.formats.format import Format

__all__ = ["PATHS", "Kernels", "computing", "kernels"]

PATHS = ("auto", "plain", "fused")
_path: ContextVar[str | None] = ContextVar("m2xfp_path", default=None)


class Kernels(Protocol):
    """What a fused path offers; tensors are contiguous, planes [n, bytes], groups [n, 32]."""

    def quantize(
        self,
        groups: Tensor,
        codes: Tensor,
        scales: Tensor,
        meta: Tensor,
        metadata: str,
        adaptive: bool,
    ) -> None:
        """Quantize groups into planes."""

    def fake_quantize(self, groups: Tensor, values: Tensor, metadata: str, adaptive: bool) -> None:
        """Quantize and dequantize groups."""

    def dequantize(
        self, codes: Tensor, scales: Tensor, meta: Tensor, values: Tensor, metadata: str
    ) -> None:
        """Dequantize planes into groups."""


@contextmanager
def computing(path: str) -> Iterator[None]:
    """Compute by ``path`` inside the block.

    ``auto``: fused where it can. ``plain``: never fused. ``fused``: MissingToolError where the
    fused path of a format that has one cannot run.
    """
    if path not in PATHS:
        raise InputError(f"path={path!r}; choose one of: {', '.join(PATHS)}")
    token = _path.set(path)
    try:
        yield
    finally:
        _path.reset(token)


def _serves(fmt: "Format", dtype: torch.dtype) -> bool:
    """Whether the kernels compute this composition: E2M1, E8M0 by the floor rule, 32 and 8."""
    coder, block = fmt.coder, fmt.block
    if not isinstance(coder, ScaledCoder) or coder.split or block.ties != "even":
        return False
    if not isinstance(coder.scale, PowerOfTwoScale) or coder.scale.rule != "floor":
        return False
    if (block.element.name, block.group, coder.scale.zero) != ("e2m1", 32, 0):
        return False
    if block.metadata.bits and block.metadata.subgroup != 8:
        return False
    refinement = coder.refinement
    return not isinstance(refinement, SubgroupScale) or refinement.is_exact(dtype)


def kernels(fmt: "Format", device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Return the fused path for ``fmt`` on ``device``, or None where the plain path computes."""
    path = _path.get() or os.environ.get("M2XFP_PATH", "auto")
    if path not in PATHS:
        raise InputError(f"M2XFP_PATH={path!r}; choose one of: {', '.join(PATHS)}")
    if path == "plain" or not _serves(fmt, dtype):
        return None
    try:
        return _load(device)
    except MissingToolError:
        if path == "fused":
            raise
        return None


def _load(device: torch.device) -> Kernels | None:
    """Return the kernels of a device; None if there are none for its type."""
    if device.type == "cpu":
        from m2xfp.golden.kernels import native

        native.load()
        return native
    if device.type == "cuda":
        try:
            from m2xfp.golden.kernels import triton_kernels
        except ImportError as error:
            raise MissingToolError(
                "triton for the fused CUDA path", "pip install triton"
            ) from error
        return triton_kernels
    return None
