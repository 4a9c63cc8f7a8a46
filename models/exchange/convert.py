"""Whole checkpoint folders from one layout to another, weight by weight.

A conversion is planned from headers alone, then written shard by shard beside its target and moved
into place at the end. One that was interrupted goes on with the first shard that is not there.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2xfp._version import __version__
from m2xfp.errors import InputError, UnknownNameError
from m2xfp.files import refusals, remove, write_atomic
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.models.exchange.joining import (
    check_values,
    in_power_of_two,
    joined_packed,
    joined_values,
    sorted_parts,
)
from m2xfp.models.exchange.layouts import LAYOUTS, TWO_LEVELS
from m2xfp.models.exchange.model import Skeleton
from m2xfp.models.exchange.names import Place
from m2xfp.models.exchange.record import Layout, Packed, Quantized
from m2xfp.models.exchange.shards import Outline, write_shard
from m2xfp.models.exchange.source import Entry, Source, open_source
from m2xfp.models.layers import Coverage
from m2xfp.models.packed_model import PACKED
from m2xfp.plain import read_json

__all__ = ["Target", "convert_folder", "find_target"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SIDE_FILES = (".json", ".model", ".txt", ".jinja")
_PLAN = "conversion.json"


@dataclass(frozen=True)
class Target:
    """What a checkpoint becomes: packed in a format here, in a foreign layout, or plain.

    Members
    -------
    name
        As it was asked for.
    format
        Of quantized weights; None for a plain checkpoint.
    layout
        The foreign layout, None for a packed folder of this project.
    dtype
        Of a plain checkpoint.
    """

    name: str
    format: Format | None = None
    layout: Layout | None = None
    dtype: torch.dtype | None = None


def find_target(name: str) -> Target:
    """Return a target: a layout, a type of PyTorch's, or a format of ``m2xfp formats``."""
    if name in LAYOUTS:
        return Target(name, LAYOUTS[name].whole, LAYOUTS[name])
    if name in _DTYPES:
        return Target(name, dtype=_DTYPES[name])
    try:
        return Target(name, get_format(name))
    except UnknownNameError as error:
        known = (*LAYOUTS, *_DTYPES, *error.known)
        raise UnknownNameError("target", name, known) from error


@dataclass(frozen=True)
class _Job:
    """Tensors to write that are made together.

    Members
    -------
    outlines
        Their types and shapes by name, in the order of writing.
    make
        Makes them.
    nbytes
        Bytes that are read for them.
    """

    outlines: Mapping[str, Outline]
    make: Callable[[], Mapping[str, Tensor]]
    nbytes: int

    @property
    def written(self) -> int:
        """Bytes that are written."""
        return sum(t.itemsize * torch.Size(shape).numel() for t, shape in self.outlines.values())


@dataclass
class _Plan:
    """The jobs of a conversion, and what the model's files will say."""

    jobs: list[_Job] = field(default_factory=list)
    quantized: set[str] = field(default_factory=set)
    layers: dict[str, Any] = field(default_factory=dict)
    watched: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Parameter:
    """A parameter of the model, or one tensor of a checkpoint, and the entries that it is made of.

    Members
    -------
    name
        What is written is called so.
    places, entries
        Where the entries stand in what is written, in order.
    alone
        Whether it is one of several tensors of a parameter, such as an expert.
    """

    name: str
    places: tuple[Place, ...]
    entries: tuple[Entry, ...]
    alone: bool = False

    def parts(self, outline: bool = False) -> list[tuple[Place, Quantized | Tensor]]:
        """Return the tensors, or their outlines on the meta device."""
        made = [entry.outline() if outline else entry.read() for entry in self.entries]
        return list(zip(self.places, made, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes in the files."""
        return sum(entry.nbytes for entry in self.entries)


def convert_folder(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: Target,
    skip: Sequence[str] = (),
    allow_nan: bool = False,
    shard_bytes: int = 2 << 30,
    quiet: bool = True,
) -> Coverage:
    """Write a checkpoint folder in another layout.

    A weight that is in the target's format already keeps its bytes; any other is decoded, to
    float32 if it was quantized, and quantized. Everything else is carried over as it is.

    Parameters
    ----------
    source
        A folder of the Hugging Face layout with safetensors files: plain, in a layout of
        ``LAYOUTS`` or of torchao, or packed by this project.
    target
        The folder to make; it must not be there. Beside it stands TARGET.part while it is made,
        from which a conversion with the same arguments goes on.
    to
        From ``find_target``.
    skip
        Layers to leave plain: names in the model, or patterns. The layer that makes the logits is
        left plain unless it is quantized in the source.
    allow_nan
        Go on when weights hold NaN or infinity.
    shard_bytes
        Bytes of a weight file, unless one weight is larger.
    quiet
        Show no progress.

    Returns
    -------
    What share of the weights that multiply is quantized.

    Raises
    ------
    InputError
        The source cannot be used, its tensors are not those of its model, the target is there
        already, or a weight cannot be held by it; the message names the tensor.
    """
    folder, place = Path(source), Path(target)
    if place.exists():
        raise InputError(
            f"{os.fspath(place)!r} is there already; remove it, or choose another name"
        )
    found = open_source(folder)
    model = Skeleton(found.folder, found.config, skip)
    plan = _planned(found, model, to, allow_nan)
    covered = model.coverage(plan.quantized)
    if to.format is not None and not plan.quantized:
        raise InputError(f"no weight of {os.fspath(folder)!r} can be held as {to.name}: {covered}")
    shards = _sharded(plan.jobs, shard_bytes)
    facts = {
        "version": __version__,
        "to": to.name,
        "skip": list(skip),
        "allow_nan": allow_nan,
        "shard_bytes": shard_bytes,
        "source": {
            file.name: [file.stat().st_size, file.stat().st_mtime_ns]
            for file in (*found.files, folder / "config.json")
        },
    }
    part = place.with_name(place.name + ".part")
    with refusals(part):
        _begin(part, facts)
        own = to.format is not None and to.layout is None
        header = _header(plan, model) if own else None
        _write(part, shards, own, header, quiet)
        _write_side_files(part, found, model, to, plan)
        remove(part / _PLAN)
        part.rename(place)
    return covered


def _begin(part: Path, facts: dict[str, Any]) -> None:
    """Make the folder to work in, or take one in which the same conversion was begun."""
    if part.exists():
        plan = part / _PLAN
        if not plan.is_file():
            raise InputError(f"{os.fspath(part)!r} is no conversion that was begun; remove it")
        if read_json(plan) == facts:
            for left in part.glob(".tmp*"):
                remove(left)
            return
        remove(part)
    part.mkdir(parents=True)
    write_atomic(part / _PLAN, json.dumps(facts))


def _planned(source: Source, model: Skeleton, to: Target, allow_nan: bool) -> _Plan:
    """Return what is to be written, from headers alone."""
    plan = _Plan()
    places = [model.place(entry.name) for entry in source.entries]
    model.check_complete([place.parameter for place in places])
    merged = to.format is not None and to.layout is None
    for parameter in _parameters(source.entries, places, merged):
        plan.jobs.append(_job(plan, parameter, model, to, allow_nan))
    return plan


def _parameters(
    entries: Iterable[Entry], places: Sequence[Place], merged: bool
) -> Iterator[_Parameter]:
    """Yield what is written: the parameters of the model, or the tensors of the checkpoint."""
    if not merged:
        for entry, place in zip(entries, places, strict=True):
            alone = Place(place.parameter)
            yield _Parameter(entry.name, (alone,), (entry,), place.expert is not None)
        return
    groups: dict[str, list[tuple[Place, Entry]]] = {}
    for entry, place in zip(entries, places, strict=True):
        groups.setdefault(place.parameter, []).append((place, entry))
    for name, group in groups.items():
        order = sorted_parts(name, [place for place, _ in group])
        yield _Parameter(
            name, tuple(group[at][0] for at in order), tuple(group[at][1] for at in order)
        )


def _job(plan: _Plan, parameter: _Parameter, model: Skeleton, to: Target, allow_nan: bool) -> _Job:
    """Return the job of a parameter, and note in the plan what becomes of it."""
    outlines = parameter.parts(outline=True)
    names = {place.parameter for place in parameter.places}
    held = [isinstance(part, Quantized) for _, part in outlines]
    whole = next(iter(names))
    wanted = whole in model.wanted or (all(held) and whole not in model.skipped)
    dim = model.dim(whole)
    # One of several experts stands as [out, in], as the model holds it if groups run along -1.
    one = parameter.alone
    fits = to.format is not None and wanted and dim is not None
    if fits and to.layout is not None:
        fits = model.holds(to.layout, whole, one)
    if not fits:
        return _plain_job(parameter, to.dtype or model.dtype, dim)
    assert to.format is not None
    plan.quantized.add(whole)
    kept = all(
        isinstance(p, Quantized) and p.packed.format.key == to.format.key for _, p in outlines
    )
    told = _Weight(parameter, to, model.dtype, -1 if one else dim, kept, allow_nan)
    if to.layout is None:
        _note(plan, whole, model, told, outlines)
    made = told.tensors(told.packed(outlines, outline=True), model)
    shapes = {name: (one.dtype, tuple(one.shape)) for name, one in made.items()}
    return _Job(
        shapes, lambda: told.tensors(told.packed(parameter.parts()), model), parameter.nbytes
    )


@dataclass(frozen=True)
class _Weight:
    """A weight to be written quantized."""

    parameter: _Parameter
    to: Target
    dtype: torch.dtype
    dim: int | None
    kept: bool
    allow_nan: bool

    def packed(
        self, parts: Sequence[tuple[Place, Quantized | Tensor]], outline: bool = False
    ) -> Packed:
        """Return it in the target's format."""
        fmt = self.to.format
        assert fmt is not None
        if not outline:
            for entry, (_, part) in zip(self.parameter.entries, parts, strict=True):
                check_values(entry.name, part, self.allow_nan)
        if self.kept:
            return joined_packed(parts)
        values = joined_values(parts)
        if self.dim == -2 and not isinstance(parts[0][1], Quantized):
            values = values.transpose(-1, -2).contiguous()
        if outline:
            return fmt.quantize(torch.empty(values.shape, device="meta"))
        if self.to.layout is not None and fmt.key == TWO_LEVELS:
            return in_power_of_two(values)
        return fmt.quantize(values)

    def tensors(self, packed: Packed, model: Skeleton) -> dict[str, Tensor]:
        """Return the tensors to write, by name."""
        name = self.parameter.name
        if self.to.layout is not None:
            return self.to.layout.put(name, packed)
        base = model.layer(name) if model.is_replaced(name) else name
        return {f"{base}.{plane}": tensor for plane, tensor in packed.planes().items()}


def _plain_job(parameter: _Parameter, dtype: torch.dtype, dim: int | None) -> _Job:
    """Return the job of a tensor that is written plain: as it is, or decoded."""

    def make(outline: bool) -> dict[str, Tensor]:
        parts = parameter.parts(outline)
        if outline:
            parts = [
                (place, torch.empty(part.packed.shape, dtype=dtype, device="meta"))
                if isinstance(part, Quantized)
                else (place, part)
                for place, part in parts
            ]
        values = joined_values(parts, dtype)
        if dim == -2 and isinstance(parameter.entries[0].outline(), Quantized):
            values = values.transpose(-1, -2).contiguous()
        return {parameter.name: values}

    made = make(outline=True)
    shapes = {name: (one.dtype, tuple(one.shape)) for name, one in made.items()}
    return _Job(shapes, lambda: make(outline=False), parameter.nbytes)


def _note(
    plan: _Plan,
    name: str,
    model: Skeleton,
    weight: _Weight,
    outlines: Sequence[tuple[Place, Quantized | Tensor]],
) -> None:
    """Note a packed weight for the header, as ``save_quantized`` writes it."""
    fmt = weight.to.format
    assert fmt is not None
    first = outlines[0][1]
    dtype = weight.dtype if isinstance(first, Quantized) else first.dtype
    facts = {"format": fmt.name, "options": dict(fmt.options)}
    kind = str(dtype).removeprefix("torch.")
    shape = list(weight.packed(outlines, outline=True).shape)
    layer = model.layer(name)
    if model.is_replaced(name):
        plan.layers[layer] = {"weights": facts, "activations": None, "shape": shape, "dtype": kind}
        return
    watched = plan.watched.setdefault(layer, {"activations": None, "inputs": [], "weights": {}})
    own = name[len(layer) :].lstrip(".")
    watched["inputs"].append(own)
    watched["weights"][own] = {**facts, "shape": shape, "dim": weight.dim, "dtype": kind}


def _header(plan: _Plan, model: Skeleton) -> dict[str, Any]:
    """Return the header of a packed folder."""
    produced = {name for job in plan.jobs for name in job.outlines}
    return {
        "layers": plan.layers,
        "watched": plan.watched,
        "attentions": [],
        "aliases": model.aliases(produced),
    }


def _sharded(jobs: Iterable[_Job], most: int) -> list[list[_Job]]:
    """Return the jobs by file, each file of at most so many bytes, or of one job."""
    shards: list[list[_Job]] = [[]]
    size = 0
    for job in jobs:
        if shards[-1] and size + job.written > most:
            shards.append([])
            size = 0
        shards[-1].append(job)
        size += job.written
    return shards


def _write(
    part: Path, shards: list[list[_Job]], own: bool, header: dict[str, Any] | None, quiet: bool
) -> None:
    """Write the weight files that are not there yet, and their index if there are several."""
    from m2xfp.progress import track

    single = PACKED if own else "model.safetensors"
    stem = single.removesuffix(".safetensors")
    count = len(shards)
    names = (
        [single]
        if count == 1
        else [f"{stem}-{at + 1:05}-of-{count:05}.safetensors" for at in range(count)]
    )
    whole = {"m2xfp": json.dumps(header, sort_keys=True)} if header is not None else {}
    texts = {"format": "pt", **(whole if count == 1 else {})}
    with track(
        total=sum(len(jobs) for jobs in shards), desc="convert", unit="weight", quiet=quiet
    ) as bar:
        for name, jobs in zip(names, shards, strict=True):
            if (part / name).is_file():  # whole: it was moved there
                bar.update(len(jobs))
                continue
            outlines = {own: told for job in jobs for own, told in job.outlines.items()}
            with write_shard(part / name, outlines, texts) as writer:
                for job in jobs:
                    for tensor_name, tensor in job.make().items():
                        writer.put(tensor_name, tensor)
                    bar.update(1)
    if count > 1:
        places = {
            own: name
            for name, jobs in zip(names, shards, strict=True)
            for job in jobs
            for own in job.outlines
        }
        size = sum(job.written for jobs in shards for job in jobs)
        metadata: dict[str, Any] = {"total_size": size}
        if header is not None:
            metadata["m2xfp"] = header
        index = {"metadata": metadata, "weight_map": places}
        write_atomic(part / f"{single}.index.json", json.dumps(index, indent=1, sort_keys=True))


def _write_side_files(part: Path, source: Source, model: Skeleton, to: Target, plan: _Plan) -> None:
    """Write the configuration, and copy the tokenizer and what else belongs to the model."""
    for file in sorted(source.folder.iterdir()):
        own = file.name.endswith(".index.json") or file.name in (
            "config.json",
            "hf_quant_config.json",
        )
        if file.suffix in _SIDE_FILES and file.is_file() and not own:
            write_atomic(part / file.name, file.read_bytes())
    config = dict(source.config)
    if to.layout is not None:
        config["quantization_config"] = to.layout.settings(model.plain_layers(plan.quantized))
    if to.dtype is not None:
        config["dtype"] = to.name
        config.pop("torch_dtype", None)
    write_atomic(part / "config.json", json.dumps(config, indent=2))
