"""The bundled model generates text, with its products on an engine of one's choice.

The engine has what the accelerator has: linear layers on packed weights, and both products of the
attention on a packed cache. Everything else is the host's, in bfloat16 as PyTorch computes it:
embedding, norms, SiLU, residuals and the logits from the embedding; RoPE in float32, rounded once;
the softmax in float32, its result rounded once (docs/generation.md).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.errors import InputError
from m2xfp.golden.attention import attention_weights
from m2xfp.golden.formats.format import get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.products import batched_matmul, matmul
from m2xfp.models.lm import Block, LanguageModel, as_tokens, rotary_tables, rotate
from m2xfp.models.quantized import linear_layers

__all__ = ["Engine", "Generator", "GoldenEngine", "Step", "generate", "pack_weights"]

WEIGHTS, ACTIVATIONS = "m2xfp-weight", "m2xfp-act"


class Engine(Protocol):
    """What multiplies."""

    def linear(self, x: Tensor, *names: str) -> list[Tensor]:
        """Return the outputs [m, n] of layers of the model that all read x [m, k], bfloat16."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [heads, m, width] into the cache of a block."""

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        """Return queries [heads, m, width] times the keys of a block, [heads, m, tokens]."""

    def mix(self, layer: int, probabilities: Tensor) -> Tensor:
        """Return probabilities [heads, m, tokens] times the values, [heads, m, width]."""

    def cache(self) -> list[tuple[PackedTensor, PackedTensor]]:
        """Return keys [tokens, heads * width] and values [heads * width, tokens] of each block."""


def pack_weights(model: LanguageModel) -> dict[str, PackedTensor]:
    """Return the weights of the linear layers, encoded, by name."""
    fmt = get_format(WEIGHTS)
    return {n: fmt.quantize(layer.weight.detach()) for n, layer in linear_layers(model).items()}


class GoldenEngine:
    """The engine of the golden model: the reference.

    It keeps keys and values as they came, and packs all of them for each product. Groups that are
    full never change, so this is what a cache that grows holds.

    Parameters
    ----------
    weights
        Packed weights by name.
    layers
        Blocks of the model.
    """

    def __init__(self, weights: Mapping[str, PackedTensor], layers: int) -> None:
        self.weights = weights
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def linear(self, x: Tensor, *names: str) -> list[Tensor]:
        """Return the outputs of layers, each result rounded once to bfloat16."""
        packed = get_format(ACTIVATIONS).quantize(x)
        return [matmul(packed, self.weights[name], "fp32", x.dtype) for name in names]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep further keys and values."""
        kept = self._kept[layer]
        if kept is not None:
            keys, values = torch.cat((kept[0], keys), 1), torch.cat((kept[1], values), 1)
        self._kept[layer] = keys, values

    def _get(self, layer: int) -> tuple[Tensor, Tensor]:
        kept = self._kept[layer]
        assert kept is not None, "append comes first"
        return kept

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        """Return queries times keys."""
        return self._product(queries, self._get(layer)[0])

    def mix(self, layer: int, probabilities: Tensor) -> Tensor:
        """Return probabilities times values."""
        return self._product(probabilities, self._get(layer)[1].transpose(1, 2))

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        packed = get_format(ACTIVATIONS).quantize(left), get_format(WEIGHTS).quantize(right)
        return batched_matmul(*packed, "fp32", left.dtype)

    def cache(self) -> list[tuple[PackedTensor, PackedTensor]]:
        """Return what a cache holds."""
        fmt = get_format(WEIGHTS)
        kept = (self._get(layer) for layer in range(len(self._kept)))
        return [
            (
                fmt.quantize(keys.transpose(0, 1).flatten(1)),
                fmt.quantize(values.transpose(1, 2).flatten(0, 1)),
            )
            for keys, values in kept
        ]


class Generator:
    """A model and what it has read.

    Parameters
    ----------
    model
        The model; it is computed in bfloat16.
    engine
        What multiplies. Its cache is empty.
    """

    def __init__(self, model: LanguageModel, engine: Engine) -> None:
        self.model, self.engine = model.bfloat16(), engine
        self.length = 0
        self._rotary = rotary_tables(model.config, model.config.context, torch.device("cpu"))

    @torch.no_grad()
    def read(self, tokens: Tensor, report: Callable[[], None] = lambda: None) -> Tensor:
        """Read further tokens [m]; return the logits [vocabulary] of what follows, bfloat16.

        Parameters
        ----------
        tokens
            int64.
        report
            Called after each block.
        """
        end = self.length + len(tokens)
        context = self.model.config.context
        if not len(tokens) or end > context:
            raise InputError(f"{end} bytes of text: this model reads 1 to {context}")
        x = self.model.embed_tokens(tokens)
        for index, block in enumerate(self.model.layers):
            assert isinstance(block, Block)
            x = x + self._attention(index, block.input_layernorm(x), end)
            x = x + self._feed_forward(index, block.post_attention_layernorm(x))
            report()
        self.length = end
        logits: Tensor = F.linear(self.model.norm(x[-1:]), self.model.embed_tokens.weight)[0]
        return logits

    def _attention(self, index: int, x: Tensor, end: int) -> Tensor:
        """Return what the attention of a block adds, for tokens up to ``end``."""
        heads = self.model.config.heads
        name = f"layers.{index}.self_attn."
        tables = self._rotary[0][self.length : end], self._rotary[1][self.length : end]
        read = self.engine.linear(x, *(f"{name}{part}_proj" for part in "qkv"))
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(0, 1) for y in read)
        q, k = rotate(q, tables), rotate(k, tables)
        self.engine.append(index, k, v)
        seen = torch.ones(len(x), end, dtype=torch.bool).tril(self.length)
        scores = self.engine.scores(index, q)
        weights = attention_weights(scores, q.shape[-1] ** -0.5, seen).to(x.dtype)
        mixed = self.engine.mix(index, weights).transpose(0, 1).flatten(1)
        return self.engine.linear(mixed, f"{name}o_proj")[0]

    def _feed_forward(self, index: int, x: Tensor) -> Tensor:
        """Return what the feed-forward of a block adds."""
        name = f"layers.{index}.mlp."
        gate, up = self.engine.linear(x, f"{name}gate_proj", f"{name}up_proj")
        return self.engine.linear(F.silu(gate) * up, f"{name}down_proj")[0]


@dataclass(frozen=True)
class Step:
    """A token that was generated.

    Members
    -------
    token
        The token.
    logits
        What it was chosen by, bfloat16 [vocabulary].
    """

    token: int
    logits: Tensor


def generate(
    generator: Generator,
    prompt: bytes,
    count: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    report: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Yield tokens that follow a prompt.

    Parameters
    ----------
    generator
        The model; it has read nothing yet.
    prompt
        Text, not empty; it is read at once.
    count
        How many tokens.
    temperature
        0 takes the most likely token, the first of several; otherwise each is drawn with
        probabilities softmax(logits / temperature).
    seed
        Of the draws.
    report
        Called after each block of the model: ``count`` times as often as it has blocks.
    """
    dice = torch.Generator().manual_seed(seed)
    tokens = as_tokens(prompt).long()
    for _ in range(count):
        logits = generator.read(tokens, report)
        if temperature:
            shares = (logits.double() / temperature).softmax(0)
            chosen = int(torch.multinomial(shares, 1, generator=dice))
        else:
            chosen = int(logits.argmax())
        yield Step(chosen, logits)
        tokens = torch.tensor([chosen])
