"""Reading safetensors files, with an answer to every mistake."""

import os
from pathlib import Path

import torch
from torch import Tensor

from m2xfp.errors import InputError, unreadable

__all__ = ["read_tensor_header", "read_tensors"]

# What safetensors and PyTorch raise for files that are none, are cut off, or hold types and shapes
# that this PyTorch does not have.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    RuntimeError,
    OverflowError,
    MemoryError,
)


def read_tensors(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the texts and the tensors of a safetensors file; InputError for any other file."""
    from safetensors import SafetensorError, safe_open

    _require_file(path)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            texts = file.metadata() or {}
            return texts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, *_UNREADABLE) as error:
        raise unreadable(path, "is no safetensors file", error) from error


def read_tensor_header(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the texts of a safetensors file alone; InputError for any other file."""
    from safetensors import SafetensorError, safe_open

    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, *_UNREADABLE) as error:
        raise unreadable(path, "is no safetensors file", error) from error


def _require_file(path: str | os.PathLike[str]) -> None:
    try:
        there = Path(path).is_file()
    except ValueError:  # a name that no file can have
        there = False
    if not there:
        raise InputError(f"no file {os.fspath(path)!r}; give a safetensors file")
