"""Packed tensors that stand in one, each with a tensor scale of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.packed import PackedTensor

if TYPE_CHECKING:
    from m2xfp.golden.formats.format import Format

__all__ = ["StackedTensor"]


@dataclass(frozen=True, eq=False)
class StackedTensor:
    """Packed tensors of one format and one shape along a further first dimension.

    The experts of a mixture, each with a tensor scale of its own, stand so in a checkpoint.

    Members
    -------
    parts
        The tensors, at least one.
    """

    parts: tuple[PackedTensor, ...]

    def __post_init__(self) -> None:
        """Refuse tensors that are not alike."""
        if not self.parts:
            raise InputError("there is nothing to stack; pass at least one packed tensor")
        for at, part in enumerate(self.parts):
            if part.format != self.format or part.shape != self.parts[0].shape:
                raise InputError(
                    f"part {at} is {part.format.key} {tuple(part.shape)}, part 0 "
                    f"{self.format.key} {tuple(self.parts[0].shape)}; they must be alike"
                )

    @property
    def format(self) -> "Format":
        """The format of all."""
        return self.parts[0].format

    @property
    def shape(self) -> torch.Size:
        """Shape of the values."""
        return torch.Size((len(self.parts), *self.parts[0].shape))

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return sum(part.nbytes for part in self.parts)

    def planes(self) -> dict[str, Tensor]:
        """Return the planes, stacked; tensor scales as [n, 1, ...], which multiplies the values."""
        stacked = {
            name: torch.stack([part.planes()[name] for part in self.parts])
            for name in self.parts[0].planes()
        }
        if "tensor_scale" in stacked:
            ones = (1,) * len(self.parts[0].shape)
            stacked["tensor_scale"] = stacked["tensor_scale"].reshape(-1, *ones)
        return stacked

    @classmethod
    def from_planes(
        cls, fmt: "Format", planes: Mapping[str, Tensor], shape: Sequence[int]
    ) -> "StackedTensor":
        """Build from the tensors of ``planes()``; InputError or TypeError if they do not fit."""
        count = shape[0] if shape else 0
        for name, plane in planes.items():
            expected = (count, *(1,) * (len(shape) - 1))
            if name == "tensor_scale" and tuple(plane.shape) != expected:
                raise InputError(
                    f"tensor_scale has shape {tuple(plane.shape)}; for {count} tensors it has "
                    f"{expected}"
                )
            if not plane.ndim or len(plane) != count:
                raise InputError(
                    f"{name} has shape {tuple(plane.shape)}; there are {count} tensors"
                )
        parts = []
        for at in range(count):
            own = {name: plane[at] for name, plane in planes.items()}
            if "tensor_scale" in own:
                own["tensor_scale"] = own["tensor_scale"].reshape(())
            parts.append(PackedTensor.from_planes(fmt, own, tuple(shape[1:])))
        return cls(tuple(parts))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values, each exact value rounded once to ``dtype``."""
        return torch.stack([part.dequantize(dtype) for part in self.parts])
