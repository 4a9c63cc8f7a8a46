"""What a recipe has to know of a model: who reads a norm, who writes to the stream, its blocks.

It is found by watching the model read a few tokens, not by the model's class.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError
from m2xfp.models.layers import is_plain_linear

__all__ = ["Norm", "Structure", "find_blocks", "heads_of", "logits", "observe", "watching"]


@dataclass
class Norm:
    """An RMS norm whose result linear layers read.

    Members
    -------
    name
        Name of the module.
    module
        The module.
    readers
        Names of the linear layers that read its result.
    """

    name: str
    module: nn.Module
    readers: list[str] = field(default_factory=list)

    def gain(self) -> Tensor:
        """Return the factors of the channels, float64.

        InputError if the module is no norm by the root of the mean square with factors.
        """
        weight = getattr(self.module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 1:
            raise InputError(f"{self.name} ({type(self.module).__name__}) has no factors")
        one = torch.ones(1, len(weight), dtype=weight.dtype, device=weight.device)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, len(weight), generator=generator).to(weight)
        with torch.no_grad():
            gain = self.module(one)[0].double()
            found = self.module(x).double()
        wide = x.double()
        expected = wide * wide.square().mean(-1, keepdim=True).rsqrt() * gain
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(gain.abs().max())):
            raise InputError(
                f"{self.name} is a {type(self.module).__name__}, which takes the mean away or "
                "computes otherwise; the steps know RMS norms"
            )
        return gain

    @torch.no_grad()
    def set_gain(self, gain: Tensor) -> None:
        """Give the channels other factors."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        old, held = self.gain(), weight.double()

        def near(a: Tensor, b: Tensor) -> bool:
            return torch.allclose(a, b, rtol=1e-3, atol=1e-4)

        if near(old, held):
            weight.copy_(gain.to(weight))
        elif near(old, 1 + held):  # as Gemma has it
            weight.copy_((gain - 1).to(weight))
        else:
            raise InputError(f"{self.name}: its factors are not those of its weight")


@dataclass
class Structure:
    """What was seen of a model.

    Members
    -------
    width
        Values of the residual stream.
    embedding
        Name of the embedding.
    norms
        Norms in the blocks that linear layers read.
    last
        Name of the norm behind the blocks.
    writers
        Linear layers whose results are added to the stream.
    """

    width: int
    embedding: str
    norms: list[Norm]
    last: str
    writers: list[str]


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the list of a model's blocks, and its name.

    InputError if it has none.
    """
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]

    def load(entry: tuple[str, nn.ModuleList]) -> int:
        return sum(is_plain_linear(part) for part in entry[1].modules())

    best = max(found, key=load, default=None)
    if best is None or not load(best):
        raise InputError(
            f"{type(model).__name__} has no list of blocks with linear layers, which the steps go "
            "through one by one"
        )
    return best


def _linear(model: nn.Module, prefix: str) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(f"{prefix}.") and isinstance(module, nn.Linear)
    }


@contextmanager
def watching(
    modules: Mapping[str, nn.Module],
    see: Callable[[str, Tensor, Any], None],
    first: bool = False,
) -> Iterator[None]:
    """Call ``see`` with name, input and result of modules within the context.

    ``first``: with what comes before other hooks, and without the result (None).
    """
    handles = []
    for name, module in modules.items():
        if first:

            def before(_: nn.Module, given: Any, name: str = name) -> None:
                see(name, given[0], None)

            handles.append(module.register_forward_pre_hook(before, prepend=True))
        else:

            def after(_: nn.Module, given: Any, result: Any, name: str = name) -> None:
                see(name, given[0], result)

            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits of tokens [n, length], float32."""
    output = model(tokens.to(next(model.parameters()).device))
    found: Tensor = getattr(output, "logits", output)
    return found.float()


def observe(model: nn.Module, tokens: Tensor) -> Structure:
    """Let a model read tokens [n, length], and return what was seen.

    Raises
    ------
    InputError
        It has no blocks, no embedding, or not one norm behind the blocks.
    """
    place, _ = find_blocks(model)
    linear = _linear(model, place)
    norms = {
        name: module
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None
    }
    embeddings = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # alive, so that no other tensor gets the same identity
    read: dict[str, int] = {}
    widths: dict[str, int] = {}

    def see_norm(name: str, _: Tensor, result: Any) -> None:
        kept.append(result)
        made[id(result)] = name
        widths[name] = result.shape[-1]

    def see_linear(name: str, given: Tensor, _: Any) -> None:
        kept.append(given)
        read[name] = id(given)

    with watching(norms, see_norm), watching(linear, see_linear, first=True):
        logits(model, tokens)
    width = next((e.embedding_dim for e in embeddings.values()), 0)
    fitting = [name for name, e in embeddings.items() if e.embedding_dim == width]
    behind = [n for n in norms if widths.get(n) == width and not n.startswith(f"{place}.")]
    if len(fitting) != 1 or len(behind) != 1:
        raise InputError(
            f"{type(model).__name__} has {len(fitting)} embeddings of its width and {len(behind)} "
            "norms behind its blocks; the steps know models with one of each"
        )
    found: dict[str, Norm] = {}
    for name, source in read.items():
        norm = made.get(source)
        if norm is not None and norm.startswith(f"{place}.") and widths[norm] == width:
            found.setdefault(norm, Norm(norm, norms[norm])).readers.append(name)
    readers = {reader for norm in found.values() for reader in norm.readers}
    writers = [n for n, m in linear.items() if n not in readers and m.out_features == width]
    return Structure(width, fitting[0], list(found.values()), behind[0], writers)


def heads_of(model: nn.Module, structure: Structure) -> Iterator[tuple[str, str, int]]:
    """Yield the layers that make values and read them again, with the width of a head.

    They are known by the names of Llama's: ``v_proj`` and ``o_proj`` beside each other.
    """
    config: Any = getattr(model, "config", None)
    for writer in structure.writers:
        parent, _, own = writer.rpartition(".")
        if own != "o_proj" or f"{parent}.v_proj" not in dict(model.named_modules()):
            continue
        attention: Any = model.get_submodule(parent)
        values: Any = model.get_submodule(f"{parent}.v_proj")
        output: Any = model.get_submodule(writer)
        heads = getattr(attention, "heads", getattr(config, "num_attention_heads", None))
        width = getattr(attention, "head_dim", None) or (heads and output.in_features // heads)
        if width and output.in_features % width == 0 and values.out_features % width == 0:
            yield f"{parent}.v_proj", writer, int(width)
