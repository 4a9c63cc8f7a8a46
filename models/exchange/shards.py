"""Safetensors files read and written tensor by tensor, so that memory holds one at a time."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.files import atomic_path
from m2xfp.models.layers import listed
from m2xfp.plain import parse_json, read_json

__all__ = ["Outline", "Shard", "Stored", "find_shards", "open_shard", "write_shard"]

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
_TYPES = {name: getattr(torch, own) for name, own in _NAMES.items() if hasattr(torch, own)}
_TYPE_NAMES = {kind: name for name, kind in _TYPES.items()}
_MOST_HEADER = 100_000_000  # bytes; what safetensors itself allows

Outline = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor, as PyTorch has them."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Members
    -------
    path
        The file.
    name
        Its name.
    dtype, shape
        As PyTorch has them: FP4 two a value of its type.
    begin
        Its first byte in the file.
    """

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return _bytes(self.dtype, self.shape)

    def read(self) -> Tensor:
        """Return the tensor, in memory of its own; InputError if the file ends before it does."""
        data = torch.empty(self.nbytes, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self.begin)
            found = file.readinto(cast(Any, data.numpy())) if self.nbytes else 0
        if found != self.nbytes:
            raise InputError(f"{os.fspath(self.path)!r} ends within {self.name}; it is cut off")
        return data.view(self.dtype).reshape(self.shape)

    def outline(self) -> Tensor:
        """Return a tensor of this type and shape without values, on the meta device."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class Shard:
    """A safetensors file.

    Members
    -------
    tensors
        Its tensors by name, in the order in which they stand.
    texts
        The texts in its header.
    """

    tensors: Mapping[str, Stored]
    texts: Mapping[str, str]


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


def open_shard(path: Path) -> Shard:
    """Return what a safetensors file holds; InputError if it is none, or damaged."""
    told = f"{os.fspath(path)!r} is no safetensors file"
    try:
        whole = path.stat().st_size
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > min(whole - 8, _MOST_HEADER):
                raise InputError(f"{told}: its header has {size} bytes, the file {whole}")
            header = parse_json(file.read(size), f"the header of {os.fspath(path)!r}")
    except OSError as error:
        raise InputError(f"{told}: {error}") from error
    if not isinstance(header, dict):
        raise InputError(f"{told}: its header is no table")
    texts = header.pop("__metadata__", None) or {}
    if not isinstance(texts, dict):
        raise InputError(f"{told}: its __metadata__ is no table")
    found = {}
    for name, facts in header.items():
        found[name] = _stored(path, name, facts, 8 + size, whole, told)
    tensors = dict(sorted(found.items(), key=lambda item: item[1].begin))
    return Shard(tensors, {str(name): str(text) for name, text in texts.items()})


def _stored(path: Path, name: str, facts: object, base: int, whole: int, told: str) -> Stored:
    """Return a tensor of a header, held against the size of the file."""
    try:
        if not isinstance(facts, dict):
            raise TypeError
        kind, shape = facts["dtype"], tuple(facts["shape"])
        begin, end = facts["data_offsets"]
        numbers = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        if not (isinstance(kind, str) and numbers):
            raise TypeError
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{told}: what it says of {name} is not understood") from error
    if kind not in _TYPES:
        raise InputError(f"{told} that can be read: {name} is {kind}; known: {', '.join(_TYPES)}")
    if kind == "F4":
        shape = (*shape[:-1], shape[-1] // 2) if shape else shape
    stored = Stored(path, name, _TYPES[kind], shape, base + begin)
    if end - begin != stored.nbytes or base + end > whole:
        raise InputError(f"{told}, or cut off: {name} is not of the size that its header says")
    return stored


def find_shards(folder: Path, stem: str = "model") -> list[Path]:
    """Return the weight files of a folder: one, or those that its index names.

    InputError if there are none, or one that the index names is missing.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        facts = read_json(index)
        places = facts.get("weight_map") if isinstance(facts, dict) else None
        if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
            raise InputError(f"{os.fspath(index)!r} is no index: it has no weight_map")
        names = sorted(set(places.values()))
        if strange := [name for name in names if Path(name).name != name]:
            raise InputError(f"{os.fspath(index)!r} names {strange[0]!r}, which is no file of it")
        there = {path.name for path in folder.iterdir()}  # a name may be too long to ask for
        if lost := [name for name in names if name not in there]:
            raise InputError(f"{os.fspath(folder)!r} lacks {listed(lost)}, which its index names")
        return [folder / name for name in names]
    single = folder / f"{stem}.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


@contextmanager
def write_shard(
    path: Path, outlines: Mapping[str, Outline], texts: Mapping[str, str]
) -> Iterator["_Writer"]:
    """Give a writer of a safetensors file, which is there when all its tensors are written.

    Parameters
    ----------
    path
        The file.
    outlines
        Type and shape of each tensor, in the order in which they will come.
    texts
        For the header.
    """
    header: dict[str, object] = {"__metadata__": dict(texts)} if texts else {}
    end = 0
    for name, (dtype, shape) in outlines.items():
        begin, end = end, end + _bytes(dtype, shape)
        told = list(shape)
        if _TYPE_NAMES[dtype] == "F4":
            told[-1] *= 2
        header[name] = {"dtype": _TYPE_NAMES[dtype], "shape": told, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        writer = _Writer(file, dict(outlines))
        yield writer
        if writer.left:
            raise AssertionError(f"{', '.join(writer.left)} were not written")
        file.flush()
        os.fsync(file.fileno())


class _Writer:
    """Takes the tensors of a file, one after the other."""

    def __init__(self, file: BinaryIO, left: dict[str, Outline]) -> None:
        self._file, self.left = file, left

    def put(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor."""
        expected = next(iter(self.left.items()))
        if expected != (name, (tensor.dtype, tuple(tensor.shape))):
            raise AssertionError(f"{name} {tensor.dtype} {tuple(tensor.shape)}; due: {expected}")
        del self.left[name]
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._file.write(cast(Any, data.numpy()))
