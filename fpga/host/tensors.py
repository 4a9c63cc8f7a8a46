"""Tensors and packed tensors as the arrays of a device's units, and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2xfp.errors import InputError
from m2xfp.formats import BlockFormat, block_format
from m2xfp.fpga.host.remote_unit import RemoteUnit
from m2xfp.tb.bench import Arrays
from m2xfp.tb.parts.groups import group_arrays, join_planes
from m2xfp.tb.parts.pairs import formats, pairs

if TYPE_CHECKING:
    from torch import Tensor

    from m2xfp.golden import PackedTensor

__all__ = [
    "accumulated",
    "check_pair",
    "dots",
    "floats",
    "packed_groups_of",
    "product",
    "quantized",
]

Bytes = NDArray[np.uint8]


def quantized(unit: RemoteUnit, x: Tensor, progress: bool) -> PackedTensor:
    """Run values [..., K] through a unit that packs groups."""
    import torch

    from m2xfp.golden import PackedTensor, get_format
    from m2xfp.golden.bits import to_bits

    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    kind = kinds[unit.facts.parameters["input_type"]]
    block = block_format(unit.facts.parameters["block"])
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x is {type(x).__name__}; pass a {kind} tensor")
    if x.dtype != kind:
        name = str(kind).removeprefix("torch.")
        raise InputError(
            f"x is {x.dtype}; the device's {unit.name} takes {name}; convert it first, "
            f"x.to({kind}), if you want it rounded"
        )
    if not x.ndim:
        raise InputError("x has no dimension to group; pass at least one dimension")
    count = -(-x.shape[-1] // block.group)
    padded = torch.nn.functional.pad(x, (0, count * block.group - x.shape[-1]))
    raw = to_bits(padded.detach().cpu().contiguous())
    if not raw.size:
        nothing = torch.zeros(*x.shape[:-1], count, sum(block.group_bytes), dtype=torch.uint8)
        return PackedTensor.from_groups(get_format(block.name), nothing, tuple(x.shape))
    planes = unit.run({"x": raw.reshape(-1, block.group)}, progress=progress)
    data = join_planes(planes, block).reshape(*x.shape[:-1], count, sum(block.group_bytes))
    groups = torch.from_numpy(np.ascontiguousarray(data)).to(x.device)
    return PackedTensor.from_groups(get_format(block.name), groups, tuple(x.shape))


def accumulated(
    unit: RemoteUnit, acts: Bytes, weights: Bytes, first: NDArray[np.bool_], progress: bool
) -> NDArray[np.uint32]:
    """Return the accumulator after each pair of groups [n, bytes]."""
    if not len(acts):
        return np.zeros(0, np.uint32)
    arrays = pairs(acts, weights, unit.facts) | {"first": np.asarray(first, bool)}
    acc: NDArray[np.uint32] = unit.run(arrays, progress=progress)["acc"]
    return acc


def dots(unit: RemoteUnit, acts: Bytes, weights: Bytes, progress: bool) -> NDArray[np.uint32]:
    """Return the final accumulators of rows of groups, [rows, G, bytes] on both sides."""
    rows, depth = acts.shape[:2]
    if not rows * depth:
        return np.zeros(rows, np.uint32)
    first = np.arange(rows * depth) % depth == 0
    left, right = (side.reshape(-1, side.shape[2]) for side in (acts, weights))
    return accumulated(unit, left, right, first, progress).reshape(rows, depth)[:, -1]


def product(core: RemoteUnit, acts: Bytes, weights: Bytes, progress: bool) -> NDArray[np.uint32]:
    """Return [m, n] sums of packed rows [m, G, bytes] and [n, G, bytes]."""
    arrays: Arrays = {}
    for side, groups, block in zip(("a_", "w_"), (acts, weights), formats(core.facts), strict=True):
        planes = group_arrays(groups.reshape(-1, groups.shape[2]), block, side)
        arrays |= {name: plane.reshape(len(groups), -1) for name, plane in planes.items()}
    out: NDArray[np.uint32] = core.run(arrays, progress=progress)["out"]
    return out


def check_pair(qa: PackedTensor, qw: PackedTensor, unit: RemoteUnit) -> None:
    """Refuse operands that the unit was not made for."""
    from m2xfp.golden import PackedTensor

    for name, packed, block in zip(("qa", "qw"), (qa, qw), formats(unit.facts), strict=True):
        if not isinstance(packed, PackedTensor):
            raise TypeError(f"{name} is {type(packed).__name__}; pass a PackedTensor")
        if packed.format.block != block:
            raise InputError(
                f"{name} is in {packed.format.name}; the device takes {name} in {_words(block)}"
            )


def _words(block: BlockFormat) -> str:
    text = f"{block.name} with groups of {block.group}"
    return f"{text} and subgroups of {block.metadata.subgroup}" if block.subgroups else text


def packed_groups_of(packed: PackedTensor) -> Bytes:
    """Return the packed groups of all rows, [rows, G, bytes]."""
    groups: Bytes = packed.groups().detach().cpu().numpy()
    return groups.reshape(math.prod(groups.shape[:-2]), *groups.shape[-2:])


def floats(patterns: NDArray[np.uint32], shape: tuple[int, ...], like: PackedTensor) -> Tensor:
    """Return float32 patterns as a tensor of ``shape`` on the device of ``like``."""
    import torch

    values = torch.from_numpy(patterns.astype(np.uint32).view(np.float32).copy())
    return values.reshape(*shape).to(like.device)
