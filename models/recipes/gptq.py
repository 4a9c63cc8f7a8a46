"""Weights quantized so that later columns make up for the errors of earlier ones (GPTQ).

What counts is the layer's output, ||X (Q - W)^T||^2 over the calibration text, with H = X^T X its
Hessian. Groups of columns are quantized one after the other; what an optimal choice of all later
columns would make up for is added to them at once, by the Cholesky factor U of H^-1 = U^T U:

    W[:, later] -= (W[:, group] - Q[:, group]) U[group, group]^-1 U[group, later]

Within a group the format's own search chooses the shared scale and the metadata, for the weights as
they are by then. The elements are rounded column by column, each making up for those before it,
where a format's values are an element times a scale of its place (all but Elem-EM, asymmetric and
zero-point formats, which are rounded as a group). The scales of several searches, on the same
weights a little smaller and larger, are tried, and every row keeps the one that leaves the least.
The bytes are those of the format, for any of it: no decoder sees the difference.

Source: GPTQ, Frantar et al., arXiv 2210.17323, section 3; the target for quantized inputs is that
of GPTAQ, arXiv 2504.02692, in closed form.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.golden.formats.coder import ScaledCoder
from m2xfp.golden.formats.elements import decode, encode
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.metadata import ElementMantissa
from m2xfp.golden.formats.numeric import pack_bits, unpack_bits
from m2xfp.golden.formats.packed import PackedTensor

__all__ = ["Moments", "compensated", "corrected_weight", "objective"]


@dataclass
class Moments:
    """Sums over a calibration text of what a layer reads.

    Members
    -------
    hessian
        X^T X, float64 [in, in], of the inputs that the quantized layer reads.
    cross
        (X0 - X)^T X for the inputs X0 of the layer in the model as it was; None for the same.
    rows
        Inputs that were added.
    """

    hessian: Tensor
    cross: Tensor | None = None
    rows: int = 0

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> "Moments":
        """Return sums of nothing."""
        nothing = torch.zeros(width, width, dtype=torch.float64, device=device)
        return cls(nothing, nothing.clone())

    def add(self, x: Tensor, original: Tensor | None = None) -> None:
        """Add inputs [..., in], and those of the model as it was."""
        x = x.detach().flatten(0, -2).float()
        # Products of float32 in a thousand rows at a time, their sums in float64.
        for start in range(0, len(x), 1024):
            part = x[start : start + 1024]
            self.hessian += (part.T @ part).double()
            if original is not None and self.cross is not None:
                given = original.detach().flatten(0, -2)[start : start + 1024].float()
                self.cross += ((given - part).T @ part).double()
        self.rows += len(x)


def _damped(hessian: Tensor, damping: float) -> Tensor:
    """Return the Hessian with a share of its mean diagonal added to the diagonal."""
    mean = hessian.diagonal().mean()
    level = damping * mean + (mean == 0)  # of inputs that are all zero every weight is as good
    return hessian + torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device) * level


def _inverse(hessian: Tensor, name: str) -> Tensor:
    """Return the inverse of a positive definite matrix.

    InputError, with the name of the layer, for one that is none.
    """
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed) or not bool(factor.isfinite().all()):
        raise InputError(
            f"{name}: the Hessian of its inputs is singular; give a larger damping, such as 0.01, "
            "or a longer calibration text"
        )
    return torch.cholesky_inverse(factor)


def corrected_weight(weight: Tensor, moments: Moments, damping: float, name: str) -> Tensor:
    """Return the weight that, without rounding, gives the outputs of the model as it was.

    Its inputs differ, since they are quantized, and so do those of the layers before it:
    W + W C (H + damping)^-1 minimises ||X W'^T - X0 W^T||^2.

    Parameters
    ----------
    weight
        [out, in]; computed with in float64.
    moments
        Of the inputs.
    damping, name
        As for ``compensated``.
    """
    if moments.cross is None:
        return weight
    inverse = _inverse(_damped(moments.hessian, damping), name)
    return weight + weight @ moments.cross @ inverse


def objective(weight: Tensor, target: Tensor, hessian: Tensor) -> float:
    """Return ||X (weight - target)^T||^2 for H = X^T X."""
    error = (weight - target).double()
    return float((error @ hessian.double() * error).sum())


def compensated(
    weight: Tensor,
    moments: Moments,
    fmt: Format,
    damping: float = 0.01,
    order: bool = True,
    shrink: Sequence[float] = (1.0,),
    name: str = "weight",
) -> PackedTensor:
    """Quantize a weight, later groups of columns making up for the errors of earlier ones.

    Parameters
    ----------
    weight
        float32, bfloat16 or float16 [out, in].
    moments
        Of what the layer reads.
    fmt
        Any format; ``tensor_scale=auto`` is that of the whole weight.
    damping
        Share of the mean diagonal of H that is added to its diagonal.
    order
        Take groups in the order of falling mean diagonal of H, not from left to right.
    shrink
        Factors on the weights that the format's search sees, each tried.
    name
        Of the layer, for messages.

    Raises
    ------
    InputError
        H is singular, or a format that takes the scale of each row.
    """
    if fmt.level == "token":
        raise InputError(
            f"{name}: {fmt.name} with tensor_scale=token; weights that are quantized group by "
            "group have one for all rows, tensor_scale=auto, a number, or none"
        )
    target = corrected_weight(weight.double(), moments, damping, name)
    hessian = _damped(moments.hessian, damping)
    group, count = fmt.block.group, -(-weight.shape[1] // fmt.block.group)
    columns = torch.arange(weight.shape[1], device=weight.device).split(group)
    ranks = torch.arange(count)
    if order:
        loads = [float(hessian.diagonal()[own].mean()) for own in columns]
        ranks = torch.tensor(loads, dtype=torch.float64).argsort(descending=True, stable=True)
    sequence = torch.cat([columns[int(rank)] for rank in ranks])
    inverse = _inverse(hessian[sequence][:, sequence], name)
    upper = torch.linalg.cholesky(inverse, upper=True)
    level = fmt.quantize(target.to(weight.dtype)).tensor_scale if fmt.level == "auto" else None
    one = (
        fmt
        if level is None
        else get_format(fmt.name, **{**dict(fmt.options), "tensor_scale": float(level)})
    )
    rest, start = target[:, sequence], 0
    parts: dict[int, PackedTensor] = {}
    for rank in ranks.tolist():
        stop = start + len(columns[rank])
        own, here = rest[:, start:stop], upper[start:stop, start:stop]
        parts[rank], error = _best(own, here, one, shrink, weight.dtype)
        rest[:, stop:] -= error @ upper[start:stop, stop:]
        start = stop
    return _joined(fmt, [parts[rank] for rank in range(count)], weight.shape, level)


def _joined(
    fmt: Format, whole: Sequence[PackedTensor], shape: torch.Size, level: Tensor | None
) -> PackedTensor:
    """Return groups side by side as one packed tensor."""
    planes = {n: torch.cat([_planes(part)[n] for part in whole], -1) for n in _planes(whole[0])}
    level = whole[0].tensor_scale if level is None else level
    return PackedTensor(fmt, planes["codes"], planes["scales"], planes.get("meta"), shape, level)


def _best(
    own: Tensor, here: Tensor, fmt: Format, shrink: Sequence[float], dtype: torch.dtype
) -> tuple[PackedTensor, Tensor]:
    """Quantize one group of columns; return it, and (W - Q) U^-1 for the columns behind it."""
    tries = _stacked([fmt.quantize((own * factor).to(dtype)) for factor in shrink])
    packed, errors = _by_columns(own.repeat(len(shrink), 1), here, tries)
    if len(shrink) == 1:
        return packed, errors
    count = len(own)
    losses = errors.square().sum(-1).nan_to_num(torch.inf).view(-1, count)
    rows = losses.argmin(0) * count + torch.arange(count, device=own.device)
    planes: dict[str, Any] = {name: plane[rows] for name, plane in _planes(packed).items()}
    return replace(packed, shape=torch.Size(own.shape), **planes), errors[rows]


def _planes(packed: PackedTensor) -> dict[str, Tensor]:
    """Return the planes that have a row for each row of the tensor."""
    return {name: plane for name, plane in packed.planes().items() if name != "tensor_scale"}


def _stacked(tries: Sequence[PackedTensor]) -> PackedTensor:
    """Return the rows of packed tensors of one format below each other."""
    first = tries[0]
    shape = torch.Size((len(tries) * first.shape[0], first.shape[1]))
    planes: dict[str, Any] = {
        name: torch.cat([_planes(one)[name] for one in tries]) for name in _planes(first)
    }
    return replace(first, shape=shape, **planes)


def _by_columns(own: Tensor, here: Tensor, packed: PackedTensor) -> tuple[PackedTensor, Tensor]:
    """Round the elements of a group column by column under the scales that were found for it.

    Returns
    -------
    The group, and (W - Q) U^-1, whose squares are what the group adds to the objective.
    """
    steps = _steps(packed)
    if steps is None:
        error = own - packed.dequantize(torch.float32).double()
        return packed, torch.linalg.solve_triangular(here, error, upper=True, left=False)
    element = packed.format.block.element
    codes, values, bounds = _table(packed.format, own.device)
    rest, error = own.clone(), torch.zeros_like(own)
    found = unpack_bits(packed.codes, element.bits, packed.format.block.group)
    divisors = torch.where(steps > 0, steps, torch.inf)
    for column in range(own.shape[1]):
        value = rest[:, column]
        place = torch.bucketize(value / divisors[:, column], bounds)
        found[:, column] = codes[place]
        error[:, column] = (value - values[place] * steps[:, column]) / here[column, column]
        rest[:, column + 1 :].addr_(error[:, column], here[column, column + 1 :], alpha=-1)
    return replace(packed, codes=pack_bits(found, element.bits)), error


@cache
def _table(fmt: Format, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes of elements by rising value, their values, and the bounds between them.

    A value on a bound belongs to the lower code. Bounds are where the format's own rounding has
    them, ties included.
    """
    element, coder = fmt.block.element, fmt.coder
    assert isinstance(coder, ScaledCoder)
    codes = torch.arange(1 << element.bits)
    values = decode(codes, element)
    made = values.isfinite() & (encode(values.nan_to_num(), element) == codes)
    codes, values = codes[made], values[made]
    ends = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    # Of equal values, which are zeros, the first is the one that a small negative number gets.
    key = torch.where(torch.signbit(values) & (values == 0), -(2.0**-60), values)
    order = key.argsort(stable=True)
    codes, values = codes[order], values[order]
    middles = (values[1:] + values[:-1]) / 2
    upper = encode(middles, element, coder.refinement.ties) == codes[1:]
    bounds = torch.where(upper, torch.nextafter(middles, ends[0]), middles)
    return codes.to(device), values.to(device), bounds.to(device)


def _steps(packed: PackedTensor) -> Tensor | None:
    """Return the scale of every place, float64 [out, group]; None where a place has none."""
    fmt, coder = packed.format, packed.format.coder
    if not isinstance(coder, ScaledCoder) or coder.split:
        return None
    if isinstance(coder.refinement, ElementMantissa):
        return None
    element = fmt.block.element
    values = decode(torch.arange(1 << element.bits, device=packed.device), element)
    largest = int(values.nan_to_num(0.0, 0.0, 0.0).argmax())
    whole = torch.full(
        (*packed.shape[:-1], fmt.block.group), largest, dtype=torch.int64, device=packed.device
    )
    filled = replace(packed, codes=pack_bits(whole, element.bits))
    return filled.dequantize(torch.float64) / values[largest]
