"""Formats by name: ``get_format("m2xfp-act").quantize(x)``.

A format is one composition of element x scale x metadata. This module validates options, builds the
composition, and does what all formats share: chunks, NaN groups, padding and planes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite, prod

import torch
from torch import Tensor

from m2xfp.errors import InputError, told
from m2xfp.formats import (
    E4M3_WIDE_SCALE,
    E5M2_SCALE,
    E8M0,
    FP32_SCALE,
    GROUP_SIZES,
    SCALE_MODES,
    SCALE_RULES,
    TIES,
    BlockFormat,
    FloatElement,
    Scale,
    block_format,
)
from m2xfp.golden.formats.coder import AffineCoder, Coder, ScaledCoder
from m2xfp.golden.formats.metadata import (
    ElementMantissa,
    NoMetadata,
    PairExponent,
    Refinement,
    SubgroupScale,
)
from m2xfp.golden.formats.numeric import pack_bits, round_once, unpack_bits
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.scales import MinifloatScale, PowerOfTwoScale, SharedScale
from m2xfp.golden.kernels.fused import Kernels, kernels

__all__ = ["INPUT_DTYPES", "Format", "Option", "get_format"]

INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The plain path works in float64 on this many values at a time: few enough for the caches of a CPU
# and for little extra memory, enough to fill a GPU.
_CHUNK_VALUES = {"cpu": 1 << 16, "cuda": 1 << 20}

Option = bool | int | float | str | None


def _require_tensor(x: object) -> Tensor:
    """Return ``x`` if it can be quantized; TypeError or InputError says what to pass instead."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is {type(x).__name__}; pass a torch.Tensor, e.g. torch.as_tensor(x)")
    if x.dtype not in INPUT_DTYPES:
        raise TypeError(f"x has dtype {x.dtype}; pass float32, bfloat16 or float16, e.g. x.float()")
    if x.layout != torch.strided:
        raise TypeError(f"x has layout {x.layout}; pass a dense tensor, e.g. x.to_dense()")
    if not x.ndim:
        raise InputError("x has no dimension to group; pass at least one, e.g. x.reshape(1)")
    return x


# The exact weight search with E4M3 scales is proven for up to so many values a group.
_PROVEN_GROUP = 16


@dataclass(frozen=True)
class Format:
    """A block format with its options, ready to quantize; made by ``get_format``.

    Members
    -------
    name
        The name it was asked for by.
    options
        The options given, sorted.
    block
        The description, options applied.
    coder
        The composition of element, scale and metadata.
    level
        Tensor scale: None for one level, ``auto``, or a number.
    """

    name: str
    options: tuple[tuple[str, Option], ...]
    block: BlockFormat
    coder: Coder
    level: float | str | None = None

    @property
    def encodes(self) -> bool:
        """Whether tensors can be quantized; groups of any layout can be decoded and multiplied."""
        searched = self.block.metadata.name == "sg-em" and self.block.scale.name == "e4m3"
        return not searched or self.block.group <= _PROVEN_GROUP

    @torch.no_grad()
    def quantize(self, x: Tensor) -> PackedTensor:
        """Quantize ``x`` along its last dimension.

        Parameters
        ----------
        x
            float32, bfloat16 or float16, [..., K], any strides, K not necessarily a multiple of the
            group: it is padded with zeros. Subnormals count; nothing is rounded beforehand.

        Returns
        -------
        A packed tensor on the device of ``x``. A group with a NaN or an infinity has the NaN scale
        and is zero otherwise. NVFP4's tensor scale comes from the finite values.

        Raises
        ------
        TypeError
            ``x`` is no dense tensor of those types.
        InputError
            ``x`` has no dimension, or the format is one whose groups can only be decoded.
        """
        x = _require_tensor(x)
        if not self.encodes:
            raise InputError(
                f"group={self.block.group}: the exact search of {self.name} is proven for up to "
                f"{_PROVEN_GROUP} values a group; quantize with group=8 or 16"
            )
        groups = self._groups(x)
        fused = kernels(self, x.device, x.dtype)
        unit = self._tensor_scale(groups, fused)
        lead = (*x.shape[:-1], -(-x.shape[-1] // self.block.group))
        sizes = self.block.group_bytes
        planes = [
            torch.empty(prod(lead), size, dtype=torch.uint8, device=x.device) for size in sizes
        ]
        if fused is not None:
            codes, scales, meta = planes
            fused.quantize(groups, codes, scales, meta, unit)
        else:
            for part in self._parts(groups):
                for plane, value in zip(planes, self._pack(groups[part], unit), strict=True):
                    plane[part] = value
        codes, scales, meta = (
            plane.reshape(*lead[:-1], lead[-1] * size)
            for plane, size in zip(planes, sizes, strict=True)
        )
        return PackedTensor(self, codes, scales, meta if sizes[2] else None, x.shape, unit)

    @torch.no_grad()
    def dequantize(self, packed: PackedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values of ``packed``, each rounded once to ``dtype``; any bytes are legal.

        Nearest, ties to even, overflow to infinity, NaN for NaN scales.
        """
        if dtype not in (*INPUT_DTYPES, torch.float64):
            raise TypeError(f"dtype is {dtype}; pass float32, bfloat16, float16 or float64")
        shape = packed.shape
        planes = [plane.flatten(0, -2) for plane in packed.split()]
        values = torch.empty(len(planes[0]), self.block.group, dtype=dtype, device=packed.device)
        fused = kernels(self, packed.device, dtype) if dtype in INPUT_DTYPES else None
        if fused is not None:
            codes, scales, meta = (plane.contiguous() for plane in planes)
            fused.dequantize(codes, scales, meta, values, packed.tensor_scale)
        else:
            unit = self._unit(packed.tensor_scale, packed.device)
            for part in self._parts(values):
                fields = self.unpack(*(plane[part] for plane in planes))
                values[part] = round_once(self.coder.decode(*fields, unit), dtype)
        return self._ungroup(values, shape)

    @torch.no_grad()
    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``quantize(x).dequantize(x.dtype)``, in the type of ``x``, without packing."""
        x = _require_tensor(x)
        groups = self._groups(x)
        values = torch.empty_like(groups)
        fused = kernels(self, x.device, x.dtype)
        level = self._tensor_scale(groups, fused)
        if fused is not None:
            fused.fake_quantize(groups, values, level)
        else:
            unit = self._unit(level, x.device)
            for part in self._parts(groups):
                fields = self._encode(groups[part], unit)
                values[part] = round_once(self.coder.decode(*fields, unit), x.dtype)
        return self._ungroup(values, x.shape)

    def unpack(self, codes: Tensor, scales: Tensor, meta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the fields of groups of bytes [..., size]: codes, scales, metadata, int64."""
        block = self.block
        return (
            unpack_bits(codes, block.element.bits, block.group),
            self.coder.scales_from_bytes(scales),
            unpack_bits(meta, max(1, block.metadata.bits), block.subgroups),
        )

    def _tensor_scale(self, groups: Tensor, fused: Kernels | None) -> Tensor | None:
        """Return the second-level scale of groups [n, group], float32, or None."""
        if self.level is None:
            return None
        if self.level != "auto":
            return torch.tensor(self.level, dtype=torch.float32, device=groups.device)
        if fused is not None:
            amax = fused.largest(groups).double()
        else:
            parts = groups.reshape(-1).split(_chunk_values(groups.device)) if len(groups) else ()
            largest = [torch.where(part.isfinite(), part, 0).abs().amax() for part in parts]
            zero = torch.zeros((), dtype=torch.float64, device=groups.device)
            amax = torch.stack([zero, *(part.double() for part in largest)]).amax()
        reach = float(self.block.element.max_value) * _grid_max(self.block.scale)
        g = (amax / reach).to(torch.float32)
        return torch.where(g == 0, torch.ones_like(g), g)

    def _unit(self, tensor_scale: Tensor | None, device: torch.device) -> Tensor:
        """Return the second-level scale as float64, 1 without one."""
        if tensor_scale is None:
            return torch.ones((), dtype=torch.float64, device=device)
        return tensor_scale.double()

    def _groups(self, x: Tensor) -> Tensor:
        """Return the groups [n, group] of x, contiguous, padded with zeros."""
        group = self.block.group
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % group)) if x.shape[-1] % group else x
        return x.reshape(-1, group).contiguous()

    def _ungroup(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Return groups [n, group] as a contiguous tensor of ``shape``, the padding dropped."""
        padded = -(-shape[-1] // self.block.group) * self.block.group
        return values.reshape(*shape[:-1], padded)[..., : shape[-1]].contiguous()

    def _parts(self, groups: Tensor) -> Iterator[slice]:
        """Yield the row ranges that the plain path works on at a time."""
        step = max(1, _chunk_values(groups.device) // self.block.group)
        return (slice(start, start + step) for start in range(0, len(groups), step))

    def _encode(self, groups: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize groups [n, group] of the input type into codes, scale and metadata fields."""
        x = groups.double()
        bad = ~x.isfinite().all(-1, keepdim=True)
        codes, stored, fields = self.coder.encode(x.masked_fill(bad, 0.0), unit, groups.dtype)
        return (
            codes.masked_fill(bad, 0),
            torch.where(bad, self.coder.poison(stored), stored),
            fields.masked_fill(bad, 0),
        )

    def _pack(self, groups: Tensor, unit: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize groups [n, group] of the input type into bytes [n, code|scale|meta bytes]."""
        codes, stored, fields = self._encode(groups, self._unit(unit, groups.device))
        return (
            pack_bits(codes, self.block.element.bits),
            self.coder.scales_to_bytes(stored),
            pack_bits(fields, max(1, self.block.metadata.bits)),
        )


def _chunk_values(device: torch.device) -> int:
    """Return how many values the plain path works on at a time."""
    return _CHUNK_VALUES.get(device.type, _CHUNK_VALUES["cpu"])


def _grid_max(scale: Scale) -> float:
    """Return the largest value of a minifloat scale."""
    assert scale.grid is not None
    return float(scale.grid.max_value)


_MODE_SCALES = {
    "pot": E8M0,
    "pot-r": E8M0,
    "float": FP32_SCALE,
    "e4m3": E4M3_WIDE_SCALE,
    "e5m2": E5M2_SCALE,
}


def _choice(option: str, value: Option, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InputError(f"{option}={told(value)}; choose one of: {', '.join(known)}")
    return str(value)


def _flag(option: str, value: Option) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{option}={told(value)}; pass True or False")
    return value


def _whole(option: str, value: Option, allowed: range | tuple[int, ...]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
        shown = (
            f"{allowed.start}..{allowed.stop - 1}"
            if isinstance(allowed, range)
            else ", ".join(map(str, allowed))
        )
        raise InputError(f"{option}={told(value)}; pass a whole number out of: {shown}")
    return value


def _level(value: Option) -> float | str | None:
    """Validate ``tensor_scale``: None, "auto" or a positive number that float32 holds."""
    if value is None or value == "auto":
        return value if value is None else "auto"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"tensor_scale={told(value)}; pass None, 'auto' or a positive number")
    rounded = torch.tensor(float(value), dtype=torch.float32).item()
    if not (isfinite(rounded) and rounded > 0):
        raise InputError(
            f"tensor_scale={told(value)}; pass a positive number that float32 can hold"
        )
    return rounded


def _describe(block: BlockFormat, options: dict[str, Option]) -> BlockFormat:
    """Return the description with the options that change its layout applied."""
    if "group" in options:
        group = _whole("group", options["group"], GROUP_SIZES)
        metadata = block.metadata
        if metadata.bits and group % metadata.subgroup and "subgroup" not in options:
            raise InputError(
                f"group={group} is no multiple of {block.name}'s subgroup {metadata.subgroup}; "
                "pass subgroup as well"
            )
        if "subgroup" in options:
            metadata = replace(metadata, subgroup=group)
        block = replace(block, group=group, metadata=metadata)
    if "subgroup" in options:
        allowed = tuple(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if block.group % n == 0)
        subgroup = _whole("subgroup", options["subgroup"], allowed)
        block = replace(block, metadata=replace(block.metadata, subgroup=subgroup))
    if "ties" in options:
        block = replace(block, ties=_choice("ties", options["ties"], TIES))
    if "scale_mode" in options:
        mode = _choice("scale_mode", options["scale_mode"], SCALE_MODES)
        if "scale_rule" in options:
            raise InputError("scale_mode and scale_rule exclude each other; pass one of them")
        block = replace(block, scale=_MODE_SCALES[mode])
    return block


def _compose(block: BlockFormat, options: dict[str, Option]) -> Coder:
    """Build the coder of a description."""
    if block.scaling == "affine":
        return AffineCoder(block.element.bits)
    rule = _choice("scale_rule", options.get("scale_rule", "floor"), SCALE_RULES)
    if options.get("scale_mode") == "pot-r":
        rule = "even"
    scale: SharedScale
    if block.scale.grid is None:
        scale = PowerOfTwoScale(block.element, "even" if rule == "rtne" else rule)
    else:
        zero_is_one = block.scale.name != "e4m3"
        scale = MinifloatScale(block.scale, block.element, block.ties, zero_is_one)
    return ScaledCoder(
        scale, _refinement(block, scale, options), block.scaling == "split", block.scale.bits // 8
    )


def _refinement(block: BlockFormat, scale: SharedScale, options: dict[str, Option]) -> Refinement:
    """Build the metadata codec of a description."""
    if block.metadata.name == "none":
        return NoMetadata(block.element, block.ties)
    assert isinstance(block.element, FloatElement)
    subgroup = block.metadata.subgroup
    if block.metadata.name == "elem-em":
        return ElementMantissa(block.element, subgroup, block.ties)
    if block.metadata.name == "pair":
        return PairExponent(block.element, subgroup, block.ties)
    search = _choice("search", options.get("search", "exact"), ("exact", "fixed"))
    bits = options.get("fraction_bits")
    if bits is not None and search == "exact":
        raise InputError(f"fraction_bits={told(bits)} belongs to search='fixed'; pass that too")
    return SubgroupScale(
        block.element,
        subgroup,
        scale,
        block.ties,
        adaptive=_flag("adaptive", options.get("adaptive", True)),
        search=search,
        fraction_bits=None if bits is None else _whole("fraction_bits", bits, range(5, 33)),
    )


def _parse_options(rest: str, text: str) -> dict[str, Option]:
    options: dict[str, Option] = {}
    for part in rest.split(","):
        option, equals, value = part.partition("=")
        if not equals or not value:
            raise InputError(f"format {text!r}: {part!r} is not option=value")
        options[option] = _parse_value(value)
    return options


def _parse_value(text: str) -> Option:
    words: dict[str, Option] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def get_format(name: str, **options: Option) -> Format:
    """Return the format called ``name`` with ``options`` applied.

    Parameters
    ----------
    name
        One of ``m2xfp.formats.BLOCK_FORMATS``; ``m2xfp formats`` prints them with their options.
        Options may follow, as command lines have them: ``m2xfp-act:subgroup=4,ties=away``. Values
        are whole numbers, numbers, ``true``, ``false``, ``none`` or words.
    **options
        Those that the format takes, from the list below; they come before those in the name.

    Options
    -------
    adaptive
        Sg-EM: whether the shared scale adapts (default True).
    fraction_bits
        Sg-EM with ``search="fixed"``: fraction bits of the fixed-point view, 5..32; by default 10,
        13, 26 for bfloat16, float16, float32, where both searches agree bit for bit.
    group, subgroup
        Values that share a scale, values that share a metadata field.
    scale_mode
        ``pot``, ``pot-r``, ``float``, ``e4m3`` or ``e5m2``: the scale modes of MX-QLLM.
    scale_rule
        ``floor`` (default), ``ceil``, ``rtn1``, ``rtn2``, ``even`` (alias ``rtne``).
    search
        Sg-EM: ``exact`` (default) or ``fixed``.
    tensor_scale
        NVFP4: None (one level), ``auto``, or the second-level scale as a number.
    ties
        ``even`` or ``away``.

    Raises
    ------
    UnknownNameError
        No such format.
    InputError
        An option that the format does not take, or a value that it cannot have.
    """
    name, colon, rest = name.partition(":")
    options = _parse_options(rest, f"{name}:{rest}") | options if colon else options
    block = block_format(name)
    for option in options:
        if option not in block.options:
            raise InputError(
                f"format {name} has no option {option!r}; it takes: {', '.join(block.options)}"
            )
    block = _describe(block, options)
    return Format(
        name,
        tuple(sorted(options.items())),
        block,
        _compose(block, options),
        _level(options.get("tensor_scale")),
    )
