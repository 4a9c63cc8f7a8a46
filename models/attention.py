"""Attention on quantized queries, keys, probabilities and values."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses
from torch.overrides import TorchFunctionMode

from m2xfp.golden.attention import attention_weights
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.models.arithmetic import FLOAT, Arithmetic
from m2xfp.models.inputs import on_the_fly, per_token
from m2xfp.models.rotations import InputRotation, online_block

__all__ = ["QuantAttention"]


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
    seed
        Rotate queries and keys by Hadamard blocks with signs of this seed before they are
        quantized: the width of a head must be a multiple of 32. None for no rotation.

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
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.cache = per_token(get_format(cache) if isinstance(cache, str) else cache, "cache")
        self.operands = on_the_fly(operands, "operands")
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
        if self.seed is not None:
            query, key, rest = self._rotated(query, key, self.seed)
            factor *= rest
        scores = self._product(query, key, enable_gqa)
        weights = attention_weights(scores, factor, attn_mask, is_causal=is_causal)
        probabilities = weights.to(query.dtype)
        return self._product(probabilities, value.transpose(-1, -2), enable_gqa)

    def _rotated(self, query: Tensor, key: Tensor, seed: int) -> tuple[Tensor, Tensor, float]:
        """Return queries and keys rotated, and what their products are to be multiplied by."""
        width = query.shape[-1]
        rotation = InputRotation(width, online_block(width), seed)
        rotate = rotation.as_hardware if self.arithmetic.hardware else rotation.values
        return rotate(query), rotate(key), rotation.product_factor

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
