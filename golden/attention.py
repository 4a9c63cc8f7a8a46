"""What attention computes between its two products, on the host of the hardware."""

import torch
from torch import Tensor

__all__ = ["attention_weights"]


def attention_weights(
    scores: Tensor, factor: float, mask: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
    """Return softmax(scores factor + mask) along the keys, in float32.

    Parameters
    ----------
    scores
        [..., queries, keys], of any type: products of queries and keys.
    factor
        What they are multiplied by.
    mask
        True where a query sees a key, or what is added to the scores.
    is_causal
        Each query sees the keys up to its own; the first query is that of the first key.
    """
    scores = scores.float() * factor
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        else:
            scores = scores + mask
    # A query that sees no key at all (padding) gives zero.
    return scores.softmax(-1).nan_to_num(0.0)
