"""Checkpoint folders through ``m2xfp convert``: packed, foreign, back, interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2xfp.models.checkpoints import open_checkpoint
from m2xfp.models.exchange.convert import convert_folder, find_target
from m2xfp.models.exchange.shards import open_shard
from m2xfp.models.exchange.source import open_source
from m2xfp.models.packed_model import load_quantized, save_quantized
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


def planes_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all tensors of a folder by name."""
    stored = [
        one for file in folder.glob("*.safetensors") for one in open_shard(file).tensors.values()
    ]
    return {one.name: one.read().reshape(-1).view(torch.uint8).numpy().tobytes() for one in stored}


def in_transformers(folder: Path, **how: Any) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **how)
    return logits(model.eval())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["mxfp4-pack-quantized", "nvfp4-pack-quantized"])
def test_compressed_tensors_loads_it(folder: Path, layout: str, tmp_path: Path) -> None:
    """transformers, through compressed-tensors, gives the same logits bit for bit; and back."""
    pytest.importorskip("compressed_tensors")
    key = "mxfp4" if layout.startswith("mx") else "nvfp4:tensor_scale=auto"
    convert_folder(folder, tmp_path / "out", find_target(layout))
    convert_folder(tmp_path / "out", tmp_path / "packed", find_target(key))
    found = in_transformers(tmp_path / "out")
    assert torch.equal(found, packed_logits(tmp_path / "packed"))
    if key == "mxfp4":
        wanted = quantize_model(open_checkpoint(folder).load(), key, skip=["lm_head"])
        assert torch.equal(found, logits(wanted))
    # From the packed folder again, not one byte is another.
    convert_folder(tmp_path / "packed", tmp_path / "again", find_target(layout))
    assert planes_of(tmp_path / "again") == planes_of(tmp_path / "out")
    assert torch.equal(in_transformers(tmp_path / "again"), found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", ["gpt-oss"], indirect=True)
def test_transformers_loads_gpt_oss(folder: Path, tmp_path: Path) -> None:
    """Experts as gpt-oss has them, the rest plain; the same logits, bit for bit, as packed here."""
    covered = convert_folder(folder, tmp_path / "out", find_target("gpt-oss-mxfp4"))
    assert all("experts" not in name for name in covered.left)
    how = transformers.Mxfp4Config(dequantize=True)
    found = in_transformers(tmp_path / "out", quantization_config=how)
    convert_folder(tmp_path / "out", tmp_path / "packed", find_target("mxfp4"))
    skip = ["*.self_attn.*", "lm_head"]
    wanted = quantize_model(open_checkpoint(folder).load(), "mxfp4", skip=skip)
    assert torch.equal(found, logits(wanted))
    convert_folder(tmp_path / "out", tmp_path / "experts", find_target("mxfp4"), skip=skip)
    assert torch.equal(packed_logits(tmp_path / "experts"), found)
    convert_folder(tmp_path / "experts", tmp_path / "again", find_target("gpt-oss-mxfp4"))
    assert planes_of(tmp_path / "again") == planes_of(tmp_path / "out")


@pytest.mark.parametrize(
    "layout",
    ["mxfp4-pack-quantized", "mxfp8-quantized", "nvfp4-pack-quantized", "modelopt-nvfp4"],
)
def test_requantized_to_m2xfp(folder: Path, layout: str, tmp_path: Path) -> None:
    """By way of the values: what quantizing the decoded checkpoint gives."""
    convert_folder(folder, tmp_path / "foreign", find_target(layout))
    convert_folder(tmp_path / "foreign", tmp_path / "plain", find_target("float32"))
    convert_folder(tmp_path / "foreign", tmp_path / "packed", find_target("m2xfp-weight"))
    wanted = quantize_model(
        open_checkpoint(tmp_path / "plain").load(), "m2xfp-weight", skip=["lm_head"]
    )
    found = open_checkpoint(tmp_path / "packed").load()
    for name, tensor in wanted.state_dict().items():
        if tensor.dtype == torch.uint8:
            assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", ["qwen3-moe"], indirect=True)
def test_experts_that_stand_one_by_one(folder: Path, tmp_path: Path) -> None:
    """A foreign folder keeps experts apart; a packed one stacks them, with a tensor scale each."""
    convert_folder(folder, tmp_path / "out", find_target("modelopt-nvfp4"))
    names = planes_of(tmp_path / "out")
    assert "model.layers.0.mlp.experts.3.up_proj.weight_scale_2" in names
    convert_folder(tmp_path / "out", tmp_path / "packed", find_target("nvfp4:tensor_scale=auto"))
    convert_folder(tmp_path / "out", tmp_path / "plain", find_target("bfloat16"))
    assert torch.equal(packed_logits(tmp_path / "packed"), packed_logits(tmp_path / "plain"))
    shape = next(
        entry.tensors["tensor_scale"].shape
        for entry in open_source(tmp_path / "packed").entries
        if entry.name.endswith("gate_up_proj")
    )
    assert shape == (4, 2, 1)
    # A stack is saved as it was read.
    model = open_checkpoint(tmp_path / "packed").load()
    save_quantized(tmp_path / "again.safetensors", model)
    again = load_quantized(tmp_path / "again.safetensors", open_checkpoint(folder).load())
    assert torch.equal(logits(again), logits(model))
