"""GGUF files (llama.cpp) written: a file with places for all tensors, filled one after the other.

Metadata are those of the GGUF file that is converted, or are made of a folder's configuration and
tokenizer, by transformers' own map between the two read backwards. Before a weight is written the
file's header is read by transformers, and must give the configuration that the folder has.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.extras import require
from m2xfp.files import remove, write_atomic
from m2xfp.models.exchange.gguf import LEVEL
from m2xfp.models.exchange.gguf_facts import (
    facts_of_file,
    facts_of_folder,
    gguf_architecture,
    types_of_file,
)
from m2xfp.models.exchange.gguf_file import model_names, row_order
from m2xfp.models.exchange.planning import Job, Plan
from m2xfp.models.exchange.record import Layout
from m2xfp.models.exchange.shards import Outline
from m2xfp.models.exchange.source import Source
from m2xfp.models.layers import listed
from m2xfp.plain import read_json

__all__ = ["write_gguf"]

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_PLAIN = {name: dtype for dtype, name in _TYPES.items()}
_DONE = "written.json"


@dataclass(frozen=True)
class _Slot:
    """A tensor of the file.

    Members
    -------
    name
        Its name there.
    kind
        ggml's name of its type.
    shape
        Of what is written: bytes for blocks.
    order
        Which row of the model's tensor each of its rows is; None for a tensor scale.
    begin
        Its first byte in the file, behind the header.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    order: Tensor | None
    begin: int

    def data(self, tensor: Tensor) -> Tensor:
        """Return the bytes of a tensor."""
        if self.kind in _PLAIN:
            tensor = tensor.to(_PLAIN[self.kind])
        if self.order is not None:
            tensor = tensor[self.order]
        return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def write_gguf(
    path: Path,
    source: Source,
    plan: Plan,
    parameters: Mapping[str, str],
    layout: Layout,
    parts: Iterable[list[Job]],
    quiet: bool,
) -> None:
    """Write a GGUF file; one that was begun goes on with the first part that is not written.

    Parameters
    ----------
    path
        The file; beside it stands what is needed to go on until it is whole.
    source
        The checkpoint that it is made of.
    plan
        What is written.
    parameters
        Names in the model of the tensors of the checkpoint, without those of single experts.
    layout
        Of ``gguf.GGUF_LAYOUTS``.
    parts
        The jobs of the plan; after each part the file is safe on the disk.
    quiet
        Show no progress.

    Raises
    ------
    InputError
        llama.cpp has no place for a tensor of the model, or its file cannot say what the
        configuration or the tokenizer do.
    """
    require("gguf", "transformers")
    from m2xfp.progress import track

    outlines = {name: one for job in plan.jobs for name, one in job.outlines.items()}
    kind = layout.name.removeprefix("gguf-").upper()
    architecture, slots = _slots(source, outlines, parameters, plan, kind)
    head = _head(source, architecture, list(slots.values()))
    whole = max(len(head) + slot.begin + _size(slot) for slot in slots.values())
    done_file = path.with_name(_DONE)
    done = int(read_json(done_file)) if done_file.is_file() and path.is_file() else 0
    with path.open("r+b" if done else "w+b") as file:
        if not done:
            file.write(head)
            file.truncate(whole)
            file.flush()
            _check_reading(path, source)
        with track(total=len(plan.jobs), desc="convert", unit="weight", quiet=quiet) as bar:
            for number, jobs in enumerate(parts):
                if number >= done:
                    for job in jobs:
                        _put(file, len(head), slots, job.make())
                        bar.update(1)
                    file.flush()
                    os.fsync(file.fileno())
                    write_atomic(done_file, json.dumps(number + 1))
                else:
                    bar.update(len(jobs))
    remove(done_file)


def _put(
    file: BinaryIO, base: int, slots: Mapping[str, _Slot], tensors: Mapping[str, Tensor]
) -> None:
    for name, tensor in tensors.items():
        file.seek(base + slots[name].begin)
        file.write(cast(Any, slots[name].data(tensor).numpy()))


def _slots(
    source: Source,
    outlines: Mapping[str, Outline],
    parameters: Mapping[str, str],
    plan: Plan,
    kind: str,
) -> tuple[str, dict[str, _Slot]]:
    """Return the architecture, and where each tensor goes, by its name among the outlines."""
    architecture = gguf_architecture(source)
    found, process = model_names(source.folder, architecture)
    places, kept = {own: name for name, own in found.items()}, types_of_file(source)
    lost = [n for n in outlines if parameters.get(n.removesuffix(LEVEL), "") not in places]
    if lost:
        raise InputError(
            f"{source.name!r}: files of llama.cpp have no place for {listed(lost)} of a "
            f"{architecture}; choose another target"
        )
    slots, end = {}, 0
    for name, (dtype, shape) in outlines.items():
        weight = name.removesuffix(LEVEL)
        parameter = parameters[weight]
        place = places[parameter]
        if name != weight:
            slot = _Slot(place.removesuffix(".weight") + ".scale", "F32", shape, None, end)
        else:
            order = row_order(process, place, shape)
            blocks = parameter in plan.quantized
            plain = "F32" if len(shape) == 1 else kept.get(place) or _TYPES.get(dtype, "")
            own = kind if blocks else plain
            if not own:
                raise InputError(f"{name} is {dtype}, which is not written to GGUF files")
            slot = _Slot(place, own, shape, order.argsort(), end)
        slots[name] = slot
        end += -(-_size(slot) // 32) * 32
    return architecture, slots


def _size(slot: _Slot) -> int:
    return torch.Size(slot.shape).numel() * _PLAIN.get(slot.kind, torch.uint8).itemsize


def _head(source: Source, architecture: str, slots: list[_Slot]) -> bytes:
    """Return the file's bytes before its tensors."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(None, architecture)
    facts = facts_of_file if source.files[0].suffix == ".gguf" else facts_of_folder
    for name, value, kind, within in facts(source, architecture):
        writer.add_key_value(name, value, kind, within)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for slot in slots:
        kind = gguf.GGMLQuantizationType[slot.kind]
        dtype = np.dtype(np.float32 if slot.kind in _PLAIN else np.uint8)
        writer.add_tensor_info(slot.name, slot.shape, dtype, _size(slot), kind)
    with TemporaryDirectory(prefix="m2xfp-", ignore_cleanup_errors=True) as home:
        writer.write_header_to_file(Path(home) / "head")
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        head = (Path(home) / "head").read_bytes()
    return head + bytes(-len(head) % 32)


# What no file of llama.cpp says, and no logit depends on.
_SILENT = frozenset(
    (
        *(
            "_name_or_path",
            "_model_name_or_path",
            "architectures",
            "dtype",
            "torch_dtype",
            "transformers_version",
        ),
        *("use_cache", "pretraining_tp", "initializer_range", "quantization_config"),
        *("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        *("resid_dropout", "embedding_dropout", "residual_dropout"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
    )
)


def _check_reading(path: Path, source: Source) -> None:
    """Refuse a file whose header gives transformers another model than the checkpoint has."""
    import transformers

    how: dict[str, Any] = {"local_files_only": True}
    wanted = transformers.AutoConfig.from_pretrained(source.folder, **how).to_dict()
    try:
        found = transformers.AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, **how
        ).to_dict()
        transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **how)
    except (ValueError, LookupError, TypeError, OSError, NotImplementedError) as error:
        raise InputError(
            f"{source.name!r} cannot be written as GGUF: transformers does not read it ({error})"
        ) from error
    other = [
        f"{name} ({wanted.get(name)!r}, {found.get(name)!r} in the file)"
        for name in wanted.keys() | found.keys()
        if name not in _SILENT and not _same(wanted.get(name), found.get(name))
    ]
    if other:
        raise InputError(
            f"{source.name!r}: a GGUF file cannot say {listed(sorted(other))}; choose another "
            "target"
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two settings are the same; numbers stand as float32 in the file."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[n], other[n]) for n in one)
    if isinstance(one, float) or isinstance(other, float):
        return bool(one is not None and other is not None) and abs(one - other) <= 1e-6 * abs(one)
    return bool(one == other)
