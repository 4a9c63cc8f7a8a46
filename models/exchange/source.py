"""Checkpoint folders to convert from: what weights they hold, in which layout."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from m2xfp.errors import InputError, M2xfpError
from m2xfp.golden.formats.format import Format
from m2xfp.golden.formats.packed import PLANES
from m2xfp.models.exchange.layouts import LAYOUTS, layout_of
from m2xfp.models.exchange.record import Layout, Planes, Quantized
from m2xfp.models.exchange.shards import Shard, Stored, find_shards, open_shard
from m2xfp.models.exchange.torchao import read_torchao, stored_torchao
from m2xfp.models.packed_model import packed_files, packed_weights_of, take_planes
from m2xfp.plain import read_json

__all__ = ["Entry", "Source", "open_source"]


@dataclass(frozen=True)
class Entry:
    """A weight of a checkpoint, or another of its tensors.

    Members
    -------
    name
        Its name, for a quantized weight that which it would have as a plain one.
    tensors
        What is stored of it: by plane, or under the empty name if it is a plain tensor.
    take
        Makes the weight of what is stored; None for a plain tensor as it is.
    """

    name: str
    tensors: Mapping[str, Stored]
    take: Callable[[Planes], Quantized | Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the files."""
        return sum(stored.nbytes for stored in self.tensors.values())

    def outline(self) -> Quantized | Tensor:
        """Return it on the meta device, without values; InputError if its planes do not fit."""
        return self._made({plane: stored.outline() for plane, stored in self.tensors.items()})

    def read(self) -> Quantized | Tensor:
        """Return it."""
        return self._made({plane: stored.read() for plane, stored in self.tensors.items()})

    def _made(self, planes: Planes) -> Quantized | Tensor:
        return planes[""] if self.take is None else self.take(planes)


@dataclass(frozen=True)
class Source:
    """A checkpoint folder.

    Members
    -------
    folder
        Where it is.
    kind
        Its layout in words.
    config
        What config.json says, without a ``quantization_config``.
    files
        Its weight files.
    entries
        Its weights and other tensors, in the order of the files.
    packed
        Whether it is a packed folder of this project, whose names are the model's own.
    """

    folder: Path
    kind: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    entries: tuple[Entry, ...]
    packed: bool = False

    @property
    def name(self) -> str:
        """Its name for messages: that of its file, or of its folder."""
        file = self.files[0]
        return os.fspath(file if file.suffix == ".gguf" else self.folder)


def open_source(folder: Path) -> Source:
    """Look at a checkpoint folder; no weight is read.

    Raises
    ------
    InputError
        It is no checkpoint of the Hugging Face layout with safetensors files, one in a quantized
        form that is not known here, or a weight's tensors do not fit together.
    """
    told = repr(os.fspath(folder))
    if not folder.is_dir():
        raise InputError(f"there is no checkpoint {told}; give a folder, or a file NAME.gguf")
    if not (folder / "config.json").is_file():
        raise InputError(f"{told} has no config.json, so it is no Hugging Face model")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{told}: config.json is no table")
    settings = config.pop("quantization_config", None)
    if files := packed_files(folder):
        return _packed(folder, config, files)
    files = find_shards(folder)
    if not files:
        raise InputError(
            f"{told} holds no safetensors files; pickled weights (*.bin) are not read: load them "
            "with transformers, and save them with save_pretrained"
        )
    shards = [open_shard(file) for file in files]
    if settings is None and (folder / "hf_quant_config.json").is_file():
        settings = read_json(folder / "hf_quant_config.json")
    if settings is not None and not isinstance(settings, dict):
        raise InputError(f"{told}: quantization_config is no table")
    if settings is not None and settings.get("quant_method") == "torchao":  # the files say what is
        return Source(folder, "torchao", config, tuple(files), _of_torchao(shards))
    layout = None if settings is None else layout_of(settings)
    if layout is not None:
        return Source(folder, layout.name, config, tuple(files), _of_layout(layout, shards))
    if settings is not None:
        method = settings.get("quant_method")
        form = settings.get("format") or settings.get("quant_algo") or method
        raise InputError(
            f"{told} is quantized as {form!r} of {method!r}, which is not known here; known: "
            f"{', '.join(LAYOUTS)}. Give the checkpoint that it was made from"
        )
    plain = {name: stored for shard in shards for name, stored in shard.tensors.items()}
    entries = tuple(Entry(name, {"": stored}) for name, stored in plain.items())
    kinds = {str(s.dtype) for s in plain.values() if s.dtype.is_floating_point}
    kind = ", ".join(sorted(kinds)).replace("torch.", "")
    return Source(folder, kind, config, tuple(files), entries)


def _of_layout(layout: Layout, shards: list[Shard]) -> tuple[Entry, ...]:
    """Return the entries of files in a foreign layout."""
    stored = {name: one for shard in shards for name, one in shard.tensors.items()}
    found: dict[str, Entry] = {}
    used: set[str] = set()
    for name in stored:
        weight = layout.weight_name(name)
        bare = not layout.suffixes["codes"]
        if weight is None or (bare and layout.tensor_name(weight, "scales") not in stored):
            continue
        names = {plane: layout.tensor_name(weight, plane) for plane in layout.suffixes}
        planes = {plane: stored[own] for plane, own in names.items() if own in stored}
        used |= {names[plane] for plane in planes}
        found[name] = Entry(weight, planes, _taker(layout, weight))
    ends = tuple(f".{suffix}" for suffix in layout.dropped)
    entries = []
    for name, one in stored.items():
        if name in found:
            entries.append(found[name])
        elif name not in used and not name.endswith(ends):
            entries.append(Entry(name, {"": one}))
    return tuple(entries)


def _taker(layout: Layout, weight: str) -> Callable[[Planes], Quantized]:
    return lambda planes: layout.take(weight, planes)


def _of_torchao(shards: list[Shard]) -> tuple[Entry, ...]:
    """Return the entries of files that torchao wrote."""
    stored = {name: one for shard in shards for name, one in shard.tensors.items()}
    entries, used = [], set()
    for shard in shards:
        for weight, (fmt, names, tiled) in stored_torchao(shard.texts).items():
            if lost := [name for name in names.values() if name not in stored]:
                raise InputError(f"{weight}: {lost[0]} is missing; torchao's tensor has it")
            planes = {plane: stored[name] for plane, name in names.items()}
            used |= set(names.values())
            entries.append(Entry(weight, planes, _torchao_taker(weight, fmt, names, tiled)))
    plain = [Entry(name, {"": one}) for name, one in stored.items() if name not in used]
    return (*entries, *plain)


def _torchao_taker(
    weight: str, fmt: Format, names: Mapping[str, str], tiled: bool
) -> Callable[[Planes], Quantized]:
    def take(planes: Planes) -> Quantized:
        try:
            level = planes.get("tensor_scale")
            return read_torchao(fmt, planes["codes"], planes["scales"], level, tiled)
        except (M2xfpError, TypeError, RuntimeError) as error:
            told = str(error)
            for plane, name in names.items():
                if told.startswith(plane):
                    told = name + told[len(plane) :]
            raise InputError(f"{weight}: {told}") from error

    return take


def _packed(folder: Path, config: dict[str, Any], files: list[Path]) -> Source:
    """Return a packed folder of this project."""
    shards = [open_shard(file) for file in files]
    stored = {name: one for shard in shards for name, one in shard.tensors.items()}
    weights = packed_weights_of(folder)
    entries, used = [], set()
    for weight, (base, fmt, shape) in weights.items():
        names = {plane: f"{base}.{plane}" for plane in PLANES if f"{base}.{plane}" in stored}
        planes = {plane: stored[name] for plane, name in names.items()}
        used |= set(names.values())
        entries.append(Entry(weight, planes, _own_taker(base, fmt, shape)))
    plain = [Entry(name, {"": one}) for name, one in stored.items() if name not in used]
    return Source(folder, "packed", config, tuple(files), (*entries, *plain), packed=True)


def _own_taker(base: str, fmt: Format, shape: tuple[int, ...]) -> Callable[[Planes], Quantized]:
    return lambda planes: Quantized(
        take_planes(base, fmt, shape, {f"{base}.{plane}": one for plane, one in planes.items()})
    )
