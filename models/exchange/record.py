"""What a foreign layout is: one record of names, reading, writing and configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError, M2xfpError
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.numeric import round_once, widen
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.stacked import StackedTensor

__all__ = ["Layout", "Packed", "Quantized", "assembled"]

Planes = Mapping[str, Tensor]
Packed = PackedTensor | StackedTensor


@dataclass(frozen=True)
class Quantized:
    """A weight as read from a checkpoint.

    Members
    -------
    packed
        Its codes and scales, as they were.
    divisor
        Where the checkpoint holds the reciprocal G of a tensor scale: G, float32, a scalar or one
        for each part of a stack. The values are then codes * scales / G, and ``packed`` holds 1 / G
        rounded to float32.
    """

    packed: Packed
    divisor: Tensor | None = None

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values, each rounded once to ``dtype``.

        A quotient is first rounded to float64. That is never nearer to the middle of two float32
        than the quotient: codes * scales has 6 bits and G has 24, so a quotient that is no middle
        is at least 2^-49 of itself away from one, and float64 is off by 2^-53.
        """
        if self.divisor is None:
            return self.packed.dequantize(dtype)
        parts = self.packed.parts if isinstance(self.packed, StackedTensor) else (self.packed,)
        found = []
        for part, divisor in zip(parts, self.divisor.reshape(-1), strict=True):
            whole = PackedTensor(
                part.format, part.codes, part.scales, part.meta, part.shape, torch.ones(())
            )
            found.append(round_once(whole.dequantize(torch.float64) / widen(divisor), dtype))
        return torch.stack(found) if isinstance(self.packed, StackedTensor) else found[0]


@dataclass(frozen=True)
class Layout:
    """How one library lays out a quantized weight in a checkpoint.

    Members
    -------
    name
        What ``m2xfp convert --to`` takes.
    library
        Whose it is.
    format
        Key of the format that it holds.
    suffixes
        Name of a plane's tensor after the name of the weight: ``{"codes": "_packed", ...}``.
    read
        Makes a quantized weight of the tensors of one, by plane; errors name the plane.
    write
        Makes those tensors of a packed weight.
    settings
        The ``quantization_config`` of a model's configuration, from the layers left alone.
    accepts
        Whether a ``quantization_config`` is of this layout.
    stacked
        Whether a weight is three-dimensional, an expert after the other.
    dropped
        Suffixes of a layer's further tensors, such as scales of its inputs, that say nothing about
        its weight.
    prefix
        What stands before a weight's own name in those of its tensors.
    text
        What the header of a file says of a weight, or of a plain tensor (None), by the type that
        the weight decodes to; None for a layout whose files say nothing.
    """

    name: str
    library: str
    format: str
    suffixes: Mapping[str, str]
    read: Callable[[Planes], Quantized]
    write: Callable[[Packed], dict[str, Tensor]]
    settings: Callable[[Sequence[str]], dict[str, Any]]
    accepts: Callable[[Mapping[str, Any]], bool]
    stacked: bool = False
    dropped: tuple[str, ...] = ()
    prefix: str = ""
    text: Callable[[Packed | None, torch.dtype], str] | None = None

    @property
    def whole(self) -> Format:
        """The format."""
        return get_format(self.format)

    def tensor_name(self, weight: str, plane: str) -> str:
        """Return the name of a plane's tensor."""
        layer, dot, own = weight.rpartition(".")
        return f"{layer}{dot}{self.prefix}{own}{self.suffixes[plane]}"

    def weight_name(self, codes: str) -> str | None:
        """Return the weight that a tensor has the codes of, None if its name is another plane's."""
        suffix = self.suffixes["codes"]
        layer, dot, own = codes.rpartition(".")
        if not (own.startswith(self.prefix) and own.endswith(suffix)) or codes == suffix:
            return None
        return layer + dot + own[len(self.prefix) : len(own) - len(suffix)]

    def take(self, weight: str, planes: Planes) -> Quantized:
        """Return the weight of some planes; InputError that names the weight and its tensor."""
        required = [p for p in self.suffixes if p != "tensor_scale" or self.whole.level]
        for plane in required:
            if plane not in planes:
                raise InputError(
                    f"{weight}: {self.tensor_name(weight, plane)} is missing; {self.name} has it"
                )
        try:
            return self.read(planes)
        except (M2xfpError, TypeError, RuntimeError) as error:
            told = str(error)
            for plane in sorted(self.suffixes, key=len, reverse=True):
                if told.startswith(plane):
                    told = self.tensor_name(weight, plane) + told[len(plane) :]
                    break
            raise InputError(f"{weight} as {self.name}: {told}") from error

    def put(self, weight: str, packed: Packed) -> dict[str, Tensor]:
        """Return the tensors of a packed weight by name; InputError if the layout has none."""
        if packed.format.key != self.format:
            raise InputError(f"{weight} is {packed.format.key}; {self.name} holds {self.format}")
        if (len(packed.shape) == 3) != self.stacked:
            held = "experts, one after the other, [n, out, in]" if self.stacked else "[out, in]"
            raise InputError(
                f"{weight} has shape {list(packed.shape)}; {self.name} holds {held}. Leave it out "
                "(--skip), or choose another format"
            )
        if packed.shape[-1] % packed.format.block.group:
            raise InputError(
                f"{weight} has rows of {packed.shape[-1]} values, no multiple of "
                f"{packed.format.block.group}, which {self.name} needs; leave it out (--skip)"
            )
        try:
            planes = self.write(packed)
        except InputError as error:
            raise InputError(f"{weight} as {self.name}: {error}") from error
        return {self.tensor_name(weight, plane): tensor for plane, tensor in planes.items()}


def assembled(
    fmt: Format,
    codes: Tensor,
    scales: Tensor,
    tensor_scale: Tensor | None = None,
    divisor: Tensor | None = None,
) -> Quantized:
    """Return a weight of its planes, uint8, with the shape that the codes tell.

    Parameters
    ----------
    fmt
        The format.
    codes, scales
        [..., bytes].
    tensor_scale
        A scalar, [1], or one for each of the first dimension of a stack: [n] or [n, 1, 1].
    divisor
        Its reciprocal in place of it.

    Raises
    ------
    InputError, TypeError
        They do not fit, or are no scales; the message begins with the name of the plane.
    """
    width = codes.shape[-1] * 8 // fmt.block.element.bits if codes.ndim else 0
    shape = (*codes.shape[:-1], width)
    if codes.ndim < 2:
        raise InputError(f"codes has shape {tuple(codes.shape)}; a weight has two dimensions")
    if width % fmt.block.group:
        raise InputError(
            f"codes has shape {tuple(codes.shape)}: rows of {width} values are no multiple of "
            f"{fmt.block.group}"
        )
    planes = {"codes": codes, "scales": scales}
    given = divisor if divisor is not None else tensor_scale
    if given is None:
        return Quantized(PackedTensor.from_planes(fmt, planes, shape))
    given = _checked(given)
    level = given if divisor is None else round_once(1 / widen(given), torch.float32)
    if given.numel() == 1:
        planes["tensor_scale"] = level.reshape(())
        packed: Packed = PackedTensor.from_planes(fmt, planes, shape)
    else:
        if len(shape) != 3 or given.numel() != shape[0] or given.shape[0] != shape[0]:
            raise InputError(
                f"tensor_scale has shape {tuple(given.shape)}; it is a scalar, or one for each of "
                f"the first dimension of {tuple(shape)}"
            )
        planes["tensor_scale"] = level.reshape(-1, 1, 1)
        packed = StackedTensor.from_planes(fmt, planes, shape)
    return Quantized(packed, None if divisor is None else given)


def _checked(scale: Tensor) -> Tensor:
    """Return a tensor scale, or its reciprocal; InputError or TypeError if it can be none."""
    if scale.dtype != torch.float32:
        raise TypeError(f"tensor_scale is {scale.dtype}; it must be float32")
    if not scale.is_meta and not bool(((scale > 0) & scale.isfinite()).all()):
        bad = scale[~((scale > 0) & scale.isfinite())].flatten()[0].item()
        raise InputError(f"tensor_scale has the value {bad}; it must be positive and finite")
    return scale
