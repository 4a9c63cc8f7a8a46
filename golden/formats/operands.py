"""Operands of products: decoded rows, which formats go together, and where their sums end."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from m2xfp.errors import InputError
from m2xfp.formats import BlockFormat, FloatElement
from m2xfp.golden.formats.coder import ScaledCoder
from m2xfp.golden.formats.packed import PackedTensor

__all__ = [
    "ACCUMULATORS",
    "FLOAT64_BITS",
    "Operand",
    "check_lanes",
    "check_operands",
    "class_terms",
    "lanes_of",
    "operand_coder",
    "operand_of",
    "places_of",
    "product_bias",
    "product_unit",
    "scale_products",
    "wide_scales",
]

ACCUMULATORS = ("fp32", "fp32_subgroup", "exact")

FLOAT64_BITS = 53


@dataclass(frozen=True)
class Operand:
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

    def rows(self, start: int, stop: int) -> "Operand":
        """Return some rows."""
        here = slice(start, stop)
        return Operand(self.elements[here], self.scales[here], self.fields[here], self.tensor_scale)

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


def operand_coder(packed: PackedTensor) -> ScaledCoder:
    """Return the coder of an operand; InputError if its values are no elements times scales."""
    coder = packed.format.coder
    if not isinstance(coder, ScaledCoder):
        raise InputError(
            f"{packed.format.name} has a zero point and no scale alone to multiply with; "
            "dequantize it and use torch.matmul"
        )
    return coder


def operand_of(packed: PackedTensor) -> Operand:
    """Decode a packed tensor to exact float64 elements and scales, rows flattened."""
    coder = operand_coder(packed)
    codes, scales, fields = packed.unpack()
    groups = codes.shape[-2]
    rows = prod(codes.shape[:-2])
    elements = coder.refinement.decode(codes.flatten(0, -2), fields.flatten(0, -2))
    values = coder.scale.value(scales)
    elements, values = (part.masked_fill(part.isinf(), float("nan")) for part in (elements, values))
    return Operand(
        elements.reshape(rows, groups, codes.shape[-1]),
        values.reshape(rows, groups, scales.shape[-1]),
        scales.reshape(rows, groups, scales.shape[-1]),
        packed.tensor_scale,
    )


def scale_products(sa: Tensor, sw: Tensor, wide: bool) -> tuple[Tensor, ...]:
    """Return exact products of scales: one, or if ``wide`` two of which each is the sum.

    Those of two float32 numbers have 48 bits, which leaves too few of float64 for a group's sum.
    """
    if not wide:
        return (sa * sw,)
    upper = (sw.view(torch.int64) & ~((1 << 41) - 1)).view(torch.float64)  # 12 bits
    return sa * upper, sa * (sw - upper)


def wide_scales(a: BlockFormat, w: BlockFormat) -> bool:
    """Whether scales are float32 numbers on both sides."""
    return all(block.scale.bits == 32 for block in (a, w))


def class_terms(a: Operand, w: Operand) -> list[tuple[int, int]]:
    """Return the classes of both sides whose products have a scale in common, in their order."""
    return [(one, other) for one in range(a.classes) for other in range(w.classes)]


def check_lanes(qa: PackedTensor, qw: PackedTensor, accumulator: str) -> int:
    """Return the lanes of one addend; an error says why operands do not go together."""
    check_operands(qa, qw, accumulator)
    return lanes_of(qa.format.block, qw.format.block, accumulator)


def lanes_of(a: BlockFormat, w: BlockFormat, accumulator: str) -> int:
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


def check_operands(qa: PackedTensor, qw: PackedTensor, accumulator: str) -> None:
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


def places_of(a: BlockFormat, w: BlockFormat) -> tuple[int, int]:
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
    return places_of(a, w)[0]


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
    lowest, highest = places_of(a, w)
    if highest - lowest <= FLOAT64_BITS:
        return True
    if accumulator != "exact":
        raise InputError(
            f"the sum of a group of {a.name} x {w.name} needs {highest - lowest} bits, more than "
            "the fp32 accumulator takes exactly; pass accumulator='exact'"
        )
    return False
