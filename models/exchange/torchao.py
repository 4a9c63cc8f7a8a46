"""torchao's ``MXTensor`` and ``NVFP4Tensor``, as objects and as they stand in safetensors files.

FP4 codes stand two a byte, FP6 and FP8 codes one a byte; scales stand row by row or swizzled, in
tiles of 128 rows by 4, as matrix units want them. torchao itself is not needed.
Source: torchao 0.18, prototype/mx_formats and prototype/safetensors.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.models.exchange.planes import (
    as_bytes,
    e4m3_bytes,
    e8m0_bytes,
    swizzled,
    swizzled_shape,
    tight_codes,
    unswizzled,
    wide_codes,
)
from m2xfp.models.exchange.record import Layout, Packed, Planes, Quantized, assembled
from m2xfp.plain import parse_json

__all__ = [
    "from_torchao",
    "parts_of_torchao",
    "read_torchao",
    "stored_torchao",
    "torchao_layouts",
]

# torchao's element types, by the names that its attributes and its files have for them.
_ELEMENTS = {
    "float4_e2m1fn_x2": "mxfp4",
    "fp6_e2m3": "mxfp6-e2m3",
    "fp6_e3m2": "mxfp6-e3m2",
    "float8_e4m3fn": "mxfp8-e4m3",
    "float8_e5m2": "mxfp8-e5m2",
}
_CODES = ("float4_e2m1fn_x2", "float8_e4m3fn", "float8_e5m2")
_PARTS = {"codes": "qdata", "scales": "scale", "tensor_scale": "per_tensor_scale"}


def _format(kind: str, element: str, group: object, two_levels: bool) -> Format:
    """Return the format of a tensor of class ``kind``."""
    if kind == "NVFP4Tensor":
        name, usual = "nvfp4", 16
    elif kind == "MXTensor" and element in _ELEMENTS:
        name, usual = _ELEMENTS[element], 32
    else:
        raise InputError(
            f"a {kind} of {element} is none that is known; there are NVFP4Tensor, and MXTensor of "
            f"{', '.join(_ELEMENTS)}"
        )
    options: dict[str, Any] = {} if group == usual else {"group": group}
    return get_format(name, **options, **({"tensor_scale": "auto"} if two_levels else {}))


def read_torchao(
    fmt: Format, qdata: Tensor, scale: Tensor, tensor_scale: Tensor | None, tiled: bool
) -> Quantized:
    """Return the weight of torchao's tensors; errors name them codes, scales, tensor_scale.

    Parameters
    ----------
    fmt
        The format.
    qdata, scale
        As torchao holds them, row by row.
    tensor_scale
        float32: a scalar, or [n, 1, 1] for n experts.
    tiled
        Whether the scales are swizzled.
    """
    if not qdata.is_contiguous():
        raise InputError("codes are transposed; pass the tensor that is summed over its rows")
    codes = as_bytes("codes", qdata, *_CODES)
    bits = fmt.block.element.bits
    if bits == 6:
        if not codes.is_meta and (count := int((codes > 63).sum())):
            raise InputError(f"codes has {count} bytes over 63; each holds one code of six bits")
        codes = tight_codes(codes, bits)
    scales = e4m3_bytes(scale) if fmt.block.scale.grid else e8m0_bytes(scale)
    if tiled:
        columns = codes.shape[-1] * 8 // bits // fmt.block.group
        rows = codes.shape[:-1].numel()
        scales = unswizzled("scales", scales, rows, columns).reshape(*codes.shape[:-1], columns)
    return assembled(fmt, codes, scales, tensor_scale)


def from_torchao(tensor: Any) -> Quantized:
    """Return a torchao tensor's weight, its bytes as they are.

    Parameters
    ----------
    tensor
        An ``MXTensor`` or ``NVFP4Tensor``, not transposed.

    Raises
    ------
    InputError, TypeError
        It is of another class, or its parts do not fit.
    """
    kind = type(tensor).__name__
    element = str(getattr(tensor, "elem_dtype", "")).removeprefix("torch.")
    level = getattr(tensor, "per_tensor_scale", None)
    fmt = _format(kind, element, getattr(tensor, "block_size", None), level is not None)
    tiled = bool(tensor.is_swizzled_scales)
    return read_torchao(fmt, tensor.qdata, tensor.scale, level, tiled)


def parts_of_torchao(packed: Packed, tiled: bool = False) -> dict[str, Tensor]:
    """Return ``qdata``, ``scale`` and ``per_tensor_scale`` of the torchao tensor of a weight.

    Parameters
    ----------
    packed
        In a format that torchao has: MXFP4, MXFP6, MXFP8 or NVFP4.
    tiled
        Whether to swizzle the scales.
    """
    block, planes = packed.format.block, packed.planes()
    known = {*_ELEMENTS.values(), "nvfp4"}
    if packed.format.name not in known:
        raise InputError(f"torchao has no {packed.format.name}; it has: {', '.join(known)}")
    codes, scales = planes["codes"], planes["scales"]
    if block.element.bits == 6:
        codes = wide_codes(codes, 6)
    elif block.element.bits == 8:
        codes = codes.view(
            torch.float8_e4m3fn if block.element.name == "e4m3" else torch.float8_e5m2
        )
    if tiled:
        rows = scales.shape[:-1].numel()
        if scales.ndim > 2 and scales.shape[-2] % 128:
            raise InputError(
                f"{scales.shape[-2]} rows an expert are no multiple of 128, so that tiles of "
                "scales would span experts; do not swizzle"
            )
        tall, wide = swizzled_shape(*scales.shape[-2:])
        tiles = swizzled(scales.reshape(rows, -1))
        scales = tiles.reshape(*scales.shape[:-2], tall, wide)
    found = {
        "qdata": codes,
        "scale": scales.view(torch.float8_e4m3fn if block.scale.grid else torch.float8_e8m0fnu),
    }
    if "tensor_scale" in planes:
        found["per_tensor_scale"] = planes["tensor_scale"]
    return found


def stored_torchao(texts: Mapping[str, str]) -> dict[str, tuple[Format, dict[str, str], bool]]:
    """Return what the texts of a safetensors file say of its weights of torchao.

    Returns
    -------
    By weight: its format, the names of its tensors by plane, and whether scales are swizzled.

    Raises
    ------
    InputError
        A weight is in a form of torchao that is not known here.
    """
    found = {}
    for weight, text in texts.items():
        facts = parse_json(text, f"the text {weight}") if text.startswith("{") else None
        if not isinstance(facts, dict) or facts.get("_type", "torch.Tensor") == "torch.Tensor":
            continue
        if facts["_type"] == "Tensor":
            continue
        data = facts.get("_data")
        data = data if isinstance(data, dict) else {}
        element = data.get("elem_dtype")
        element = element.get("_data") if isinstance(element, dict) else element
        planes = facts.get("_tensor_data_names")
        planes = planes if isinstance(planes, list) else []
        layer, _, own = weight.rpartition(".")
        names = {
            plane: f"{layer}._{own}_{part}"
            for plane, part in _PARTS.items()
            if part in planes or plane != "tensor_scale"
        }
        try:
            fmt = _format(
                str(facts["_type"]), str(element), data.get("block_size"), "tensor_scale" in names
            )
        except InputError as error:
            raise InputError(f"{weight}: {error}") from error
        found[weight] = fmt, names, bool(data.get("is_swizzled_scales"))
    return found


def _as_type(name: str) -> Any:
    """Return a type of PyTorch's, or the name of one that it has not, as torchao's JSON does."""
    return name if name.startswith("fp6") else {"_type": "torch.dtype", "_data": name}


def _text(packed: Packed | None, dtype: torch.dtype) -> str:
    """Return what the header of a file says of a weight, or of a plain tensor."""
    if packed is None:
        return json.dumps({"_type": "Tensor"})
    usual = _as_type(str(dtype).removeprefix("torch."))
    kept = {"block_size": packed.format.block.group, "orig_dtype": usual}
    kept |= {"act_quant_kwargs": None, "is_swizzled_scales": False}
    element = next((own for own, name in _ELEMENTS.items() if name == packed.format.name), None)
    if element is None:
        kind, kept = "NVFP4Tensor", {**kept, "use_triton_kernel": False}
    else:
        how = {"_type": "KernelPreference", "_data": "EMULATED"}
        kind, kept = "MXTensor", {**kept, "elem_dtype": _as_type(element), "kernel_preference": how}
    parts = [part for plane, part in _PARTS.items() if plane in packed.planes()]
    return json.dumps({"_type": kind, "_data": kept, "_tensor_data_names": parts})


def _config(element: str | None) -> dict[str, Any]:
    """Return torchao's configuration of a model with such weights, as its JSON."""
    kept: dict[str, Any] = {"use_dynamic_per_tensor_scale": True}
    kind = "NVFP4WeightOnlyConfig"
    if element is not None:
        kind = "MXDynamicActivationMXWeightConfig"
        kept = {
            "block_size": 32,
            "activation_dtype": _as_type(element),
            "weight_dtype": _as_type(element),
            "kernel_preference": {"_type": "KernelPreference", "_data": "EMULATED"},
            "scaling_mode": {"_type": "ScaleCalculationMode", "_data": "FLOOR"},
        }
    return {"default": {"_type": kind, "_version": 1, "_data": kept}}


def _settings(ignored: Sequence[str], element: str | None) -> dict[str, Any]:
    return {
        "quant_method": "torchao",
        "quant_type": _config(element),
        "modules_to_not_convert": list(ignored),
    }


def _is_torchao(config: Mapping[str, Any], element: str | None) -> bool:
    """Whether a configuration is of weights of this element; what else they are, files say."""
    told = config.get("quant_type") == _config(element)
    return config.get("quant_method") == "torchao" and told


def _read(planes: Planes, fmt: str) -> Quantized:
    level = planes.get("tensor_scale")
    return read_torchao(get_format(fmt), planes["codes"], planes["scales"], level, tiled=False)


def _write(packed: Packed) -> dict[str, Tensor]:
    parts = parts_of_torchao(packed)
    return {plane: parts[part] for plane, part in _PARTS.items() if part in parts}


def torchao_layouts() -> list[Layout]:
    """Return the layouts of checkpoint folders of torchao, whose scales stand row by row."""
    known: list[tuple[str | None, str]] = [*_ELEMENTS.items()]
    return [
        Layout(
            name=f"torchao-{fmt.partition(':')[0]}",
            library="torchao",
            format=fmt,
            suffixes={
                plane: f"_{part}"
                for plane, part in _PARTS.items()
                if plane != "tensor_scale" or element is None
            },
            read=partial(_read, fmt=fmt),
            write=_write,
            settings=partial(_settings, element=element),
            accepts=partial(_is_torchao, element=element),
            prefix="_",
            text=_text,
        )
        for element, fmt in (*known, (None, "nvfp4:tensor_scale=auto"))
    ]
