"""Models with quantized linear layers and attention, and their packed checkpoints.

``quantize_model`` replaces the linear layers of any torch model. Weights stay packed. Products are
those of the type of the model on decoded values, or the hardware's, see ``models.arithmetic``.
"""

import json
import os
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses
from torch.overrides import TorchFunctionMode

from m2xfp.errors import InputError
from m2xfp.files import atomic_path
from m2xfp.golden.formats.format import Format, Option, get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import packed_linear
from m2xfp.models.arithmetic import FLOAT, Arithmetic
from m2xfp.models.lm import LanguageModel, ModelConfig

__all__ = [
    "InputQuantizer",
    "QuantAttention",
    "QuantLinear",
    "input_quantizer",
    "linear_layers",
    "load_quantized",
    "quantize_model",
    "refuse_non_finite",
    "save_quantized",
    "set_arithmetic",
    "weight_format",
]

FormatLike = Format | str | None

_HEADER = "m2xfp"


class InputQuantizer:
    """Quantizes the inputs of layers: to the nearest value in the same type, or packed.

    Layers often read one tensor one after the other (queries, keys and values do), so the last
    result is kept for as long as its source lives unchanged.

    Parameters
    ----------
    format
        The format; groups run along the last dimension.
    """

    def __init__(self, format: Format) -> None:
        self.format = format
        self._source: weakref.ref[Tensor] | None = None
        self._version = -1
        self._result: Tensor | None = None
        self._packed: PackedTensor | None = None

    def __reduce__(self) -> tuple[type["InputQuantizer"], tuple[Format]]:
        """Copy and pickle without the kept result."""
        return InputQuantizer, (self.format,)

    def _forget(self, source: weakref.ref[Tensor]) -> None:
        if source is self._source:
            self._source = self._result = self._packed = None

    def _renew(self, x: Tensor) -> None:
        """Drop what is kept unless it was made of x as it is now."""
        kept = self._source() if self._source is not None else None
        if kept is not x or self._version != x._version:
            self._source, self._version = weakref.ref(x, self._forget), x._version
            self._result = self._packed = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the quantized values of x [..., K], same shape and type."""
        if _untracked(x) or (x.requires_grad and torch.is_grad_enabled()):
            return self.format.fake_quantize(x)
        self._renew(x)
        if self._result is None:
            self._result = self.format.fake_quantize(x)
        return self._result

    def pack(self, x: Tensor) -> PackedTensor:
        """Return x [..., K] quantized and packed."""
        if _untracked(x):
            return self.format.quantize(x)
        self._renew(x)
        if self._packed is None:
            self._packed = self.format.quantize(x)
        return self._packed


def _untracked(x: Tensor) -> bool:
    """Whether x can change unnoticed: it has no version, or a CUDA graph will run on other values.

    A tracing compiler sees the quantization itself, not what an earlier call left.
    """
    if torch.compiler.is_compiling() or x.is_inference():
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


# Decoded weights are held so many values at a time.
_DECODED = 1 << 26


class QuantLinear(nn.Module):
    """A linear layer, y = x' W'^T + b, whose weight and input can both be quantized.

    A quantized weight stays packed, as parameters ``codes``, ``scales``, ``meta`` and
    ``tensor_scale`` on the layer's device, and is decoded when it is used. It takes no gradient;
    with ``float`` arithmetic its input does, straight through the quantizer, as
    ``Format.fake_quantize`` has it.

    Parameters
    ----------
    weight
        [out, in], in the type to compute in. With ``packed`` only its shape and type count.
    bias
        [out] or None; never quantized.
    packed
        The quantized weight, or None for one that is not quantized.
    inputs
        Quantizer of the input, or None.
    arithmetic
        How to multiply: an ``Arithmetic``, or ``float`` or ``hardware``. The latter takes packed
        weights and quantized inputs.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        packed: PackedTensor | None = None,
        inputs: InputQuantizer | None = None,
        arithmetic: Arithmetic | str = FLOAT,
    ) -> None:
        super().__init__()
        self.shape = weight.shape
        self.register_parameter("bias", None if bias is None else _frozen(bias))
        self.format = None if packed is None else packed.format
        if packed is None:
            self.weight = _frozen(weight)
        else:
            if packed.shape != weight.shape:
                raise InputError(
                    f"packed has shape {tuple(packed.shape)}, weight {tuple(weight.shape)}; they "
                    "must be equal"
                )
            for name, plane in packed.planes().items():
                # As integers, which a change of the model's type leaves alone.
                whole = plane.view(torch.int32) if name == "tensor_scale" else plane
                self.register_parameter(name, _frozen(whole))
        held = weight.device if packed is None else packed.device
        # Follows the type of the model, which a decoded weight takes.
        self.register_buffer(
            "_like", torch.empty(0, dtype=weight.dtype, device=held), persistent=False
        )
        self.inputs = inputs
        self.arithmetic = FLOAT
        self.compute_by(arithmetic)

    @classmethod
    def from_linear(
        cls,
        layer: nn.Linear,
        weights: Format | None,
        inputs: InputQuantizer | None = None,
        arithmetic: Arithmetic | str = FLOAT,
    ) -> "QuantLinear":
        """Quantize a layer: groups run along its inputs, the dimension that is summed over."""
        weight = layer.weight.detach()
        packed = None if weights is None else weights.quantize(weight)
        return cls(weight, layer.bias, packed, inputs, arithmetic)

    def compute_by(self, arithmetic: Arithmetic | str) -> None:
        """Multiply by this arithmetic from now on; InputError if the formats do not allow it."""
        if isinstance(arithmetic, str):
            arithmetic = Arithmetic(arithmetic)
        arithmetic.check(self.inputs.format if self.inputs else None, self.format)
        self.arithmetic = arithmetic

    @property
    def packed(self) -> PackedTensor | None:
        """The quantized weight, where the layer is; None if it is not quantized."""
        if self.format is None:
            return None
        planes = {
            n: p.detach() for n, p in self._parameters.items() if n in _PLANES and p is not None
        }
        if "tensor_scale" in planes:
            planes["tensor_scale"] = planes["tensor_scale"].view(torch.float32)
        return PackedTensor.from_planes(self.format, planes, self.shape)

    def __getattr__(self, name: str) -> Any:
        """Decode the weight of a packed layer, which has no parameter of that name."""
        if name == "weight" and self.__dict__.get("format") is not None:
            return self._rows(slice(None))
        return super().__getattr__(name)

    def _rows(self, rows: slice) -> Tensor:
        """Decode some rows of the packed weight, in the type of the model."""
        packed = self.packed
        assert packed is not None
        planes = {n: p if n == "tensor_scale" else p[rows] for n, p in packed.planes().items()}
        shape = (len(planes["codes"]), self.in_features)
        part = PackedTensor.from_planes(packed.format, planes, shape)
        return part.dequantize(self._like.dtype)

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Outputs."""
        return self.shape[0]

    def _reads_packed(self, x: Tensor) -> bool:
        """Whether to multiply from the packed weight: one or two rows, where reading it is all."""
        if x.device.type != "cuda" or x.dtype != torch.bfloat16:
            return False
        tracked = x.requires_grad and torch.is_grad_enabled()
        return not tracked and x.numel() <= 2 * x.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        packed = self.packed
        if self.arithmetic.hardware:
            assert self.inputs is not None
            assert packed is not None
            y = self.arithmetic.linear(self.inputs.pack(x), packed, x.dtype)
            return y if self.bias is None else y + self.bias
        x = x if self.inputs is None else self.inputs(x)
        if packed is None:
            return F.linear(x, self.weight, self.bias)
        if self._reads_packed(x):
            y = packed_linear(x, packed)
            return y if self.bias is None else y + self.bias
        step = max(1, _DECODED // max(1, self.in_features))
        if step >= self.out_features:
            return F.linear(x, self._rows(slice(None)), self.bias)
        parts = [
            F.linear(x, self._rows(slice(start, start + step)))
            for start in range(0, self.out_features, step)
        ]
        y = torch.cat(parts, -1)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Show sizes and formats."""
        weights = self.format.name if self.format else None
        inputs = self.inputs.format.name if self.inputs else None
        text = f"{self.in_features}, {self.out_features}, weights={weights}, activations={inputs}"
        if self.arithmetic.hardware:
            text += f", arithmetic=hardware, accumulator={self.arithmetic.accumulator}"
        return text


_PLANES = ("codes", "scales", "meta", "tensor_scale")


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)


class QuantAttention(TorchFunctionMode):
    """Within this context every ``scaled_dot_product_attention`` runs on quantized operands.

    Keys and values, which a cache holds, are quantized by ``cache`` (Sg-EM), queries and
    probabilities, which are made anew for each token, by ``operands`` (Elem-EM). Groups run along
    the dimension that the product sums over, as the dot-product unit needs them: the head width for
    queries and keys, the tokens for probabilities and values. A group of values therefore spans 32
    tokens, and its scale is that of the whole group also for the queries inside it.

    Parameters
    ----------
    cache, operands
        Formats, by name or as made by ``get_format``.
    arithmetic
        How to multiply, as for ``QuantLinear``.

    Members
    -------
    calls
        Attentions computed so; 0 after a run means that the model computes its attention
        otherwise.

    Source: M2XFP, Sec. 6.4.
    """

    def __init__(
        self,
        cache: Format | str = "m2xfp-weight",
        operands: Format | str = "m2xfp-act",
        arithmetic: Arithmetic | str = FLOAT,
    ) -> None:
        super().__init__()
        self.cache = get_format(cache) if isinstance(cache, str) else cache
        self.operands = _refuse_search(operands, "operands")
        if isinstance(arithmetic, str):
            arithmetic = Arithmetic(arithmetic)
        arithmetic.check(self.operands, self.cache)
        self.arithmetic = arithmetic
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace the attention, pass everything else through."""
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Compute softmax(Q' K'^T scale + mask)' V', the softmax in float32; no dropout."""
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = self._product(query, key, enable_gqa).float() * factor
        if is_causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, -torch.inf)
            else:
                scores = scores + attn_mask
        # A query that sees no key at all (padding) gives zero, as the original does.
        probabilities = scores.softmax(-1).nan_to_num(0.0).to(query.dtype)
        return self._product(probabilities, value.transpose(-1, -2), enable_gqa)

    def _product(self, left: Tensor, right: Tensor, shared: bool) -> Tensor:
        """Return left' [..., H, M, K] times the rows of right' [..., h, N, K].

        ``shared``: each of the h caches serves H / h heads in a row.
        """
        if not self.arithmetic.hardware:
            cache = self.cache.fake_quantize(right)
            if shared:
                cache = cache.repeat_interleave(left.shape[-3] // right.shape[-3], -3)
            return self.operands.fake_quantize(left) @ cache.transpose(-1, -2)
        heads = left.shape[-3:-1] if shared else None
        if heads is not None:  # the rows of these heads are rows of one product
            left = left.unflatten(-3, (right.shape[-3], -1)).flatten(-3, -2)
        lead = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        left, right = (x.expand(*lead, *x.shape[-2:]) for x in (left, right))
        packed = self.operands.quantize(left), self.cache.quantize(right)
        product = self.arithmetic.batched(*packed, left.dtype)
        if heads is None:
            return product
        return product.unflatten(-2, (-1, heads[1])).flatten(-4, -3)


def _as_format(value: FormatLike) -> Format | None:
    return get_format(value) if isinstance(value, str) else value


def _refuse_search(value: Format | str, argument: str) -> Format:
    """Return a format for values that are quantized on the fly; Sg-EM searches, so it is none."""
    fmt = get_format(value) if isinstance(value, str) else value
    if fmt.block.metadata.name == "sg-em":
        raise InputError(
            f"{argument}: {fmt.name} searches the multiplier of every subgroup, which is for "
            f"weights and caches; pass {fmt.name.replace('weight', 'act')} or another format "
            "without search"
        )
    return fmt


def weight_format(weights: FormatLike) -> Format | None:
    """Return the format for weights, by name or ready made; None stays None."""
    return _as_format(weights)


def input_quantizer(activations: FormatLike) -> InputQuantizer | None:
    """Return the quantizer of layer inputs; InputError for a format that searches (Sg-EM)."""
    if activations is None:
        return None
    return InputQuantizer(_refuse_search(activations, "activations"))


def linear_layers(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, nn.Linear]:
    """Return the linear layers of a model by name, without those to skip.

    Parameters
    ----------
    model
        Any torch model.
    skip
        Names as ``named_modules`` gives them, or patterns such as ``*.o_proj``.

    Raises
    ------
    InputError
        The model has no ``nn.Linear``, or a name or pattern in ``skip`` matches none.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no nn.Linear; quantize_model replaces those layers only, "
            "and leaves a quantized model as it is"
        )
    skipped = set()
    for pattern in skip:
        matched = {name for name in layers if fnmatchcase(name, pattern)}
        if not matched:
            names = list(layers)
            shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise InputError(f"skip: no linear layer matches {pattern!r}; there are: {shown}")
        skipped |= matched
    return {name: layer for name, layer in layers.items() if name not in skipped}


def refuse_non_finite(layers: dict[str, nn.Linear]) -> None:
    """Raise InputError that names every weight with a NaN or an infinity and counts them."""
    bad = {
        f"{name}.weight": count
        for name, layer in layers.items()
        if (count := int((~layer.weight.isfinite()).sum()))
    }
    if bad:
        listed = ", ".join(f"{name} has {count}" for name, count in bad.items())
        raise InputError(
            f"NaN or infinity in weights: {listed}; each makes its whole group NaN. Repair the "
            "checkpoint, or go on with allow_nan=True (--allow-nan)"
        )


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


@torch.no_grad()
def quantize_model(
    model: nn.Module,
    weights: FormatLike = None,
    activations: FormatLike = None,
    skip: Iterable[str] = (),
    allow_nan: bool = False,
    progress: bool = False,
    arithmetic: Arithmetic | str = FLOAT,
) -> nn.Module:
    """Replace the linear layers of a model by ``QuantLinear``, in place, and return the model.

    Parameters
    ----------
    model
        Any torch model; on any device, in float32, bfloat16 or float16.
    weights, activations
        Formats of weights and of layer inputs, by name or as made by ``get_format``; None leaves
        them as they are.
    skip
        Layers to leave alone: names or patterns such as ``lm_head`` or ``*.o_proj``.
    allow_nan
        Quantize weights that hold a NaN or an infinity too: their groups become NaN.
    progress
        Show a progress bar over the layers.
    arithmetic
        How the layers multiply, as for ``QuantLinear``.

    Raises
    ------
    UnknownNameError
        No such format.
    InputError
        A format that searches for ``activations``, a name in ``skip`` that matches nothing, a model
        without linear layers, or a NaN in a weight. Nothing is replaced then.
    """
    from tqdm import tqdm

    weights = weight_format(weights)
    inputs = input_quantizer(activations)
    if isinstance(arithmetic, str):
        arithmetic = Arithmetic(arithmetic)
    arithmetic.check(inputs.format if inputs else None, weights)
    layers = linear_layers(model, skip)
    if weights is not None and not allow_nan:
        refuse_non_finite(layers)
    for name, layer in tqdm(layers.items(), desc="layers", disable=not progress):
        _replace(model, name, QuantLinear.from_linear(layer, weights, inputs, arithmetic))
    return model


def set_arithmetic(model: nn.Module, arithmetic: Arithmetic) -> None:
    """Let every quantized layer of a model multiply by ``arithmetic``."""
    for _, layer in _quant_layers(model):
        layer.compute_by(arithmetic)


def _quant_layers(model: nn.Module) -> Iterator[tuple[str, QuantLinear]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, QuantLinear))


def _facts(fmt: Format | None) -> dict[str, Any] | None:
    return None if fmt is None else {"format": fmt.name, "options": dict(fmt.options)}


def _from_facts(facts: dict[str, Any] | None) -> Format | None:
    if facts is None:
        return None
    options: dict[str, Option] = facts["options"]
    return get_format(facts["format"], **options)


def save_quantized(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a model that ``quantize_model`` made as one safetensors file.

    A quantized layer NAME has the tensors ``NAME.codes``, ``NAME.scales`` and, where the format
    has them, ``NAME.meta`` and ``NAME.tensor_scale``; everything else is stored as it is. The
    header ``m2xfp`` is JSON: formats, options and shape of each layer, and tensors that are
    another name of a stored one.

    Raises
    ------
    InputError
        The model has no quantized layer.
    """
    from safetensors.torch import save_file

    layers = dict(_quant_layers(model))
    if not layers:
        raise InputError("the model has no quantized layer; call quantize_model first")
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    facts: dict[str, Any] = {"layers": {}, "aliases": {}}
    for name, layer in layers.items():
        facts["layers"][name] = {
            "weights": _facts(layer.packed.format if layer.packed else None),
            "activations": _facts(layer.inputs.format if layer.inputs else None),
            "shape": list(layer.shape),
            "dtype": str(layer._like.dtype).removeprefix("torch."),
        }
        if layer.packed is not None:
            planes = layer.packed.planes()
            tensors |= {f"{name}.{plane}": t.cpu() for plane, t in planes.items()}
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


def load_quantized(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Read what ``save_quantized`` wrote; the weights that it was made from are not needed.

    Parameters
    ----------
    path
        The file.
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
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"no checkpoint {os.fspath(path)!r}; save_quantized writes one")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{os.fspath(path)!r} is no safetensors file: {error}") from error
    facts = json.loads(header) if header else {}
    if "layers" not in facts:
        raise InputError(f"{os.fspath(path)!r} holds no quantized model; save_quantized writes one")
    if model is None:
        if "config" not in facts:
            raise InputError(
                f"{os.fspath(path)!r} is a model of another library; pass a model of its "
                "architecture as well"
            )
        model = LanguageModel(ModelConfig(**facts["config"]))
    try:
        _restore(model, facts, tensors)
    except (AttributeError, RuntimeError) as error:
        raise InputError(
            f"{os.fspath(path)!r} does not fit {type(model).__name__}: {error}"
        ) from error
    return model.eval()


def _restore(model: nn.Module, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put the layers and tensors of a checkpoint into a model."""
    shared: dict[str, InputQuantizer | None] = {}
    for name, layer in facts["layers"].items():
        key = json.dumps(layer["activations"])
        if key not in shared:
            shared[key] = input_quantizer(_from_facts(layer["activations"]))
        fmt = _from_facts(layer["weights"])
        dtype = getattr(torch, layer["dtype"])
        packed = None
        if fmt is not None:
            planes = {n: tensors.pop(f"{name}.{n}") for n in _PLANES if f"{name}.{n}" in tensors}
            packed = PackedTensor.from_planes(fmt, planes, tuple(layer["shape"]))
        original = model.get_submodule(name)
        bias = getattr(original, "bias", None)
        weight = torch.empty(layer["shape"], dtype=dtype, device="cpu" if fmt is None else "meta")
        restored = QuantLinear(weight, bias, packed, shared[key])
        _replace(model, name, restored)
        if fmt is not None:
            tensors |= {f"{name}.{n}": restored.get_parameter(n) for n in planes}
    for name, source in facts["aliases"].items():
        tensors[name] = tensors[source]
    model.load_state_dict(tensors, assign=True)
