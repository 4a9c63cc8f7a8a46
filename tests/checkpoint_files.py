"""Small checkpoints: a GGUF file as llama.cpp would write it, and a folder."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m2xfp.golden import get_format
from m2xfp.models.checkpoints import model_outline
from m2xfp.models.exchange.gguf import blocks_of
from m2xfp.models.exchange.shards import write_shard


def as_gguf(path: Path, kind: str) -> dict[str, Tensor]:
    """Write a small llama as llama.cpp would, with one type of blocks; return what they decode to.

    Its rows of queries and keys are in llama.cpp's order, and are given in the model's.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(128)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["t", "0", "t0", *(f"x{at}" for at in range(125))])
    writer.add_token_types([1] * 128)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    generator = np.random.default_rng(0)
    found: dict[str, Tensor] = {}
    shapes = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64, "ffn_gate": 128}
    names = {
        **{"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj"},
        **{"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"},
        **{"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
    }
    for name, rows in {**shapes, "ffn_up": 128, "ffn_down": 64}.items():
        width = 128 if name == "ffn_down" else 64
        x = generator.standard_normal((rows, width)).astype(np.float32) / 8
        key, raw = blocks_of(get_format(kind.lower()).quantize(torch.from_numpy(x)))
        quant = gguf.GGMLQuantizationType[key]
        writer.add_tensor(f"blk.0.{name}.weight", raw.numpy(), raw_dtype=quant)
        values = torch.from_numpy(gguf.dequantize(raw.numpy(), quant))
        if kind == "NVFP4":
            writer.add_tensor(f"blk.0.{name}.scale", np.array([0.5], np.float32))
            values = values * 0.5
        if name in ("attn_q", "attn_k"):
            values = values.reshape(rows // 16, 8, 2, width).transpose(1, 2).reshape(rows, width)
        found[f"model.layers.0.{names[name]}.weight"] = values
    for name, size in (("blk.0.attn_norm", 64), ("blk.0.ffn_norm", 64), ("output_norm", 64)):
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))
    for name in ("token_embd", "output"):
        x = generator.standard_normal((128, 64)).astype(np.float16)
        writer.add_tensor(f"{name}.weight", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def even(folder: Path, layers: int) -> int:
    """Write a llama with weights of 4 MiB, all 0.25; return the bytes of its file."""
    config = {
        **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"},
        **{"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": layers},
        **{"num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 128},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    state = model_outline(folder).state_dict()
    outlines = {name: (torch.bfloat16, tuple(tensor.shape)) for name, tensor in state.items()}
    with write_shard(folder / "model.safetensors", outlines, {"format": "pt"}) as writer:
        for name, (dtype, shape) in outlines.items():
            writer.put(name, torch.full(shape, 0.25, dtype=dtype))
    return (folder / "model.safetensors").stat().st_size
