"""Hugging Face's own doors: ``from_pretrained(..., quantization_config=M2xfpConfig(...))``.

Importing this module tells transformers of the method ``m2xfp``. A model is then quantized tensor
by tensor while it is loaded, ``save_pretrained`` writes it packed, and ``from_pretrained`` of that
folder reads the packed tensors; ``device_map`` and ``generate`` are transformers' own.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError, M2xfpError, MissingToolError
from m2xfp.golden.formats.format import Format
from m2xfp.golden.formats.packed import PLANES, PackedTensor
from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.inputs import input_quantizer, weight_format
from m2xfp.models.layers import (
    Weight,
    check_weights,
    find_layers,
    head_layers,
    is_plain_linear,
    is_transposed_linear,
)
from m2xfp.models.linear import QuantLinear
from m2xfp.models.operands import (
    decoded,
    is_watched,
    packed_weights,
    quantize_in_place,
    watch,
)
from m2xfp.models.quantized import quantized_linear, replace_module, set_arithmetic

try:
    from transformers.core_model_loading import ConversionOps, WeightConverter
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise MissingToolError(
        "the Python package transformers (5 or newer), for M2xfpConfig", 'pip install "m2xfp[hf]"'
    ) from error

__all__ = ["M2xfpConfig", "M2xfpQuantizer"]

METHOD = "m2xfp"


@register_quantization_config(METHOD)
class M2xfpConfig(QuantizationConfigMixin):
    """How transformers shall quantize a model; all of it can be written as JSON.

    Parameters
    ----------
    weights, activations
        Formats of weights and of layer inputs by name, as ``get_format`` takes them; None leaves
        them as they are. Weights have two levels of scales where they can (``weight_format``).
    modules_to_not_convert
        Layers to leave alone: names or patterns such as ``*.o_proj``.
    head
        Quantize the layer that makes the logits too.
    allow_nan
        Quantize weights that hold a NaN or an infinity too: their groups become NaN.
    arithmetic, accumulator
        How layers multiply: ``float``, or ``hardware`` with its accumulator.
    """

    def __init__(
        self,
        weights: str | None = "m2xfp-weight",
        activations: str | None = "m2xfp-act",
        modules_to_not_convert: Iterable[str] = (),
        head: bool = False,
        allow_nan: bool = False,
        arithmetic: str = "float",
        accumulator: str = "fp32",
        **others: Any,
    ) -> None:
        unknown = others.keys() - {"quant_method"}
        if unknown or others.get("quant_method", METHOD) != METHOD:
            raise InputError(f"M2xfpConfig has no {', '.join(sorted(unknown)) or 'other method'}")
        self.quant_method = METHOD
        self.weights = weights
        self.activations = activations
        self.modules_to_not_convert = list(modules_to_not_convert or ())
        self.head = head
        self.allow_nan = allow_nan
        self.arithmetic = arithmetic
        self.accumulator = accumulator
        for name, value in (("weights", weights), ("activations", activations)):
            if value is not None and not isinstance(value, str):
                raise InputError(f"{name}={value!r}; pass the name of a format, such as 'mxfp4'")
        if weights is None and activations is None:
            raise InputError("M2xfpConfig: give a format of weights or of activations, or of both")
        inputs = input_quantizer(activations)
        how = Arithmetic(arithmetic, accumulator)
        how.check(inputs.format if inputs else None, weight_format(weights))


@register_quantizer(METHOD)
class M2xfpQuantizer(HfQuantizer):
    """What transformers calls while it loads or saves a model; users pass an ``M2xfpConfig``."""

    quantization_config: M2xfpConfig

    def __init__(self, quantization_config: M2xfpConfig, **options: Any) -> None:
        # A copy, in which the layers that were left out are named for the model at hand.
        super().__init__(copy.deepcopy(quantization_config), **options)
        self.weights: Format | None = weight_format(quantization_config.weights)
        self.inputs = input_quantizer(quantization_config.activations)
        self.targets: dict[str, Weight] = {}
        self._waiting: dict[int, dict[str, PackedTensor | None]] = {}
        self.refused: list[M2xfpError] = []

    # What transformers asks.

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Refuse what cannot be done on the way: tensors that go to disk are not quantized."""
        places = device_map.values() if isinstance(device_map, dict) else ()
        if not self.pre_quantized and "disk" in places:
            raise InputError(
                "device_map: a model is quantized while it is loaded, and its layers cannot go to "
                "disk then; load and save it first, then load the packed folder with a device_map"
            )

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Refuse types that cannot be quantized."""
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"dtype is {dtype}; pass float32, bfloat16 or float16")
        return dtype

    @property
    def quantized_element_size(self) -> float | None:
        """Bytes of a value, for maps of devices."""
        return None if self.weights is None else float(self.weights.block.bits_per_value) / 8

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        """Whether a parameter is quantized when it is loaded."""
        return param_name in self.targets

    def is_serializable(self) -> bool:
        """``save_pretrained`` writes packed tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top can be trained; packed weights take no gradient."""
        return True

    def get_quantize_ops(self) -> "ConversionOps":
        """Return what quantizes one parameter."""
        return _Quantize(self)

    def get_weight_conversions(self) -> list[Any]:
        """Return what reads packed tensors that are no parameters of the model as they are."""
        if not self.pre_quantized or self.weights is None:
            return []
        found = [WeightConverter(["tensor_scale$"], ["tensor_scale"], [_ScaleBits(self)])]
        names = {weight.parameter for weight in self.targets.values() if not _is_replaced(weight)}
        planes = _plane_names(self.weights)
        return [
            *(
                WeightConverter([f"{name}.{plane}$" for plane in planes], [name], [_Decode(self)])
                for name in sorted(names)
            ),
            *(found if self.weights.level is not None else ()),
        ]

    # What happens to the model.

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        config = self.quantization_config
        if not config.head and not self.pre_quantized:
            told = (*config.modules_to_not_convert, *head_layers(model))
            config.modules_to_not_convert = list(dict.fromkeys(told))
        found = find_layers(model, config.modules_to_not_convert).quantized
        attentions = {
            id(part)
            for module in model.modules()
            if isinstance(module, nn.MultiheadAttention)
            for part in module.modules()
        }
        self.targets = {w.name: w for w in found if id(w.module) not in attentions}
        if not self.pre_quantized:
            return
        for weight in self.targets.values():
            if _is_replaced(weight):
                replace_module(model, weight.module, self._empty(weight))
            elif self.weights is None:
                self.put(weight, None)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        if self.refused:
            raise self.refused[0]
        conversions = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [  # type: ignore[assignment]
            each
            for each in conversions
            if not any(isinstance(op, _Step) for op in getattr(each, "operations", ()))
        ]
        for module in model.modules():
            if isinstance(module, QuantLinear):
                for parameter in module.parameters():
                    parameter.requires_grad_(False)
        config = self.quantization_config
        set_arithmetic(model, Arithmetic(config.arithmetic, config.accumulator))
        return model

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict]:
        """Return the tensors to save: packed ones for all that is quantized."""
        tensors = dict(model.state_dict())
        for name in [name for name in tensors if name.endswith(".tensor_scale")]:
            tensors[name] = tensors[name].view(torch.float32)
        for name, module in model.named_modules():
            if not is_watched(module):
                continue
            for own, (_, packed) in packed_weights(module).items():
                whole = f"{name}.{own}"
                del tensors[whole]
                tensors |= {f"{whole}.{plane}": t for plane, t in packed.planes().items()}
                # Experts stay in one tensor: what takes them apart knows no packed ones.
                kept = getattr(model, "_weight_conversions", None) or []
                model._weight_conversions = [  # type: ignore[assignment]
                    each for each in kept if not isinstance(each, WeightConverter)
                ]
        return tensors, {}

    # Single weights.

    def _empty(self, weight: Weight) -> QuantLinear:
        """Return a layer of planes without values, to be loaded."""
        module, value = weight.module, weight.value
        if is_transposed_linear(module):
            value = value.T
        packed = None if self.weights is None else _empty_planes(self.weights, value.shape)
        bias: Any = module.bias
        return QuantLinear(value, bias, packed, self.inputs)

    def quantize(self, model: nn.Module, weight: Weight, value: Tensor) -> None:
        """Put a weight that was just loaded into the model, quantized."""
        module = weight.module
        setattr(module, weight.parameter, _loaded(value))
        check_weights([weight], self.quantization_config.allow_nan or self.weights is None)
        if _is_replaced(weight):
            new = quantized_linear(module, self.weights, self.inputs)
            replace_module(model, module, new)
            for parameter in new.parameters():
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        else:
            self.put(weight, None)

    def put(self, weight: Weight, packed: PackedTensor | None) -> None:
        """Take note of a weight of a layer with code of its own; the last one makes it quantize.

        ``packed`` is what the weight was decoded from; None for one that is still to be quantized.
        """
        own = [w for w in self.targets.values() if w.module is weight.module]
        done = self._waiting.setdefault(id(weight.module), {})
        done[weight.parameter] = packed
        if len(done) < len(own):
            return
        if self.pre_quantized:
            forms = {
                w.parameter: (w.dim, form)
                for w in own
                if w.dim is not None and (form := done[w.parameter]) is not None
            }
            watch(weight.module, tuple(w.parameter for w in own), forms, self.inputs)
        else:
            quantize_in_place(own, self.weights, self.inputs)


def _loaded(value: Tensor) -> nn.Parameter:
    """Return a parameter that transformers does not set to random values any more."""
    parameter = nn.Parameter(value, requires_grad=False)
    parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    return parameter


def _is_replaced(weight: Weight) -> bool:
    """Whether a layer of ours stands in for that of a weight; others keep their own code."""
    return is_plain_linear(weight.module) or is_transposed_linear(weight.module)


def _empty_planes(fmt: Format, shape: Iterable[int]) -> PackedTensor:
    """Return a packed tensor without values."""
    size = torch.Size(shape)
    groups = -(-size[-1] // fmt.block.group)
    codes, scales, meta = (
        torch.empty(*size[:-1], groups * count, dtype=torch.uint8, device="meta")
        for count in fmt.block.group_bytes
    )
    level = None
    if fmt.level is not None:
        rows = size[:-1] if fmt.level == "token" else ()
        level = torch.empty(rows, dtype=torch.float32, device="meta")
    return PackedTensor(fmt, codes, scales, meta if meta.shape[-1] else None, size, level)


def _plane_names(fmt: Format) -> list[str]:
    """Return the names of the planes of a format."""
    missing = {"meta": not fmt.block.group_bytes[2], "tensor_scale": fmt.level is None}
    return [name for name in PLANES if not missing.get(name, False)]


class _Step(ConversionOps):
    """A step of loading that knows the quantizer; transformers leaves the types of its inputs."""

    def __init__(self, hf_quantizer: M2xfpQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: Any) -> "_Step":
        """Stay with the one quantizer."""
        return type(self)(self.hf_quantizer)

    def guarded(self, name: str, missing: Any, act: Callable[[], None]) -> dict[str, Tensor]:
        """Act, and keep what is refused: transformers would make a traceback in a log of it."""
        try:
            act()
        except M2xfpError as error:
            self.hf_quantizer.refused.append(error)
        if missing is not None:
            missing.discard(name)
        return {}


def _only(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, list) else value
    return tensor


class _Quantize(_Step):
    """Quantizes a weight where it was loaded to."""

    def convert(
        self,
        input_dict: Mapping[str, Any],
        full_layer_name: str = "",
        model: nn.Module | None = None,
        missing_keys: Any = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Put the quantized weight into the model; nothing is left to do."""
        assert model is not None
        (value,) = input_dict.values()
        weight = self.hf_quantizer.targets[full_layer_name]

        def act() -> None:
            self.hf_quantizer.quantize(model, weight, _only(value))

        return self.guarded(full_layer_name, missing_keys, act)


class _Decode(_Step):
    """Makes a weight of a layer with code of its own from its planes."""

    def convert(
        self,
        input_dict: Mapping[str, Any],
        full_layer_name: str = "",
        missing_keys: Any = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Put the decoded weight into the model; nothing is left to do."""
        quantizer = self.hf_quantizer
        weight = quantizer.targets[full_layer_name]
        planes = {
            pattern.rstrip("$").rpartition(".")[2]: _only(value)
            for pattern, value in input_dict.items()
        }

        def act() -> None:
            assert quantizer.weights is not None
            assert weight.dim is not None
            shape = list(weight.value.shape)
            shape[weight.dim], shape[-1] = shape[-1], shape[weight.dim]
            packed = PackedTensor.from_planes(quantizer.weights, planes, tuple(shape))
            value = decoded(packed, weight.dim, weight.value.dtype)
            setattr(weight.module, weight.parameter, _loaded(value))
            quantizer.put(weight, packed)

        return self.guarded(full_layer_name, missing_keys, act)


class _ScaleBits(_Step):
    """Gives tensor scales as the whole numbers that ``QuantLinear`` keeps them as."""

    def convert(
        self, input_dict: Mapping[str, Any], full_layer_name: str = "", **_: Any
    ) -> dict[str, Tensor]:
        """Return the bits under the name of the parameter."""
        (value,) = input_dict.values()
        return {full_layer_name: _only(value).view(torch.int32)}
