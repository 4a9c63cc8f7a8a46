"""Packed groups (docs/format.md, packed group) as a user's arrays, and as fields of a stream."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Field, Stream
from m2xfp.formats import BlockFormat
from m2xfp.tb.bench import Arrays
from m2xfp.tb.fields import Bytes, pack, read_plane
from m2xfp.tb.parts.files import check_range

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check_planes",
    "elements",
    "group_arrays",
    "group_beats",
    "join_planes",
    "packed_groups",
    "packed_values",
    "plane_shapes",
    "planes_of_beats",
    "user_planes",
]

PLANES = ("codes", "scales", "meta")
_FIELDS = {"codes": "codes", "scales": "scale", "meta": "meta"}  # a plane's name in a payload


def plane_shapes(block: BlockFormat) -> dict[str, tuple[int, ...]]:
    """Return the planes of a user's file that a format has, with their shapes after n.

    A byte a group has no dimension of its own.
    """
    sizes = zip(PLANES, block.group_bytes, strict=True)
    return {name: () if size == 1 and name != "codes" else (size,) for name, size in sizes if size}


def check_planes(path: Path, planes: Mapping[str, NDArray[Any]], block: BlockFormat) -> None:
    """Raise InputError if metadata of a user's file have bits beyond those of the subgroups.

    Parameters
    ----------
    path
        The file, for the message.
    planes
        Its fields; those called ``meta``, behind any prefix, are looked at.
    block
        The format.
    """
    used = block.subgroups * block.metadata.bits
    spare = -used % 8  # of the last byte
    for name, plane in planes.items() if spare else ():
        if name.endswith("meta"):
            last = plane.reshape(-1, block.group_bytes[2])[:, -1]
            check_range(path, f"last bytes of {name}", last, 0, (1 << 8 - spare) - 1)


def user_planes(planes: Mapping[str, NDArray[Any]], block: BlockFormat) -> Arrays:
    """Return planes [n, bytes a group] as a user's file has them."""
    return {
        name: np.ascontiguousarray(planes[name]).reshape(len(planes[name]), *shape)
        for name, shape in plane_shapes(block).items()
    }


def join_planes(planes: Mapping[str, NDArray[Any]], block: BlockFormat, side: str = "") -> Bytes:
    """Return groups, uint8 [n, bytes], of a user's planes, whose names begin with ``side``."""
    return np.concatenate(
        [
            planes[f"{side}{name}"].reshape(len(planes[f"{side}{name}"]), -1)
            for name in plane_shapes(block)
        ],
        axis=1,
    )


def group_arrays(groups: Bytes, block: BlockFormat, side: str = "") -> Arrays:
    """Split groups into a user's planes.

    Parameters
    ----------
    groups
        uint8 [n, bytes a group].
    block
        The format.
    side
        What the names of the planes begin with.

    Returns
    -------
    dict
        ``codes`` uint8 [n, bytes of codes], ``scales`` uint8 [n], and ``meta`` uint8 [n], or
        [n, bytes] if it has several, for a format with metadata.
    """
    ends = np.cumsum(block.group_bytes)[:-1]
    planes = dict(zip(PLANES, np.split(groups, ends, axis=1), strict=True))
    return {f"{side}{name}": plane for name, plane in user_planes(planes, block).items()}


def _plane_fields(stream: Stream, block: BlockFormat, prefix: str) -> dict[str, Field]:
    return {name: stream.field(f"{prefix}{_FIELDS[name]}") for name in plane_shapes(block)}


def group_beats(
    stream: Stream,
    planes: Mapping[str, NDArray[Any]],
    block: BlockFormat,
    prefix: str = "",
    others: Mapping[Field, NDArray[Any]] | None = None,
) -> Bytes:
    """Return the beats of a stream that carries one group each.

    ``prefix`` is the path of the group in the payload; ``others`` are fields beside it.
    """
    fields = _plane_fields(stream, block, prefix)
    return pack(
        stream,
        others,
        planes={
            field: planes[name].reshape(len(planes[name]), -1) for name, field in fields.items()
        },
    )


def planes_of_beats(stream: Stream, data: Bytes, block: BlockFormat) -> Arrays:
    """Return a user's planes of beats that carry one group each."""
    fields = _plane_fields(stream, block, "")
    return user_planes({name: read_plane(field, data) for name, field in fields.items()}, block)


def elements(plane: NDArray[Any], width: int, count: int) -> Bytes:
    """Return the ``count`` values of ``width`` bits that rows of a plane hold: uint8 [n, count]."""
    rows = plane.reshape(len(plane), -1)
    bits = np.unpackbits(rows, axis=1, count=width * count, bitorder="little")
    packed = np.packbits(bits.reshape(len(rows), count, width), axis=2, bitorder="little")
    return packed[..., 0]


def packed_values(values: Mapping[str, NDArray[Any]], block: BlockFormat) -> Bytes:
    """Return groups, uint8 [..., bytes], of codes, scales and metadata [..., values].

    Of which there are fewer than a group has the others are zero.
    """

    def plane(name: str, width: int, count: int) -> Bytes:
        given = values[name]
        full = np.zeros((*given.shape[:-1], count), np.uint8)
        full[..., : given.shape[-1]] = given
        bits = np.unpackbits(full[..., None], axis=-1, count=width, bitorder="little")
        rows = bits.reshape(-1, count * width)
        return np.packbits(rows, axis=1, bitorder="little")

    planes = {
        "codes": plane("codes", block.element.bits, block.group),
        "scales": values["scale"].reshape(-1, 1).astype(np.uint8),
    }
    if block.subgroups:
        planes["meta"] = plane("meta", block.metadata.bits, block.subgroups)
    whole = join_planes(planes, block)
    return whole.reshape(*values["codes"].shape[:-1], whole.shape[1])


def packed_groups(block: BlockFormat, values: "Tensor", count: int) -> Bytes:
    """Return ``count`` packed groups of values, uint8 [count, bytes].

    Over again from the start, where there are not so many. In a layout that can only be decoded
    they are groups of any bits, with scales near one.
    """
    import torch

    from m2xfp.golden import get_format

    fmt = get_format(block.name)
    if not fmt.encodes:
        rng, scale = np.random.default_rng(0), block.group_bytes[0]
        drawn = rng.integers(0, 256, (count, sum(block.group_bytes)), np.uint8)
        drawn[:, scale] = rng.integers(0x28, 0x50, count)
        return drawn
    groups = fmt.quantize(values.reshape(-1, block.group)).groups()
    rows = groups.reshape(-1, groups.shape[-1])
    packed: Bytes = rows[torch.arange(count) % len(rows)].numpy()
    return packed
