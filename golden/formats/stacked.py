"""Packed tensors that stand in one, each with a tensor scale of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.operators import shielded

if TYPE_CHECKING:
    from m2xfp.golden.formats.format import Format

__all__ = ["StackedTensor"]


@dataclass(frozen=True, eq=False)
class StackedTensor:
    """A packed tensor [n, rows, K] whose parts have a tensor scale each.

    The experts of a mixture stand so in one checkpoint tensor, and within an expert its gate and
    up projections, one after the other in the rows.

    Members
    -------
    parts
        Packed tensors of one format and one shape [rows / halves, K], at least one.
    halves
        How many of them stand one after the other in the rows of each of the n.
    """

    parts: tuple[PackedTensor, ...]
    halves: int = 1

    def __post_init__(self) -> None:
        """Refuse tensors that are not alike."""
        if not self.parts or len(self.parts) % self.halves:
            raise InputError(f"{len(self.parts)} parts are no stack of {self.halves} each")
        for at, part in enumerate(self.parts):
            if part.format != self.format or part.shape != self.parts[0].shape:
                raise InputError(
                    f"part {at} is {part.format.key} {tuple(part.shape)}, part 0 "
                    f"{self.format.key} {tuple(self.parts[0].shape)}; they must be alike"
                )
        if len(self.parts[0].shape) != 2:
            raise InputError(f"a part has shape {tuple(self.parts[0].shape)}; it is [rows, K]")

    @property
    def format(self) -> "Format":
        """The format of all."""
        return self.parts[0].format

    @property
    def shape(self) -> torch.Size:
        """Shape of the values."""
        rows, width = self.parts[0].shape
        return torch.Size((len(self.parts) // self.halves, rows * self.halves, width))

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return sum(part.nbytes for part in self.parts)

    @shielded
    def planes(self) -> dict[str, Tensor]:
        """Return the planes [n, rows, bytes], and the tensor scales [n, halves, 1]."""
        count, rows, _ = self.shape
        found = {}
        for name in self.parts[0].planes():
            whole = torch.stack([part.planes()[name] for part in self.parts])
            scale = name == "tensor_scale"
            found[name] = (
                whole.reshape(count, self.halves, 1) if scale else (whole.reshape(count, rows, -1))
            )
        return found

    @classmethod
    @shielded
    def from_planes(
        cls, fmt: "Format", planes: Mapping[str, Tensor], shape: Sequence[int]
    ) -> "StackedTensor":
        """Build from the tensors of ``planes()``; InputError or TypeError if they do not fit."""
        if len(shape) != 3:
            raise InputError(f"shape {tuple(shape)} is none of a stack, [n, rows, K]")
        count, rows, width = shape
        scale = planes.get("tensor_scale")
        if scale is None:
            raise InputError("tensor_scale is missing: the parts of a stack have one each")
        fits = scale.ndim == 3 and scale.shape[::2] == (count, 1) and scale.shape[1] > 0
        if not fits or rows % scale.shape[1]:
            raise InputError(
                f"tensor_scale has shape {tuple(scale.shape)}; a stack of shape {tuple(shape)} has "
                f"({count}, h, 1), with h parts in the rows"
            )
        halves = scale.shape[1]
        for name, plane in planes.items():
            if name != "tensor_scale" and tuple(plane.shape[:-1]) != (count, rows):
                raise InputError(
                    f"{name} has shape {tuple(plane.shape)}; it is [{count}, {rows}, bytes]"
                )
        parts = []
        for at in range(count * halves):
            own = {
                name: plane.reshape(-1)[at]
                if name == "tensor_scale"
                else plane.reshape(count * halves, rows // halves, -1)[at]
                for name, plane in planes.items()
            }
            parts.append(PackedTensor.from_planes(fmt, own, (rows // halves, width)))
        return cls(tuple(parts), halves)

    @shielded
    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values, each exact value rounded once to ``dtype``."""
        return torch.stack([part.dequantize(dtype) for part in self.parts]).reshape(self.shape)
