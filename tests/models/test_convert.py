"""Checkpoint folders through ``m2xfp convert``: packed, foreign, back, interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2xfp.models.checkpoints import open_checkpoint
from m2xfp.models.exchange.convert import convert_folder, find_target
from m2xfp.models.quantized import quantize_model

transformers = pytest.importorskip("transformers")

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
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("qwen2", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    ),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
}
TOKENS = torch.arange(3, 27).reshape(1, -1)


def model_of(name: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    kind, extra = KINDS[name]
    common = {"vocab_size": 128} if kind == "gpt2" else SMALL
    config = transformers.AutoConfig.for_model(kind, **{**common, **extra})
    torch.manual_seed(0)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data *= 4
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of the model that the test's parameter names, a small llama by default."""
    return saved(model_of(getattr(request, "param", "llama")), tmp_path / "source")


def saved(model: nn.Module, folder: Path) -> Path:
    from tokenizers import Tokenizer, models

    model.save_pretrained(folder)  # type: ignore[operator]
    vocabulary = {f"t{at}": at for at in range(128)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def packed_logits(folder: Path) -> Tensor:
    return logits(open_checkpoint(folder).load())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("key", ["m2xfp-weight", "nvfp4:tensor_scale=auto"])
def test_packed_as_if_quantized_in_memory(name: str, key: str, tmp_path: Path) -> None:
    """A packed folder holds what quantize_model makes, experts stacked as the model has them."""
    source = saved(model_of(name), tmp_path / "source")
    covered = convert_folder(source, tmp_path / "packed", find_target(key))
    wanted = quantize_model(open_checkpoint(source).load(), key, skip=["lm_head"])
    assert torch.equal(packed_logits(tmp_path / "packed"), logits(wanted))
    assert covered.wanted > 0.98, str(covered)
    assert sorted(path.name for path in (tmp_path).iterdir()) == ["packed", "source"]
