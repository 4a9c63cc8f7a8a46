"""Rotation as a step: Hadamard matrices fused into weights, and in front of layers where needed.

``fused`` is QuaRot's scheme (Ashkboos et al., arXiv 2404.00456). The factors of the norms go into
the layers that read them; the residual stream is rotated whole, which costs nothing in the blocks;
the values of each attention head are rotated by ``v_proj`` and back by ``o_proj``; and what
``down_proj`` reads, behind a product that no rotation passes, is rotated in front of its quantizer.
``online`` has a rotation in front of every layer instead, and no weight moves to another layer, so
it serves any model. Either way queries and keys are rotated before they are quantized, where the
cache is (``QuantAttention``).
"""

import math

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError
from m2xfp.golden.formats.rotation import Rotation
from m2xfp.models.layers import listed
from m2xfp.models.recipes.structure import Structure, heads_of, logits, observe
from m2xfp.models.rotations import (
    InputRotation,
    StreamRotation,
    input_rotations,
    online_block,
    rotate_input,
    rotate_stream,
    stream_rotation,
)

__all__ = ["rotate_fused", "rotate_online"]

_CLOSE = 2e-3
"""The largest change of a logit that is rounding, against the largest logit."""


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


@torch.no_grad()
def rotate_online(model: nn.Module, names: list[str], seed: int) -> None:
    """Rotate what layers read in front of them, and their weights with it, in place.

    Parameters
    ----------
    model
        Any model.
    names
        Names of its linear layers; one that is rotated so already is left alone.
    seed
        Of the signs. Layers that read as many values have the same signs.

    Raises
    ------
    InputError
        A layer reads values that are no multiple of 32; nothing is rotated then.
    """
    done = input_rotations(model)
    rotations, misfits = {}, []
    for name in names:
        width = _weight(model, name).shape[1]
        try:
            rotations[name] = InputRotation(width, online_block(width), seed)
        except InputError:
            misfits.append(f"{name} ({width} values)")
    if misfits:
        raise InputError(
            f"rotate: {listed(misfits)} cannot be rotated in front: the hardware transforms 32, "
            "64 or 128 values, which must divide those that a layer reads; leave them out (--skip)"
        )
    for name, rotation in rotations.items():
        if name not in done:
            weight = _weight(model, name)
            weight.copy_(rotation.weight(weight))
            rotate_input(model.get_submodule(name), rotation)


@torch.no_grad()
def rotate_fused(model: nn.Module, tokens: Tensor, names: list[str], seed: int) -> None:
    """Rotate the residual stream, attention heads, and what remains in front of layers; in place.

    Parameters
    ----------
    model
        With RMS norms in front of its layers; computed with in float32.
    tokens
        [n, length], on which the model must give the logits that it gave before.
    names
        Linear layers that will be quantized: of those that write to the stream, these are rotated
        in front.
    seed
        Of all signs.

    Raises
    ------
    InputError
        A model of another structure: other norms, norms behind layers, a second rotation, layers
        that read the stream and are not known. What was rotated by then stays so.
    """
    if stream_rotation(model) is not None:
        raise InputError("rotate: the residual stream is rotated already; give the step once")
    before = logits(model, tokens)
    structure = observe(model, tokens)
    gains = [norm.gain() for norm in structure.norms]  # all are known before one is changed
    rotation = StreamRotation(structure.width, seed, structure.embedding, structure.last)
    for norm, gain in zip(structure.norms, gains, strict=True):
        norm.set_gain(torch.ones_like(gain))
        for name in norm.readers:
            weight = _weight(model, name)
            folded = weight.double() * gain
            weight.copy_(rotation.weight_of_reader(folded))
    for name in structure.writers:
        layer = model.get_submodule(name)
        weight = _weight(model, name)
        weight.copy_(rotation.weight_of_writer(weight.double()))
        if isinstance(bias := getattr(layer, "bias", None), Tensor):
            bias.copy_(rotation.weight_of_writer(bias.double()))
    rotate_stream(model, rotation)
    heads = _rotate_heads(model, structure, seed)
    left = [name for name in structure.writers if name in names and name not in heads]
    rotate_online(model, left, seed)
    after = logits(model, tokens)
    change = float((after - before).abs().max() / before.abs().max().clamp(min=1e-30))
    if not change < _CLOSE:
        raise InputError(
            f"rotate: the rotated {type(model).__name__} gives other logits (by {change:.2g} of "
            "the largest), so it is of a structure that this step does not know, such as norms "
            "behind layers; take rotate:mode=online"
        )


def _rotate_heads(model: nn.Module, structure: Structure, seed: int) -> set[str]:
    """Rotate the values of attention heads; return the layers that read them."""
    done = set()
    for values, reader, width in heads_of(model, structure):
        block = width & -width
        rotation = Rotation(width, block, seed)
        if block < math.sqrt(width):  # next to nothing would be mixed
            continue
        layer = model.get_submodule(values)
        weight = _weight(model, values)
        by_head = weight.double().T.unflatten(-1, (-1, width))
        weight.copy_(rotation(by_head).flatten(-2).T)
        if isinstance(bias := getattr(layer, "bias", None), Tensor):
            bias.copy_(rotation(bias.double().unflatten(-1, (-1, width))).flatten(-2))
        weight = _weight(model, reader)
        weight.copy_(rotation(weight.double().unflatten(-1, (-1, width))).flatten(-2))
        done.add(reader)
    return done
