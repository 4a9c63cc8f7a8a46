"""What the linear layers of the bundled model read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from m2xfp.models.lm import LanguageModel

__all__ = ["READERS", "layer_inputs"]

# What the linear layers of a block read; queries, keys and values read one tensor, gate and up too.
READERS = {
    "q_proj": "attention input",
    "o_proj": "attention output",
    "gate_proj": "feed-forward input",
    "down_proj": "feed-forward hidden",
}


def layer_inputs(model: LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """Return what the linear layers read while the model reads tokens [n, context].

    Returns
    -------
    Tensors [n * context, width] of the model's type, by the name of the first layer that reads
    each.
    """
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = inputs[0].flatten(0, -2)

        return record

    handles = [
        layer.register_forward_pre_hook(hook(name))
        for name, layer in model.named_modules()
        if name.rpartition(".")[2] in READERS
    ]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return found
