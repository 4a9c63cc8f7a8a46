"""What a checkpoint's model is made of, without its weights."""

import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from m2xfp.errors import InputError
from m2xfp.models.checkpoints import model_outline
from m2xfp.models.exchange.names import Names, Place
from m2xfp.models.exchange.record import Layout
from m2xfp.models.layers import (
    Coverage,
    Weight,
    find_layers,
    head_layers,
    is_plain_linear,
    is_transposed_linear,
    listed,
    multiplied_weights,
)

__all__ = ["Skeleton"]


class Skeleton:
    """A model on the meta device, and what shall become of its weights.

    Parameters
    ----------
    folder
        Its checkpoint.
    config
        What config.json says.
    skip
        Layers to leave plain: names or patterns. The layer that makes the logits is one of them.

    Members
    -------
    wanted
        Names of the parameters to quantize.
    skipped
        Names of those that ``skip`` names; the head is not among them, so that it stays quantized
        where it is.
    dtype
        Type that quantized weights of the checkpoint decode to.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], skip: Sequence[str]) -> None:
        self._folder = folder
        self._model = model_outline(folder)
        heads = head_layers(self._model)
        found = find_layers(self._model, (*skip, *heads))
        self.wanted = {weight.name for weight in found.quantized}
        self.skipped = {
            weight.name
            for weight in found.skipped
            if any(fnmatchcase(weight.layer, pattern) for pattern in skip)
        }
        self._left = [*skip, *heads]
        self._weights = {w.name: w for w in multiplied_weights(self._model)}
        told = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        self.dtype = getattr(torch, str(told), torch.bfloat16)
        self._names = Names(self._model)
        self._state = self._model.state_dict()

    def place(self, name: str) -> Place:
        """Return where a tensor of the checkpoint stands in the model."""
        return self._names.place(name)

    def dim(self, name: str) -> int | None:
        """Return the dimension that products with a parameter sum over."""
        weight = self._weights.get(name)
        return None if weight is None else weight.dim

    def layer(self, name: str) -> str:
        """Return the layer of a parameter."""
        return self._weights[name].layer

    def is_replaced(self, name: str) -> bool:
        """Whether a weight's layer becomes a ``QuantLinear``; others keep code of their own."""
        module = self._module(name)
        return is_plain_linear(module) or is_transposed_linear(module)

    def _module(self, name: str) -> nn.Module:
        weight = self._weights[name]
        if isinstance(weight.module, nn.MultiheadAttention):
            raise InputError(
                f"{name} is of a MultiheadAttention; load the model and save it packed"
            )
        return weight.module

    def holds(self, layout: Layout, name: str, one: bool) -> bool:
        """Whether a layout has weights such as this one.

        ``one`` says that an expert stands by itself. InputError for a weight that it should hold
        and cannot: one that has the other order of dimensions, or experts in one tensor.
        """
        stacked = len(self._state[name].shape) == 3 and not one
        if layout.stacked:
            return stacked
        module = self._module(name)
        if not one and (stacked or not isinstance(module, nn.Linear)):
            kind = "experts in one tensor" if stacked else f"a {type(module).__name__}, [in, out]"
            raise InputError(
                f"{name} is {kind}, and {layout.name} holds linear layers, [out, in]; leave it "
                f"plain (--skip '{self.layer(name)}'), or choose another target"
            )
        return True

    def check_complete(self, parameters: Iterable[str]) -> None:
        """Refuse a checkpoint whose tensors are not those of the model."""
        given = set(parameters)
        aliases = self.aliases(given)
        missing = [name for name in self._state if name not in given and name not in aliases]
        ignored = tuple(getattr(self._model, "_keys_to_ignore_on_load_unexpected", None) or ())
        unknown = [name for name in sorted(given) if name not in self._state]
        if missing or unknown:
            told = [f"missing: {listed(missing)}"] * bool(missing)
            told += [f"unexpected: {listed(unknown)}"] * bool(unknown)
            hint = f" (transformers leaves out {listed(ignored)})" if ignored and unknown else ""
            raise InputError(
                f"{os.fspath(self._folder)!r} has not the tensors of its model: "
                f"{'; '.join(told)}{hint}. Repair the checkpoint"
            )

    def aliases(self, produced: Iterable[str]) -> dict[str, str]:
        """Return parameters that are another name of one that is there, by name."""
        there = set(produced)
        same: dict[int, list[str]] = {}
        for name, value in self._model.named_parameters(remove_duplicate=False):
            same.setdefault(id(value), []).append(name)
        found = {}
        for names in same.values():
            stored = [name for name in names if name in there]
            if stored:
                found.update({name: stored[0] for name in names if name not in there})
        return found

    def plain_layers(self, quantized: set[str]) -> list[str]:
        """Return the linear layers whose weights are not among ``quantized``."""
        return [
            name
            for name, module in self._model.named_modules()
            if isinstance(module, nn.Linear) and f"{name}.weight" not in quantized
        ]

    def coverage(self, quantized: set[str]) -> Coverage:
        """Return what share of the weights that multiply is among ``quantized``."""
        skipped: dict[str, int] = {}
        left: dict[str, int] = {}
        done = total = 0
        for name, weight in self._weights.items():
            values = weight.value.numel()
            total += values
            if name in quantized:
                done += values
            else:
                (skipped if self._is_skipped(weight) else left)[name] = values
        return Coverage(total, done, skipped, left)

    def _is_skipped(self, weight: Weight) -> bool:
        return any(fnmatchcase(weight.layer, pattern) for pattern in self._left)
