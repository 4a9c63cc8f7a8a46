"""Whether a GGUF file holds what its header counts, before it is given to a reader.

The package gguf and transformers believe every number: for a length of 2^60, or as many layers,
they go on for ever.
"""

import mmap
import os
import struct
from pathlib import Path

from m2xfp.errors import InputError

__all__ = ["check_gguf"]

# By the number of a type in the file: letters as struct has them. 8 is a text, 9 a list.
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _LIST = 8, 9
_MOST_DIMENSIONS = 4


class _Walk:
    """A place in the file, which each read moves on."""

    def __init__(self, data: bytes | mmap.mmap, told: str) -> None:
        self._data, self._told, self._at = data, told, 0
        self.order = "<"

    def fail(self, what: str) -> InputError:
        return InputError(f"{self._told}: {what}")

    def skip(self, count: int) -> int:
        """Pass some bytes and return where they begin."""
        begin = self._at
        if count > len(self._data) - begin:
            raise self.fail("it ends within its header, or a length in it is damaged")
        self._at += count
        return begin

    def number(self, letter: str) -> int:
        """Return a number."""
        size = struct.calcsize(letter)
        (value,) = struct.unpack_from(self.order + letter, self._data, self.skip(size))
        return int(value) if letter not in "fd" else 0

    def text(self) -> str:
        """Return a text."""
        size = self.number("Q")
        begin = self.skip(size)
        try:
            return bytes(self._data[begin : begin + size]).decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"a name in it is no text ({error})") from error

    def value(self, kind: int) -> int:
        """Pass a value of a type, and return it if it is a whole number."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            self.skip(self.number("Q"))
        elif kind == _LIST:
            inner, count = self.number("I"), self.number("Q")
            if inner in _NUMBERS:
                self.skip(count * struct.calcsize(_NUMBERS[inner]))
            elif inner == _TEXT:
                for _ in range(self.bounded(count, 8)):
                    self.skip(self.number("Q"))
            else:
                raise self.fail(f"a list in it is of type {inner}, which is not known")
        else:
            raise self.fail(f"a value in it is of type {kind}, which is not known")
        return 0

    def bounded(self, count: int, size: int) -> int:
        """Return a count of things that have so many bytes at least, if the file holds as many."""
        if count * size > len(self._data) - self._at:
            raise self.fail(f"it counts {count} entries, more than it holds")
        return count


def check_gguf(path: Path) -> None:
    """Walk through the header of a GGUF file; values and tensors are not looked at.

    Raises
    ------
    InputError
        It is no GGUF file, ends within its header, or counts more entries or layers than it holds.
    """
    told = f"{os.fspath(path)!r} is no GGUF file that can be read"
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            _walk_through(_Walk(data, told))
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise InputError(f"{told}: {error}") from error


def _walk_through(walk: _Walk) -> None:
    if struct.pack("<I", walk.number("I")) != b"GGUF":
        raise walk.fail("it does not begin with GGUF")
    version = walk.number("I")
    if version & 0xFFFF == 0:  # written on a machine with the other order of bytes
        walk.order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise walk.fail(f"it is of version {version}; 2 and 3 are known")
    tensors, facts = walk.number("Q"), walk.number("Q")
    layers = {}
    for _ in range(walk.bounded(facts, 13)):
        name = walk.text()
        value = walk.value(walk.number("I"))
        if name.endswith(".block_count"):
            layers[name] = value
    for _ in range(walk.bounded(tensors, 24)):
        walk.text()
        dimensions = walk.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise walk.fail(f"a tensor in it has {dimensions} dimensions")
        walk.skip(8 * dimensions + 12)
    for name, count in layers.items():
        if not 0 <= count <= tensors:
            raise walk.fail(f"{name} is {count}, and it holds {tensors} tensors")
