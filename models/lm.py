"""The bundled language model: a small byte-level transformer of the Llama family.

RMSNorm before each block, rotary position embedding, SwiGLU, tied embeddings, no biases; module
names are those of Hugging Face's Llama checkpoints. The vocabulary is the 256 byte values. Every
linear layer reads a multiple of 64 values, so that groups of 16 and 32 fit without padding.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name PyTorch's documentation uses

from m2xfp.errors import InputError, unreadable
from m2xfp.files import atomic_path
from m2xfp.golden.formats.tensor_file import read_tensors
from m2xfp.plain import parse_json, typed

__all__ = [
    "HELD_OUT",
    "WEIGHTS",
    "Block",
    "LanguageModel",
    "ModelConfig",
    "as_tokens",
    "load_model",
    "rotary_tables",
    "rotate",
    "save_model",
    "skeleton",
]

WEIGHTS = Path(__file__).with_name("data") / "lm.safetensors"
"""The committed weights."""

HELD_OUT = Path(__file__).with_name("data") / "held_out.txt"
"""The committed sample of text that training never sees."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model.

    Members
    -------
    width
        Values of the residual stream.
    layers, heads
        Transformer blocks, and attention heads a block; ``width`` is a multiple of ``heads``.
    hidden
        Values between the two halves of the feed-forward block.
    context
        Tokens of a training window.
    rope_base
        Base of the rotary frequencies, rope_base^(-2i / head width).
    """

    width: int = 192
    layers: int = 4
    heads: int = 6
    hidden: int = 512
    context: int = 512
    vocabulary: int = 256
    rope_base: float = 10_000.0


def rotary_tables(config: ModelConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the position angles, float32 [length, head width]."""
    half = config.width // config.heads // 2
    frequency = config.rope_base ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + head width / 2) of x [..., length, head width] by its positions."""
    cosine, sine = rotary
    low, high = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat((-high, low), dim=-1) * sine).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Map [batch, length, width] to the same shape."""

        def by_head(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q = rotate(by_head(self.q_proj(x)), rotary)
        k = rotate(by_head(self.k_proj(x)), rotary)
        v = by_head(self.v_proj(x))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, length, width] to the same shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=1e-5)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=1e-5)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Map [batch, length, width] to the same shape."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), rotary))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class LanguageModel(nn.Module):
    """The whole model: tokens to the logits of the next token.

    Parameters
    ----------
    config
        Its shape.
    dropout
        Share of what a block adds to the residual stream that is dropped in training.
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        residual = 0.02 / (2 * config.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                inner = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=residual if inner else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [batch, length, vocabulary] for int64 tokens [batch, length]."""
        x = self.embed_tokens(tokens)
        rotary = rotary_tables(self.config, tokens.shape[-1], tokens.device)
        for layer in self.layers:
            x = layer(x, rotary)
        return F.linear(self.norm(x), self.embed_tokens.weight)


def as_tokens(text: bytes, device: torch.device | str = "cpu") -> Tensor:
    """Return the bytes of a text as uint8 tokens [length]."""
    if not text:  # which frombuffer does not take
        return torch.empty(0, dtype=torch.uint8, device=device)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)


def save_model(path: str | os.PathLike[str], model: LanguageModel, facts: dict[str, str]) -> None:
    """Write the weights as bfloat16 safetensors, with the configuration and facts as metadata."""
    from safetensors.torch import save_file

    weights = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(weights, temporary, {"config": json.dumps(asdict(model.config)), **facts})


def skeleton(config: Any, tensors: Mapping[str, Tensor]) -> LanguageModel:
    """Return a model without memory for its weights, of the shape that a file states.

    Parameters
    ----------
    config
        JSON of a ``ModelConfig``, text or read already.
    tensors
        What is in the file, which bounds what is made here.
    """
    facts = parse_json(config, "config") if isinstance(config, str) else config
    shape = typed(ModelConfig, facts, "config")
    most = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    for name in ("width", "layers", "heads", "hidden", "vocabulary", "context"):
        value, limit = getattr(shape, name), len(tensors) if name == "layers" else most
        if name in ("width", "layers", "hidden", "vocabulary") and value > limit:
            raise InputError(f"config.{name} is {value}, and no tensor is as large")
        if not 1 <= value < 1 << 31:
            raise InputError(f"config.{name} is {value}; it must be positive")
    if shape.width % (2 * shape.heads):
        raise InputError(f"config.heads is {shape.heads}, and config.width {shape.width}")
    if not 1 < shape.rope_base < 1 << 40:
        raise InputError(f"config.rope_base is {shape.rope_base}; it must be above 1")
    with torch.device("meta"):
        return LanguageModel(shape)


def load_model(
    path: str | os.PathLike[str] = WEIGHTS, device: torch.device | str = "cpu"
) -> LanguageModel:
    """Read a model that ``save_model`` wrote; float32, ready for evaluation.

    Raises
    ------
    InputError
        If the file does not exist or holds no such model.
    """
    if not Path(path).is_file():
        raise InputError(f"no model file {os.fspath(path)!r}; `m2xfp train` writes one")
    try:
        texts, tensors = read_tensors(path)
        model = skeleton(texts.get("config", ""), tensors)
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise InputError(f"{name} is {tensor.dtype}")
        model.load_state_dict(
            {name: tensor.float() for name, tensor in tensors.items()}, assign=True
        )
    except (InputError, RuntimeError) as error:
        raise unreadable(path, "holds no language model of `m2xfp train`", error) from error
    return model.to(device).eval()
