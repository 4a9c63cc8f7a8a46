"""Fields of words: numpy arrays to the rows of bytes that a stream or port takes, and back.

A row is TDATA, low byte first (`m2xfp.tb.vectors.Beats`). Where fields are is said by the unit's
facts (`m2xfp.facts.Field`); nothing here knows a unit.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Field, Port, Stream

__all__ = ["Bytes", "number", "pack", "read", "read_plane"]

Bytes = NDArray[np.uint8]
Bits = NDArray[np.uint8]


def number(word: Stream | Port, prefix: str = "") -> Field:
    """Return mantissa, exponent and sign of floating-point values as one field of patterns.

    ``prefix`` is the path of the structure that they are in, such as ``acc.``.
    """
    fields = {field.name: field for field in word.fields}
    parts = [fields[f"{prefix}{part}"] for part in ("mantissa", "exponent", "sign")]
    return replace(
        parts[0],
        name=f"{prefix}pattern",
        offset=min(part.offset for part in parts),
        width=sum(part.width for part in parts),
    )


def _is_run(field: Field) -> bool:
    """Whether the values lie one directly behind the other."""
    step = field.width
    for size, stride in zip(reversed(field.shape), reversed(field.strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def _size(field: Field) -> int:
    """Return the bits of all values."""
    return field.width * prod(field.shape)


def _places(field: Field) -> NDArray[np.int64] | slice:
    """Return where each bit of each value is in the word, value after value."""
    if _is_run(field):
        return slice(field.offset, field.offset + _size(field))
    first = np.full((1,) * len(field.shape), field.offset)
    for axis, (size, stride) in enumerate(zip(field.shape, field.strides, strict=True)):
        steps = stride * np.arange(size)
        first = first + steps.reshape([-1 if a == axis else 1 for a in range(len(field.shape))])
    places: NDArray[np.int64] = (first[..., None] + np.arange(field.width)).reshape(-1)
    return places


def _aligned(field: Field) -> slice | None:
    """Return the bytes of a word that a field consists of, if it does."""
    if not _is_run(field) or field.offset % 8 or _size(field) % 8:
        return None
    return slice(field.offset // 8, (field.offset + _size(field)) // 8)


def read_plane(field: Field, data: Bytes) -> Bytes:
    """Return the bits of all values one behind the other, uint8 [n, whole bytes].

    That is how packed tensors hold codes, scales and metadata (docs/format.md).

    Parameters
    ----------
    field
        Of the word that the rows are.
    data
        uint8 [n, bytes of the word].
    """
    if (own := _aligned(field)) is not None:
        return data[:, own].copy()
    bits = np.unpackbits(data, axis=1, bitorder="little")[:, _places(field)]
    return np.packbits(bits, axis=1, bitorder="little")


def _type(field: Field) -> np.dtype[np.generic]:
    """Return the smallest type that holds a value; ValueError for more than 64 bits."""
    if field.width == 1 and not field.signed:
        return np.dtype(bool)
    size = next((size for size in (8, 16, 32, 64) if field.width <= size), None)
    if size is None:
        raise ValueError(f"field {field.name!r} has {field.width} bits; numbers have at most 64")
    return np.dtype(f"{'int' if field.signed else 'uint'}{size}")


def read(field: Field, data: Bytes) -> NDArray[np.generic]:
    """Return the values of a field, [n, *shape]: bool, or whole numbers of the type that fits.

    Parameters as for `read_plane`.
    """
    dtype, n = _type(field), len(data)
    if dtype.kind == "b":
        bits = np.unpackbits(data, axis=1, bitorder="little")[:, _places(field)]
        return bits.reshape(n, *field.shape).astype(bool)
    size = 8 * dtype.itemsize
    if field.width == size and (own := _aligned(field)) is not None:
        rows = np.ascontiguousarray(data[:, own]).view(dtype.newbyteorder("<"))
        return rows.reshape(n, *field.shape).astype(dtype)
    bits = np.unpackbits(data, axis=1, bitorder="little")[:, _places(field)]
    bits = bits.reshape(n, -1, field.width)
    wide = np.zeros((n, bits.shape[1], size), np.uint8)
    wide[..., : field.width] = bits
    if field.signed:
        wide[..., field.width :] = bits[..., -1:]
    rows = np.packbits(wide, axis=2, bitorder="little").view(dtype.newbyteorder("<"))
    return rows.reshape(n, *field.shape).astype(dtype)


def _little(field: Field, values: NDArray[np.generic]) -> Bytes:
    """Return values [n, *shape] as whole numbers of bytes: uint8 [n, values, bytes]."""
    if values.shape[1:] != field.shape:
        raise ValueError(f"field {field.name!r}: {list(values.shape)}; {['n', *field.shape]} fits")
    size = next(size for size in (8, 16, 32, 64) if field.width <= size)
    numbers = np.ascontiguousarray(values.astype(f"<u{size // 8}", copy=False))
    return numbers.reshape(len(values), -1, 1).view(np.uint8)


def pack(
    word: Stream | Port,
    values: Mapping[Field, NDArray[np.generic]] | None = None,
    planes: Mapping[Field, Bytes] | None = None,
) -> Bytes:
    """Return rows of a word, uint8 [n, bytes], zero where nothing is given.

    Parameters
    ----------
    word
        The stream or port.
    values
        Whole numbers or bool [n, *shape] by field; bits beyond a field's width are cut off.
    planes
        Bits by field, as `read_plane` returns them.
    """
    values, planes = values or {}, dict(planes or {})
    (count,) = {len(array) for array in (*values.values(), *planes.values())}
    data = np.zeros((count, word.bytes), np.uint8)
    pieces: list[tuple[Field, Bits]] = []
    for field, array in values.items():
        little = _little(field, array)
        if 8 * little.shape[2] == field.width:
            planes[field] = little.reshape(count, -1)
        else:
            bits = np.unpackbits(little, axis=2, count=field.width, bitorder="little")
            pieces.append((field, bits.reshape(count, -1)))
    for field, plane in planes.items():
        if (own := _aligned(field)) is not None:
            data[:, own] = plane
        else:
            bits = np.unpackbits(plane, axis=1, count=_size(field), bitorder="little")
            pieces.append((field, bits))
    if not pieces:
        return data
    row = np.unpackbits(data, axis=1, bitorder="little")
    for field, bits in pieces:
        row[:, _places(field)] = bits
    return np.packbits(row, axis=1, bitorder="little")
