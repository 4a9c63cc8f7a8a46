"""Which implementation computes: fused kernels where they exist, else the plain path.

The fused paths (``native``: compiled C++ on CPU; ``triton``: CUDA) serve every format from one
description (``plan``), and give the same bits as the plain path, which serves everything
everywhere. Choose with ``with computing("plain"):`` or the environment variable ``M2XFP_PATH``.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from m2xfp.environment import PATHS, asked_path
from m2xfp.errors import InputError, NoFusedPathError
from m2xfp.golden.kernels.plan import Plan, plan_of, unserved

if TYPE_CHECKING:
    from m2xfp.golden.formats.format import Format

__all__ = ["Kernels", "chosen_path", "computing", "kernels", "refuse_forced", "warn_once"]

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

    ``auto``: fused where it can. ``plain``: never fused. ``fused``: an error where the fused path
    cannot serve, NoFusedPathError for what it lacks, InputError for what it does not compute.
    """
    if path not in PATHS:
        raise InputError(f"path={path!r}; choose one of: {', '.join(PATHS)}")
    token = _path.set(path)
    try:
        yield
    finally:
        _path.reset(token)


def chosen_path() -> str:
    """Return the path asked for; InputError if the environment asks for none that there is."""
    return _path.get() or asked_path()


def refuse_forced(what: str) -> None:
    """Raise InputError if the fused path was asked for; ``what`` it does not compute."""
    if chosen_path() == "fused":
        raise InputError(f"no fused path {what}, or compute by 'auto' or 'plain'")


def kernels(fmt: "Format", device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Return the fused path for ``fmt`` on ``device``, or None where the plain path computes.

    Where a fused path could serve but something is missing, the plain path does, and one warning a
    cause says why; if ``fused`` was asked for, it is an error.
    """
    path = chosen_path()
    if path == "plain":
        return None
    if device.type not in ("cpu", "cuda"):
        if path == "fused":
            raise InputError(
                f"the fused paths compute on cpu and cuda, not on {device.type}; move the tensor, "
                "or leave the path to 'auto'"
            )
        return None
    if (lacking := unserved(fmt)) is not None:
        if path == "fused":
            raise InputError(f"{lacking}; leave the path to 'auto'")
        return None
    try:
        return _load(plan_of(fmt), device)
    except NoFusedPathError as error:
        if path == "fused":
            raise
        warn_once(error)
        return None


def warn_once(error: NoFusedPathError) -> None:
    """Warn that the plain path computes, once a cause."""
    _warn(f"m2xfp computes on its plain path, which is slower: {error}")


@cache
def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)


def _load(plan: Plan, device: torch.device) -> Kernels:
    """Return the kernels of a plan on a device; NoFusedPathError says what they lack."""
    if device.type == "cpu":
        from m2xfp.golden.kernels import native

        return native.kernels_of(plan)
    return _triton(device)(plan)


def _triton(device: torch.device) -> "Callable[[Plan], Kernels]":
    """Return what makes the kernels of a CUDA device; NoFusedPathError if they cannot run there."""
    trouble = cuda_trouble(device)
    if trouble is not None:
        raise trouble.with_traceback(None)
    from m2xfp.golden.kernels import triton_kernels

    return triton_kernels.kernels_of


@cache
def cuda_trouble(device: torch.device) -> NoFusedPathError | None:
    """Return what keeps fused kernels from running on a CUDA device, or None.

    A small kernel is compiled: Triton needs a C compiler, and a folder that it can write.
    """
    try:
        from m2xfp.golden.kernels import triton_kernels
    except ImportError as error:
        return NoFusedPathError("CUDA", f"Triton ({error})", "pip install triton")
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        least, found = (".".join(map(str, pair)) for pair in (_LEAST_CAPABILITY, capability))
        return NoFusedPathError(
            "CUDA",
            f"a GPU of compute capability {least} (this one has {found})",
            "leave the path to 'auto', which takes the plain one there",
        )
    try:
        triton_kernels.probe(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return NoFusedPathError(
            "CUDA",
            f"a Triton that compiles ({said})",
            "install a C compiler (apt-get install gcc) and set TRITON_CACHE_DIR to a folder with "
            "room",
        )
    return None
