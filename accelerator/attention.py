"""Attention on the accelerator: a packed cache in its memory, and the products with it."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.accelerator.device import Device
from m2xfp.accelerator.memory import value_type
from m2xfp.errors import InputError
from m2xfp.golden.attention import attention_weights
from m2xfp.golden.formats.packed import PackedTensor

__all__ = ["AttentionCache", "attend"]


class AttentionCache:
    """Keys and values of an attention, packed by the accelerator's encoder, in its memory.

    Groups of keys run along the width of a head; groups of values along the tokens, since that is
    what the product with probabilities sums over. A group of values that is not full yet is encoded
    anew with each token, from the values of these tokens, which the host keeps.

    Parameters
    ----------
    device
        The accelerator.
    heads, width
        Heads of the cache, and values of each.
    capacity
        Most tokens.

    Members
    -------
    length
        Tokens that are in it.

    Raises
    ------
    InputError
        The accelerator cannot multiply rows of so many tokens.
    """

    def __init__(self, device: Device, heads: int, width: int, capacity: int) -> None:
        self.device, self.heads, self.width = device, heads, width
        group = device.group
        self.capacity = -(-capacity // group) * group
        if self.capacity > device.max_k:
            raise InputError(
                f"capacity={capacity}: this accelerator multiplies rows of {device.max_k} values, "
                "so no more tokens are in a cache; build it with a larger max_k"
            )
        self._stride = -(-width // group) * group
        self.length = 0
        self._keys = device.empty(self.capacity, heads * self._stride, device.weights)
        self._values = device.empty(heads * width, self.capacity, device.weights)
        self._tail = torch.zeros(heads * width, 0)

    def close(self) -> None:
        """Give its memory back."""
        self.device.remove(self._keys, self._values)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Encode keys and values [heads, tokens, width] of further tokens.

        Raises
        ------
        InputError
            Their shape or number does not fit, or the encoder does not take their type. Nothing has
            been queued then.
        """
        shape = (self.heads, keys.shape[1], self.width)
        if keys.shape != shape or values.shape != shape:
            raise InputError(f"keys, values: pass [{self.heads}, tokens, {self.width}]")
        tokens, device, group = keys.shape[1], self.device, self.device.group
        end = self.length + tokens
        if end > self.capacity:
            raise InputError(f"{end} tokens: this cache has room for {self.capacity}")
        lines = self._by_token(keys)
        start = self.length // group * group
        columns = values.transpose(1, 2).reshape(-1, tokens)
        if self._tail.shape[1]:  # of two types the result has one that holds both exactly
            columns = torch.cat((self._tail, columns), 1)
        device.check_values("encode", keys.dtype, "keys")
        device.check_values("encode", columns.dtype, "values")
        stop = -(-end // group) * group
        lines_at = self._keys.part(range(self.length, end), range(self._keys.k))
        columns_at = self._values.part(range(self._values.rows), range(start, stop))
        with device.borrow() as keep:
            jobs = [device.submit_encode(keep(device.store(lines)), lines_at)]
            jobs += [device.submit_encode(keep(device.store(columns)), columns_at)]
            device.wait(jobs)
        self.length = end
        self._tail = columns[:, end // group * group - start :].clone()

    def scores(self, queries: Tensor) -> Tensor:
        """Return queries [heads, m, width] times the keys, [heads, m, tokens], in their type."""
        heads, m, _ = queries.shape
        each, device = self._each(heads), self.device
        device.check_values("quantize", queries.dtype, "queries")
        kind = value_type(queries.dtype, "queries")
        with device.borrow() as keep:
            out = keep(device.empty_values(heads * m, self.length, kind))
            packed = keep(device.empty(m, heads * self._stride))
            operands = keep(device.store(self._by_token(queries)))
            jobs = [device.submit_quantize(operands, packed)]
            jobs += [
                device.submit_matmul(
                    packed.part(range(m), _span(head, self._stride)),
                    self._keys.part(range(self.length), _span(head // each, self._stride)),
                    out.part(_span(head, m), range(self.length)),
                )
                for head in range(heads)
            ]
            device.wait(jobs)
            return device.load(out).to(queries.dtype).reshape(heads, m, self.length)

    def mix(self, probabilities: Tensor) -> Tensor:
        """Return probabilities [heads, m, tokens] times the values, [heads, m, width]."""
        heads, m, _ = probabilities.shape
        each, device = self._each(heads), self.device
        device.check_values("quantize", probabilities.dtype, "probabilities")
        kind = value_type(probabilities.dtype, "probabilities")
        tokens = range(-(-self.length // device.group) * device.group)
        with device.borrow() as keep:
            out = keep(device.empty_values(m, heads * self.width, kind))
            packed = keep(device.empty(heads * m, self.length))
            operands = keep(device.store(probabilities.reshape(heads * m, -1)))
            jobs = [device.submit_quantize(operands, packed)]
            jobs += [
                device.submit_matmul(
                    packed.part(_span(head, m), tokens),
                    self._values.part(_span(head // each, self.width), tokens),
                    out.part(range(m), _span(head, self.width)),
                )
                for head in range(heads)
            ]
            device.wait(jobs)
            found = device.load(out).to(probabilities.dtype)
            return found.unflatten(1, (heads, self.width)).transpose(0, 1)

    def packed(self) -> tuple[PackedTensor, PackedTensor]:
        """Return what is cached: keys [tokens, heads * width], values [heads * width, tokens].

        The width of a head is filled to whole groups.
        """
        keys = self._keys.part(range(self.length), range(self._keys.k))
        shape = (self._values.rows, self.length)
        tokens = range(-(-self.length // self.device.group) * self.device.group)
        values = self._values.part(range(self._values.rows), tokens)
        return self.device.download(keys), self.device.download(values, shape)

    def _by_token(self, x: Tensor) -> Tensor:
        """Return [heads, tokens, width] as [tokens, heads * filled width]."""
        return F.pad(x, (0, self._stride - self.width)).transpose(0, 1).flatten(1)

    def _each(self, heads: int) -> int:
        """Return the heads of queries that a head of the cache serves."""
        if heads % self.heads:
            raise InputError(
                f"{heads} heads of queries are no multiple of the cache's {self.heads}"
            )
        return heads // self.heads


def _span(index: int, size: int) -> range:
    return range(index * size, (index + 1) * size)


def attend(
    device: Device,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """Return attention of queries [..., heads, m, width], as ``Device.attention``."""
    if query.shape[:-3] != key.shape[:-3] or key.shape != value.shape:
        raise InputError("query, key, value: pass [..., heads, tokens, width] of one batch")
    for what, name, x in (
        ("quantize", "query", query),
        ("encode", "key", key),
        ("encode", "value", value),
    ):
        device.check_values(what, x.dtype, name)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    found = []
    parts = zip(*(x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)), strict=True)
    for queries, keys, values in parts:
        cache = AttentionCache(device, keys.shape[0], keys.shape[2], keys.shape[1])
        try:
            cache.append(keys, values)
            weights = attention_weights(cache.scores(queries), factor, is_causal=is_causal)
            found.append(cache.mix(weights.to(query.dtype)))
        finally:
            cache.close()
    return torch.stack(found).reshape(query.shape)
