"""GGUF files that ``m2xfp convert`` writes, against the package gguf and transformers' reader."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import as_gguf
from click.testing import CliRunner
from torch import Tensor, nn

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.models.checkpoints import open_checkpoint
from m2xfp.models.exchange.convert import convert_folder, find_target
from m2xfp.models.linear import QuantLinear

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 300},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
TOKENS = torch.arange(3, 27).reshape(1, -1)
FORMATS = {"gguf-mxfp4": "mxfp4", "gguf-nvfp4": "nvfp4:tensor_scale=auto"}


def saved(folder: Path, kind: str = "llama", tokenizer: str = "BPE", **extra: Any) -> Path:
    """Write a small model with a tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **extra})
    torch.manual_seed(0)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim >= 2 else 1
        parameter.data += 0.1 * torch.randn_like(parameter) if parameter.ndim == 1 else 0
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if tokenizer == "BPE":
        merges = [("a", "b"), ("ab", "c")]
        words = [*letters, *("".join(pair) for pair in merges)]
        made = Tokenizer(models.BPE({text: at for at, text in enumerate(words)}, merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens(["<end>"])
    else:
        made = Tokenizer(models.WordLevel({"t0": 0}, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    return folder


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def planes_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    layers = open_checkpoint(folder).load().named_modules()
    return {n: m.packed.planes() for n, m in layers if isinstance(m, QuantLinear) and m.packed}


def decoded(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file as its own library decodes them."""
    reader = gguf.GGUFReader(file)
    found = {
        t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors
    }
    levels = {name.removesuffix(".scale"): found[name] for name in found if ".scale" in name}
    return {
        name: values * levels.get(name.removesuffix(".weight"), 1.0)
        for name, values in found.items()
        if ".scale" not in name
    }


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("llama", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 128, "tie_word_embeddings": False}),
    ],
)
def test_a_folder_as_a_file(name: str, kind: str, extra: dict[str, Any], tmp_path: Path) -> None:
    """Codes and scales there and back, by gguf's decoder, and the model that transformers reads."""
    source = saved(tmp_path / "source", kind, **extra)
    key, file = FORMATS[name], tmp_path / "model.gguf"
    convert_folder(source, tmp_path / "packed", find_target(key))
    covered = convert_folder(tmp_path / "packed", file, find_target(name))
    assert covered.wanted == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "packed", "source"]
    convert_folder(file, tmp_path / "again", find_target(key))
    wanted, found = planes_of(tmp_path / "packed"), planes_of(tmp_path / "again")
    assert wanted.keys() == found.keys()
    for layer, planes in wanted.items():
        assert all(torch.equal(found[layer][plane], planes[plane]) for plane in planes), layer
    theirs, model = decoded(file), open_checkpoint(tmp_path / "packed").load()
    for own, layer in (("attn_output", "self_attn.o_proj"), ("ffn_down", "mlp.down_proj")):
        packed = model.get_submodule(f"model.layers.1.{layer}").packed
        assert torch.equal(theirs[f"blk.1.{own}.weight"], packed.dequantize())
    queries = model.get_submodule("model.layers.0.self_attn.q_proj").packed.dequantize()
    turned = theirs["blk.0.attn_q.weight"]
    assert torch.equal(turned, queries) == (kind != "llama")  # which llama.cpp turns elsewhere
    assert torch.equal(turned.sort(0)[0], queries.sort(0)[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    ids = transformers.AutoTokenizer.from_pretrained(source)("abc ab\n<end>")["input_ids"]
    assert tokenizer("abc ab\n<end>")["input_ids"] == ids
    if name == "gguf-mxfp4":  # transformers knows no NAME.scale
        how = {"gguf_file": "model.gguf", "dtype": torch.float32}
        read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **how).eval()
        again = open_checkpoint(tmp_path / "again", "float32").load()
        assert torch.equal(logits(read), logits(again))
        assert (logits(read) - logits(model)).abs().max() < 0.05 * logits(read).abs().max()


def test_a_file_as_a_file(tmp_path: Path) -> None:
    """What a GGUF file says beside its weights is carried over, and blocks keep their bytes."""
    as_gguf(tmp_path / "in.gguf", "MXFP4")
    convert_folder(tmp_path / "in.gguf", tmp_path / "out.gguf", find_target("gguf-mxfp4"))
    convert_folder(tmp_path / "in.gguf", tmp_path / "other.gguf", find_target("gguf-nvfp4"))
    one, two, other = (
        gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("in", "out", "other")
    )
    facts = [
        {n: f.contents() for n, f in reader.fields.items() if not n.startswith("GGUF.")}
        for reader in (one, two)
    ]
    assert facts[0].items() <= facts[1].items()
    assert facts[1].keys() - facts[0].keys() == {"general.quantization_version"}
    first, second = ({t.name: t for t in reader.tensors} for reader in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.tensor_type == second[name].tensor_type, name
        assert tensor.data.tobytes() == second[name].data.tobytes(), name
    types = {t.name: t.tensor_type.name for t in other.tensors}
    assert types["blk.0.attn_q.weight"] == "NVFP4"
    assert types["blk.0.attn_q.scale"] == types["output_norm.weight"] == "F32"


def test_a_file_that_was_interrupted(tmp_path: Path) -> None:
    """Killed in the middle: the target is not there, and what was written is not made again."""
    source = saved(tmp_path / "source")
    convert_folder(source, tmp_path / "whole.gguf", find_target("gguf-mxfp4"), shard_bytes=12_000)
    target, part = tmp_path / "target.gguf", tmp_path / "target.gguf.part"
    arguments = [str(source), str(target), "--to", "gguf-mxfp4", "--shard-size", "12000B"]
    code = (
        "import sys, os, signal\n"
        "from m2xfp.models.exchange import gguf_write\n"
        "put, count = gguf_write._put, [0]\n"
        "def dying(*given):\n"
        "    count[0] += 1\n"
        "    if count[0] == 14: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    put(*given)\n"
        "gguf_write._put = dying\n"
        "from m2xfp.cli import main\n"
        f"sys.argv = {['m2xfp', 'convert', *arguments]!r}\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    written = json.loads((part / "written.json").read_text())
    assert written > 1
    begun = (part / "model.gguf").stat().st_ino
    found = CliRunner().invoke(cli, ["convert", *arguments])
    assert found.exit_code == 0, found.output
    assert not part.exists()
    assert target.stat().st_ino == begun
    assert target.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize(
    ("kind", "extra", "target", "told"),
    [
        ("gpt2", {}, "m.gguf", "is a Conv1D"),
        (
            "opt",
            {},
            "m.gguf",
            "is a opt, which is not written to GGUF files here; there are: .*llama",
        ),
        ("gemma2", {"head_dim": 16}, "m.gguf", "transformers changes its values"),
        ("llama", {"tokenizer": "WordLevel"}, "m.gguf", "a tokenizer of kind WordLevel"),
        ("qwen3", {"head_dim": 32}, "m.gguf", r"cannot say head_dim \(32, 128 in the file\)"),
        ("llama", {"hidden_act": "gelu"}, "m.gguf", r"cannot say hidden_act \('gelu', 'silu' in"),
        (
            "llama",
            {"intermediate_size": 96},
            "m.gguf",
            "down_proj.weight as .* 96 values are no bl",
        ),
        ("llama", {}, "folder", "gguf-nvfp4 goes with NAME.gguf alone, and '.*folder' is no name"),
    ],
)
def test_what_such_a_file_cannot_hold_is_named(
    kind: str, extra: dict[str, Any], target: str, told: str, tmp_path: Path
) -> None:
    source = saved(tmp_path / "source", kind, **extra)
    with pytest.raises(InputError, match=told):
        convert_folder(source, tmp_path / target, find_target("gguf-nvfp4"))
    assert not (tmp_path / target).exists()
    with pytest.raises(InputError, match=r"mxfp4 goes with NAME.gguf alone, .* is the name of a"):
        convert_folder(source, tmp_path / "m.gguf", find_target("mxfp4"))
