"""GPTQ through a whole model: block by block, each layer on what the quantized ones before give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError
from m2xfp.golden.formats.format import Format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.inputs import InputQuantizer
from m2xfp.models.layers import is_plain_linear
from m2xfp.models.linear import QuantLinear
from m2xfp.models.quantized import replace_module
from m2xfp.models.recipes.gptq import Moments, compensated
from m2xfp.models.recipes.recipe import Gptq
from m2xfp.models.recipes.structure import find_blocks, logits, watching
from m2xfp.progress import track

__all__ = ["quantize_blocks"]


_BATCH = 8
"""Windows a pass."""


class _StopError(Exception):
    """Ends a pass as soon as the first block is reached."""


@dataclass
class _Call:
    """What a block is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def of(self, block: nn.Module) -> Tensor:
        """Return what a block makes of it: the stream."""
        result = block(*self.args, **self.kwargs)
        found: Tensor = result[0] if isinstance(result, tuple) else result
        return found

    def after(self, stream: Tensor) -> _Call:
        """Return the call of the next block."""
        if self.args:
            return _Call((stream, *self.args[1:]), self.kwargs)
        return _Call((), {**self.kwargs, "hidden_states": stream})


def _calls(model: nn.Module, block: nn.Module, windows: Tensor) -> list[_Call]:
    """Return the calls of the first block, one for a few windows."""
    found: list[_Call] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A cache of keys and values would grow with each call.
        without = {"past_key_values": None, "past_key_value": None, "use_cache": False}
        found.append(_Call(args, {key: without.get(key, kwargs[key]) for key in kwargs}))
        raise _StopError

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for part in windows.split(_BATCH):
            try:
                logits(model, part)
            except _StopError:
                continue
            raise InputError(f"{type(model).__name__} does not call its blocks one by one")
    finally:
        handle.remove()
    return found


def _stages(block: nn.Module, call: _Call, own: Mapping[str, nn.Module]) -> list[list[str]]:
    """Return layers in the order in which they run, those together that read one tensor."""
    stages: list[list[str]] = []
    last: list[Tensor] = []

    def see(name: str, given: Tensor, _: object) -> None:
        if last and last[-1] is given:
            stages[-1].append(name)
        else:
            stages.append([name])
        last.append(given)

    with watching(own, see, first=True):
        call.of(block)
    return stages


class _SeenError(Exception):
    """Ends a block as soon as a layer's input is known."""


def _read(block: nn.Module, name: str, call: _Call) -> Tensor:
    """Return what a layer of a block reads, behind any rotation in front of it."""
    found: list[Tensor] = []

    def stop(_: nn.Module, given: tuple[Any, ...]) -> None:
        found.append(given[0])
        raise _SeenError

    handle = block.get_submodule(name).register_forward_pre_hook(stop)
    try:
        call.of(block)
    except _SeenError:
        pass
    finally:
        handle.remove()
    return found[0]


@torch.no_grad()
def quantize_blocks(
    model: nn.Module,
    windows: Tensor,
    names: list[str],
    step: Gptq,
    weights: Format,
    inputs: InputQuantizer | None,
    arithmetic: Arithmetic,
    attention: Callable[[], AbstractContextManager[Any]],
    progress: bool = True,
) -> None:
    """Quantize the linear layers of a model's blocks, in place.

    A layer's Hessian is that of the inputs that it gets in the quantized model, quantized
    themselves; its target is what it gives in the model as it was.

    Parameters
    ----------
    model
        In float32.
    windows
        Calibration tokens [n, length].
    names
        Layers to quantize; those that are in no block are left alone.
    step, weights, inputs, arithmetic
        How.
    attention
        Makes the context that quantizes the attention, or an empty one.
    progress
        Show a bar over the blocks.

    Raises
    ------
    InputError
        The text has fewer tokens than a layer reads values, so that its Hessian is singular;
        or a Hessian is singular otherwise.
    """
    place, blocks = find_blocks(model)
    widest = max(
        (
            cast(nn.Linear, model.get_submodule(name)).in_features
            for name in names
            if name.startswith(f"{place}.")
        ),
        default=0,
    )
    if windows.numel() < widest:
        raise InputError(
            f"calibration: {windows.numel()} tokens, and a layer reads {widest} values; gptq needs "
            "at least as many tokens, better ten times: give more or longer windows"
        )
    calls = _calls(model, blocks[0], windows)
    originals = list(calls)
    for index, block in track(list(enumerate(blocks)), desc="gptq", quiet=not progress):
        prefix = f"{place}.{index}."
        own = {
            name.removeprefix(prefix): cast(nn.Linear, model.get_submodule(name))
            for name in names
            if name.startswith(prefix) and is_plain_linear(model.get_submodule(name))
        }
        before = deepcopy(block) if step.original else None
        for stage in _stages(block, calls[0], own) if own else []:
            moments = _moments(block, before, stage[0], calls, originals, inputs, attention)
            # Layers that read the same have one Hessian: their rows are those of one weight, but
            # where a tensor scale is that of each.
            parts = [[name] for name in stage] if weights.level == "auto" else [stage]
            for part in parts:
                layers = [own[name] for name in part]
                whole = torch.cat([layer.weight for layer in layers])
                packed = compensated(
                    whole,
                    moments,
                    weights,
                    step.damping,
                    step.order,
                    step.shrink,
                    prefix + part[0],
                )
                for layer, rows in zip(layers, _row_parts(packed, layers), strict=True):
                    new = QuantLinear(layer.weight, layer.bias, rows, inputs, arithmetic)
                    replace_module(model, layer, new)
        for at, call in enumerate(calls):
            with attention():
                calls[at] = call.after(call.of(block))
            originals[at] = originals[at].after(originals[at].of(before)) if before else calls[at]


def _row_parts(packed: PackedTensor, layers: list[nn.Linear]) -> Iterator[PackedTensor]:
    """Yield the rows of a packed weight that are each layer's."""
    start = 0
    for layer in layers:
        rows = slice(start, start + layer.out_features)
        planes: dict[str, Any] = {
            name: p[rows] if p.ndim else p for name, p in packed.planes().items()
        }
        yield replace(packed, shape=layer.weight.shape, **planes)
        start = rows.stop


def _moments(
    block: nn.Module,
    before: nn.Module | None,
    name: str,
    calls: list[_Call],
    originals: list[_Call],
    inputs: InputQuantizer | None,
    attention: Callable[[], AbstractContextManager[Any]],
) -> Moments:
    """Return the sums of what a layer reads in the block, and in the block as it was."""
    found: Moments | None = None
    for call, original in zip(calls, originals, strict=True):
        with attention():
            x = _read(block, name, call)
        given = x if before is None else _read(before, name, original)
        x = x if inputs is None else inputs.format.fake_quantize(x)
        if found is None:
            found = Moments.empty(x.shape[-1], x.device)
        found.add(x, given)
    assert found is not None
    return found
