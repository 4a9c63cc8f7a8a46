"""Models with quantized linear layers and attention.

``quantize_model`` replaces the linear layers of any torch model. Weights stay packed. Products are
those of the type of the model on decoded values, or the hardware's, see ``models.arithmetic``.
Their files are ``models.packed_model``'s.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses
from torch.overrides import TorchFunctionMode

from m2xfp.errors import InputError
from m2xfp.formats import E2M1, E8M0
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.packed import PLANES, PackedTensor
from m2xfp.golden.formats.products import packed_linear
from m2xfp.golden.kernels.products_fused import MOST_ROWS
from m2xfp.models.arithmetic import FLOAT, Arithmetic
from m2xfp.models.layers import (
    Coverage,
    Layers,
    Weight,
    check_weights,
    find_layers,
    is_plain_linear,
    is_transposed_linear,
    listed,
    multiplied_weights,
)
from m2xfp.models.operands import (
    QuantMultiheadAttention,
    is_watched,
    packed_weights,
    quantize_in_place,
    watched_inputs,
    watched_weights,
)

__all__ = [
    "InputQuantizer",
    "QuantAttention",
    "QuantLinear",
    "cast_parameters",
    "check_layers",
    "coverage",
    "input_projections",
    "input_quantizer",
    "linear_layers",
    "quant_layers",
    "quantize_model",
    "quantized_linear",
    "replace_module",
    "set_arithmetic",
    "stored_formats",
    "weight_format",
]

FormatLike = Format | str | None


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


# Inputs of so many rows and fewer are packed, and kept for the layers that share them.
_MANY = 64
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
        own = self._parameters.items()
        planes = {n: p.detach() for n, p in own if n in PLANES and p is not None}
        if "tensor_scale" in planes:
            planes["tensor_scale"] = planes["tensor_scale"].view(torch.float32)
        return _joined(self.format, planes, self.shape)

    def __getattr__(self, name: str) -> Any:
        """Decode the weight of a packed layer, which has no parameter of that name."""
        if name == "weight" and self.__dict__.get("format") is not None:
            return self._rows(slice(None))
        return super().__getattr__(name)

    def _rows(self, rows: slice) -> Tensor:
        """Decode some rows of the packed weight, in the type of the model."""
        packed = self.packed
        assert packed is not None
        planes = {n: p[rows] if p.ndim else p for n, p in packed.planes().items()}
        shape = (len(planes["codes"]), self.in_features)
        part = _joined(packed.format, planes, torch.Size(shape))
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
        """Whether to multiply from the packed weight: a few rows, where reading it is all."""
        if x.device.type != "cuda" or x.dtype != torch.bfloat16:
            return False
        tracked = x.requires_grad and torch.is_grad_enabled()
        return not tracked and x.numel() <= MOST_ROWS * x.shape[-1]

    def _quantizes_at_once(self, x: Tensor) -> bool:
        """Whether inputs are quantized as they are multiplied: many, of a type served so."""
        if x.device.type != "cuda" or x.dtype != torch.bfloat16 or self.inputs is None:
            return False
        block = self.inputs.format.block
        return block.element is E2M1 and block.scale is E8M0 and x.numel() > _MANY * x.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        packed = self.packed
        if self.arithmetic.hardware:
            assert self.inputs is not None
            assert packed is not None
            if self._quantizes_at_once(x):
                y = self.arithmetic.linear_of(x, self.inputs.format, packed, x.dtype)
            else:
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


def _joined(fmt: Format, planes: Mapping[str, Tensor], shape: torch.Size) -> PackedTensor:
    """Return planes as a packed tensor, without a look at values that a GPU would be waited for."""
    codes, scales = planes["codes"], planes["scales"]
    return PackedTensor(fmt, codes, scales, planes.get("meta"), shape, planes.get("tensor_scale"))


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
        self.cache = _refuse_batch(get_format(cache) if isinstance(cache, str) else cache, "cache")
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


def _refuse_search(value: Format | str, argument: str) -> Format:
    """Return a format for values that are quantized on the fly; Sg-EM searches, so it is none."""
    fmt = get_format(value) if isinstance(value, str) else value
    if fmt.block.metadata.name == "sg-em":
        raise InputError(
            f"{argument}: {fmt.name} searches the multiplier of every subgroup, which is for "
            f"weights and caches; pass {fmt.name.replace('weight', 'act')} or another format "
            "without search"
        )
    return _refuse_batch(fmt, argument)


def _refuse_batch(fmt: Format, argument: str) -> Format:
    """Return a format whose values of one token do not depend on what else is in a batch."""
    if fmt.level == "auto":
        raise InputError(
            f"{argument}: {fmt.name} with tensor_scale=auto takes its scale from the whole batch, "
            "so a result would depend on what it is computed with; pass tensor_scale=token (one "
            "for each row), a number that was calibrated, or leave it out for one level"
        )
    return fmt


def weight_format(weights: FormatLike) -> Format | None:
    """Return the format for weights, by name or ready made; None stays None.

    A name of a format that can have a tensor scale and does not say is that with
    ``tensor_scale=auto``: with one level, blocks below 6 * 2^-10 are zero, as those of many weights
    are. A format made by ``get_format`` is taken as it is.
    """
    if not isinstance(weights, str):
        return weights
    fmt = get_format(weights)
    told = "tensor_scale" in dict(fmt.options) or "tensor_scale" not in fmt.block.options
    return fmt if told else get_format(weights, tensor_scale="auto")


def input_quantizer(activations: FormatLike) -> InputQuantizer | None:
    """Return the quantizer of layer inputs.

    InputError for a format that searches (Sg-EM), or whose tensor scale is that of a whole batch.
    """
    if activations is None:
        return None
    return InputQuantizer(_refuse_search(activations, "activations"))


def linear_layers(model: nn.Module, skip: Iterable[str] = ()) -> dict[str, nn.Linear]:
    """Return the plain linear layers of a model by name, without those to skip.

    Parameters
    ----------
    model
        Any torch model.
    skip
        Names as ``named_modules`` gives them, or patterns such as ``*.o_proj``.

    Raises
    ------
    InputError
        The model has nothing to quantize, or a name or pattern in ``skip`` matches none.
    """
    found = {weight.layer: weight.module for weight in find_layers(model, skip).quantized}
    return {n: m for n, m in found.items() if isinstance(m, nn.Linear) and is_plain_linear(m)}


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put a module in the place of another, under all its names, with its hooks; return the model.

    That is the new module, if the old one is the model itself.
    """
    for name in _HOOKS:
        getattr(new, name).update(getattr(old, name))
    new.train(old.training)
    if old is model:
        return new
    for parent in list(model.modules()):
        if isinstance(parent, nn.TransformerEncoderLayer):
            # Its fused path would read the weights past the quantizers of the inputs; this is what
            # it asks before it takes that.
            parent.activation_relu_or_gelu = 0
        names = [name for name, child in parent._modules.items() if child is old]
        for name in names:
            parent.add_module(name, new)
    return model


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


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
    """Quantize what multiplies in a model, in place, and return the model.

    Linear layers, also those of GPT-2 (``Conv1D``), and ``nn.MultiheadAttention`` are replaced;
    subclasses of ``nn.Linear`` with a forward of their own and the experts of a mixture in one
    tensor keep their code. What else multiplies (convolutions, recurrent layers, routers) stays as
    it is; ``coverage`` of the result names it.

    Parameters
    ----------
    model
        Any torch model; on any device, in float32, bfloat16 or float16.
    weights, activations
        Formats of weights and of layer inputs, by name or as made by ``get_format``; None leaves
        them as they are. Weights of a format called by its name have two levels of scales where
        they can, see ``weight_format``.
    skip
        Layers to leave alone: names or patterns such as ``lm_head`` or ``*.o_proj``.
    allow_nan
        Quantize weights that hold a NaN or an infinity too: their groups become NaN.
    progress
        Show a progress bar over the layers.
    arithmetic
        How the layers multiply, as for ``QuantLinear``.

    Returns
    -------
    The model; of a model that is a single linear layer the layer in its place.

    Raises
    ------
    UnknownNameError
        No such format.
    InputError
        A format that searches for ``activations``, a name in ``skip`` that matches nothing, a model
        without anything to quantize, a NaN in a weight, a weight of another type or without values,
        or a layer that hardware's arithmetic does not compute. Nothing is replaced then.
    """
    from m2xfp.progress import track

    fmt = weight_format(weights)
    inputs = input_quantizer(activations)
    if isinstance(arithmetic, str):
        arithmetic = Arithmetic(arithmetic)
    arithmetic.check(inputs.format if inputs else None, fmt)
    found = check_layers(model, skip, allow_nan or fmt is None, arithmetic)
    by_module: dict[int, list[Weight]] = {}
    for weight in found.quantized:
        by_module.setdefault(id(weight.module), []).append(weight)
    attentions = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    for own in track(by_module.values(), desc="layers", quiet=not progress):
        module = own[0].module
        if isinstance(module, nn.MultiheadAttention):
            continue  # after its output projection
        if is_transposed_linear(module) or is_plain_linear(module):
            model = replace_module(model, module, quantized_linear(module, fmt, inputs, arithmetic))
        else:
            quantize_in_place(own, fmt, inputs)
    for attention in attentions:
        if id(attention) in by_module:
            new = _quant_attention(attention, fmt, inputs, arithmetic)
            model = replace_module(model, attention, new)
    return model


def check_layers(
    model: nn.Module,
    skip: Iterable[str] = (),
    allow_nan: bool = False,
    arithmetic: Arithmetic = FLOAT,
) -> Layers:
    """Return what ``quantize_model`` would quantize, or raise what it would raise."""
    found = find_layers(model, skip)
    check_weights(found.quantized, allow_nan)
    own = [w.name for w in found.quantized if not _is_replaced(w.module)]
    if arithmetic.hardware and own:
        raise InputError(
            f"arithmetic=hardware: {listed(own)} multiply in code of their own, which computes in "
            "float; leave them out (--skip), or take arithmetic=float"
        )
    return found


def _is_replaced(module: nn.Module) -> bool:
    replaced = is_plain_linear(module) or is_transposed_linear(module)
    return replaced or isinstance(module, nn.MultiheadAttention)


def quantized_linear(
    module: nn.Module,
    fmt: Format | None,
    inputs: InputQuantizer | None,
    how: Arithmetic = FLOAT,
) -> QuantLinear:
    """Return a linear layer, in either layout of its weight, quantized."""
    weight, bias = cast(Tensor, module.weight).detach(), cast(Tensor | None, module.bias)
    if is_transposed_linear(module):
        weight = weight.T.contiguous()
    return QuantLinear(weight, bias, None if fmt is None else fmt.quantize(weight), inputs, how)


def _quant_attention(
    attention: nn.MultiheadAttention,
    fmt: Format | None,
    inputs: InputQuantizer | None,
    how: Arithmetic,
) -> QuantMultiheadAttention:
    """Return an attention with its input projections quantized; the output one is already."""
    projections: dict[str, nn.Module] = {"out_proj": attention.out_proj}
    for name, (weight, bias) in input_projections(attention).items():
        weight = weight.detach().contiguous()
        packed = None if fmt is None else fmt.quantize(weight)
        projections[name] = QuantLinear(weight, bias, packed, inputs, how)
    return QuantMultiheadAttention(attention, projections)


def input_projections(
    attention: nn.MultiheadAttention,
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return weight and bias of the projections of queries, keys and values."""
    names = ("q_proj", "k_proj", "v_proj")
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    else:
        weights = tuple(getattr(attention, f"{name}_weight") for name in names)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    return dict(zip(names, zip(weights, biases, strict=True), strict=True))


def stored_formats(model: nn.Module) -> tuple[Format | None, Format | None]:
    """Return the formats of weights and inputs of a quantized model.

    Each is None where there is none, or where layers differ in it.
    """
    layers = [layer for _, layer in quant_layers(model)]
    watched = [module for module in model.modules() if is_watched(module)]
    weights = {layer.format for layer in layers}
    weights |= {form.format for module in watched for _, form in packed_weights(module).values()}
    quantizers = [layer.inputs for layer in layers] + [watched_inputs(m) for m in watched]
    inputs = {None if one is None else one.format for one in quantizers}
    return (
        next(iter(weights)) if len(weights) == 1 else None,
        next(iter(inputs)) if len(inputs) == 1 else None,
    )


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Let a model compute in another type, in place; buffers, such as RoPE's, keep theirs."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for _, layer in quant_layers(model):
        layer._like = layer._like.to(dtype)
    return model


def coverage(model: nn.Module, skip: Iterable[str] = ()) -> Coverage:
    """Return how much of what multiplies in a model is quantized, weights or their inputs.

    Parameters
    ----------
    model
        What ``quantize_model`` or ``load_quantized`` gave, or any model.
    skip
        Names and patterns of what was left out on purpose.
    """
    done = total = 0
    names = list(skip)
    skipped: dict[str, int] = {}
    left: dict[str, int] = {}
    watched = {
        f"{layer}.{name}".lstrip("."): (module, name)
        for layer, module in model.named_modules()
        for name in watched_weights(module)
    }
    for module in model.modules():
        if isinstance(module, QuantLinear):
            values = module.in_features * module.out_features
            total += values
            if module.format is not None or module.inputs is not None:
                done += values
    inside = {id(p) for m in model.modules() if isinstance(m, QuantLinear) for p in m.parameters()}
    for weight in multiplied_weights(model):
        if id(weight.value) in inside:
            continue
        values = weight.value.numel()
        total += values
        if weight.name in watched:
            done += values
        elif any(fnmatchcase(weight.layer, pattern) for pattern in names):
            skipped[weight.name] = values
        else:
            left[weight.name] = values
    return Coverage(total, done, skipped, left)


def set_arithmetic(model: nn.Module, arithmetic: Arithmetic) -> None:
    """Let every quantized layer of a model multiply by ``arithmetic``."""
    for _, layer in quant_layers(model):
        layer.compute_by(arithmetic)


def quant_layers(model: nn.Module) -> Iterator[tuple[str, QuantLinear]]:
    """Yield the quantized linear layers of a model by name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, QuantLinear))
