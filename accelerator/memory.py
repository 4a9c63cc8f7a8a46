"""The accelerator's memory: free bytes, and the matrices that lie in it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format

__all__ = ["Allocator", "Matrix", "Values", "type_name", "value_type"]

ALIGNMENT = 128
"""Bytes: a group of FP32 values, so that everything may begin where an allocation does."""


_EXACT = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float32,  # 5 bits of exponent and 10 of significand fit in 8 and 23
}


def value_type(dtype: torch.dtype, name: str) -> torch.dtype:
    """Return the type, float32 or bfloat16, in which memory holds every value of a type exactly.

    Raises
    ------
    InputError
        There is none, with the ``name`` of the tensor.
    """
    if dtype not in _EXACT:
        raise InputError(
            f"{name}: its values are {type_name(dtype)}; pass float32, bfloat16 or float16"
        )
    return _EXACT[dtype]


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a type without that of its package."""
    return str(dtype).removeprefix("torch.")


class Allocator:
    """Free bytes of a memory, first fit.

    Parameters
    ----------
    start, length
        The memory.
    """

    def __init__(self, start: int, length: int) -> None:
        first = -(-start // ALIGNMENT) * ALIGNMENT
        self.free = {first: max(0, start + length - first)}
        self._used: dict[int, int] = {}

    def allocate(self, length: int) -> int:
        """Return the address of free bytes; InputError if there are not so many together."""
        size = -(-max(1, length) // ALIGNMENT) * ALIGNMENT
        for start, free in sorted(self.free.items()):
            if free >= size:
                del self.free[start]
                if free > size:
                    self.free[start + size] = free - size
                self._used[start] = size
                return start
        raise InputError(
            f"length={length}: the accelerator's memory has no room; release matrices first"
        )

    def release(self, address: int) -> None:
        """Give bytes back; InputError if none were given at this address."""
        size = self._used.pop(address, None)
        if size is None:
            raise InputError(f"address=0x{address:X}: nothing is allocated there; release it once")
        after = self.free.pop(address + size, 0)
        before = next((s for s, free in self.free.items() if s + free == address), None)
        if before is None:
            self.free[address] = size + after
        else:
            self.free[before] += size + after


@dataclass(frozen=True)
class Values:
    """A matrix of floating-point values in the accelerator's memory.

    Members
    -------
    rows, columns
        Its size.
    address, pitch
        Where it begins, and the bytes from a row to the next.
    dtype
        torch.float32 or torch.bfloat16.
    """

    rows: int
    columns: int
    address: int
    pitch: int
    dtype: torch.dtype

    @property
    def allocations(self) -> tuple[int, ...]:
        """Addresses to release, of a matrix that is no part of another."""
        return (self.address,)

    def part(self, rows: range, columns: range) -> "Values":
        """Return some rows and columns, which stay where they are."""
        _check(rows, self.rows, "rows")
        _check(columns, self.columns, "columns")
        at = self.address + rows.start * self.pitch + columns.start * self.dtype.itemsize
        return replace(self, rows=len(rows), columns=len(columns), address=at)


@dataclass(frozen=True)
class Matrix:
    """A packed matrix in the accelerator's memory.

    Members
    -------
    format
        Its format.
    rows, k
        Its size.
    planes
        Address of each plane: codes, scales, meta.
    pitches
        Bytes from a row to the next of codes, and of scales and metadata.
    """

    format: Format
    rows: int
    k: int
    planes: Mapping[str, int]
    pitches: Mapping[str, int]

    @property
    def allocations(self) -> tuple[int, ...]:
        """Addresses to release, of a matrix that is no part of another."""
        return tuple(self.planes.values())

    @property
    def group_bytes(self) -> dict[str, int]:
        """Bytes of a group in each plane."""
        return dict(zip(("codes", "scales", "meta"), self.format.block.group_bytes, strict=True))

    def pitch(self, plane: str) -> int:
        """Return the bytes from a row of a plane to the next."""
        return self.pitches["codes" if plane == "codes" else "scales"]

    def part(self, rows: range, columns: range) -> "Matrix":
        """Return some rows and columns, whole groups of these, which stay where they are."""
        group = self.format.block.group
        _check(rows, self.rows, "rows")
        _check(columns, -(-self.k // group) * group, "columns")
        if columns.start % group:
            raise InputError(f"columns={columns}: a part begins with a group of {group}")
        sizes, first = self.group_bytes, columns.start // group
        planes = {
            name: at + rows.start * self.pitch(name) + first * sizes[name]
            for name, at in self.planes.items()
        }
        return replace(self, rows=len(rows), k=len(columns), planes=planes)


def _check(part: range, size: int, name: str) -> None:
    if part.step != 1 or not 0 <= part.start < part.stop <= size:
        raise InputError(f"{name}={part}: a part is within 0..{size} and not empty")
