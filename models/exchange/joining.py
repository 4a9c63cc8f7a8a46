"""Weights of a model put together of the tensors of a checkpoint: experts stacked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.stacked import StackedTensor
from m2xfp.models.exchange.layouts import TWO_LEVELS
from m2xfp.models.exchange.names import Place
from m2xfp.models.exchange.record import Packed, Quantized
from m2xfp.models.layers import TYPES

__all__ = [
    "Part",
    "check_values",
    "in_power_of_two",
    "joined_packed",
    "joined_values",
    "sorted_parts",
]

Part = tuple[Place, Quantized | Tensor]


def sorted_parts(parameter: str, places: Sequence[Place]) -> list[int]:
    """Return the order of the tensors of a parameter; InputError if an expert lacks one."""
    order = sorted(range(len(places)), key=lambda at: (places[at].expert or 0, places[at].source))
    if places[0].expert is None:
        if len(places) > 1:
            raise InputError(f"{parameter} stands in the checkpoint {len(places)} times")
        return order
    sources = places[0].sources
    wanted = [(e, s) for e in range(-(-len(places) // sources)) for s in range(sources)]
    if [(places[at].expert, places[at].source) for at in order] != wanted:
        raise InputError(
            f"{parameter} is made of {sources} tensors an expert, and the checkpoint lacks some"
        )
    return order


def joined_values(parts: Sequence[Part], dtype: torch.dtype | None = None) -> Tensor:
    """Return the values of a parameter, parts in order.

    Parameters
    ----------
    parts
        Its tensors.
    dtype
        Of the values of quantized ones; float32 if left out. Plain ones keep theirs.
    """
    values = [
        part.values(dtype or torch.float32) if isinstance(part, Quantized) else part
        for _, part in parts
    ]
    place = parts[0][0]
    if place.expert is None:
        return values[0]
    experts = [
        torch.cat(values[at : at + place.sources]) for at in range(0, len(values), place.sources)
    ]
    return torch.stack(experts)


def joined_packed(parts: Sequence[Part]) -> Packed:
    """Return a parameter of quantized parts in order, byte for byte.

    Parts that have a tensor scale each keep it, in a stack.
    """
    place = parts[0][0]
    packed = [part.packed for _, part in parts if isinstance(part, Quantized)]
    if place.expert is None:
        return packed[0]
    first = packed[0]
    single = tuple(one for one in packed if isinstance(one, PackedTensor))
    if "tensor_scale" in first.planes():
        return StackedTensor(single, place.sources)
    count, rows = len(packed) // place.sources, first.shape[0] * place.sources
    planes = {
        name: torch.cat([one.planes()[name] for one in packed]).reshape(count, rows, -1)
        for name in first.planes()
    }
    return PackedTensor.from_planes(first.format, planes, (count, rows, first.shape[-1]))


def check_values(name: str, part: Quantized | Tensor, allow_nan: bool) -> None:
    """Refuse a weight that cannot be quantized, by name: of another type, or with a NaN in it."""
    if isinstance(part, Quantized):
        scale = part.packed.format.block.scale
        scales = part.packed.planes()["scales"]
        count = int((scales == scale.nan).sum()) if scale.bits == 8 else 0
        kind = "scales are NaN"
    else:
        if part.dtype not in TYPES:
            raise InputError(
                f"{name} is {part.dtype}; quantized are float32, bfloat16 and float16: convert the "
                "checkpoint first"
            )
        count, kind = int((~part.isfinite()).sum()), "values are NaN or infinite"
    if count and not allow_nan:
        raise InputError(
            f"{name}: {count} {kind}, and each makes its whole group NaN. Repair the checkpoint, "
            "or go on with --allow-nan"
        )


def in_power_of_two(x: Tensor) -> PackedTensor:
    """Return a weight in two-level NVFP4 whose tensor scale is a power of two.

    It is the least one under which no group's scale saturates. Products with it are exact, so
    decoders that round once, twice or three times, or divide by its reciprocal, agree.
    """
    two = get_format(TWO_LEVELS)
    reach = float(two.block.element.max_value) * 448.0
    finite = torch.where(x.isfinite(), x, 0)
    amax = finite.abs().max().double() if finite.numel() else torch.zeros(())
    fraction, exponent = torch.frexp(amax / reach)
    level = 2.0 ** int(exponent - (fraction == 0.5).int()) if amax else 1.0
    level = min(max(level, 2.0**-126), 2.0**126)
    packed = get_format("nvfp4", tensor_scale=level).quantize(x)
    return PackedTensor.from_planes(two, packed.planes(), tuple(packed.shape))
