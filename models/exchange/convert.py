"""Whole checkpoint folders from one layout to another, weight by weight.

A conversion is planned from headers alone, then written shard by shard beside its target and moved
into place at the end. One that was interrupted goes on with the first shard that is not there.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from m2xfp._version import __version__
from m2xfp.errors import InputError
from m2xfp.files import refusals, remove, write_atomic
from m2xfp.models.exchange.gguf_file import open_gguf
from m2xfp.models.exchange.gguf_write import write_gguf
from m2xfp.models.exchange.model import Skeleton
from m2xfp.models.exchange.planning import Job, Plan, Target, find_target, header_of, planned
from m2xfp.models.exchange.shards import write_shard
from m2xfp.models.exchange.source import Source, open_source
from m2xfp.models.layers import Coverage
from m2xfp.models.packed_model import PACKED
from m2xfp.plain import read_json

__all__ = ["Target", "convert_folder", "find_target"]

_SIDE_FILES = (".json", ".model", ".txt", ".jinja")
_PLAN = "conversion.json"
_FILE = "model.gguf"


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
        ``LAYOUTS`` or of torchao, or packed by this project. Or a file NAME.gguf.
    target
        The folder to make, or for GGUF the file NAME.gguf; it must not be there. Beside it stands
        TARGET.part while it is made, from which a conversion with the same arguments goes on.
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
    place = Path(target)
    if place.exists():
        raise InputError(
            f"{os.fspath(place)!r} is there already; remove it, or choose another name"
        )
    if to.is_file != (place.suffix == ".gguf"):
        told = "is the name of a GGUF file" if place.suffix == ".gguf" else "is no name of one"
        raise InputError(f"{to.name} goes with NAME.gguf alone, and {os.fspath(place)!r} {told}")
    given, how = Path(source), (place, to, skip, allow_nan, shard_bytes, quiet)
    if not (given.suffix == ".gguf" and given.is_file()):
        return _converted(open_source(given), *how)
    with TemporaryDirectory(prefix="m2xfp-", ignore_cleanup_errors=True) as home:
        return _converted(open_gguf(given, Path(home)), *how)


def _converted(
    found: Source,
    place: Path,
    to: Target,
    skip: Sequence[str],
    allow_nan: bool,
    shard_bytes: int,
    quiet: bool,
) -> Coverage:
    """Write an opened checkpoint in another layout."""
    model = Skeleton(found.folder, found.config, skip)
    plan = planned(found, model, to, allow_nan)
    covered = model.coverage(plan.quantized)
    if to.format is not None and not plan.quantized:
        raise InputError(f"no weight of {found.name!r} can be held as {to.name}: {covered}")
    shards = _sharded(plan.jobs, shard_bytes)
    facts = {
        "version": __version__,
        "to": to.name,
        "skip": list(skip),
        "allow_nan": allow_nan,
        "shard_bytes": shard_bytes,
        "config": dict(found.config),
        "source": {
            file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in found.files
        },
    }
    part = place.with_name(place.name + ".part")
    with refusals(part):
        _begin(part, facts)
        if to.is_file:
            assert to.layout is not None
            names = {entry.name: model.place(entry.name) for entry in found.entries}
            parameters = {own: p.parameter for own, p in names.items() if p.expert is None}
            write_gguf(part / _FILE, found, plan, parameters, to.layout, shards, quiet)
            (part / _FILE).rename(place)
            remove(part)
            return covered
        own = to.format is not None and to.layout is None
        header = header_of(plan, model) if own else None
        _write(part, shards, own, header, quiet)
        _write_side_files(part, found, model, to, plan)
        part.rename(place)  # with its plan: without one it could not go on from here
        remove(place / _PLAN)
    return covered


def _begin(part: Path, facts: dict[str, Any]) -> None:
    """Make the folder to work in, or take one in which the same conversion was begun."""
    if part.exists():
        plan = part / _PLAN
        begun = plan.is_file()
        if not begun and any(not path.name.startswith(".tmp") for path in part.iterdir()):
            raise InputError(f"{os.fspath(part)!r} is no conversion that was begun; remove it")
        if begun and read_json(plan) == facts:
            for left in part.glob(".tmp*"):
                remove(left)
            return
        remove(part)
    part.mkdir(parents=True)
    write_atomic(part / _PLAN, json.dumps(facts))


def _sharded(jobs: Iterable[Job], most: int) -> list[list[Job]]:
    """Return the jobs by file, each file of at most so many bytes, or of one job."""
    shards: list[list[Job]] = [[]]
    size = 0
    for job in jobs:
        if shards[-1] and size + job.written > most:
            shards.append([])
            size = 0
        shards[-1].append(job)
        size += job.written
    return shards


def _write(
    part: Path, shards: list[list[Job]], own: bool, header: dict[str, Any] | None, quiet: bool
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
            told = {own: text for job in jobs for own, text in job.texts.items()}
            if told:  # torchao's files list what they hold
                told["tensor_names"] = json.dumps(list(told))
            with write_shard(part / name, outlines, {**texts, **told}) as writer:
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


def _write_side_files(part: Path, source: Source, model: Skeleton, to: Target, plan: Plan) -> None:
    """Write the configuration, and copy the tokenizer and what else belongs to the model."""
    for file in sorted(source.folder.iterdir()):
        own = file.name.endswith(".index.json") or file.name in (
            "config.json",
            "hf_quant_config.json",
            _PLAN,
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
