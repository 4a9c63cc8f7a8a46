"""A descriptor of the accelerator, and the memory that its buses lead to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2xfp.rtl.parts.accelerator_map import OFFSETS
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, GEMM, PACKED

__all__ = ["PAGE", "Descriptor", "Memory"]

PAGE = 4096


@dataclass(frozen=True)
class Descriptor:
    """The words of a descriptor, by the names of their registers; addresses whole.

    Members
    -------
    words
        What is not 0.
    number
        What it is pushed as.
    """

    words: Mapping[str, int]
    number: int = 0

    def __getitem__(self, name: str) -> int:
        """Return a word, or an address."""
        return self.words.get(name, 0)

    @property
    def value_bytes(self) -> int:
        """Bytes of one of the values that ``kind`` names."""
        return 2 if self["kind"] == BF16_VALUES else 4

    @property
    def packed(self) -> bool:
        """Whether its results are the planes of a packed matrix."""
        return self["operation"] != GEMM or self["kind"] == PACKED

    def writes(self) -> Iterator[tuple[int, int]]:
        """Yield address and word of every register of the descriptor, the push last."""
        for name, offset in OFFSETS.items():
            if offset < OFFSETS["operation"] or name == "push":
                continue
            whole = self[name.removesuffix("_high")]
            yield offset, whole >> 32 if name.endswith("_high") else whole & 0xFFFFFFFF
        yield OFFSETS["push"], self.number


class Memory:
    """A few pages with contents; all else is noise that depends on the address alone.

    Parameters
    ----------
    seed
        Of the noise.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._pages: dict[int, NDArray[np.uint8]] = {}

    def _page(self, number: int) -> NDArray[np.uint8]:
        if number not in self._pages:
            rng = np.random.default_rng((self._seed, number))
            self._pages[number] = rng.integers(0, 256, PAGE, np.uint8)
        return self._pages[number]

    def write(self, address: int, content: NDArray[np.uint8]) -> None:
        """Store bytes."""
        for at in range(0, len(content), PAGE):
            self._write(address + at, content[at : at + PAGE])

    def _write(self, address: int, content: NDArray[np.uint8]) -> None:
        page, start = divmod(address, PAGE)
        first = content[: PAGE - start]
        self._page(page)[start : start + len(first)] = first
        if len(first) < len(content):
            self._write(address + len(first), content[len(first) :])

    def read(self, address: int, length: int) -> NDArray[np.uint8]:
        """Return bytes."""
        parts = []
        while length:
            page, start = divmod(address, PAGE)
            parts.append(self._page(page)[start : start + length])
            address, length = address + len(parts[-1]), length - len(parts[-1])
        return np.concatenate(parts)

    def write_rows(self, address: int, pitch: int, rows: NDArray[np.uint8]) -> None:
        """Store a matrix of bytes."""
        for number, row in enumerate(rows):
            self.write(address + number * pitch, row)

    def read_rows(self, address: int, pitch: int, rows: int, length: int) -> NDArray[np.uint8]:
        """Return a matrix of bytes."""
        return np.stack([self.read(address + number * pitch, length) for number in range(rows)])
