"""Layers with a forward of their own, quantized where they multiply.

A subclass of ``nn.Linear`` that scales its output, or the experts of a mixture that stand in one
tensor, keep their code: the weight holds the values that its packed form decodes to, and while the
layer computes, every matrix product with that weight takes quantized inputs.
``nn.MultiheadAttention`` computes in one function of PyTorch, so it is written out here.
"""

from collections.abc import Callable, Hashable, Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses
from torch.overrides import TorchFunctionMode

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.stacked import StackedTensor
from m2xfp.models.layers import Weight

__all__ = [
    "QuantMultiheadAttention",
    "decoded",
    "is_watched",
    "packed_weights",
    "quantize_in_place",
    "watch",
]

Quantizer = Callable[[Tensor], Tensor]
Packed = PackedTensor | StackedTensor

# Places of the operands of a product.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    F.linear: (0, 1),
    torch.matmul: (0, 1),
    torch.mm: (0, 1),
    torch.bmm: (0, 1),
    Tensor.matmul: (0, 1),
    Tensor.__matmul__: (0, 1),
    Tensor.mm: (0, 1),
    Tensor.bmm: (0, 1),
    torch.addmm: (1, 2),
    torch.baddbmm: (1, 2),
    Tensor.addmm: (1, 2),
    Tensor.baddbmm: (1, 2),
}
_KEYWORDS = {F.linear: ("input", "weight")}
# What gives a part or another shape of a weight: still the weight, for a product.
_PARTS: set[Any] = {
    getattr(owner, name)
    for owner in (torch, Tensor)
    for name in (
        *("__getitem__", "select", "index_select", "narrow", "chunk", "split", "unbind"),
        *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"),
        *("t", "transpose", "permute", "contiguous", "to", "detach"),
    )
    if hasattr(owner, name)
} | {cast(Any, getter).__get__ for getter in (Tensor.T, Tensor.mT)}


class _Operands(TorchFunctionMode):
    """Within this context products with one of ``weights``, or a part of it, quantize the input."""

    def __init__(self, weights: list[Tensor], inputs: Quantizer) -> None:
        super().__init__()
        # By identity; kept, so that no other tensor gets the same one meanwhile.
        self._weights = {id(weight): weight for weight in weights}
        self._inputs = inputs
        self.seen = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Quantize the first operand of a product whose second one is a weight."""
        kwargs = dict(kwargs or {})
        if func in _PRODUCTS:
            given: list[Any] = list(args)
            for at, name in zip(_PRODUCTS[func], _KEYWORDS.get(func, ()), strict=False):
                if name in kwargs and len(given) == at:
                    given.append(kwargs.pop(name))
            left, right = _PRODUCTS[func]
            weight = given[right] if len(given) > right else None
            if id(weight) in self._weights:
                given[left] = self._inputs(given[left])
                self.seen += 1
            args = tuple(given)
        result = func(*args, **kwargs)
        if func in _PARTS and args and id(args[0]) in self._weights:
            parts = result if isinstance(result, (tuple, list)) else [result]
            self._weights |= {id(part): part for part in parts}
        return result


class _Watched:
    """Mixed into the class of a layer whose products take quantized inputs."""

    _m2xfp_inputs: Quantizer | None
    _m2xfp_packed: dict[str, tuple[int, Packed]]
    _m2xfp_weights: tuple[str, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the class does, with quantized inputs of its products."""
        compute: Callable[..., Any] = super().forward  # type: ignore[misc]
        if self._m2xfp_inputs is None:
            return compute(*args, **kwargs)
        weights = [getattr(self, name) for name in self._m2xfp_weights]
        with _Operands(weights, self._m2xfp_inputs) as products:
            result = compute(*args, **kwargs)
        if not products.seen:
            raise InputError(
                f"{type(self).__name__}: no matrix product with {', '.join(self._m2xfp_weights)} "
                "was seen, so its inputs were not quantized; leave the layer out (--skip)"
            )
        return result

    def extra_repr(self) -> str:
        """Show what is quantized."""
        own: str = super().extra_repr()  # type: ignore[misc]
        formats = ", ".join(f"{n}={p.format.name}" for n, (_, p) in self._m2xfp_packed.items())
        return ", ".join(filter(None, (own, formats)))


@cache  # so that two layers of one class stay of one class
def _watched(kind: Any) -> Any:
    return type(f"Quant{kind.__name__}", (_Watched, kind), {"__module__": kind.__module__})


def is_watched(module: nn.Module) -> bool:
    """Whether a module keeps its own forward and is quantized."""
    return isinstance(module, _Watched)


def packed_weights(module: nn.Module) -> dict[str, tuple[int, Packed]]:
    """Return dimension and packed form of the weights of such a module, by name."""
    return getattr(module, "_m2xfp_packed", {})


def watched_weights(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights whose products take quantized inputs."""
    return getattr(module, "_m2xfp_weights", ())


def watched_inputs(module: nn.Module) -> Any:
    """Return the quantizer of a watched module's inputs."""
    return getattr(module, "_m2xfp_inputs", None)


def decoded(packed: Packed, dim: int, dtype: torch.dtype) -> Tensor:
    """Return the values of a packed weight whose groups run along ``dim`` of the result."""
    return packed.dequantize(dtype).transpose(dim, -1).contiguous()


def watch(
    module: nn.Module,
    names: tuple[str, ...],
    packed: Mapping[str, tuple[int, Packed]],
    inputs: Quantizer | None,
) -> None:
    """Make a module quantize the inputs of its products with the weights called ``names``."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "_experts_implementation"):
        # The other ones of transformers hand all experts to a function of their own.
        config._experts_implementation = "eager"
    module.__class__ = _watched(cast(Hashable, type(module)))
    module._m2xfp_inputs = inputs  # type: ignore[assignment]
    module._m2xfp_packed = dict(packed)  # type: ignore[assignment]
    module._m2xfp_weights = names  # type: ignore[assignment]


def quantize_in_place(weights: list[Weight], fmt: Format | None, inputs: Quantizer | None) -> None:
    """Quantize weights of one module, which keeps its own forward.

    Parameters
    ----------
    weights
        Of one module, in float32, bfloat16 or float16.
    fmt, inputs
        Format of the weights and quantizer of the inputs; None leaves them as they are.
    """
    module, packed = weights[0].module, {}
    for weight in weights:
        if fmt is not None:
            value, dim = weight.value.detach(), weight.dim
            assert dim is not None
            form = fmt.quantize(value.transpose(dim, -1).contiguous())
            packed[weight.parameter] = dim, form
            weight.value.data = decoded(form, dim, value.dtype)
    watch(module, tuple(weight.parameter for weight in weights), packed, inputs)


class QuantMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` for evaluation, with its projections as layers of their own.

    The products of attention itself go through ``scaled_dot_product_attention``, or are written out
    where the weights of the attention are asked for. ``bias_k`` and ``add_zero_attn`` are not
    supported.

    Parameters
    ----------
    original
        The module to compute as.
    projections
        Layers ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.
    """

    def __init__(
        self, original: nn.MultiheadAttention, projections: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = original.embed_dim, original.num_heads
        self.head_dim, self.batch_first = original.head_dim, original.batch_first
        # nn.TransformerEncoderLayer asks: so it does not hand the weights to a function of its own.
        self._qkv_same_embed_dim = False
        self.in_proj_bias = None
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, projections[name])

    def _heads(self, x: Tensor) -> Tensor:
        """Cut [batch, length, width] into [batch, heads, length, width of a head]."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what ``nn.MultiheadAttention`` does; masks are true where nothing is seen."""
        single = query.ndim == 2
        query, key, value = (
            x.unsqueeze(0) if single else x if self.batch_first else x.transpose(0, 1)
            for x in (query, key, value)
        )
        q, k, v = (
            self._heads(self.get_submodule(name)(x))
            for name, x in (("q_proj", query), ("k_proj", key), ("v_proj", value))
        )
        mask = _float_mask(attn_mask, q.dtype)
        if mask is not None and mask.ndim == 3:
            mask = mask.view(len(q), -1, *mask.shape[1:])
        padding = _float_mask(key_padding_mask, q.dtype)
        if padding is not None:
            padding = padding.reshape(-1, 1, 1, padding.shape[-1])
            mask = padding if mask is None else mask + padding
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal and mask is None)
        y = self.get_submodule("out_proj")(y.transpose(1, 2).flatten(-2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights


def _float_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask to add to scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
