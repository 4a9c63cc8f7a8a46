"""Packed tensors: uint8 planes of codes, scales and metadata, on any device and on disk."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree

from m2xfp.errors import InputError, M2xfpError
from m2xfp.files import atomic_path
from m2xfp.golden.formats.tensor_file import read_tensors
from m2xfp.golden.kernels.operators import shielded
from m2xfp.plain import parse_json, typed

if TYPE_CHECKING:
    from m2xfp.golden.formats.format import Format

__all__ = ["PackedTensor"]

_HEADER = "m2xfp"

PLANES = ("codes", "scales", "meta", "tensor_scale")
"""Names of the tensors that hold a packed tensor's data."""


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """A quantized tensor [..., K] in groups along its last dimension, padded to G whole groups.

    Members
    -------
    format
        The format, from ``get_format``.
    codes
        uint8 [..., G * code bytes]: K/2 bytes for 4-bit elements, the even element in the low
        nibble; other widths are packed little-endian without gaps.
    scales
        uint8 [..., G * scale bytes], little-endian: one E8M0 byte for most formats.
    meta
        uint8 [..., G * metadata bytes], field j of a group in its bits 2j..2j+1 (SMX4: bit j); None
        for a format without metadata.
    shape
        Shape of the tensor that was quantized.
    tensor_scale
        float32 scalar for formats with a second level of scaling, one for each row (``shape``
        without its last dimension) where that is ``token``, else None.
    """

    format: "Format"
    codes: Tensor
    scales: Tensor
    meta: Tensor | None
    shape: torch.Size
    tensor_scale: Tensor | None = None

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Copy and pickle by the checked constructor: what is read is no less checked."""
        return _rebuilt, (self.format, self.planes(), tuple(self.shape))

    def __post_init__(self) -> None:
        """Refuse planes that do not belong to the shape and the format."""
        if not self.shape:
            raise InputError("shape () has no dimension to group; pass at least one dimension")
        counts = self.format.block.group_bytes
        groups = -(-self.shape[-1] // self.format.block.group)
        planes = {"codes": self.codes, "scales": self.scales, "meta": self.meta}
        for (name, plane), size in zip(planes.items(), counts, strict=True):
            if plane is None and not size:
                continue
            expected = (*self.shape[:-1], groups * size)
            if not isinstance(plane, Tensor) or plane.dtype != torch.uint8:
                found = getattr(plane, "dtype", type(plane).__name__)
                raise TypeError(f"{name} is {found}; pass a torch.uint8 tensor")
            if tuple(plane.shape) != expected:
                raise InputError(
                    f"{name} has shape {tuple(plane.shape)}; a tensor of shape "
                    f"{tuple(self.shape)} in {self.format.name} has {expected}"
                )
        self._check_tensor_scale()

    def _check_tensor_scale(self) -> None:
        """Refuse a tensor scale where there is none, and one of another type or shape.

        Its value is left alone: on a GPU reading it would wait for all that is under way.
        """
        scale, level = self.tensor_scale, self.format.level
        if scale is None and level is None:
            return
        if level is None:
            raise InputError(
                f"tensor_scale is given, and {self.format.name} as made here has none; make it "
                "with get_format(..., tensor_scale='auto')"
            )
        if scale is None:
            raise InputError(
                f"tensor_scale is missing: {self.format.name} with tensor_scale={level!r} has one"
            )
        if not isinstance(scale, Tensor) or scale.dtype != torch.float32:
            found = getattr(scale, "dtype", type(scale).__name__)
            raise TypeError(f"tensor_scale is {found}; pass a torch.float32 scalar")
        if level == "token" and scale.shape != self.shape[:-1]:
            raise InputError(
                f"tensor_scale has shape {tuple(scale.shape)}; with tensor_scale='token' it has "
                f"one number a row, {tuple(self.shape[:-1])}"
            )
        if level != "token" and scale.shape:
            raise InputError(f"tensor_scale has shape {tuple(scale.shape)}; it is a scalar, ()")

    @property
    def device(self) -> torch.device:
        """Device of the planes."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return sum(plane.nbytes for plane in self.planes().values())

    def planes(self) -> dict[str, Tensor]:
        """Return the tensors that hold the data, by name: codes, scales, meta, tensor_scale."""
        named = {
            "codes": self.codes,
            "scales": self.scales,
            "meta": self.meta,
            "tensor_scale": self.tensor_scale,
        }
        return {name: plane for name, plane in named.items() if plane is not None}

    @classmethod
    def from_planes(
        cls, fmt: "Format", planes: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> "PackedTensor":
        """Build from the tensors of ``planes()``; InputError or TypeError if they do not fit.

        Planes in PyTorch's own types are taken as their bytes, where the type is the format's:
        ``float4_e2m1fn_x2``, ``float8_e4m3fn`` and ``float8_e5m2`` codes, ``float8_e8m0fnu`` and
        ``float8_e4m3fn`` scales.
        """
        for name in ("codes", "scales"):
            if name not in planes:
                raise InputError(f"plane {name!r} is missing; there are: {', '.join(planes)}")
        if unknown := [name for name in planes if name not in PLANES]:
            raise InputError(f"plane {unknown[0]!r} is unknown; there are: {', '.join(PLANES)}")
        packed = cls(
            fmt,
            _as_bytes(planes["codes"], fmt.block.element.name),
            _as_bytes(planes["scales"], fmt.block.scale.name),
            planes.get("meta"),
            _size(shape),
            planes.get("tensor_scale"),
        )
        packed.check_values()
        return packed

    def check_values(self) -> None:
        """Raise InputError for a tensor scale that cannot be; any other bytes are legal."""
        scale, level = self.tensor_scale, self.format.level
        if scale is None or scale.is_meta:
            return
        for value in scale.flatten().tolist():
            if not 0 < value < math.inf or (isinstance(level, float) and value != level):
                right = f"the format's, {level!r}" if isinstance(level, float) else ""
                raise InputError(
                    f"tensor_scale is {value}; it must be {right or 'positive and finite'}"
                )

    @shielded
    def to(self, device: torch.device | str) -> "PackedTensor":
        """Return the same packed tensor on ``device``."""
        moved: dict[str, Any] = {name: plane.to(device) for name, plane in self.planes().items()}
        return replace(self, **moved)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values, shape ``shape``: each exact value rounded once to ``dtype``.

        Nearest, ties to even, overflow to infinity. Groups with a NaN scale give NaN; a zero code
        with its sign bit set gives -0.
        """
        return self.format.dequantize(self, dtype)

    @shielded
    def groups(self) -> Tensor:
        """Return the group form, uint8 [..., G, bytes]: codes, then scale, then metadata bytes.

        For M2XFP these are 18 bytes: 144 bits, little-endian, codes in bits 0..127, the E8M0 byte
        in 128..135, metadata in 136..143.
        """
        return torch.cat(self.split(), -1)

    def split(self) -> list[Tensor]:
        """Return the planes by group: codes, scales and meta, each uint8 [..., G, its bytes]."""
        lead = (*self.shape[:-1], -(-self.shape[-1] // self.format.block.group))
        meta = self.codes.new_empty(0) if self.meta is None else self.meta
        return [
            plane.reshape(*lead, size)
            for plane, size in zip(
                (self.codes, self.scales, meta), self.format.block.group_bytes, strict=True
            )
        ]

    @classmethod
    @shielded
    def from_groups(
        cls,
        fmt: "Format",
        groups: Tensor,
        shape: tuple[int, ...] | None = None,
        tensor_scale: Tensor | None = None,
    ) -> "PackedTensor":
        """Build from the group form, uint8 [..., G, bytes]; any bytes are legal.

        ``shape`` is that of the tensor, by default [..., G * group].
        """
        counts = fmt.block.group_bytes
        if not isinstance(groups, Tensor) or groups.dtype != torch.uint8:
            found = getattr(groups, "dtype", type(groups).__name__)
            raise TypeError(f"groups is {found}; pass a torch.uint8 tensor [..., G, {sum(counts)}]")
        if groups.ndim < 2 or groups.shape[-1] != sum(counts):
            raise InputError(
                f"groups has shape {tuple(groups.shape)}; {fmt.name} has [..., G, {sum(counts)}]"
            )
        codes, scales, meta = (
            part.reshape(*groups.shape[:-2], groups.shape[-2] * size)
            for part, size in zip(groups.split(counts, -1), counts, strict=True)
        )
        if shape is None:
            shape = (*groups.shape[:-2], groups.shape[-2] * fmt.block.group)
        meta = meta if counts[2] else None
        packed = cls(fmt, codes, scales, meta, _size(shape), tensor_scale)
        packed.check_values()
        return packed

    @shielded
    def unpack(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes [..., G, group], scale fields [..., G, n], metadata fields, all int64."""
        return self.format.unpack(*self.split())

    @shielded
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, planes and the format in its header, in one step."""
        from safetensors.torch import save_file

        header = json.dumps(
            {
                "format": self.format.name,
                "options": dict(self.format.options),
                "shape": list(self.shape),
            },
            sort_keys=True,
        )
        planes = {name: plane.contiguous().cpu() for name, plane in self.planes().items()}
        with atomic_path(path) as temporary:
            save_file(planes, temporary, metadata={_HEADER: header})

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: torch.device | str = "cpu"
    ) -> "PackedTensor":
        """Read a file that ``save`` wrote; InputError if it is not one."""
        from m2xfp.golden.formats.format import get_format

        texts, planes = read_tensors(path, device)
        header = texts.get(_HEADER)
        if header is None:
            raise InputError(f"{os.fspath(path)!r} holds no packed tensor: no m2xfp header")
        try:
            facts = typed(_Facts, parse_json(header, "the header"), "header")
            return cls.from_planes(
                get_format(facts.format, **facts.options), planes, tuple(facts.shape)
            )
        except (M2xfpError, TypeError) as error:
            raise InputError(
                f"{os.fspath(path)!r} is damaged, or no file of save(): {error}"
            ) from error


@dataclass(frozen=True)
class _Facts:
    """The header of a file."""

    format: str
    options: dict[str, Any]
    shape: tuple[int, ...]


# PyTorch's own types by the element or scale that they hold; older versions lack some.
_OWN_TYPES = {
    getattr(torch, name): kind
    for name, kind in (
        ("float4_e2m1fn_x2", "e2m1"),
        ("float8_e4m3fn", "e4m3"),
        ("float8_e5m2", "e5m2"),
        ("float8_e8m0fnu", "e8m0"),
    )
    if hasattr(torch, name)
}


def _as_bytes(plane: Tensor, kind: str) -> Tensor:
    """Return a plane of the type that holds ``kind`` as bytes, any other as it is."""
    own = isinstance(plane, Tensor) and _OWN_TYPES.get(plane.dtype) == kind
    return plane.view(torch.uint8) if own else plane


def _size(shape: tuple[int, ...]) -> torch.Size:
    """Return a shape; InputError if it is none."""
    most = 1 << 62  # in all; beyond it PyTorch's own counts overflow
    numbers = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
    if not numbers or math.prod(n or 1 for n in shape) > most:
        raise InputError(f"shape {tuple(shape)} is no shape of a tensor")
    return torch.Size(shape)


def _rebuilt(fmt: "Format", planes: dict[str, Tensor], shape: tuple[int, ...]) -> PackedTensor:
    return PackedTensor.from_planes(fmt, planes, shape)


# What follows lets packed tensors pass through function transforms, torch.compile and torch.export.
# The leaves are the planes; leading sizes are those of the codes, which a transform may change.


def _flatten(packed: PackedTensor) -> tuple[list[Tensor], list[Any]]:
    planes = packed.planes()
    return list(planes.values()), [packed.format.key, packed.shape[-1], list(planes)]


def _unflatten(leaves: Any, context: list[Any]) -> PackedTensor:
    """Put a tree's leaves together unchecked: in a tree they can be anything."""
    from m2xfp.golden.formats.format import format_of

    key, width, names = context
    planes = {"meta": None, "tensor_scale": None, **dict(zip(names, leaves, strict=True))}
    codes = planes["codes"]
    lead = codes.shape[:-1] if isinstance(codes, Tensor) else ()
    packed = object.__new__(PackedTensor)
    packed.__dict__.update(format=format_of(key), shape=torch.Size((*lead, width)), **planes)
    return packed


_pytree.register_pytree_node(
    PackedTensor,
    _flatten,
    _unflatten,
    serialized_type_name="m2xfp.PackedTensor",
)

# torch.load(weights_only=True) takes nothing that is not named here, or in formats/format.py.
torch.serialization.add_safe_globals([PackedTensor, _rebuilt])
