"""GGUF files (llama.cpp) as checkpoints to convert from.

Configuration, tokenizer and names come from transformers' reader. MXFP4 and NVFP4 weights keep
their bytes; all other types are decoded by the package gguf, as plain float32.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError, unreadable
from m2xfp.extras import require
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.models.exchange.gguf import BLOCKS, from_blocks
from m2xfp.models.exchange.gguf_check import check_gguf
from m2xfp.models.exchange.record import Planes, Quantized
from m2xfp.models.exchange.shards import Stored
from m2xfp.models.exchange.source import Entry, Source
from m2xfp.plain import read_json

__all__ = ["model_names", "open_gguf", "row_order"]

Process = Callable[[Any, str], Any]
"""What transformers does to a tensor of a file, by the tensor's name there."""

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def open_gguf(path: Path, folder: Path) -> Source:
    """Look at a GGUF file; no weight is read.

    Parameters
    ----------
    path
        The file.
    folder
        Takes the configuration and the tokenizer, as a folder of the Hugging Face layout.

    Raises
    ------
    InputError
        It is no GGUF file, or of an architecture that transformers does not read.
    """
    require("transformers", "gguf")
    import gguf
    import transformers

    check_gguf(path)
    how: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        reader = gguf.GGUFReader(path)
        config = transformers.AutoConfig.from_pretrained(path.parent, **how)
        config.save_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **how)
        tokenizer.save_pretrained(folder)
        architecture = str(reader.fields["general.architecture"].contents())
        layers = config.num_hidden_layers  # 32 and so on where the file says nothing
        if layers > len(reader.tensors):
            raise ValueError(f"{layers} layers, and it holds {len(reader.tensors)} tensors")
        names, process = model_names(folder, architecture)
    except MemoryError:
        raise
    except Exception as error:  # neither has a class of its own for what is wrong with a file
        verdict = "is no GGUF file that transformers reads"
        raise unreadable(path, verdict, error) from error
    facts = {**read_json(folder / "config.json"), "dtype": "float32"}
    stored = {tensor.name: _stored(path, tensor) for tensor in reader.tensors}
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    entries = []
    for name, one in stored.items():
        if name not in names:
            continue
        planes = {"": one}
        level = name.removesuffix(".weight") + ".scale"
        if kinds[name] == "NVFP4" and level in stored:
            planes["tensor_scale"] = stored[level]
        entries.append(Entry(names[name], planes, _taker(name, kinds[name], process)))
    return Source(folder, "GGUF", facts, (path,), tuple(entries))


def _stored(path: Path, tensor: Any) -> Stored:
    """Return where the bytes of a tensor stand: rows of bytes, or of numbers if it is plain."""
    kind = _PLAIN.get(tensor.tensor_type.name)
    shape = tuple(int(n) for n in reversed(tensor.shape))
    if kind is None:
        kind, shape = torch.uint8, tuple(int(n) for n in tensor.data.shape)
    return Stored(path, tensor.name, kind, shape, int(tensor.data_offset))


def model_names(folder: Path, architecture: str) -> tuple[dict[str, str], Process]:
    """Return a model's names by those in a file, and what transformers does to its tensors."""
    import transformers
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)

    def process(values: Any, name: str) -> Any:
        try:
            found = processor.process(
                weights=values, name=name, tensor_key_mapping=names, parsed_parameters={}
            )
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{name} does not fit the model's configuration: {error}") from error
        return found.weights

    return names, process


def row_order(process: Process, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return which row of a file's tensor each row of the model's is.

    InputError if transformers changes more of it than the order of its rows.
    """
    rows = shape[0]
    order = torch.arange(rows).reshape(rows, *[1] * (len(shape) - 1))
    found = torch.from_numpy(process(order.numpy(), name).copy())
    if found.shape != order.shape or not found.flatten().sort()[0].equal(order.flatten()):
        raise InputError(f"{name}: transformers changes its values, and not the order of rows only")
    return found.flatten()


def _taker(name: str, kind: str, process: Process) -> Callable[[Planes], Quantized | Tensor]:
    """Return what makes a weight of the bytes of a tensor, its rows in the order of the model."""

    def quantized(planes: Planes) -> Quantized:
        read = from_blocks(kind, planes[""], planes.get("tensor_scale"))
        packed = read.packed
        assert isinstance(packed, PackedTensor)
        rows = packed.shape[0]
        if packed.codes.is_meta:
            return read
        order = row_order(process, name, (rows, 1))
        moved = {
            plane: one if plane == "tensor_scale" else one[order]
            for plane, one in packed.planes().items()
        }
        return Quantized(PackedTensor.from_planes(packed.format, moved, tuple(packed.shape)))

    def plain(planes: Planes) -> Tensor:
        from gguf import GGMLQuantizationType, dequantize, quant_shape_from_byte_shape

        given = planes[""]
        if kind in _PLAIN:
            shape = tuple(given.shape)
            values = given if given.is_meta else given.float()
        else:
            quant = GGMLQuantizationType[kind]
            shape = tuple(quant_shape_from_byte_shape(tuple(given.shape), quant))
            values = given if given.is_meta else torch.from_numpy(dequantize(given.numpy(), quant))
        if given.is_meta:
            return torch.empty(shape, device="meta")
        return torch.from_numpy(process(values.numpy(), name).copy())

    return quantized if kind in BLOCKS else plain
