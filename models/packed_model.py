"""Packed models as files: what ``quantize_model`` made, as one safetensors file and back."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError, M2xfpError, unreadable
from m2xfp.files import atomic_path
from m2xfp.golden.formats.format import INPUT_DTYPES, Format, get_format
from m2xfp.golden.formats.packed import PLANES, PackedTensor
from m2xfp.golden.formats.stacked import StackedTensor
from m2xfp.golden.formats.tensor_file import read_tensor_header, read_tensors
from m2xfp.models.inputs import InputQuantizer, input_quantizer
from m2xfp.models.layers import is_transposed_linear, listed
from m2xfp.models.linear import QuantLinear, quant_layers
from m2xfp.models.lm import LanguageModel, skeleton
from m2xfp.models.operands import (
    QuantMultiheadAttention,
    decoded,
    is_watched,
    packed_weights,
    watch,
    watched_inputs,
    watched_weights,
)
from m2xfp.models.quantized import input_projections, replace_module
from m2xfp.models.rotations import (
    InputRotation,
    StreamRotation,
    input_rotations,
    rotate_input,
    rotate_stream,
    stream_rotation,
)
from m2xfp.plain import parse_json, read_json, typed

__all__ = [
    "PACKED",
    "format_facts",
    "load_quantized",
    "packed_files",
    "packed_weights_of",
    "save_quantized",
    "take_planes",
]

PACKED = "m2xfp.safetensors"
"""Name of the file, in a folder, that holds a packed model."""
_HEADER = "m2xfp"


def format_facts(fmt: Format | None) -> dict[str, Any] | None:
    """Return a format as a header has it."""
    return None if fmt is None else {"format": fmt.name, "options": dict(fmt.options)}


def _from_facts(facts: "_FormatFacts | None") -> Format | None:
    return None if facts is None else get_format(facts.format, **facts.options)


def save_quantized(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a model that ``quantize_model`` made as one safetensors file.

    A quantized layer NAME has the tensors ``NAME.codes``, ``NAME.scales`` and, where the format
    has them, ``NAME.meta`` and ``NAME.tensor_scale``; a weight NAME.WEIGHT of a layer with code of
    its own has ``NAME.WEIGHT.codes`` and so on. Everything else is stored as it is. The header
    ``m2xfp`` is JSON: formats, options and shape of each layer, rotations in front of layers and of
    the residual stream, and tensors that are another name of a stored one.

    Raises
    ------
    InputError
        The model has no quantized layer.
    """
    from safetensors.torch import save_file

    layers = dict(quant_layers(model))
    watched = {name: module for name, module in model.named_modules() if is_watched(module)}
    if not layers and not watched:
        raise InputError("the model has no quantized layer; call quantize_model first")
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    facts: dict[str, Any] = {"layers": {}, "aliases": {}, "watched": {}, "attentions": []}
    facts["attentions"] = [
        name for name, m in model.named_modules() if isinstance(m, QuantMultiheadAttention)
    ]
    for name, module in watched.items():
        inputs = watched_inputs(module)
        facts["watched"][name] = {
            "activations": format_facts(inputs.format if inputs else None),
            "inputs": list(watched_weights(module)),
            "weights": {
                own: {
                    **cast(dict[str, Any], format_facts(packed.format)),
                    "shape": list(packed.shape),
                    "dim": dim,
                    "dtype": str(getattr(module, own).dtype).removeprefix("torch."),
                }
                for own, (dim, packed) in packed_weights(module).items()
            },
        }
        for own, (_, packed) in packed_weights(module).items():
            whole = f"{name}.{own}".lstrip(".")
            del tensors[whole]
            tensors |= {f"{whole}.{plane}": t.cpu() for plane, t in packed.planes().items()}
    for name, layer in layers.items():
        facts["layers"][name] = {
            "weights": format_facts(layer.packed.format if layer.packed else None),
            "activations": format_facts(layer.inputs.format if layer.inputs else None),
            "shape": list(layer.shape),
            "dtype": str(layer._like.dtype).removeprefix("torch."),
        }
        if layer.packed is not None:
            planes = layer.packed.planes()
            tensors |= {f"{name}.{plane}": t.cpu() for plane, t in planes.items()}
    if rotations := input_rotations(model):
        facts["rotations"] = {name: asdict(rotation) for name, rotation in rotations.items()}
    if (stream := stream_rotation(model)) is not None:
        facts["stream"] = asdict(stream)
    if isinstance(model, LanguageModel):
        facts["config"] = asdict(model.config)
    first: dict[tuple[Any, ...], str] = {}
    for name, value in list(tensors.items()):
        place = (value.data_ptr(), value.shape, value.stride())
        if value.numel() and first.setdefault(place, name) != name:
            facts["aliases"][name] = first[place]
            del tensors[name]
    stored = {name: value.contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(stored, temporary, {_HEADER: json.dumps(facts, sort_keys=True)})


def packed_files(folder: Path) -> list[Path]:
    """Return the files of a packed folder: one, or those that its index names; none if it is none.

    InputError if one that the index names is missing.
    """
    index = folder / f"{PACKED}.index.json"
    if not index.is_file():
        return [folder / PACKED] if (folder / PACKED).is_file() else []
    facts = read_json(index)
    places = facts.get("weight_map") if isinstance(facts, dict) else None
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    there = {path.name for path in folder.iterdir()}  # a name may be too long to ask for
    lost = [name for name in names if name not in there]
    if lost or not names:
        told = f"{listed(lost)}, not there" if lost else "no files"
        raise InputError(f"{os.fspath(folder)!r}: {index.name} names {told}")
    return [folder / name for name in names]


def _read_packed(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Return header and tensors of a packed file, or folder."""
    if not path.is_dir():
        texts, tensors = read_tensors(path)
        return parse_json(texts.get(_HEADER, "null"), "the header"), tensors
    tensors = {}
    for file in packed_files(path):
        tensors |= read_tensors(file)[1]
    return _folder_header(path), tensors


def _folder_header(folder: Path) -> Any:
    """Return the header of a packed folder: its one file's, or what the index has."""
    index = folder / f"{PACKED}.index.json"
    if index.is_file():
        facts = read_json(index).get("metadata")
        return facts.get(_HEADER) if isinstance(facts, dict) else None
    files = packed_files(folder)
    if not files:
        raise InputError(f"{os.fspath(folder)!r} holds no {PACKED}")
    return parse_json(read_tensor_header(files[0]).get(_HEADER, "null"), "the header")


def packed_weights_of(folder: Path) -> dict[str, tuple[str, Format, tuple[int, ...]]]:
    """Return the packed weights of a folder by name in the model.

    Returns
    -------
    What the names of their planes begin with, their formats, and the shapes that are packed.
    """
    facts = typed(_Checkpoint, _folder_header(folder), "header")
    if facts.attentions:
        raise InputError(
            f"{os.fspath(folder)!r} holds {', '.join(facts.attentions)}, each a "
            "MultiheadAttention in parts, which is not converted"
        )
    found: dict[str, tuple[str, Format, tuple[int, ...]]] = {}
    for layer, told in facts.layers.items():
        fmt = _from_facts(told.weights)
        if fmt is not None:
            found[f"{layer}.weight"] = layer, fmt, told.shape
    for module, known in facts.watched.items():
        for own, weight in known.weights.items():
            name = f"{module}.{own}".lstrip(".")
            found[name] = name, get_format(weight.format, **weight.options), weight.shape
    return found


def load_quantized(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Read what ``save_quantized`` or ``m2xfp convert`` wrote; no other weights are needed.

    Parameters
    ----------
    path
        The file, or the folder of a model in several.
    model
        A model of the same architecture with any weights, changed in place; None for the bundled
        architecture, whose shape the file holds.

    Returns
    -------
    The model with the same outputs as the saved one, bit for bit, ready for evaluation.

    Raises
    ------
    InputError
        The file is not there, is no such file, or belongs to another architecture.
    """
    header, tensors = _read_packed(Path(path))
    try:
        if not isinstance(header, dict) or "layers" not in header:
            raise InputError("it holds no quantized model; save_quantized writes one")
        facts = typed(_Checkpoint, header, "header")
        if model is None:
            if facts.config is None:
                raise InputError(
                    "a model of another library; pass a model of its architecture as well"
                )
            model = skeleton(facts.config, tensors)
        model = _restore(model, facts, tensors)
    except (M2xfpError, AttributeError, RuntimeError, TypeError) as error:
        fits = type(model).__name__ if model is not None else "the bundled architecture"
        raise unreadable(path, f"does not fit {fits}", error) from error
    return model.eval()


@dataclass(frozen=True)
class _FormatFacts:
    """A format in a header."""

    format: str
    options: dict[str, Any]


@dataclass(frozen=True)
class _LayerFacts:
    """A quantized layer in a header."""

    weights: _FormatFacts | None
    activations: _FormatFacts | None
    shape: tuple[int, int]
    dtype: str


@dataclass(frozen=True)
class _WeightFacts:
    """A weight, in a header, of a layer with code of its own."""

    format: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    dim: int
    dtype: str


@dataclass(frozen=True)
class _WatchedFacts:
    """A layer with code of its own in a header."""

    activations: _FormatFacts | None
    inputs: tuple[str, ...]
    weights: dict[str, _WeightFacts]


@dataclass(frozen=True)
class _Checkpoint:
    """The header of a packed checkpoint."""

    layers: dict[str, _LayerFacts]
    aliases: dict[str, str]
    watched: dict[str, _WatchedFacts] = field(default_factory=dict)
    attentions: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    rotations: dict[str, InputRotation] = field(default_factory=dict)
    stream: StreamRotation | None = None


_LAYER_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in INPUT_DTYPES}


def _layer_dtype(name: str, dtype: str) -> torch.dtype:
    if dtype not in _LAYER_DTYPES:
        raise InputError(f"layer {name}: dtype {dtype!r}; {', '.join(_LAYER_DTYPES)}")
    return _LAYER_DTYPES[dtype]


def take_planes(
    name: str, fmt: Format, shape: tuple[int, ...], tensors: dict[str, Tensor]
) -> PackedTensor | StackedTensor:
    """Take the planes NAME.codes and so on out of ``tensors``, as a packed tensor.

    Experts that have a tensor scale each come as a stack.
    """
    planes = {n: tensors.pop(f"{name}.{n}") for n in PLANES if f"{name}.{n}" in tensors}
    try:
        if len(shape) == 3 and "tensor_scale" in planes and planes["tensor_scale"].ndim:
            return StackedTensor.from_planes(fmt, planes, shape)
        return PackedTensor.from_planes(fmt, planes, shape)
    except (M2xfpError, TypeError) as error:
        raise InputError(f"layer {name}: {error}") from error


def _require_shape(name: str, told: tuple[int, ...], own: Iterable[int]) -> None:
    if tuple(own) != told:
        raise InputError(f"layer {name} is {list(told)}, and in the model {list(own)}")


class _Quantizers:
    """The quantizers of a checkpoint's inputs: layers that read one tensor share its result."""

    def __init__(self) -> None:
        self._known: dict[str, InputQuantizer | None] = {}

    def of(self, facts: _FormatFacts | None) -> InputQuantizer | None:
        """Return the one quantizer of these facts."""
        key = json.dumps(None if facts is None else asdict(facts))
        if key not in self._known:
            self._known[key] = input_quantizer(_from_facts(facts))
        return self._known[key]


def _restore(model: nn.Module, facts: _Checkpoint, tensors: dict[str, Tensor]) -> nn.Module:
    """Put the layers and tensors of a checkpoint into a model, and return it.

    Everything is looked at before the model is changed.
    """
    quantizers = _Quantizers()
    attentions: dict[str, tuple[nn.Module, QuantMultiheadAttention]] = {}
    for name in facts.attentions:
        original = model.get_submodule(name)
        if not isinstance(original, nn.MultiheadAttention):
            raise InputError(f"layer {name} is a {type(original).__name__}, no MultiheadAttention")
        attentions[name] = original, _empty_attention(original)
    layers: dict[str, tuple[nn.Module, QuantLinear]] = {}
    for name, layer in facts.layers.items():
        parent, _, child = name.rpartition(".")
        original = (
            attentions[parent][1].get_submodule(child)
            if parent in attentions
            else model.get_submodule(name)
        )
        dtype, fmt = _layer_dtype(name, layer.dtype), _from_facts(layer.weights)
        own = getattr(original, "shape", None) or getattr(original, "weight", torch.empty(0)).shape
        _require_shape(name, layer.shape, own[::-1] if is_transposed_linear(original) else own)
        packed = None if fmt is None else take_planes(name, fmt, layer.shape, tensors)
        assert not isinstance(packed, StackedTensor)  # those have three dimensions
        weight = torch.empty(layer.shape, dtype=dtype, device="meta")
        bias = getattr(original, "bias", None)
        restored = QuantLinear(weight, bias, packed, quantizers.of(layer.activations))
        layers[name] = original, restored
        if packed is not None:
            tensors |= {f"{name}.{n}": restored.get_parameter(n) for n in packed.planes()}
    watched = {
        name: _restore_watched(name, model.get_submodule(name), told, tensors)
        for name, told in facts.watched.items()
    }
    for name, source in facts.aliases.items():
        if source not in tensors or name in tensors:
            raise InputError(f"alias {name!r} of {source!r}: no such tensor, or one of that name")
        tensors[name] = tensors[source]
    for name, tensor in model.state_dict().items():
        if name in tensors and tensors[name].is_floating_point() != tensor.is_floating_point():
            raise InputError(f"{name} is {tensors[name].dtype}, and in the model {tensor.dtype}")
    for name, forms in watched.items():
        told = facts.watched[name]
        watch(model.get_submodule(name), told.inputs, forms, quantizers.of(told.activations))
    for attention, replaced in attentions.values():
        model = replace_module(model, attention, replaced)
    for original, restored in layers.values():
        model = replace_module(model, original, restored)
    model.load_state_dict(tensors, assign=True)
    for name, rotation in facts.rotations.items():
        width = model.get_submodule(name).in_features
        if width != rotation.width:
            raise InputError(f"rotation of {rotation.width} values before {name}, of {width}")
        rotate_input(model.get_submodule(name), rotation)
    if facts.stream is not None:
        if stream_rotation(model) is not None:
            raise InputError("the stream of the model that was given is rotated already")
        rotate_stream(model, facts.stream)
    return model


def _restore_watched(
    name: str, module: nn.Module, facts: _WatchedFacts, tensors: dict[str, Tensor]
) -> dict[str, tuple[int, PackedTensor | StackedTensor]]:
    """Decode the weights of a layer with code of its own into ``tensors``; return them packed."""
    forms = {}
    for own, told in facts.weights.items():
        whole = f"{name}.{own}".lstrip(".")
        dtype, fmt = _layer_dtype(whole, told.dtype), get_format(told.format, **told.options)
        if told.dim not in (-1, -2) or len(told.shape) < -told.dim:
            raise InputError(f"layer {whole}: dim {told.dim}; must be -1 or -2")
        packed = take_planes(whole, fmt, told.shape, tensors)
        tensors[whole] = decoded(packed, told.dim, dtype)
        _require_shape(whole, tuple(tensors[whole].shape), getattr(module, own).shape)
        forms[own] = told.dim, packed
    for own in facts.inputs:
        if not isinstance(getattr(module, own, None), Tensor):
            raise InputError(f"layer {name} has no weight {own!r}")
    return forms


def _empty_attention(attention: nn.MultiheadAttention) -> QuantMultiheadAttention:
    """Return an attention whose projections have shapes and no values."""
    with_bias = attention.in_proj_bias is not None
    projections: dict[str, nn.Module] = {"out_proj": attention.out_proj}
    for name, (weight, _) in input_projections(attention).items():
        out, given = weight.shape
        projections[name] = nn.Linear(given, out, bias=with_bias, device="meta")
    return QuantMultiheadAttention(attention, projections)
