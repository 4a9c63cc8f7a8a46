"""Rotations that a model computes: Hadamard blocks in front of layers, and of the residual stream.

They are hooks, so that layers keep their names and a packed model's file says no more than where
they are. What a layer reads is rotated in front of its quantizer, as the hardware's
``hadamard_quantizer`` has it, with the hardware's own arithmetic where the layer has that. The
residual stream is rotated behind the embedding, and back in front of the last norm, so the
embedding and the layer that makes the logits, one tensor in many models, stay as they are.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from m2xfp.errors import InputError
from m2xfp.golden.formats.numeric import round_once, widen
from m2xfp.golden.formats.rotation import Rotation, hadamard, rotate_blocks

__all__ = [
    "POINTS",
    "InputRotation",
    "StreamRotation",
    "input_rotations",
    "online_block",
    "rotate_input",
    "rotate_stream",
    "stream_rotation",
]

POINTS = (32, 64, 128)
"""Points of the hardware's transform."""


def online_block(width: int) -> int:
    """Return the points of the transforms in front of a layer that reads ``width`` values.

    The most that the hardware has and that divide the width.

    Raises
    ------
    InputError
        None divides it.
    """
    fitting = [points for points in POINTS if width % points == 0]
    if not fitting:
        raise InputError(
            f"{width} values are no multiple of {POINTS[0]}: the hardware transforms "
            f"{', '.join(map(str, POINTS))} at a time"
        )
    return fitting[-1]


@dataclass(frozen=True)
class InputRotation:
    """The rotation of what a layer reads: x -> x diag(s) H 2^-h in blocks, s random signs.

    h is half of log2 of the block, rounded up, as in ``golden.rotate_blocks``: of 64 points the
    rotation is orthogonal, of 32 and 128 it is 1 / sqrt(2) of that, and the weight has the rest.

    Members
    -------
    width, block
        Values that the layer reads, and points of a transform.
    seed
        Of the signs.
    """

    width: int
    block: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse blocks that the hardware does not have, or that do not divide the width."""
        if self.block not in POINTS or self.width < 1 or self.width % self.block:
            raise InputError(
                f"block={self.block} of {self.width} values; the hardware transforms "
                f"{', '.join(map(str, POINTS))} values, which must divide the width"
            )

    @property
    def _shift(self) -> int:
        return self.block.bit_length() // 2

    @property
    def _rotation(self) -> Rotation:
        return _made(self.width, self.block, self.seed)

    @property
    def product_factor(self) -> float:
        """What a product of two rotated inputs is multiplied by to be that of the inputs: 1 or 2.

        A power of two, so nothing is rounded.
        """
        return 2.0 ** (2 * self._shift) / self.block

    def values(self, x: Tensor) -> Tensor:
        """Return x [..., width] rotated, by a product in float32, in the type of x."""
        matrix = hadamard(self.block).to(x.device, torch.float32) * 2.0**-self._shift
        signed = x.float() * self._rotation.signs.to(x.device, torch.float32)
        return (signed.unflatten(-1, (-1, self.block)) @ matrix).flatten(-2).to(x.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        """Return a weight [out, width] for rotated inputs, so that the product stays."""
        factor = 2.0**self._shift / math.sqrt(self.block)
        return round_once(self._rotation(widen(weight)) * factor, weight.dtype)

    def unrotated(self, weight: Tensor) -> Tensor:
        """Return the weight [out, width] of which ``weight`` makes this one, up to rounding."""
        factor = math.sqrt(self.block) * 2.0**-self._shift
        return round_once(self._rotation.inverse(widen(weight)) * factor, weight.dtype)

    def as_hardware(self, x: Tensor) -> Tensor:
        """Return what the hardware makes of x, which it reads as bfloat16; in the type of x."""
        blocks = x.to(torch.bfloat16).unflatten(-1, (-1, self.block))
        flips = (self._rotation.signs < 0).view(-1, self.block).to(x.device)
        return rotate_blocks(blocks, flips, shift=self._shift).flatten(-2).to(x.dtype)

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Rotate what a layer is about to read: the hook in front of it."""
        how = getattr(module, "arithmetic", None)
        rotate = self.as_hardware if how is not None and how.hardware else self.values
        return rotate(given[0]), *given[1:]


@cache
def _made(width: int, block: int, seed: int) -> Rotation:
    return Rotation(width, block, seed)


def rotate_input(layer: nn.Module, rotation: InputRotation) -> Any:
    """Rotate what a layer reads from now on, and return the hook; its weight is left alone."""
    return layer.register_forward_pre_hook(rotation)


def input_rotations(model: nn.Module) -> dict[str, InputRotation]:
    """Return the rotations in front of layers, by the names of these."""
    return {
        name: hook
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, InputRotation)
    }


@dataclass(frozen=True)
class StreamRotation:
    """An orthogonal matrix R = diag(s) (C x H) / sqrt(width) for the residual stream.

    H is Sylvester's Hadamard matrix of the largest power of two that divides the width, C Hartley's
    matrix cos + sin of the odd rest, so every width is mixed whole: no entry is larger than
    sqrt(2 / width).

    Members
    -------
    width
        Values of the stream.
    seed
        Of the signs s.
    embedding, norm
        Names of the modules behind and in front of which it is: the stream's begin and end.
    """

    width: int
    seed: int
    embedding: str
    norm: str

    def __post_init__(self) -> None:
        """Refuse a width that is none."""
        if not 1 <= self.width < 1 << 20:
            raise InputError(f"width={self.width}; a stream has at least one value, below 2^20")

    @property
    def matrix(self) -> Tensor:
        """R, float64 [width, width]."""
        return _stream(self.width, self.seed)

    def weight_of_reader(self, weight: Tensor) -> Tensor:
        """Return a weight [out, width] of a layer that reads the rotated stream."""
        return _product(weight, self.matrix)

    def weight_of_writer(self, weight: Tensor) -> Tensor:
        """Return a weight [width, in], or a bias [width], of a layer that adds to the stream."""
        return _product(weight.T, self.matrix).T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Return x R."""
        return (x.float() @ self.matrix.to(x.device, torch.float32)).to(x.dtype)

    def back(self, x: Tensor) -> Tensor:
        """Return x R^T."""
        return (x.float() @ self.matrix.T.to(x.device, torch.float32)).to(x.dtype)


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    return (x.double() @ matrix.to(x.device)).to(x.dtype)


@cache
def _stream(width: int, seed: int) -> Tensor:
    even = width & -width
    odd = width // even
    signs = Rotation(width, 1, seed).signs
    angle = torch.arange(odd, dtype=torch.float64) * (2 * math.pi / odd)
    # Whole multiples of the angle, so that every device has the same numbers.
    index = torch.arange(odd)
    turns = angle[(index[:, None] * index) % odd]
    mixed = torch.kron(turns.cos() + turns.sin(), hadamard(even))
    return signs[:, None] * mixed / math.sqrt(width)


@dataclass(frozen=True)
class _Begin:
    """The hook behind the embedding."""

    rotation: StreamRotation

    def __call__(self, module: nn.Module, given: tuple[Any, ...], result: Tensor) -> Tensor:
        return self.rotation.forward(result)


@dataclass(frozen=True)
class _End:
    """The hook in front of the last norm."""

    rotation: StreamRotation

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.rotation.back(given[0]), *given[1:]


def rotate_stream(model: nn.Module, rotation: StreamRotation) -> None:
    """Rotate the residual stream between embedding and last norm; no weight is changed."""
    model.get_submodule(rotation.embedding).register_forward_hook(_Begin(rotation))
    model.get_submodule(rotation.norm).register_forward_pre_hook(_End(rotation))


def stream_rotation(model: nn.Module) -> StreamRotation | None:
    """Return how the residual stream of a model is rotated, if it is."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _End):
                return hook.rotation
    return None
