"""Hugging Face's own doors: from_pretrained with an M2xfpConfig, save_pretrained, adapters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_model_layers import EXPERTS, FAMILIES, SMALL, TOKENS, family, logits
from torch import nn

from m2xfp.errors import InputError
from m2xfp.golden import get_format
from m2xfp.models.layers import head_layers
from m2xfp.models.linear import QuantLinear
from m2xfp.models.operands import is_watched
from m2xfp.models.quantized import coverage, quantize_model

transformers = pytest.importorskip("transformers")
huggingface = pytest.importorskip("m2xfp.models.huggingface")
M2xfpConfig = huggingface.M2xfpConfig
Auto = transformers.AutoModelForCausalLM

USUAL = ("llama", "gpt2", "mixtral")


def saved(folder: Path, name: str = "llama") -> Path:
    """Write a small model of a family, as transformers does."""
    family(name).save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in USUAL else pytest.mark.slow) for n in FAMILIES]
)
def test_families(name: str, tmp_path: Path) -> None:
    """Quantized while loading, saved packed and read again: equal to quantize_model's, bit by bit.

    Qwen 2 MoE, OLMoE and others take their experts apart to save them; packed ones stay together.
    """
    whole = saved(tmp_path / "whole", name)
    config = M2xfpConfig("m2xfp-weight", "m2xfp-act")
    model = Auto.from_pretrained(whole, quantization_config=config)
    plain = Auto.from_pretrained(whole)
    heads = head_layers(plain)
    expected = logits(quantize_model(plain, "m2xfp-weight", "m2xfp-act", skip=heads))
    assert torch.equal(logits(model), expected)
    assert config.modules_to_not_convert == []
    assert coverage(model, heads).wanted >= FAMILIES[name][2]

    model.save_pretrained(tmp_path / "packed")
    facts = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert facts["quant_method"] == "m2xfp"
    assert facts["modules_to_not_convert"] == heads
    sizes = [(tmp_path / part / "model.safetensors").stat().st_size for part in ("packed", "whole")]
    assert sizes[0] < 0.75 * sizes[1]
    again, report = Auto.from_pretrained(tmp_path / "packed", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(logits(again), expected)
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(Auto.from_pretrained(tmp_path / "again")), expected)


@pytest.mark.parametrize(
    ("weights", "activations"),
    [("nvfp4", "nvfp4"), (None, "m2xfp-act"), ("m2nvfp4-weight:tensor_scale=token", None)],
)
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_formats(name: str, weights: str | None, activations: str | None, tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", name)
    config = M2xfpConfig(weights, activations, modules_to_not_convert=["*.o_proj"], head=True)
    model = Auto.from_pretrained(whole, quantization_config=config)
    plain = quantize_model(Auto.from_pretrained(whole), weights, activations, skip=["*.o_proj"])
    assert torch.equal(logits(model), logits(plain))
    model.save_pretrained(tmp_path / "packed")
    scales = [t for n, t in tensors(tmp_path / "packed").items() if n.endswith("tensor_scale")]
    assert bool(scales) == (weights is not None)
    assert all(scale.dtype == torch.float32 for scale in scales)
    again = Auto.from_pretrained(tmp_path / "packed")
    assert torch.equal(logits(again), logits(plain))
    for parameter in again.parameters():
        assert parameter.dtype in (torch.uint8, torch.int32, torch.float32)


def test_a_type_a_device_map_and_generation(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole")
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}}
    model = Auto.from_pretrained(whole, quantization_config=M2xfpConfig(), **options)
    plain = Auto.from_pretrained(whole, dtype=torch.bfloat16)
    quantize_model(plain, "m2xfp-weight", "m2xfp-act", skip=["lm_head"])
    assert torch.equal(logits(model), logits(plain))
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    told = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(TOKENS, **told), plain.generate(TOKENS, **told))
    model.save_pretrained(tmp_path / "packed")
    spread = {"model": "cpu", "lm_head": "cpu"}
    again = Auto.from_pretrained(tmp_path / "packed", device_map=spread)
    assert torch.equal(logits(again), logits(plain))
    with pytest.raises(InputError, match="cannot go to disk"):
        Auto.from_pretrained(
            whole, quantization_config=M2xfpConfig(), device_map={"model": "disk", "lm_head": "cpu"}
        )


def test_hardware_arithmetic_is_kept(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole")
    config = M2xfpConfig(arithmetic="hardware", accumulator="exact")
    model = Auto.from_pretrained(whole, quantization_config=config)
    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    assert {layer.arithmetic.accumulator for layer in layers} == {"exact"}
    model.save_pretrained(tmp_path / "packed")
    again = Auto.from_pretrained(tmp_path / "packed")
    assert torch.equal(logits(again), logits(model))
    assert {m.arithmetic for m in again.modules() if isinstance(m, QuantLinear)} == {
        layers[0].arithmetic
    }


def test_layers_with_code_of_their_own_keep_it(tmp_path: Path) -> None:
    model = Auto.from_pretrained(
        saved(tmp_path / "whole", "mixtral"), quantization_config=M2xfpConfig()
    )
    assert sum(is_watched(module) for module in model.modules()) == SMALL["num_hidden_layers"]
    model.save_pretrained(tmp_path / "packed")
    names = tensors(tmp_path / "packed")
    codes = next(t for n, t in names.items() if n.endswith("experts.gate_up_proj.codes"))
    assert codes.dtype == torch.uint8
    assert codes.shape[0] == EXPERTS["num_local_experts"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "mxfp5"}, "mxfp5"),
        ({"activations": "m2xfp-weight"}, "searches"),
        ({"activations": "nvfp4:tensor_scale=auto"}, "whole batch"),
        ({"weights": get_format("mxfp4")}, "name of a format"),
        ({"weights": None, "activations": None}, "give a format"),
        ({"weights": None, "arithmetic": "hardware"}, "packed operands"),
        ({"group": 16}, "has no group"),
    ],
)
def test_bad_configurations(options: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, LookupError, ValueError), match=message):
        M2xfpConfig(**options)


def test_bad_models(tmp_path: Path) -> None:
    model = family("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")  # type: ignore[union-attr,index]
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight has 1"):
        Auto.from_pretrained(tmp_path / "nan", quantization_config=M2xfpConfig())
    allowed = M2xfpConfig(allow_nan=True)
    assert logits(Auto.from_pretrained(tmp_path / "nan", quantization_config=allowed)).isnan().any()
    with pytest.raises(InputError, match=r"no linear layer matches '\*\.z_proj'"):
        Auto.from_pretrained(
            tmp_path / "nan",
            quantization_config=M2xfpConfig(modules_to_not_convert=["*.z_proj"]),
        )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks for it
def test_adapters_are_trained_on_packed_weights(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from m2xfp.models.adapters import for_packed_layers

    whole = saved(tmp_path / "whole")
    model = Auto.from_pretrained(whole, quantization_config=M2xfpConfig())
    before = logits(model)
    config = for_packed_layers(peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    adapted = peft.get_peft_model(model, config)
    assert torch.equal(logits(adapted), before)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * SMALL["num_hidden_layers"]
    optimizer = torch.optim.Adam(trained, lr=0.05)
    losses = []
    for _ in range(12):
        loss = adapted(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    adapted.eval().save_pretrained(tmp_path / "adapter")
    fresh = Auto.from_pretrained(whole, quantization_config=M2xfpConfig())
    read = for_packed_layers(peft.LoraConfig.from_pretrained(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter", config=read)
    assert torch.equal(logits(again), logits(adapted))
    assert not torch.equal(logits(again), before)
    with pytest.raises(InputError, match="cannot be merged"):
        adapted.merge_and_unload()
    with pytest.raises(InputError, match=r"pass a peft\.LoraConfig"):
        for_packed_layers(nn.Linear(2, 2))
