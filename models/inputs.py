"""Quantizers of what layers read, and the formats that weights and inputs may have."""

import weakref

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.packed import PackedTensor

__all__ = [
    "FormatLike",
    "InputQuantizer",
    "input_quantizer",
    "on_the_fly",
    "per_token",
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


def on_the_fly(value: Format | str, argument: str) -> Format:
    """Return a format for values that are quantized on the fly; Sg-EM searches, so it is none."""
    fmt = get_format(value) if isinstance(value, str) else value
    if fmt.block.metadata.name == "sg-em":
        raise InputError(
            f"{argument}: {fmt.name} searches the multiplier of every subgroup, which is for "
            f"weights and caches; pass {fmt.name.replace('weight', 'act')} or another format "
            "without search"
        )
    return per_token(fmt, argument)


def per_token(fmt: Format, argument: str) -> Format:
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
    return InputQuantizer(on_the_fly(activations, "activations"))
