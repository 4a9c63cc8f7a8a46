"""Models with quantized linear layers.

``quantize_model`` replaces the linear layers of any torch model. Weights stay packed. Products are
those of the type of the model on decoded values, or the hardware's, see ``models.arithmetic``.
Their files are ``models.packed_model``'s.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format
from m2xfp.models.arithmetic import FLOAT, Arithmetic
from m2xfp.models.inputs import FormatLike, InputQuantizer, input_quantizer, weight_format
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
from m2xfp.models.linear import QuantLinear, quant_layers
from m2xfp.models.operands import (
    QuantMultiheadAttention,
    is_watched,
    packed_weights,
    quantize_in_place,
    watched_inputs,
    watched_weights,
)

__all__ = [
    "cast_parameters",
    "check_layers",
    "coverage",
    "input_projections",
    "linear_layers",
    "quantize_model",
    "quantized_linear",
    "replace_module",
    "set_arithmetic",
    "stored_formats",
]


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
