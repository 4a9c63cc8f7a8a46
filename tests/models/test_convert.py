"""Checkpoint folders through ``m2xfp convert``: packed, foreign, back, interrupted."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import as_gguf, even
from click.testing import CliRunner
from torch import Tensor, nn

from m2xfp.cli import cli
from m2xfp.errors import InputError, UnknownNameError
from m2xfp.models.checkpoints import open_checkpoint
from m2xfp.models.exchange import convert
from m2xfp.models.exchange.convert import convert_folder, find_target
from m2xfp.models.exchange.layouts import LAYOUTS
from m2xfp.models.exchange.shards import open_shard, write_shard
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


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *((name, "m2xfp-weight") for name in KINDS),
        ("mixtral", "nvfp4:tensor_scale=auto"),
        *(
            pytest.param(name, "nvfp4:tensor_scale=auto", marks=pytest.mark.slow)
            for name in KINDS
            if name != "mixtral"
        ),
    ],
)
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


def test_goes_on_after_an_interruption(folder: Path, tmp_path: Path) -> None:
    """Killed at whatever moment: the target is absent or whole, and what was written stays."""
    whole = tmp_path / "whole"
    convert_folder(folder, whole, find_target("m2xfp-weight"), shard_bytes=12_000)
    names = sorted(path.name for path in whole.glob("*.safetensors"))
    assert len(names) > 3
    target, part = tmp_path / "target", tmp_path / "target.part"
    arguments = [str(folder), str(target), "--to", "m2xfp-weight", "--shard-size", "12000B"]
    code = (
        "import sys, os, signal\n"
        "from m2xfp.models.exchange import shards\n"
        "put, count = shards._Writer.put, [0]\n"
        "def dying(self, *given):\n"
        "    count[0] += 1\n"
        "    if count[0] == 11: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    put(self, *given)\n"
        "shards._Writer.put = dying\n"
        "from m2xfp.cli import main\n"
        f"sys.argv = {['m2xfp', 'convert', *arguments]!r}\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    first = {path.name: path.stat().st_mtime_ns for path in part.glob("m2xfp*.safetensors")}
    assert 0 < len(first) < len(names)
    assert list(part.glob(".tmp*"))
    found = CliRunner().invoke(cli, ["convert", *arguments])
    assert found.exit_code == 0, found.output
    assert "quantized 88.24 % of the weights" in found.output
    assert not part.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in target.glob("m2xfp*.safetensors")}
    assert sorted(kept) == names
    assert first.items() <= kept.items()
    for path in whole.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in target.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert torch.equal(packed_logits(target), packed_logits(whole))


def test_another_conversion_begins_anew(folder: Path, tmp_path: Path) -> None:
    """What is left of one with other arguments is not believed; nor is a folder that is none."""
    part = tmp_path / "t.part"
    part.mkdir()
    (part / "conversion.json").write_text("{}")
    (part / "m2xfp.safetensors").write_text("of another")
    convert_folder(folder, tmp_path / "t", find_target("mxfp4"))
    packed_logits(tmp_path / "t")
    with pytest.raises(InputError, match="is there already"):
        convert_folder(folder, tmp_path / "t", find_target("mxfp4"))
    (tmp_path / "u.part").mkdir()
    (tmp_path / "u.part" / "notes").touch()
    with pytest.raises(InputError, match="no conversion that was begun"):
        convert_folder(folder, tmp_path / "u", find_target("mxfp4"))


@pytest.mark.parametrize("stroke", ["write_atomic", "remove", "rename"])
def test_killed_between_two_strokes(
    stroke: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the begin, with a folder that is still empty, and at the end, when all is written."""

    def killed(*_given: object) -> None:
        raise SystemExit

    owner = Path if stroke == "rename" else convert
    with monkeypatch.context() as patched:
        patched.setattr(owner, stroke, killed)
        with pytest.raises(SystemExit):
            convert_folder(folder, tmp_path / "t", find_target("mxfp4"))
    assert (tmp_path / "t").exists() == (stroke == "remove")  # its last stroke
    if stroke != "remove":
        convert_folder(folder, tmp_path / "t", find_target("mxfp4"))
    packed_logits(tmp_path / "t")
    assert not (tmp_path / "t.part").exists()


@pytest.mark.slow
def test_memory_holds_a_weight_at_a_time(tmp_path: Path) -> None:
    """Eight layers take no more memory than two, but for what the allocator keeps."""
    even(tmp_path / "two", 2)
    size = even(tmp_path / "eight", 8)
    code = (
        "import resource, sys\n"
        "from m2xfp.models.exchange.convert import convert_folder, find_target\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name in ('two', 'eight'):\n"
        "    convert_folder(name, name + '-packed', find_target('mxfp4'))\n"
        "    print(peak())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    first, second = map(int, done.stdout.split())
    weight = 2048 * 1024 * 2
    assert size > 30 * weight
    assert (second - first) * 1024 < 6 * weight


def changed(folder: Path, name: str, make: Callable[[Tensor], Tensor | None]) -> None:
    """Write a folder's one file again with a tensor changed, or without it."""
    [file] = folder.glob("*.safetensors")
    shard = open_shard(file)
    tensors = {own: stored.read() for own, stored in shard.tensors.items()}
    new = make(tensors.pop(name))
    if new is not None:
        tensors[name] = new
    outlines = {own: (t.dtype, tuple(t.shape)) for own, t in tensors.items()}
    with write_shard(file, outlines, shard.texts) as writer:
        for own, tensor in tensors.items():
            writer.put(own, tensor)


def negated(scales: Tensor) -> Tensor:
    return (scales.view(torch.uint8) | 128).view(scales.dtype)


Q = "model.layers.0.self_attn.q_proj.weight"
BAD: list[tuple[str, str, Callable[[Tensor], Tensor | None], str]] = [
    ("nvfp4-pack-quantized", "_scale", lambda t: None, f"{Q}_scale is missing"),
    ("nvfp4-pack-quantized", "_global_scale", lambda t: None, f"{Q}_global_scale is missing"),
    ("nvfp4-pack-quantized", "_global_scale", torch.zeros_like, f"{Q}_global_scale has the value"),
    ("nvfp4-pack-quantized", "_global_scale", lambda t: t.half(), f"{Q}_global_scale is torch.f"),
    ("nvfp4-pack-quantized", "_global_scale", lambda t: t.repeat(4), f"{Q}_global_scale has shape"),
    ("nvfp4-pack-quantized", "_scale", lambda t: t[:-1], f"{Q}_scale has shape"),
    ("nvfp4-pack-quantized", "_scale", lambda t: t.float(), f"{Q}_scale is torch.float32"),
    ("nvfp4-pack-quantized", "_scale", negated, f"{Q}_scale has 256 bytes with the sign"),
    ("mxfp4-pack-quantized", "_packed", lambda t: t.int(), f"{Q}_packed is torch.int32"),
    ("mxfp4-pack-quantized", "_packed", lambda t: t[:, 1:], f"{Q}_packed has shape"),
    ("mxfp4-pack-quantized", "_packed", lambda t: None, "missing: .*q_proj.weight; unexpected"),
    ("mxfp4-pack-quantized", "_scale", lambda t: t | 255, f"{Q}: 128 scales are NaN"),
    ("modelopt-nvfp4", "_scale", lambda t: None, f"unexpected: {Q}_scale_2"),
    ("modelopt-nvfp4", "_scale_2", lambda t: t * torch.nan, f"{Q}_scale_2 has the value nan"),
]


@pytest.mark.parametrize(("layout", "suffix", "make", "told"), BAD)
def test_what_is_damaged_is_named(
    layout: str,
    suffix: str,
    make: Callable[[Tensor], Tensor | None],
    told: str,
    foreign: dict[str, Path],
    tmp_path: Path,
) -> None:
    shutil.copytree(foreign[layout], tmp_path / "source")
    changed(tmp_path / "source", Q + suffix, make)
    with pytest.raises(InputError, match=told):
        convert_folder(tmp_path / "source", tmp_path / "target", find_target("m2xfp-weight"))
    assert not (tmp_path / "target").exists()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model in several layouts."""
    home = tmp_path_factory.mktemp("foreign")
    source = saved(model_of("llama"), home / "source")
    names = dict.fromkeys(layout for layout, *_ in BAD)
    for name in names:
        convert_folder(source, home / name, find_target(name))
    return {name: home / name for name in names}


def test_folders_that_cannot_be_converted(folder: Path, tmp_path: Path) -> None:
    """Each is refused with what is wrong, and nothing is begun."""

    def refused(told: str, to: str = "mxfp4") -> None:
        with pytest.raises(InputError, match=told):
            convert_folder(folder, tmp_path / "target", find_target(to))
        assert not (tmp_path / "target").exists()

    with pytest.raises(UnknownNameError, match=r"unknown target 'mxfp5'; there are: mxfp4-pack"):
        find_target("mxfp5")
    changed(folder, "model.norm.weight", lambda t: None)
    refused("missing: model.norm.weight")
    config = json.loads((folder / "config.json").read_text())
    gptq = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(gptq))
    refused("quantized as 'gptq' of 'gptq', which is not known here; known: mxfp4-pack")
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused("not of the size that its header says")
    file.write_bytes(b"\x07" * 100)
    refused("is no safetensors file")
    file.unlink()
    refused("holds no safetensors files; pickled weights")
    (folder / "config.json").unlink()
    refused("no config.json")


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_what_a_layout_cannot_hold_is_named(folder: Path, tmp_path: Path) -> None:
    told = r"c_attn.weight is a Conv1D, \[in, out\], and mxfp4-pack-quantized holds linear layers"
    with pytest.raises(InputError, match=told):
        convert_folder(folder, tmp_path / "t", find_target("mxfp4-pack-quantized"))
    assert not list(tmp_path.glob("t*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tiled", [False, True])
def test_a_folder_of_torchao(folder: Path, tiled: bool, tmp_path: Path) -> None:
    """Files as torchao flattens its tensors: MXFP4, MXFP8 and NVFP4 of two levels in one model."""
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    file = folder / "model.safetensors"
    tensors: dict[str, Tensor] = {n: s.read() for n, s in open_shard(file).tensors.items()}
    plain = dict(tensors)
    for name, tensor in plain.items():
        if "down_proj" in name:
            made = mx.MXTensor.to_mx(tensor, torch.float4_e2m1fn_x2, 32, is_swizzled_scales=tiled)
        elif "q_proj" in name:
            made = mx.MXTensor.to_mx(tensor, torch.float8_e4m3fn, 32, is_swizzled_scales=tiled)
        elif "k_proj" in name:
            level = torch.tensor(2.0**-9)
            made = nv.NVFP4Tensor.to_nvfp4(tensor, 16, level, is_swizzled_scales=tiled)
        else:
            continue
        tensors[name] = made
        plain[name] = made.dequantize(torch.float32).to(torch.bfloat16)
    flat, texts = support.flatten_tensor_state_dict(tensors)
    with write_shard(
        file, {n: (t.dtype, tuple(t.shape)) for n, t in flat.items()}, texts
    ) as writer:
        for name, tensor in flat.items():
            writer.put(name, tensor)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao"}
    (folder / "config.json").write_text(json.dumps(config))
    convert_folder(folder, tmp_path / "plain", find_target("bfloat16"))
    found = planes_of(tmp_path / "plain")
    assert found.keys() == plain.keys()
    for name, tensor in plain.items():
        assert found[name] == tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), name
    covered = convert_folder(folder, tmp_path / "packed", find_target("m2xfp-weight"))
    assert covered.wanted == 1.0


TORCHAO = [name for name in LAYOUTS if name.startswith("torchao")]


@pytest.mark.parametrize("name", TORCHAO)
def test_a_folder_written_as_torchaos(folder: Path, name: str, tmp_path: Path) -> None:
    """In two files; converted back it has the bytes that it was made of."""
    key = find_target(name).layout.format
    convert_folder(folder, tmp_path / "packed", find_target(key))
    covered = convert_folder(
        tmp_path / "packed", tmp_path / "ao", find_target(name), (), False, 60_000
    )
    assert covered.wanted == 1.0
    assert len(list((tmp_path / "ao").glob("*.safetensors"))) > 1
    convert_folder(tmp_path / "ao", tmp_path / "again", find_target(key))
    assert planes_of(tmp_path / "again") == planes_of(tmp_path / "packed")
    assert torch.equal(packed_logits(tmp_path / "again"), packed_logits(tmp_path / "packed"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TORCHAO)
def test_torchao_reads_what_is_written(folder: Path, name: str, tmp_path: Path) -> None:
    """Its own tensors, and transformers through it where it multiplies such weights."""
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    target = find_target(name)
    convert_folder(folder, tmp_path / "ao", target)
    (file,) = (tmp_path / "ao").glob("*.safetensors")
    shard = open_shard(file)
    tensors = {own: stored.read() for own, stored in shard.tensors.items()}
    found, left = support.unflatten_tensor_state_dict(tensors, dict(shard.texts))
    assert not left
    convert_folder(tmp_path / "ao", tmp_path / "packed", find_target(target.layout.format))
    model = open_checkpoint(tmp_path / "packed").load()
    quantized = 0
    for weight, tensor in found.items():
        if type(tensor) is Tensor:
            continue
        layer = model.get_submodule(weight.removesuffix(".weight"))
        assert torch.equal(tensor.dequantize(torch.float32), layer.packed.dequantize()), weight
        quantized += 1
    assert quantized == 14
    if name == "torchao-nvfp4":  # of weights alone it multiplies no others yet
        assert torch.equal(in_transformers(tmp_path / "ao"), packed_logits(tmp_path / "packed"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "key"), [("MXFP4", "mxfp4"), ("NVFP4", "nvfp4:tensor_scale=auto")]
)
def test_a_file_of_llama_cpp(kind: str, key: str, tmp_path: Path) -> None:
    """Blocks keep their codes and scales; queries and keys get the order of the model."""
    pytest.importorskip("gguf")
    wanted = as_gguf(tmp_path / "small.gguf", kind)
    covered = convert_folder(tmp_path / "small.gguf", tmp_path / "packed", find_target(key))
    assert covered.wanted == 1.0
    model = open_checkpoint(tmp_path / "packed").load()
    for name, values in wanted.items():
        assert torch.equal(model.get_submodule(name.removesuffix(".weight")).weight, values), name
    if kind == "MXFP4":  # transformers knows no NAME.scale
        how = {"gguf_file": "small.gguf", "dtype": torch.float32}
        assert torch.equal(in_transformers(tmp_path, **how), logits(model))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(InputError, match="is no GGUF file that can be read: it is of version 0"):
        convert_folder(tmp_path / "bad.gguf", tmp_path / "none", find_target(key))


@pytest.mark.parametrize(
    ("where", "number", "told"),
    [
        (8, 1 << 60, "counts 1152921504606846976 entries, more than it holds"),
        (16, 1 << 60, "counts 1152921504606846976 entries, more than it holds"),
        (24, 1 << 62, "it ends within its header, or a length in it is damaged"),
        ("block_count", 1 << 31, "block_count is 2147483648, and it holds 12 tensors"),
        ("tokenizer.ggml.tokens", 1 << 60, "more than it holds"),
        ("tokenizer.ggml.token_type", 1 << 60, "it ends within its header"),
    ],
)
def test_a_gguf_file_that_counts_too_much(
    where: int | str, number: int, told: str, tmp_path: Path
) -> None:
    """The readers that come after believe every number, and would go on for ever."""
    pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    as_gguf(path, "MXFP4")
    data = bytearray(path.read_bytes())
    if isinstance(where, str):  # behind the name: type, for a list type and count, and the value
        at = data.index(where.encode()) + len(where) + 4
        where, size = (at, 4) if where == "block_count" else (at + 4, 8)
    else:
        size = 8
    data[where : where + size] = number.to_bytes(size, "little")
    path.write_bytes(data)
    for read in (open_checkpoint, lambda path: convert_folder(path, "x", find_target("mxfp4"))):
        with pytest.raises(InputError, match=told):
            read(path)


def test_a_configuration_of_more_layers_than_weights(folder: Path, tmp_path: Path) -> None:
    """A model of 2^31 layers would be made first."""
    config = json.loads((folder / "config.json").read_text())
    for number in (1 << 31, 1 << 62):
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": number}))
        for read in (open_checkpoint, lambda path: convert_folder(path, "x", find_target("mxfp4"))):
            with pytest.raises(InputError, match=f"num_hidden_layers {number}, and its weights"):
                read(folder)


def test_a_tokenizer_that_is_none(folder: Path) -> None:
    """The tokenizers raise Exception itself."""
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(InputError, match="cannot be used"):
        open_checkpoint(folder)


@pytest.mark.parametrize("size", ["2 pounds", "0GB", "-1", "²", "1" * 5000])
def test_what_is_no_size_is_refused(tmp_path: Path, size: str) -> None:
    arguments = ["convert", str(tmp_path), str(tmp_path / "new"), "--to", "mxfp4"]
    result = CliRunner().invoke(cli, [*arguments, f"--shard-size={size}"])
    assert result.exit_code == 2
    assert "no size such as 500MB or 2GiB" in result.output
