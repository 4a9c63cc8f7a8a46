"""A recipe applied: a model goes in, the same model with quantized layers comes out."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format
from m2xfp.models.arithmetic import FLOAT, Arithmetic
from m2xfp.models.inputs import FormatLike, input_quantizer, weight_format
from m2xfp.models.layers import find_layers, is_plain_linear, listed
from m2xfp.models.quantized import cast_parameters, check_layers, linear_layers, quantize_model
from m2xfp.models.recipes.blocks import quantize_blocks
from m2xfp.models.recipes.recipe import Awq, Gptq, Recipe, Rotate, Smooth, Step
from m2xfp.models.recipes.rotate import rotate_fused, rotate_online
from m2xfp.models.recipes.scale import scale_channels

__all__ = ["apply_recipe", "prepare"]


def _names(model: nn.Module, skip: list[str]) -> list[str]:
    """Return the plain linear layers that will be quantized; InputError for others."""
    others = [w.name for w in find_layers(model, skip).quantized if not is_plain_linear(w.module)]
    if others:
        raise InputError(
            f"steps: {listed(others)} multiply otherwise than a linear layer does, which no step "
            "prepares; leave them out (--skip), or quantize without steps"
        )
    return list(linear_layers(model, skip))


@torch.no_grad()
def prepare(
    model: nn.Module,
    steps: Iterable[Step],
    windows: Tensor,
    names: list[str],
    weights: Format | None = None,
    inputs: Format | None = None,
) -> None:
    """Take the steps that change a model's weights and not its outputs, in place.

    Parameters
    ----------
    model
        In float32.
    steps
        Of a recipe; ``gptq`` is left out.
    windows
        Calibration tokens [n, length].
    names
        Linear layers that will be quantized.
    weights, inputs
        Formats that ``awq`` searches with.
    """
    for step in steps:
        if isinstance(step, Rotate):
            if step.mode == "fused":
                rotate_fused(model, windows[:1], names, step.seed)
            else:
                rotate_online(model, names, step.seed)
        elif isinstance(step, Awq | Smooth):
            scale_channels(model, windows, names, step, weights, inputs)


@torch.no_grad()
def apply_recipe(
    model: nn.Module,
    recipe: Recipe,
    windows: Tensor,
    weights: FormatLike = None,
    activations: FormatLike = None,
    skip: Iterable[str] = (),
    arithmetic: Arithmetic = FLOAT,
    attention: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: bool = True,
) -> nn.Module:
    """Prepare a model by the steps of a recipe and quantize it, in place; return it.

    Everything is computed in float32 where the model is; the result has the model's type again.

    Parameters
    ----------
    model
        Any model whose quantized layers are plain linear ones.
    recipe
        Its steps.
    windows
        Calibration tokens [n, length], as ``calibration_windows`` makes them.
    weights, activations, skip, arithmetic
        As for ``quantize_model``.
    attention
        Makes the context that quantizes the attention, which ``gptq`` makes up for too.
    progress
        Show a bar.

    Raises
    ------
    InputError
        What ``quantize_model`` raises; a step without what it needs, or a model that it does not
        know. What was changed by then stays so.
    """
    skipped = list(skip)
    check_layers(model, skipped, weights is None, arithmetic)
    names = _names(model, skipped)
    fmt, quantizer = weight_format(weights), input_quantizer(activations)
    last = recipe.steps[-1]
    if isinstance(last, Gptq) and fmt is None:
        raise InputError("gptq: give a format of the weights, which is what it quantizes")
    dtype = next(model.parameters()).dtype
    cast_parameters(model, torch.float32)
    inputs = None if quantizer is None else quantizer.format
    prepare(model, recipe.steps, windows, names, fmt, inputs)
    if isinstance(last, Gptq) and fmt is not None:
        quantize_blocks(
            model, windows, names, last, fmt, quantizer, arithmetic, attention, progress
        )
    left = [w for w in _unquantized(model) if w in names]
    if left:
        others = [name for name in _unquantized(model) if name not in names]
        model = quantize_model(model, fmt, activations, others, arithmetic=arithmetic)
    return cast_parameters(model, dtype)


def _unquantized(model: nn.Module) -> list[str]:
    """Return the names of all plain linear layers that are not quantized."""
    return [name for name, module in model.named_modules() if is_plain_linear(module)]
