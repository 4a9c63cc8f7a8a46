"""Loaders of packed tensors and of checkpoints, each with its mutated inputs: see test_loaders."""

import copy
import json
import math
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import as_gguf
from fuzzing import Attempt, json_text, mutate_bytes, mutate_json, mutate_safetensors, reader

from m2xfp.golden import PackedTensor, get_format
from m2xfp.models.checkpoints import open_checkpoint
from m2xfp.models.exchange.gguf_file import open_gguf
from m2xfp.models.exchange.layouts import LAYOUTS
from m2xfp.models.exchange.record import Quantized
from m2xfp.models.exchange.shards import open_shard, write_shard
from m2xfp.models.exchange.source import Entry, open_source
from m2xfp.models.exchange.torchao import parts_of_torchao
from m2xfp.models.lm import LanguageModel, ModelConfig, load_model, save_model
from m2xfp.models.packed_model import PACKED, load_quantized, save_quantized
from m2xfp.models.quantized import quantize_model

SHAPE = ModelConfig(width=32, layers=1, heads=2, hidden=64, context=16)


# Packed tensors and checkpoints


def bits(x: torch.Tensor) -> bytes:
    return x.detach().contiguous().view(torch.uint8).numpy().tobytes()


@reader(200)
def packed_tensor(folder: Path) -> Attempt:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    files = []
    for name in ("m2xfp-act", "mxfp6-e2m3", "nvfp4:tensor_scale=auto", "nvfp4:tensor_scale=0.5"):
        path = folder / f"{len(files)}.safetensors"
        get_format(name).quantize(x).save(path)
        files.append(path.read_bytes())
    target = folder / "t"

    def attempt(rng: random.Random) -> None:
        target.write_bytes(mutate_safetensors(rng.choice(files), rng))
        packed = PackedTensor.load(target)
        assert packed.dequantize().shape == packed.shape
        assert (packed.tensor_scale is None) == (packed.format.level is None)
        if packed.tensor_scale is not None:
            assert 0 < packed.tensor_scale.item() < math.inf
        packed.save(folder / "u")  # what was taken is the same after another trip
        again = PackedTensor.load(folder / "u")
        assert bits(again.groups()) == bits(packed.groups())

    return attempt


@reader(200, TypeError)
def planes(folder: Path) -> Attempt:
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    packed = [
        get_format(name).quantize(x)
        for name in ("m2xfp-act", "mxfp4", "nvfp4:tensor_scale=auto", "amxfp4")
    ]
    dtypes = (torch.float16, torch.float32, torch.float64, torch.int8, torch.int64, torch.bool)

    def attempt(rng: random.Random) -> None:
        right = rng.choice(packed)
        given: dict[str, Any] = dict(right.planes())
        name = rng.choice([*given, "meta", "tensor_scale", "other"])
        kind = rng.randrange(7)
        if kind == 0:
            given.pop(name, None)
        elif kind == 1 and name in given:
            given[name] = given[name].to(rng.choice(dtypes))
        elif kind == 2 and name in given:
            given[name] = given[name].reshape(-1)[: rng.randrange(1, 5)]
        elif kind == 3:
            value = rng.choice((0.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 3e38))
            given["tensor_scale"] = torch.tensor(value, dtype=rng.choice(dtypes[:3]))
        elif kind == 4:
            given[name] = rng.choice((None, 1, "x", [1], np.zeros(3)))
        elif kind == 5 and name in given:
            given[name] = given[name].unsqueeze(0).expand(4, *given[name].shape)
        else:
            given[name] = torch.zeros(rng.choice(((), (4,), (4, 2), (4, 16), (0,))))
        shape = rng.choice(
            (tuple(right.shape),) * 4 + ((), (-1,), (4, 0), (1 << 62, 4), (2.5,), (4, 33))
        )
        found = PackedTensor.from_planes(right.format, given, shape)
        level = found.tensor_scale
        assert level is None or (level.dtype == torch.float32 and 0 < level.item() < math.inf)
        assert found.dequantize().shape == shape

    return attempt


@cache
def _small_model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(SHAPE)


@reader(60)
def packed_checkpoint(folder: Path) -> Attempt:
    files = []
    for name in ("m2xfp-weight", "nvfp4:tensor_scale=auto"):
        model = quantize_model(copy.deepcopy(_small_model()), name, "m2xfp-act")
        save_quantized(folder / "right", model)
        files.append((folder / "right").read_bytes())
    tokens = torch.arange(8)[None] * 7
    target = folder / "m.safetensors"

    def attempt(rng: random.Random) -> None:
        target.write_bytes(mutate_safetensors(rng.choice(files), rng))
        if rng.random() < 0.2:
            checkpoint = open_checkpoint(target)
            model = checkpoint.load()
        else:
            model = load_quantized(target)
        assert isinstance(model, LanguageModel)
        out = model.float()(tokens)
        assert out.shape == (1, 8, model.config.vocabulary)

    return attempt


@reader(60)
def model_file(folder: Path) -> Attempt:
    save_model(folder / "right", _small_model(), {"steps": "1"})
    data = (folder / "right").read_bytes()
    target = folder / "m.safetensors"

    def attempt(rng: random.Random) -> None:
        target.write_bytes(mutate_safetensors(data, rng))
        model = load_model(target)
        assert all(p.dtype == torch.float32 and not p.is_meta for p in model.parameters())
        assert model(torch.zeros(1, 4, dtype=torch.int64)).shape[-1] == model.config.vocabulary

    return attempt


# Checkpoint folders of other libraries


def _weight(rows: int, columns: int, experts: int = 0) -> torch.Tensor:
    shape = (experts, rows, columns) if experts else (rows, columns)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def _write_folder(
    folder: Path, settings: Any, tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str]
) -> None:
    """Write a folder of two weight files and their index."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": settings})
    )
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in parts.items():
        outlines = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in own}
        with write_shard(folder / file, outlines, texts) as writer:
            for name in own:
                writer.put(name, tensors[name])
    places = {name: file for file, own in parts.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


TORCHAO = {
    "_type": "MXTensor",
    "_data": {
        "elem_dtype": {"_data": "float4_e2m1fn_x2"},
        "block_size": 32,
        "is_swizzled_scales": False,
    },
    "_tensor_data_names": ["qdata", "scale"],
}


def _foreign_folders(folder: Path) -> list[Path]:
    """Return a folder of each layout that is read, and a plain one."""
    made = []
    for layout in LAYOUTS.values():
        packed = layout.whole.quantize(_weight(8, 64, 2 if layout.stacked else 0))
        tensors = {**layout.put("a.weight", packed), "b.weight": torch.ones(4)}
        made.append(folder / layout.name)
        _write_folder(made[-1], layout.settings(["b"]), tensors, {"format": "pt"})
    planes = parts_of_torchao(get_format("mxfp4").quantize(_weight(8, 64)))
    tensors = {f"a._weight_{part}": tensor for part, tensor in planes.items()}
    made.append(folder / "torchao")
    _write_folder(
        made[-1],
        {"quant_method": "torchao"},
        {**tensors, "b.weight": torch.ones(4)},
        {"a.weight": json.dumps(TORCHAO)},
    )
    made.append(folder / "plain")
    _write_folder(made[-1], None, {"a.weight": _weight(8, 64), "b.weight": torch.ones(4)}, {})
    own = folder / "own"
    own.mkdir()
    (own / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_quantized(own / PACKED, quantize_model(copy.deepcopy(_small_model()), "m2xfp-weight"))
    shard = open_shard(own / PACKED)
    split = folder / "split"
    _write_folder(split, None, {n: t.read() for n, t in shard.tensors.items()}, {"format": "pt"})
    index = split / "model.safetensors.index.json"
    facts = json.loads(index.read_text())
    facts["metadata"] = {"m2xfp": json.loads(shard.texts["m2xfp"])}
    index.unlink()
    (split / f"{PACKED}.index.json").write_text(json.dumps(facts))
    return [*made, own, split]


@contextmanager
def _changed(file: Path, data: bytes) -> Iterator[None]:
    """Have other bytes in a file within the block."""
    right = file.read_bytes()
    file.write_bytes(data)
    try:
        yield
    finally:
        file.write_bytes(right)


def _read_whole(entries: Iterable[Entry]) -> None:
    """Read all that a checkpoint holds; each must be what its header had promised."""
    for entry in entries:
        told, made = entry.outline(), entry.read()
        if isinstance(made, Quantized):
            assert isinstance(told, Quantized)
            assert made.values().shape == told.packed.shape
        else:
            assert isinstance(told, torch.Tensor)
            assert (made.shape, made.dtype) == (told.shape, told.dtype)


@reader(300)
def checkpoint_folder(folder: Path) -> Attempt:
    """What `convert` takes: configuration, index and weight files of every known layout."""
    folders = _foreign_folders(folder)

    def attempt(rng: random.Random) -> None:
        place = rng.choice(folders)
        file = rng.choice(sorted(place.iterdir()))
        data = file.read_bytes()
        if file.suffix == ".json":
            data = json_text(json.loads(data), rng)
        else:
            data = mutate_safetensors(data, rng)
        with _changed(file, data):
            _read_whole(open_source(place).entries)

    return attempt


@reader(300, TypeError)
def quantization_settings(_folder: Path) -> Attempt:
    """What a configuration's quantization_config says, by the class that transformers makes."""
    pytest.importorskip("transformers")
    from m2xfp.models.huggingface import M2xfpConfig, M2xfpQuantizer

    right = M2xfpConfig("nvfp4:tensor_scale=auto", "m2xfp-act", ["*.o_proj"]).to_dict()

    def attempt(rng: random.Random) -> None:
        given = mutate_json(right, rng)
        if not isinstance(given, dict):
            return
        config = M2xfpConfig.from_dict(given)
        assert M2xfpConfig.from_dict(json.loads(json.dumps(config.to_dict()))) is not None
        M2xfpQuantizer(config)

    return attempt


@reader(60)
def gguf_file(folder: Path) -> Attempt:
    """What `convert` takes of llama.cpp."""
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    files = []
    for kind in ("MXFP4", "NVFP4"):
        as_gguf(folder / "right.gguf", kind)
        files.append((folder / "right.gguf").read_bytes())
    target, home = folder / "m.gguf", folder / "home"

    def attempt(rng: random.Random) -> None:
        data = rng.choice(files)
        header = data.index(b"output_norm") + 200
        if rng.random() < 0.8:
            data = mutate_bytes(data[:header], rng) + data[header:]
        else:
            data = mutate_bytes(data, rng)
        target.write_bytes(data)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        source = open_gguf(target, home)
        _read_whole(source.entries)

    return attempt


@reader(60)
def huggingface_folder(folder: Path) -> Attempt:
    """What `eval` takes: configuration, tokenizer and weights of a small model."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    place = folder / "model"
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=16, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    words = Tokenizer(models.WordLevel({f"t{at}": at for at in range(16)}, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(place)
    tokens = torch.arange(8)[None]

    def attempt(rng: random.Random) -> None:
        file = rng.choice(sorted(place.iterdir()))
        data = file.read_bytes()
        if file.suffix == ".json":
            data = json_text(json.loads(data), rng)
        else:
            data = mutate_safetensors(data, rng)
        with _changed(file, data):
            checkpoint = open_checkpoint(place)
            if file.name in ("config.json", "model.safetensors"):
                model = checkpoint.load()
                with torch.no_grad():
                    assert model(tokens).logits.shape[:2] == (1, 8)

    return attempt
