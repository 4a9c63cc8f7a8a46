"""Reading a user's .npy and .npz files, with an answer to every mistake."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import BF16, InputType

__all__ = [
    "as_patterns",
    "check_names",
    "check_range",
    "load_array",
    "load_arrays",
    "load_rows",
    "type_name",
]

_BFLOAT16 = np.dtype("V2")
"""What numpy makes of an array of ml_dtypes.bfloat16 in a file: two bytes without a meaning."""

# What numpy raises for files that are none of its own, or are cut off.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    BadZipFile,
    zlib.error,
    struct.error,
    AttributeError,
    TypeError,
    LookupError,  # members that an archive's index does not have
    SyntaxError,  # headers are Python literals
    TokenError,
    RecursionError,
    MemoryError,  # shapes that nothing could hold
    OverflowError,
    NotImplementedError,  # compression that zipfile does not know
    RuntimeError,  # encrypted archives
)


def load_array(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file, in native byte order; InputError for any other file."""
    try:
        with path.open("rb") as file:  # numpy would leave the file of an archive open
            _check_beginning(file, path, "npy")
            array = np.load(file, allow_pickle=False)
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"input {path}: not a readable .npy file ({error})") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"input {path}: holds several arrays; give one array as a .npy file")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file; InputError for any other file."""
    try:
        with path.open("rb") as opened:
            _check_beginning(opened, path, "npz")
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise InputError(
                    f"input {path}: holds one array without a name; give the arrays by their names "
                    "in an .npz file (numpy.savez)"
                )
            with file:
                return {name: file[name] for name in file.files}
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"input {path}: not a readable .npz file ({error})") from error


def _check_beginning(file: BinaryIO, path: Path, kind: str) -> None:
    """Refuse what is neither: numpy takes any other file for a pickle, and advises to allow it."""
    if not file.read(6).startswith((b"\x93NUMPY", b"PK")):
        raise InputError(f"input {path}: not a readable .{kind} file (it does not begin as one)")
    file.seek(0)


def type_name(array: NDArray[Any]) -> str:
    """Return the name of an array's type, as a message has it."""
    return "bfloat16" if array.dtype == _BFLOAT16 else str(array.dtype)


def as_patterns(array: NDArray[Any], kind: InputType) -> NDArray[Any]:
    """Return an array of bfloat16 (ml_dtypes) as patterns, uint16, if ``kind`` is that."""
    return array.view(np.uint16) if kind is BF16 and array.dtype == _BFLOAT16 else array


def check_names(path: Path, facts: Facts, arrays: Mapping[str, Any], names: list[str]) -> None:
    """Raise InputError unless the fields of a file are those of ``names``."""
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"input {path}: field {missing[0]!r} is missing; needed: {names}")
    if unknown := [name for name in arrays if name not in names]:
        raise InputError(
            f"input {path}: {facts.config} takes no field {unknown[0]!r}; it takes: {names}"
        )


def check_range(path: Path, name: str, numbers: NDArray[Any], low: int, high: int) -> None:
    """Raise InputError, with the first one's place, unless whole numbers are ``low`` to ``high``.

    What is packed into fields is cut to their bits, so numbers of a file are looked at before.
    """
    outside = (numbers < low) | (numbers > high)
    if not outside.any():
        return
    place = np.unravel_index(int(outside.argmax()), numbers.shape)
    index = ", ".join(str(int(at)) for at in place)
    raise InputError(f"input {path}: {name}[{index}] = {numbers[place]}; must be {low} to {high}")


def load_rows(
    path: Path, facts: Facts, fields: Mapping[str, tuple[type, tuple[int, ...]]]
) -> dict[str, NDArray[Any]]:
    """Read an .npz file of arrays that have one row for each of n things.

    Parameters
    ----------
    path
        The file.
    facts
        The unit that it is for, for messages.
    fields
        Type and shape, n apart, of each array.

    Raises
    ------
    InputError
        If the file is no .npz file, lacks a field or has one more, or a field has another type or
        shape.
    """
    arrays = load_arrays(path)
    check_names(path, facts, arrays, list(fields))
    shape = next(iter(arrays[name].shape for name in fields))
    count = shape[0] if shape else 0
    for name, (kind, rest) in fields.items():
        array, dtype = arrays[name], np.dtype(kind)
        if array.dtype != dtype or array.shape != (count, *rest) or not count:
            raise InputError(
                f"input {path}: {name} is {type_name(array)} {list(array.shape)}; must be {dtype} "
                f"[{', '.join(['n', *map(str, rest)])}], one n of at least 1 for all fields"
            )
    return arrays
