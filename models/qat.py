"""Quantization-aware training: layers that compute on quantized values and learn behind them.

``fake_quantize`` passes gradients straight through, and none where a value was clipped, so the
weights that are trained find places that the format holds.

>>> from m2xfp.models.qat import finish_training, prepare_training
>>> from m2xfp.models.lm import load_model
>>> model = prepare_training(load_model(), "m2xfp-weight", "m2xfp-act")
>>> # ... train it as any other model ...
>>> model = finish_training(model)
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format
from m2xfp.models.inputs import FormatLike, input_quantizer, weight_format
from m2xfp.models.layers import find_layers, is_plain_linear, is_transposed_linear, listed
from m2xfp.models.quantized import quantize_model

__all__ = ["finish_training", "prepare_training"]

_HELD = "_m2xfp_training"


class _Quantized(nn.Module):
    """A parametrization: the weight as its format holds it, with groups along the inputs."""

    def __init__(self, format: Format, transposed: bool) -> None:
        super().__init__()
        self.format, self.transposed = format, transposed

    def forward(self, weight: Tensor) -> Tensor:
        """Return the values to compute with; their gradient is that of the weight."""
        if self.transposed:
            return self.format.fake_quantize(weight.T).T
        return self.format.fake_quantize(weight)


def prepare_training(
    model: nn.Module,
    weights: FormatLike = None,
    activations: FormatLike = None,
    skip: Iterable[str] = (),
) -> nn.Module:
    """Let the linear layers of a model compute on quantized values, in place; return the model.

    Each step quantizes anew: the parameters stay what they are, and are trained. Layers with code
    of their own, experts in one tensor and ``nn.MultiheadAttention`` are refused by name.

    Parameters
    ----------
    model
        In float32, bfloat16 or float16.
    weights, activations, skip
        As ``quantize_model`` takes them.

    Raises
    ------
    InputError
        What ``quantize_model`` refuses, or a layer that cannot be trained so; or the model is
        prepared already.
    """
    if hasattr(model, _HELD):
        raise InputError("the model is prepared for training already; call finish_training first")
    skipped = list(skip)
    fmt, inputs = weight_format(weights), input_quantizer(activations)
    found = find_layers(model, skipped).quantized
    own = [
        weight.name
        for weight in found
        if not (is_plain_linear(weight.module) or is_transposed_linear(weight.module))
    ]
    if own:
        raise InputError(
            f"{listed(own)} multiply in code of their own, which training does not quantize; leave "
            "them out (skip)"
        )
    hooks = []
    for weight in found:
        if fmt is not None:
            step = _Quantized(fmt, is_transposed_linear(weight.module))
            parametrize.register_parametrization(weight.module, weight.parameter, step)
        if inputs is not None:
            hooks.append(weight.module.register_forward_pre_hook(_on_inputs(inputs.format)))
    object.__setattr__(model, _HELD, (fmt, inputs and inputs.format, skipped, hooks))
    return model


def _on_inputs(fmt: Format) -> Callable[..., tuple[Tensor, ...]]:
    def quantize(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return fmt.fake_quantize(given[0]), *given[1:]

    return quantize


@torch.no_grad()
def finish_training(model: nn.Module) -> nn.Module:
    """Quantize a model that ``prepare_training`` made, after its training, and return it.

    It computes what it computed in training: the parameters, not the values that they were
    quantized to, are quantized and packed.

    Raises
    ------
    InputError
        The model was not prepared.
    """
    held = getattr(model, _HELD, None)
    if held is None:
        raise InputError("the model is not prepared for training; call prepare_training first")
    fmt, inputs, skipped, hooks = held
    for hook in hooks:
        hook.remove()
    for module in list(model.modules()):
        steps = getattr(module, "parametrizations", {})
        if "weight" in steps and any(isinstance(step, _Quantized) for step in steps["weight"]):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    object.__delattr__(model, _HELD)
    return quantize_model(model, fmt, inputs, skipped)
