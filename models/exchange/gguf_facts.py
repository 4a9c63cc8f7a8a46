"""What a GGUF file says of its model: made of a configuration and a tokenizer."""

from collections.abc import Iterator, Mapping
from typing import Any

from m2xfp.errors import InputError
from m2xfp.models.exchange.source import Source
from m2xfp.plain import read_json

__all__ = ["facts_of_file", "facts_of_folder", "gguf_architecture", "types_of_file"]

Fact = tuple[str, Any, Any, Any]
"""A name, its value, ggml's type of it, and for a list the type of its entries."""

# Made anew for the file that is written: the architecture, types of weights, splits over files.
_OWN = ("GGUF.", "split.", "general.architecture", "general.file_type", "general.quantization")
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5  # ggml's types of tokens


def gguf_architecture(source: Source) -> str:
    """Return llama.cpp's name of a checkpoint's architecture; InputError if it has none."""
    from gguf import MODEL_ARCH_NAMES, GGUFReader
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    if source.files[0].suffix == ".gguf":
        return str(GGUFReader(source.files[0]).fields["general.architecture"].contents())
    name = str(source.config.get("model_type"))
    known = set(MODEL_ARCH_NAMES.values()) & set(GGUF_CONFIG_MAPPING)
    if name not in known:
        raise InputError(
            f"{source.name!r} is a {name}, which is not written to GGUF files here; there are: "
            f"{', '.join(sorted(known))}"
        )
    return name


def facts_of_file(source: Source, _: str) -> Iterator[Fact]:
    """Yield what the GGUF file that is converted says."""
    from gguf import GGUFReader

    for name, field in GGUFReader(source.files[0]).fields.items():
        if not name.startswith(_OWN):
            kind, *within = field.types
            yield name, field.contents(), kind, within[0] if within else None


def types_of_file(source: Source) -> dict[str, str]:
    """Return the types of what stands plain in a GGUF file that is converted; none of a folder."""
    from gguf import GGUFReader

    if source.files[0].suffix != ".gguf":
        return {}
    types = {t.name: t.tensor_type.name for t in GGUFReader(source.files[0]).tensors}
    return {name: kind for name, kind in types.items() if kind in ("F16", "BF16", "F32")}


def facts_of_folder(source: Source, architecture: str) -> Iterator[Fact]:
    """Yield what a folder's configuration and tokenizer say.

    InputError for a tokenizer of another kind than the BPE of bytes.
    """
    import transformers
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    config = transformers.AutoConfig.from_pretrained(source.folder, local_files_only=True)
    yield _fact("general.name", source.folder.name)
    for name, own in GGUF_CONFIG_MAPPING[architecture].items():
        value = _setting(config, own) if isinstance(own, str) else None
        if value is not None:
            yield _fact(f"{architecture}.{name}", value)
    width, heads = _setting(config, "head_dim"), config.num_attention_heads
    if width * heads != config.hidden_size:
        yield _fact(f"{architecture}.attention.key_length", width)
        yield _fact(f"{architecture}.attention.value_length", width)
    yield from _tokenizer(source, config)


def _setting(config: Any, name: str) -> Any:
    """Return a setting, those of the rotation of positions from where transformers has them."""
    if name == "rope_theta":
        return (getattr(config, "rope_parameters", None) or {}).get(name)
    value = getattr(config, name, None)
    if name == "head_dim" and value is None:
        return config.hidden_size // config.num_attention_heads
    return value


def _fact(name: str, value: Any) -> Fact:
    from gguf import GGUFValueType as Kind

    kinds = {bool: Kind.BOOL, int: Kind.UINT32, float: Kind.FLOAT32, str: Kind.STRING}
    if isinstance(value, list):
        kind = kinds[type(value[0])] if value else Kind.STRING
        return name, value, Kind.ARRAY, Kind.INT32 if kind == Kind.UINT32 else kind
    if type(value) not in kinds:
        raise InputError(f"{name} is {value!r}, which a GGUF file cannot say")
    return name, value, kinds[type(value)], None


def _tokenizer(source: Source, config: Any) -> Iterator[Fact]:
    """Yield the facts of a tokenizer."""
    file = source.folder / "tokenizer.json"
    found = read_json(file) if file.is_file() else None
    told: dict[str, Any] = found if isinstance(found, dict) else {}
    model = told.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not _of_bytes(told):
        kind = model.get("type") if isinstance(model, dict) else None
        raise InputError(
            f"{source.name!r} has a tokenizer of kind {kind}; written to GGUF files are those of "
            "tokenizer.json that are a BPE of bytes (ByteLevel)"
        )
    tokens = {at: text for text, at in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, _NORMAL)
    for added in told.get("added_tokens") or []:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added.get("special") else _USER
    count = max(config.vocab_size, *(at + 1 for at in tokens))
    every = range(count)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    yield _fact("tokenizer.ggml.model", "gpt2")
    yield _fact("tokenizer.ggml.pre", "default")
    yield _fact("tokenizer.ggml.tokens", [tokens.get(at, f"[PAD{at}]") for at in every])
    yield _fact("tokenizer.ggml.token_type", [kinds.get(at, _UNUSED) for at in every])
    yield _fact("tokenizer.ggml.merges", merges)
    for own in ("bos", "eos", "padding"):
        place = getattr(config, f"{'pad' if own == 'padding' else own}_token_id", None)
        if isinstance(place, list):
            place = place[0] if place else None
        if place is not None:
            yield _fact(f"tokenizer.ggml.{own}_token_id", place)


def _of_bytes(told: Any) -> bool:
    """Whether a tokenizer works on bytes, by what stands before or behind its model."""

    def within(part: Any) -> bool:
        if not isinstance(part, Mapping):
            return False
        inner = part.get("pretokenizers") or part.get("decoders") or []
        return part.get("type") == "ByteLevel" or any(within(one) for one in inner)

    return within(told.get("pre_tokenizer")) or within(told.get("decoder"))
