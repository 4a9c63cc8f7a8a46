"""The layouts of checkpoint folders of other libraries, one record each.

All hold an E2M1 code a nibble, the even element low, as this project does.
Sources, each read in its own decoder: compressed-tensors 0.20, NVIDIA Model-Optimizer 0.47,
transformers 5.23 for the MXFP4 of gpt-oss; torchao 0.18 has a file of its own.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.golden.formats.format import get_format
from m2xfp.models.exchange.planes import as_bytes, e4m3_bytes, e8m0_bytes
from m2xfp.models.exchange.record import Layout, Packed, Planes, Quantized, assembled
from m2xfp.models.exchange.torchao import torchao_layouts

__all__ = ["LAYOUTS", "TWO_LEVELS", "find_layout", "layout_of"]

TWO_LEVELS = "nvfp4:tensor_scale=auto"


def _read_mx(planes: Planes, fmt: str, types: tuple[str, ...] = ()) -> Quantized:
    codes = as_bytes("codes", planes["codes"], *types)
    return assembled(get_format(fmt), codes, e8m0_bytes(planes["scales"]))


def _write_mx(packed: Packed, codes: torch.dtype = torch.uint8) -> dict[str, Tensor]:
    planes = packed.planes()
    return {"codes": planes["codes"].view(codes), "scales": planes["scales"]}


def _read_nvfp4(planes: Planes, reciprocal: bool) -> Quantized:
    codes = as_bytes("codes", planes["codes"], "float4_e2m1fn_x2")
    level = {"divisor" if reciprocal else "tensor_scale": planes["tensor_scale"]}
    return assembled(get_format(TWO_LEVELS), codes, e4m3_bytes(planes["scales"]), **level)


def _write_nvfp4(packed: Packed, reciprocal: bool) -> dict[str, Tensor]:
    planes = packed.planes()
    level = planes["tensor_scale"]
    return {
        "codes": planes["codes"],
        "scales": planes["scales"].view(torch.float8_e4m3fn),
        # Of one dimension, as compressed-tensors has it: a scalar would not lift its bfloat16
        # scales to float32, and its decoder would round them.
        "tensor_scale": (1 / level).reshape(-1) if reciprocal else level,
    }


def _compressed_settings(ignored: Sequence[str], name: str, weights: Any) -> dict[str, Any]:
    usual = {"type": "float", "symmetric": True, "dynamic": False}
    group = {"format": name, "targets": ["Linear"], "weights": usual | weights}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "ignore": list(ignored),
        "config_groups": {"group_0": group},
    }


def _is_compressed(config: Mapping[str, Any], name: str) -> bool:
    """Whether all groups of a configuration of compressed-tensors are of this format."""
    groups = config.get("config_groups")
    groups = groups.values() if isinstance(groups, dict) else []
    found = [g.get("format") or config.get("format") for g in groups if isinstance(g, dict)]
    known = bool(found) and all(each == name for each in found)
    return config.get("quant_method") == "compressed-tensors" and known


def _compressed(
    name: str, fmt: str, bits: int, read: Any, write: Any, codes: str = "_packed"
) -> Layout:
    """Return a layout of compressed-tensors."""
    two = fmt == TWO_LEVELS
    scale = "torch.float8_e4m3fn" if two else "torch.uint8"
    weights = {
        "num_bits": bits,
        "strategy": "tensor_group" if two else "group",
        "group_size": 16 if two else 32,
        "scale_dtype": scale,
        "zp_dtype": scale,
    }
    level = {"tensor_scale": "_global_scale"} if two else {}
    return Layout(
        name=name,
        library="compressed-tensors",
        format=fmt,
        suffixes={"codes": codes, "scales": "_scale", **level},
        read=read,
        write=write,
        settings=partial(_compressed_settings, name=name, weights=weights),
        accepts=partial(_is_compressed, name=name),
        dropped=("input_global_scale", "weight_shape"),
    )


def _optimizer_settings(ignored: Sequence[str]) -> dict[str, Any]:
    weights = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    return {
        "quant_method": "modelopt",
        "quant_algo": "W4A16_NVFP4",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": list(ignored),
    }


def _is_optimizer(config: Mapping[str, Any]) -> bool:
    """Whether a configuration, or what hf_quant_config.json has, is of Model-Optimizer's NVFP4."""
    within = config.get("quantization")
    facts = within if isinstance(within, dict) else config
    known = facts.get("quant_algo") in ("NVFP4", "W4A16_NVFP4")
    return config.get("quant_method", "modelopt") == "modelopt" and known


def _read_gpt_oss(planes: Planes) -> Quantized:
    codes = as_bytes("codes", planes["codes"], "float4_e2m1fn_x2")
    if codes.ndim != 4 or codes.shape[-1] != 16:
        raise InputError(f"codes has shape {tuple(codes.shape)}; it is [experts, out, groups, 16]")
    return assembled(get_format("mxfp4"), codes.flatten(-2), e8m0_bytes(planes["scales"]))


def _write_gpt_oss(packed: Packed) -> dict[str, Tensor]:
    planes = packed.planes()
    return {"codes": planes["codes"].unflatten(-1, (-1, 16)), "scales": planes["scales"]}


def _gpt_oss_settings(ignored: Sequence[str]) -> dict[str, Any]:
    return {"quant_method": "mxfp4", "modules_to_not_convert": list(ignored)}


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        _compressed(
            "mxfp4-pack-quantized",
            "mxfp4",
            4,
            partial(_read_mx, fmt="mxfp4", types=("float4_e2m1fn_x2",)),
            _write_mx,
        ),
        _compressed(
            "mxfp6-pack-quantized",
            "mxfp6-e2m3",
            6,
            partial(_read_mx, fmt="mxfp6-e2m3"),
            _write_mx,
        ),
        _compressed(
            "mxfp8-quantized",
            "mxfp8-e4m3",
            8,
            partial(_read_mx, fmt="mxfp8-e4m3", types=("float8_e4m3fn",)),
            partial(_write_mx, codes=torch.float8_e4m3fn),
            codes="",
        ),
        _compressed(
            "nvfp4-pack-quantized",
            TWO_LEVELS,
            4,
            partial(_read_nvfp4, reciprocal=True),
            partial(_write_nvfp4, reciprocal=True),
        ),
        Layout(
            name="modelopt-nvfp4",
            library="NVIDIA Model-Optimizer",
            format=TWO_LEVELS,
            suffixes={"codes": "", "scales": "_scale", "tensor_scale": "_scale_2"},
            read=partial(_read_nvfp4, reciprocal=False),
            write=partial(_write_nvfp4, reciprocal=False),
            settings=_optimizer_settings,
            accepts=_is_optimizer,
            dropped=("input_scale", "k_scale", "v_scale"),
        ),
        Layout(
            name="gpt-oss-mxfp4",
            library="transformers (gpt-oss)",
            format="mxfp4",
            suffixes={"codes": "_blocks", "scales": "_scales"},
            read=_read_gpt_oss,
            write=_write_gpt_oss,
            settings=_gpt_oss_settings,
            accepts=lambda config: config.get("quant_method") == "mxfp4",
            stacked=True,
        ),
        *torchao_layouts(),
    )
}
"""Layouts of folders that are read and written, by the name that ``--to`` takes."""


def find_layout(name: str) -> Layout:
    """Return a layout by name; UnknownNameError lists those that there are."""
    if name not in LAYOUTS:
        raise UnknownNameError("layout", name, LAYOUTS)
    return LAYOUTS[name]


def layout_of(config: Mapping[str, Any]) -> Layout | None:
    """Return the layout that a ``quantization_config`` describes, None if no layout here does."""
    return next((layout for layout in LAYOUTS.values() if layout.accepts(config)), None)
