"""Sums of products after each addend, as the accumulators of the hardware hold them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.formats import ALL_EXPONENTS, E8M0, BlockFormat, Window
from m2xfp.golden.formats.accumulators import DIGITS, accumulate, add_to_digits, rounded, total_of
from m2xfp.golden.formats.numeric import exponent, power_of_two
from m2xfp.golden.formats.operands import (
    FLOAT64_BITS,
    Operand,
    check_operands,
    class_terms,
    operand_of,
    places_of,
    product_unit,
    scale_products,
    wide_scales,
)
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.formats.wide_sums import split_sums
from m2xfp.golden.kernels.operators import shielded

__all__ = ["group_sums", "running_exact", "running_exact_sum", "running_fp32", "running_fp32_sum"]

# So many digits of running sums are held at a time.
_CHUNK_SUMS = 1 << 22

_Blocks = tuple[BlockFormat, BlockFormat]


def _split(qa: PackedTensor, qw: PackedTensor) -> _Blocks | None:
    """Return the formats if their sums of products must be split in two."""
    blocks = qa.format.block, qw.format.block
    lowest, highest = places_of(*blocks)
    return blocks if highest - lowest > FLOAT64_BITS else None


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


def _whole_terms(a: Operand, w: Operand, lanes: int | None) -> list[tuple[int, int]]:
    """Return ``class_terms``; groups with two scales are added whole."""
    terms = class_terms(a, w)
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
    check_operands(qa, qw, "fp32")
    a, w = operand_of(qa), operand_of(qw)
    if len(class_terms(a, w)) > 1:
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
    check_operands(qa, qw, "fp32")
    if qa.shape != qw.shape:
        raise InputError(f"qa has shape {tuple(qa.shape)}, qw {tuple(qw.shape)}; pass one shape")
    a, w = operand_of(qa), operand_of(qw)
    wide = wide_scales(qa.format.block, qw.format.block)
    found: list[list[Tensor]] = []
    for one, other in _whole_terms(a, w, lanes):
        sums = _addends(a.of_class(one), w.of_class(other), lanes, _split(qa, qw))
        products = scale_products(a.scales[..., one], w.scales[..., other], wide)
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
    check_operands(qa, qw, "fp32")
    if qa.shape != qw.shape:
        raise InputError(f"qa has shape {tuple(qa.shape)}, qw {tuple(qw.shape)}; pass one shape")
    blocks = qa.format.block, qw.format.block
    a, w = operand_of(qa), operand_of(qw)
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
    operands: tuple[Operand, Operand],
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
    for one, other in class_terms(a, w):
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


def _scale_parts(operand: Operand, block: BlockFormat) -> tuple[Tensor, Tensor]:
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
    running = _Running(none.expand(DIGITS, rows, 1), none, none)
    size = at_once * max(1, _CHUNK_SUMS // (at_once * DIGITS * max(1, rows)))
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

    digits = torch.zeros(DIGITS, *products.shape, dtype=torch.int64, device=products.device)
    add_to_digits(digits, torch.where(value.isnan(), 0.0, value))
    digits = since(digits, running.digits)
    total = total_of(digits)  # to odd, so it compares with the limit as the exact sum does
    limit = 2.0 ** (window.lowest - 2 * E8M0.bias + unit + window.bits - 1)
    # From here on the sum is NaN and inexact, whatever else comes.
    outside = (total >= limit) | (total < -limit)
    outside &= steps % at_once == at_once - 1
    lost = above | infinite | outside
    nan = since((value.isnan() | lost).long(), running.nan)
    inexact = since((below | lost).long(), running.inexact)
    running.digits, running.nan, running.inexact = digits[..., -1:], nan[:, -1:], inexact[:, -1:]
    return rounded(total, nan > 0), inexact > 0
