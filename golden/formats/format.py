"""Formats by name: ``get_format("m2xfp-act").quantize(x)``.

A format is one composition of element x scale x metadata. This module validates options, builds the
composition, and does what all formats share: chunks, NaN groups, padding and planes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError, told
from m2xfp.formats import (
    CANDIDATES,
    CHOICES,
    GROUP_SIZES,
    MODE_SCALES,
    QUOTIENTS,
    SCALE_MODES,
    SCALE_RULES,
    TIES,
    BlockFormat,
    FloatElement,
    IntElement,
    Metadata,
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
from m2xfp.golden.formats.numeric import pack_bits, round_once, unpack_bits, widen
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.scales import MinifloatScale, PowerOfTwoScale, SharedScale
from m2xfp.golden.kernels.fused import Kernels, kernels, refuse_forced
from m2xfp.golden.kernels.memory import explained
from m2xfp.golden.kernels.operators import define, each, in_front, shielded

__all__ = ["INPUT_DTYPES", "Format", "Option", "format_of", "get_format"]

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
    if x.is_nested:
        raise TypeError("x is a nested tensor; pass its parts one by one, e.g. x.unbind()")
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
        Tensor scale: None for one level, ``auto``, ``token``, or a number.
    """

    name: str
    options: tuple[tuple[str, Option], ...]
    block: BlockFormat
    coder: Coder
    level: float | str | None = None
    _key: str = field(default="", init=False, repr=False, compare=False)

    @property
    def key(self) -> str:
        """The text that stands for the format in graphs and files; see ``format_of``."""
        return self._key or _remember(self)

    def __reduce__(self) -> tuple[Callable[..., "Format"], tuple[Any, ...]]:
        """Copy and pickle by name; a format that has none, by its parts."""
        if _MADE_BY_HAND not in self.key:
            return format_of, (self.key,)
        return Format, (self.name, self.options, self.block, self.coder, self.level)

    @property
    def encodes(self) -> bool:
        """Whether tensors can be quantized; groups of any layout can be decoded and multiplied."""
        searched = self.block.metadata.name == "sg-em" and self.block.scale.name == "e4m3"
        return not searched or self.block.group <= _PROVEN_GROUP

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
        and is zero otherwise. NVFP4's tensor scale comes from the finite values, of all of ``x``
        (``auto``) or of each row along the last dimension (``token``). No gradient passes
        integers; see ``fake_quantize``.

        Raises
        ------
        TypeError
            ``x`` is no dense tensor of those types.
        InputError
            ``x`` has no dimension, or the format is one whose groups can only be decoded.
        MemoryShortError
            There is no memory for the result.
        """
        x = _require_tensor(x)
        if not self.encodes:
            raise InputError(
                f"group={self.block.group}: the exact search of {self.name} is proven for up to "
                f"{_PROVEN_GROUP} values a group; quantize with group=8 or 16"
            )
        codes, scales, meta, level = _QUANTIZE(x, self.key)
        return PackedTensor(
            self,
            codes,
            scales,
            meta if self.block.group_bytes[2] else None,
            x.shape,
            None if self.level is None else level,
        )

    def dequantize(self, packed: PackedTensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values of ``packed``, each rounded once to ``dtype``; any bytes are legal.

        Nearest, ties to even, overflow to infinity, NaN for NaN scales.
        """
        if dtype not in (*INPUT_DTYPES, torch.float64):
            raise TypeError(f"dtype is {dtype}; pass float32, bfloat16, float16 or float64")
        found: Tensor = _DEQUANTIZE(
            packed.codes,
            packed.scales,
            packed.meta,
            packed.tensor_scale,
            packed.shape[-1],
            self.key,
            dtype,
        )
        return found

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``quantize(x).dequantize(x.dtype)``, in the type of ``x``, without packing.

        Its derivative, backward and forward, is that of the identity ("straight through"), with all
        scales taken as constants, and 0 where x was clipped: where it lies more than half a step
        beyond the largest value that its group has under its scale, and in groups that became NaN.
        """
        found: Tensor = _FAKE_QUANTIZE(_require_tensor(x), self.key)
        return found

    def clipped(self, x: Tensor) -> Tensor:
        """Return where ``fake_quantize`` clips x, bool of its shape: where its derivative is 0."""
        found: Tensor = _CLIPPED(_require_tensor(x), self.key)
        return found

    # What the operators compute; tensors are real ones from here on.

    def _planes(
        self, x: Tensor, groups: Tensor, fused: Kernels | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return the planes [n, bytes] of groups [n, group], and the tensor scale."""
        level = self._tensor_scale(groups, x.shape, fused)
        planes = [
            torch.empty(len(groups), size, dtype=torch.uint8, device=x.device)
            for size in self.block.group_bytes
        ]
        if fused is not None:
            codes, scales, meta = planes
            fused.quantize(groups, codes, scales, meta, level)
        else:
            unit = self._unit(level, groups)
            for part in self._parts(groups):
                found = self._pack(groups[part], _of_rows(unit, part))
                for plane, value in zip(planes, found, strict=True):
                    plane[part] = value
        return planes, level

    def _quantized(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return codes, scales, meta and tensor scale; the last is empty without one."""
        planes, unit = self._planes(x, self._groups(x), kernels(self, x.device, x.dtype))
        lead = (*x.shape[:-1], -(-x.shape[-1] // self.block.group))
        codes, scales, meta = (
            plane.reshape(*lead[:-1], lead[-1] * size)
            for plane, size in zip(planes, self.block.group_bytes, strict=True)
        )
        level = torch.empty(0, dtype=torch.float32, device=x.device) if unit is None else unit
        return codes, scales, meta, level

    def decoded(self, packed: PackedTensor, dtype: torch.dtype) -> Tensor:
        """Return the values of a packed tensor of real planes."""
        planes = [plane.flatten(0, -2) for plane in packed.split()]
        values = torch.empty(len(planes[0]), self.block.group, dtype=dtype, device=packed.device)
        fused = kernels(self, packed.device, dtype) if dtype in INPUT_DTYPES else None
        if fused is not None:
            codes, scales, meta = (plane.contiguous() for plane in planes)
            fused.dequantize(codes, scales, meta, values, packed.tensor_scale)
        else:
            unit = self._unit(packed.tensor_scale, values)
            for part in self._parts(values):
                fields = self.unpack(*(plane[part] for plane in planes))
                exact = self.coder.decode(*fields, _of_rows(unit, part))
                values[part] = round_once(exact, dtype)
        return self._ungroup(values, packed.shape)

    def _faked(self, x: Tensor) -> Tensor:
        """Return the values that x has in this format, in its type."""
        groups = self._groups(x)
        values = torch.empty_like(groups)
        fused = kernels(self, x.device, x.dtype)
        level = self._tensor_scale(groups, x.shape, fused)
        if fused is not None:
            fused.fake_quantize(groups, values, level)
        else:
            unit = self._unit(level, groups)
            for part in self._parts(groups):
                own = _of_rows(unit, part)
                fields = self._encode(groups[part], own)
                values[part] = round_once(self.coder.decode(*fields, own), x.dtype)
        return self._ungroup(values, x.shape)

    def _clips(self, x: Tensor) -> Tensor:
        """Return where values of x are clipped."""
        groups = self._groups(x)
        planes, level = self._planes(x, groups, kernels(self, x.device, x.dtype))
        unit = self._unit(level, groups)
        found = torch.empty(groups.shape, dtype=torch.bool, device=x.device)
        for part in self._parts(groups):
            fields = self.unpack(*(plane[part] for plane in planes))
            own = _of_rows(unit, part)
            found[part] = self.coder.clips(widen(groups[part]), *fields, own)
        return self._ungroup(found, x.shape)

    def unpack(self, codes: Tensor, scales: Tensor, meta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the fields of groups of bytes [..., size]: codes, scales, metadata, int64."""
        block = self.block
        return (
            unpack_bits(codes, block.element.bits, block.group),
            self.coder.scales_from_bytes(scales),
            unpack_bits(meta, max(1, block.metadata.bits), block.subgroups),
        )

    def _tensor_scale(
        self, groups: Tensor, shape: torch.Size, fused: Kernels | None
    ) -> Tensor | None:
        """Return the second-level scale, float32, of the groups [n, group] of a shape, or None.

        A scalar, or one for each row of the last dimension (``token``).
        """
        if self.level is None:
            return None
        if not isinstance(self.level, str):
            level = torch.tensor(self.level, dtype=torch.float64, device="cpu")
            return round_once(level, torch.float32).to(groups.device)
        if self.level == "token":
            rows = groups.reshape(*shape[:-1], -(-shape[-1] // self.block.group) * groups.shape[1])
            amax = _largest_finite(rows)
        elif fused is not None:
            amax = fused.largest(groups)
        else:
            parts = groups.reshape(-1).split(_chunk_values(groups.device)) if len(groups) else ()
            zero = torch.zeros((), dtype=groups.dtype, device=groups.device)
            amax = _largest_finite(torch.stack([zero, *map(_largest_finite, parts)]))
        reach = float(self.block.element.max_value) * _grid_max(self.block.scale)
        g = round_once(widen(amax) / reach, torch.float32)
        return torch.where(widen(g) == 0, torch.ones_like(g), g)

    def _unit(self, tensor_scale: Tensor | None, groups: Tensor) -> Tensor:
        """Return the second-level scale of groups [n, group] as float64, 1 without one.

        A scalar, or [n, 1] where each row has its own.
        """
        if tensor_scale is None:
            return torch.ones((), dtype=torch.float64, device=groups.device)
        if self.level != "token":
            return widen(tensor_scale)
        rows = widen(tensor_scale).reshape(-1, 1)
        return rows.repeat_interleave(len(groups) // max(1, len(rows)), 0)

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
        x = widen(groups)
        bad = ~x.isfinite().all(-1, keepdim=True)
        codes, stored, fields = self.coder.encode(x.masked_fill(bad, 0.0), unit, groups.dtype)
        return (
            codes.masked_fill(bad, 0),
            torch.where(bad, self.coder.poison(stored), stored),
            fields.masked_fill(bad, 0),
        )

    def planes_of_groups(self, groups: Tensor, unit: Tensor) -> list[Tensor]:
        """Return the planes [n, bytes] of groups [n, group], each with a tensor scale of its own.

        ``unit`` holds them: float64 [n, 1], numbers of float32.
        """
        parts = [self._pack(groups[part], unit[part]) for part in self._parts(groups)]
        return [torch.cat(plane) for plane in zip(*parts, strict=True)]

    def _pack(self, groups: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize groups [n, group] of the input type into bytes [n, code|scale|meta bytes]."""
        codes, stored, fields = self._encode(groups, unit)
        return (
            pack_bits(codes, self.block.element.bits),
            self.coder.scales_to_bytes(stored),
            pack_bits(fields, max(1, self.block.metadata.bits)),
        )


def _chunk_values(device: torch.device) -> int:
    """Return how many values the plain path works on at a time."""
    return _CHUNK_VALUES.get(device.type, _CHUNK_VALUES["cpu"])


def _largest_finite(x: Tensor) -> Tensor:
    """Return the largest finite magnitude of each row, 0 of an empty one.

    By the bits, which order finite magnitudes: a flushing processor has no subnormals.
    """
    whole = torch.int32 if x.dtype == torch.float32 else torch.int16
    if not x.shape[-1]:
        return x.new_zeros(x.shape[:-1])
    bits = x.contiguous().view(whole).bitwise_and(torch.iinfo(whole).max)
    return bits.masked_fill(~x.isfinite(), 0).amax(-1).view(x.dtype)


def _of_rows(unit: Tensor, part: slice) -> Tensor:
    """Return the second-level scales of some groups."""
    return unit[part] if unit.ndim else unit


def _grid_max(scale: Scale) -> float:
    """Return the largest value of a minifloat scale."""
    assert scale.grid is not None
    return float(scale.grid.max_value)


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
    """Validate ``tensor_scale``: None, "auto", "token" or a positive number that float32 holds."""
    if value is None or (isinstance(value, str) and value in ("auto", "token")):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            f"tensor_scale={told(value)}; pass None, 'auto', 'token' or a positive number"
        )
    exact = torch.tensor(float(value), dtype=torch.float64, device="cpu")
    rounded = widen(round_once(exact, torch.float32)).item()
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
    if "choice" in options:
        choice = _choice("choice", options["choice"], CHOICES)
        block = replace(block, metadata=replace(block.metadata, choice=choice))
    if "full_range" in options and isinstance(block.element, IntElement):
        full = _flag("full_range", options["full_range"])
        block = replace(block, element=replace(block.element, full_range=full))
    if "scale_mode" in options:
        mode = _choice("scale_mode", options["scale_mode"], SCALE_MODES)
        if "scale_rule" in options:
            raise InputError("scale_mode and scale_rule exclude each other; pass one of them")
        block = replace(block, scale=MODE_SCALES[mode])
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
        scale = MinifloatScale(
            block.scale,
            block.element,
            block.ties,
            zero_is_one,
            _least(block.scale, options.get("scale_floor")),
            _choice("quotient", options.get("quotient", "exact"), QUOTIENTS),
        )
    return ScaledCoder(
        scale, _refinement(block, scale, options), block.scaling == "split", block.scale.bits // 8
    )


def _least(scale: Scale, floor: Option) -> int:
    """Return the code of the smallest scale that is given; InputError if it is none."""
    if floor is None:
        return 0
    grid = scale.grid
    assert grid is not None
    if isinstance(floor, int | float) and not isinstance(floor, bool):
        for code in range(1, grid.max_code + 1):
            if grid.magnitude(code) == floor:
                return code
    raise InputError(
        f"scale_floor={told(floor)}; pass None or a positive number of {grid.name}, such as "
        f"{float(grid.magnitude(1 << grid.mantissa_bits))}"
    )


def _refinement(block: BlockFormat, scale: SharedScale, options: dict[str, Option]) -> Refinement:
    """Build the metadata codec of a description."""
    if block.metadata.name == "none":
        return NoMetadata(block.element, block.ties)
    assert isinstance(block.element, FloatElement)
    subgroup = block.metadata.subgroup
    if block.metadata.name == "elem-em":
        return ElementMantissa(block.element, subgroup, block.ties, block.metadata.choice)
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
        octaves=_choice("candidates", options.get("candidates", "steps"), CANDIDATES) == "octaves",
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
    candidates
        Sg-EM on E4M3 scales: ``steps`` (default) tries the codes beside the fitted one,
        ``octaves`` half of the scale and its double.
    choice
        Elem-EM: which of equally large codes is refined, that of the ``lowest`` index (default) or
        of the ``highest``.
    fraction_bits
        Sg-EM with ``search="fixed"``: fraction bits of the fixed-point view, 5..32; by default 10,
        13, 26 for bfloat16, float16, float32, where both searches agree bit for bit.
    full_range
        Integers: whether the most negative code is used (default False).
    group, subgroup
        Values that share a scale, values that share a metadata field.
    quotient
        NVFP4: ``exact`` (default), or ``reciprocal``: float32 arithmetic with one rounding after
        each step, values multiplied by the reciprocal of their scale.
    scale_floor
        NVFP4: the smallest scale that is given, such as 2^-6, that of a group of zeros too; None
        (default) for none.
    scale_mode
        ``pot``, ``pot-r``, ``float``, ``e4m3`` or ``e5m2``: the scale modes of MX-QLLM.
    scale_rule
        ``floor`` (default), ``ceil``, ``rtn1``, ``rtn2``, ``even`` (alias ``rtne``), or
        ``even-e2m1``, which is ``even`` with the threshold of E2M1 for all elements.
    search
        Sg-EM: ``exact`` (default) or ``fixed``.
    tensor_scale
        NVFP4: the second-level scale. None (one level), a number, ``auto`` (from the largest value
        of the whole tensor) or ``token`` (from that of each row along the last dimension).
    ties
        ``even``, ``away`` or ``zero``.

    Raises
    ------
    UnknownNameError
        No such format.
    InputError
        An option that the format does not take, or a value that it cannot have.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {type(name).__name__}; pass a format's name, such as 'mxfp4'")
    name, colon, rest = name.partition(":")
    options = _parse_options(rest, f"{name}:{rest}") | options if colon else options
    chosen = tuple(sorted(options.items()))
    block = block_format(name)
    for option in options:
        if option not in block.options:
            raise InputError(
                f"format {name} has no option {option!r}; it takes: {', '.join(block.options)}"
            )
    block = _describe(block, options)
    fmt = Format(name, chosen, block, _compose(block, options), _level(options.get("tensor_scale")))
    key = _text(name, chosen)
    object.__setattr__(fmt, "_key", key)
    return _FORMATS.setdefault(key, fmt)


# Formats by key. Those put together by hand have a hash of their parts in theirs.
_FORMATS: dict[str, Format] = {}
_MADE_BY_HAND = "#"


def _text(name: str, options: tuple[tuple[str, Option], ...]) -> str:
    """Return the name that ``get_format`` takes for a format and its options."""
    shown = ",".join(f"{option}={_shown(value)}" for option, value in options)
    return f"{name}:{shown}" if shown else name


def _shown(value: Option) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _remember(fmt: Format) -> str:
    """Give a format that ``get_format`` did not make its key."""
    key = _text(fmt.name, fmt.options)
    try:
        named = get_format(key)
    except ValueError:
        named = None
    if named != fmt:
        key += _MADE_BY_HAND + sha256(repr(fmt).encode()).hexdigest()[:16]
        _FORMATS.setdefault(key, fmt)
    object.__setattr__(fmt, "_key", key)
    return key


def format_of(key: str) -> Format:
    """Return the format that has this ``key``.

    Raises
    ------
    InputError
        It was put together by hand in another process.
    """
    found = _FORMATS.get(key)
    if found is not None:
        return found
    if _MADE_BY_HAND in key:
        raise InputError(
            f"format {key!r} is one that was put together by hand; make it here too, before its use"
        )
    return get_format(key)


def _batch(tensor: Tensor, dim: int | None) -> Tensor:
    """Return a tensor with the dimension of ``vmap`` in front."""
    assert dim is not None  # it is the only one
    return tensor.movedim(dim, 0)


def _batched(call: str) -> Callable[..., Any]:
    """Return the rule of ``vmap`` for an operator on one tensor x, which has any leading sizes."""

    def rule(
        size: int, dims: tuple[int | None, ...], x: Tensor, key: str
    ) -> tuple[Any, tuple[int | None, ...] | int]:
        operator = _OPERATORS[call]
        if format_of(key).level == "auto" and size:  # a scale for each tensor
            return each(operator, size, dims, x, key)
        found = operator(_batch(x, dims[0]), key)
        if isinstance(found, tuple):
            return found, (0, 0, 0, 0 if format_of(key).level == "token" else None)
        return found, 0

    return rule


def _batched_dequantize(
    size: int,
    dims: tuple[int | None, ...],
    codes: Tensor,
    scales: Tensor,
    meta: Tensor | None,
    tensor_scale: Tensor | None,
    width: int,
    key: str,
    dtype: torch.dtype,
) -> tuple[Tensor, int]:
    rest = (tensor_scale, width, key, dtype)
    if dims[3] is not None and size:
        return each(_DEQUANTIZE, size, dims, codes, scales, meta, *rest)
    return _DEQUANTIZE(*in_front(size, dims[:3], codes, scales, meta), *rest), 0


def _fake_planes(x: Tensor, key: str) -> tuple[Tensor, ...]:
    fmt = format_of(key)
    groups = -(-x.shape[-1] // fmt.block.group)
    planes = [
        x.new_empty((*x.shape[:-1], groups * size), dtype=torch.uint8)
        for size in fmt.block.group_bytes
    ]
    level = (0,) if fmt.level is None else x.shape[:-1] if fmt.level == "token" else ()
    return (*planes, x.new_empty(level, dtype=torch.float32))


def _fake_values(
    codes: Tensor,
    scales: Tensor,
    meta: Tensor | None,
    tensor_scale: Tensor | None,
    width: int,
    key: str,
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], width), dtype=dtype)


def _like(dtype: torch.dtype | None = None) -> Callable[[Tensor, str], Tensor]:
    return lambda x, key: x.new_empty(x.shape, dtype=dtype or x.dtype)


@explained("quantize")
@shielded
def _quantize(x: Tensor, key: str) -> tuple[Tensor, ...]:
    return format_of(key)._quantized(x)


@explained("dequantize")
@shielded
def _dequantize(
    codes: Tensor,
    scales: Tensor,
    meta: Tensor | None,
    tensor_scale: Tensor | None,
    width: int,
    key: str,
    dtype: torch.dtype,
) -> Tensor:
    fmt = format_of(key)
    shape = torch.Size((*codes.shape[:-1], width))
    packed = PackedTensor(fmt, codes, scales, meta, shape, tensor_scale)
    if dtype not in INPUT_DTYPES:
        refuse_forced(f"gives {dtype}; pass float32, bfloat16 or float16")
    return fmt.decoded(packed, dtype)


@explained("fake_quantize")
@shielded
def _fake_quantize(x: Tensor, key: str) -> Tensor:
    return format_of(key)._faked(x)


@explained("clipped")
@shielded
def _clip(x: Tensor, key: str) -> Tensor:
    return format_of(key)._clips(x)


# What torch.load(weights_only=True) may put together: a format by its key, or by its parts.
torch.serialization.add_safe_globals(
    [
        format_of,
        *(Format, BlockFormat, FloatElement, IntElement, Metadata, Scale),
        *(AffineCoder, ScaledCoder, MinifloatScale, PowerOfTwoScale),
        *(ElementMantissa, NoMetadata, PairExponent, SubgroupScale),
    ]
)

_QUANTIZE = define(
    "quantize(Tensor x, str format) -> (Tensor, Tensor, Tensor, Tensor)",
    _quantize,
    _fake_planes,
    _batched("quantize"),
)
_DEQUANTIZE = define(
    "dequantize(Tensor codes, Tensor scales, Tensor? meta, Tensor? tensor_scale, SymInt width, "
    "str format, ScalarType dtype) -> Tensor",
    _dequantize,
    _fake_values,
    _batched_dequantize,
)
_CLIPPED = define(
    "clipped(Tensor x, str format) -> Tensor", _clip, _like(torch.bool), _batched("clipped")
)
_FAKE_QUANTIZE = define(
    "fake_quantize(Tensor x, str format) -> Tensor",
    _fake_quantize,
    _like(),
    _batched("fake_quantize"),
    blocked=_CLIPPED,
)
_OPERATORS = {"quantize": _QUANTIZE, "clipped": _CLIPPED, "fake_quantize": _FAKE_QUANTIZE}
