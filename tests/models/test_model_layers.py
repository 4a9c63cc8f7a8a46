"""What multiplies in models of many kinds: found, quantized, counted, saved and read again."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from m2xfp.errors import InputError
from m2xfp.golden import get_format
from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.layers import find_layers, multiplied_weights
from m2xfp.models.linear import QuantLinear
from m2xfp.models.operands import QuantMultiheadAttention
from m2xfp.models.packed_model import load_quantized, save_quantized
from m2xfp.models.quantized import coverage, quantize_model

transformers = pytest.importorskip("transformers")

WEIGHT, ACT = get_format("m2xfp-weight"), get_format("m2xfp-act")

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}

# Class of the configuration, what it needs beside SMALL, and the least share that is quantized: all
# but the routers of experts.
FAMILIES: dict[str, tuple[str, dict[str, Any], float]] = {
    "llama": ("LlamaConfig", {}, 1),
    "llama4": (
        "Llama4TextConfig",
        EXPERTS | {"intermediate_size_mlp": 96, "head_dim": 16, "interleave_moe_layer_step": 1},
        0.98,
    ),
    "qwen2": ("Qwen2Config", {}, 1),
    "qwen3": ("Qwen3Config", {"head_dim": 16}, 1),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        EXPERTS | {"moe_intermediate_size": 96, "shared_expert_intermediate_size": 96},
        0.98,
    ),
    "qwen3-moe": ("Qwen3MoeConfig", EXPERTS | {"moe_intermediate_size": 96, "head_dim": 16}, 0.98),
    "mistral": ("MistralConfig", {}, 1),
    "mixtral": ("MixtralConfig", EXPERTS, 0.98),
    "gemma2": ("Gemma2Config", {"head_dim": 16}, 1),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16}, 1),
    "phi3": ("Phi3Config", {}, 1),
    "phimoe": ("PhimoeConfig", EXPERTS, 0.98),
    "opt": ("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 64}, 1),
    "falcon": ("FalconConfig", {}, 1),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64}, 1),
    "gpt-oss": ("GptOssConfig", EXPERTS | {"head_dim": 16}, 0.98),
    "olmoe": ("OlmoeConfig", EXPERTS, 0.98),
    "deepseek-v3": (
        "DeepseekV3Config",
        {
            "moe_intermediate_size": 96,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "num_key_value_heads": 4,
        },
        0.98,
    ),
    "granite": ("GraniteConfig", {}, 1),
    "stablelm": ("StableLmConfig", {}, 1),
}
TOKENS = torch.arange(3, 27)[None]


def family(name: str) -> nn.Module:
    """Return a random model of two layers."""
    kind, more, _ = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**(SMALL | more))
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, tmp_path: Path) -> None:
    """All that multiplies is quantized, save for routers; saved and read it computes alike."""
    model = family(name)
    before = logits(model)
    quantized = quantize_model(copy.deepcopy(model), WEIGHT, ACT, skip=["lm_head"])
    found = coverage(quantized, ["lm_head"])
    assert list(found.skipped) in ([], ["lm_head.weight"])
    assert found.wanted >= FAMILIES[name][2], str(found)
    assert all("gate" in left or "router" in left for left in found.left), str(found)
    after = logits(quantized)
    assert not torch.equal(after, before)
    assert torch.nn.functional.cosine_similarity(after.flatten(), before.flatten(), 0) > 0.8

    save_quantized(tmp_path / "packed.safetensors", quantized)
    restored = load_quantized(tmp_path / "packed.safetensors", copy.deepcopy(model))
    assert torch.equal(logits(restored), after)
    assert coverage(restored, ["lm_head"]) == found


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "llama4"])
def test_inputs_of_experts_are_quantized(name: str) -> None:
    """Both halves change the result, and both together are neither."""
    model = family(name)
    given = {
        (w, a): logits(quantize_model(copy.deepcopy(model), w, a, ["lm_head"]))
        for w, a in ((WEIGHT, None), (None, ACT), (WEIGHT, ACT))
    }
    results = [logits(model), *given.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


def test_experts_are_what_a_layer_each_would_be() -> None:
    """An expert of Mixtral is two linear layers: bit for bit those of QuantLinear."""
    experts = family("mixtral").get_submodule("model.layers.0.mlp.experts")
    x = torch.randn(5, 64)
    chosen = torch.tensor([[2]] * 5), torch.ones(5, 1)
    layers = [
        QuantLinear(weight := getattr(experts, name)[2].detach(), None, WEIGHT.quantize(weight))
        for name in ("gate_up_proj", "down_proj")
    ]
    holder = nn.ModuleDict({"experts": experts})
    quantize_model(holder, WEIGHT, ACT)
    with torch.no_grad():
        gate, up = layers[0](ACT.fake_quantize(x)).chunk(2, -1)
        hidden = experts.act_fn(gate) * up
        expected = layers[1](ACT.fake_quantize(hidden))
        torch.testing.assert_close(holder["experts"](x, *chosen), expected, rtol=0, atol=0)


class Doubled(nn.Linear):
    """A layer with code of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Scaled(nn.Linear):
    """A layer whose product is not with its weight as it stands."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * 3, self.bias)


def test_a_subclass_keeps_its_forward() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(Doubled(64, 32))
    plain = nn.Linear(64, 32)
    plain.load_state_dict(model[0].state_dict())
    x = torch.randn(3, 64)
    quantized = quantize_model(model, WEIGHT, ACT)
    expected = 2 * quantize_model(plain, WEIGHT, ACT)(x)
    assert torch.equal(quantized(x), expected)
    assert isinstance(quantized[0], Doubled)
    with pytest.raises(InputError, match=r"QuantScaled: no matrix product with weight was seen"):
        quantize_model(nn.Sequential(Scaled(64, 32)), WEIGHT, ACT)(x)
    with pytest.raises(InputError, match=r"0.weight multiply in code of their own"):
        quantize_model(nn.Sequential(Doubled(64, 32)), WEIGHT, ACT, arithmetic="hardware")


def test_a_layer_alone_and_under_two_names() -> None:
    layer = nn.Linear(64, 32)
    assert isinstance(quantize_model(layer, WEIGHT), QuantLinear)
    both = nn.ModuleDict({"one": nn.Linear(64, 64)})
    both["two"] = both["one"]
    quantize_model(both, WEIGHT)
    assert isinstance(both["two"], QuantLinear)
    assert both["two"] is both["one"]


def test_hooks_stay() -> None:
    layer, seen = nn.Linear(64, 32), []
    layer.register_forward_hook(lambda *_: seen.append("after"))
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_, **__: seen.append("with"), with_kwargs=True)
    quantize_model(nn.Sequential(layer), WEIGHT)(torch.randn(2, 64))
    assert seen == ["before", "after", "with"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [{}, {"kdim": 32, "vdim": 96}], ids=["one", "three"])
def test_multihead_attention(widths: dict[str, int], bias: bool) -> None:
    """Without formats it is PyTorch's; with them its projections are quantized layers."""
    torch.manual_seed(2)
    original = nn.MultiheadAttention(64, 4, bias=bias, batch_first=True, **widths).eval()
    q = torch.randn(2, 5, 64)
    k, v = (torch.randn(2, 7, widths.get(name, 64)) for name in ("kdim", "vdim"))
    hidden = torch.zeros(2, 7, dtype=torch.bool)
    hidden[0, 5:] = True
    causal = torch.ones(5, 7).triu(3).bool()
    holder = nn.ModuleDict({"attention": copy.deepcopy(original)})
    quantize_model(holder, None, None)
    plain = holder["attention"]
    assert isinstance(plain, QuantMultiheadAttention)
    for options in (
        {},
        {"key_padding_mask": hidden},
        {"attn_mask": causal, "need_weights": False},
        {"key_padding_mask": hidden, "attn_mask": causal, "average_attn_weights": False},
    ):
        found, expected = plain(q, k, v, **options), original(q, k, v, **options)
        torch.testing.assert_close(found, expected)
    layers = nn.ModuleDict({"attention": original})
    quantize_model(layers, WEIGHT, ACT)
    assert coverage(layers).share == 1
    assert all(isinstance(layer, QuantLinear) for layer in layers["attention"].children())
    assert not torch.allclose(layers["attention"](q, k, v)[0], original(q, k, v)[0], atol=1e-4)


def test_an_encoder_layer_takes_no_short_cut() -> None:
    """PyTorch's fused layer would read the weights past the quantizers of the inputs."""
    layer = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True).eval()
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        weights_only = quantize_model(copy.deepcopy(layer), WEIGHT)(x)
        both = quantize_model(copy.deepcopy(layer), WEIGHT, ACT)(x)
        assert not torch.equal(weights_only, both)
        inner = quantize_model(copy.deepcopy(layer), WEIGHT, ACT, skip=["self_attn"])(x)
        inner_weights = quantize_model(copy.deepcopy(layer), WEIGHT, skip=["self_attn"])(x)
        assert not torch.equal(inner, inner_weights)


class Mixed(nn.Module):
    """Layers of which only one can be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 64)
        self.conv = nn.Conv1d(64, 64, 3)
        self.memory = nn.LSTM(64, 64)
        self.pair = nn.Bilinear(8, 8, 4)
        self.norm = nn.LayerNorm(64)
        self.out = nn.Linear(64, 10)


def test_what_is_left_is_named_and_counted() -> None:
    model = quantize_model(Mixed(), WEIGHT)
    found = coverage(model)
    assert set(found.left) == {
        "conv.weight",
        "memory.weight_ih_l0",
        "memory.weight_hh_l0",
        "pair.weight",
    }
    assert found.quantized == 640
    assert found.values == 640 + 64 * 64 * 3 + 2 * 4 * 64 * 64 + 8 * 8 * 4
    assert found.wanted == found.share < 0.02
    assert "not quantized: conv.weight, memory.weight_ih_l0" in str(found)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: nn.Sequential(nn.Conv1d(4, 4, 3)), "has no layer that can be quantized"),
        (lambda: nn.Sequential(nn.Linear(4, 4, dtype=torch.float64)), "0.weight is torch.float64"),
        (
            lambda: nn.Sequential(nn.Linear(4, 4).to(torch.float8_e4m3fn)),
            r"0.weight is torch.float8_e4m3fn; .*--dtype",
        ),
        (lambda: nn.Sequential(nn.Linear(4, 4, device="meta")), "0.weight is on the meta device"),
    ],
)
def test_what_cannot_be_quantized(model: Callable[[], nn.Module], told: str) -> None:
    with pytest.raises(InputError, match=told):
        quantize_model(model(), WEIGHT)


def test_every_weight_once() -> None:
    """Tied embeddings count once, at the layer that multiplies."""
    config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_config(config)
    names = [weight.name for weight in multiplied_weights(model)]
    assert names.count("lm_head.weight") == 1
    assert "model.embed_tokens.weight" not in names
    assert len(find_layers(model, ["lm_head"]).skipped) == 1


def test_hardware_computes_gpt2() -> None:
    """The transposed layers of GPT-2 are layers like others."""
    model = quantize_model(
        family("gpt2"), WEIGHT, ACT, ["lm_head"], arithmetic=Arithmetic("hardware")
    )
    assert logits(model).isfinite().all()
