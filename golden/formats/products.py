"""Dot products and matrix products of packed tensors, with the accumulators of the hardware.

Within a group everything is exact: the elements, refined by their metadata, are small integers
times powers of two, and so is the sum of their products. What rounds is the accumulation.

- ``fp32``: after each group, in rising k, ``acc = RNE_fp32(acc + D * scales)``, one rounding of the
  exact sum.
- ``fp32_subgroup``: the same after each subgroup of the metadata, the PE tile of the paper.
- ``exact``: the exact sum over all of K, rounded once at the end.

A group with two scales (AMXFP4) has the sums of two classes of elements, those above zero and the
others, of which each has one scale with each class of the other side: with (sign of qa, sign of qw)
the terms of a group are pp, pn, np, nn where both sides have two scales, and p, n where one has.
``fp32`` adds them in this order, one rounding each.

Rules of all: a zero addend leaves acc unchanged, bit for bit (``exact``: an exact zero is +0); a
NaN scale on either side, or an element that is NaN or infinity, gives the quiet NaN 0x7FC00000;
overflow gives infinity, which stays until a NaN comes; subnormal results are kept; a non-zero sum
that rounds to zero keeps its sign.

Source: M2XFP, arXiv 2601.19213, section 5.4; the definition in docs/format.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.formats import ALL_EXPONENTS, E8M0, BlockFormat, FloatElement, Window
from m2xfp.golden.formats.coder import ScaledCoder
from m2xfp.golden.formats.format import Format, format_of
from m2xfp.golden.formats.numeric import (
    add_to_odd,
    exponent,
    joint_scale,
    power_of_two,
    round_once,
    round_product,
    widen,
)
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.wide_sums import split_sums
from m2xfp.golden.kernels.fused import refuse_forced
from m2xfp.golden.kernels.memory import explained
from m2xfp.golden.kernels.operators import Dims, define, each, in_front, shielded
from m2xfp.golden.kernels.products_fused import fast_inputs, fast_matmul, fast_rows

__all__ = [
    "ACCUMULATORS",
    "accumulate",
    "batched_matmul",
    "dot",
    "group_sums",
    "matmul",
    "packed_linear",
    "product_bias",
    "product_unit",
    "quantized_matmul",
    "running_exact",
    "running_exact_sum",
    "running_fp32",
    "running_fp32_sum",
]

ACCUMULATORS = ("fp32", "fp32_subgroup", "exact")
_QUIET_NAN = 0x7FC00000
_FLOAT64_BITS = 53
# The matrix product holds this many float64 partial sums at a time.
_CHUNK_SUMS = 1 << 22
# So many values of a packed weight are decoded at a time.
_CHUNK_WEIGHTS = 1 << 26


@dataclass(frozen=True)
class _Operand:
    """Rows of groups, ready to multiply.

    Members
    -------
    elements
        Refined elements, float64 [rows, G, group].
    scales
        float64 [rows, G, classes]: one scale a group, or one of elements above zero and another of
        the rest.
    fields
        int64 [rows, G, classes]: the stored scales.
    tensor_scale
        That of the whole tensor.
    """

    elements: Tensor
    scales: Tensor
    fields: Tensor
    tensor_scale: Tensor | None

    def rows(self, start: int, stop: int) -> "_Operand":
        """Return some rows."""
        here = slice(start, stop)
        return _Operand(
            self.elements[here], self.scales[here], self.fields[here], self.tensor_scale
        )

    @property
    def classes(self) -> int:
        """Scales a group."""
        return self.scales.shape[2]

    def of_class(self, number: int, where: Any = slice(None)) -> Tensor:
        """Return the elements of a class, zeros elsewhere; of the groups ``where`` alone."""
        elements = self.elements[:, where]
        if self.classes == 1:
            return elements
        return elements.masked_fill(torch.signbit(elements) != bool(number), 0.0)


def _operand_coder(packed: PackedTensor) -> ScaledCoder:
    """Return the coder of an operand; InputError if its values are no elements times scales."""
    coder = packed.format.coder
    if not isinstance(coder, ScaledCoder):
        raise InputError(
            f"{packed.format.name} has a zero point and no scale alone to multiply with; "
            "dequantize it and use torch.matmul"
        )
    return coder


def _operand(packed: PackedTensor) -> _Operand:
    """Decode a packed tensor to exact float64 elements and scales, rows flattened."""
    coder = _operand_coder(packed)
    codes, scales, fields = packed.unpack()
    groups = codes.shape[-2]
    rows = prod(codes.shape[:-2])
    elements = coder.refinement.decode(codes.flatten(0, -2), fields.flatten(0, -2))
    values = coder.scale.value(scales)
    elements, values = (part.masked_fill(part.isinf(), float("nan")) for part in (elements, values))
    return _Operand(
        elements.reshape(rows, groups, codes.shape[-1]),
        values.reshape(rows, groups, scales.shape[-1]),
        scales.reshape(rows, groups, scales.shape[-1]),
        packed.tensor_scale,
    )


def _scale_products(sa: Tensor, sw: Tensor, wide: bool) -> tuple[Tensor, ...]:
    """Return exact products of scales: one, or if ``wide`` two of which each is the sum.

    Those of two float32 numbers have 48 bits, which leaves too few of float64 for a group's sum.
    """
    if not wide:
        return (sa * sw,)
    upper = (sw.view(torch.int64) & ~((1 << 41) - 1)).view(torch.float64)  # 12 bits
    return sa * upper, sa * (sw - upper)


def _wide_scales(a: BlockFormat, w: BlockFormat) -> bool:
    return all(block.scale.bits == 32 for block in (a, w))


def _terms(a: _Operand, w: _Operand) -> list[tuple[int, int]]:
    """Return the classes of both sides whose products have a scale in common, in their order."""
    return [(one, other) for one in range(a.classes) for other in range(w.classes)]


def _check(qa: PackedTensor, qw: PackedTensor, accumulator: str) -> int:
    """Return the lanes of one addend; an error says why operands do not go together."""
    _check_operands(qa, qw, accumulator)
    return _lanes(qa.format.block, qw.format.block, accumulator)


def _lanes(a: BlockFormat, w: BlockFormat, accumulator: str) -> int:
    """Return the lanes of one addend; an error says why formats do not go together."""
    if accumulator != "fp32_subgroup":
        return a.group if _fits(a, w, accumulator) else 1
    for block in (a, w):
        if block.scaling == "split":
            raise InputError(
                f"{block.name} has two scales a group, whose sums are those of the group; take the "
                "accumulators fp32 or exact"
            )
    sizes = {block.metadata.subgroup for block in (a, w) if block.metadata.bits}
    if len(sizes) != 1:
        raise InputError(
            f"{a.name} and {w.name} have subgroups of {sorted(sizes) or 'no'} values; "
            "fp32_subgroup needs one size"
        )
    return sizes.pop()


def _check_operands(qa: PackedTensor, qw: PackedTensor, accumulator: str) -> None:
    """Raise an error that says why operands do not go together."""
    for name, packed in (("qa", qa), ("qw", qw)):
        if not isinstance(packed, PackedTensor):
            raise TypeError(f"{name} is {type(packed).__name__}; pass a PackedTensor")
    if accumulator not in ACCUMULATORS:
        raise InputError(f"accumulator={accumulator!r}; choose one of: {', '.join(ACCUMULATORS)}")
    a, w = qa.format.block, qw.format.block
    if a.group != w.group:
        raise InputError(
            f"{a.name} has groups of {a.group}, {w.name} of {w.group}; pass operands of one group"
        )
    for packed in (qa, qw):
        if packed.format.level == "token":
            raise InputError(
                f"{packed.format.name} with tensor_scale='token' has a scale for each row, and "
                "these products take one for each operand; pass a number, 'auto' for weights, or "
                "multiply what dequantize() gives"
            )
    if qa.shape[-1] != qw.shape[-1]:
        raise InputError(
            f"qa has K = {qa.shape[-1]}, qw has K = {qw.shape[-1]}; they contract over the same K"
        )


def accumulate(acc: Tensor, addend: Tensor, rest: Tensor | None = None) -> Tensor:
    """Return RNE_fp32(acc + addend), one rounding of the exact sum.

    Parameters
    ----------
    acc
        float32.
    addend
        float64, exact; NaN or a NaN in acc gives the quiet NaN, zero returns acc unchanged.
    rest
        float64 of the sign of ``addend``, which is added to it exactly; for sums of more bits.
    """
    if rest is not None:
        return _accumulate_wide(acc, addend, rest)
    total = round_once(add_to_odd(widen(acc), addend), torch.float32)
    return _one_nan(torch.where(addend == 0, acc, total))


def _accumulate_wide(acc: Tensor, addend: Tensor, rest: Tensor) -> Tensor:
    """Return RNE_fp32(acc + addend + rest) by way of fixed point."""
    digits = torch.zeros(_DIGITS, *addend.shape, dtype=torch.int64, device=addend.device)
    for term in (widen(acc), addend, rest):
        _add_to_digits(digits, torch.where(term.isfinite(), term, 0.0))
    total = _rounded(_total(digits), addend.isnan())
    stays = acc.isinf() & ~addend.isnan() | (addend == 0) & (rest == 0)
    return _one_nan(torch.where(stays | acc.isnan(), acc, total))


def _one_nan(x: Tensor) -> Tensor:
    """Replace every NaN of a float32 tensor by 0x7FC00000."""
    nan = torch.tensor(_QUIET_NAN, dtype=torch.int32, device=x.device).view(torch.float32)
    return torch.where(x.isnan(), nan, x)


def _places(a: BlockFormat, w: BlockFormat) -> tuple[int, int]:
    """Return the weight of the last bit of a sum of a group's products, and a bound above it.

    Both as powers of two, without the scales: the sum is a multiple of the one, below the other.
    """
    lowest, highest = 0, a.group.bit_length()
    for block in (a, w):
        element, metadata = block.element, block.metadata.name
        lowest -= (
            element.bias + element.mantissa_bits - 1
            if isinstance(element, FloatElement)
            else element.fraction_bits
        )
        lowest -= {"none": 0, "pair": 1, "elem-em": 2, "sg-em": 2}[metadata]
        highest += element.emax + 1 + (metadata == "sg-em")
    return lowest, highest


def product_unit(a: BlockFormat, w: BlockFormat) -> int:
    """Return the power of two of which the sum of a group's products, unscaled, is a multiple."""
    return _places(a, w)[0]


def product_bias(a: BlockFormat, w: BlockFormat) -> int:
    """Return ``bias``: the value of a group is D * 2^(exponent - bias).

    D is the sum of products in units of its last place, times the significands of the scales where
    they have some; ``exponent`` is the sum of both scales' exponent fields (docs/format.md, 7).
    """
    scales = sum(
        block.scale.bias + (block.scale.grid.mantissa_bits if block.scale.grid else 0)
        for block in (a, w)
    )
    return scales - product_unit(a, w)


def _fits(a: BlockFormat, w: BlockFormat, accumulator: str) -> bool:
    """Whether the sum of a group's products is exact in float64; InputError if it has to be."""
    lowest, highest = _places(a, w)
    if highest - lowest <= _FLOAT64_BITS:
        return True
    if accumulator != "exact":
        raise InputError(
            f"the sum of a group of {a.name} x {w.name} needs {highest - lowest} bits, more than "
            "the fp32 accumulator takes exactly; pass accumulator='exact'"
        )
    return False


class _Fp32Accumulator:
    """One rounding an addend."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.acc = torch.zeros(shape, dtype=torch.float32, device=device)

    def add(self, products: Tensor, *scales: Tensor) -> None:
        self.acc = accumulate(self.acc, *(products * scale for scale in scales))

    def result(self) -> Tensor:
        return self.acc


_DIGIT = 32
_LOWEST = -352  # two scales of 2^-127, two elements of 2^-16, 52 bits below the first of those
_DIGITS = 23  # up to 2^384: two scales of 2^127, products below 2^37, 2^29 of them, a sign


def _add_to_digits(digits: Tensor, value: Tensor) -> None:
    """Add float64 values that are no NaN to fixed-point numbers [digits, ...], in place.

    Fixed point over the whole range that float64 can place: 32-bit digits, kept in int64. A digit
    takes 2^30 additions before its carries have to move on; every addend of at most 53 bits falls
    into three digits.
    """
    # |value| = significand * 2^place, 53 bits, exactly
    place = torch.where(value == 0, _LOWEST, exponent(value) - 52)
    significand = (value * power_of_two(-place)).long()
    digit, shift = (place - _LOWEST) // _DIGIT, (place - _LOWEST) % _DIGIT
    mask = (1 << _DIGIT) - 1
    low, high = significand & mask, significand >> _DIGIT  # high carries the sign
    for offset, part in ((0, low << shift), (1, high << shift)):
        for step, piece in ((0, part & mask), (1, part >> _DIGIT)):
            index = (digit + offset + step).unsqueeze(0)
            digits.scatter_add_(0, index, piece.unsqueeze(0))


def _total(number: Tensor) -> Tensor:
    """Return fixed-point numbers as float64, rounded to odd: they can be rounded or compared."""
    digits = list(number)
    negative = torch.zeros_like(digits[0], dtype=torch.bool)
    for turn in range(2):  # the second turn, on the negated digits, gives the magnitude
        carry = torch.zeros_like(digits[0])
        for i, digit in enumerate(digits[:-1]):
            total = digit + carry
            carry = total >> _DIGIT
            digits[i] = total - (carry << _DIGIT)
        digits[-1] = digits[-1] + carry
        if turn == 0:
            negative = digits[-1] < 0
            digits = [torch.where(negative, -digit, digit) for digit in digits]
    # From the top: the first 53 bits or so and whether anything follows decide the rounding.
    value = torch.zeros_like(digits[0], dtype=torch.float64)
    for i in reversed(range(_DIGITS)):
        value = add_to_odd(value, digits[i].double() * 2.0 ** (_LOWEST + _DIGIT * i))
    return torch.where(negative, -value, value)


class _ExactAccumulator:
    """Fixed point, see ``_add_to_digits``; one rounding at the end."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._digits = torch.zeros(_DIGITS, *shape, dtype=torch.int64, device=device)
        self._nan = torch.zeros(shape, dtype=torch.bool, device=device)
        self._infinite = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, products: Tensor, *scales: Tensor) -> None:
        for value in (products * scale for scale in scales):
            self._nan |= value.isnan()
            self._infinite = torch.where(value.isinf(), self._infinite + value, self._infinite)
            _add_to_digits(self._digits, value.where(value.isfinite(), 0.0))

    def result(self) -> Tensor:
        infinite = self._infinite != 0  # of both signs: NaN
        total = torch.where(infinite, self._infinite, _total(self._digits))
        return _rounded(total, self._nan | total.isnan())


def _rounded(total: Tensor, nan: Tensor) -> Tensor:
    """Round sums to float32, once."""
    return round_once(total.masked_fill(nan, float("nan")), torch.float32)


def _finish(acc: Tensor, a: _Operand, w: _Operand) -> Tensor:
    """Apply the tensor scales: g_a * g_w rounded to float32, then one float32 product.

    An operand of one level has none, which is 1.
    """
    g = joint_scale(a.tensor_scale, w.tensor_scale)
    return acc if g is None else round_once(widen(acc) * widen(g), torch.float32)


def _run(
    a: _Operand,
    w: _Operand,
    accumulator: str,
    lanes: int,
    outer: bool,
    initial: Tensor | None = None,
    wide: bool = False,
) -> Tensor:
    """Accumulate over groups: row by row, or (``outer``) every row with every row.

    ``wide``: scales are float32 numbers on both sides.
    """
    shape = (len(a.scales), len(w.scales)) if outer else (len(a.scales),)
    acc: _ExactAccumulator | _Fp32Accumulator
    if accumulator == "exact":
        acc = _ExactAccumulator(shape, a.scales.device)
    else:
        acc = _Fp32Accumulator(shape, a.scales.device)
        if initial is not None:
            acc.acc = initial
    for g in range(a.scales.shape[1]):
        for one, other in _terms(a, w):
            sa, sw = a.scales[:, g, one], w.scales[:, g, other]
            scales = _scale_products(sa[:, None] if outer else sa, sw, wide)
            xs, ys = a.of_class(one, g), w.of_class(other, g)
            for start in range(0, xs.shape[1], lanes):
                xa, xw = xs[:, start : start + lanes], ys[:, start : start + lanes]
                # Exact whatever the order: every partial sum is a small multiple of one power of
                # two.
                acc.add(xa @ xw.T if outer else (xa * xw).sum(-1), *scales)
    return _finish(acc.result(), a, w)


def dot(
    qa: PackedTensor,
    qw: PackedTensor,
    accumulator: str = "fp32",
    initial: Tensor | None = None,
) -> Tensor:
    """Contract the last dimension row by row: [..., K] x [..., K] -> float32 [...].

    Parameters
    ----------
    qa, qw
        Packed tensors of one shape, of formats of the same group size whose values are elements
        times scales: M2XFP, the MX formats, SMX4, AMXFP4, or NVFP4 and its metadata variants (of
        one level or two; a scale for each row, ``tensor_scale="token"``, is refused).
    accumulator
        ``fp32``, ``fp32_subgroup`` or ``exact``; see the module for the rules.
    initial
        float32 [...] that the fp32 accumulators start from, by default +0.

    Raises
    ------
    TypeError
        An operand is no PackedTensor.
    InputError
        Shapes, formats or the accumulator do not go together.
    """
    lanes = _check(qa, qw, accumulator)
    if qa.shape != qw.shape:
        raise InputError(
            f"qa has shape {tuple(qa.shape)}, qw {tuple(qw.shape)}; dot takes one shape, "
            "matmul combines all rows"
        )
    lead = qa.shape[:-1]
    if initial is not None:
        if accumulator == "exact":
            raise InputError("initial belongs to the fp32 accumulators; leave it out")
        if not isinstance(initial, Tensor) or initial.dtype != torch.float32:
            raise TypeError("initial is no float32 tensor; pass one of shape [...]")
        if initial.shape != lead:
            raise InputError(f"initial has shape {tuple(initial.shape)}; pass {tuple(lead)}")
    _operand_coder(qa)
    _operand_coder(qw)
    found: Tensor = _DOT(*_parts(qa), *_parts(qw), initial, qa.shape[-1], accumulator, lanes)
    return found


_Blocks = tuple[BlockFormat, BlockFormat]


def _split(qa: PackedTensor, qw: PackedTensor) -> _Blocks | None:
    """Return the formats if their sums of products must be split in two."""
    blocks = qa.format.block, qw.format.block
    lowest, highest = _places(*blocks)
    return blocks if highest - lowest > _FLOAT64_BITS else None


def _addends(a: Tensor, w: Tensor, lanes: int | None, split: _Blocks | None) -> tuple[Tensor, ...]:
    """Return the sums of ``lanes`` products each, without scales: float64 [rows, groups, parts].

    One tensor, or two of which each sum is the sum.
    """
    size = a.shape[2]
    lanes = size if lanes is None else lanes
    if lanes < 1 or size % lanes:
        raise InputError(f"lanes={lanes}: must divide the group of {size}")
    if split is not None:
        return split_sums(a, w, split, lanes)
    return ((a * w).unflatten(-1, (-1, lanes)).sum(-1),)


def _whole_terms(a: _Operand, w: _Operand, lanes: int | None) -> list[tuple[int, int]]:
    """Return ``_terms``; groups with two scales are added whole."""
    terms = _terms(a, w)
    if len(terms) > 1 and lanes not in (None, a.elements.shape[2]):
        raise InputError(f"lanes={lanes}: groups with two scales are added whole; leave lanes out")
    return terms


@torch.no_grad()
@shielded
def group_sums(qa: PackedTensor, qw: PackedTensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the exact sums of the products of each pair of groups, and what scales them.

    Operands as for ``running_fp32``. The first is one float64 tensor [rows, groups] without scales,
    or two of one sign of which each sum is the sum; the second is [rows, groups] too.
    """
    _check_operands(qa, qw, "fp32")
    a, w = _operand(qa), _operand(qw)
    if len(_terms(a, w)) > 1:
        raise InputError(f"{qa.format.name} x {qw.format.name}: a group has several sums")
    terms = _addends(a.elements, w.elements, None, _split(qa, qw))
    return tuple(term.squeeze(-1) for term in terms), (a.scales * w.scales).squeeze(-1)


@torch.no_grad()
@shielded
def running_fp32(
    qa: PackedTensor,
    qw: PackedTensor,
    first: Tensor | None = None,
    lanes: int | None = None,
) -> Tensor:
    """Return what the ``fp32`` accumulation holds after each addend: float32 [..., groups, parts].

    The parts of a group with two scales are its terms, see the module.

    Parameters
    ----------
    qa, qw
        As for ``dot``, of one shape.
    first
        bool [..., groups]: start from +0 before that group; by default at group 0 alone.
    lanes
        Products of an addend, of which a group has one or more; None for those of a group.

    Raises
    ------
    TypeError, InputError
        As for ``dot``; and for lanes that do not divide the group.
    """
    _check_operands(qa, qw, "fp32")
    if qa.shape != qw.shape:
        raise InputError(f"qa has shape {tuple(qa.shape)}, qw {tuple(qw.shape)}; pass one shape")
    a, w = _operand(qa), _operand(qw)
    wide = _wide_scales(qa.format.block, qw.format.block)
    found: list[list[Tensor]] = []
    for one, other in _whole_terms(a, w, lanes):
        sums = _addends(a.of_class(one), w.of_class(other), lanes, _split(qa, qw))
        products = _scale_products(a.scales[..., one], w.scales[..., other], wide)
        found.append([part * scale.unsqueeze(-1) for scale in products for part in sums])
    addends, *rests = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    begins = None if first is None else first.reshape(a.scales.shape[:2])
    acc = running_fp32_sum(addends, begins, *rests)
    return acc.reshape(*qa.shape[:-1], *addends.shape[1:])


@shielded
def running_fp32_sum(
    addends: Tensor, first: Tensor | None = None, rests: Tensor | None = None
) -> Tensor:
    """Return the ``fp32`` accumulator after each addend.

    Parameters
    ----------
    addends
        float64 [rows, steps, parts], exact or NaN; the parts of a step follow one another.
    first
        bool [rows, steps]: start from +0 before that step; by default at step 0 alone.
    rests
        What is still to be added to each addend, as ``accumulate`` takes it.
    """
    acc = torch.zeros(len(addends), dtype=torch.float32, device=addends.device)
    found = torch.empty(addends.shape, dtype=torch.float32, device=addends.device)
    for step in range(addends.shape[1]):
        if first is not None:
            acc = acc.masked_fill(first[:, step], 0.0)
        for part in range(addends.shape[2]):
            rest = None if rests is None else rests[:, step, part]
            acc = found[:, step, part] = accumulate(acc, addends[:, step, part], rest)
    return found


@torch.no_grad()
@shielded
def running_exact(
    qa: PackedTensor,
    qw: PackedTensor,
    first: Tensor | None = None,
    window: Window = ALL_EXPONENTS,
    lanes: int | None = None,
    at_once: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return what the ``exact`` accumulation holds after each group: two tensors [..., groups].

    With ``lanes``, after each addend: [..., groups, parts]; so too of groups with two scales.

    Parameters
    ----------
    qa, qw
        As for ``dot``, with E8M0 scales; of groups with two scales also E5M2 and E4M3.
    first
        bool [..., groups]: start from zero before that group; by default at group 0 alone.
    window
        Exponents that the accumulator is built for.
    lanes
        Products of an addend, of which a group has one or more; None for those of a group.
    at_once
        Terms of a group with two scales that are added before the sum has to fit.

    Returns
    -------
    float32, the exact sum so far, rounded once, and bool: ``inexact``. A group whose exponent lies
    below the window is left out, and ``inexact`` stays set from there on; one that lies above it,
    or a sum that leaves the accumulator, also turns the result into NaN. Both end at the next
    ``first``.

    Raises
    ------
    TypeError, InputError
        As for ``dot``; and for scales that are no E8M0.
    """
    _check_operands(qa, qw, "fp32")
    if qa.shape != qw.shape:
        raise InputError(f"qa has shape {tuple(qa.shape)}, qw {tuple(qw.shape)}; pass one shape")
    blocks = qa.format.block, qw.format.block
    a, w = _operand(qa), _operand(qw)
    if len(_whole_terms(a, w, lanes)) > 1:
        return _running_exact_terms((qa, qw), (a, w), first, window, at_once)
    if any(block.scale is not E8M0 for block in blocks):
        raise InputError(
            f"{blocks[0].name} x {blocks[1].name}: a window is one of sums of E8M0 bytes; "
            "pass formats with E8M0 scales"
        )
    rows, groups, _ = a.scales.shape
    # A sum in two parts is added in two steps. They have one sign, so what lies between has left
    # the window only if the end has, and both are zero only if the sum is.
    terms = torch.stack(_addends(a.elements, w.elements, lanes, _split(qa, qw)), -1)
    parts = terms.shape[2]
    begins = torch.zeros(terms.shape, dtype=torch.bool, device=a.scales.device)
    if first is not None:
        begins[..., 0, 0] = first.reshape(rows, groups)
    found = running_exact_sum(
        terms.flatten(1),
        (a.scales * w.scales).squeeze(-1).repeat_interleave(terms[0, 0].numel(), dim=1),
        begins.flatten(1),
        window,
        product_unit(*blocks),
    )
    acc, inexact = (each[:, terms.shape[3] - 1 :: terms.shape[3]] for each in found)
    shape = (*qa.shape[:-1], groups) if lanes is None else (*qa.shape[:-1], groups, parts)
    return acc.reshape(shape), inexact.reshape(shape)


def _running_exact_terms(
    packed: tuple[PackedTensor, PackedTensor],
    operands: tuple[_Operand, _Operand],
    first: Tensor | None,
    window: Window,
    at_once: int,
) -> tuple[Tensor, Tensor]:
    """Return ``running_exact`` of groups with two scales: [..., groups, terms / at_once].

    A term is the sum of a class times the significands of both scales, and its exponent the sum of
    their exponent fields: those are what a window counts.
    """
    a, w = operands
    blocks = packed[0].format.block, packed[1].format.block
    if any(block.scale.bits != 8 for block in blocks):
        raise InputError(
            f"{blocks[0].name} x {blocks[1].name}: a window is one of sums of exponents of 8-bit "
            "scales; pass formats with E8M0, E4M3 or E5M2 scales"
        )
    sides = [_scale_parts(operand, block) for operand, block in zip(operands, blocks, strict=True)]
    products, places = [], []
    for one, other in _terms(a, w):
        total = (a.of_class(one) * w.of_class(other)).sum(-1)
        products.append(total * sides[0][0][..., one] * sides[1][0][..., other])
        places.append(sides[0][1][..., one] + sides[1][1][..., other])
    terms, exponents = (torch.stack(parts, -1) for parts in (products, places))
    begins = torch.zeros(terms.shape, dtype=torch.bool, device=terms.device)
    if first is not None:
        begins[..., 0] = first.reshape(begins.shape[:2])
    # ``running_exact_sum`` counts exponents from those of two E8M0 scales.
    moved = 2 * E8M0.bias - sum(_scale_bias(block) for block in blocks)
    found = running_exact_sum(
        (terms * 2.0**moved).flatten(1),
        power_of_two(exponents - 2 * E8M0.bias).flatten(1),
        begins.flatten(1),
        window,
        product_unit(*blocks) + moved,
        at_once,
    )
    acc, inexact = (each[:, at_once - 1 :: at_once] for each in found)
    shape = (*packed[0].shape[:-1], terms.shape[1], terms.shape[2] // at_once)
    return acc.reshape(shape), inexact.reshape(shape)


def _scale_bias(block: BlockFormat) -> int:
    """Return what a scale's exponent field counts from: its value is m * 2^(field - this)."""
    grid = block.scale.grid
    return block.scale.bias + (grid.mantissa_bits if grid else 0)


def _scale_parts(operand: _Operand, block: BlockFormat) -> tuple[Tensor, Tensor]:
    """Return significands, float64, NaN of a NaN, and exponent fields, int64, of 8-bit scales."""
    grid, values = block.scale.grid, operand.scales
    if grid is None:
        return values.where(values.isnan(), 1.0), operand.fields
    field = operand.fields & ((1 << (grid.bits - 1)) - 1)
    # Subnormal scales have the exponent of the smallest normal ones.
    place = (field >> grid.mantissa_bits).clamp(min=1)
    return values * power_of_two(_scale_bias(block) - place), place


@shielded
def running_exact_sum(
    products: Tensor,
    scales: Tensor,
    first: Tensor | None,
    window: Window,
    unit: int,
    at_once: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the ``exact`` accumulator, rounded, and ``inexact`` after each product.

    Parameters
    ----------
    products
        float64 [rows, steps]: multiples of 2^unit.
    scales
        float64 [rows, steps]: powers of two, or NaN.
    first
        bool [rows, steps]: start from zero before that step; by default at step 0 alone.
    window, unit
        Exponents that the accumulator is built for, and the last place of a product.
    at_once
        Products that are added together, as many in each step: only after the last of them does
        the sum have to fit.
    """
    rows, steps = products.shape
    device = products.device
    starts = torch.zeros(rows, steps, dtype=torch.bool, device=device) if first is None else first
    none = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    running = _Running(none.expand(_DIGITS, rows, 1), none, none)
    size = at_once * max(1, _CHUNK_SUMS // (at_once * _DIGITS * max(1, rows)))
    found = [
        _run_on(
            running,
            products[:, start : start + size],
            scales[:, start : start + size],
            starts[:, start : start + size],
            window,
            unit,
            at_once,
        )
        for start in range(0, steps, size)
    ]
    if not found:
        return products.new_empty(rows, 0, dtype=torch.float32), starts
    accs, flags = zip(*found, strict=True)
    return torch.cat(accs, -1), torch.cat(flags, -1)


@dataclass
class _Running:
    """What sums hold before a step: digits [digits, rows, 1], how often NaN and inexact so far."""

    digits: Tensor
    nan: Tensor
    inexact: Tensor


def _run_on(
    running: _Running,
    products: Tensor,
    scales: Tensor,
    first: Tensor,
    window: Window,
    unit: int,
    at_once: int,
) -> tuple[Tensor, Tensor]:
    """Return the accumulator and ``inexact`` after each step, and leave what the last one holds.

    All steps at once: whole numbers are summed from the start, and what had been summed when a sum
    began is taken away.
    """
    steps = torch.arange(products.shape[1], device=products.device)
    begun = torch.where(first, steps, -1).cummax(-1).values  # the step at which a sum began
    there = (products != 0) & ~(products * scales).isnan()
    place = exponent(scales) + 2 * E8M0.bias
    below, above = there & (place < window.lowest), there & (place > window.highest)
    value = products.masked_fill(below | above, 0.0) * scales
    infinite = value.isinf()
    value = value.masked_fill(infinite, 0.0)

    def since(change: Tensor, before: Tensor) -> Tensor:
        """Sum along the steps, each from where its sum began; ``before`` is what was there."""
        total = torch.cat((before, change), -1).cumsum(-1)
        at = begun.clamp(min=0).expand(*change.shape)
        taken = torch.where(begun < 0, 0, total[..., :-1].gather(-1, at))
        return total[..., 1:] - taken

    digits = torch.zeros(_DIGITS, *products.shape, dtype=torch.int64, device=products.device)
    _add_to_digits(digits, torch.where(value.isnan(), 0.0, value))
    digits = since(digits, running.digits)
    total = _total(digits)  # to odd, so it compares with the limit as the exact sum does
    limit = 2.0 ** (window.lowest - 2 * E8M0.bias + unit + window.bits - 1)
    # From here on the sum is NaN and inexact, whatever else comes.
    outside = (total >= limit) | (total < -limit)
    outside &= steps % at_once == at_once - 1
    lost = above | infinite | outside
    nan = since((value.isnan() | lost).long(), running.nan)
    inexact = since((below | lost).long(), running.inexact)
    running.digits, running.nan, running.inexact = digits[..., -1:], nan[:, -1:], inexact[:, -1:]
    return _rounded(total, nan > 0), inexact > 0


def matmul(
    qa: PackedTensor,
    qw: PackedTensor,
    accumulator: str = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Multiply [..., K] by the rows of [N, K]: [..., N] in ``dtype``.

    Each result equals ``dot`` of its two rows, bit for bit, in float32; another type (bfloat16,
    float16) is that rounded once more. Parameters and errors as there; ``qw`` has two dimensions.
    """
    lanes = _check(qa, qw, accumulator)
    if len(qw.shape) != 2:
        raise InputError(f"qw has shape {tuple(qw.shape)}; matmul takes weights [N, K]")
    return _product(qa, qw, accumulator, lanes, dtype)


def batched_matmul(
    qa: PackedTensor,
    qw: PackedTensor,
    accumulator: str = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Multiply [..., M, K] by the rows of [..., N, K], each with its own: [..., M, N] in ``dtype``.

    The leading dimensions of both are equal; everything else is as for ``matmul``.
    """
    lanes = _check(qa, qw, accumulator)
    if len(qa.shape) < 2 or qw.shape[:-2] != qa.shape[:-2]:
        raise InputError(
            f"qa has shape {tuple(qa.shape)}, qw {tuple(qw.shape)}; batched_matmul takes "
            "[..., M, K] and [..., N, K] with equal leading dimensions"
        )
    return _product(qa, qw, accumulator, lanes, dtype)


def _product(
    qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int, dtype: torch.dtype
) -> Tensor:
    """Multiply operands that go together."""
    if dtype not in _RESULTS:
        raise TypeError(f"dtype is {dtype}; pass float32, bfloat16 or float16")
    _operand_coder(qa)
    _operand_coder(qw)
    found: Tensor = _MATMUL(*_parts(qa), *_parts(qw), qa.shape[-1], accumulator, lanes, dtype)
    return found


_RESULTS = (torch.float32, torch.bfloat16, torch.float16)


def _parts(packed: PackedTensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, str]:
    """Return what operators take of a packed tensor, beside its last size."""
    return packed.codes, packed.scales, packed.meta, packed.tensor_scale, packed.format.key


def _whole(parts: Sequence[Any], width: int) -> PackedTensor:
    """Invert ``_parts``."""
    codes, scales, meta, tensor_scale, key = parts
    shape = torch.Size((*codes.shape[:-1], width))
    return PackedTensor(format_of(key), codes, scales, meta, shape, tensor_scale)


@explained("dot")
@shielded
def _compute_dot(*given: Any) -> Tensor:
    """Multiply row by row: parts of both, initial, width, accumulator, lanes."""
    *parts, initial, width, accumulator, lanes = given
    refuse_forced("sums row by row; use matmul")
    qa, qw = _whole(parts[:5], width), _whole(parts[5:], width)
    start = None if initial is None else initial.reshape(-1)
    a, w = _operand(qa), _operand(qw)
    wide = _wide_scales(qa.format.block, qw.format.block)
    found = _run(a, w, accumulator, lanes, outer=False, initial=start, wide=wide)
    return found.reshape(qa.shape[:-1])


@explained("matmul")
@shielded
def _compute_matmul(*given: Any) -> Tensor:
    """Multiply all rows with all rows: parts of both, width, accumulator, lanes, dtype."""
    *parts, width, accumulator, lanes, dtype = given
    if parts[0].ndim == 1:  # a vector is one row
        parts[:3] = [None if plane is None else plane.unsqueeze(0) for plane in parts[:3]]
        product: Tensor = _compute_matmul(*parts, *given[-4:])
        return product.squeeze(0)
    qa, qw = _whole(parts[:5], width), _whole(parts[5:], width)
    shape = (*qa.shape[:-1], qw.shape[-2])
    if len(qw.shape) == 2 or qa.device.type == "cuda":
        fast = fast_matmul(qa, qw, accumulator, lanes, dtype)
        if fast is not None:
            return fast.reshape(shape)
    if len(qw.shape) == 2:
        return _plain_matmul(qa, qw, accumulator, lanes, dtype).reshape(shape)
    pairs = zip(_matrices(qa), _matrices(qw), strict=True)
    found = [_compute_matmul(*_parts(a), *_parts(w), *given[-4:]) for a, w in pairs]
    if not found:
        return torch.zeros(shape, dtype=dtype, device=qa.device)
    return torch.stack(found).reshape(shape)


def _plain_matmul(
    qa: PackedTensor, qw: PackedTensor, accumulator: str, lanes: int, dtype: torch.dtype
) -> Tensor:
    """Multiply the rows of [..., K] by those of [N, K]: [rows, N]."""
    a, w = _operand(qa), _operand(qw)
    digits = _DIGITS if accumulator == "exact" else 1
    step = max(1, _CHUNK_SUMS // (digits * max(1, len(w.scales))))
    rows = [
        _run(
            a.rows(start, start + step),
            w,
            accumulator,
            lanes,
            outer=True,
            wide=_wide_scales(qa.format.block, qw.format.block),
        )
        for start in range(0, max(1, len(a.scales)), step)
    ]
    return round_product(torch.cat(rows), dtype)


def _matrices(packed: PackedTensor) -> list[PackedTensor]:
    """Return the matrices [rows, K] that a packed tensor holds along its leading dimensions."""
    if len(packed.shape) == 2:
        return [packed]
    shape = packed.shape[-2:]
    planes = {
        name: plane if name == "tensor_scale" else plane.flatten(0, -3)
        for name, plane in packed.planes().items()
    }
    return [
        PackedTensor.from_planes(
            packed.format,
            {n: plane if n == "tensor_scale" else plane[i] for n, plane in planes.items()},
            tuple(shape),
        )
        for i in range(prod(packed.shape[:-2]))
    ]


def packed_linear(x: Tensor, weight: PackedTensor) -> Tensor:
    """Return x [..., K] times the rows of a packed weight [N, K], both as floats of the type of x.

    The sums are those of ``torch.nn.functional.linear``, or, for a few rows of bfloat16 on CUDA,
    of a kernel that reads the packed weight alone. No gradient passes.
    """
    found: Tensor = _LINEAR(x, *_parts(weight))
    return found


@explained("packed_linear")
@shielded
def _compute_linear(x: Tensor, *parts: Any) -> Tensor:
    """Multiply x with the parts of a packed weight."""
    weight = _whole(parts, x.shape[-1])
    rows, (count, width) = x.reshape(-1, x.shape[-1]), weight.shape
    found = fast_rows(rows, weight)
    if found is None:
        step = max(1, _CHUNK_WEIGHTS // max(1, width))
        products = [
            torch.nn.functional.linear(rows, _decoded_rows(weight, start, start + step, x.dtype))
            for start in range(0, count, step)
        ]
        found = torch.cat(products, -1) if products else rows.new_empty(len(rows), 0)
    return found.reshape(*x.shape[:-1], count)


def _decoded_rows(packed: PackedTensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Return some rows of a packed matrix, decoded."""
    planes = {
        name: plane[start:stop] if plane.ndim else plane for name, plane in packed.planes().items()
    }
    shape = (len(planes["codes"]), packed.shape[-1])
    return packed.format.decoded(PackedTensor.from_planes(packed.format, planes, shape), dtype)


def quantized_matmul(
    x: Tensor,
    fmt: Format,
    qw: PackedTensor,
    accumulator: str = "fp32",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return ``matmul(fmt.quantize(x), qw, accumulator, dtype)``, bit for bit, in one step.

    Where a GPU can, the packed planes of x, which nothing else needs, are not made. No gradient
    passes.
    """
    if accumulator not in ACCUMULATORS or len(qw.shape) != 2 or x.shape[-1:] != qw.shape[-1:]:
        return matmul(fmt.quantize(x), qw, accumulator, dtype)  # which says what is wrong
    found: Tensor = _INPUTS(x.detach(), fmt.key, *_parts(qw), accumulator, dtype)
    return found


@explained("matmul")
@shielded
def _compute_inputs(x: Tensor, key: str, *given: Any) -> Tensor:
    """Quantize x and multiply: format of x, parts of a packed weight, accumulator, dtype."""
    *parts, accumulator, dtype = given
    fmt, weight = format_of(key), _whole(parts, x.shape[-1])
    if fmt.level is None and fmt.block.group == weight.format.block.group:
        lanes = _lanes(fmt.block, weight.format.block, accumulator)
        rows = x.reshape(-1, x.shape[-1])
        found = fast_inputs(rows, fmt, weight, accumulator, lanes, dtype)
        if found is not None:
            return found.reshape(*x.shape[:-1], len(weight.codes))
    return matmul(fmt.quantize(x), weight, accumulator, dtype)


def _batched_dot(size: int, dims: Dims, *given: Any) -> tuple[Any, Any]:
    *parts, initial, width, accumulator, lanes = given
    if size and not (dims[3] is None and dims[8] is None):
        return each(_DOT, size, dims, *given)
    a = in_front(size, dims[:3], *parts[:3])
    w = in_front(size, dims[5:8], *parts[5:8])
    (start,) = in_front(size, dims[10:11], initial)
    return _DOT(*a, *parts[3:5], *w, *parts[8:], start, width, accumulator, lanes), 0


def _batched_matmul(size: int, dims: Dims, *given: Any) -> tuple[Any, Any]:
    parts, rest = given[:10], given[10:]
    if size and not (dims[3] is None and dims[8] is None):
        return each(_MATMUL, size, dims, *given)
    a = in_front(size, dims[:3], *parts[:3])
    if all(dim is None for dim in dims[5:8]) and parts[5].ndim == 2:
        return _MATMUL(*a, *parts[3:], *rest), 0
    w = in_front(size, dims[5:8], *parts[5:8])
    assert a[0] is not None
    assert w[0] is not None
    lead = a[0].shape[1:-1]
    if w[0].ndim == 3:  # each has one matrix for all its rows
        a = [None if x is None else x.reshape(size, -1, x.shape[-1]) for x in a]
    found = _MATMUL(*a, *parts[3:5], *w, *parts[8:], *rest)
    return found.reshape(size, *lead, found.shape[-1]), 0


def _batched_inputs(size: int, dims: Dims, x: Tensor, *given: Any) -> tuple[Any, Any]:
    if dims[0] is not None and all(dim is None for dim in dims[1:]):
        fmt = format_of(given[0])
        if fmt.level is None:  # else each has a scale of its own
            return _INPUTS(x.movedim(dims[0], 0), *given), 0
    return each(_INPUTS, size, dims, x, *given)


def _batched_linear(size: int, dims: Dims, x: Tensor, *parts: Any) -> tuple[Any, Any]:
    if dims[0] is not None and all(dim is None for dim in dims[1:]):
        return _LINEAR(x.movedim(dims[0], 0), *parts), 0
    return each(_LINEAR, size, dims, x, *parts)


_PARTS = "Tensor codes{0}, Tensor scales{0}, Tensor? meta{0}, Tensor? level{0}, str format{0}"
_BOTH = f"{_PARTS.format('_a')}, {_PARTS.format('_w')}"
_DOT = define(
    f"dot({_BOTH}, Tensor? initial, SymInt width, str accumulator, int lanes) -> Tensor",
    _compute_dot,
    lambda *given: given[0].new_empty(given[0].shape[:-1], dtype=torch.float32),
    _batched_dot,
)
_MATMUL = define(
    f"matmul({_BOTH}, SymInt width, str accumulator, int lanes, ScalarType dtype) -> Tensor",
    _compute_matmul,
    lambda *given: given[0].new_empty((*given[0].shape[:-1], given[5].shape[-2]), dtype=given[-1]),
    _batched_matmul,
)
_LINEAR = define(
    f"packed_linear(Tensor x, {_PARTS.format('')}) -> Tensor",
    _compute_linear,
    lambda x, codes, *_: x.new_empty((*x.shape[:-1], codes.shape[0])),
    _batched_linear,
)
_INPUTS = define(
    f"quantized_matmul(Tensor x, str format_a, {_PARTS.format('_w')}, str accumulator, "
    "ScalarType dtype) -> Tensor",
    _compute_inputs,
    lambda *given: given[0].new_empty((*given[0].shape[:-1], given[2].shape[0]), dtype=given[-1]),
    _batched_inputs,
)
